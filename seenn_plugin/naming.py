"""Error messages that list the valid names and point at the closest one."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Say that ``name`` is no known ``kind``, which names are, and which of them is closest."""
    choices = sorted(valid)
    message = f"unknown {kind} {name!r}; valid: {', '.join(choices) or 'none'}"
    closest = get_close_matches(str(name), choices, n=1)
    return f"{message}. Did you mean {closest[0]!r}?" if closest else f"{message}."
