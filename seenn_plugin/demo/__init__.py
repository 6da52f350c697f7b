"""``seenn demo``: two small spiking networks on handwritten digits, with and without early exit, measured."""

from .main import run

__all__ = ["run"]
