"""The stem: layers that see nothing but the input and the weights, and need to be computed only once for each row.

A static input is shown at every timestep, so what comes before the first neuron is the same at every one of them. The
outputs of these layers are carried with the rows, like any state; while the model makes a timestep, the layers are lent
a ``forward`` that hands them out.

Nothing here is assumed of the model. A layer hands out what it carries only if it is given the very frame (or what the
layer before it handed out): the same memory, in the same shape, not written since. In every other case it computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _torch_module

from .errors import ModelRefused
from .module_state import to_float64
from .stepper import Outputs, OwnRun, Stepper

_HOOKS: Final = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_NAN: Final = float("nan")


@dataclass(frozen=True)
class Shape:
    """The shape of a tensor with rows: that of one batch, and the dimension that follows the number of rows."""

    sizes: tuple[int, ...]
    row_dim: int

    def of(self, n: int) -> tuple[int, ...]:
        return (*self.sizes[: self.row_dim], n, *self.sizes[self.row_dim + 1 :])

    def rows(self, tensor: Tensor) -> int:
        """The number of rows of a tensor of this shape."""
        return tensor.shape[self.row_dim]

    def in_chunk(self, n: int, steps: int) -> tuple[int, ...]:
        """Of several timesteps at a time, ``[steps, n, ...]``; a single one is ``[n, ...]`` or ``[1, n, ...]``."""
        single = self.of(n)
        return single if steps == 1 else (steps, *single[self.row_dim :])


@dataclass(frozen=True)
class Layer:
    """One layer of the stem.

    Attributes:
        name: its qualified name.
        module: the layer.
        source: the position of the layer whose output it is given; below 0, of what is still (``-1 - i``).
        given, made: the shapes of its input and its output in a single timestep.
        is_read: whether something outside the stem reads its output, which then is carried.
        is_written: whether something writes to its output in place, and so is given a copy.
    """

    name: str
    module: nn.Module
    source: int
    given: Shape
    made: Shape
    is_read: bool = True
    is_written: bool = False


@dataclass(frozen=True)
class Handed:
    """A tensor that the stem may be given again: the frame, or what a layer handed out."""

    tensor: Tensor
    version: int

    @classmethod
    def of(cls, tensor: Tensor) -> Handed:
        return cls(tensor, version_of(tensor))

    def is_start_of(self, x: Tensor) -> bool:
        """Whether ``x`` lies where this tensor does, which was not written since."""
        return x.data_ptr() == self.tensor.data_ptr() and x.dtype == self.tensor.dtype and version_of(x) == self.version

    def is_all_of(self, x: Tensor) -> bool:
        """Whether ``x`` is this tensor, not written since, or a view of all of it."""
        return self.is_start_of(x) and x.numel() == self.tensor.numel()


class Around(Stepper):
    """A stepper that leaves everything to another one, and to its subclass to change some of it."""

    def __init__(self, inner: Stepper) -> None:
        self.inner = inner
        self.answer, self.cumulative, self.timesteps = inner.answer, inner.cumulative, inner.timesteps
        self.one_at_a_time, self.takes_frames = inner.one_at_a_time, inner.takes_frames

    @property
    def names(self) -> tuple[str, ...]:
        return self.inner.names

    def start(self, inputs: Tensor) -> list[Any]:
        return self.inner.start(inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        return self.inner.advance(frames, steps, values)

    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        return self.inner.own_run(inputs, sequence, timesteps)

    def do_without(self, name: str, few: Tensor) -> bool:
        return self.inner.do_without(name, few)

    def explain(self) -> dict[str, str]:
        return self.inner.explain()


class StemStepper(Around):
    """Makes the timesteps of another stepper, but for the layers of the stem.

    Args:
        inner: makes the timesteps of static input.
        layers: the stem, in the order in which its layers are called.
        entered: all modules that are entered before the last of them has answered: a caller's hook there must see
            every call.
        in_chunks: whether the layers take several timesteps at a time as rows side by side.
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

    def as_it_lies(self) -> Stepper:
        unseen = all(map(is_untouched, self.entered)) and not global_hooks()
        return self if unseen and self._modes_now() == self._modes else self.inner

    def _modes_now(self) -> list[bool]:
        return [layer.module.training for layer in self.layers]

    def start(self, inputs: Tensor) -> list[Any]:
        values = self.inner.start(inputs)
        return [*values, *self._compute(inputs, values)]

    def _compute(self, inputs: Tensor, values: list[Any]) -> list[Tensor]:
        """What the layers of the stem answer: the model is run on the frame up to the last of them."""
        made: dict[nn.Module, Tensor] = {}
        with lent({layer.module: self._noting(layer, made) for layer in self.layers}), suppress(_StemIsMade):
            self.inner.advance(inputs.unsqueeze(0) if self.takes_frames else None, 1, values)
        return [self._fitting(layer, made.get(layer.module), inputs) for layer in self._carried]

    def _noting(self, layer: Layer, made: dict[nn.Module, Tensor]) -> Callable[..., Any]:
        def forward(*arguments: Any, **named: Any) -> Any:
            output = type(layer.module).forward(layer.module, *arguments, **named)
            made[layer.module] = output.clone() if layer.is_written else output
            if layer is self.layers[-1]:
                raise _StemIsMade
            return output

        return forward

    def _fitting(self, layer: Layer, made: Tensor | None, inputs: Tensor) -> Tensor:
        """The output of a layer; NaN where it does not fit single timesteps, because they were made in another mode."""
        shape = layer.made.of(inputs.shape[0])
        return made if made is not None and made.shape == shape else _absurd(shape, inputs)

    def advance(self, frames: Tensor | None, steps: int, values: list[Any]) -> tuple[Callable[[], Outputs], list[Any]]:
        cut = len(self.inner.names)
        carried = dict(zip((layer.module for layer in self._carried), values[cut:], strict=True))
        still = what_may_be_still(frames, values[:cut])
        given = self._given & still.keys()
        handed = {-1 - i: still[i] for i in given}
        versions = [version_of(value) for value in carried.values()]
        rows = self._carried[-1].made.rows(values[-1])
        with lent(
            {
                layer.module: _HandingOut(self, i, layer, carried.get(layer.module), rows, steps, handed)
                for i, layer in enumerate(self.layers)
            }
        ):
            finish, after = self.inner.advance(frames, steps, values[:cut])
        for layer, value, version in zip(self._carried, carried.values(), versions, strict=True):
            if version_of(value) != version:
                raise ModelRefused(
                    f"the output of {layer.name} was changed in place, which did not happen in the timesteps that were "
                    "looked at first.",
                    "Assign a new tensor instead.",
                )
        if frames is None and not given <= unchanged(still, after).keys():
            raise ModelRefused(
                "a variable that is the same at every timestep, as far as was looked at first, has changed.",
                "Give what changes over time another name.",
            )
        return finish, [*after, *values[cut:]]

    def own_run(self, inputs: Tensor, sequence: bool, timesteps: int) -> OwnRun:
        stem = self._compute(inputs, self.inner.start(inputs))
        own = self.inner.own_run(inputs, sequence, timesteps)
        return replace(own, arguments=[*own.arguments, *stem])

    def explain(self) -> dict[str, str]:
        names = ", ".join(layer.name for layer in self.layers)
        return {**self.inner.explain(), "stem": f"{names}: computed once for each row, not at every timestep"}


