"""A file from which interrupted training goes on as if it had not been interrupted."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import torch

from .._files import write_files
from ..errors import InputError


class Checkpoint:
    """The finished runs, and the one under way, after its last whole epoch.

    Written with ``torch.save`` and read with ``weights_only=True``: it holds tensors and plain values, and reading it
    runs no code. Only the process that has locked the file (:func:`seenn_plugin._files.locked`) may use it.

    Args:
        path: the file; read if it exists. ``None``: nothing is written.

    Raises:
        InputError: the file is no checkpoint.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else Path(path)
        self._content: dict[str, Any] = {"facts": None, "finished": {}, "running": None}
        if self._path is not None and self._path.exists():
            self._content = _read(self._path)

    def require(self, facts: dict[str, Any]) -> None:
        """Compare plain values that must be the same for training to go on, and keep them.

        Raises:
            InputError: the file is one of another training.
        """
        facts = json.loads(json.dumps(facts))  # plain values only: NumPy's would not be read again
        saved = self._content["facts"] or facts
        different = [
            f"{name} ({saved.get(name)!r} there, {facts.get(name)!r} here)"
            for name in sorted({*saved, *facts})
            if saved.get(name) != facts.get(name)
        ]
        if different:
            raise InputError(
                f"{self._path} is the checkpoint of another training: {', '.join(different)}. Delete it, or name "
                "another file."
            )
        self._content["facts"] = facts

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
        content = BytesIO()
        torch.save(self._content, content)
        write_files({path: content.getvalue()})


def _read(path: Path) -> dict[str, Any]:
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()  # PyTorch does not compare the checksums
        if damaged is not None:
            raise ValueError(f"the checksum of {damaged} does not fit")
        content = torch.load(path, map_location="cpu", weights_only=True)
        saved, finished, running = content["facts"], content["finished"], content["running"]
        if not (isinstance(saved, dict) and isinstance(finished, dict) and isinstance(running, dict | None)):
            raise TypeError("it holds other values")
    except Exception as error:  # what the readers raise depends on what is there instead
        raise InputError(
            f"{path} is no checkpoint of training, or damaged: {error!r}. Delete it to begin anew, or name another "
            "place."
        ) from error
    return content
