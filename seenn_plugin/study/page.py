"""The page of results, in Markdown, made of run files and nothing else."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from statistics import mean
from typing import Any
from urllib.parse import quote

from .._files import Content, write_files
from .._markdown import cell, code, table
from ..errors import InputError
from .figure import draw
from .measurement import BATCH_SIZES
from .policy_selection import MAX_ACCURACY_DROP, POLICIES, TARGETS
from .published import LONG, PUBLISHED, Published
from .runs import Group, Numbers, Run, load
from .statistics import wilson
from .summary import summary
from .table import spread

_NOT_MEASURED, _NOT_MET = "not measured", "target not met"
_MATCHED = {
    "accuracy": f"at matched accuracy (at most {100 * MAX_ACCURACY_DROP:g} point below full T on validation data)",
    "timesteps": "at matched mean T (at most that of confidence at matched accuracy, on validation data)",
}
_MANY_TIMESTEPS = 12
"""Beyond this T not every timestep has a line of its own."""
_WANTED_DATA, _WANTED_T, _WANTED_MEAN, _WANTED_DROP = "CIFAR-10", 4, 1.3, 0.002

_INTRODUCTION = """\
# Results

Made by `seenn results` from the run files of `seenn study`. No number is typed by hand.
"""

_EXPLANATION = f"""\
## How it was measured

- **Choices** (thresholds, temperatures, rl policies) are made on validation data, which is a part of the training data.
  The test data is read after all choices.
- **Accuracy, mean T, exits** are those of the policy on traces of all test samples. A part of the samples is run with
  early exit (`infer`), to check that it does the same. For one run the 95 % interval (Wilson) follows the accuracy, for
  several runs the mean and the standard deviation.
- **Static**: the accuracy of the network that always takes T = round(mean T) timesteps.
- **Operations and energy** of a sample: accumulates (AC) and multiply-accumulates (MAC) of convolutions and matrix
  products up to its exit, the network of an rl policy included. Savings are relative to the energy at full T.
- **Wall clock** per sample, in batches of {" and ".join(map(str, BATCH_SIZES))}: medians of rounds in which full T,
  early exit and the static network are interleaved. In brackets the speed-up over full T, the median of the rounds.
