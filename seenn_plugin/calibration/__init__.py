"""Choosing the settings of policies on held-out data.

Works on recorded traces, which any :class:`~seenn_plugin.calibration.traces.TraceSource` computes: thresholds
(:mod:`.thresholds`), and the networks of learned policies (:mod:`.policy_fitting`).
"""

from .thresholds import Calibration, OperatingPoint
from .traces import TraceSource

__all__ = ["Calibration", "OperatingPoint", "TraceSource"]
