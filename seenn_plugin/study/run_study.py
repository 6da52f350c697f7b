"""One trained network: every policy chosen on validation data, and measured once on test data."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .._arguments import MOST_SEED, check, flag_mistake, integer_mistake, price_mistakes
from .._files import locked
from ..checkpoints.pretrained import Pretrained
from ..errors import InputError
from ..evaluation.provenance import commit, machine, versions
from ..evaluation.synaptic import PICOJOULES_PER_AC, PICOJOULES_PER_MAC
from .budget import QUICK, Budget
from .measurement import Meter
from .policy_selection import MAX_ACCURACY_DROP, POLICIES, TARGETS, Choice, Chooser, settings_of
from .run_file import RunFile
from .study_data import StudyData, size


def study(
    checkpoint: Path,
    root: Path,
    out: Path,
    *,
    seed: int = 0,
    quick: bool = False,
    device: str = "cpu",
    trust_code: bool = False,
    progress: bool = True,
    picojoules_per_ac: float = PICOJOULES_PER_AC,
    picojoules_per_mac: float = PICOJOULES_PER_MAC,
) -> dict[str, Any]:
    """Choose every policy for one trained network on its validation data, and measure it on its test data.

    Confidence, entropy, margin and patience are calibrated, and an rl policy is fitted, for two targets: *accuracy*
    (the fewest mean timesteps at no more than 0.1 point below full T) and *timesteps* (the highest accuracy at no more
    mean timesteps than confidence takes for the first). All choices are made before the test data is read.

    Accuracy and exits are those of the policy on traces of all test samples, recorded once. A part of the samples is
    really run with early exit, to see that it agrees; operations are counted on a part, too. The run file says how
    many.

    Args:
        checkpoint: folder that :meth:`seenn_plugin.pretrained.Pretrained.save` has written.
        root: folder of the data.
        out: the run file, JSON, written after every row. If it is there, of the same network and settings, its rows are
            kept, and only what is missing is measured.
        seed: draws parts of the data, and the first weights of rl policies.
        quick: few samples and epochs, to see that all works.
        device: ``"cpu"``, ``"cuda"``, ...
        trust_code: as for :meth:`seenn_plugin.pretrained.Pretrained.load`.
        progress: whether to show progress bars.
        picojoules_per_ac: price of an accumulate.
        picojoules_per_mac: price of a multiply-accumulate.

    Returns:
        The content of the run file.

    Raises:
        InputError: an argument is invalid, there is no trained network or no folder of data, or ``out`` is damaged, of
            another study, in use by another process, or cannot be written.
    """
    check(
        InputError,
        integer_mistake("seed", seed, 0, MOST_SEED),
        flag_mistake("quick", quick),
        *price_mistakes({"picojoules_per_ac": picojoules_per_ac, "picojoules_per_mac": picojoules_per_mac}),
        None if Path(root).is_dir() else f"there is no folder {root} of data.",
    )
    with locked(out):
        return _study(
            Path(checkpoint),
            Path(root),
            Path(out),
            seed,
            quick,
            device,
            trust_code,
            progress,
            (picojoules_per_ac, picojoules_per_mac),
        )


def _study(
    checkpoint: Path,
    root: Path,
    out: Path,
    seed: int,
    quick: bool,
    device: str,
    trust_code: bool,
    progress: bool,
    prices: tuple[float, float],
) -> dict[str, Any]:
    net = Pretrained.load(checkpoint, device, trust_code)
    budget = QUICK if quick else Budget()
    study_data = StudyData(net, root, budget, seed, progress)
    file = RunFile(
        out,
        {
            "card": asdict(net.card),
            "weights": study_data.weights(),
            "settings": {
                "seed": seed,
                "quick": quick,
                "device": device,
                "picojoules_per_ac": prices[0],
                "picojoules_per_mac": prices[1],
                "max_accuracy_drop": MAX_ACCURACY_DROP,
                **asdict(budget),
            },
        },
    )
    missing = [(name, target) for target in TARGETS for name in POLICIES if file.row(name, target) is None]
    if not missing and file.content["static"]:
        return file.content
    file.content["parameters"] = sum(parameter.numel() for parameter in net.model.parameters())
    file.content["samples"] |= {"validation": size(study_data.validation_data)}
    file.write()

    fits = file.path.with_name(f"{file.path.name}.fits")
    chooser = Chooser(study_data, fits)
    choices = [
        chooser.choose(name, target) for name, target in tqdm(missing, desc="choose", disable=not progress, leave=False)
    ]
    meter = Meter(study_data, prices)  # from here on the test data is read
    if not file.content["static"]:
        file.content["static"] = {**meter.static(), "provenance": _provenance(device)}
        file.content["samples"]["test"] = len(study_data.test)
        file.write()
    for choice in tqdm(choices, desc="measure", disable=not progress, leave=False):
        file.add(_row(choice, meter, device))
    fits.unlink(missing_ok=True)
    return file.content


def _row(choice: Choice, meter: Meter, device: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "policy": choice.name,
        "target": choice.target,
        "asked": choice.asked,
        "notes": choice.notes,
        "provenance": _provenance(device),
    }
    if choice.policy is None:
        return row
    return {
        **row,
        "settings": settings_of(choice.policy),
        "validation": choice.validation,
        **meter.measure(choice.policy),
    }


def _provenance(device: str) -> dict[str, Any]:
    return {"machine": machine(torch.device(device)), "versions": versions(), "commit": commit()}
