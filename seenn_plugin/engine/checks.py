"""Is this model steppable, row-independent, repeatable? Checked on the caller's own first rows.

Each check compares full runs of a few rows. If float rounding moves a membrane potential across its threshold in one
run and not in the other, whole rows differ although nothing is wrong. A check that fails is therefore repeated on a
copy of the model in float64, where this does not happen, before the model is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapter.contract import Adapter, Rows
from ..errors import ModelRefused, SeennError
from ..inputs import InputBatch
from ..readout import Outputs
from ..state.hooks import OWN_HOOK
from ..state.values import map_tensors, random_state
from ..stepping.aggregation import AGGREGATES
from ..tolerance import largest_difference, rows_agree
from .trace import advance_to

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


def run_checks(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> list[CheckResult]:
    """Run every check on ``inputs``, from :func:`~seenn_plugin.discovery.probing.check_rows`.

    Raises:
        ModelRefused: naming the check, the difference seen, and what to do.
    """
    results = []
    for check in (_repeatable, _causal, _whole, _alone):
        result = check(adapter, inputs, timesteps, chunk)
        if result is not None and result.disagreeing:
            result = _in_float64(check, adapter, inputs, timesteps, chunk, result)
        if result is not None:
            results.append(result)
    return results


Check = Callable[[Adapter, InputBatch, int, int], CheckResult | None]

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


def _repeatable(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> CheckResult:
    """Two runs are equal, and no timestep draws random numbers, which would depend on the other active rows.

    Both runs start from one seed, so that an encoding that is drawn once, at the start, and kept with the row passes.
    """
    first, first_rows = _run(adapter, inputs, timesteps, chunk)
    again_rows = _begin(adapter, inputs)
    before = random_state(inputs.values)
    again = advance_to(adapter, again_rows, timesteps, chunk)
    result = _compare(
        "repeatable",
        [*_flat(first), *adapter.state_tensors(first_rows)],
        [*_flat(again), *adapter.state_tensors(again_rows)],
    )
    if not torch.equal(before, random_state(inputs.values)):
        return replace(result, disagreeing=result.rows, note="its timesteps draw random numbers")
    return result


def _whole(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> CheckResult | None:
    torch.manual_seed(_SEED)
    own = adapter.reference(inputs, timesteps)
    if own is None:
        return None
    stepped, rows = _run(adapter, inputs, own.timesteps, chunk)
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
        # State of another shape is a history, as long as the run or the chunk, and cannot be compared.
        pairs = [(a, b) for a, b in zip(own.state, adapter.state_tensors(rows), strict=True) if a.shape == b.shape]
        expected, found = [*expected, *(a for a, _ in pairs)], [*found, *(b for _, b in pairs)]
    return _compare("whole", expected, found)


def _causal(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> CheckResult | None:
    """The answers up to timestep t do not change when the input after t does."""
    early = chunk * max(1, timesteps // chunk // 2)
    if not inputs.sequence or early >= timesteps:
        return None
    other = inputs.values.clone()
    other[early:] = inputs.values[early:].flip(0, 1)
    other[-1] = inputs.values[0].flip(0)
    (expected, _), (found, _) = (_run(adapter, x, early, chunk) for x in (inputs, inputs.with_values(other)))
    return _compare("causal", _flat(expected), _flat(found))


def _alone(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> CheckResult:
    """Single rows, rows in a different batch from the start, and half of these after a chunk.

    At the start one half of the rows is replaced by copies of the other, so that the batch keeps its size and the
    kernels their algorithms. Operations that count rows or sum over them show when half of the rows have been dropped.
    Rows that are encoded at random at the start must keep their place: only such rows are compared then.
    """
    n = len(inputs)
    expected, expected_rows = _run(adapter, inputs, timesteps, chunk)
    at_random = _draws_at_start(adapter, inputs)
    later = (3 * torch.arange((n + 1) // 2, device=inputs.device) + 1) % n
    half = torch.arange(n, device=inputs.device) % ((n + 1) // 2)
    found: list[Tensor] = []
    wanted: list[Tensor] = []
    compared: list[Tensor] = []  # for each pair, whether its rows count
    for neighbours in (half, (n - 1 - half).flip(0) if at_random else n - 1 - half):
        in_place = neighbours == torch.arange(n, device=inputs.device)
        rows = _begin(adapter, inputs.select(neighbours))
        made = list(zip(*adapter.advance(rows, min(chunk, timesteps)), strict=True))
        started = len(made)
        adapter.keep(rows, later)
        while len(made) < timesteps:
            made.extend(zip(*adapter.advance(rows, min(chunk, timesteps - len(made))), strict=True))
        for t, outputs in enumerate(expected):
            chosen = torch.arange(n, device=inputs.device) if t < started else later
            wanted += [output.index_select(0, neighbours[chosen]) for output in outputs]
            compared += [in_place[chosen] | (not at_random)] * len(outputs)
        state = [tensor.index_select(0, neighbours[later]) for tensor in adapter.state_tensors(expected_rows)]
        wanted += state
        compared += [in_place[later] | (not at_random)] * len(state)
        found += [*_flat(made), *adapter.state_tensors(rows)]
    for row in range(0 if at_random else n):
        try:
            single, single_rows = _run(adapter, inputs.narrow(row, 1), timesteps, chunk)
        except SeennError:
            raise
        except Exception as error:
            return CheckResult("alone", n, n, 0.0, f"a row cannot run by itself: {type(error).__name__}: {error}")
        one = [*_flat(single), *adapter.state_tensors(single_rows)]
        wanted += [t[row : row + 1] for t in (*_flat(expected), *adapter.state_tensors(expected_rows))]
        compared += [torch.ones(1, dtype=torch.bool, device=inputs.device)] * len(one)
        found += one
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return CheckResult("alone", n, n, 0.0)
    pairs = zip(wanted, found, compared, strict=True)
    wanted, found = map(list, zip(*((left[rows], right[rows]) for left, right, rows in pairs), strict=True))
    return _compare("alone", wanted, found)


def _run(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> tuple[list[Outputs], Rows]:
    rows = _begin(adapter, inputs)
    return advance_to(adapter, rows, timesteps, chunk), rows


def _begin(adapter: Adapter, inputs: InputBatch) -> Rows:
    torch.manual_seed(_SEED)
    return adapter.begin(inputs)


def _draws_at_start(adapter: Adapter, inputs: InputBatch) -> bool:
    torch.manual_seed(_SEED)
    before = random_state(inputs.values)
    adapter.begin(inputs)
    return not torch.equal(before, random_state(inputs.values))


def _flat(steps: Iterable[Outputs]) -> list[Tensor]:
    return [output for outputs in steps for output in outputs]


def _compare(name: str, expected: Sequence[Tensor], found: Sequence[Tensor]) -> CheckResult:
    """Compare tensors with rows on dimension 0: outputs of every timestep, and all state at the end.

    Membrane potentials show differences that spikes hide.
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
    check: Check, adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int, first: CheckResult
) -> CheckResult:
    """Repeat a failed check on a copy in float64; refuse the model if it fails there too."""
    reason, remedy = _REFUSALS[first.name]
    seen = first.note or f"{first.disagreeing} of {first.rows} rows differ"
    try:
        exact = copy.deepcopy(adapter)
        for module in exact.model.double().modules():  # snnTorch's spikes are float32 in a float64 model too
            module._forward_pre_hooks[OWN_HOOK] = _to_float64
        values = inputs.values.double() if inputs.values.is_floating_point() else inputs.values
        again = check(exact, inputs.with_values(values), timesteps, chunk)
    except Exception as error:
        again, seen = None, f"{seen}; it cannot be repeated in float64 ({type(error).__name__})"
    if again is None or again.disagreeing:
        raise ModelRefused(f"{type(adapter.model).__name__} {reason} ({first.name} check: {seen}).", remedy)
    note = f"{first.disagreeing} row(s) differ in float32 by rounding at a spike threshold; all are equal in float64"
    return CheckResult(first.name, first.rows, first.disagreeing, first.error, note)


def _to_float64(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
