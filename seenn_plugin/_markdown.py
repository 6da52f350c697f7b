"""Text, names and tables in Markdown. Nothing in a text that comes from elsewhere is markup."""

from __future__ import annotations

import html
import re
from collections.abc import Sequence

_MARKUP = re.compile(r"[\\`*~$]|!(?=\[)|\](?=[(\[:])|(?<!\w)_|_(?!\w)")
"""What begins or ends code, emphasis, a formula, a link or a picture."""


def cell(text: object) -> str:
    """Text in a cell of a table, or in a line."""
    line = " ".join(html.escape(str(text), quote=False).split("\n")).replace("\r", " ")
    return _MARKUP.sub(lambda found: f"&#{ord(found[0])};", line).replace("|", "\\|")


def code(text: object) -> str:
    """The same as code."""
    plain = str(text)
    if re.search(r"[`<>&|\\\s]", plain):  # between backticks nothing can be escaped
        return f"<code>{cell(plain)}</code>"
    return f"`{plain}`"


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. Cells are Markdown: what comes from elsewhere goes through :func:`cell` first."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"
