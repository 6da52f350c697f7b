"""The options of the ``seenn`` command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from ..errors import OptionalDependencyError
from ..evaluation.synaptic import PICOJOULES_PER_AC, PICOJOULES_PER_MAC
from ..policies import ALIASES

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

_TRUST = "import and call what the card of --checkpoint names, though no installed package registers it"


def parser() -> ArgumentParser:
    """The parser of the command line.

    Raises:
        OptionalDependencyError: jsonargparse is not installed.
    """
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise OptionalDependencyError("jsonargparse", "cli", "the seenn command") from error

    whole = ArgumentParser(prog="seenn", description="Early exit for spiking neural networks.")
    commands = whole.add_subcommands(required=True)

    demo = ArgumentParser(description="Two small networks on handwritten digits, with and without early exit.")
    demo.add_argument("--seed", type=int, default=0, help="draws the splits, the first weights, the order of training")
    demo.add_argument("--out", default="seenn-demo", help="folder for report.json and figure.png")
    demo.add_argument("--policy", default="confidence", help=", ".join(sorted(ALIASES)))
    demo.add_argument("--quick", action="store_true", help="train for a few epochs only, to see that all works")
    commands.add_subcommand("demo", demo, help="train, calibrate and measure two small networks")

    for name, help_text in (
        ("evaluate", "accuracy, timesteps and throughput of your model with early exit"),
        ("calibrate", "choose the policy's threshold and temperature on held-out data"),
        ("explain", "how your model is stepped, or why it is refused"),
    ):
        command = ArgumentParser(description=help_text)
        _add_model_options(command)
        if name == "evaluate":
            command.add_argument("--energy", action="store_true", help="count synaptic operations and energy, too")
            command.add_argument("--picojoules_per_ac", type=float, default=PICOJOULES_PER_AC, help="45 nm by default")
            command.add_argument("--picojoules_per_mac", type=float, default=PICOJOULES_PER_MAC, help="likewise")
            command.add_argument("--report", help="folder for a page with tables and figures")
        if name == "calibrate":
            command.add_argument("--max_accuracy_drop", type=float, help="0.005 allows half a point below full T")
            command.add_argument("--average_timesteps", type=float, help="the most mean timesteps allowed")
        commands.add_subcommand(name, command, help=help_text)

    study = ArgumentParser(description="Every policy on a trained network, calibrated and measured.")
    study.add_argument("--checkpoint", required=True, help="trained network: folder with its card, or packaged name")
    study.add_argument("--trust_code", action="store_true", help=_TRUST)
    study.add_argument("--data", required=True, help="folder of its data")
    study.add_argument("--out", required=True, help="JSON file for what is measured")
    study.add_argument("--seed", type=int, default=0, help="of all that is drawn")
    study.add_argument("--quick", action="store_true", help="on a few samples only, to see that all works")
    study.add_argument("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    commands.add_subcommand("study", study, help="measure every policy on a trained network")

    results = ArgumentParser(description="A page of tables from what studies have measured.")
    results.add_argument("files", nargs="+", help="JSON files that seenn study has written")
    results.add_argument("--out", required=True, help="Markdown file for the page")
    commands.add_subcommand("results", results, help="write a page from the files of studies")
    return whole


def _add_model_options(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--config", action="config", help="file with any of these options, as calibrate --json gives in 'settings'")
    add("--model", help="package.module:factory; called without arguments, returns an nn.Module")
    add("--weights", help="of --model, a state_dict: .safetensors, or saved by torch.save")
    add("--checkpoint", help="instead of --model: a trained network, by the folder with its card or by a packaged name")
    add("--trust_code", action="store_true", help=_TRUST)
    data = "package.module:factory of a loader of (x, labels), or .npz with x and y; for --checkpoint the data's folder"
    add("--data", required=True, help=data)
    split = "of the data of --checkpoint (default: validation to calibrate, else test)"
    add("--split", type=Literal["test", "validation"], help=split)
    add("--batch_size", type=int, default=64, help="for .npz data and --checkpoint")
    add("--timesteps", type=int, help="T, the most timesteps that a sample may take")
    add("--policy", default="confidence", help=", ".join(sorted(ALIASES)))
    add("--threshold", type=float, help="a sample stops above this score")
    add("--temperature", type=float, help="the logits are divided by it before they are scored")
    add("--patience", type=int, help="for --policy patience: timesteps with the same answer")
    add("--fixed_timesteps", type=int, help="for --policy fixed: timesteps of every sample")
    add("--policy_folder", help="for --policy rl: what RLPolicy.save has written")
    # Open by default: a checkpoint's card may say it.
    add("--input", help="static (default): [N, ...] at every timestep; sequence: one frame per timestep")
    add("--time_dim", type=int, help="time axis of a sequence: 0 (default) for [T, N, ...], 1 for [N, T, ...]")
    add("--readout", help="auto (default), sum, mean, last, membrane, max or first_spike")
    add("--adapter", default="auto", help="auto, or the name of an installed adapter")
    add("--chunk", type=int | Literal["auto"] | None, help="timesteps computed at a time; auto measures")
    add("--slots", type=int, help="active samples at most (default: 64 on a CPU, 256 elsewhere)")
    add("--check_every", type=int, default=1, help="timesteps between two synchronisations with the host")
    add("--compile", action="store_true", help="compile single timesteps; takes a minute or more at first use")
    add("--cuda_graphs", action="store_true", help="replay single timesteps as CUDA graphs")
    add("--fold", action="store_true", help="fold batch normalisation into the layer before it, in a copy")
    add("--channels_last", action="store_true", help="keep images channels-last, in a copy")
    add("--autocast", type=Literal["bfloat16", "float16"], help="run a copy under autocast with this dtype")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--json", action="store_true", help="one JSON object on stdout")
