"""Old name of :mod:`seenn_plugin.adapter`, which is kept for adapters written against it."""

from .adapter import ModuleAdapter

__all__ = ["ModuleAdapter"]
