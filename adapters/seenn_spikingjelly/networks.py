"""Old name of :mod:`seenn_plugin.models.spikingjelly`, which model cards of earlier releases hold."""

from seenn_plugin.models.spikingjelly import (
    ResidualBlock,
    SEWBlock,
    resnet19,
    run,
    run_sequence,
    sew_resnet18,
    small_sew_resnet,
    spikformer,
)

__all__ = [
    "ResidualBlock",
    "SEWBlock",
    "resnet19",
    "run",
    "run_sequence",
    "sew_resnet18",
    "small_sew_resnet",
    "spikformer",
]
