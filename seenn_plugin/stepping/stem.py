"""The stem: layers that depend on the input and the weights only, and need to be computed once for each row.

A static input is shown at every timestep, so the layers before the first neuron compute the same at each of them. Their
outputs are carried with the rows, like any state. While the model makes a timestep, the ``forward`` of
each layer is replaced by a function that returns the carried output.

Nothing is assumed about the model. A layer returns its carried output only if its input is the frame itself, or the
carried output of the layer before it: the same storage, in the same shape, not written since. In every other case the
layer computes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import ModelRefused
from ..inputs import InputBatch
from ..state.hooks import has_global_hooks, has_hooks
from ..state.patching import patched_forward
from .stepper import Outputs, OwnRun, Stepper

_NAN: Final = float("nan")


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor with rows: its sizes for one batch, and the dimension that holds the rows."""

    sizes: tuple[int, ...]
    row_dim: int

    def of(self, n: int) -> tuple[int, ...]:
        """The shape for ``n`` rows."""
        return (*self.sizes[: self.row_dim], n, *self.sizes[self.row_dim + 1 :])

    def rows(self, tensor: Tensor) -> int:
        """The number of rows of a tensor of this shape."""
        return tensor.shape[self.row_dim]

    def in_chunk(self, n: int, steps: int) -> tuple[int, ...]:
        """The shape for several timesteps at a time, ``[steps, n, ...]``; of one, ``[n, ...]`` or ``[1, n, ...]``."""
        single = self.of(n)
        return single if steps == 1 else (steps, *single[self.row_dim :])


@dataclass(frozen=True)
class Layer:
    """One layer of the stem.

    Attributes:
        name: its qualified name.
        module: the layer.
        source: the position of the layer whose output is its input; below 0, ``-1 - i`` for the constant tensor ``i``.
        input_shape, output_shape: in a single timestep.
        is_read: whether an operation outside the stem reads its output, which is then carried.
        is_written: whether an operation writes to its output in place, and therefore gets a copy.
    """

    name: str
    module: nn.Module
    source: int
    input_shape: Shape
    output_shape: Shape
    is_read: bool = True
    is_written: bool = False


