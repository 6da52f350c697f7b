"""Is this model steppable, causal, row-independent, repeatable? Checked on the caller's first rows and made-up ones.

Each check compares runs of a few rows. The runs are made twice: with the spikes of the model, and with driven neurons
(:class:`~seenn_plugin.discovery.driven_neurons.DrivenNeurons`), because rare spikes hide what is computed between the
neurons.

If float rounding moves a membrane potential across its threshold in one run and not in the other, whole rows differ
although nothing is wrong. A check that fails is therefore repeated on a copy of the model in float64, where this does
not happen, before the model is refused.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapter.contract import Adapter, Reference
from ..discovery.driven_neurons import DrivenNeurons, Firing
from ..errors import ModelRefused, SeennError
from ..inputs import InputBatch
from ..readout import Outputs
from ..state.hooks import OWN_HOOK
from ..state.values import map_tensors
from ..stepping.aggregation import AGGREGATES
from ..tolerance import largest_difference, rows_agree
from .check_runs import CheckRuns

_REPEATED: Final = 2  # timesteps
_ALONE: Final = 8


@dataclass(frozen=True)
class CheckResult:
    """Outcome of one check.

    Attributes:
        name: what was checked.
        rows: rows compared.
        disagreeing: rows that differed by more than the tolerance (in float32, at a spike threshold).
        error: largest absolute difference seen in rows that agree.
        note: what else there is to say.
    """

    name: str
    rows: int
    disagreeing: int
    error: float
    note: str = ""

    def __str__(self) -> str:
        agreed = f"{self.rows - self.disagreeing} of {self.rows} rows equal, largest difference {self.error:.1e}"
        return f"{self.name}: {agreed}{f' ({self.note})' if self.note else ''}"


@dataclass(frozen=True)
class Checked:
    """What the checks found.

    Attributes:
        results: of the checks that were made.
        remarks: what could not be checked, and why.
        steps: the outputs of every timestep of the rows compared.
        firing: how often each neuron layer fired on these rows.
        silent: layers that did not fire, not even driven.
        saturated: layers that fired at every timestep, driven too.
    """

    results: tuple[CheckResult, ...]
    remarks: tuple[str, ...]
    steps: list[Outputs]
    firing: dict[nn.Module, Firing]
    silent: tuple[nn.Module, ...]
    saturated: tuple[nn.Module, ...]

    def lines(self) -> list[str]:
        """One line for each result and remark."""
        return [*map(str, self.results), *self.remarks]


def run_checks(adapter: Adapter, inputs: InputBatch, timesteps: int, chunk: int) -> Checked:
    """Run every check on ``inputs``, from :func:`~seenn_plugin.discovery.probing.check_rows`.

    Raises:
        ModelRefused: naming the check, the difference seen, and what to do.
    """
    runs = CheckRuns(adapter, inputs, timesteps, chunk)
    results = _made([_repeatable, _causal, _whole, _alone], runs)
    firing, remarks = runs.firing, []
    silent = {neuron for neuron, layer in firing.items() if layer.silent}
    saturated = {neuron for neuron, layer in firing.items() if layer.saturated}
    if firing:
        driven = DrivenNeurons(firing)
        # The state of layers that fire and rest by themselves was compared already.
        again = CheckRuns(adapter, inputs, timesteps, chunk, driven, compares_state=bool(silent or saturated))
        try:
            again.drive()
            unfit = again.why_unfit()
        except Exception as error:
            unfit = f"{type(adapter.model).__name__} raises {type(error).__name__}: {error}"
        if unfit:
            remarks.append(f"not checked with driven neurons: {unfit}")
        else:
            results += _made([_causal, _whole, _alone], again)
            silent = {neuron for neuron in silent if driven.layers[neuron].silent}
            saturated = {neuron for neuron in saturated if driven.layers[neuron].saturated}
    return Checked(tuple(results), tuple(remarks), runs.base, firing, tuple(silent), tuple(saturated))


Check = Callable[[CheckRuns], CheckResult | None]


def _made(checks: Sequence[Check], runs: CheckRuns) -> list[CheckResult]:
    results = []
    for check in checks:
        result = check(runs)
        if result is not None and result.disagreeing:
            result = _in_float64(check, runs, result)
        if result is not None:
            results.append(replace(result, name=f"{result.name}, driven") if runs.driven else result)
    return results


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


# -- the checks --------------------------------------------------------------------------------------------------------


def _repeatable(runs: CheckRuns) -> CheckResult:
    """Two runs are equal, and no timestep draws random numbers, which would depend on the other active rows.

    Both runs start from one seed, so that an encoding that is drawn once, at the start, and kept with the row passes.
    """
    steps = min(runs.timesteps, max(runs.chunk, _REPEATED))
    again, _ = runs.run(runs.inputs, steps)
    result = _compare("repeatable", _flat(runs.base[:steps]), _flat(again))
    if runs.draws_in_timesteps:
        return replace(result, disagreeing=result.rows, note="its timesteps draw random numbers")
    return result


def _whole(runs: CheckRuns) -> CheckResult | None:
    """The timesteps, made one after the other, give what the model's own run gives."""
    own, chosen = runs.reference
    if own is None:
        return None
    result = _against(own, chosen, runs)
    n = len(runs.inputs)
    if result.disagreeing and len(chosen) < n:  # because of the timesteps, or because of the other rows?
        everyone = torch.arange(n, device=chosen.device)
        same_rows = runs.own_run(everyone)
        assert same_rows is not None
        confirmed = _against(same_rows, everyone, runs)
        return confirmed if confirmed.disagreeing else replace(result, name="alone")
    return result


