"""What a model returns, as a list of tensors of which the first is its answer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelRefused

OutputChoice = str | int | Callable[[Any], Any]
"""Which part of what ``forward`` returns is the answer: a key or attribute, a position, or a function that takes it."""


def picked(returned: Any, output: OutputChoice | None) -> Any:
    """The answer in what ``forward`` returned: a tensor, or several of which the first is the answer.

    Args:
        returned: what it returned.
        output: which part is the answer. By default all of it, and of a mapping or a dataclass its only tensor of
            floating-point numbers.

    Raises:
        ModelRefused: there is no such part; or none was named, and there are several or none.
    """
    if callable(output):
        return output(returned)
    parts = _parts(returned)
    if output is None:
        if parts is None:
            return returned
        possible = [part for part in parts.values() if isinstance(part, Tensor) and part.is_floating_point()]
        if len(possible) == 1:
            return possible[0]
        raise ModelRefused(
            f"the model returns a {type(returned).__name__} with {_listed(parts)}, and it is not clear which of them "
            "is its answer.",
            f"Say so: EarlyExitWrapper(..., output={next(iter(parts), 'logits')!r}).",
        )
    if parts is None and isinstance(output, str) and hasattr(returned, output):
        return getattr(returned, output)  # a named tuple, or an object of another class
    if parts is None and isinstance(returned, tuple | list):
        numbered: dict[Any, Any] = {i: part for n, part in enumerate(returned) for i in (n, n - len(returned))}
        parts = numbered
    if parts is not None and output in parts:
        return parts[output]
    names = [repr(name) for name in parts or () if not isinstance(name, int) or name >= 0]
    raise ModelRefused(
        f"output={output!r}, and the model returns a {type(returned).__name__}"
        + (f" with {', '.join(names)}." if names else "."),
        "Name a part of what forward() returns, or pass a function that takes it: output=lambda returned: ...",
    )


def results(returned: Any, output: OutputChoice | None = None) -> list[Tensor | None]:
    """What ``forward`` returns, as a list of tensors; a list with one tensor for each timestep is stacked."""
    answer = picked(returned, output)
    items = answer if isinstance(answer, tuple) else (answer,)
    tensors = [_as_tensor(item) for item in items]
    refuse_whole_numbers(tensors[0] if tensors else None)
    return tensors


def refuse_whole_numbers(answer: Any) -> None:
    """Refuse an answer that says nothing about how sure it is.

    Raises:
        ModelRefused: it is a tensor of integers.
    """
    if isinstance(answer, Tensor) and not answer.is_floating_point() and answer.dtype != torch.bool:
        raise ModelRefused(
            f"the model answers with whole numbers ({answer.dtype}), which do not say how sure it is.",
            "Return spikes, counts or logits as floating-point numbers, and take .argmax(1) of the wrapper's answer.",
        )


def _parts(returned: Any) -> dict[Any, Any] | None:
    """The parts of a mapping or a dataclass by name; ``None`` for anything else."""
    if isinstance(returned, Mapping):
        return dict(returned)
    if is_dataclass(returned) and not isinstance(returned, type):
        return {field.name: getattr(returned, field.name) for field in fields(returned)}
    return None


def _listed(parts: Mapping[Any, Any]) -> str:
    shown = (
        f"{name!r} {tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__}"
        for name, part in parts.items()
    )
    return ", ".join(shown) or "nothing in it"


def _as_tensor(item: Any) -> Tensor | None:
    if isinstance(item, list | tuple) and item and all(isinstance(one, Tensor) for one in item):
        return torch.stack(list(item)) if len({one.shape for one in item}) == 1 else None
    return item if isinstance(item, Tensor) else None
