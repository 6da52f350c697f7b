"""Trained networks on disk: half-precision weights, and a card that says what they are."""

from .card import Card
from .packaged import packaged
from .pretrained import Pretrained

__all__ = ["Card", "Pretrained", "packaged"]
