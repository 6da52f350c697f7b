"""The trained networks that this distribution brings along, by name."""

from __future__ import annotations

from pathlib import Path

from .._naming import unknown_name
from ..errors import InputError

_CARD = "card.json"


def packaged() -> dict[str, Path]:
    """The folders of all packaged networks, by name: those of the wheel, or of the clone it is run from."""
    package = Path(__file__).parent.parent
    for root in (package / "packaged_checkpoints", package.parent / "checkpoints"):
        found = {folder.name: folder for folder in sorted(root.glob("*")) if (folder / _CARD).is_file()}
        if found:
            return found
    return {}


def find(name: str | Path) -> Path:
    """The folder of a trained network: a folder of that path, or else the packaged network of that name.

    Raises:
        InputError: there is neither.
    """
    folder = Path(name)
    if folder.is_dir():
        return folder
    known = packaged()
    if str(name) in known:
        return known[str(name)]
    raise InputError(f"there is no folder {folder}; {unknown_name('packaged network', str(name), known)}")
