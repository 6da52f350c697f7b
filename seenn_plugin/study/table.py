"""Tables and numbers in Markdown."""

from __future__ import annotations

import html
from collections.abc import Sequence

from .statistics import mean_and_deviation


def cell(text: str) -> str:
    """Text in a cell of a table, or in a line: nothing in it is markup."""
    return html.escape(text, quote=False).replace("|", "\\|").replace("\n", " ")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table. Cells are Markdown: names that come from elsewhere go through :func:`cell` first."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cells) + " |" for cells in lines) + "\n"


def spread(values: Sequence[float], digits: int) -> str:
    """Mean, and the standard deviation if there are several values."""
    middle, deviation = mean_and_deviation(values)
    return f"{middle:.{digits}f}" + ("" if deviation is None else f" ± {deviation:.{digits}f} (n = {len(values)})")
