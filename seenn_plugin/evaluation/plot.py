"""Figures. Every function takes ``ax`` and returns it; without one it makes a new figure with pyplot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from ..errors import OptionalDependencyError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .metrics import AccuracyCurve

_MANY_BARS = 16
"""Bars above which there is no room for their labels side by side, nor for every tick."""


class HasOperatingPoint(Protocol):
    """An :class:`~seenn_plugin.calibration.OperatingPoint` or an :class:`~seenn_plugin.Evaluation`."""

    @property
    def accuracy(self) -> float: ...

    @property
    def mean_timesteps(self) -> float: ...


def accuracy_curve(curve: AccuracyCurve, ax: Axes | None = None, label: str = "early exit", color: Any = None) -> Axes:
    """Accuracy (in percent) against mean timesteps: lines for early exit, circles for the static network.

    The bold line is the Pareto front, the faint one goes through every setting of the policy.

    Args:
        curve: as :func:`seenn_plugin.accuracy_curve` gives it.
        ax: where to draw.
        label: name of the line in the legend.
        color: a matplotlib colour; by default the next one of ``ax``.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
    """
    ax = _axes(ax)
    best = curve.pareto
    (line,) = ax.plot(
        [point.mean_timesteps for point in best],
        [100 * point.accuracy for point in best],
        drawstyle="steps-post",  # no setting was tried between two neighbours: promise nothing there
        color=color,
        label=label,
    )
    ax.plot(
        [point.mean_timesteps for point in curve.points],
        [100 * point.accuracy for point in curve.points],
        color=line.get_color(),
        alpha=0.4,
        linewidth=1,
    )
    ax.plot(
        range(1, len(curve.static) + 1),
        [100 * accuracy for accuracy in curve.static],
        linestyle=":",
        linewidth=1,
        marker="o",
        markerfacecolor="none",
        color=line.get_color(),
        label=f"{label}: static, t = 1..{len(curve.static)}",
    )
    ax.set_xlabel("mean timesteps")
    ax.set_ylabel("accuracy (%)")
    return ax


def operating_points(
    points: Iterable[HasOperatingPoint], ax: Axes | None = None, label: str = "operating point", color: Any = None
) -> Axes:
    """Chosen settings as stars in the axes of :func:`accuracy_curve`.

    Args:
        points: anything with ``accuracy`` (a fraction) and ``mean_timesteps``.
        ax: where to draw.
        label: name of the stars in the legend.
        color: a matplotlib colour; by default the next one of ``ax``.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
    """
    ax = _axes(ax)
    chosen = list(points)
    ax.plot(
        [point.mean_timesteps for point in chosen],
        [100 * point.accuracy for point in chosen],
        linestyle="none",
        marker="*",
        markersize=16,
        markeredgecolor="black",
        color=color,
        label=label,
        zorder=3,
    )
    ax.set_xlabel("mean timesteps")
    ax.set_ylabel("accuracy (%)")
    return ax


def exit_histogram(
    histogram: Sequence[int] | Mapping[str, Sequence[int]], ax: Axes | None = None, colors: Sequence[Any] | None = None
) -> Axes:
    """How many percent of the samples exit at t = 1..T, as bars.

    Args:
        histogram: number of samples at each t, as in ``Evaluation.histogram``; or several of them, by name.
        ax: where to draw.
        colors: one matplotlib colour for each histogram.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
    """
    ax = _axes(ax)
    named = histogram if isinstance(histogram, Mapping) else {"": histogram}
    width = 0.85 / max(len(named), 1)
    longest = max((len(counts) for counts in named.values()), default=0)
    crowded = longest * len(named) > _MANY_BARS
    for i, (name, counts) in enumerate(named.items()):
        shift = (i - (len(named) - 1) / 2) * width
        total = max(sum(counts), 1)
        bars = ax.bar(
            [t + shift for t in range(1, len(counts) + 1)],
            [100 * count / total for count in counts],
            width=width,
            color=None if colors is None else colors[i],
            label=name or None,
        )
        # Tails are too low to see: say how many samples they are.
        ax.bar_label(
            bars, [str(count) if count else "" for count in counts], fontsize=8, padding=2, rotation=90 * crowded
        )
    ax.set_xticks(range(1, longest + 1, 1 + longest // _MANY_BARS))
    ax.set_xlabel("exit timestep")
    ax.set_ylabel("samples (%)")
    ax.margins(y=0.1)
    return ax


def _axes(ax: Axes | None) -> Axes:
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "plot", "plotting") from error
    if ax is not None:
        return ax
    from matplotlib import pyplot

    return pyplot.subplots()[1]
