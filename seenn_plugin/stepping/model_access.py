"""What steppers and discovery ask of a model: a narrow view of the module adapter."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any, ClassVar, Protocol

from torch import Tensor, nn

from ..state.cells import Cell
from .answer import OutputChoice


class ModelAccess(Protocol):
    """A model, and what is known of its framework: how it is reset, called, and where it registers state.

    :class:`~seenn_plugin.adapter.ModuleAdapter` implements it and documents each member.
    """

    registers: ClassVar[tuple[str, ...]]
    model: nn.Module
    output: OutputChoice | None
    state_arguments: dict[str, Any]

    @property
    def neurons(self) -> Collection[nn.Module]: ...

    def reset(self) -> None: ...

    def own_reset(self) -> None: ...

    def owns(self, cell: Cell) -> bool: ...

    def is_scratch(self, cell: Cell) -> bool: ...

    def writes_nothing(self, module: nn.Module) -> bool: ...

    def takes_time(self) -> bool: ...

    def failure_hint(self) -> str: ...

    def fresh_arguments(self) -> list[Any]: ...

    def run(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]: ...

    def run_own(self, frames: Tensor, arguments: list[Any]) -> tuple[tuple[Tensor, ...], list[Any]]: ...
