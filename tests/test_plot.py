"""Plots take ``ax`` and return it."""

import sys

import matplotlib
import pytest

from seenn_plugin.calibration.thresholds import OperatingPoint
from seenn_plugin.errors import OptionalDependencyError
from seenn_plugin.evaluation import plot
from seenn_plugin.evaluation.metrics import AccuracyCurve
from seenn_plugin.policies import ConfidencePolicy

matplotlib.use("Agg")

POINTS = tuple(
    OperatingPoint(ConfidencePolicy(threshold), accuracy, mean)
    for threshold, accuracy, mean in ((0.1, 0.5, 1.0), (0.5, 0.4, 1.5), (0.9, 0.9, 2.0))
)
CURVE = AccuracyCurve(POINTS, (0.5, 0.8, 0.9))
DRAW = {
    "accuracy_curve": lambda ax: plot.accuracy_curve(CURVE, ax),
    "operating_points": lambda ax: plot.operating_points(POINTS[:1], ax),
    "exit_histogram": lambda ax: plot.exit_histogram([5, 0, 1], ax),
}


@pytest.fixture
def ax():
    from matplotlib.figure import Figure

    return Figure().subplots()


@pytest.fixture(autouse=True)
def _close_figures():
    yield
    from matplotlib import pyplot

    pyplot.close("all")


@pytest.mark.parametrize("name", DRAW)
def test_takes_and_returns_ax(name, ax):
    from matplotlib import pyplot

    assert DRAW[name](ax) is ax
    assert ax.get_xlabel()
    assert ax.get_ylabel()
    assert pyplot.get_fignums() == []


@pytest.mark.parametrize("name", DRAW)
def test_makes_an_ax_when_none_is_given(name):
    assert DRAW[name](None).has_data()


@pytest.mark.parametrize("name", DRAW)
def test_missing_matplotlib_is_named(name, ax, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[plot\]"'):
        DRAW[name](ax)


def test_the_curve_draws_pareto_front_and_static_points(ax):
    plot.accuracy_curve(CURVE, ax, label="mine")
    front, _, static = ax.get_lines()
    assert list(front.get_xdata()) == [1.0, 2.0]
    assert list(front.get_ydata()) == [50.0, 90.0]
    assert list(static.get_xdata()) == [1, 2, 3]
    assert list(static.get_ydata()) == [50.0, 80.0, 90.0]
    assert [text.get_text() for text in ax.legend().get_texts()] == ["mine", "mine: static, t = 1..3"]


def test_bars_are_percentages_of_each_histogram(ax):
    plot.exit_histogram({"a": [3, 1], "b": [0, 5]}, ax, colors=["C0", "C1"])
    assert [bar.get_height() for bar in ax.patches] == [75.0, 25.0, 0.0, 100.0]
    assert [tick for tick in ax.get_xticks() if tick == int(tick)] == [1, 2]


def test_histograms_may_be_empty(ax):
    assert plot.exit_histogram([], ax) is ax
    assert plot.exit_histogram([0, 0], ax) is ax


def test_many_timesteps_leave_room_for_ticks_and_labels(ax):
    plot.exit_histogram([7] * 100, ax)
    assert ax.get_xticks()[0] == 1
    assert len(ax.get_xticks()) <= 16
    assert {label.get_rotation() for label in ax.texts} == {90.0}
