"""How many timesteps to make at a time: measured, because it depends on the kernels, the device and the exits."""

from __future__ import annotations

from dataclasses import replace
from time import perf_counter
from typing import Any, Final

import torch

from ..inputs import InputBatch
from .active_batch import RunConfig
from .batch import infer

_ROUNDS: Final = 3


def fastest_chunk(config: RunConfig, policy_state: Any, inputs: InputBatch) -> tuple[int, dict[int, float]]:
    """The chunk with which rows are answered fastest, and the seconds measured for each chunk.

    Only divisors of T are tried: all chunks then have one length, and kernels that are compiled for a length are
    compiled once. The lengths are interleaved, so that a drifting machine affects all of them. The fastest run of each
    counts.

    Args:
        config: how rows are run.
        policy_state: what the policy knows of the rows before their first timestep.
        inputs: their input.
    """
    configs = [replace(config, chunk=k) for k in range(1, config.timesteps + 1) if config.timesteps % k == 0]
    seconds = dict.fromkeys((config.chunk for config in configs), float("inf"))
    for measured in range(-1, _ROUNDS):  # the first round warms up
        for config in configs:
            _synchronize(inputs.device)
            start = perf_counter()
            infer(config, policy_state, inputs, len(inputs), refill=False)
            _synchronize(inputs.device)
            if measured >= 0:
                seconds[config.chunk] = min(seconds[config.chunk], perf_counter() - start)
    return min(seconds, key=seconds.__getitem__), seconds


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
