"""Old name of :mod:`seenn_plugin.models.snntorch`, which model cards of earlier releases hold."""

from seenn_plugin.models.snntorch import ConvNet, RecurrentNet, run_sequence

__all__ = ["ConvNet", "RecurrentNet", "run_sequence"]
