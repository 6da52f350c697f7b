"""Which timesteps are compiled or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Self

import torch

from ..errors import InputError
from .cuda_graph import CudaRecorder, Recorder

_PARTS: Final = (1, 2, 4, 8)
# The most rows that are computed for each row there is. On a GPU launches cost more than rows. On a CPU a compiled step
# is not much faster than the model's own, unless it computes with less precision.
_PADDING: Final = 1.1
_PADDING_IF_FAST: Final = 2.0


@dataclass(frozen=True)
class CompileSettings:
    """Which timesteps are compiled or recorded, and how.

    Attributes:
        rows: the batch sizes, rising; empty until the number of slots is known from which they follow.
        compile: whether they are compiled.
        recorder: replays them as CUDA graphs; ``None`` if they are not recorded.
    """

    rows: tuple[int, ...]
    compile: bool
    recorder: Recorder | None = None

    @classmethod
    def of(cls, compile: bool | Sequence[int], cuda_graphs: bool) -> Self | None:
        """From the options of the wrapper; ``None`` if both are off.

        Args:
            compile: whether to compile, or for which batch sizes.
            cuda_graphs: whether to replay CUDA graphs.

        Raises:
            InputError: ``compile`` is neither a bool nor positive integers.
        """
        if isinstance(compile, bool):
            rows = set()
        else:
            given = list(compile) if isinstance(compile, Sequence) and not isinstance(compile, str) else []
            if not given or any(isinstance(n, bool) or not isinstance(n, int) or n < 1 for n in given):
                raise InputError(f"compile must be True, False or numbers of rows, such as (64, 1), not {compile!r}.")
            rows = set(given)
        if compile is False and not cuda_graphs:
            return None
        return cls(tuple(sorted(rows)), compile is not False, CudaRecorder() if cuda_graphs else None)

    def for_slots(self, slots: int) -> Self:
        """With batch sizes, if the user has named none: ``slots``, a half, a quarter, an eighth of it, and one.

        Args:
            slots: the most rows that are active at a time.
        """
        rows = self.rows or sorted({max(1, slots // part) for part in _PARTS} | {1})
        return replace(self, rows=tuple(rows))

    def rows_for(self, n: int, device: torch.device) -> int | None:
        """The batch size in which ``n`` rows are computed; ``None`` if too many rows would be added."""
        fast = device.type == "cuda" or torch.is_autocast_enabled(device.type)
        at_most = n * (_PADDING_IF_FAST if fast else _PADDING)
        return next((rows for rows in self.rows if n <= rows <= at_most), None)
