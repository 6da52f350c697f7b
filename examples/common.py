"""What the examples on real data share: train, or take what is trained, and let every sample stop early.

python examples/<name>.py --data DIR --pretrained               # numbers in a minute
python examples/<name>.py --data DIR                            # train it
python examples/<name>.py --data DIR --pretrained runs/<name>   # numbers of what was trained
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.checkpoints.pretrained import Card, Pretrained
from seenn_plugin.training import Forward, Recipe, train

CHECKPOINTS = Path(__file__).parents[1] / "checkpoints"


@dataclass(frozen=True)
class Stage:
    """One stage of training.

    Attributes:
        name: of the stage, different for each.
        recipe: how.
        forward: the framework's own run from a fresh state: a model and a batch to the outputs ``[T, N, C]``.
        loader_arguments: of the training data, in addition to those of the card.
    """

    name: str
    recipe: Recipe
    forward: Forward
    loader_arguments: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Example:
    """A network, its data, and how it is trained.

    Attributes:
        name: of its folder in ``checkpoints/`` and in ``runs/``.
        card: of the network, as far as it is known before training.
        build: the network, from the seed that is set.
        stages: of training, in order; the last one's ``forward`` is the network's run at all its timesteps.
        policy: when a sample stops.
    """

    name: str
    card: Card
    build: Callable[[], nn.Module]
    stages: Sequence[Stage]
    policy: str = "confidence"

    def trained(self, root: Path, out: Path, device: str, workers: int, **changes: Any) -> Pretrained:
        """Train it in a folder, from where an interruption has left it; ``changes`` are of the recipe of each stage."""
        torch.manual_seed(self.card.seed)
        net = Pretrained(self.build().to(device), self.card)
        facts = []
        for stage in self.stages:
            warmup = min(stage.recipe.warmup, changes.get("epochs", stage.recipe.epochs))
            recipe = replace(stage.recipe, seed=self.card.seed, warmup=warmup, **changes)
            train(
                net.model,
                stage.forward,
                net.data(root, "train", **stage.loader_arguments),
                recipe,
                validation=net.data(root, "validation"),
                folder=out / stage.name,
                log_dir=out / "log",
                name=stage.name,
                workers=workers,
            )
            facts.append({"name": stage.name, **stage.loader_arguments, **asdict(recipe)})
        return replace(net, card=replace(self.card, recipe=facts)).measured(self.stages[-1].forward, root)


def cifar10_card(title: str, network: str, timesteps: int, arguments: dict[str, Any] | None = None) -> Card:
    """The card of a network for CIFAR-10, before training; its answer is the sum of its output currents, as SEENN's."""
    return Card(
        title=title,
        network=network,
        arguments=arguments or {},
        wrapper={"timesteps": timesteps, "readout": "sum"},
        loader="seenn_plugin.data:cifar10",
        loader_arguments={},
        data="CIFAR-10",
        recipe=[],
        seed=0,
    )


def main(example: Example, arguments: Sequence[str] | None = None) -> None:
    """Train or load the network of an example, calibrate it on the validation data, and report on the test data."""
    run_example(example, argument_parser(example.card.title).parse_args(arguments))


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The options that all examples have; :func:`run_example` takes what is asked."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--data", type=Path, required=True, help="folder of the data")
    parser.add_argument(
        "--pretrained",
        type=Path,
        nargs="?",
        const=True,  # without a folder
        metavar="FOLDER",
        help="take the weights in a folder (default: the example's in checkpoints/)",
    )
    parser.add_argument("--out", type=Path, help="folder to train in (default: runs/<example>-seed<seed>)")
    parser.add_argument("--data-name", help="what the data is called in the model card")
    parser.add_argument("--seed", type=int, default=0, help="of the first weights and of training")
    parser.add_argument("--epochs", type=int, help="of each stage, instead of the recipe's")
    parser.add_argument("--no-compile", action="store_true", help="train without torch.compile, for want of a compiler")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workers", type=int, default=1, help="processes that load data")
    return parser


def run_example(example: Example, asked: argparse.Namespace) -> None:
    """What :func:`main` does, once the arguments are read."""
    if asked.pretrained is not None:
        folder = CHECKPOINTS / example.name if asked.pretrained is True else asked.pretrained
        net = Pretrained.load(folder, asked.device)
    else:
        out = asked.out or Path("runs") / f"{example.name}-seed{asked.seed}"
        card = replace(example.card, data=asked.data_name or example.card.data, seed=asked.seed)
        changes = {} if asked.epochs is None else {"epochs": asked.epochs}
        if asked.no_compile:
            changes["compile"] = False
        net = replace(example, card=card).trained(asked.data, out, asked.device, asked.workers, **changes)
        net.save(out)
        print(f"{out}: weights.safetensors, card.json and README.md")

    snn = EarlyExitWrapper(net.model, policy=example.policy, **net.card.wrapper)
    snn.calibrate(net.batches(asked.data, "validation"), max_accuracy_drop=0.001, progress=True)
    report = evaluate(snn, net.batches(asked.data, "test"), progress=True)
    print(f"{snn.policy}, on {report.samples} test samples of {net.card.data}")
    print(f"all {len(report.histogram)} timesteps: {100 * report.full_accuracy:.2f} %")
    print(f"early exit: {100 * report.accuracy:.2f} % at {report.mean_timesteps:.2f} timesteps on average")