"""


def write_results(files: Sequence[Path], out: Path) -> Path | None:
    """Write a page of results in Markdown, with a figure beside it.

    Runs of one network on one data set that differ in seed or fold are combined, and stay listed. The same files give
    the same page.

    Args:
        files: run files of :func:`~seenn_plugin.study.study`.
        out: the page. The figure has the same name with the suffix ``.png``.

    Returns:
        The figure; ``None`` if there is none, because nothing is measured or matplotlib is not installed.

    Raises:
        InputError: a file is damaged, two are of the same network on the same data, or the page or its figure cannot be
            written, or would replace a run file or each other.
    """
    out = Path(out)
    picture = out.with_suffix(".png")
    mine = {out.resolve(), picture.resolve()}
    if len(mine) < 2:
        raise InputError(f"{out} is the name of the figure beside the page; name the page *.md.")
    for file in files:
        if Path(file).resolve() in mine:
            raise InputError(f"{file} is a run file, which the page or its figure would replace; name another page.")
    groups = load(files)
    drawn = draw(groups)
    figure = f"![Accuracy against mean timesteps of every network]({quote(picture.name)})\n" if drawn else ""
    parts = [_INTRODUCTION, *filter(None, [summary(groups), figure]), _EXPLANATION]
    parts += [_section(group) for group in groups] or ["No network was measured.\n"]
    parts += [_wanted(groups), _published(groups), _origin(groups)]
    pages: dict[Path, Content] = {out: "\n".join(parts)}
    if drawn:
        pages[picture] = drawn
    write_files(pages)
    return picture if drawn else None


# -- one network on one data set ---------------------------------------------------------------------------------------


def _section(group: Group) -> str:
    card, settings = group.first.card, group.first.settings
    samples = group.first.content["samples"]
    quick = " (a quick run, to see that all works)" if group.quick else ""
    heading = f"## {cell(group.title)}: {cell(group.data)}{quick}"
    facts = [
        code(card["network"]) + (f" with {cell(_list(card['arguments']))}" if card["arguments"] else ""),
        f"{group.first.content['parameters']:,} parameters",
        f"wrapped with {cell(_list(card['wrapper']))}",
        f"{_epochs(card)} epochs of training",
        f"{samples.get('validation', 0):,} validation and {samples.get('test', 0):,} test samples",
        f"runs: {'; '.join(cell(run.label) for run in group.runs)}",
    ]
    lines = [heading, "", f"{', '.join(facts)}.", ""]
    if not group.measured:
        return "\n".join([*lines, f"{_NOT_MEASURED.capitalize()} yet.", ""])
    prices = f"energy at {settings['picojoules_per_ac']:g} / {settings['picojoules_per_mac']:g} pJ"
    header = ["", "accuracy", "mean T", "exits at t = 1..T", "static", "AC, MAC (millions)", prices]
    header += [f"ms, batch {size}" for size in BATCH_SIZES]
    rows = list(_static_rows(group))
    for target in TARGETS:
        rows.append([f"*{_MATCHED[target]}*", *[""] * (len(header) - 1)])
        rows += [
            _line(policy, group, lambda run, p=policy, t=target: run.policy(p, t), _missing(group.runs, policy, target))
            for policy in POLICIES
        ]
    return "\n".join([*lines, table(header, rows), *_remarks(group), "", *_each_run(group)])


def _static_rows(group: Group) -> Iterator[list[str]]:
    t_max = group.timesteps
    shown = range(1, t_max + 1)
    if t_max > _MANY_TIMESTEPS:
        shown = sorted({2**power for power in range(t_max.bit_length())} & set(shown) | {t_max})
    for t in shown:
        name = f"full T = {t}" if t == t_max else f"static T = {t}"
        yield _line(name, group, lambda run, t=t: run.static(t) if t <= run.timesteps else None)


def _missing(runs: Sequence[Run], policy: str, target: str) -> str:
    """Why there are no numbers."""
    return _NOT_MET if any(run.failed(policy, target) for run in runs) else _NOT_MEASURED


def _line(name: str, group: Group, of: Callable[[Run], Numbers | None], missing: str = _NOT_MEASURED) -> list[str]:
    found = group.numbers(of)
    if not found:
        return [name, missing, *[""] * (5 + len(BATCH_SIZES))]
    samples = group.measured[0].content["samples"]["test"]
    return [
        name,
        _accuracy([n.accuracy for n in found], samples),
        spread([n.mean_timesteps for n in found], 3),
        _exits([n.histogram for n in found]),
        _static([n.static for n in found if n.static]),
        _operations([n.operations for n in found if n.operations]),
        _energy(found),
        *(_milliseconds(found, size) for size in BATCH_SIZES),
    ]


def _accuracy(values: Sequence[float], samples: int) -> str:
    if len(values) > 1:
        return f"{spread([100 * value for value in values], 2)} %"
    low, high = wilson(values[0], samples)
    return f"{100 * values[0]:.2f} % ({100 * low:.1f} to {100 * high:.1f})"


def _exits(histograms: Sequence[tuple[int, ...]]) -> str:
    counts = [sum(column) for column in zip(*histograms, strict=True)] if histograms[0] else []
    if not counts:
        return ""
    total = sum(counts)
    if len(counts) <= _MANY_TIMESTEPS:
        return " / ".join(f"{100 * count / total:.1f}" for count in counts) + " %"
    reached = list(accumulate(counts))
    quantiles = {share: next(t for t, n in enumerate(reached, 1) if n >= share * total) for share in (0.1, 0.5, 0.9)}
    return ", ".join(f"{100 * share:.0f} % by {t}" for share, t in quantiles.items())


def _static(values: Sequence[tuple[int, float]]) -> str:
    if not values:
        return ""
    timesteps = sorted({t for t, _ in values})
    return f"T = {' or '.join(map(str, timesteps))}: {spread([100 * share for _, share in values], 2)} %"


def _operations(values: Sequence[tuple[float, float]]) -> str:
    if not values:
        return "not counted"
    acs, macs = (mean(column) / 1e6 for column in zip(*values, strict=True))
    return f"{acs:.4g}, {macs:.4g}"


def _energy(found: Sequence[Numbers]) -> str:
    energies = [n.picojoules for n in found if n.picojoules is not None]
    savings = [n.saving for n in found if n.saving is not None]
    if not energies:
        return "not counted"
    return f"{mean(energies) / 1e6:.4g} µJ ({100 * mean(savings) + 0.0:.1f} % saved)"


def _milliseconds(found: Sequence[Numbers], size: int) -> str:
    seconds = [n.seconds[size] for n in found if size in n.seconds]
    if not seconds:
        return _NOT_MEASURED
    speedup = mean(n.speedup[size] for n in found if size in n.speedup)
    return f"{1e3 * mean(seconds):.3g} ({speedup:.2f}x)"


def _remarks(group: Group) -> Iterator[str]:
    """Remarks on the table."""
    runs = group.measured
    static = [run.content["static"] for run in runs]
    rows = [row for run in runs for row in run.content["rows"] if "test" in row]
    yield (
        f"- AET {spread([s['average_exit_time'] for s in static], 3)}, empirical "
        f"{spread([s['empirical_average_exit_time'] for s in static], 3)}: bounds that use the labels."
    )
    if rows:
        agreement = min(row["infer"]["agreement"] for row in rows)
        yield (
            f"- `infer` on {_range(row['infer']['samples'] for row in rows)} test samples: exit and answer are those "
            f"of the policy on the trace for at least {100 * agreement:.2f} % of them, in every row."
        )
        full, nearest = ({row["wall_clock"][f"{kind}_run"] for row in rows} for kind in ("full", "static"))
        yield f"- Wall clock of full T: {cell(_one_of(full))}; of the static network: {cell(_one_of(nearest))}."
    energies = [s["energy"] for s in static]
    counted = [energy for energy in energies if "mean" in energy]
    if counted:
        yield f"- Operations are counted on {_range(energy['samples'] for energy in counted)} test samples."
    for energy in energies:
        if energy.get("refused"):
            yield f"- Operations are not counted: {cell(energy['refused'])}"
        elif energy["uncounted"]:
            yield f"- Operations of these names are not counted: {cell(', '.join(sorted(energy['uncounted'])))}."
    yield from _of_the_card(runs)
    fitted = [row["validation"] for row in rows if row["policy"] == "rl"]
    if fitted:
        share = max(fit["policy_operations"] / max(fit["network_operations"], 1) for fit in fitted)
        yield (
            f"- rl: fitted on {_range(fit['fitting_samples'] for fit in fitted)} samples of "
            f"{cell(_one_of({fit['fitted_on'] for fit in fitted}))}; its network takes {100 * share:.2f} % of the "
            "operations of the spiking network at full T, counted densely."
        )
    for run in group.runs:
        for row in run.content["rows"]:
            for note in row.get("notes", ()):
                where = f"{run.label}, {row['policy']}, {row['asked']}: {note.split('. ')[0].rstrip('.')}."
                yield f"- {cell(where)}"


def _of_the_card(runs: Sequence[Run]) -> Iterator[str]:
    """Whether the traces have the accuracies that the framework's own run had after training."""
    differences = [
        abs(ours - theirs)
        for run in runs
        if run.card["samples"].get("test") == run.content["samples"]["test"]
        for ours, theirs in zip(run.content["static"]["test"], run.card["accuracy"].get("test", ()), strict=False)
    ]
    if differences:
        yield (
            "- The static accuracies are those of the model card, which the framework's own run gave, to "
            f"{100 * max(differences):.2f} point."
        )


