"""Rows for discovery and checks: some of the caller's, and some made up.

The caller's first batch may be a warm-up batch of zeros, or a single row. Equal rows hide operations that mix rows, and
an input at rest hides state. Made-up rows in the range of the caller's are therefore always added.

The rows are ordinary tensors in any gradient mode of the caller. Inference tensors have no version counters, by which
writes are noticed.
"""

from __future__ import annotations

from typing import Final

import torch

from ..inputs import InputBatch

_SEED: Final = 20230401
_OWN_ROWS: Final = 2
_SCALES: Final = (1.0, 0.6, 0.3, 0.1)


def probe_rows(inputs: InputBatch, rows: int) -> InputBatch:
    """The caller's first row and ``rows - 1`` made-up ones; made-up ones only if the batch is empty."""
    return _extended(inputs.narrow(0, min(1, len(inputs))), inputs, rows)


def check_rows(inputs: InputBatch) -> InputBatch:
    """The rows for the checks: up to two of the caller's first rows, and four made-up ones."""
    own = inputs.narrow(0, min(_OWN_ROWS, len(inputs)))
    return _extended(own, inputs, len(own) + len(_SCALES))


def _extended(own: InputBatch, like: InputBatch, rows: int) -> InputBatch:
    with torch.inference_mode(False), torch.no_grad():
        return own.joined(made_up(like, rows - len(own)))


def made_up(like: InputBatch, rows: int, seed: int = _SEED) -> InputBatch:
    """Random rows of different strengths: uniform in [0, 1] if all values of ``like`` are, else in their range."""
    dim, values = like.row_dim, like.values
    shape = [*values.shape[:dim], rows, *like.row_shape]
    generator = torch.Generator().manual_seed(seed)
    finite = values[values.isfinite()]
    low, high = (float(finite.min()), float(finite.max())) if finite.numel() else (0.0, 1.0)
    if low >= 0 and high <= 1:
        low, high = 0.0, 1.0
    elif low == high:
        low, high = min(low, 0.0), max(high, 0.0)
    if not values.is_floating_point():
        return like.with_values(torch.randint(int(low), int(high) + 1, shape, generator=generator).to(values))
    scale = torch.tensor((_SCALES * rows)[:rows]).view(-1, *[1] * len(like.row_shape))
    return like.with_values((low + (high - low) * scale * torch.rand(shape, generator=generator)).to(values))
