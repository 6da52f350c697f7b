"""For models that cannot be stepped: all timesteps are computed, and the exits are picked afterwards.

This saves nothing, and every report says so. It is what is left for a network whose early answers look at later
timesteps, or whose rows depend on each other: how early could it have answered? Used on the caller's word only.
"""

from __future__ import annotations

from typing import Any, NoReturn

from torch import Tensor

from .adapter import Adapter, Rows
from .errors import InputError, ModelRefused
from .module_adapter import ModuleAdapter
from .module_state import isolated
from .signature import call_keywords
from .spiking_calls import most_from_one_place, noting_calls
from .stepper import MISFITS, Outputs, results


class FullRun(Adapter):
    """Runs a model whole, as its owner does, and hands out its outputs timestep by timestep.

    Args:
        adapter: the adapter of the model, of which only the reset and the way to call it are used.
    """

    name = "full run"
    saves = False

    def __init__(self, adapter: ModuleAdapter) -> None:
        super().__init__(adapter.model)
        self.adapter = adapter

    @classmethod
    def claims(cls, model: Any) -> bool:
        return False

    def begin(self, inputs: Tensor, sequence: bool) -> Rows:
        return Rows(inputs, sequence)

    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        if rows.memory is None:
            rows.memory = self._outputs(rows.inputs, rows.sequence)
        outputs = tuple(output[rows.now : rows.now + steps] for output in rows.memory)
        rows.now += steps
        return outputs

    def keep(self, rows: Rows, index: Tensor) -> None:
        rows.keep(index)
        if rows.memory is not None:
            rows.memory = tuple(output.index_select(1, index) for output in rows.memory)

    def place(self, rows: Rows, index: Tensor, inputs: Tensor) -> NoReturn:
        raise ModelRefused(
            f"fresh rows cannot join rows in flight: {self.why_not_refillable(rows)}.",
            "Run them as a batch of their own.",
        )

    def why_not_refillable(self, rows: Rows) -> str:
        return "the model is run whole"

    def explain(self) -> dict[str, str]:
        return {"stepping": "none: the model is run whole (full_run=True)"}

    def _outputs(self, inputs: Tensor, sequence: bool) -> Outputs:
        """Outputs of all timesteps, each ``[T, n, ...]``."""
        timesteps = len(inputs) if sequence else self.timesteps
        if timesteps is None:
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        frames = inputs if sequence else inputs.expand(timesteps, *inputs.shape)
        n = frames.shape[1]
        errors = []
        for way in (self._as_sequence, self._in_one_call, self._in_a_loop):
            try:
                with isolated(self.model), noting_calls(self.model, self.adapter.neurons) as calls:
                    self.adapter.reset()
                    made = way(inputs, frames, sequence)
            except (*MISFITS, ModelRefused) as error:
                errors.append(f"{type(error).__name__}: {error}")
                continue
            stacked = [_time_first(output, timesteps, n) for output in made if output is not None]
            if stacked and stacked[0] is not None:
                return tuple(output for output in stacked if output is not None)
            if most_from_one_place(calls) > 1:  # that were all timesteps: it must not be called for each of them
                break
        raise ModelRefused(
            f"{type(self.model).__name__} does not answer [{timesteps}, {n}, ...], one output for each timestep"
            + (f" ({'; '.join(errors)})." if errors else "."),
            "Exits can be picked from the outputs of all timesteps only: return those.",
        )

    def _as_sequence(self, inputs: Tensor, frames: Tensor, sequence: bool) -> list[Tensor | None]:
        if not self.adapter.takes_time():
            raise ValueError("it takes no sequences")
        return results(self.model(frames))

    def _in_one_call(self, inputs: Tensor, frames: Tensor, sequence: bool) -> list[Tensor | None]:
        x = inputs.transpose(0, self.time_dim) if sequence else inputs
        return results(self.model(x, **call_keywords(self.model, x, len(frames))))

    def _in_a_loop(self, inputs: Tensor, frames: Tensor, sequence: bool) -> list[Tensor | None]:
        outputs, _ = self.adapter.run_own(frames, self.adapter.fresh_arguments())
        return list(outputs)


def _time_first(output: Tensor, timesteps: int, n: int) -> Tensor | None:
    """``[T, n, ...]`` from that or ``[n, T, ...]``; ``None`` if it is neither."""
    if output.ndim >= 3 and output.shape[:2] == (timesteps, n):
        return output
    return output.transpose(0, 1) if output.ndim >= 3 and output.shape[:2] == (n, timesteps) else None
