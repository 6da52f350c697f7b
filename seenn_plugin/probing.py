"""Rows to look at a model with: some of the caller's, and some made up.

The caller's first batch may be a warm-up with zeros, or a single row. Rows that are all alike hide what mixes rows,
an input at rest hides state, and an encoder has nothing to draw; so made-up rows, in the range of the caller's, are
always among them.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

_SEED: Final = 20230401
_OWN_ROWS = 2
_SCALES: Final = (1.0, 0.6, 0.3, 0.1)


def probe_rows(inputs: Tensor, sequence: bool, rows: int) -> Tensor:
    """The caller's first row and ``rows - 1`` made-up ones; made-up ones alone if the batch is empty."""
    dim = 1 if sequence else 0
    own = inputs.narrow(dim, 0, min(1, inputs.shape[dim]))
    return torch.cat([own, made_up(inputs, sequence, rows - own.shape[dim])], dim)


def check_rows(inputs: Tensor, sequence: bool) -> Tensor:
    """The rows that the checks run: the first of the caller's batch, and as many made-up ones."""
    dim = 1 if sequence else 0
    own = inputs.narrow(dim, 0, min(_OWN_ROWS, inputs.shape[dim]))
    return torch.cat([own, made_up(inputs, sequence, len(_SCALES))], dim)


def made_up(like: Tensor, sequence: bool, rows: int, seed: int = _SEED) -> Tensor:
    """Random rows: uniform in [0, 1] if all values of ``like`` are, else in their range; some strong, some weak."""
    dim = 1 if sequence else 0
    shape = [*like.shape[:dim], rows, *like.shape[dim + 1 :]]
    generator = torch.Generator().manual_seed(seed)
    values = like[like.isfinite()]
    low, high = (float(values.min()), float(values.max())) if values.numel() else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    if like.is_floating_point():
        scale = torch.tensor((_SCALES * rows)[:rows]).view(-1, *[1] * (like.ndim - dim - 1))
        return (low + (high - low) * scale * torch.rand(shape, generator=generator)).to(like)
    return torch.randint(int(low), int(high) + 1, shape, generator=generator).to(like)
