"""Make any spiking neural network stop as soon as it knows the answer (SEENN, arXiv 2304.01230)."""

from .calibration import Calibration
from .energy import EnergyReport, measure_energy
from .engine import ExitResult
from .metrics import Evaluation, accuracy_curve, evaluate
from .wrapper import EarlyExitWrapper

__all__ = [
    "Calibration",
    "EarlyExitWrapper",
    "EnergyReport",
    "Evaluation",
    "ExitResult",
    "accuracy_curve",
    "evaluate",
    "measure_energy",
]
