"""Is this model steppable, row-independent, repeatable? Looked at on the caller's own first rows.

Each check compares full runs of a handful of rows. Where float rounding pushes a membrane potential over its
threshold in one run and not in the other, whole rows differ without anything being wrong: a check that fails is
therefore repeated on a copy of the model in float64, where this does not happen, before the model is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import Adapter
from .engine.trace import outputs_per_timestep
from .errors import ModelRefused
from .readout import Outputs
from .tolerance import largest_difference, rows_agree

_ROWS = 4


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: what was checked.
        rows: rows compared.
        disagreeing: rows that differed by more than the tolerance (in float32, at a spike threshold).
        error: largest absolute difference seen in rows that agree.
    """

    name: str
    rows: int
    disagreeing: int
    error: float
    note: str = ""

    def __str__(self) -> str:
        agreed = f"{self.rows - self.disagreeing} of {self.rows} rows equal, largest difference {self.error:.1e}"
        return f"{self.name}: {agreed}{f' ({self.note})' if self.note else ''}"


def check_rows(inputs: Tensor, sequence: bool) -> Tensor:
    """The rows that the checks run: the first of the caller's batch, and a mirrored one that differs from them."""
    row_dim = 1 if sequence else 0
    own = inputs.narrow(row_dim, 0, min(_ROWS - 1, inputs.shape[row_dim]))
    return torch.cat([own, own.narrow(row_dim, 0, 1).flip(-1)], row_dim)


def run_checks(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> list[CheckResult]:
    """Run every check on ``inputs``, from :func:`check_rows`.

    Raises:
        ModelRefused: naming the check, the difference seen, and what to do.
    """
    results = []
    for check in (_repeatable, _whole, _alone):
        result = check(adapter, inputs, sequence, timesteps, chunk)
        if result is not None and result.disagreeing:
            result = _in_float64(check, adapter, inputs, sequence, timesteps, chunk, result)
        if result is not None:
            results.append(result)
    return results


Check = Callable[[Adapter, Tensor, bool, int, int], CheckResult | None]

_REFUSALS = {
    "repeatable": (
        "answers the same input differently from one run to the next in evaluation mode",
        "Draw random encodings before the model and pass them as input='sequence'.",
    ),
    "whole": (
        "answers differently when its timesteps are made one after the other than in its own full run",
        "Its early answers depend on later timesteps (attention or normalisation over time, parallel neurons), "
        "so that no timestep can be saved; use neurons and layers that look at the past only.",
    ),
    "alone": (
        "answers a row differently when other rows share its batch, or leave it",
        "Rows must not depend on each other: remove batch statistics and operations across dimension 0.",
    ),
}


def _repeatable(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    first = outputs_per_timestep(adapter, inputs, sequence, timesteps, chunk)
    again = outputs_per_timestep(adapter, inputs, sequence, timesteps, chunk)
    return _compare("repeatable", first, again)


def _whole(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult | None:
    own = adapter.reference(inputs, sequence, timesteps)
    if own is None:
        return None
    stepped = outputs_per_timestep(adapter, inputs, sequence, timesteps, chunk)
    return _compare("whole", list(zip(*own, strict=True)), stepped)


def _alone(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    """Rows in another company from the start, and in yet another after the first chunk.

    Rows are exchanged for copies of others, so that the batch keeps its size and the arithmetic its algorithms.
    """
    n = inputs.shape[1 if sequence else 0]
    expected = outputs_per_timestep(adapter, inputs, sequence, timesteps, chunk)
    places = torch.arange(n, device=inputs.device)
    company = places.roll(1).clamp(max=max(n - 2, 0))  # one row twice, one not at all, all elsewhere
    later = places.flip(0) // 2 * 2 % n
    rows = adapter.begin(inputs.index_select(1 if sequence else 0, company), sequence)
    found = list(zip(*adapter.advance(rows, min(chunk, timesteps)), strict=True))
    started = len(found)
    if timesteps > started:
        adapter.keep(rows, later)
    while len(found) < timesteps:
        found.extend(zip(*adapter.advance(rows, min(chunk, timesteps - len(found))), strict=True))
    wanted = [
        tuple(output.index_select(0, company if t < started else company[later]) for output in outputs)
        for t, outputs in enumerate(expected)
    ]
    return _compare("alone", wanted, found)


def _compare(name: str, expected: list[Outputs], found: list[Outputs]) -> CheckResult:
    agree, error = None, 0.0
    for left, right in zip(expected, found, strict=True):
        for a, b in zip(left, right, strict=True):
            same = rows_agree(a, b)
            agree = same if agree is None else agree & same
            error = max(error, largest_difference(a[same], b[same]))
    assert agree is not None
    return CheckResult(name, agree.numel(), int((~agree).sum()), error)


def _in_float64(
    check: Check, adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int, first: CheckResult
) -> CheckResult:
    """Repeat a failed check on a copy in float64; refuse the model if it fails there too."""
    reason, remedy = _REFUSALS[first.name]
    seen = f"{first.disagreeing} of {first.rows} rows differ"
    try:
        exact = copy.deepcopy(adapter)
        exact.model.double()
        again = check(exact, inputs.double() if inputs.is_floating_point() else inputs, sequence, timesteps, chunk)
    except Exception as error:
        again, seen = None, f"{seen}; it cannot be repeated in float64 ({type(error).__name__})"
    if again is None or again.disagreeing:
        raise ModelRefused(f"{type(adapter.model).__name__} {reason} ({first.name} check: {seen}).", remedy)
    note = f"{first.disagreeing} row(s) differ in float32 by rounding at a spike threshold; all are equal in float64"
    return CheckResult(first.name, first.rows, first.disagreeing, first.error, note)
