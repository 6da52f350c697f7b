"""Operation counts: the cost of a run, independent of the hardware."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch.utils.flop_counter import FlopCounterMode


@torch.no_grad()
def count_operations(run: Callable[[], object]) -> int:
    """Count the multiply-accumulates of the convolutions and matrix products that a function executes.

    The count is dense: zeros in the inputs (no spike) are not skipped. It is that of
    :class:`torch.utils.flop_counter.FlopCounterMode`, which counts a multiply-accumulate as two floating point
    operations. Not counted are element-wise operations (neurons, normalisation) and kernels that are not dispatched by
    PyTorch.

    Args:
        run: called once, without gradients.

    Example:
        >>> count_operations(lambda: torch.rand(4, 7) @ torch.rand(7, 2))
        56
    """
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() // 2
