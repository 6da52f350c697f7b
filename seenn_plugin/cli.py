"""The ``seenn`` command: ``demo``, and ``evaluate``, ``calibrate`` and ``explain`` on a model of one's own.

Exit codes: 0 done, 1 the library refuses (one line on stderr), 2 wrong usage or a missing extra.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from .energy import EnergyReport, measure_energy
from .errors import InputError, OptionalDependencyError, PolicyError, SeennError
from .loading import UsageError, load_data, load_model
from .metrics import evaluate
from .naming import unknown_name
from .policies import ALIASES, FixedPolicy, Policy, RLPolicy, make_policy
from .synaptic import PICOJOULES_PER_AC, PICOJOULES_PER_MAC
from .wrapper import EarlyExitWrapper

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser

# Options that set a policy, and the policy's own name for each.
_POLICY_OPTIONS = {
    "threshold": "threshold",
    "temperature": "temperature",
    "patience": "patience",
    "fixed_timesteps": "timesteps",
    "policy_folder": "folder",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: as after ``seenn`` on the command line; by default those of this process.
    """
    try:
        options = _parser().parse_args(arguments)
        command, chosen = options.subcommand, options[options.subcommand]
        if command == "demo":
            return _demo(chosen)
        # What a model or a loader prints must not mix with the answer.
        with redirect_stdout(sys.stderr), _importable_here():
            code, page, facts = {"evaluate": _evaluate, "calibrate": _calibrate, "explain": _explain}[command](chosen)
    except (UsageError, OptionalDependencyError) as error:
        _complain(error)
        return 2
    except SeennError as error:
        _complain(error)
        return 1
    _say(json.dumps(facts) if chosen.json else page)
    return code


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(error: Exception) -> None:
    sys.stderr.write(f"seenn: {' '.join(str(error).split())}\n")


# -- the command line -------------------------------------------------------------------------------------------------


def _parser() -> ArgumentParser:
    try:
        from jsonargparse import ArgumentParser
    except ImportError as error:
        raise OptionalDependencyError("jsonargparse", "cli", "the seenn command") from error

    parser = ArgumentParser(prog="seenn", description="Early exit for spiking neural networks.")
    commands = parser.add_subcommands(required=True)

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
        if name == "calibrate":
            command.add_argument("--max_accuracy_drop", type=float, help="0.005 allows half a point below full T")
            command.add_argument("--average_timesteps", type=float, help="the most mean timesteps allowed")
        commands.add_subcommand(name, command, help=help_text)
    return parser


def _add_model_options(command: ArgumentParser) -> None:
    add = command.add_argument
    add("--config", action="config", help="file with any of these options, as calibrate --json gives in 'settings'")
    add("--model", required=True, help="package.module:factory; called without arguments, returns an nn.Module")
    add("--weights", help="a state_dict: .safetensors, or saved by torch.save")
    add("--data", required=True, help="package.module:factory of a loader of (x, labels), or .npz with x and y")
    add("--batch_size", type=int, default=64, help="for .npz data")
    add("--timesteps", type=int, help="T, the most timesteps that a sample may take")
    add("--policy", default="confidence", help=", ".join(sorted(ALIASES)))
    add("--threshold", type=float, help="a sample stops above this score")
    add("--temperature", type=float, help="the logits are divided by it before they are scored")
    add("--patience", type=int, help="for --policy patience: timesteps with the same answer")
    add("--fixed_timesteps", type=int, help="for --policy fixed: timesteps of every sample")
    add("--policy_folder", help="for --policy rl: what RLPolicy.save has written")
    add("--input", default="static", help="static: [N, ...] at every timestep; sequence: one frame per timestep")
    add("--time_dim", type=int, default=0, help="time axis of a sequence: 0 for [T, N, ...], 1 for [N, T, ...]")
    add("--readout", default="auto", help="auto, sum, mean, last, membrane, max or first_spike")
    add("--adapter", default="auto", help="auto, or the name of an installed adapter")
    add("--chunk", type=int | Literal["auto"], default=1, help="timesteps computed at a time; auto measures")
    add("--slots", type=int, help="samples in flight at most (default: 64 on a CPU, 256 elsewhere)")
    add("--check_every", type=int, default=1, help="timesteps between two looks at who has stopped")
    add("--compile", action="store_true", help="compile single timesteps; takes a minute or more at first use")
    add("--cuda_graphs", action="store_true", help="replay single timesteps as CUDA graphs")
    add("--fold", action="store_true", help="fold batch normalisation into the layer before it, in a copy")
    add("--channels_last", action="store_true", help="keep images channels-last, in a copy")
    add("--autocast", type=Literal["bfloat16", "float16"], help="run a copy under autocast with this dtype")
    add("--device", default="cpu", help="cpu, cuda, cuda:1, ...")
    add("--json", action="store_true", help="one JSON object on stdout")


