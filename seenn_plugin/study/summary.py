"""The summary of the page of results: one row for each network, with one policy, chosen on validation data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from statistics import mean

from .._markdown import cell, table
from .measurement import BATCH_SIZES
from .policy_selection import MAX_ACCURACY_DROP, POLICIES
from .runs import Group, Run
from .statistics import mean_and_deviation

_TARGET = "accuracy"
RULE = (
    f"For each network the table shows one policy: the one that needs the fewest timesteps on **validation** data, of "
    f"those that lose at most {100 * MAX_ACCURACY_DROP:g} point there. Test data has no part in that choice. Several "
    "runs (seeds or folds) are given as mean and standard deviation. *Static* is the network that always takes "
    "T = round(mean T) timesteps. Speed-ups are over the framework's own run of all timesteps, on the machine named at "
    "the end of the page."
)


def chosen_policy(group: Group) -> str | None:
    """The policy that the rule chooses; ``None`` if no policy meets the target in all runs."""

    def on_validation(policy: str) -> float | None:
        rows = [run.row(policy, _TARGET) for run in group.measured]
        found = [row["validation"]["mean_timesteps"] for row in rows if row is not None]
        return mean(found) if found and len(found) == len(rows) else None

    timesteps = {policy: steps for policy in POLICIES if (steps := on_validation(policy)) is not None}
    return min(timesteps, key=lambda policy: (timesteps[policy], POLICIES.index(policy)), default=None)


def summary(groups: Sequence[Group]) -> str:
    """The table of all networks that are measured, in Markdown."""
    header = ["network", "data", "runs", "T", "accuracy at T", "policy", "accuracy", "mean T", "static"]
    header += [f"speed-up, batch {size}" for size in BATCH_SIZES]
    rows = [row for group in groups if group.measured and not group.quick for row in _row(group)]
    return "\n".join(["## Summary", "", RULE, "", table(header, rows)]) if rows else ""


def _row(group: Group) -> Iterator[list[str]]:
    policy = chosen_policy(group)
    full = f"{_mean([100 * run.full_accuracy for run in group.measured], 2)} %"
    row = [cell(group.title), cell(group.data), str(len(group.measured)), str(group.timesteps), full]
    if policy is None:
        yield [*row, "none meets the target", *[""] * (3 + len(BATCH_SIZES))]
        return

    def of(run: Run):
        return run.policy(policy, _TARGET)

    numbers = group.numbers(of)
    static = [one.static for one in numbers if one.static is not None]
    at = " or ".join(str(t) for t in sorted({t for t, _ in static}))
    yield [
        *row,
        policy,
        f"{_mean([100 * one.accuracy for one in numbers], 2)} %",
        _mean([one.mean_timesteps for one in numbers], 2),
        f"T = {at}: {_mean([100 * accuracy for _, accuracy in static], 2)} %",
        *(_speedup([one.speedup[size] for one in numbers if size in one.speedup]) for size in BATCH_SIZES),
    ]


def _speedup(values: Sequence[float]) -> str:
    return _mean(values, 2) if values else "not measured"


def _mean(values: Sequence[float], digits: int) -> str:
    middle, deviation = mean_and_deviation(values)
    return f"{middle:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f}")
