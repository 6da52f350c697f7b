"""Training spiking networks whose early answers are good ones."""

from .losses import tet_loss
from .recipe import Recipe
from .supervised import Epoch, Forward, accuracy, train

__all__ = ["Epoch", "Forward", "Recipe", "accuracy", "tet_loss", "train"]