def _each_run(group: Group) -> Iterator[str]:
    if len(group.measured) < 2:
        return
    header = ["run", "full T", "matched", *POLICIES]
    rows = []
    for run in group.measured:
        for target in TARGETS:
            full = _accuracy([run.full_accuracy], run.content["samples"]["test"])
            cells = [_point(run.policy(policy, target)) or _missing([run], policy, target) for policy in POLICIES]
            rows.append([cell(run.label), full, target, *cells])
    yield "Each run: accuracy at mean T."
    yield ""
    yield table(header, rows)


def _point(numbers: Numbers | None) -> str | None:
    return None if numbers is None else f"{100 * numbers.accuracy:.2f} % at {numbers.mean_timesteps:.3f}"


# -- ours and theirs ---------------------------------------------------------------------------------------------------


def _wanted(groups: Sequence[Group]) -> str:
    asked = (
        f"mean T of at most {_WANTED_MEAN} of {_WANTED_T} on {_WANTED_DATA}, at no more than {100 * _WANTED_DROP:g} "
        "point below full T"
    )
    lines = ["## Wanted and reached", "", f"Wanted: {asked}.", ""]
    found = [g for g in _trustworthy(groups) if g.data_set == _WANTED_DATA and g.timesteps == _WANTED_T]
    reached = [f"- {cell(group.title)} ({cell(group.data)}): {_reached(group)}." for group in found]
    lines += reached or [f"- {_NOT_MEASURED}."]
    return "\n".join([*lines, ""])


