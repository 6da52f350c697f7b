"""What training shows while it runs: a progress bar, and TensorBoard scalars when asked."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tqdm import tqdm  # tqdm.auto warns in notebooks without ipywidgets

from ..errors import InputError, OptionalDependencyError

_SHOWN = 6


class Monitor:
    """Follows one run after the other.

    Args:
        title: before the names of the runs in the progress bar.
        progress: whether to show a progress bar for each run.
        log_dir: folder of TensorBoard event files, one folder in it for each run; ``None``: none are written.

    Raises:
        OptionalDependencyError: ``log_dir`` is given and TensorBoard is not installed.
        InputError: ``log_dir`` cannot be made.
    """

    def __init__(self, title: str, progress: bool, log_dir: str | Path | None) -> None:
        self.title = title
        self.progress = progress
        self._log_dir = None if log_dir is None else Path(log_dir)
        self._bar: Any = None
        self._writer: Any = None
        if self._log_dir is not None:
            _summary_writer()
            try:
                self._log_dir.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise InputError(f"cannot write scalars to {log_dir}: {error.strerror}.") from error

    @property
    def writes(self) -> bool:
        """Whether scalars are written."""
        return self._log_dir is not None

    @contextmanager
    def run(self, name: str, epochs: int, done: int) -> Iterator[None]:
        """One run of ``epochs``, of which ``done`` were made before."""
        self._bar = tqdm(
            total=epochs, initial=done, desc=f"{self.title} {name}", unit="epoch", disable=not self.progress
        )
        if self._log_dir is not None:
            # What was written beyond the epoch at which an interrupted run goes on is hidden.
            self._writer = _summary_writer()(str(self._log_dir / name), purge_step=done + 1)
        try:
            yield
        finally:
            self._bar.close()
            if self._writer is not None:
                self._writer.close()

    def epoch(self, epoch: int, scalars: dict[str, float]) -> None:
        """Epoch number ``epoch``, counted from 1, is done."""
        names = list(scalars)
        if len(names) > _SHOWN:  # the accuracies of many timesteps
            names = [names[0], names[-1]]
        self._bar.set_postfix({name: f"{scalars[name]:.4f}" for name in names}, refresh=False)
        self._bar.update()
        if self._writer is not None:
            for name, value in scalars.items():
                self._writer.add_scalar(name, value, epoch)


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise OptionalDependencyError("tensorboard", "tensorboard", "log_dir=...") from error
    return SummaryWriter
