"""Data sets in their standard folder layouts, with validation data held out of the training data.

Event-camera data sets, which SpikingJelly reads, are in :mod:`seenn_plugin.data.events`.
"""

from .loaders import Pairs
from .static import AUGMENTATIONS, HELD_OUT, SPLITS, braille, cifar10, held_out, mnist

__all__ = ["AUGMENTATIONS", "HELD_OUT", "SPLITS", "Pairs", "braille", "cifar10", "held_out", "mnist"]
