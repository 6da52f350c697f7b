"""Training spiking networks whose early answers are good ones."""

from .losses import tet_loss
from .recipe import Epoch, Recipe, train

__all__ = ["Epoch", "Recipe", "tet_loss", "train"]
