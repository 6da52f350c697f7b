"""Checks of arguments, made before the work that they are for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from .errors import SeennError

MOST_SEED = 2**63 - 1
"""The largest seed that PyTorch takes everywhere."""


def number_mistake(name: str, value: object, least: float, most: float = math.inf) -> str | None:
    """What is wrong with a finite number from ``least`` to ``most``; ``None`` if nothing is."""
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    if math.isfinite(number) and least <= number <= most:
        return None
    allowed = f"of at least {least:g}" if most == math.inf else f"from {least:g} to {most:g}"
    return f"{name} must be a finite number {allowed}, not {value!r}."


def integer_mistake(name: str, value: object, least: int, most: float = math.inf) -> str | None:
    """What is wrong with an integer from ``least`` to ``most``; ``None`` if nothing is."""
    if isinstance(value, int) and not isinstance(value, bool) and least <= value <= most:
        return None
    limit = "" if most == math.inf else f" and at most {most}"
    return f"{name} must be an integer of at least {least}{limit}, not {value!r}."


def flag_mistake(name: str, value: object) -> str | None:
    """What is wrong with a flag; ``None`` if nothing is."""
    return None if isinstance(value, bool) else f"{name} must be True or False, not {value!r}."


def check(error: type[SeennError], *mistakes: str | None) -> None:
    """Raise an error that names all mistakes; ``None`` is none."""
    found = [mistake for mistake in mistakes if mistake is not None]
    if found:
        raise error(" ".join(found))


def target_mistakes(max_accuracy_drop: object, average_timesteps: object) -> list[str | None]:
    """What is wrong with the targets of a calibration or fit; ``None`` is a target that is not given."""
    drop, steps = max_accuracy_drop, average_timesteps
    found = [None if drop is None else number_mistake("max_accuracy_drop", drop, 0, 1)]
    if found[0] is not None:
        found[0] += " It is a fraction: 0.005 allows half a point below the accuracy at full T."
    found.append(None if steps is None else number_mistake("average_timesteps", steps, 1))
    return found


def price_mistakes(prices: Mapping[str, object]) -> list[str | None]:
    """What is wrong with prices of operations, in picojoules."""
    return [number_mistake(name, price, 0) for name, price in prices.items()]


def loader_mistake(name: str, loader: object) -> str | None:
    """What is wrong with something that should yield batches; ``None`` if it can be iterated."""
    if hasattr(type(loader), "__iter__") or hasattr(type(loader), "__getitem__"):
        return None
    return f"{name} must yield batches (x, labels), as a DataLoader or a list of them does; it is {loader!r}."


def wrapped_mistake(snn: object) -> str | None:
    """What is wrong with something that should be a wrapped network; ``None`` if it can infer and trace."""
    if hasattr(snn, "infer") and hasattr(snn, "trace"):
        return None
    return f"snn must be a wrapped network, EarlyExitWrapper(model, ...), not {type(snn).__name__}."
