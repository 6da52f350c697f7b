"""The page: HTML with its style and pictures inside, from the facts of a report. No scripts, nothing fetched.

Every text that is not written here goes through :func:`_text`.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any, NamedTuple

_STYLE = """
:root { color-scheme: light; --ink: #1b1f24; --faint: #57606a; --line: #d0d7de;
  --blue: #0072b2; --vermillion: #b34700; }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem; max-width: 72rem; background: #fff; color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { margin: 0; font-size: 1.7rem; line-height: 1.2; }
h2 { margin: 2.2rem 0 .6rem; padding-bottom: .2rem; border-bottom: 1px solid var(--line); font-size: 1.2rem; }
h3 { margin: 1.2rem 0 .5rem; font-size: 1rem; }
p { margin: .4rem 0; max-width: 48rem; }
.faint, figcaption { color: var(--faint); font-size: .875rem; }
.warning { border-left: .25rem solid var(--vermillion); padding-left: .75rem; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 10rem), 1fr)); gap: .75rem;
  margin: 1.2rem 0 0; }
.tiles div { border: 1px solid var(--line); border-radius: .4rem; padding: .6rem .8rem; }
.tiles dt { color: var(--faint); font-size: .875rem; }
.tiles dd { margin: 0; }
.tiles .value { font-size: 1.5rem; font-weight: 600; line-height: 1.3; font-variant-numeric: tabular-nums; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem; }
figure { margin: 0; }
.figures img { display: block; width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .25rem .9rem .25rem 0; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap;
  overflow-wrap: normal; }
