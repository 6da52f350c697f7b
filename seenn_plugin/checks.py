"""Is this model steppable, row-independent, repeatable? Looked at on the caller's own first rows.

Each check compares full runs of a handful of rows. Where float rounding pushes a membrane potential over its
threshold in one run and not in the other, whole rows differ without anything being wrong: a check that fails is
therefore repeated on a copy of the model in float64, where this does not happen, before the model is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .adapter import Adapter, Rows
from .engine.trace import advance_to
from .errors import ModelRefused
from .module_state import map_tensors
from .readout import Outputs
from .tolerance import largest_difference, rows_agree


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


def run_checks(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> list[CheckResult]:
    """Run every check on ``inputs``, from :func:`~seenn_plugin.probing.check_rows`.

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
        "Its early answers depend on later timesteps (attention or normalisation over time, parallel neurons), or it "
        "keeps state where it cannot be followed; use neurons and layers that look at the past only, and keep state in "
        "the framework's neurons.",
    ),
    "alone": (
        "answers a row differently when other rows share its batch, or leave it",
        "Rows must not depend on each other: remove batch statistics and operations across dimension 0.",
    ),
}


def _repeatable(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    (first, first_rows), (again, again_rows) = (_run(adapter, inputs, sequence, timesteps, chunk) for _ in range(2))
    return _compare(
        "repeatable", [*_flat(first), *adapter.inspect(first_rows)], [*_flat(again), *adapter.inspect(again_rows)]
    )


def _whole(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult | None:
    own = adapter.reference(inputs, sequence, timesteps)
    if own is None:
        return None
    outputs, state = own
    stepped, rows = _run(adapter, inputs, sequence, timesteps, chunk)
    # A state of another shape is a history, which is as long as the run or the chunk: nothing to compare.
    pairs = [(a, b) for a, b in zip(state, adapter.inspect(rows), strict=True) if a.shape == b.shape]
    return _compare(
        "whole",
        [*_flat(zip(*outputs, strict=True)), *(a for a, _ in pairs)],
        [*_flat(stepped), *(b for _, b in pairs)],
    )


def _alone(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    """Rows in another company from the start, and half of them in yet another after the first chunk.

    At the start rows are exchanged for copies of others, so that the batch keeps its size and the arithmetic its
    algorithms; what counts rows or sums over them shows when half of them have left.
    """
    n = inputs.shape[1 if sequence else 0]
    expected, expected_rows = _run(adapter, inputs, sequence, timesteps, chunk)
    company = torch.arange(n, device=inputs.device).flip(0)
    company[-1] = company[0]  # one row is there twice, one is missing, and nobody has the neighbours it had
    later = (3 * torch.arange((n + 1) // 2, device=inputs.device) + 1) % n
    rows = adapter.begin(inputs.index_select(1 if sequence else 0, company), sequence)
    found = list(zip(*adapter.advance(rows, min(chunk, timesteps)), strict=True))
    started = len(found)
    adapter.keep(rows, later)
    while len(found) < timesteps:
        found.extend(zip(*adapter.advance(rows, min(chunk, timesteps - len(found))), strict=True))
    wanted = [
        output.index_select(0, company if t < started else company[later])
        for t, outputs in enumerate(expected)
        for output in outputs
    ]
    wanted += [state.index_select(0, company[later]) for state in adapter.inspect(expected_rows)]
    return _compare("alone", wanted, [*_flat(found), *adapter.inspect(rows)])


def _run(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> tuple[list[Outputs], Rows]:
    rows = adapter.begin(inputs, sequence)
    return advance_to(adapter, rows, timesteps, chunk), rows


def _flat(steps: Iterable[Outputs]) -> list[Tensor]:
    return [output for outputs in steps for output in outputs]


def _compare(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> CheckResult:
    """Compare tensors with rows on dimension 0: outputs of every timestep, and all that the rows carry at the end.

    Membrane potentials show what spikes hide.
    """
    agree = torch.ones(expected[0].shape[0], dtype=torch.bool, device=expected[0].device)
    error = 0.0
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return CheckResult(name, agree.numel(), agree.numel(), error)
    for left, right in zip(expected, found, strict=True):
        same = rows_agree(left, right)
        agree[: same.numel()] &= same
        error = max(error, largest_difference(left[same], right[same]))
    return CheckResult(name, agree.numel(), int((~agree).sum()), error)


def _to_float64(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)


def _in_float64(
    check: Check, adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int, first: CheckResult
) -> CheckResult:
    """Repeat a failed check on a copy in float64; refuse the model if it fails there too."""
    reason, remedy = _REFUSALS[first.name]
    seen = f"{first.disagreeing} of {first.rows} rows differ"
    try:
        exact = copy.deepcopy(adapter)
        for module in exact.model.double().modules():
            module.register_forward_pre_hook(_to_float64)  # snnTorch's spikes are float32 whatever the model is
        again = check(exact, inputs.double() if inputs.is_floating_point() else inputs, sequence, timesteps, chunk)
    except Exception as error:
        again, seen = None, f"{seen}; it cannot be repeated in float64 ({type(error).__name__})"
    if again is None or again.disagreeing:
        raise ModelRefused(f"{type(adapter.model).__name__} {reason} ({first.name} check: {seen}).", remedy)
    note = f"{first.disagreeing} row(s) differ in float32 by rounding at a spike threshold; all are equal in float64"
    return CheckResult(first.name, first.rows, first.disagreeing, first.error, note)