class _HandingOut:
    """Stands in for the ``forward`` of one layer of the stem while timesteps are made.

    Args:
        stem: the stem.
        position: of the layer in it.
        layer: the layer.
        carried: its output, if it is carried.
        rows, steps: the number of rows, and of the timesteps that are made.
        handed: what has been handed out, by position of the layer; below 0, what is still.
    """

    def __init__(
        self,
        stem: StemStepper,
        position: int,
        layer: Layer,
        carried: Tensor | None,
        rows: int,
        steps: int,
        handed: dict[int, Handed],
    ) -> None:
        self.stem, self.position, self.layer, self.carried = stem, position, layer, carried
        self.rows, self.steps, self.handed = rows, steps, handed

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        layer = self.layer
        times = self._times(arguments[0]) if len(arguments) == 1 and not named else 0
        if not times:
            return type(layer.module).forward(layer.module, *arguments, **named)
        if self.carried is None:
            output = _absurd(layer.made.in_chunk(self.rows, times), arguments[0])
        elif times > 1:  # laid out, as kernels that make several timesteps expect it
            output = self.carried.expand(layer.made.in_chunk(self.rows, times)).contiguous()
        else:
            output = self.carried.clone() if layer.is_written else self.carried
        self.handed[self.position] = Handed.of(output)
        return output

    def _times(self, x: Any) -> int:
        """How many timesteps of what the stem was computed for ``x`` is; 0 if it may be anything else."""
        source = self.handed.get(self.layer.source)
        if source is None or not isinstance(x, Tensor) or not source.is_start_of(x):
            return 0
        if x.shape == self.layer.given.of(self.rows):
            return 1
        in_chunk = self.stem.in_chunks and x.shape == self.layer.given.in_chunk(self.rows, self.steps)
        return self.steps if in_chunk else 0


class _StemIsMade(BaseException):
    """Ends a call of the model once the last layer of the stem has answered. No error, and nobody is to handle it."""


@contextmanager
def lent(forwards: Mapping[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Let modules run other functions for their ``forward``, so that hooks fire as ever."""
    try:
        for module, forward in forwards.items():
            vars(module)["forward"] = forward
        yield
    finally:
        for module in forwards:
            vars(module).pop("forward", None)


def _absurd(shape: Sequence[int], like: Tensor) -> Tensor:
    """What is never read: NaN, in the memory of one number."""
    dtype = like.dtype if like.is_floating_point() else torch.get_default_dtype()
    return torch.full((), _NAN, dtype=dtype, device=like.device).expand(*shape)


def what_may_be_still(frames: Tensor | None, values: Sequence[Any]) -> dict[int, Handed]:
    """What may be the same at every timestep, by position: the frame, or else a variable carried from pass to pass."""
    if frames is not None:
        return {0: Handed.of(frames[0])}
    return {i: Handed.of(value) for i, value in enumerate(values) if isinstance(value, Tensor) and value.numel()}


def unchanged(still: Mapping[int, Handed], after: Sequence[Any]) -> dict[int, Handed]:
    """What a pass has left as it was."""
    return {i: one for i, one in still.items() if isinstance(after[i], Tensor) and one.is_all_of(after[i])}


def version_of(tensor: Tensor) -> int:
    return 0 if tensor.is_inference() else tensor._version


def is_untouched(module: nn.Module) -> bool:
    """Whether calls of a module can be left out without anybody noticing."""
    attributes = vars(module)
    return "forward" not in attributes and all(
        hook is to_float64 for hooks in _HOOKS for hook in attributes[hooks].values()
    )


def global_hooks() -> bool:
    return any(getattr(_torch_module, f"_global{hooks}") for hooks in _HOOKS)
