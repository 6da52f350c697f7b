"""The run file of a study: what was studied, and the rows that are measured, written after each of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from .._files import from_json, to_json, write_files
from ..errors import InputError

_FORMAT = 1
_PARTS = ("card", "settings", "weights", "parameters", "samples", "static", "rows")
_ROW = ("policy", "target", "provenance")


class RunFile:
    """A JSON file that an interruption leaves whole, and that notices if it was damaged.

    Args:
        path: the file; its rows are kept if it is there.
        studied: what has to be the same for its rows to be kept: ``card``, ``settings``, ``weights``.

    Raises:
        InputError: the file is damaged, or of another study.
    """

    def __init__(self, path: Path, studied: dict[str, Any]) -> None:
        self.path = path
        studied = json.loads(json.dumps(studied))  # as it will be read again: JSON has no tuples
        self.content: dict[str, Any] = {
            "format": _FORMAT,
            **studied,
            "parameters": 0,
            "samples": {},
            "static": {},
            "rows": [],
        }
        if path.exists():
            found = read(path)
            different = [name for name, value in studied.items() if found[name] != value]
            if different:
                raise InputError(
                    f"{path} is the run file of another study: {' and '.join(different)} differ. Delete it, or name "
                    "another file."
                )
            self.content = found

    def row(self, policy: str, target: str) -> dict[str, Any] | None:
        """The row of a policy for a target, if it is there."""
        return next((row for row in self.content["rows"] if (row["policy"], row["target"]) == (policy, target)), None)

    def add(self, row: dict[str, Any]) -> None:
        """Add a row, and write."""
        self.content["rows"].append(row)
        self.write()

    def write(self) -> None:
        """Write the file; what was there is replaced by a whole file or not at all.

        Raises:
            InputError: it cannot be written.
        """
        write_files({self.path: to_json(self.content, indent=1)})


def read(path: Path) -> dict[str, Any]:
    """The content of a run file.

    Raises:
        InputError: it is not there, damaged, or of another format.
    """
    try:
        content = from_json(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path} is no run file: {error}. Delete it, and run the study again.") from error
    lacking = [name for name in ("format", *_PARTS) if name not in content]
    if not lacking:
        rows = content["rows"] if isinstance(content["rows"], list) else [{}]
        lacking = sorted({name for row in rows for name in _ROW if not isinstance(row, dict) or name not in row})
    if lacking:
        raise InputError(f"{path} is no run file: it lacks {', '.join(lacking)}. Delete it, and run the study again.")
    if content["format"] != _FORMAT:
        raise InputError(f"{path} is a run file in format {content['format']}, not {_FORMAT}: run the study again.")
    return content
