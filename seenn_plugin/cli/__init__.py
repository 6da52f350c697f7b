"""The command ``seenn``."""

from .commands import main

__all__ = ["main"]