def _against(own: Reference, chosen: Tensor, runs: CheckRuns) -> CheckResult:
    """Compare the model's own run of the rows at ``chosen`` with :attr:`CheckRuns.base`."""
    stepped, state = runs.base, runs.state(runs.timesteps)
    if own.timesteps != runs.timesteps:
        stepped, rows = runs.run(runs.inputs, own.timesteps)
        state = runs.adapter.state_tensors(rows) if runs.compares_state else []
    stepped = [tuple(output[chosen] for output in outputs) for outputs in stepped]
    state = [tensor[chosen] for tensor in state]
    expected, found = [], []
    for position, (output, made_by) in enumerate(own.outputs):
        steps = [(outputs[position],) for outputs in stepped]
        if made_by == "stack":
            expected += list(output)
            found += _flat(steps)
        else:
            expected.append(output)
            found.append(AGGREGATES[made_by](torch.stack([outputs[0] for outputs in steps])).to(output))
    if own.state is not None and runs.compares_state:
        # State of another shape is a history, as long as the run or the chunk, and cannot be compared.
        pairs = [(a, b) for a, b in zip(own.state, state, strict=True) if a.shape == b.shape]
        expected, found = [*expected, *(a for a, _ in pairs)], [*found, *(b for _, b in pairs)]
    return _compare("whole", expected, found)


