"""Old name of :mod:`seenn_plugin.models.converted`, which model cards of earlier releases hold."""

from seenn_plugin.models.converted import (
    QCFS,
    ResidualBlock,
    convert,
    run,
    small_converted_resnet,
    small_quantised_resnet,
)

__all__ = ["QCFS", "ResidualBlock", "convert", "run", "small_converted_resnet", "small_quantised_resnet"]
