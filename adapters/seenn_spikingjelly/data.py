"""Old name of :mod:`seenn_plugin.data.events`, which model cards of earlier releases hold."""

from seenn_plugin.data.events import FOLDS, cifar10_dvs, dvs128_gesture, nmnist

__all__ = ["FOLDS", "cifar10_dvs", "dvs128_gesture", "nmnist"]
