"""Fitting the policy network of SEENN-II on traces of a frozen spiking network (arXiv 2304.01230).

:func:`fit_policy` is the entry point. It records traces (:mod:`.recording`), fits a network for each setting of the
reward (:mod:`.fitter`), and searches the setting that meets a target (:mod:`.search`).
"""

from .fit import fit_policy
from .recording import Recording, outcome, plan_all, record
from .report import FitPoint, PolicyFit
from .rewards import ExponentialReward, LinearReward, Reward
from .settings import FitSettings

__all__ = [
    "ExponentialReward",
    "FitPoint",
    "FitSettings",
    "LinearReward",
    "PolicyFit",
    "Recording",
    "Reward",
    "fit_policy",
    "outcome",
    "plan_all",
    "record",
]
