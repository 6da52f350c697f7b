"""A trained network on disk: half-precision weights, and a card that says what it is and how it was trained."""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader

from .errors import InputError, OptionalDependencyError
from .provenance import commit, machine, versions
from .training import Forward, accuracy

_FORMAT = 1
_CARD, _WEIGHTS, _PAGE = "card.json", "weights.safetensors", "README.md"


@dataclass(frozen=True)
class Card:
    """What a trained network is, and how it came about.

    Attributes:
        title: for tables and pages.
        network: ``package.module:factory`` of the network.
        arguments: of the factory.
        wrapper: of :class:`~seenn_plugin.EarlyExitWrapper`: ``timesteps``, ``input``, ``time_dim``, ``readout``.
        loader: ``package.module:function`` of its data; called with a folder, a split and ``loader_arguments``, it
            returns a data set of pairs of an input and a class.
        loader_arguments: further arguments of the loader.
        data: what data the weights are from, for tables; the copy counts: ``"CIFAR-10, JPEG-recompressed"``.
        recipe: the stages of training, in order: settings of :class:`~seenn_plugin.training.Recipe`, and what else
            they were given.
        seed: of the first weights and of training.
        accuracy: by split, on it, after t = 1..T timesteps, of the weights as they are saved.
        samples: by split, how many.
        trained_on: the machine.
        commit: of the code that trained it.
        versions: of the packages.
    """

    title: str
    network: str
    arguments: dict[str, Any]
    wrapper: dict[str, Any]
    loader: str
    loader_arguments: dict[str, Any]
    data: str
    recipe: list[dict[str, Any]]
    seed: int
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Pretrained:
    """A network with its card.

    Attributes:
        model: in evaluation mode.
        card: what it is.
    """

    model: nn.Module
    card: Card

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu") -> Pretrained:
        """What :meth:`save` wrote. The factory that the card names is imported and called.

        Raises:
            InputError: the folder holds no trained network, or its weights do not fit.
            OptionalDependencyError: safetensors is not installed.
        """
        folder, safetensors = Path(folder), _safetensors()
        card = _read_card(folder / _CARD)
        model = _named(card.network)(**card.arguments)
        try:
            weights = safetensors.load_file(str(folder / _WEIGHTS))
            own = model.state_dict()
            model.load_state_dict({name: value.to(own[name].dtype) for name, value in weights.items()})
        except Exception as error:  # what the reader raises depends on what is there instead
            raise InputError(f"the weights in {folder / _WEIGHTS} do not fit {card.network}: {error!r}") from error
        return cls(model.to(device).eval(), card)

    def save(self, folder: str | Path) -> None:
        """Write ``card.json``, ``weights.safetensors`` in half precision, and ``README.md`` for people.

        Raises:
            OptionalDependencyError: safetensors is not installed.
        """
        folder, safetensors = Path(folder), _safetensors()
        folder.mkdir(parents=True, exist_ok=True)
        safetensors.save_file(_halved(self.model), str(folder / _WEIGHTS))
        card = {"format": _FORMAT, **asdict(self.card)}
        (folder / _CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        (folder / _PAGE).write_text(page(self.card), encoding="utf-8")

    def measured(
        self, forward: Forward, root: str | Path, splits: Sequence[str] = ("validation", "test")
    ) -> Pretrained:
        """The same with the card filled in: accuracies of the weights as they are saved, machine, commit, versions.

        The weights of :attr:`model` are rounded to half precision in place.

        Args:
            forward: the framework's own run from a fresh state, as for :func:`seenn_plugin.training.train`.
            root: folder of the data.
            splits: of it.
        """
        own = self.model.state_dict()
        self.model.load_state_dict({name: value.to(own[name]) for name, value in _halved(self.model).items()})
        batches = {split: self.batches(root, split) for split in splits}
        device = next((parameter.device for parameter in self.model.parameters()), None)
        card = replace(
            self.card,
            accuracy={split: accuracy(self.model.eval(), forward, batches[split]) for split in splits},
            samples={split: len(self.data(root, split)) for split in splits},
            trained_on=machine(device),
            commit=commit(),
            versions=versions(),
        )
        return Pretrained(self.model, card)

    def data(self, root: str | Path, split: str = "test", **arguments: Any) -> Any:
        """Its data set, from a folder: the split ``"train"``, ``"validation"`` or ``"test"``.

        Args:
            arguments: of the loader, beside those of the card.
        """
        return _named(self.card.loader)(root, split, **{**self.card.loader_arguments, **arguments})

    def batches(self, root: str | Path, split: str = "test", batch_size: int = 64, workers: int = 0) -> DataLoader[Any]:
        """Its data, in batches, in order."""
        return DataLoader(self.data(root, split), batch_size=batch_size, num_workers=workers)


def page(card: Card) -> str:
    """A model card in Markdown."""
    splits = list(card.accuracy)
    lines = [
        f"# {card.title}",
        "",
        f"`{card.network}` with {_list(card.arguments) or 'its defaults'}, wrapped with {_list(card.wrapper)}. "
        f"Trained on {card.data}; weights in half precision.",
        "",
        "| timesteps | " + " | ".join(f"{split} ({card.samples[split]} samples)" for split in splits) + " |",
        "|---" * (len(splits) + 1) + "|",
    ]
    for t, row in enumerate(zip(*card.accuracy.values(), strict=True), start=1):
        lines.append(f"| {t} | " + " | ".join(f"{100 * value:.2f} %" for value in row) + " |")
    lines += ["", f"Seed {card.seed}; {_list(card.trained_on)}; commit {card.commit}; {_list(card.versions)}.", ""]
    lines += [f"- stage {number}: {_list(stage)}" for number, stage in enumerate(card.recipe, start=1)]
    return "\n".join(lines) + "\n"


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _halved(model: nn.Module) -> dict[str, torch.Tensor]:
    return {
        name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
        for name, value in model.state_dict().items()
    }


def _read_card(path: Path) -> Card:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        version = values.pop("format")
        card = Card(**{field.name: values[field.name] for field in fields(Card)})
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no card of a trained network: {error!r}") from error
    if version != _FORMAT:
        raise InputError(f"{path} is a card in format {version}, not {_FORMAT}.")
    return card


def _named(name: str) -> Callable[..., Any]:
    """The function ``package.module:function``."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(f"the card names {name!r}, which cannot be imported: {error!r}") from error


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "cli", "reading and writing trained networks") from error
    return safetensors.torch
