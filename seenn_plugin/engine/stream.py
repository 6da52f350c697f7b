"""Early exit for a stream of single samples: a finished sample's slot is reused by the next one."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..inputs import InputBatch
from .active_batch import ActiveBatch, FinishedRows, NewRows, RunConfig, run
from .batch import warn_nonfinite_rows
from .result import StreamItem

MakeRows = Callable[[Tensor], tuple[InputBatch, Any]]
"""From stacked samples, ``[m, ...]`` or ``[T, m, ...]``, to their input and what the policy knows of them."""
Prepare = Callable[[Tensor], tuple[RunConfig, bool, MakeRows]]
"""From the first samples: how rows are run, whether new rows can join active ones, and how rows are made."""


class Stream(Iterator[StreamItem]):
    """The answers to the samples of a stream, one by one.

    A sample is read when there is a slot for it, and no sooner: beyond the answers that were asked for, at most
    ``slots`` samples are active (and, where answers come in order, those that wait for an earlier one). Nothing is
    computed unless an answer is asked for. A caller who stops leaves the rest of ``samples`` unread and the model as it
    was.

    If reading a sample fails, the samples read before it are answered first. If the model or the policy fails, answers
    that were found are returned first. In both cases the error is the original one, with a note that names the keys of
    the samples. The stream has then ended.

    Attributes:
        steps_executed: row-steps that the network has computed so far.
    """

    def __init__(self, samples: Iterable[Any], slots: int, ordered: bool, row_dim: int, prepare: Prepare) -> None:
        self._samples = _Samples(samples, row_dim)
        self._active: ActiveBatch | None = None
        self._answers = self._run(slots, ordered, prepare)

    def __next__(self) -> StreamItem:
        return next(self._answers)

    def close(self) -> None:
        """End the stream: active samples are dropped, no further ones are read."""
        self._answers.close()

    @property
    def steps_executed(self) -> int:
        return 0 if self._active is None else self._active.steps_executed

    def _run(self, slots: int, ordered: bool, prepare: Prepare) -> Generator[StreamItem]:
        waiting: dict[int, StreamItem] = {}  # if ordered: answers that were found before an earlier one
        answered = 0
        finished = self._finished(slots, prepare)
        error: Exception | None = None
        while True:
            try:
                with torch.no_grad():  # not around a yield: the caller has its own gradient mode
                    found = next(finished, None)
            except Exception as raised:
                error, found = raised, None
                self._name_keys(raised)
            if found is None:
                break
            for item in self._items(found):
                waiting[item.position] = item
                while waiting and (not ordered or answered in waiting):
                    yield waiting.pop(answered if ordered else item.position)
                    answered += 1
        for position in sorted(waiting):
            yield waiting[position]
        if self._active is not None and self._active.nonfinite_rows:
            warn_nonfinite_rows(
                self._active.nonfinite_rows, self._samples.read, self._active.config.timesteps, stacklevel=4
            )
        error = error or self._samples.error
        if error is not None:
            raise error

    def _finished(self, slots: int, prepare: Prepare) -> Iterator[FinishedRows]:
        first = self._samples.take(slots)
        if first is None:
            return
        config, refill, make_rows = prepare(first[1])
        self._active = ActiveBatch(config)
        yield from run(self._active, _NewSamples(self._samples, make_rows, first), slots, refill)

    def _items(self, finished: FinishedRows) -> Iterator[StreamItem]:
        positions, timesteps, score = (t.tolist() for t in (finished.row_ids, finished.timesteps, finished.score))
        for position, logits, t, one in zip(positions, finished.logits, timesteps, score, strict=True):
            yield StreamItem(self._samples.keys.pop(position), position, logits, t, one)

    def _name_keys(self, error: Exception) -> None:
        if self._samples.keys:
            error.add_note(f"raised while the samples of these keys were active: {list(self._samples.keys.values())}")


class _Samples:
    """Reads single samples, each a tensor or a pair ``(key, tensor)``, and stacks them.

    Attributes:
        keys: of the samples that were read and not yet answered, by position.
        read: how many samples were read.
        error: what reading raised, if it did; nothing is read afterwards.
    """

    def __init__(self, samples: Iterable[Any], row_dim: int) -> None:
        self._iterator = iter(samples)
        self._row_dim = row_dim
        self._first: Tensor | None = None
        self.keys: dict[int, Any] = {}
        self.read = 0
        self.error: Exception | None = None
        self._ended = False

    def take(self, most: int) -> tuple[Tensor, Tensor] | None:
        """At most ``most`` samples: their positions, long ``[m]``, and their stack; ``None`` if there are no more."""
        start, samples = self.read, []
        while len(samples) < most and not self._ended:
            try:
                key, sample = self._split(next(self._iterator))
                self._check(key, sample)
            except StopIteration:
                self._ended = True
            except Exception as error:  # raised after the samples read before have been answered
                self._ended, self.error = True, error
                error.add_note(f"raised while sample {self.read} of the stream was read (counted from 0)")
            else:
                self.keys[self.read] = key
                samples.append(sample)
                self.read += 1
        return (torch.arange(start, self.read), torch.stack(samples, self._row_dim)) if samples else None

    def _split(self, item: Any) -> tuple[Any, Any]:
        if isinstance(item, Tensor):
            return self.read, item
        key, sample = item if isinstance(item, tuple) and len(item) == 2 else (None, None)
        if not isinstance(sample, Tensor) or isinstance(key, Tensor):
            raise InputError(
                f"sample {self.read} of the stream is a {_kind(item)}; it must be a tensor, or (key, tensor). For a "
                "data set of (x, label): ((i, x) for i, (x, _) in enumerate(data))."
            )
        return key, sample

    def _check(self, key: Any, sample: Tensor) -> None:
        first = sample if self._first is None else self._first
        if (sample.shape, sample.dtype, sample.device) != (first.shape, first.dtype, first.device):
            raise InputError(
                f"the sample with key {key!r} is {_kind(sample)}, and the first one was {_kind(first)}: all samples of "
                "a stream must be alike (use a stream for each shape, or padding)."
            )
        self._first = first


class _NewSamples:
    """Samples as new rows, with what the policy knows of them."""

    def __init__(self, samples: _Samples, make_rows: MakeRows, first: tuple[Tensor, Tensor] | None) -> None:
        self._samples, self._make_rows, self._first = samples, make_rows, first

    def take(self, most: int) -> NewRows | None:
        taken, self._first = self._first or self._samples.take(most), None
        return None if taken is None else NewRows(taken[0], *self._make_rows(taken[1]))


def _kind(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"{item.dtype} tensor {tuple(item.shape)} on {item.device}"
    if isinstance(item, tuple):
        return f"tuple ({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__
