"""For authors of adapters: a test suite to derive from, and the tools that it is made of."""

from .adapter.conformance import AdapterConformance, ModelRaised, Snapshot, raising

__all__ = ["AdapterConformance", "ModelRaised", "Snapshot", "raising"]
