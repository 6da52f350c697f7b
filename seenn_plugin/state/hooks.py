"""Which hooks of the caller a call would run. Hooks of this library are left out."""

from __future__ import annotations

from typing import Final

from torch import nn
from torch.nn.modules import module as _torch_module

OWN_HOOK: Final = -1
"""The key of a hook of this library. The keys of callers' hooks count from 0."""
_FORWARD: Final = ("_forward_hooks", "_forward_pre_hooks")
_BACKWARD: Final = ("_backward_hooks", "_backward_pre_hooks")


def has_hooks(module: nn.Module, backward: bool = False) -> bool:
    """Whether a caller's forward hook, or a backward hook if these count too, is registered on ``module``."""
    attributes = vars(module)
    names = _FORWARD + _BACKWARD if backward else _FORWARD
    return any(key != OWN_HOOK for name in names for key in attributes[name])


def has_global_hooks(backward: bool = False) -> bool:
    """Whether a hook is registered for all modules of the process."""
    names = _FORWARD + _BACKWARD if backward else _FORWARD
    return any(getattr(_torch_module, f"_global{name}") for name in names)
