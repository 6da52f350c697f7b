"""How many timesteps to make at a time: measured, because it depends on the kernels, the device and the exits."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any, Final

import torch
from torch import Tensor

from .batch import infer
from .flight import Way

_ROUNDS: Final = 3


def fastest_chunk(way: Way, memory: Any, inputs: Tensor) -> tuple[int, dict[int, float]]:
    """The chunk with which rows are answered fastest, and the seconds measured for each.

    Only divisors of T: then all chunks are of one length, and kernels that are compiled for a length are compiled once.
    The lengths take turns, so that a drifting machine is fair to all; the fastest run of each counts.

    Args:
        memory: what the policy knows of the rows before their first timestep.
        inputs: ``[n, ...]``, or ``[T, n, ...]`` for a sequence.
    """
    n = inputs.shape[1 if way.sequence else 0]
    ways = [replace(way, chunk=k) for k in range(1, way.timesteps + 1) if way.timesteps % k == 0]
    seconds = dict.fromkeys((way.chunk for way in ways), float("inf"))
    for measured in range(-1, _ROUNDS):  # the first round warms up
        for way in ways:
            _synchronise(inputs.device)
            start = perf_counter()
            infer(way, memory, inputs, n, refill=False)
            _synchronise(inputs.device)
            if measured >= 0:
                seconds[way.chunk] = min(seconds[way.chunk], perf_counter() - start)
    return min(seconds, key=seconds.__getitem__), seconds


def _synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
