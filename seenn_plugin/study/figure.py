"""The figure of the page of results: accuracy against mean timesteps, one panel for each network."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from math import ceil
from statistics import mean, median
from typing import TYPE_CHECKING, Any, Final

from .policy_selection import POLICIES, TARGETS
from .runs import Group

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COLUMNS: Final = 3
_PANEL: Final = (3.7, 3.0)
_DPI: Final = 150
_LOG_FROM: Final = 16  # from this T on the time axis is logarithmic, if most exits are in its first half
# The palette of Okabe and Ito, for colour-blind readers; the shape of a marker tells policies apart as well.
_STYLES: Final[dict[str, tuple[str, str]]] = {
    "confidence": ("#D55E00", "o"),
    "entropy": ("#009E73", "s"),
    "margin": ("#0072B2", "^"),
    "patience": ("#CC79A7", "D"),
    "rl": ("#E69F00", "*"),
}


def draw(groups: Sequence[Group]) -> bytes | None:
    """The figure as a PNG file; ``None`` if nothing is measured, or matplotlib is not installed."""
    shown = [group for group in groups if group.measured and not group.quick]
    try:
        import matplotlib.style
        from matplotlib.figure import Figure  # not pyplot: no window, no global state
    except ImportError:
        return None
    if not shown:
        return None
    with matplotlib.style.context("default"):
        columns = min(_COLUMNS, len(shown))
        rows = ceil(len(shown) / columns)
        figure = Figure(figsize=(columns * _PANEL[0], rows * _PANEL[1] + 0.7), layout="constrained")
        axes = figure.subplots(rows, columns, squeeze=False).flatten()
        for ax, group in zip(axes, shown, strict=False):
            _panel(ax, group)
        for ax in axes[len(shown) :]:
            ax.set_axis_off()
        entries: dict[str, Any] = {}
        for ax in axes[: len(shown)]:
            for handle, label in zip(*ax.get_legend_handles_labels(), strict=True):
                entries.setdefault(label, handle)
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
        file = BytesIO()
        figure.savefig(file, format="png", dpi=_DPI, metadata={"Software": None})
        return file.getvalue()


def _panel(ax: Axes, group: Group) -> None:
    runs = group.measured
    timesteps = range(1, group.timesteps + 1)
    static = [100 * mean(run.content["static"]["test"][t - 1] for run in runs) for t in timesteps]
    ax.plot(list(timesteps), static, color="0.55", linewidth=1.2, marker=".", markersize=3, label="static network")
    ax.axhline(static[-1], color="0.8", linewidth=0.8, zorder=0)
    lowest, exits = static[-1], []
    for policy in POLICIES:
        color, marker = _STYLES[policy]
        for target in TARGETS:
            found = group.numbers(lambda run, p=policy, t=target: run.policy(p, t))
            if not found:
                continue
            x, y = mean(one.mean_timesteps for one in found), 100 * mean(one.accuracy for one in found)
            lowest = min(lowest, y)
            exits.append(x)
            matched = target == "accuracy"
            label = f"{policy}, matched {'accuracy' if matched else 'mean T'}"
            size = 8 if marker == "*" else 5
            style = "full" if matched else "none"
            ax.plot([x], [y], marker, color=color, markersize=size, fillstyle=style, label=label)
    # The static curve may begin far below the range of the policies, which is shown.
    span = max(static) - lowest
    bottom = max(min(static), lowest - max(1.5 * span, 2.0))
    ax.set_ylim(bottom - 0.05 * (max(static) - bottom), max(static) + 0.12 * (max(static) - bottom))
    if group.timesteps >= _LOG_FROM and exits and median(exits) < group.timesteps / 2:
        ax.set_xscale("log", base=2)
        ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    elif group.timesteps < _LOG_FROM:
        ax.set_xticks(list(timesteps))
    ax.set_title(group.title, fontsize=8.5, parse_math=False)
    ax.set_xlabel(f"mean timesteps (T = {group.timesteps})", fontsize=8)
    ax.set_ylabel("test accuracy (%)", fontsize=8)
    ax.tick_params(labelsize=8)
    ax.grid(alpha=0.3)
