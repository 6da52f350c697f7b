"""How the state of rows consists of tensors and constants, so that a compiled step can take the tensors alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from ..state.layout import StateSpec
from ..state.values import is_plain

_TENSOR: Final = object()


class Misfit(Exception):
    """Values do not have the form for which a step was compiled."""


@dataclass(frozen=True)
class Like:
    """Shape, strides, dtype and device of a tensor."""

    shape: torch.Size
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, tensor: Tensor) -> Like:
        return cls(tensor.shape, tensor.stride(), tensor.dtype, tensor.device)

    def fits(self, tensor: Tensor) -> bool:
        return tensor.shape == self.shape and tensor.dtype == self.dtype and tensor.device == self.device

    def with_strides(self, tensor: Tensor) -> Tensor:
        """``tensor`` with these strides."""
        own = tensor.stride()
        if own == self.stride or all(a == b or n == 1 for a, b, n in zip(own, self.stride, self.shape, strict=True)):
            return tensor
        return tensor.new_empty_strided(self.shape, self.stride).copy_(tensor)

    def empty(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


@dataclass(frozen=True)
class TensorForm:
    """The form of the values of rows: their containers, tensors and constants.

    Attributes:
        treespecs: for each value, its containers; ``None`` if it is a tensor.
        constants: for each value, its leaves, with a marker in the place of each tensor.
        likes: shapes, strides, dtypes and devices of the tensors.
    """

    treespecs: tuple[Any, ...]
    constants: tuple[tuple[Any, ...], ...]
    likes: tuple[Like, ...]

    @classmethod
    def of(cls, specs: Sequence[StateSpec], values: Sequence[Any]) -> TensorForm:
        treespecs, constants, likes = [], [], []
        for spec, value in zip(specs, values, strict=True):
            leaves, treespec = pytree.tree_flatten(value)
            if not all(is_plain(leaf) or callable(leaf) for leaf in leaves):
                raise Misfit(f"it carries {spec.label}, which holds more than tensors and numbers")
            treespecs.append(None if isinstance(value, Tensor) else treespec)
            constants.append(tuple(_TENSOR if isinstance(leaf, Tensor) else leaf for leaf in leaves))
            likes += [Like.of(leaf) for leaf in leaves if isinstance(leaf, Tensor)]
        return cls(tuple(treespecs), tuple(constants), tuple(likes))

    def tensors(self, values: Sequence[Any]) -> list[Tensor]:
        """The tensors in ``values``.

        Raises:
            Misfit: the values have another form.
        """
        found: list[Tensor] = []
        for treespec, constants, value in zip(self.treespecs, self.constants, values, strict=True):
            if treespec is None and isinstance(value, Tensor):
                found.append(value)
                continue
            leaves, own = pytree.tree_flatten(value)
            if own != treespec or not all(map(_is_constant, leaves, constants)):
                raise Misfit("what its rows carry changes from timestep to timestep in more than the values of tensors")
            found += [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if len(found) != len(self.likes) or not all(map(Like.fits, self.likes, found)):
            raise Misfit("what its rows carry changes its size or type from timestep to timestep")
        return found

    def with_strides(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        return list(map(Like.with_strides, self.likes, tensors))

    def values_of(self, tensors: Sequence[Tensor]) -> list[Any]:
        following = iter(tensors)
        values = []
        for treespec, constants in zip(self.treespecs, self.constants, strict=True):
            leaves = [next(following) if constant is _TENSOR else constant for constant in constants]
            values.append(leaves[0] if treespec is None else pytree.tree_unflatten(leaves, treespec))
        return values


def _is_constant(leaf: Any, constant: Any) -> bool:
    if isinstance(leaf, Tensor):
        return constant is _TENSOR
    return leaf is constant or (type(leaf) is type(constant) and is_plain(leaf) and leaf == constant)
