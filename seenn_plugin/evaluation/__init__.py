"""What a wrapped network does on data: accuracy, timesteps, operations, energy, wall clock, and plots of them."""

from .energy import EnergyReport, measure_energy
from .metrics import AccuracyCurve, Evaluation, PolicyCost, accuracy_curve, evaluate

__all__ = [
    "AccuracyCurve",
    "EnergyReport",
    "Evaluation",
    "PolicyCost",
    "accuracy_curve",
    "evaluate",
    "measure_energy",
]
