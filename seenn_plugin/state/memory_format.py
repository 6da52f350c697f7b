"""Memory formats of tensors: the order of their numbers in memory, and operations that keep it."""

from __future__ import annotations

import torch
from torch import Tensor


def is_dense(tensor: Tensor) -> bool:
    """Whether the numbers of ``tensor`` fill its memory without gaps or overlaps, in any order of dimensions."""
    if tensor.is_contiguous():
        return True
    expected = 1
    for stride, size in sorted(_order(tensor)):
        if stride != expected:
            return False
        expected *= size
    return True


def same_format(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors of one shape have the same order of dimensions in memory."""
    return left.stride() == right.stride() or _order(left) == _order(right)


def _order(tensor: Tensor) -> list[tuple[int, int]]:
    """Strides and sizes, without the dimensions of size 1, whose stride has no meaning."""
    return [(stride, size) for stride, size in zip(tensor.stride(), tensor.shape, strict=True) if size != 1]


def channels_last(inputs: Tensor, sequence: bool = False) -> Tensor:
    """Frames ``[n, C, H, W]``, or a sequence of them, in channels-last memory format; other tensors unchanged."""
    if inputs.ndim != (5 if sequence else 4):
        return inputs
    if not sequence:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs.movedim(2, -1).contiguous().movedim(-1, 2)


def select(tensor: Tensor, dim: int, index: Tensor) -> Tensor:
    """``tensor.index_select(dim, index)`` in the memory format of ``tensor``, which PyTorch's own does not keep."""
    if tensor.ndim < 2 or tensor.is_contiguous():
        return tensor.index_select(dim, index)
    order = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.permute(order).index_select(order.index(dim), index).permute(back)
