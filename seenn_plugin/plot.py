"""Plots: accuracy against mean timesteps, and the histogram of exits. They take ``ax`` and return it."""

from .evaluation.plot import accuracy_curve, exit_histogram, operating_points

__all__ = ["accuracy_curve", "exit_histogram", "operating_points"]
