"""The output of the demo: a table, a figure, and a machine-readable report."""

from __future__ import annotations

import json
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .._files import write_files
from ..evaluation.plot import accuracy_curve, exit_histogram, operating_points
from ..evaluation.provenance import machine, versions
from .data import Digits
from .experiment import BATCH_SIZES, MAX_ACCURACY_DROP, Outcome

_DPI = 150


def table(outcomes: list[Outcome], digits: Digits) -> str:
    """The table that people read, at most 100 columns wide."""
    groups = "".join(f" | {f'batch {size}':^25}" for size in BATCH_SIZES)
    columns = "".join(f" | {'ms per sample':>16} {'speed-up':>8}" for _ in BATCH_SIZES)
    lines = [f"{'':<31}{groups} | {'ideal':>8}", f"{'':<15}{'accuracy':>8}{'mean T':>8}{columns} | {'speed-up':>8}"]
    rule = "-" * len(lines[1])
    for outcome in outcomes:
        lines += [rule, outcome.network]
        for row in outcome.rows:
            cells = "".join(
                f" | {1e3 * timing.median:>7.3f} ± {1e3 * timing.spread:>6.3f} {timing.speedup:>7.2f}x"
                for timing in row.timings.values()
            )
            facts = f"  {row.way:<13}{100 * row.accuracy:>6.2f} %{row.mean_timesteps:>8.2f}"
            lines.append(f"{facts}{cells} | {row.ideal_speedup:>7.2f}x")
    lines += [rule, *_notes(outcomes, digits)]
    return "\n".join(lines)


def _notes(outcomes: list[Outcome], digits: Digits) -> list[str]:
    sizes = digits.sizes
    threads = torch.get_num_threads()
    full = outcomes[0].rows[0].way
    allowed = MAX_ACCURACY_DROP * sizes["validation"]
    return [
        f"Accuracy on {sizes['test']} test images that nothing was chosen on: one is {100 / sizes['test']:.2f} points.",
        f"Policies chosen on {sizes['validation']} other images to lose at most "
        f"{100 * MAX_ACCURACY_DROP:.2f} points there,",
        f"which is {allowed:.1f} images, so that by chance the test images can lose more. Lost on validation:",
        *(f"  {_loss_on_validation(outcome):.2f} points, {outcome.network}" for outcome in outcomes),
        *(line for outcome in outcomes for line in _cost_of_policy(outcome)),
        f"ms: median of the rounds ± half the interquartile range, interleaved, {threads} thread(s).",
        f"speed-up: over {full}, the framework's own run; median of the rounds' ratios. ideal: T / mean T.",
        "What is missing to the ideal is overhead per timestep: it does not shrink as rows leave the batch,",
        "and weighs most in networks this small.",
    ]


def _cost_of_policy(outcome: Outcome) -> list[str]:
    cost = outcome.evaluation.policy_cost
    if cost is None:
        return []
    operations, seconds = 100 * cost.share_of_operations, 100 * cost.share_of_seconds
    return [
        f"Planning takes {operations:.2f} % of the operations at full T,",
        f"  {seconds:.0f} % of the time of early exit at batch {max(BATCH_SIZES)}, {outcome.network}",
    ]


def _loss_on_validation(outcome: Outcome) -> float:
    return 100 * (outcome.calibration.full_accuracy - outcome.calibration.chosen.accuracy)


def save_figure(outcomes: list[Outcome], path: Path) -> None:
    """Left: accuracy against mean timesteps on the test split. Right: when the samples exit."""
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    colors = [f"C{i}" for i in range(len(outcomes))]
    for outcome, color in zip(outcomes, colors, strict=True):
        accuracy_curve(outcome.curve, left, label=outcome.network, color=color)
        operating_points([outcome.evaluation], left, label=f"{outcome.network}: calibrated", color=color)
    left.set_title("Accuracy against mean timesteps (test split)")
    left.grid(alpha=0.3)
    left.legend(loc="lower right")
    exit_histogram({outcome.network: outcome.evaluation.histogram for outcome in outcomes}, right, colors)
    right.set_title("When the samples exit (number of samples on the bars)")
    right.grid(alpha=0.3, axis="y")
    right.set_axisbelow(True)
    right.legend()
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    write_files({path: file.getvalue()})


def save_report(
    outcomes: list[Outcome], digits: Digits, seed: int, quick: bool, policy: str, path: Path
) -> dict[str, Any]:
    """Write, and return, everything that was measured."""
    report = {
        "seed": seed,
        "quick": quick,
        "policy": policy,
        "machine": machine(),
        "versions": versions(),
        "split": digits.sizes,
        "networks": [outcome.to_dict() for outcome in outcomes],
    }
    write_files({path: json.dumps(report, indent=2) + "\n"})
    return report
