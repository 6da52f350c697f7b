"""Decision logits after every timestep, with no exit."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from ..adapter.contract import Adapter, Rows
from ..inputs import InputBatch
from ..readout import Outputs, Readout, read


def advance_to(adapter: Adapter, rows: Rows, timesteps: int, chunk: int = 1) -> list[Outputs]:
    """Advance new rows by ``timesteps``; the outputs of every timestep, each ``[N, ...]``."""
    made: list[Outputs] = []
    while len(made) < timesteps:
        made.extend(zip(*adapter.advance(rows, min(chunk, timesteps - len(made))), strict=True))
    return made


def read_all(readout: Readout, steps: list[Outputs]) -> Tensor:
    """Decision logits ``[T, N, C]`` from the outputs of every timestep."""
    logits, accumulator = [], None
    for t, outputs in enumerate(steps, start=1):
        timestep = torch.full((outputs[0].shape[0],), t, device=outputs[0].device)
        decision_logits, accumulator = read(readout, outputs, timestep, accumulator)
        logits.append(decision_logits)
    return torch.stack(logits)


def steps(adapter: Adapter, readout: Readout, inputs: InputBatch, timesteps: int) -> Iterator[Tensor]:
    """:func:`trace` as an iterator that makes one timestep whenever it is advanced: decision logits ``[N, C]``."""
    rows, accumulator = adapter.begin(inputs), None
    for t in range(1, timesteps + 1):
        outputs = tuple(output[0] for output in adapter.advance(rows))
        timestep = torch.full((len(rows),), t, device=outputs[0].device)
        logits, accumulator = read(readout, outputs, timestep, accumulator)
        yield logits


def trace(adapter: Adapter, readout: Readout, inputs: InputBatch, timesteps: int, chunk: int = 1) -> Tensor:
    """Decision logits ``[T, N, C]`` after every timestep of every row."""
    return read_all(readout, advance_to(adapter, adapter.begin(inputs), timesteps, chunk))
