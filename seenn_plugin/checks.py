"""Is this model steppable, row-independent, repeatable? Looked at on the caller's own first rows.

Each check compares full runs of a handful of rows. Where float rounding pushes a membrane potential over its
threshold in one run and not in the other, whole rows differ without anything being wrong: a check that fails is
therefore repeated on a copy of the model in float64, where this does not happen, before the model is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from .adapter import Adapter, Rows
from .engine.trace import advance_to
from .errors import ModelRefused, SeennError
from .module_state import random_state, to_float64
from .readout import Outputs
from .stepper import AGGREGATES
from .tolerance import largest_difference, rows_agree

_SEED: Final = 20230401


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
    for check in (_repeatable, _causal, _whole, _alone):
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
    "causal": (
        "answers an early timestep differently when later frames of the input change",
        "It looks at later timesteps (attention, normalisation or a mean over time, a loop that runs backwards); use "
        "layers that look at the past only.",
    ),
    "alone": (
        "answers a row differently when other rows share its batch, or leave it",
        "Rows must not depend on each other: remove batch statistics and operations across dimension 0.",
    ),
}


def _repeatable(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    """Two runs are equal, and no timestep draws random numbers: those of a row would depend on who is still there.

    Both runs start from one seed, so that an encoding that is drawn once, at the start, and kept with the row may pass.
    """
    first, first_rows = _run(adapter, inputs, sequence, timesteps, chunk)
    again_rows = _begin(adapter, inputs, sequence)
    before = random_state(inputs)
    again = advance_to(adapter, again_rows, timesteps, chunk)
    result = _compare(
        "repeatable", [*_flat(first), *adapter.inspect(first_rows)], [*_flat(again), *adapter.inspect(again_rows)]
    )
    if not torch.equal(before, random_state(inputs)):
        return replace(result, disagreeing=result.rows, note="its timesteps draw random numbers")
    return result


def _whole(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult | None:
    torch.manual_seed(_SEED)
    own = adapter.reference(inputs, sequence, timesteps)
    if own is None:
        return None
    stepped, rows = _run(adapter, inputs, sequence, own.timesteps, chunk)
    expected, found = [], []
    for position, (output, made_by) in enumerate(own.outputs):
        steps = [(outputs[position],) for outputs in stepped]
        if made_by == "stack":
            expected += list(output)
            found += _flat(steps)
        else:
            expected.append(output)
            found.append(AGGREGATES[made_by](torch.stack([outputs[0] for outputs in steps])).to(output))
    if own.state is not None:
        # A state of another shape is a history, which is as long as the run or the chunk: nothing to compare.
        pairs = [(a, b) for a, b in zip(own.state, adapter.inspect(rows), strict=True) if a.shape == b.shape]
        expected, found = [*expected, *(a for a, _ in pairs)], [*found, *(b for _, b in pairs)]
    return _compare("whole", expected, found)


def _causal(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult | None:
    """The answers up to timestep t do not change when the input after t does."""
    early = chunk * max(1, timesteps // chunk // 2)
    if not sequence or early >= timesteps:
        return None
    other = inputs.clone()
    other[early:] = inputs[early:].flip(0, 1)
    other[-1] = inputs[0].flip(0)
    (expected, _), (found, _) = (_run(adapter, x, sequence, early, chunk) for x in (inputs, other))
    return _compare("causal", _flat(expected), _flat(found))


def _alone(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> CheckResult:
    """Rows by themselves, rows in another company from the start, and half of them in yet another after a chunk.

    At the start one half of the rows is exchanged for copies of the other, so that the batch keeps its size and the
    arithmetic its algorithms; what counts rows or sums over them shows when half of them have left. Rows that are
    encoded at random at the start must keep their place for their encoding: only such are compared then.
    """
    n = inputs.shape[1 if sequence else 0]
    expected, expected_rows = _run(adapter, inputs, sequence, timesteps, chunk)
    at_random = _draws_at_start(adapter, inputs, sequence)
    later = (3 * torch.arange((n + 1) // 2, device=inputs.device) + 1) % n
    half = torch.arange(n, device=inputs.device) % ((n + 1) // 2)
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    compared: list[Tensor] = []  # for each pair, whether its rows count
    for company in (half, (n - 1 - half).flip(0) if at_random else n - 1 - half):
        in_place = company == torch.arange(n, device=inputs.device)
        rows = _begin(adapter, inputs.index_select(1 if sequence else 0, company), sequence)
        made = list(zip(*adapter.advance(rows, min(chunk, timesteps)), strict=True))
        started = len(made)
        adapter.keep(rows, later)
        while len(made) < timesteps:
            made.extend(zip(*adapter.advance(rows, min(chunk, timesteps - len(made))), strict=True))
        for t, outputs in enumerate(expected):
            chosen = torch.arange(n, device=inputs.device) if t < started else later
            wanted += [output.index_select(0, company[chosen]) for output in outputs]
            compared += [in_place[chosen] | (not at_random)] * len(outputs)
        state = [tensor.index_select(0, company[later]) for tensor in adapter.inspect(expected_rows)]
        wanted += state
        compared += [in_place[later] | (not at_random)] * len(state)
        found += [*_flat(made), *adapter.inspect(rows)]
    for row in range(0 if at_random else n):
        try:
            single, single_rows = _run(adapter, _row(inputs, sequence, row), sequence, timesteps, chunk)
        except SeennError:
            raise
        except Exception as error:
            return CheckResult("alone", n, n, 0.0, f"a row cannot run by itself: {type(error).__name__}: {error}")
        one = [*_flat(single), *adapter.inspect(single_rows)]
        wanted += [t[row : row + 1] for t in (*_flat(expected), *adapter.inspect(expected_rows))]
        compared += [torch.ones(1, dtype=torch.bool, device=inputs.device)] * len(one)
        found += one
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return CheckResult("alone", n, n, 0.0)
    pairs = zip(wanted, found, compared, strict=True)
    wanted, found = map(list, zip(*((left[rows], right[rows]) for left, right, rows in pairs), strict=True))
    return _compare("alone", wanted, found)


def _row(inputs: Tensor, sequence: bool, row: int) -> Tensor:
    return inputs.narrow(1 if sequence else 0, row, 1)


def _run(adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int) -> tuple[list[Outputs], Rows]:
    rows = _begin(adapter, inputs, sequence)
    return advance_to(adapter, rows, timesteps, chunk), rows


def _begin(adapter: Adapter, inputs: Tensor, sequence: bool) -> Rows:
    torch.manual_seed(_SEED)
    return adapter.begin(inputs, sequence)


def _draws_at_start(adapter: Adapter, inputs: Tensor, sequence: bool) -> bool:
    torch.manual_seed(_SEED)
    before = random_state(inputs)
    adapter.begin(inputs, sequence)
    return not torch.equal(before, random_state(inputs))


def _flat(steps: Iterable[Outputs]) -> list[Tensor]:
    return [output for outputs in steps for output in outputs]


def _compare(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> CheckResult:
    """Compare tensors with rows on dimension 0: outputs of every timestep, and all that the rows carry at the end.

    Membrane potentials show what spikes hide.
    """
    n = max(tensor.shape[0] for tensor in expected)
    agree = torch.ones(n, dtype=torch.bool, device=expected[0].device)
    error = 0.0
    if [tensor.shape for tensor in expected] != [tensor.shape for tensor in found]:
        return CheckResult(name, n, n, error)
    for left, right in zip(expected, found, strict=True):
        same = rows_agree(left, right)
        agree[: same.numel()] &= same
        error = max(error, largest_difference(left[same], right[same]))
    return CheckResult(name, n, int((~agree).sum()), error)


def _in_float64(
    check: Check, adapter: Adapter, inputs: Tensor, sequence: bool, timesteps: int, chunk: int, first: CheckResult
) -> CheckResult:
    """Repeat a failed check on a copy in float64; refuse the model if it fails there too."""
    reason, remedy = _REFUSALS[first.name]
    seen = first.note or f"{first.disagreeing} of {first.rows} rows differ"
    try:
        exact = copy.deepcopy(adapter)
        for module in exact.model.double().modules():
            module.register_forward_pre_hook(to_float64)  # snnTorch's spikes are float32 whatever the model is
        again = check(exact, inputs.double() if inputs.is_floating_point() else inputs, sequence, timesteps, chunk)
    except Exception as error:
        again, seen = None, f"{seen}; it cannot be repeated in float64 ({type(error).__name__})"
    if again is None or again.disagreeing:
        raise ModelRefused(f"{type(adapter.model).__name__} {reason} ({first.name} check: {seen}).", remedy)
    note = f"{first.disagreeing} row(s) differ in float32 by rounding at a spike threshold; all are equal in float64"
    return CheckResult(first.name, first.rows, first.disagreeing, first.error, note)