th { font-weight: 600; }
thead th { vertical-align: bottom; white-space: normal; }
th:first-child { text-align: left; white-space: normal; }
tr.chosen { background: #e8f2f9; }
.facts td { text-align: left; white-space: normal; overflow-wrap: anywhere; }
.facts th { vertical-align: top; }
.bar { display: block; width: 8rem; background: #eceff2; }
.bar span { display: block; height: .8rem; background: var(--blue); }
.samples { display: grid; grid-template-columns: repeat(auto-fill, minmax(10.2rem, 1fr)); gap: .75rem; }
.samples figure { border: 2px solid var(--line); border-radius: .4rem; padding: .4rem; }
.samples figure.wrong { border-color: var(--vermillion); }
.samples figcaption { line-height: 1.35; margin-top: .3rem; }
.samples img { display: block; width: 100%; height: auto; image-rendering: pixelated; }
.wrong b { color: var(--vermillion); }
@media (max-width: 32rem) { .bar { width: 3rem; } th, td { padding-right: .5rem; } body { font-size: .9375rem; } }
"""
_POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
"""The browser's own promise that nothing is fetched and no script runs."""


class _Column(NamedTuple):
    """Of the table of operations."""

    heading: str
    early_exit: str
    policy: str
    full: str
    static: str


_OPERATIONS = (
    _Column("ACs", "acs", "policy_acs", "full_acs", "static_acs"),
    _Column("MACs", "macs", "policy_macs", "full_macs", "static_macs"),
    _Column("energy (pJ)", "picojoules", "policy_picojoules", "full_picojoules", "static_picojoules"),
)


def render(facts: Mapping[str, Any], figures: Mapping[str, bytes], pictures: Mapping[int, bytes]) -> str:
    """The page.

    Args:
        facts: what ``report.json`` holds.
        figures: PNG files ``pareto`` and ``exits``.
        pictures: PNG files of the samples shown, by position.
    """
    title = _text(facts["title"])
    return f"""<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{_POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light">
<link rel="icon" href="data:,">
<title>{title}</title>
<style>{_STYLE}</style>
</head>
<body>
<header>
<h1>{title}</h1>
<p>{_subtitle(facts)}</p>
</header>
<main>
{_summary(facts["summary"])}
{_figures(facts, figures)}
{_classes(facts)}
{_samples(facts, pictures)}
{_operations(facts)}
{_details(facts)}
</main>
</body>
</html>
"""


def _subtitle(facts: Mapping[str, Any]) -> str:
    network, samples = facts["network"], facts["summary"]["samples"]
    return (
        f"{_text(network['class'])}, {network['parameters']:,} parameters, {network['timesteps']} timesteps, "
        f"on {samples:,} {'sample' if samples == 1 else 'samples'}. A sample leaves by <code>"
        f"{_text(facts['policy']['text'])}</code>."
    )


# -- sections ---------------------------------------------------------------------------------------------------------


def _summary(summary: Mapping[str, Any]) -> str:
    lost = 100 * (summary["full_accuracy"] - summary["accuracy"])
    compared = "as at full T" if abs(lost) < 0.005 else f"{abs(lost):.2f} points {'below' if lost > 0 else 'above'}"
    tiles = [
        ("accuracy with early exit", _percent(summary["accuracy"]), compared),
        ("accuracy at full T", _percent(summary["full_accuracy"]), f"all {summary['timesteps']} timesteps"),
        ("mean timesteps", f"{summary['mean_timesteps']:.3f}", f"of {summary['timesteps']}"),
        (
            "row-steps saved",
            _percent(summary["row_steps_saved"], 1),
            f"{summary['row_steps']:,} of {summary['full_row_steps']:,} computed",
        ),
    ]
    if summary["energy_saved"] is not None:
        tiles.append(("energy saved", _percent(summary["energy_saved"], 1), "estimated, against full T"))
    tiles.append(("agreement", _percent(summary["agreement"]), "exit and answer as on the full trace"))
    cells = "\n".join(
        f'<div><dt>{name}</dt><dd class="value">{value}</dd><dd class="faint">{note}</dd></div>'
        for name, value, note in tiles
    )
    whole = (
        '<p class="warning">This network is run whole: all timesteps of every sample are computed, and the exits '
        "picked afterwards. Nothing is saved.</p>"
        if summary["run_whole"]
        else ""
    )
    return f'<dl class="tiles">\n{cells}\n</dl>\n{whole}'


def _figures(facts: Mapping[str, Any], figures: Mapping[str, bytes]) -> str:
    summary, points = facts["summary"], len(facts["curve"]["points"])
    here = f"{_percent(summary['accuracy'])} at {summary['mean_timesteps']:.3f} mean timesteps"
    settings = (
        f"Line: the best of {points:,} settings of the policy; faint: all of them." if points > 1 else "One setting."
    )
    exits = ", ".join(f"{n:,} at t = {t}" for t, n in enumerate(facts["evaluation"]["histogram"], start=1) if n)
    return f"""<section>
<h2>When samples leave, and what it costs</h2>
<div class="figures">
<figure>
{_image(figures["pareto"], f"Accuracy against mean timesteps; this policy: {here}")}
<figcaption>Accuracy against mean timesteps. {settings} Circles: the network that always takes t timesteps. Star: this
policy, {here}.</figcaption>
</figure>
<figure>
{_image(figures["exits"], f"Samples that leave at each timestep: {exits}")}
<figcaption>How many percent of the samples leave at each timestep; on the bars, how many samples that is.</figcaption>
</figure>
</div>
</section>"""


def _classes(facts: Mapping[str, Any]) -> str:
    total = facts["summary"]["timesteps"]
    rows = []
    for figures in facts["classes"]:
        if figures["samples"]:
            mean = figures["mean_timesteps"]
            bar = f'<span class="bar"><span style="width: {100 * mean / total:.1f}%"></span></span>'
            cells = (f"{figures['samples']:,}", f"{mean:.3f}", bar, _percent(figures["accuracy"]))
        else:
            cells = ("0", "–", "", "–")
        rows.append(_row(_text(figures["name"]), cells))
    heading = ("class", "samples", "mean timesteps", f"of {total}", "accuracy")
    return f"""<section>
<h2>Classes</h2>
<p class="faint">Samples by their true class: mean timesteps, and accuracy with early exit.</p>
{_table(heading, rows)}
</section>"""


def _samples(facts: Mapping[str, Any], pictures: Mapping[int, bytes]) -> str:
    if facts["pictures"] is None:
        body = (
            '<p class="faint">Left out: the inputs are no pictures. Shown are images [C, H, W] of one or three '
            "channels, and frames [T, C, H, W] of events. The samples are in report.json, by their position in the "
            "data.</p>"
        )
    else:
        body = f"""<p class="faint">{_how_painted(facts["pictures"])}</p>
<h3>Easiest: left first, the surest first</h3>
{_gallery(facts["easiest"], pictures)}
<h3>Hardest: left last, the least sure first</h3>
{_gallery(facts["hardest"], pictures)}"""
    return f"<section>\n<h2>Easiest and hardest samples</h2>\n{body}\n</section>"


def _how_painted(how: Mapping[str, Any]) -> str:
    ranges = "; ".join(f"{_number(low)} to {_number(high)}" for low, high in zip(how["low"], how["high"], strict=True))
    channels = len(how["low"])
    if how["of"] == "images":
        what = "The images as the network sees them, "
    else:
        what = "The frames of a sample, summed over time, "
    colours = {1: "from black to white", 2: "from white to blue (channel 0) and to vermillion (channel 1)"}
    return (
        f"{what}every channel drawn {colours.get(channels, 'from none to full')} over its range in these data "
        f"({ranges}). Wrong answers have a frame of another colour and say so."
    )


def _gallery(samples: Sequence[Mapping[str, Any]], pictures: Mapping[int, bytes]) -> str:
    return '<div class="samples">\n' + "\n".join(_sample(sample, pictures) for sample in samples) + "\n</div>"


def _sample(sample: Mapping[str, Any], pictures: Mapping[int, bytes]) -> str:
    label, answer = _text(sample["label_name"]), _text(sample["answer_name"])
    verdict = f"right: {answer}" if sample["right"] else f"<b>wrong: {answer}</b>"
    image = _image(pictures[sample["position"]], f"sample {sample['position']}")
    return (
        f'<figure class="{"right" if sample["right"] else "wrong"}">{image}<figcaption>{label}<br>{verdict}<br>'
        f"left at t = {sample['timesteps']}, score {_number(sample['score'])}</figcaption></figure>"
    )


def _operations(facts: Mapping[str, Any]) -> str:
    summary, energy = facts["summary"], facts["energy"]
    total = summary["timesteps"]
    rows = [
        _row("early exit", _cells(facts, summary["accuracy"], summary["mean_timesteps"], "early_exit"), "chosen"),
    ]
    if energy and energy["mean"]["policy_picojoules"]:
        rows.append(_row("of that, the policy’s own network", _cells(facts, None, None, "policy")))
    rows.append(_row("full T, without a policy", _cells(facts, summary["full_accuracy"], float(total), "full")))
    rows += [
        _row(f"static, t&nbsp;=&nbsp;{t}", _cells(facts, accuracy, float(t), "static", t))
        for t, accuracy in enumerate(facts["evaluation"]["accuracy_per_timestep"], start=1)
    ]
    heading = ["network", "accuracy", "mean timesteps"]
    if energy:
        heading += [*(column.heading for column in _OPERATIONS), "energy, of full T"]
        notes = [
            "Means of a sample. Synaptic operations are counted as they are executed, and priced at "
            f"{_number(energy['picojoules_per_ac'])} pJ for an accumulate (AC) and "
            f"{_number(energy['picojoules_per_mac'])} pJ for a multiply-accumulate (MAC): an estimate, without "
            "neurons and memory."
        ]
        if energy["uncounted"]:
            calls = ", ".join(f"{_text(name)} ({n:,} calls)" for name, n in energy["uncounted"].items())
            notes.append(f"Not counted: {calls}.")
    else:
        notes = [f"Energy was not measured: {_text(facts['energy_not_measured'])}"]
    body = "\n".join(f'<p class="faint">{note}</p>' for note in notes)
    return f"<section>\n<h2>Operations and energy</h2>\n{body}\n{_table(heading, rows)}\n</section>"


def _cells(
    facts: Mapping[str, Any], accuracy: float | None, timesteps: float | None, which: str, t: int | None = None
) -> list[str]:
    """Of a row of the table of operations; ``t`` is that of a static network."""
    cells = ["" if accuracy is None else _percent(accuracy), "" if timesteps is None else f"{timesteps:.3f}"]
    energy = facts["energy"]
    if not energy:
        return cells
    mean = energy["mean"]
    names = [getattr(column, which) for column in _OPERATIONS]
    values = [mean[name] if t is None else energy[name][t - 1] for name in names]
    full = mean["full_picojoules"]
    return [*cells, *(_number(value) for value in values), _percent(values[-1] / full, 1) if full else "–"]


def _details(facts: Mapping[str, Any]) -> str:
    evaluation, summary, where = facts["evaluation"], facts["summary"], facts["provenance"]
    rows = [
        ("input", f"{facts['network']['input']}, stepped by the adapter {facts['network']['adapter']}"),
        ("throughput", f"{_number(evaluation['throughput'])} samples per second with early exit, on this machine"),
        (
            "oracle",
            f"average exit time {evaluation['average_exit_time']:.3f}, empirical "
            f"{evaluation['empirical_average_exit_time']:.3f}: what exits that know the labels would take",
        ),
    ]
    if summary["planning_share_of_operations"] is not None:
        share = _percent(summary["planning_share_of_operations"])
        rows.append(("planning", f"{share} of the operations at full T, counted densely"))
    rows += [
        ("written", where["written"]),
        ("commit", where["commit"] or "none: not a checkout"),
        ("machine", ", ".join(f"{name} {value}" for name, value in where["machine"].items())),
        ("versions", ", ".join(f"{name} {value}" for name, value in where["versions"].items())),
    ]
    lines = "\n".join(_row(_text(name), [_text(value)]) for name, value in rows)
    return (
        "<section>\n<h2>Where the numbers are from</h2>\n"
        f'<table class="facts">\n{lines}\n</table>\n'
        '<p class="faint">All numbers are in report.json, the figures in figures/.</p>\n</section>'
    )


# -- parts ------------------------------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return escape(str(value))


def _percent(fraction: float | None, digits: int = 2) -> str:
    return "–" if fraction is None else f"{100 * fraction:.{digits}f} %"


def _number(value: float | None) -> str:
    """Whole numbers from a thousand on, three digits below."""
    if value is None:
        return "–"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _image(png: bytes, alt: str) -> str:
    return f'<img alt="{_text(alt)}" src="data:image/png;base64,{b64encode(png).decode()}">'


def _table(heading: Iterable[str], rows: Iterable[str]) -> str:
    cells = "".join(f'<th scope="col">{name}</th>' for name in heading)
    body = "\n".join(rows)
    return f'<div class="wide"><table>\n<thead><tr>{cells}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'


def _row(name: str, cells: Iterable[str], style: str = "") -> str:
    opening = f'<tr class="{style}">' if style else "<tr>"
    return f'{opening}<th scope="row">{name}</th>' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>"
