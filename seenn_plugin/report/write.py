"""Measure a wrapped network on a data set, and write what was found: a page, its figures, and the numbers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._arguments import check, loader_mistake, price_mistakes, wrapped_mistake
from .._files import Content, write_files
from ..calibration.thresholds import OperatingPoint
from ..errors import CalibrationError, InputError, ModelRefused
from ..evaluation import provenance
from ..evaluation.energy import EnergyReport, measure_energy
from ..evaluation.metrics import AccuracyCurve, Evaluation, accuracy_curve, evaluate
from ..evaluation.synaptic import PICOJOULES_PER_AC, PICOJOULES_PER_MAC
from ..policies import FixedPolicy, Policy, RLPolicy, ThresholdPolicy
from .figures import draw, require_matplotlib
from .page import render
from .samples import Sample, WatchedLoader

if TYPE_CHECKING:
    from ..wrapper import EarlyExitWrapper


def write_report(
    snn: EarlyExitWrapper,
    loader: Iterable[Any],
    folder: str | Path,
    *,
    title: str = "Early exit",
    class_names: Sequence[str] | None = None,
    picojoules_per_ac: float = PICOJOULES_PER_AC,
    picojoules_per_mac: float = PICOJOULES_PER_MAC,
    progress: bool = False,
) -> Path:
    """Write ``index.html``, a self-contained page, with ``figures/*.png`` and ``report.json``.

    The page has the accuracy with early exit and at full T, the curve of accuracy against mean timesteps, the exits,
    mean timesteps and accuracy of every class, the samples that were easiest and hardest, operations and energy, and
    where the numbers are from. ``report.json`` has all of it but the pictures; what is no finite number is null there.

    The data are read twice (:func:`~seenn_plugin.evaluate`, :func:`~seenn_plugin.measure_energy`), and once more for
    the curve of a policy with several settings (:func:`~seenn_plugin.accuracy_curve`). The answers to single samples
    are recorded during the first reading, which infers them once more. Three numbers of each sample, the traces for the
    curve, and the few pictures shown are kept in memory.

    Args:
        snn: a wrapped network.
        loader: yields ``(x, labels)`` with labels long ``[N]``, the same samples whenever it is read.
        folder: where to write; it is made if it is missing, and an earlier report there is replaced.
        title: of the page.
        class_names: one for each class of the model, by index; by default the indices.
        picojoules_per_ac: price of an accumulate.
        picojoules_per_mac: price of a multiply-accumulate, its addition included.
        progress: show progress bars.

    Returns:
        The path of ``index.html``.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
        InputError: the folder cannot be written to, the loader can be read only once, the number of names is not that
            of the classes, or a price is negative or not finite.
        CalibrationError: no sample, labels that are no classes of the model, or batches of different length in time.
        ModelRefused: the network cannot be stepped. (One of which only the energy cannot be measured is reported
            without, and the page says why.)
    """
    prices = {"picojoules_per_ac": picojoules_per_ac, "picojoules_per_mac": picojoules_per_mac}
    names = class_names is None or (isinstance(class_names, Sequence) and not isinstance(class_names, str))
    check(
        InputError,
        *price_mistakes(prices),
        wrapped_mistake(snn),
        None if names else f"class_names must be a list of names, not {class_names!r}.",
        loader_mistake("the loader", loader),
    )
    if isinstance(loader, Iterator):
        raise InputError(
            f"the data are read more than once, which a {type(loader).__name__} does not allow: hand over a DataLoader "
            "or a list."
        )
    folder = Path(folder)
    check_folder(folder)
    samples = WatchedLoader(snn, loader, class_names)
    evaluation = evaluate(snn, samples, progress)
    energy, refusal = None, None
    try:
        energy = measure_energy(
            snn,
            loader,
            picojoules_per_ac=picojoules_per_ac,
            picojoules_per_mac=picojoules_per_mac,
            progress=progress,
        )
    except ModelRefused as error:
        refusal = str(error)
    curve = _curve(snn, loader, evaluation, progress)
    facts = _plain(
        {
            "title": title,
            "network": _network(snn, len(evaluation.histogram)),
            "policy": _policy(evaluation.policy),
            "summary": _summary(snn, evaluation, energy),
            "evaluation": evaluation.to_dict(),
            "curve": _curve_facts(curve),
            "classes": [
                {"name": name, **figures._asdict()}
                for name, figures in zip(samples.class_names, samples.classes(), strict=True)
            ],
            "easiest": [_sample(sample, samples) for sample in samples.easiest],
            "hardest": [_sample(sample, samples) for sample in samples.hardest],
            "pictures": _pictures(snn, samples),
            "energy": energy and _energy(energy),
            "energy_not_measured": refusal,
            "provenance": _provenance(snn),
        }
    )
    figures = draw(curve, evaluation)
    shown = {position: samples.scale.png(picture) for position, picture in samples.shown.items()}
    page = render(facts, figures, shown)
    files: dict[Path, Content] = {folder / "figures" / f"{name}.png": png for name, png in figures.items()}
    files[folder / "report.json"] = json.dumps(facts, indent=2, allow_nan=False, ensure_ascii=False) + "\n"
    files[folder / "index.html"] = page
    write_files(files)
    return folder / "index.html"


def check_folder(folder: Path) -> None:
    """Make the folder of a report; before the work, so that nothing is lost.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
        InputError: the folder cannot be written to.
    """
    require_matplotlib()
    try:
        (folder / "figures").mkdir(parents=True, exist_ok=True)
        for place in (folder, folder / "figures"):
            if not os.access(place, os.W_OK):
                raise PermissionError(0, "no permission to write")
    except OSError as error:
        raise InputError(f"cannot write a report to {folder}: {error.strerror}.") from error


def _curve(snn: EarlyExitWrapper, loader: Iterable[Any], evaluation: Evaluation, progress: bool) -> AccuracyCurve:
    if _has_dial(snn, len(evaluation.histogram)):
        return accuracy_curve(snn, loader, progress=progress)
    here = OperatingPoint(evaluation.policy, evaluation.accuracy, evaluation.mean_timesteps)
    return AccuracyCurve((here,), tuple(evaluation.accuracy_per_timestep))


def _has_dial(snn: EarlyExitWrapper, timesteps: int) -> bool:
    if isinstance(snn.policy, RLPolicy):
        return snn.policy_fit is not None
    if isinstance(snn.policy, FixedPolicy):
        return False  # its other settings are the static network, which is in the figure anyway
    if isinstance(snn.policy, ThresholdPolicy):
        return True
    try:
        return snn.policy.candidate_settings(timesteps) is not None
    except CalibrationError:
        return False


# -- facts: everything on the page, in plain values -------------------------------------------------------------------


def _network(snn: EarlyExitWrapper, timesteps: int) -> dict[str, Any]:
    return {
        "class": type(snn.model).__name__,
        "parameters": sum(parameter.numel() for parameter in snn.model.parameters()),
        "adapter": snn.adapter.name,
        "input": snn.input,
        "timesteps": timesteps,
    }


def _policy(policy: Policy) -> dict[str, Any]:
    return {"name": type(policy).__name__, "text": str(policy), "settings": policy.settings()}


def _summary(snn: EarlyExitWrapper, evaluation: Evaluation, energy: EnergyReport | None) -> dict[str, Any]:
    full_row_steps = evaluation.samples * len(evaluation.histogram)
    return {
        "samples": evaluation.samples,
        "accuracy": evaluation.accuracy,
        "full_accuracy": evaluation.full_accuracy,
        "mean_timesteps": evaluation.mean_timesteps,
        "timesteps": len(evaluation.histogram),
        "row_steps": evaluation.row_steps,
        "full_row_steps": full_row_steps,
        "row_steps_saved": 1 - evaluation.row_steps / full_row_steps,
        "energy_saved": energy and energy.saving,
        "agreement": evaluation.agreement,
        "run_whole": not snn.adapter.skips_finished_rows,
        "planning_share_of_operations": evaluation.policy_cost and evaluation.policy_cost.share_of_operations,
    }


def _curve_facts(curve: AccuracyCurve) -> dict[str, Any]:
    def facts(points: Iterable[OperatingPoint]) -> list[dict[str, Any]]:
        return [
            {"settings": p.policy.settings(), "accuracy": p.accuracy, "mean_timesteps": p.mean_timesteps}
            for p in points
        ]

    return {"points": facts(curve.points), "pareto": facts(curve.pareto), "static": list(curve.static)}


def _sample(sample: Sample, samples: WatchedLoader) -> dict[str, Any]:
    names = samples.class_names
    return {
        **sample._asdict(),
        "label_name": names[sample.label],
        "answer_name": names[sample.answer],
        "right": sample.label == sample.answer,
    }


def _pictures(snn: EarlyExitWrapper, samples: WatchedLoader) -> dict[str, Any] | None:
    low, high = samples.scale.low, samples.scale.high
    if low is None or high is None:
        return None
    return {"of": "events" if snn.input == "sequence" else "images", "low": low.tolist(), "high": high.tolist()}


def _energy(energy: EnergyReport) -> dict[str, Any]:
    facts = energy.to_dict()
    mean = facts["mean"]
    mean["policy_acs"], mean["policy_macs"] = float(energy.policy_acs.mean()), float(energy.policy_macs.mean())
    return facts | {
        "static_acs": energy.acs_per_timestep.cumsum(0).mean(1).tolist(),
        "static_macs": energy.macs_per_timestep.cumsum(0).mean(1).tolist(),
    }


def _provenance(snn: EarlyExitWrapper) -> dict[str, Any]:
    weight = next(snn.model.parameters(), None)
    return {
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "machine": provenance.machine(None if weight is None else weight.device),
    }


def _plain(value: Any) -> Any:
    """What JSON can say: text, whole numbers, finite numbers, truth, and ``None`` for other numbers."""
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float):
        return value if isfinite(value) else None
    return value if isinstance(value, int | bool | None) else str(value)
