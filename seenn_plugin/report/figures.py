"""The figures of a report, as PNG files in memory, in a light style regardless of the caller's style."""

from __future__ import annotations

from io import BytesIO
from typing import TYPE_CHECKING

from ..errors import OptionalDependencyError
from ..evaluation.plot import accuracy_curve, exit_histogram, operating_points

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ..evaluation.metrics import AccuracyCurve, Evaluation

_SIZE = (5.0, 3.75)
"""Inches: about as wide as the page shows it, so that the writing has the size of the page's."""
_DPI = 200
_BLUE, _VERMILLION = "#0072B2", "#D55E00"
"""Of the palette of Okabe and Ito, which colour-blind readers tell apart."""


def require_matplotlib() -> None:
    """Say so before the work if there is nothing to draw with.

    Raises:
        OptionalDependencyError: matplotlib is not installed.
    """
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError("matplotlib", "plot", "a report") from error


def draw(curve: AccuracyCurve, evaluation: Evaluation) -> dict[str, bytes]:
    """PNG files by name."""
    import matplotlib.style
    from matplotlib.figure import Figure  # not pyplot: no window, no global state

    with matplotlib.style.context("default"):
        pareto, exits = (Figure(figsize=_SIZE, layout="constrained") for _ in range(2))
        ax = accuracy_curve(curve, pareto.subplots(), color=_BLUE)
        operating_points([evaluation], ax, label="this policy", color=_VERMILLION)
        ax.grid(alpha=0.3)
        ax.legend(loc="best", fontsize=9)
        bars = exit_histogram(evaluation.histogram, exits.subplots(), [_BLUE])
        bars.grid(alpha=0.3, axis="y")
        bars.set_axisbelow(True)
        return {"pareto": _png(pareto), "exits": _png(exits)}


def _png(figure: Figure) -> bytes:
    file = BytesIO()
    figure.savefig(file, format="png", dpi=_DPI)
    return file.getvalue()
