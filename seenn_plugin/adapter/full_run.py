"""For models that cannot be stepped: all timesteps are computed, and the exits are picked afterwards.

This saves nothing, and every report says so. It answers one question about a network whose early answers depend on
later timesteps, or whose rows depend on each other: how early could it have answered? Used on request only.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from ..errors import InputError, ModelRefused
from ..inputs import InputBatch
from ..state.isolation import isolated
from ..stepping.answer import results
from ..stepping.signature import call_keywords
from ..stepping.spiking_calls import most_from_one_place, recording_calls
from ..stepping.stepper import MISFITS, Outputs
from .contract import Adapter, Rows
from .module_adapter import ModuleAdapter


class FullRun(Adapter):
    """Runs a model whole, as its users do, and returns its outputs timestep by timestep.

    Args:
        adapter: the adapter of the model, which resets and calls it.
    """

    name = "full run"
    skips_finished_rows = False

    def __init__(self, adapter: ModuleAdapter) -> None:
        super().__init__(adapter.model)
        self.adapter = adapter

    @classmethod
    def claims(cls, model: Any) -> bool:
        return False

    def begin(self, inputs: InputBatch) -> Rows:
        return Rows(inputs)

    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        if rows.state is None:
            rows.state = self._outputs(rows.inputs)
        outputs = tuple(output[rows.now : rows.now + steps] for output in rows.state)
        rows.now += steps
        return outputs

    def keep(self, rows: Rows, index: Tensor) -> None:
        rows.keep(index)
        if rows.state is not None:
            rows.state = tuple(output.index_select(1, index) for output in rows.state)

    def place(self, rows: Rows, index: Tensor, inputs: InputBatch) -> NoReturn:
        raise ModelRefused(
            f"new rows cannot join active rows: {self.refill_blocker(rows)}.", "Run them as a batch of their own."
        )

    def refill_blocker(self, rows: Rows) -> str:
        return "the model is run whole"

    def explain(self) -> dict[str, str]:
        return {"stepping": "none: the model is run whole (full_run=True)"}

    def _outputs(self, inputs: InputBatch) -> Outputs:
        """Outputs of all timesteps, each ``[T, n, ...]``."""
        timesteps = inputs.length or inputs.timesteps
        if timesteps is None:
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        n = len(inputs)
        errors = []
        for run in (self._as_sequence, self._in_one_call, self._in_a_loop):
            try:
                with isolated(self.model, observed=True), recording_calls(self.model, self.adapter.neurons) as calls:
                    self.adapter.reset()
                    made = run(inputs, timesteps)
            except (*MISFITS, ModelRefused) as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            stacked = [_time_first(output, timesteps, n) for output in made if output is not None]
            if stacked and stacked[0] is not None:
                return tuple(output for output in stacked if output is not None)
            if most_from_one_place(calls) > 1:  # one call made all timesteps: do not call it for each of them
                break
        raise ModelRefused(
            f"{type(self.model).__name__} does not answer [{timesteps}, {n}, ...], one output for each timestep"
            + (f" ({'; '.join(errors)})." if errors else "."),
            "Exits can be picked from the outputs of all timesteps only: return those.",
        )

    def _as_sequence(self, inputs: InputBatch, timesteps: int) -> list[Tensor | None]:
        if not self.adapter.takes_time():
            raise ValueError("it takes no sequences")
        return results(self.model(inputs.frames(timesteps)), self.adapter.output)

    def _in_one_call(self, inputs: InputBatch, timesteps: int) -> list[Tensor | None]:
        x = inputs.as_given()
        return results(self.model(x, **call_keywords(self.model, x, timesteps)), self.adapter.output)

    def _in_a_loop(self, inputs: InputBatch, timesteps: int) -> list[Tensor | None]:
        outputs, _ = self.adapter.run_own(inputs.frames(timesteps), self.adapter.fresh_arguments())
        return list(outputs)


def _time_first(output: Tensor, timesteps: int, n: int) -> Tensor | None:
    """``[T, n, ...]`` from that or ``[n, T, ...]``; ``None`` if it is neither."""
    if output.ndim >= 3 and output.shape[:2] == (timesteps, n):
        return output
    return output.transpose(0, 1) if output.ndim >= 3 and output.shape[:2] == (n, timesteps) else None