# -- the commands: each returns the exit code, a page for people and facts for machines --------------------------------

Answer = tuple[int, str, dict[str, Any]]


def _demo(options: Any) -> int:
    from .demo import run

    run(options.out, options.seed, options.quick, say=_say, policy=options.policy)
    return 0


def _evaluate(options: Any) -> Answer:
    snn = _wrapped(options)
    result = evaluate(snn, _data(options), progress=True)
    page = [
        f"policy          {snn.policy}",
        f"samples         {result.samples}",
        f"accuracy        {100 * result.accuracy:.2f} %  (full T: {100 * result.full_accuracy:.2f} %)",
        f"mean timesteps  {result.mean_timesteps:.3f} of {len(result.histogram)}",
        f"exits at t      {'  '.join(f'{t}: {count}' for t, count in enumerate(result.histogram, start=1))}",
        f"oracle          AET {result.average_exit_time:.3f}, empirical {result.empirical_average_exit_time:.3f}",
        f"row-steps       {result.row_steps}",
        f"throughput      {result.throughput:.1f} samples per second",
    ]
    if result.policy_cost is not None:
        cost = result.policy_cost
        page.append(
            f"planning        {100 * cost.share_of_operations:.2f} % of the operations at full T, "
            f"{100 * cost.share_of_seconds:.1f} % of the time"
        )
    facts = {**result.to_dict(), "settings": _as_options(snn.policy, options)}
    if options.energy:
        energy = measure_energy(
            snn,
            _data(options),
            picojoules_per_ac=options.picojoules_per_ac,
            picojoules_per_mac=options.picojoules_per_mac,
            progress=True,
        )
        page += _energy_lines(energy)
        facts["energy"] = energy.to_dict()
    return 0, "\n".join(page), facts


def _energy_lines(energy: EnergyReport) -> list[str]:
    mean = energy.to_dict()["mean"]
    lines = [
        f"operations      {mean['acs']:.0f} ACs and {mean['macs']:.0f} MACs per sample  "
        f"(full T: {mean['full_acs']:.0f} and {mean['full_macs']:.0f})",
        f"energy          {mean['picojoules'] / 1000:.3f} nJ per sample  (full T: {mean['full_picojoules'] / 1000:.3f} "
        f"nJ; {100 * energy.saving:.1f} % saved), at {energy.picojoules_per_ac:g} pJ per AC and "
        f"{energy.picojoules_per_mac:g} pJ per MAC",
    ]
    if bool(energy.policy_picojoules.any()):
        lines.append(f"of that, policy {mean['policy_picojoules'] / 1000:.3f} nJ per sample")
    if energy.uncounted:
        calls = ", ".join(f"{name} ({number} calls)" for name, number in energy.uncounted.items())
        lines.append(f"not counted     {calls}")
    return lines


