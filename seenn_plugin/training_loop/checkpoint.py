"""A file from which interrupted training goes on as if it had not been interrupted."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import InputError


class Checkpoint:
    """The finished runs, and the one under way, after its last whole epoch.

    Written with ``torch.save`` and read with ``weights_only=True``: it holds tensors and plain values, and reading it
    runs no code.

    Args:
        path: the file; read if it exists. ``None``: nothing is written.
        facts: plain values that must be the same for training to go on.

    Raises:
        InputError: the file is no checkpoint, or one of another training.
    """

    def __init__(self, path: str | Path | None, facts: dict[str, Any]) -> None:
        self._path = None if path is None else Path(path)
        self._content: dict[str, Any] = {"facts": facts, "finished": {}, "running": None}
        if self._path is not None and self._path.exists():
            self._content = _read(self._path, facts)

    def finished(self, name: str) -> dict[str, Any] | None:
        """The result of a run, if it is finished."""
        return self._content["finished"].get(name)

    def running(self, name: str) -> dict[str, Any] | None:
        """The state of a run, if it is the one under way."""
        running = self._content["running"]
        return running["state"] if running and running["name"] == name else None

    def keep(self, name: str, state: Callable[[], dict[str, Any]]) -> None:
        """Write the state of the run under way, which is asked for only if it is written."""
        if self._path is not None:
            self._content["running"] = {"name": name, "state": state()}
            self._write(self._path)

    def finish(self, name: str, result: dict[str, Any]) -> None:
        """Write the result of the run that was under way."""
        if self._path is not None:
            self._content["finished"][name] = result
            self._content["running"] = None
            self._write(self._path)

    def _write(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f"{path.name}.part")
        torch.save(self._content, unfinished)
        os.replace(unfinished, path)  # an interruption leaves the old one, or the new one, whole


def _read(path: Path, facts: dict[str, Any]) -> dict[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, _, _ = content["facts"], content["finished"], content["running"]
    except Exception as error:  # what the reader raises depends on what is there instead
        raise InputError(f"{path} is no checkpoint of training: {error!r}") from error
    different = [
        f"{name} ({saved.get(name)!r} there, {facts.get(name)!r} here)"
        for name in sorted({*saved, *facts})
        if saved.get(name) != facts.get(name)
    ]
    if different:
        raise InputError(
            f"{path} is the checkpoint of another training: {', '.join(different)}. Delete it, or name another file."
        )
    return content
