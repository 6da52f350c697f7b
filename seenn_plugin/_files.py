"""Writing files so that nothing finished is lost, whenever the process is stopped and whatever the disk does."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import secrets
import shutil
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from .errors import InputError

_UNFINISHED = ".part"
_LOCK = ".lock"
_CHECKSUM = "sha256"

Content = str | bytes | Callable[[Path], object]
"""The content of a file, or a function that writes it to a path."""


def write_files(files: Mapping[Path, Content]) -> None:
    """Write files that belong together, in folders that are made if they are missing.

    Every file is first written beside its place, and forced to the disk. Only when all of them are whole do they
    replace what was there. An interruption therefore leaves every file as it was, or whole and new.

    Raises:
        InputError: a file cannot be written, for example because the disk is full. What was there is kept.
    """
    written: dict[Path, Path] = {}
    try:
        for path, content in files.items():
            with _naming(path):
                place = _regular(path)
                written[place] = place.with_name(f"{place.name}.{os.getpid()}-{secrets.token_hex(4)}{_UNFINISHED}")
                _write(written[place], content)
                if place.exists():
                    shutil.copymode(place, written[place])
        for place, unfinished in written.items():
            with _naming(place):
                os.replace(unfinished, place)
        for folder in {place.parent for place in written}:
            _sync_folder(folder)
    finally:
        for unfinished in written.values():
            with suppress(OSError):  # what stopped the writing counts
                unfinished.unlink(missing_ok=True)


def _regular(path: Path) -> Path:
    """The file that a path leads to, which may have to be made."""
    place = Path(path).resolve()  # a link stays a link
    place.parent.mkdir(parents=True, exist_ok=True)
    if place.is_dir():
        raise IsADirectoryError(errno.EISDIR, "it is a folder; name a file")
    if place.exists() and not place.is_file():
        raise OSError(errno.EINVAL, "it is no regular file")
    return place


def _write(path: Path, content: Content) -> None:
    if callable(content):
        content(path)
    else:
        path.write_bytes(content.encode() if isinstance(content, str) else content)
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    """Force the names in a folder to the disk, where the system can do that."""
    with suppress(OSError):  # the files are whole: at worst the old ones are back after a power cut
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # what a function raises that writes to a full disk is its own affair
        why = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise InputError(f"cannot write {path}: {why}. What was there before is kept.") from error


# -- one process at a time ---------------------------------------------------------------------------------------------


@contextmanager
def locked(path: str | Path | None) -> Iterator[None]:
    """Keep other processes from resuming the same file meanwhile. Unfinished files of a process that died are removed.

    The operating system holds the lock, so that it ends with the process, however that ends.

    Args:
        path: the file; ``None``: there is nothing to keep.

    Raises:
        InputError: another process has it, or its folder cannot be written to.
    """
    if path is None:
        yield
        return
    place = Path(path).resolve()
    with _naming(place):
        place = _regular(place)
        file = _locked_file(place)
    try:
        for unfinished in place.parent.glob(f"*{_UNFINISHED}"):
            if unfinished.name.startswith(f"{place.name}."):
                unfinished.unlink(missing_ok=True)
        yield
    finally:
        with suppress(OSError):  # where an open file cannot be removed it stays, unlocked
            os.unlink(file.name)
        _unlock(file)


def _locked_file(place: Path) -> IO[bytes]:
    lock = place.with_name(f"{place.name}{_LOCK}")
    while True:
        file = lock.open("ab")
        try:
            _lock(file)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(lock)):
                return file
        except FileNotFoundError:  # its last holder has removed it in between
            pass
        except (BlockingIOError, PermissionError) as error:
            file.close()
            raise InputError(
                f"another process works on {place}: only one at a time can continue what is in {place.parent}. Wait "
                "until it has finished, end it, or name another place."
            ) from error
        except OSError as error:
            warnings.warn(
                f"files in {place.parent} cannot be locked ({error.strerror}): let only one process continue {place}.",
                RuntimeWarning,
                stacklevel=2,
            )
            return file
        file.close()


if os.name == "nt":  # pragma: no cover
    import msvcrt

    def _lock(file: IO[bytes]) -> None:
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # pyright: ignore[reportAttributeAccessIssue]

    def _unlock(file: IO[bytes]) -> None:
        file.close()

else:
    import fcntl

    def _lock(file: IO[bytes]) -> None:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def _unlock(file: IO[bytes]) -> None:
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_UN)  # workers that were forked meanwhile hold the file open
        file.close()


# -- JSON that notices damage ------------------------------------------------------------------------------------------


def to_json(content: Mapping[str, Any], indent: int) -> str:
    """A JSON object with a checksum of itself."""
    plain = json.loads(json.dumps(content))  # as it will be read: the names in JSON are text
    return json.dumps({**plain, _CHECKSUM: checksum(_canonical(plain))}, indent=indent) + "\n"


def from_json(path: Path) -> dict[str, Any]:
    """The content of a file that :func:`to_json` has made; the checksum may be missing.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds no JSON object, or another one than was written.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError(f"it holds {type(content).__name__}, no JSON object")
    expected = content.pop(_CHECKSUM, None)
    if expected is not None and expected != checksum(_canonical(content)):
        raise ValueError("it is damaged, or was changed by hand: its checksum does not fit")
    return content


def checksum(content: bytes) -> str:
    """SHA-256, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _canonical(content: Mapping[str, Any]) -> bytes:
    return json.dumps(content, sort_keys=True).encode()
