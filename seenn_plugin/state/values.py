"""Values that may be state: tensors, numbers, ``None``, and containers of those."""

from __future__ import annotations

from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..tolerance import agree


class _Absent:
    """The value of a cell that does not exist (yet)."""

    def __repr__(self) -> str:
        return "absent"

    def __reduce__(self) -> str:
        return "ABSENT"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Absent:
        return self


ABSENT: Final = _Absent()
PLAIN = (Tensor, int, float, bool, str, type(None), _Absent, range, slice, torch.dtype, torch.device)


def leaves(value: Any) -> list[Any]:
    """The leaves of a value: tensors, numbers and everything else that is not a container."""
    if isinstance(value, PLAIN):
        return [value]
    return pytree.tree_leaves(value)


def tensors(value: Any) -> list[Tensor]:
    """The tensors in a value."""
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def row_misfit(value: Any, n: int) -> str | None:
    """What in ``value`` is not a tensor with ``n`` rows on dimension 0, in words; ``None`` if everything is."""
    for leaf in leaves(value):
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0 or leaf.shape[0] != n:
                return f"shape {tuple(leaf.shape)}"
        elif leaf is not None:
            return f"type {type(leaf).__name__}"
    return None


def map_tensors(function: Any, value: Any) -> Any:
    """``value`` with ``function`` applied to its tensors; its containers are new objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, PLAIN):
        return value
    return pytree.tree_map_only(Tensor, function, value)


def random_state(inputs: Tensor) -> Tensor:
    """The state of the random number generators that a model uses on the device of ``inputs``."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(inputs.device)]) if inputs.is_cuda else state


def is_plain(value: Any) -> bool:
    """Whether a value consists of tensors, numbers, strings and containers only."""
    return all(isinstance(leaf, PLAIN) for leaf in leaves(value))


def hides_tensors(value: Any) -> bool:
    """Whether some object in a value holds tensors in its attributes."""
    objects = [leaf for leaf in leaves(value) if not isinstance(leaf, PLAIN)]
    return any(tensors(vars(leaf)) for leaf in objects if hasattr(leaf, "__dict__"))


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, bit by bit; NaN equals NaN."""
    left_leaves, left_spec = pytree.tree_flatten(left)
    right_leaves, right_spec = pytree.tree_flatten(right)
    return left_spec == right_spec and all(map(_same_leaf, left_leaves, right_leaves))


def close(left: Any, right: Any) -> bool:
    """Whether two values are equal within the tolerance of :mod:`seenn_plugin.tolerance`."""
    left_leaves, right_leaves = leaves(left), leaves(right)
    return len(left_leaves) == len(right_leaves) and all(map(_close_leaf, left_leaves, right_leaves))


def _close_leaf(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        return left.dtype == right.dtype and agree(left, right)
    return same(left, right)


def _same_leaf(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
            return False
        return torch.equal(left, right) or bool(((left == right) | ((left != left) & (right != right))).all())
    return left is right or (isinstance(left, PLAIN) and type(left) is type(right) and left == right)


POISONS: Final = (float("nan"), 1e6, -1e6)


def poisoned(value: Any, poison: float = POISONS[0]) -> Any:
    """``value`` with every number replaced by an absurd one, so that any answer that depends on it changes."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            number = poison if leaf.is_floating_point() else (0 if poison != poison else poison > 0)
            return torch.full_like(leaf, number)
        return poison if isinstance(leaf, int | float) else leaf

    return pytree.tree_map(replace, value)
