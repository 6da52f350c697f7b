"""Does a compiled step answer as the model does? Checked before its first answer is used.

Compilers reorder arithmetic, so that now and then a membrane potential is rounded to the other side of its threshold,
and everything after it differs. How far rounding moves the answers of a model is measured by changing its input and its
state by a few units in the last place. A compiled step may differ as much. What the graph has wrongly made constant (a
branch, a number that Python read) shows in most values, or by a large amount.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

import torch
from torch import Tensor

from ..discovery.probing import made_up
from ..inputs import InputBatch
from ..state.values import map_tensors
from ..tolerance import ATOL, RTOL, rows_agree

_PERTURBATION: Final = 8  # units in the last place
_MARGIN: Final = 4.0
_TRIALS: Final = 3

Step = Callable[[Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Sequence[Tensor]]]
"""From frames and state to outputs and the state afterwards."""


class Disagrees(Exception):
    """A compiled step does not do what the model does."""


def check_compiled(
    eager: Step, compiled: Step, frames: Sequence[Tensor], state: Sequence[Tensor], precision: float
) -> str:
    """Compare on the given rows, then on made-up ones that continue from their state, then with made-up state too.

    Args:
        eager, compiled: one timestep each; neither changes what it is given.
        frames: ``[1, n, ...]``, at most one.
        precision: the relative distance of neighbouring numbers in the least precise arithmetic of the model; 0 if it
            computes with whole numbers alone.

    Returns:
        The result in words.

    Raises:
        Disagrees: outputs or state differ by more than rounding explains.
    """
    rounding = _PERTURBATION * precision
    rows = differing = 0
    for trial in range(_TRIALS):
        if trial:
            frames = [_made_up(frame[0], trial).unsqueeze(0) for frame in frames]
        if trial == _TRIALS - 1:  # the input that a time loop reads lies in the state
            state = [_made_up_state(tensor, trial) for tensor in state]
        outputs, after = eager(frames, state)
        found = compiled(frames, state)
        moved_input = (map_tensors(lambda t: _perturbed(t, rounding), list(tensors)) for tensors in (frames, state))
        perturbed = eager(*moved_input)
        for wanted, seen, moved in zip(
            (*outputs, *after), (*found[0], *found[1]), (*perturbed[0], *perturbed[1]), strict=True
        ):
            difference, allowed = _distance(seen, wanted), ATOL + RTOL * _size(wanted) + rounding * _size(wanted)
            if not difference <= allowed + _MARGIN * _distance(moved, wanted):
                raise Disagrees(
                    f"it differs from the model's own step by {difference:.1e} on average, where rounding makes "
                    f"{_distance(moved, wanted):.1e}"
                )
        agree = torch.stack([rows_agree(a, b, 1) for a, b in zip(outputs, found[0], strict=True)]).all(0)
        rows, differing = rows + agree.numel(), differing + int((~agree).sum())
        state = list(after)
    equal = f"{rows - differing} of {rows} rows equal to the model's own step"
    return equal + (", the others but for rounding at a spike threshold" if differing else "")


def _made_up(tensor: Tensor, seed: int) -> Tensor:
    return made_up(InputBatch(tensor), tensor.shape[0], seed).values


def _made_up_state(tensor: Tensor, seed: int) -> Tensor:
    return _made_up(tensor, seed) if tensor.is_floating_point() and tensor.ndim and tensor.numel() else tensor


def _perturbed(tensor: Tensor, by: float) -> Tensor:
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
