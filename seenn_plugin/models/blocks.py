"""Blocks that networks of several modules share. They know no framework."""

from __future__ import annotations

from torch import Tensor, nn


class SpikeAddBlock(nn.Module):
    """Spike-element-wise residual block, ADD: spikes of the branch plus those of the shortcut (arXiv 2102.04159).

    Args:
        branch, shortcut: modules from ``[..., C, H, W]`` to spikes of one shape.
    """

    def __init__(self, branch: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)
