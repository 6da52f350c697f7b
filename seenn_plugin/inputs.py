"""The caller's input, checked and brought into one form: :class:`InputBatch`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import chain
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor, nn

from .errors import InputError, ModelRefused

InputKind = Literal["static", "sequence"]

_STEP_ATTRIBUTES = ("T", "num_steps", "timesteps", "time_steps", "n_steps")


@dataclass(frozen=True)
class InputBatch:
    """The input of ``n`` rows.

    Attributes:
        values: ``[n, ...]`` for static input, shown at every timestep; ``[T, n, ...]`` for a sequence.
        sequence: whether ``values`` has a time axis, which is always its first.
        time_dim: the time axis in the layout in which the model takes whole sequences: 0 for ``[T, n, ...]``, 1 for
            ``[n, T, ...]``.
        timesteps: the most timesteps that a row may take, if the caller has said so.
    """

    values: Tensor
    sequence: bool = False
    time_dim: int = 0
    timesteps: int | None = None

    def __len__(self) -> int:
        """The number of rows."""
        return self.values.shape[self.row_dim]

    @property
    def row_dim(self) -> int:
        """The dimension of ``values`` that holds the rows."""
        return 1 if self.sequence else 0

    @property
    def row_shape(self) -> torch.Size:
        """The shape of one row of static input, or of one frame of a row."""
        return self.values.shape[self.row_dim + 1 :]

    @property
    def length(self) -> int | None:
        """The length of the time axis; ``None`` for static input."""
        return self.values.shape[0] if self.sequence else None

    @property
    def device(self) -> torch.device:
        return self.values.device

    @property
    def kind(self) -> tuple[Any, ...]:
        """What inputs have in common that the model takes in the same way. Hashable; the length is left out."""
        return self.row_shape, self.values.dtype, self.device, self.sequence, self.time_dim, self.timesteps

    def with_values(self, values: Tensor) -> Self:
        """Other rows of the same kind, ``[m, ...]`` or ``[T, m, ...]``."""
        return replace(self, values=values)

    def narrow(self, start: int, rows: int) -> Self:
        """``rows`` rows from ``start`` on."""
        return self.with_values(self.values.narrow(self.row_dim, start, rows))

    def select(self, index: Tensor) -> Self:
        """The rows at ``index``, long ``[m]``."""
        return self.with_values(self.values.index_select(self.row_dim, index))

    def joined(self, others: Self) -> Self:
        """These rows, followed by ``others``."""
        return self.with_values(torch.cat([self.values, others.values], self.row_dim))

    def frame(self, t: int) -> Tensor:
        """The input ``[n, ...]`` of timestep ``t``, counted from 0. After its end a sequence repeats its last frame."""
        return self.values[min(t, self.values.shape[0] - 1)] if self.sequence else self.values

    def frames(self, timesteps: int) -> Tensor:
        """The input of the first ``timesteps`` timesteps, ``[timesteps, n, ...]``."""
        return self.values[:timesteps] if self.sequence else self.values.expand(timesteps, *self.values.shape)

    def as_given(self) -> Tensor:
        """The input in the layout in which the model takes it whole: a sequence has its time axis at ``time_dim``."""
        return self.values.transpose(0, self.time_dim) if self.sequence else self.values


def guess_timesteps(model: nn.Module) -> int | None:
    """The number of timesteps that a model carries in a customary attribute (``T``, ``num_steps``, ...)."""
    values = (getattr(model, name, None) for name in _STEP_ATTRIBUTES)
    return next((value for value in values if type(value) is int and value >= 1), None)


def as_input_batch(x: Tensor, model: nn.Module, kind: InputKind, time_dim: int, timesteps: int | None) -> InputBatch:
    """Check an input and bring it into the engine's form.

    Args:
        x: ``[N, ...]`` for static input; ``[T, N, ...]`` or ``[N, T, ...]``, as ``time_dim`` says, for a sequence.
        model: the model that takes it.
        kind: ``"static"`` or ``"sequence"``.
        time_dim: the time axis of a sequence.
        timesteps: the most timesteps that a row may take; ``None`` if the caller has not said.

    Raises:
        InputError: wrong type, rank, dtype, device, or length of the time axis.
    """
    if isinstance(x, np.ndarray):
        x = torch.from_numpy(x)
    if not isinstance(x, Tensor):
        several = isinstance(x, tuple | list | dict)
        remedy = " A network with several inputs is not taken; make one tensor of them." if several else ""
        raise InputError(f"the input must be a tensor, not {type(x).__name__}.{remedy}")
    shape = tuple(x.shape)
    _check_tensor(x, model)
    if kind == "static":
        if x.ndim < 2:
            raise InputError(
                f"static input is [N, ...] with at least 2 dimensions, not {shape}; add the batch dimension: x[None]."
            )
        return InputBatch(x, False, time_dim, timesteps)
    if x.ndim < 2:
        raise InputError(
            f"a sequence is {_axes(time_dim)} with at least 2 dimensions, not {shape}: the time axis or the batch axis "
            "is missing. For an input shown at every timestep use input='static'."
        )
    length = shape[time_dim]
    if length == 0:
        raise InputError(f"the time axis (dimension {time_dim}) of the sequence {shape} has length 0.")
    if timesteps is not None and length > timesteps:
        raise InputError(
            f"the sequence {shape} is {length} timesteps long, more than timesteps={timesteps}; is dimension "
            f"{time_dim} the time axis? Pass time_dim={1 - time_dim} for {_axes(1 - time_dim)}, or a larger timesteps."
        )
    return InputBatch(x.transpose(0, time_dim), True, time_dim, timesteps)


def _axes(time_dim: int) -> str:
    return "[T, N, ...]" if time_dim == 0 else "[N, T, ...]"


def _check_tensor(x: Tensor, model: nn.Module) -> None:
    weight = next((t for t in chain(model.parameters(), model.buffers()) if t.is_floating_point()), None)
    if weight is None:
        return
    if x.device != weight.device:
        raise InputError(
            f"the input is on {x.device} and the model on {weight.device}; move one: x.to({str(weight.device)!r})."
        )
    if x.is_floating_point():
        if x.dtype != weight.dtype and not torch.is_autocast_enabled(x.device.type):
            raise InputError(
                f"the input is {x.dtype} and the model {weight.dtype}; convert one: x.to({weight.dtype}), or use "
                "autocast."
            )
    elif not any(isinstance(module, nn.Embedding | nn.EmbeddingBag) for module in model.modules()):
        raise InputError(f"the input is {x.dtype} and the model {weight.dtype}; convert it: x.to({weight.dtype}).")


def refuse_training_mode(model: nn.Module, modules: Iterable[nn.Module]) -> None:
    """Refuse a model whose dropout or batch normalisation is in training mode: its rows depend on each other.

    Raises:
        ModelRefused: naming the first such module.
    """
    if not any(module.training for module in modules):
        return
    for name, module in model.named_modules():
        if module.training and (
            isinstance(module, nn.modules.batchnorm._BatchNorm)
            or type(module).__name__.startswith(("Drop", "AlphaDrop", "FeatureAlpha"))
        ):
            raise ModelRefused(
                f"{name or 'the model'} ({type(module).__name__}) is in training mode, in which rows depend on "
                "each other or on chance.",
                "Call snn.eval() (or model.eval()) first.",
            )
