"""The slow and obvious reference: every row alone, through the framework's own loop, for all timesteps.

Nothing here imports the library under test. Readouts and exit rules are written out once more, from their
definitions, in plain Python.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Outputs = tuple[Tensor, ...]
Runner = Callable[[nn.Module, Tensor], list[Outputs]]
"""From a model and the frames ``[T, n, ...]``, the outputs of every timestep, each ``[n, ...]``."""


def run_spikingjelly(model: nn.Module, frames: Tensor) -> list[Outputs]:
    """As SpikingJelly's users run a network: reset, then all timesteps, in the step mode that the network is in."""
    from spikingjelly.activation_based import base, functional

    functional.reset_net(model)
    # The nodes inside a recurrent container make single steps in either mode of the network.
    if any(module.step_mode == "m" for module in model.modules() if isinstance(module, base.MemoryModule)):
        outputs = [(output,) for output in model(frames)]
    else:
        outputs = [(model(frame),) for frame in frames]
    functional.reset_net(model)
    return outputs


def run_snntorch(model: nn.Module, frames: Tensor) -> list[Outputs]:
    """As snnTorch's users run a one-step network: fresh states, then a loop that hands explicit states on.

    A model with explicit states has ``fresh_states()``, what its user writes above the loop.
    """
    import snntorch

    for module in model.modules():
        if isinstance(module, snntorch.SpikingNeuron):
            module.reset_mem()
    states: Sequence[Tensor] = model.fresh_states() if hasattr(model, "fresh_states") else ()
    outputs = []
    for frame in frames:
        result = model(frame, *states)
        items = result if isinstance(result, tuple) else (result,)
        if states or hasattr(model, "fresh_states"):
            states = items[1:]
        outputs.append(items)
    return outputs


def outputs_alone(model: nn.Module, run: Runner, inputs: Tensor, sequence: bool, timesteps: int) -> list[list[Outputs]]:
    """Outputs by row and timestep, each row alone in its batch, from a copy of the model.

    Args:
        inputs: ``[N, ...]``, shown at every timestep, or ``[T, N, ...]``.
    """
    model = copy.deepcopy(model)
    n = inputs.shape[1] if sequence else inputs.shape[0]
    answers = []
    with torch.no_grad():
        for row in range(n):
            alone = inputs[:timesteps, row : row + 1] if sequence else torch.stack([inputs[row : row + 1]] * timesteps)
            answers.append([tuple(output.clone() for output in step) for step in run(model, alone)])
    return answers


def decision_logits(outputs: Sequence[Outputs], readout: str) -> Tensor:
    """Decision logits ``[C]`` of one row from its outputs up to now, each ``[1, ...]``."""
    spikes = torch.cat([step[0] for step in outputs])
    t = len(outputs)
    if readout == "sum":
        return spikes.sum(0)
    if readout == "mean":
        return spikes.sum(0) / t
    if readout == "last":
        return spikes[-1]
    if readout == "max":
        return spikes.max(0).values
    if readout == "membrane":
        return outputs[-1][-1][0]
    if readout == "first_spike":
        times = [
            next((step + 1 for step in range(t) if spikes[step, neuron] > 0), t + 1)
            for neuron in range(spikes.shape[1])
        ]
        return -torch.tensor(times, dtype=spikes.dtype)
    raise ValueError(readout)


def trace_alone(answers: Sequence[Sequence[Outputs]], readout: str) -> Tensor:
    """Decision logits ``[T, N, C]`` after every timestep, from :func:`outputs_alone`."""
    rows = [torch.stack([decision_logits(row[:t], readout) for t in range(1, len(row) + 1)]) for row in answers]
    return torch.stack(rows, 1)


def exit_alone(rule: str, settings: dict[str, Any], logits: Tensor, row: int) -> tuple[int, float]:
    """Timestep and score at which a rule lets one row of a trace ``[T, C]`` go; T if it never does.

    Args:
        rule: ``confidence``, ``entropy``, ``margin`` (with ``threshold`` and ``temperature``), ``patience`` (with
            ``patience``), ``fixed`` (with ``timesteps``) or ``prescribed`` (with ``exits``, one for each row).
    """
    timesteps = logits.shape[0]
    answers: list[int] = []
    score = 0.0
    for t in range(1, timesteps + 1):
        values = logits[t - 1].tolist()
        answers.append(values.index(max(values)))
        if rule in ("confidence", "entropy", "margin"):
            score = _certainty(rule, values, settings["temperature"])
            stop = score > settings["threshold"]
        elif rule == "patience":
            run = next((k for k in range(1, t) if answers[-1 - k] != answers[-1]), t)
            stop, score = run >= settings["patience"], float(run)
        elif rule == "fixed":
            stop = t >= settings["timesteps"]
            score = float(stop)
        else:
            stop = t >= settings["exits"][row]
            score = float(t)
        if stop:
            return t, score
    return timesteps, score


def _certainty(rule: str, logits: list[float], temperature: float) -> float:
    """How sure the softmax of ``logits / temperature`` is, in the words of one rule."""
    scaled = [value / temperature for value in logits]
    weights = [math.exp(value - max(scaled)) for value in scaled]
    p = sorted((weight / sum(weights) for weight in weights), reverse=True)
    if rule == "confidence":
        return p[0]
    if rule == "margin":
        return p[0] - p[1]
    return 1 - -sum(q * math.log(q) for q in p if q > 0) / math.log(len(p))
