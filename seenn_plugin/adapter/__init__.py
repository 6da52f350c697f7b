"""The import surface for adapter authors: the contract, the module adapter, and the types that they use."""

from __future__ import annotations

from ..errors import AdapterError, InputError, ModelRefused
from ..inputs import InputBatch
from ..state.cells import Cell
from ..state.isolation import isolated
from ..state.values import tensors
from ..stepping.signature import REQUIRED
from ..stepping.stepper import Outputs, OwnRun, Stepper
from .contract import Adapter, Reference, Rows
from .module_adapter import ModuleAdapter
from .registry import AdapterChoice, find_adapter, installed_adapters

__all__ = [
    "REQUIRED",
    "Adapter",
    "AdapterChoice",
    "AdapterError",
    "Cell",
    "InputBatch",
    "InputError",
    "ModelRefused",
    "ModuleAdapter",
    "Outputs",
    "OwnRun",
    "Reference",
    "Rows",
    "Stepper",
    "find_adapter",
    "installed_adapters",
    "isolated",
    "tensors",
]
