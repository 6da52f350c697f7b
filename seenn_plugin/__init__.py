"""Make any spiking neural network stop as soon as it knows the answer (SEENN, arXiv 2304.01230)."""

from ._version import __version__
from .calibration.thresholds import Calibration
from .engine import ExitResult
from .evaluation.energy import EnergyReport, measure_energy
from .evaluation.metrics import Evaluation, accuracy_curve, evaluate
from .wrapper import EarlyExitWrapper

__all__ = [
    "Calibration",
    "EarlyExitWrapper",
    "EnergyReport",
    "Evaluation",
    "ExitResult",
    "__version__",
    "accuracy_curve",
    "evaluate",
    "measure_energy",
]
