"""Old name of :mod:`seenn_plugin.models.events`, which model cards of earlier releases hold."""

from seenn_plugin.models.events import STAGES, event_vgg

__all__ = ["STAGES", "event_vgg"]
