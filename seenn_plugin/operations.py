"""Counting operations: what a run costs on any hardware, wall clock aside."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_operations(run: Callable[[], object]) -> int:
    """Multiply-accumulates of the convolutions and matrix products in ``run()``.

    Counted densely, as if no spike were zero, by :class:`torch.utils.flop_counter.FlopCounterMode`, whose two floating
    point operations are one multiply-accumulate. Element-wise work (neurons, normalisation) is left out, and so are
    kernels that PyTorch does not dispatch.
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
