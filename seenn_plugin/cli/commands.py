"""The ``seenn`` command.

``demo``; ``evaluate``, ``calibrate`` and ``explain`` on a model of one's own or a trained network; ``study`` and
``results`` on trained networks.

Exit codes: 0 done, 1 the library refuses (one line on stderr), 2 wrong usage or a missing extra.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict, dataclass, fields, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._arguments import check, price_mistakes
from .._naming import unknown_name
from ..calibration.thresholds import check_request
from ..errors import InputError, OptionalDependencyError, PolicyError, SeennError
from ..evaluation.energy import EnergyReport, measure_energy
from ..evaluation.metrics import evaluate
from ..policies import ALIASES, FixedPolicy, Policy, RLPolicy, make_policy
from ..wrapper import EarlyExitWrapper
from .arguments import parser
from .loading import (
    UsageError,
    check_batch_size,
    check_counts,
    check_data,
    check_device,
    checkpoint_folder,
    class_names,
    existing_folder,
    load_checkpoint,
    load_data,
    load_model,
)

# Options that set a policy, and the policy's own name for each.
_POLICY_OPTIONS = {
    "threshold": "threshold",
    "temperature": "temperature",
    "patience": "patience",
    "fixed_timesteps": "timesteps",
    "policy_folder": "folder",
}
_WRAPPER_OPTIONS = {"timesteps": None, "input": "static", "time_dim": 0, "readout": "auto"}
"""Options that say how a network takes time and answers, which the card of a trained network says, too."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    Args:
        arguments: as after ``seenn`` on the command line; by default those of this process.
    """
    try:
        options = parser().parse_args(arguments)
        command, chosen = options.subcommand, options[options.subcommand]
        if command == "demo":
            return _demo(chosen)
        # What a model or a loader prints must not mix with the answer.
        with redirect_stdout(sys.stderr), _importable_here():
            code, page, facts = _COMMANDS[command](chosen)
    except (UsageError, OptionalDependencyError) as error:
        _complain(error)
        return 2
    except SeennError as error:
        _complain(error)
        return 1
    _say(json.dumps(facts) if chosen.get("json") else page)
    return code


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _complain(error: Exception) -> None:
    sys.stderr.write(f"seenn: {' '.join(str(error).split())}\n")


# -- the commands: each returns the exit code, a page for people and facts for machines --------------------------------

Answer = tuple[int, str, dict[str, Any]]


def _demo(options: Any) -> int:
    from ..demo import run

    run(options.out, options.seed, options.quick, say=_say, policy=options.policy)
    return 0


def _evaluate(options: Any) -> Answer:
    prices = {name: options[name] for name in ("picojoules_per_ac", "picojoules_per_mac")}
    check(InputError, *price_mistakes(prices))
    if options.report is not None:
        from ..report import check_folder

        check_folder(Path(options.report))
    source = _source(options, split="test")
    snn = source.snn
    result = evaluate(snn, source.loader(), progress=True)
    page = [
        f"policy          {result.policy}",
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
    facts = {**result.to_dict(), "settings": _as_options(result.policy, options)}
    if options.energy:
        energy = measure_energy(
            snn,
            source.loader(),
            **prices,
            progress=True,
        )
        page += _energy_lines(energy)
        facts["energy"] = energy.to_dict()
    if options.report:
        written = _report(source, options)
        page.append(f"report          {written}")
        facts["report"] = str(written)
    return 0, "\n".join(page), facts


def _report(source: _Source, options: Any) -> Path:
    from ..report import write_report

    loader = source.loader()
    return write_report(
        source.snn,
        loader,
        Path(options.report),
        title=source.title,
        class_names=class_names(loader),
        picojoules_per_ac=options.picojoules_per_ac,
        picojoules_per_mac=options.picojoules_per_mac,
        progress=True,
    )


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
    policy, target = _policy(options), (options.max_accuracy_drop, options.average_timesteps)
    check_request(policy, *target, options.timesteps)  # again with what the network says, before data are read
    source = _source(options, split="validation")
    snn = source.snn
    snn.calibrate(
        source.loader(),
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
    source = _source(options, split="test")
    first = next(iter(source.loader()), None)
    if first is None:
        raise InputError("the loader yielded no sample.")
    x = first[0] if isinstance(first, tuple | list) else first
    page = source.snn.explain(x.to(options.device) if isinstance(x, Tensor) else x)
    return int(page.refused is not None), str(page), asdict(page)


def _study(options: Any) -> Answer:
    from ..study import study

    checkpoint, root = checkpoint_folder(options["checkpoint"]), existing_folder(options["data"], "--data")
    out, how = Path(options.out), {"seed": options.seed, "quick": options.quick, "device": options.device}
    how["trust_code"] = options.trust_code
    study(checkpoint, root, out, **how, progress=True)
    return 0, f"{out}: what was measured; seenn results {out} --out PAGE.md makes a page of it", {"out": str(out)}


def _results(options: Any) -> Answer:
    from ..study import write_results

    files = [Path(name) for name in options.files]
    for file in files:
        if not file.is_file():
            raise UsageError(f"there is no file {file}.")
    figure = write_results(files, Path(options.out))
    without = 'without its figure, for which matplotlib is needed: pip install "seenn-plugin[plot]"'
    text = f"{options.out}: the page, " + (f"{figure}: its figure" if figure else without)
    return 0, text, {"out": options.out, "figure": figure and str(figure)}


_COMMANDS: dict[str, Callable[[Any], Answer]] = {
    "evaluate": _evaluate,
    "calibrate": _calibrate,
    "explain": _explain,
    "study": _study,
    "results": _results,
}


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


@dataclass(frozen=True)
class _Source:
    """The network that a command names, wrapped, and its data.

    Attributes:
        title: what it is called.
        loader: makes a new loader at every call.
    """

    title: str
    snn: EarlyExitWrapper
    loader: Callable[[], Iterable[Any]]


def _source(options: Any, split: str) -> _Source:
    """What ``--model``, or ``--checkpoint`` with its card, says; what is said on the command line goes before the card.

    Args:
        split: of a checkpoint's data, unless one is given.
    """
    policy = _policy(options)  # first: options are cheaper to check than a network is to make
    check_batch_size(options.batch_size)
    check_device(options.device)
    check_counts(options)
    given = {name: options[name] for name in _WRAPPER_OPTIONS if options[name] is not None}
    if (options.model is None) == (options.checkpoint is None):
        raise UsageError("give one network: either --model package.module:factory or --checkpoint FOLDER_OR_NAME.")
    if options.checkpoint is None:
        if options.split is not None:
            raise UsageError("--split is for the data of a --checkpoint; for --model, give other --data.")
        check_data(options.data)
        model = load_model(options.model, options.weights, options.device)
        wrapper = {**_WRAPPER_OPTIONS, **given}
        rows_dim = 1 - wrapper["time_dim"] if wrapper["input"] == "sequence" else 0
        snn = _wrapped(model, policy, wrapper, options)
        return _Source(options.model, snn, lambda: load_data(options.data, options.batch_size, rows_dim))
    if options.weights is not None:
        raise UsageError("--weights is for --model; a --checkpoint brings its own.")
    root = existing_folder(options.data, "--data")
    net = load_checkpoint(checkpoint_folder(options.checkpoint), options.device, options.trust_code)
    snn = _wrapped(net.model, policy, {**net.card.wrapper, **given}, options)
    return _Source(net.card.title, snn, lambda: net.batches(root, options.split or split, options.batch_size))


def _wrapped(model: nn.Module, policy: Policy, wrapper: dict[str, Any], options: Any) -> EarlyExitWrapper:
    return EarlyExitWrapper(
        model,
        policy,
        **wrapper,
        adapter=options.adapter,
        chunk=options.chunk,
        slots=options.slots,
        check_every=options.check_every,
        compile=options.compile,
        cuda_graphs=options.cuda_graphs,
        fold=options.fold,
        channels_last=options.channels_last,
        autocast=None if options.autocast is None else getattr(torch, options.autocast),
    )


@contextmanager
def _importable_here() -> Iterator[None]:
    """Make the modules of the current directory importable, as ``python -m`` does."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
