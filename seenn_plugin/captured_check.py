"""Does a captured step answer as the model does? Looked at before its first answer is used.

Compilers reorder arithmetic, so that here and there a membrane potential is rounded to the other side of its threshold,
and what follows differs. How much of that a model makes of rounding is seen by nudging its input and its state by a few
units in the last place; a captured step may differ as much. What a trace has wrongly baked in (a branch, a number that
Python read) shows in most values, or by far.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from .module_state import map_tensors
from .probing import made_up
from .tolerance import ATOL, RTOL, rows_agree

_NUDGE: Final = 8  # units in the last place
_AS_MUCH: Final = 4.0
_TRIALS: Final = 3

Step = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]]
"""From frames and state to outputs and the state afterwards."""


class Disagrees(Exception):
    """A captured step does not do what the model does."""


def check_captured(
    eager: Step, captured: Step, frames: Sequence[Tensor], state: Sequence[Tensor], dtype: torch.dtype
) -> str:
    """Compare on the rows at hand, then on made-up ones that go on from there, then with made-up state too.

    Args:
        eager, captured: one timestep each; neither changes what it is given.
        frames: ``[1, n, ...]``, at most one.
        dtype: the least precise type that the model computes in.

    Returns:
        What was seen, for people.

    Raises:
        Disagrees: outputs or state differ by more than rounding explains.
    """
    rounding = _NUDGE * torch.finfo(dtype).eps if dtype.is_floating_point else 0.0
    rows = differing = 0
    for trial in range(_TRIALS):
        if trial:
            frames = [made_up(frame[0], False, frame.shape[1], seed=trial).unsqueeze(0) for frame in frames]
        if trial == _TRIALS - 1:  # what the model reads of its input may lie among the state, as that of a loop does
            state = [_made_up(tensor, trial) for tensor in state]
        outputs, after = eager(frames, state)
        found = captured(frames, state)
        nudged = eager(*(map_tensors(lambda t: _nudged(t, rounding), list(tensors)) for tensors in (frames, state)))
        for wanted, seen, shaken in zip(
            (*outputs, *after), (*found[0], *found[1]), (*nudged[0], *nudged[1]), strict=True
        ):
            difference, allowed = _distance(seen, wanted), ATOL + RTOL * _size(wanted) + rounding * _size(wanted)
            if not difference <= allowed + _AS_MUCH * _distance(shaken, wanted):
                raise Disagrees(
                    f"it differs from the model's own step by {difference:.1e} on average, where rounding makes "
                    f"{_distance(shaken, wanted):.1e}"
                )
        agree = torch.stack([rows_agree(a, b, 1) for a, b in zip(outputs, found[0], strict=True)]).all(0)
        rows, differing = rows + agree.numel(), differing + int((~agree).sum())
        state = list(after)
    equal = f"{rows - differing} of {rows} rows equal to the model's own step"
    return equal + (", the others but for rounding at a spike threshold" if differing else "")


def _made_up(tensor: Tensor, seed: int) -> Tensor:
    rows = tensor.is_floating_point() and tensor.ndim and tensor.numel()
    return made_up(tensor, False, tensor.shape[0], seed) if rows else tensor


def _nudged(tensor: Tensor, by: float) -> Tensor:
    return tensor * (1 + by) if tensor.is_floating_point() else tensor


def _distance(left: Tensor, right: Tensor) -> float:
    """The mean absolute difference. NaN and infinities are equal to themselves alone."""
    if left.shape != right.shape or left.dtype != right.dtype:
        return float("inf")
    if not left.numel():
        return 0.0
    same = (left == right) | ((left != left) & (right != right))
    return float(torch.where(same, 0.0, (left.double() - right.double()).abs()).mean())


def _size(tensor: Tensor) -> float:
    finite = tensor[tensor.isfinite()] if tensor.is_floating_point() else tensor
    return float(finite.abs().double().mean()) if finite.numel() else 0.0
