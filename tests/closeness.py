"""When two float answers count as equal for the tests. Deliberately not the library's own tolerance."""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

RTOL: Final = 1e-4
ATOL: Final = 1e-5


def differing_rows(found: Tensor, wanted: Tensor, row_dim: int = 0) -> list[int]:
    """The rows of two tensors of one shape that differ by more than the tolerance. NaN equals NaN."""
    left, right = (tensor.detach().cpu().double().movedim(row_dim, 0).flatten(1) for tensor in (found, wanted))
    equal = (left == right) | (left.isnan() & right.isnan())
    near = (left - right).abs() <= ATOL + RTOL * right.abs()
    return (~(equal | near).all(1)).nonzero().flatten().tolist()


def largest_difference(found: Tensor, wanted: Tensor) -> float:
    return float((found.detach().cpu().double() - wanted.detach().cpu().double()).abs().max()) if found.numel() else 0.0


def assert_close(found: Tensor, wanted: Tensor) -> None:
    torch.testing.assert_close(found, wanted, rtol=RTOL, atol=ATOL)
