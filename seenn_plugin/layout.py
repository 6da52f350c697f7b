"""The order in which the numbers of a tensor lie in memory: asked for, made, and kept when rows leave."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of ``tensor`` lie in memory without gaps or overlaps, in whatever order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(_order(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def same_layout(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one shape lie in memory in the same order."""
    return left.stride() == right.stride() or _order(left) == _order(right)


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Strides and sizes, without the dimensions of size 1, whose stride means nothing."""
    return [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def channels_last(inputs: Tensor, sequence: bool = False) -> Tensor:
    """Frames ``[n, C, H, W]``, or a sequence of them, with the channels of a pixel side by side; others as they are."""
    if inputs.ndim != (5 if sequence else 4):
        return inputs
    if not sequence:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs.movedim(2, -1).contiguous().movedim(-1, 2)


def select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """``tensor.index_select(dim, index)`` in the layout of ``tensor``, which PyTorch's own gives up."""
    if tensor.ndim < 2 or tensor.is_contiguous():
        return tensor.index_select(dim, index)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.permute(order).index_select(order.index(dim), index).permute(back)