@dataclass(frozen=True)
class StaticTensor:
    """A tensor that a layer of the stem may get as input: the frame, or the carried output of a layer."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> StaticTensor:
        return cls(tensor, version_of(tensor))

    def is_start_of(self, x: Tensor) -> bool:
        """Whether ``x`` starts at the address of this tensor, which was not written since."""
        return x.data_ptr() == self.tensor.data_ptr() and x.dtype == self.tensor.dtype and version_of(x) == self.version

    def is_all_of(self, x: Tensor) -> bool:
        """Whether ``x`` is this tensor, not written since, or a view of all of it."""
        return self.is_start_of(x) and x.numel() == self.tensor.numel()


class DelegatingStepper(Stepper):
    """A stepper that delegates to another one. Subclasses override some methods."""

    def __init__(self, inner: Stepper) -> None:
        self.inner = inner
        self.answer, self.cumulative, self.timesteps = inner.answer, inner.cumulative, inner.timesteps
        self.one_at_a_time, self.takes_frames = inner.one_at_a_time, inner.takes_frames

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    def start(self, inputs: InputBatch) -> list[Any]:
        return self.inner.start(inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        return self.inner.advance(frames, steps, values)

    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        return self.inner.own_run(inputs, timesteps)

    def do_without(self, name: str, few: InputBatch) -> bool:
        return self.inner.do_without(name, few)

    def explain(self) -> dict[str, str]:
        return self.inner.explain()


class StemStepper(DelegatingStepper):
    """Makes the timesteps of another stepper, but for the layers of the stem.

    Args:
        inner: makes the timesteps of static input.
        layers: the stem, in the order in which its layers are called.
        entered: all modules whose call begins before the last layer returns. A caller's hook on one of them must see
            every call.
        in_chunks: whether the layers take several timesteps at a time as more rows.
    """

    starts_from_input = True

    def __init__(
        self, inner: Stepper, layers: Sequence[Layer], entered: Sequence[nn.Module], in_chunks: bool = False
    ) -> None:
        super().__init__(inner)
        self.layers, self.entered, self.in_chunks = tuple(layers), tuple(entered), in_chunks
        self._carried = [layer for layer in layers if layer.is_read]
        self.derived = tuple(f"stem {layer.name}" for layer in self._carried)
        self._given = {-1 - layer.source for layer in layers if layer.source < 0}
        self._modes = self._modes_now()

    @property
    def names(self) -> tuple[str, ...]:
        return (*self.inner.names, *self.derived)

    def for_current_hooks(self) -> Stepper:
        unseen = all(map(may_be_skipped, self.entered)) and not has_global_hooks(backward=True)
        return self if unseen and self._modes_now() == self._modes else self.inner

    def _modes_now(self) -> list[bool]:
        return [layer.module.training for layer in self.layers]

    def start(self, inputs: InputBatch) -> list[Any]:
        values = self.inner.start(inputs)
        return [*values, *self._compute(inputs.values, values)]

    def _compute(self, inputs: Tensor, values: list[Any]) -> list[Tensor]:
        """The outputs of the layers of the stem. The model runs on the frame up to the last of them."""
        made: dict[nn.Module, Tensor] = {}
        with (
            patched_forward({layer.module: self._noting(layer, made) for layer in self.layers}),
            suppress(_StemComputed),
        ):
            self.inner.advance(inputs.unsqueeze(0) if self.takes_frames else None, 1, values)
        return [self._fitting(layer, made.get(layer.module), inputs) for layer in self._carried]

    def _noting(self, layer: Layer, made: dict[nn.Module, Tensor]) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            output = type(layer.module).forward(layer.module, *arguments, **named)
            made[layer.module] = output.clone() if layer.is_written else output
            if layer is self.layers[-1]:
                raise _StemComputed
            return output

        return forward

    def _fitting(self, layer: Layer, made: Tensor | None, inputs: Tensor) -> Tensor:
        """The output of a layer; NaN if it does not have the shape of single timesteps."""
        shape = layer.output_shape.of(inputs.shape[0])
        return made if made is not None and made.shape == shape else _absurd(shape, inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        cut = len(self.inner.names)
        carried = dict(zip((layer.module for layer in self._carried), values[cut:], strict=True))
        constants = possible_constants(frames, values[:cut])
        given = self._given & constants.keys()
        returned = {-1 - i: constants[i] for i in given}
        versions = [version_of(value) for value in carried.values()]
        rows = self._carried[-1].output_shape.rows(values[-1])
        with patched_forward(
            {
                layer.module: _CarriedOutput(self, i, layer, carried.get(layer.module), rows, steps, returned)
                for i, layer in enumerate(self.layers)
            }
        ):
            finish, after = self.inner.advance(frames, steps, values[:cut])
        for layer, value, version in zip(self._carried, carried.values(), versions, strict=True):
            if version_of(value) != version:
                raise ModelRefused(
                    f"the output of {layer.name} was changed in place, which did not happen in the timesteps of the "
                    "first inspection.",
                    "Assign a new tensor instead.",
                )
        if frames is None and not given <= unchanged(constants, after).keys():
            raise ModelRefused(
                "a variable has changed that was the same at every timestep of the first inspection.",
                "Give what changes over time another name.",
            )
        return finish, [*after, *values[cut:]]

    def own_run(self, inputs: InputBatch, timesteps: int) -> OwnRun:
        stem = self._compute(inputs.values, self.inner.start(inputs))
        own = self.inner.own_run(inputs, timesteps)
        return replace(own, arguments=[*own.arguments, *stem])

    def explain(self) -> dict[str, str]:
        names = ", ".join(layer.name for layer in self.layers)
        return {**self.inner.explain(), "stem": f"{names}: computed once for each row, not at every timestep"}


class _CarriedOutput:
    """The ``forward`` of one layer of the stem while timesteps are made: returns the carried output.

    Args:
        stem: the stem.
        position: of the layer in it.
        layer: the layer.
        carried: its output, if it is carried.
        rows, steps: the number of rows, and of timesteps made at a time.
        returned: outputs returned so far, by position of the layer; below 0, the constant tensors.
    """

    def __init__(
        self,
        stem: StemStepper,
        position: int,
        layer: Layer,
        carried: Tensor | None,
        rows: int,
        steps: int,
        returned: dict[int, StaticTensor],
    ) -> None:
        self.stem, self.position, self.layer, self.carried = stem, position, layer, carried
        self.rows, self.steps, self.returned = rows, steps, returned

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        layer = self.layer
        times = self._times(arguments[0]) if len(arguments) == 1 and not named else 0
        if not times:
            return type(layer.module).forward(layer.module, *arguments, **named)
        if self.carried is None:
            output = _absurd(layer.output_shape.in_chunk(self.rows, times), arguments[0])
        elif times > 1:  # contiguous, as multi-step kernels expect it
            output = self.carried.expand(layer.output_shape.in_chunk(self.rows, times)).contiguous()
        else:
            output = self.carried.clone() if layer.is_written else self.carried
        self.returned[self.position] = StaticTensor.of(output)
        return output

    def _times(self, x: Any) -> int:
        """For how many timesteps ``x`` is the input that the stem was computed for; 0 if it may be another tensor."""
        source = self.returned.get(self.layer.source)
        if source is None or not isinstance(x, Tensor) or not source.is_start_of(x):
            return 0
        if x.shape == self.layer.input_shape.of(self.rows):
            return 1
        in_chunk = self.stem.in_chunks and x.shape == self.layer.input_shape.in_chunk(self.rows, self.steps)
        return self.steps if in_chunk else 0


class _StemComputed(BaseException):
    """Ends a call of the model after the last layer of the stem. Not an error, so that models do not handle it."""


def _absurd(shape: Sequence[int], like: Tensor) -> Tensor:
    """A tensor that must never be read: NaN, stored once."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.full((), _NAN, dtype=dtype, device=like.device).expand(*shape)


def possible_constants(frames: Tensor | None, values: Sequence[Any]) -> dict[int, StaticTensor]:
    """Tensors that may be equal at every timestep, by position: the frame, or else variables that a pass carries."""
    if frames is not None:
        return {0: StaticTensor.of(frames[0])}
    return {i: StaticTensor.of(value) for i, value in enumerate(values) if isinstance(value, Tensor) and value.numel()}


def unchanged(constants: Mapping[int, StaticTensor], after: Sequence[Any]) -> dict[int, StaticTensor]:
    """The tensors that a pass has not changed."""
    return {i: one for i, one in constants.items() if isinstance(after[i], Tensor) and one.is_all_of(after[i])}


def version_of(tensor: Tensor) -> int:
    """The version counter of a tensor; 0 for inference tensors, which have none."""
    return 0 if tensor.is_inference() else tensor._version


def may_be_skipped(module: nn.Module) -> bool:
    """Whether calls of a module can be left out: its ``forward`` is its class's, and the caller has no hook on it."""
    return "forward" not in vars(module) and not has_hooks(module, backward=True)