def _calibrate(options: Any) -> Answer:
    snn = _wrapped(options)
    snn.calibrate(
        _data(options),
        max_accuracy_drop=options.max_accuracy_drop,
        average_timesteps=options.average_timesteps,
        progress=True,
    )
    assert snn.calibration is not None
    found = snn.calibration
    chosen, use = found.chosen, settings(found.policy)
    page = [
        f"target          {found.target}",
        f"samples         {found.samples}",
        f"accuracy        {100 * chosen.accuracy:.2f} %  (full T: {100 * found.full_accuracy:.2f} %)",
        f"mean timesteps  {chosen.mean_timesteps:.3f}",
        f"use             {' '.join(f'--{name} {value}' for name, value in use.items())}",
    ]
    facts = {
        "settings": use,
        "target": found.target,
        "samples": found.samples,
        "accuracy": chosen.accuracy,
        "mean_timesteps": chosen.mean_timesteps,
        "full_accuracy": found.full_accuracy,
        "curve": [
            {**settings(point.policy), "accuracy": point.accuracy, "mean_timesteps": point.mean_timesteps}
            for point in found.curve
        ],
    }
    return 0, "\n".join(page), facts


def _explain(options: Any) -> Answer:
    snn = _wrapped(options)
    first = next(iter(_data(options)), None)
    if first is None:
        raise InputError("the loader yielded no sample.")
    x = first[0] if isinstance(first, tuple | list) else first
    page = snn.explain(x.to(options.device) if isinstance(x, Tensor) else x)
    return int(page.refused is not None), str(page), asdict(page)


# -- from the command line to objects ----------------------------------------------------------------------------------


def settings(policy: Policy) -> dict[str, Any]:
    """A built-in policy as command-line options, without those left open."""
    name = next(alias for alias, kind in ALIASES.items() if kind is type(policy))
    options = {own: option for option, own in _POLICY_OPTIONS.items()}
    known = {options[own]: value for own, value in policy.settings().items() if own in options and value is not None}
    return {"policy": name} | known


def _policy(options: Any) -> Policy:
    kind = type(make_policy(options.policy))
    known = {"folder"} if kind is RLPolicy else {field.name for field in fields(kind)} if is_dataclass(kind) else set()
    given = {option: options[option] for option in _POLICY_OPTIONS if options[option] is not None}
    for option in given:
        if _POLICY_OPTIONS[option] not in known:
            valid = [f"--{name}" for name, own in _POLICY_OPTIONS.items() if own in known]
            raise PolicyError(f"policy {options.policy!r}: {unknown_name('option', f'--{option}', valid)}")
    for required, needed in ((FixedPolicy, "fixed_timesteps"), (RLPolicy, "policy_folder")):
        if kind is required and needed not in given:
            raise PolicyError(f"policy {options.policy!r} needs --{needed}.")
    if kind is RLPolicy:
        return RLPolicy.load(options.policy_folder)
    return kind(**{_POLICY_OPTIONS[option]: value for option, value in given.items()})


def _as_options(policy: Policy, options: Any) -> dict[str, Any]:
    """:func:`settings`, with the folder that a fitted policy came from."""
    folder = {"policy_folder": options.policy_folder} if options.policy_folder else {}
    return settings(policy) | folder


def _wrapped(options: Any) -> EarlyExitWrapper:
    policy = _policy(options)  # first: it is the cheapest to get wrong
    model = load_model(options.model, options.weights, options.device)
    return EarlyExitWrapper(
        model,
        policy,
        timesteps=options.timesteps,
        input=options.input,
        time_dim=options.time_dim,
        adapter=options.adapter,
        readout=options.readout,
        chunk=options.chunk,
        slots=options.slots,
        check_every=options.check_every,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        fold=options.fold,
        channels_last=options.channels_last,
        autocast=None if options.autocast is None else getattr(torch, options.autocast),
    )


def _data(options: Any) -> Iterable[Any]:
    rows_dim = options.time_dim ^ 1 if options.input == "sequence" else 0
    return load_data(options.data, options.batch_size, rows_dim)


@contextmanager
def _importable_here() -> Iterator[None]:
    """Make the modules of the current directory importable, as ``python -m`` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
