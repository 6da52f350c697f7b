"""Error messages about unknown names."""

from collections.abc import Iterable
from difflib import get_close_matches


def unknown_name(kind: str, name: object, valid: Iterable[str]) -> str:
    """Return an error message that lists the valid names and suggests the closest one.

    Args:
        kind: what is named, such as ``"policy"``.
        name: the unknown name.
        valid: the known names.

    Example:
        >>> unknown_name("policy", "margn", ["margin", "fixed"])
        "unknown policy 'margn'; valid: fixed, margin. Did you mean 'margin'?"
    """
    choices = sorted(valid)
    message = f"unknown {kind} {name!r}; valid: {', '.join(choices) or 'none'}"
    closest = get_close_matches(str(name), choices, n=1)
    return f"{message}. Did you mean {closest[0]!r}?" if closest else f"{message}."