def _causal(runs: CheckRuns) -> CheckResult | None:
    """The answers up to timestep t do not change when the input after t does, for every t (of many, some)."""
    if not runs.cuts:
        return None
    if runs.draws_at_start:  # rows must keep their place, so that all have one cut
        middle = runs.cuts[len(runs.cuts) // 2]
        return _causal_at(runs, middle)
    made, present, *_ = runs.regrouped
    n = len(runs.inputs)
    expected, found = [], []
    for t, outputs in enumerate(made[: runs.cuts[-1]]):
        at = {int(row): place for place, row in enumerate(present[t].tolist())}
        places = [at[n + i] for i, cut in enumerate(runs.cuts) if cut > t]
        sources = [runs.source(cut) for cut in runs.cuts if cut > t]
        last = [i for i, cut in enumerate(runs.cuts) if cut > t]
        for own, other in zip(runs.base[t], outputs, strict=True):
            expected.append(_spread(own[sources], last, len(runs.cuts)))
            found.append(_spread(other[places], last, len(runs.cuts)))
    result = _compare("causal", expected, found)
    if result.disagreeing:  # because of the later frames, or because of the other rows?
        for cut in _differing(expected, found, runs.cuts):
            confirmed = _causal_at(runs, cut)
            if confirmed.disagreeing:
                return confirmed
        return replace(result, disagreeing=0, error=0.0)
    after = "every timestep" if runs.every_cut else f"{len(runs.cuts)} of the timesteps"
    return replace(result, note=f"later frames changed after {after}")


def _causal_at(runs: CheckRuns, cut: int) -> CheckResult:
    """The answers of all rows up to ``cut`` with another input afterwards."""
    other, _ = runs.run(runs.with_one_other_future(cut), cut)
    return _compare("causal", _flat(runs.base[:cut]), _flat(other))


def _alone(runs: CheckRuns) -> CheckResult:
    """Rows in a different batch from the start, half of these after a chunk, and a row by itself."""
    n, neighbours = len(runs.inputs), runs.neighbours
    made, present, state, later = runs.regrouped
    wanted: list[Tensor] = []
    found: list[Tensor] = []

    def compare(own: Tensor, other: Tensor, places: Tensor) -> None:
        sources = neighbours[places]
        if runs.draws_at_start:  # only rows that have kept their place are encoded alike
            kept = sources == places
            sources, other = sources[kept], other[kept]
        wanted.append(own.index_select(0, sources))
        found.append(other)

    for own_outputs, outputs, places in zip(runs.base, made, present, strict=False):
        together = places[places < n]
        for own, other in zip(own_outputs, outputs, strict=True):
            compare(own, other[: len(together)], together)
    for own, other in zip(runs.state(runs.window), state, strict=True):
        compare(own, other, later)
    if not runs.draws_at_start:
        steps = min(runs.timesteps, max(runs.chunk, _ALONE))
        row = n - 1 if runs.driven else 0
        try:
            single, _ = runs.run(runs.inputs.narrow(row, 1), steps)
        except SeennError:
            raise
        except Exception as error:
            return CheckResult("alone", n, n, 0.0, f"a row cannot run by itself: {type(error).__name__}: {error}")
        wanted += [output[row : row + 1] for output in _flat(runs.base[:steps])]
        found += _flat(single)
    if [tensor.shape for tensor in wanted] != [tensor.shape for tensor in found]:
        return CheckResult("alone", n, n, 0.0)
    result = _compare("alone", wanted, found)
    return result if runs.window == runs.timesteps else replace(result, note=f"the first {runs.window} timesteps")


# -- comparing ---------------------------------------------------------------------------------------------------------


def _flat(steps: Iterable[Outputs]) -> list[Tensor]:
    return [output for outputs in steps for output in outputs]


def _spread(values: Tensor, places: Sequence[int], n: int) -> Tensor:
    """``values`` at ``places`` of ``n`` rows, zero elsewhere."""
    return values.new_zeros(n, *values.shape[1:]).index_copy_(0, torch.tensor(places, device=values.device), values)


def _differing(expected: Sequence[Tensor], found: Sequence[Tensor], cuts: Sequence[int]) -> list[int]:
    """The cuts of the rows that differ."""
    agree = torch.stack([rows_agree(a, b) for a, b in zip(expected, found, strict=True)]).all(0)
    return [cut for cut, same in zip(cuts, agree.tolist(), strict=True) if not same]


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


def _in_float64(check: Check, runs: CheckRuns, first: CheckResult) -> CheckResult:
    """Repeat a failed check on a copy in float64; refuse the model if it fails there too."""
    reason, remedy = _REFUSALS[first.name]
    seen = first.note or f"{first.disagreeing} of {first.rows} rows differ"
    name = type(runs.adapter.model).__name__
    if runs.driven:
        seen += " when its neurons are driven to fire"
    try:
        exact = copy.deepcopy(runs.adapter)
        for module in exact.model.double().modules():  # snnTorch's spikes are float32 in a float64 model too
            module._forward_pre_hooks[OWN_HOOK] = _to_float64
        values = runs.inputs.values.double() if runs.inputs.values.is_floating_point() else runs.inputs.values
        inputs = runs.inputs.with_values(values)
        exact.begin(inputs)  # so that how it is stepped is found as it was for the model, with its own spikes
        driven = DrivenNeurons(exact.neuron_layers()) if runs.driven else None
        repeated = CheckRuns(exact, inputs, runs.timesteps, runs.chunk, driven, runs.compares_state)
        repeated.drive()
        again = check(repeated)
    except Exception as error:
        again, seen = None, f"{seen}; it cannot be repeated in float64 ({type(error).__name__})"
    if again is None or again.disagreeing:
        raise ModelRefused(f"{name} {reason} ({first.name} check: {seen}).", remedy)
    note = f"{first.disagreeing} row(s) differ in float32 by rounding at a spike threshold; all are equal in float64"
    return CheckResult(first.name, first.rows, first.disagreeing, first.error, note)


def _to_float64(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)
