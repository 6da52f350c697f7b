"""Old name of :mod:`seenn_plugin.checkpoints`."""

from .checkpoints import Card, Pretrained, packaged

__all__ = ["Card", "Pretrained", "packaged"]
