"""Set entries of dictionaries for the duration of a ``with`` block: attributes of modules, their ``forward``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from torch import nn

from .cells import write
from .values import ABSENT


@contextmanager
def patched(entries: Iterable[tuple[dict[Any, Any], Any, Any]]) -> Iterator[None]:
    """Set dictionary entries, and restore them afterwards, whatever happens.

    Args:
        entries: dictionary, key and value; the value :data:`~seenn_plugin.state.values.ABSENT` removes the key.
    """
    own: list[tuple[dict[Any, Any], Any, Any]] = []
    try:
        for store, key, value in entries:
            own.append((store, key, store.get(key, ABSENT)))
            write(store, key, value)
        yield
    finally:
        for store, key, value in reversed(own):
            write(store, key, value)


def patched_forward(forwards: Mapping[nn.Module, Callable[..., Any]]) -> AbstractContextManager[None]:
    """Let modules run other functions as their ``forward``. Their hooks are called as ever."""
    return patched((vars(module), "forward", forward) for module, forward in forwards.items())