def _reached(group: Group) -> str:
    points = []
    for target in TARGETS:
        for policy in POLICIES:
            runs = [run for run in group.measured if run.policy(policy, target)]
            if runs:
                numbers = group.numbers(lambda run, p=policy, t=target: run.policy(p, t))
                drop = mean(run.full_accuracy for run in runs) - mean(n.accuracy for n in numbers)
                points.append((mean(n.mean_timesteps for n in numbers), drop, f"{policy} at matched {target}"))
    if not points:
        return _NOT_MEASURED
    good = sorted(point for point in points if point[1] <= _WANTED_DROP + 1e-9)
    reached = [point for point in good if point[0] <= _WANTED_MEAN]
    if reached:
        return "reached by " + "; ".join(map(_in_words, reached))
    if good:
        return f"not reached; the earliest within {100 * _WANTED_DROP:g} point: {_in_words(good[0])}"
    return f"not reached; the most accurate: {_in_words(min(points, key=lambda point: point[1]))}"


def _in_words(point: tuple[float, float, str]) -> str:
    mean_timesteps, drop, name = point
    side = "below" if drop > 0 else "above"
    return f"{name} (mean T {mean_timesteps:.3f}, {abs(100 * drop):.2f} point {side} full T)"


def _published(groups: Sequence[Group]) -> str:
    header = ["who", "data", "network", "accuracy", "mean T", "standing", "ours (matched accuracy)", "what differs"]
    rows = []
    for number in PUBLISHED:
        theirs = [number.who, number.data, number.network, number.accuracy, number.mean_timesteps]
        ours = _comparable(number, groups)
        rows += [[*theirs, number.standing, *cells] for cells in ours] or [
            [*theirs, number.standing, _NOT_MEASURED, ""]
        ]
    return "\n".join(
        [
            "## Beside published numbers",
            "",
            "*Verified*: read in the abstract or the authors' code; *secondary*: quoted by others; *recalled*: not "
            "confirmed.",
            "",
            table(header, rows),
        ]
    )


def _comparable(number: Published, groups: Sequence[Group]) -> list[list[str]]:
    """Ours of the same data set, way to decide and kind of network, and what differs."""
    rows = []
    for group in _trustworthy(groups):
        if group.data_set != number.data or (group.timesteps >= LONG) != number.long:
            continue
        found = group.numbers(lambda run: run.policy(number.policy, "accuracy"))
        if found:
            reached = f"{spread([100 * n.accuracy for n in found], 2)} % at "
            reached += f"{spread([n.mean_timesteps for n in found], 3)} of {group.timesteps}"
        elif (reached := _missing(group.runs, number.policy, "accuracy")) == _NOT_MEASURED:
            continue
        ours = f"{cell(group.title)}, {number.policy}: {reached}"
        card = group.first.card
        differs = [
            f"network of {group.first.content['parameters']:,} parameters",
            *([f"data: {cell(group.data)}"] if group.data != number.data else []),
            f"{_epochs(card)} epochs",
            f"T = {group.timesteps}",
        ]
        rows.append([ours, ", ".join(differs)])
    return rows


def _trustworthy(groups: Sequence[Group]) -> list[Group]:
    return [group for group in groups if group.measured and not group.quick]


# -- where it is from --------------------------------------------------------------------------------------------------


def _origin(groups: Sequence[Group]) -> str:
    places: dict[str, list[str]] = {}
    for group in groups:
        for run in group.runs:
            parts = [*run.content["rows"], *([run.content["static"]] if run.content["static"] else [])]
            for provenance in {json.dumps(part["provenance"], sort_keys=True) for part in parts}:
                places.setdefault(provenance, []).append(f"{run.name} (study seed {run.settings['seed']})")
    lines = ["## How the numbers were got", ""]
    lines += ["`seenn study` measured each network, `seenn results` made this page of the run files:", ""]
    for provenance, names in sorted(places.items()):
        facts = json.loads(provenance)
        lines.append(
            f"- {cell(', '.join(names))}: {cell(_list(facts['machine']))}; {cell(_list(facts['versions']))}; commit "
            f"{cell(facts['commit'] or 'unknown')}."
        )
    return "\n".join([*lines, *([] if places else [f"- {_NOT_MEASURED}."]), ""])


# -- words and tables --------------------------------------------------------------------------------------------------


def _epochs(card: dict[str, Any]) -> int:
    return sum(stage.get("epochs", 0) for stage in card["recipe"])


def _list(values: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items())


def _range(values: Iterator[int]) -> str:
    found = sorted(set(values))
    return f"{found[0]:,}" if len(found) == 1 else f"{found[0]:,} to {found[-1]:,}"


def _one_of(names: set[str]) -> str:
    return " or ".join(sorted(names))
