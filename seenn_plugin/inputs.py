"""The caller's input, checked and brought into one form: static ``[N, ...]`` or time-first ``[T, N, ...]``."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain
from typing import Literal

import torch
from torch import Tensor, nn

from .errors import InputError, ModelRefused

InputKind = Literal["static", "sequence"]

_STEP_ATTRIBUTES = ("T", "num_steps", "timesteps", "time_steps", "n_steps")


def guess_timesteps(model: nn.Module) -> int | None:
    """The number of timesteps that a model carries in a customary attribute (``T``, ``num_steps``, ...)."""
    values = (getattr(model, name, None) for name in _STEP_ATTRIBUTES)
    return next((value for value in values if type(value) is int and value >= 1), None)


def as_rows(x: Tensor, model: nn.Module, kind: InputKind, time_dim: int, timesteps: int | None) -> Tensor:
    """Check an input and bring it into the engine's form.

    Returns:
        ``[N, ...]`` (static) or ``[T, N, ...]`` (sequence).

    Raises:
        InputError: wrong type, rank, dtype, device, or length of the time axis.
    """
    if not isinstance(x, Tensor):
        raise InputError(f"the input must be a tensor, not {type(x).__name__}.")
    shape = tuple(x.shape)
    _check_tensor(x, model)
    if kind == "static":
        if x.ndim < 2:
            raise InputError(
                f"static input is [N, ...] with at least 2 dimensions, not {shape}; add the batch dimension: x[None]."
            )
        return x
    if x.ndim < 3:
        raise InputError(
            f"a sequence is {_axes(time_dim)} with at least 3 dimensions, not {shape}: the time axis or the batch "
            "axis is "
            "missing. For an input shown at every timestep use input='static'."
        )
    length = shape[time_dim]
    if length == 0:
        raise InputError(f"the time axis (dimension {time_dim}) of the sequence {shape} has length 0.")
    if timesteps is not None and length > timesteps:
        raise InputError(
            f"the sequence {shape} is {length} timesteps long, more than timesteps={timesteps}; is dimension "
            f"{time_dim} the "
            f"time axis? Pass time_dim={1 - time_dim} for {_axes(1 - time_dim)}, or a larger timesteps."
        )
    return x.transpose(0, time_dim)


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
