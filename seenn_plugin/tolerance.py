"""When two float answers count as equal. Stated here once, used by the checks, the tests and the benchmarks.

Convolutions and matrix products choose their algorithm by shape, so the same row in another batch may differ in
the last bits; at a fixed batch size answers are bit-exact.
"""

from typing import Final

import torch
from torch import Tensor

RTOL: Final = 1e-4
ATOL: Final = 1e-5


def rows_agree(left: Tensor, right: Tensor, row_dim: int = 0) -> Tensor:
    """For each row, whether two answers are equal within tolerance. NaN equals NaN.

    Args:
        left, right: tensors of one shape with rows on ``row_dim``.

    Returns:
        Bool ``[n]``.
    """
    if left.shape != right.shape:
        raise ValueError(f"cannot compare shapes {tuple(left.shape)} and {tuple(right.shape)}")
    close = torch.isclose(left, right, rtol=RTOL, atol=ATOL, equal_nan=True)
    return close.movedim(row_dim, 0).reshape(close.shape[row_dim], -1).all(1)


def agree(left: Tensor, right: Tensor) -> bool:
    """Whether two tensors have one shape and are equal within tolerance. NaN equals NaN."""
    return left.shape == right.shape and torch.allclose(left, right, rtol=RTOL, atol=ATOL, equal_nan=True)


def largest_difference(left: Tensor, right: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape; 0 for empty ones."""
    return float((left.double() - right.double()).detach().abs().max()) if left.numel() else 0.0
