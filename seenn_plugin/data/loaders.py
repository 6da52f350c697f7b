"""Loaders whose batches are not pairs of input and labels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any


class Pairs:
    """A loader that yields something else, as one that yields pairs ``(x, labels)``. It can be read as often.

    Args:
        loader: yields batches of any kind.
        unpack: from a batch to ``(x, labels)``.

    Example:
        >>> import torch
        >>> triples = [(torch.rand(4, 8), torch.tensor([0, 1, 2, 0]), "file 1")]
        >>> [(x.shape, labels.tolist()) for x, labels in Pairs(triples, lambda batch: batch[:2])]
        [(torch.Size([4, 8]), [0, 1, 2, 0])]
    """

    def __init__(self, loader: Iterable[Any], unpack: Callable[[Any], tuple[Any, Any]]) -> None:
        self.loader, self.unpack = loader, unpack

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return map(self.unpack, self.loader)

    def __len__(self) -> int:
        return len(self.loader)  # pyright: ignore[reportArgumentType]
