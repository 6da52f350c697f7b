"""The first inspection of a model on a kind of input: timesteps, readout, classes, checks. Made once for each kind."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

from torch import Tensor, nn

from ..adapter.contract import Adapter
from ..discovery.probing import check_rows
from ..errors import InputError, ModelRefused
from ..inputs import InputBatch, refuse_training_mode
from ..policies import Policy
from ..policies.base import start_rows
from ..readout import Outputs, Readout, SilentOutputReadout, SumReadout, choose_readout, spike_lead
from ..state.isolation import isolated
from .active_batch import RunConfig
from .checks import Checked, run_checks
from .chunking import fastest_chunk
from .trace import advance_to, read_all

_CALLER = 6  # of EarlyExitWrapper.infer, as frames above
_OFFER = (
    "To see how early it could have answered, pass full_run=True: all timesteps are computed and the exits picked "
    "afterwards, which saves nothing."
)


# A timestep of a network with little state takes less time than what is done around it. In long runs several are
# therefore made at a time, so that a row overshoots its exit by less than 1 / _SHARE of T.
_SMALL_ROW: Final = 64 * 1024  # bytes of state
_SHARE: Final = 32
_LONGEST: Final = 8
_CHUNK_REASON: Final = ", because a timestep takes less time than what is done around it"


@dataclass(frozen=True)
class Inspection:
    """What was found out about a model on one kind of input.

    Attributes:
        timesteps: T.
        readout: the readout to use.
        readout_reason: why, in words.
        lead: of spikes; see :func:`~seenn_plugin.readout.spike_lead`.
        no_logits: logits of no rows, ``[0, C]``: number of classes, dtype and device.
        first_steps: outputs of one row at its first timesteps, each ``[1, ...]``.
        chunk: timesteps computed at a time.
        chunk_reason: why, in words; empty if the caller has chosen it.
        checks: the results of the checks, in words.
        firing: the firing rate of every neuron layer during the checks, by name.
        row_bytes: memory that the state of one row takes.
    """

    timesteps: int
    readout: Readout
    readout_reason: str
    lead: float | None
    no_logits: Tensor
    first_steps: tuple[Outputs, ...]
    chunk: int
    chunk_reason: str
    checks: tuple[str, ...]
    firing: dict[str, float]
    row_bytes: int
    _settled: list[tuple[Policy, Policy]] = field(default_factory=list, repr=False, compare=False)

    @property
    def classes(self) -> int:
        return self.no_logits.shape[1]

    def settled(self, policy: Policy) -> Policy:
        """``policy`` with nothing left open, for this model and kind of input.

        The result for the last policy is kept: choosing a temperature takes longer than a timestep of a small network.
        """
        for asked, settled in self._settled:
            if asked is policy:
                return settled
        settled = policy.settle(self.classes, self.lead)
        self._settled[:] = [(policy, settled)]
        return settled


@dataclass(frozen=True)
class Settings:
    """What the caller has chosen.

    Attributes:
        readout: the readout; ``None`` to choose it.
        policy: decides when rows stop. Matters for ``chunk="auto"`` only.
        chunk: timesteps computed at a time; ``"auto"`` to measure, ``None`` for what costs little.
        check: whether to run the checks.
        slots: the most rows that are active at a time.
        timesteps_given: whether the timesteps of the input are the caller's choice, not a number found in the model.
    """

    readout: Readout | None
    policy: Policy
    chunk: int | Literal["auto"] | None
    check: bool
    slots: int
    timesteps_given: bool


class Inspector:
    """Inspects one model, and remembers what it has found.

    Args:
        adapter: the adapter of the model.
    """

    def __init__(self, adapter: Adapter) -> None:
        self._adapter = adapter
        self._found: dict[Any, Inspection] = {}
        self.readout_changes = 0

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_found": {}}  # a copy of the model is another model

    def inspect(self, inputs: InputBatch, settings: Settings) -> Inspection:
        """What is known of the model on this kind of input; found on the first batch of the kind.

        Raises:
            InputError: the input does not fit.
            ModelRefused: the model cannot be stepped row by row with the right answer.
        """
        adapter = self._adapter
        key = self._key(inputs, settings)
        refuse_training_mode(adapter.model, adapter.modules)
        found = self._found.get(key)
        if found is None:
            try:
                found = self._found[key] = self.inspect_anew(inputs, settings)
            except ModelRefused as error:
                if not adapter.skips_finished_rows:
                    raise
                raise ModelRefused(error.reason, f"{error.remedy} {_OFFER}") from error
            except InputError as error:
                # The model raised on the few rows of the inspection. Does it run on these?
                if error.__cause__ is None or not adapter.runs_whole(inputs):
                    raise
                raise ModelRefused(
                    f"{type(adapter.model).__name__} runs on a batch of {len(inputs)} rows, and not on one of another "
                    f"size: {error}",
                    "Read the batch size from the input, and keep parameters from meeting the dimension of the rows.",
                ) from error
        # What was found holds for sequences of any length.
        return replace(found, timesteps=inputs.length) if inputs.length is not None else found

    def output_fires(self, inputs: InputBatch, settings: Settings) -> None:
        """Read the spike count from here on, on this kind of input: the output neurons have spiked after all."""
        self.readout_changes += 1
        key = self._key(inputs, settings)
        found = self._found[key]
        reason = "the outputs are spikes (0 or 1), the first of which came after the first batch: their count"
        readout = SumReadout()
        lead = spike_lead(readout, [(found.no_logits.new_zeros(1, 1),)] * found.timesteps)
        self._found[key] = replace(found, readout=readout, readout_reason=reason, lead=lead, _settled=[])

    def _key(self, inputs: InputBatch, settings: Settings) -> Any:
        return (self._adapter.structure_version(), inputs.kind, settings.chunk, settings.readout)

    def inspect_anew(self, inputs: InputBatch, settings: Settings) -> Inspection:
        """:meth:`inspect` without looking for an earlier result, and without remembering this one."""
        adapter = self._adapter
        refuse_training_mode(adapter.model, adapter.model.modules())
        # A model that is run whole may need a certain number of rows, and need not pass any check.
        whole = not adapter.skips_finished_rows
        rows = inputs if whole and inputs.values.numel() else check_rows(inputs)
        check = settings.check and not whole
        timesteps = self._timesteps(inputs, settings.timesteps_given)
        with isolated(adapter.model):
            row_bytes = 0 if whole else _row_bytes(adapter, rows)
            chunk = settings.chunk if isinstance(settings.chunk, int) else 1
            if settings.chunk is None and row_bytes <= _SMALL_ROW and adapter.makes_chunks(rows):
                chunk = max(1, min(_LONGEST, timesteps // _SHARE))
            names = {module: name or "the model itself" for name, module in adapter.model.named_modules()}
            checked = run_checks(adapter, rows, timesteps, chunk) if check else None
            steps = checked.steps if checked else advance_to(adapter, adapter.begin(rows), timesteps, chunk)
            readout, reason = choose_readout(steps, adapter.answer(rows), settings.readout)
            if isinstance(readout, SilentOutputReadout) and len(inputs):  # do they spike on any row of the caller's?
                more = inputs.narrow(0, min(settings.slots, len(inputs)))
                steps_of_more = advance_to(adapter, adapter.begin(more), timesteps, chunk)
                readout, reason = choose_readout(steps_of_more, adapter.answer(rows), settings.readout)
            found = Inspection(
                timesteps=timesteps,
                readout=readout,
                readout_reason=reason,
                lead=spike_lead(readout, steps),
                no_logits=read_all(readout, steps)[0, :0],
                first_steps=tuple(tuple(output[:1].clone() for output in outputs) for outputs in steps[:2]),
                chunk=chunk,
                chunk_reason=_CHUNK_REASON if settings.chunk is None and chunk > 1 else "",
                checks=tuple(checked.lines()) if checked else (),
                firing=_rates(checked, names) if checked else {},
                row_bytes=row_bytes,
            )
            if settings.chunk == "auto" and not whole and inputs.values.numel():
                found = self._with_fastest_chunk(found, inputs, settings)
                if check and found.chunk > 1:
                    run_checks(adapter, rows, timesteps, found.chunk)
        if checked and timesteps > 1:  # no timestep comes after the first: what it leaves in a neuron is never used
            _warn_of_unseen(adapter, checked, names)
        return found

    def _with_fastest_chunk(self, found: Inspection, inputs: InputBatch, settings: Settings) -> Inspection:
        some = inputs.narrow(0, min(settings.slots, len(inputs)))
        policy = found.settled(settings.policy)
        state = start_rows(policy, some, found.timesteps, found.classes)
        config = RunConfig(self._adapter, found.readout, policy, found.timesteps)
        chunk, seconds = fastest_chunk(config, state, some)
        tried = ", ".join(f"{k}: {1e3 * s / len(some):.2f}" for k, s in seconds.items())
        return replace(found, chunk=chunk, chunk_reason=f", as the fastest on the first batch (ms per row: {tried})")

    def _timesteps(self, inputs: InputBatch, given: bool) -> int:
        """T for this input: the length of a sequence, the caller's choice, or what the model makes by itself.

        A number in an attribute of the model is used only if the model leaves T to its users.
        """
        if inputs.length is not None:
            return inputs.length
        own, asked = self._adapter.own_timesteps(inputs), inputs.timesteps
        if own is None and asked is None:
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        if own is not None and not given:
            return own
        if own is not None and asked is not None and asked > own:
            raise InputError(
                f"timesteps={asked}, and {type(self._adapter.model).__name__} makes {own} by itself; make the model "
                "longer, or leave timesteps out."
            )
        return asked or own or 0


def _row_bytes(adapter: Adapter, inputs: InputBatch) -> int:
    rows = adapter.begin(inputs)
    adapter.advance(rows)
    return sum(tensor.numel() * tensor.element_size() for tensor in adapter.state_tensors(rows)) // len(inputs)


def _rates(checked: Checked, names: dict[nn.Module, str]) -> dict[str, float]:
    """The firing rates of the layers that were called, in the order of the model."""
    called = {module: layer for module, layer in checked.firing.items() if layer.answers}
    return {name: called[module].rate for module, name in names.items() if module in called}


def _warn_of_unseen(adapter: Adapter, checked: Checked, names: dict[nn.Module, str]) -> None:
    """Warn of neuron layers that could not be made to fire, or to rest, in the checks."""
    for did, neurons in (("never fired", checked.silent), ("fired at every timestep", checked.saturated)):
        layers = [names[neuron] for neuron in neurons if adapter.can_fire(neuron)]
        if layers:
            warnings.warn(
                f"{len(layers)} neuron layer(s) of {type(adapter.model).__name__} {did} in the checks, however strong "
                f"their input was made: {', '.join(sorted(layers))}. What they do otherwise has not been checked.",
                UserWarning,
                stacklevel=_CALLER,
            )
