"""Early exit for a stream of single samples: whoever has answered hands its slot to the next."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from .batch import warn_unsure
from .flight import Exits, Flight, Fresh, Way, fly
from .result import StreamItem

Start = Callable[[Tensor], Any]
"""What the policy knows of fresh rows ``[m, ...]`` (or ``[T, m, ...]``)."""
Prepare = Callable[[Tensor], tuple[Way, bool, Start]]
"""From the first rows: how rows are run, whether rows can join others in flight, and how rows start."""


class Stream(Iterator[StreamItem]):
    """The answers to the samples of a stream, one by one.

    A sample is read when there is a slot for it, and no sooner: beyond the answers that were asked for, at most
    ``slots`` samples are in flight (and, where answers come in order, those that wait for an earlier one). Nothing is
    computed but on request, so that a caller who stops leaves the rest of ``samples`` unread and the model as it was.

    If reading a sample fails, those read before it are answered first. If the model or the policy fails, answers that
    were found are handed out first. Either way the error is the original one, with a note that names the samples'
    keys; the stream has then ended.

    Attributes:
        steps_executed: row-steps that the network has computed so far.
    """

    def __init__(self, samples: Iterable[Any], slots: int, ordered: bool, row_dim: int, prepare: Prepare) -> None:
        self._samples = _Samples(samples, row_dim)
        self._flight: Flight | None = None
        self._answers = self._run(slots, ordered, prepare)

    def __next__(self) -> StreamItem:
        return next(self._answers)

    def close(self) -> None:
        """End the stream: samples in flight are forgotten, no further ones are read."""
        self._answers.close()

    @property
    def steps_executed(self) -> int:
        return 0 if self._flight is None else self._flight.steps_executed

    def _run(self, slots: int, ordered: bool, prepare: Prepare) -> Generator[StreamItem]:
        waiting: dict[int, StreamItem] = {}  # in order: answers that were found before an earlier one
        answered = 0
        exits = self._exits(slots, prepare)
        error: Exception | None = None
        while True:
            try:
                with torch.no_grad():  # not around a yield: the caller has a gradient mode of his own
                    found = next(exits, None)
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
        if self._flight is not None and self._flight.unsure:
            warn_unsure(self._flight.unsure, self._samples.read, self._flight.way.timesteps, stacklevel=4)
        error = error or self._samples.error
        if error is not None:
            raise error

    def _exits(self, slots: int, prepare: Prepare) -> Iterator[Exits]:
        first = self._samples.take(slots)
        if first is None:
            return
        way, refill, start = prepare(first[1])
        self._flight = Flight(way)
        yield from fly(self._flight, _Started(self._samples, start, first), slots, refill)

    def _items(self, exits: Exits) -> Iterator[StreamItem]:
        positions, timesteps, score = (t.tolist() for t in (exits.tickets, exits.timesteps, exits.score))
        for position, logits, t, one in zip(positions, exits.logits, timesteps, score, strict=True):
            yield StreamItem(self._samples.keys.pop(position), position, logits, t, one)

    def _name_keys(self, error: Exception) -> None:
        if self._samples.keys:
            error.add_note(f"raised with the samples of these keys in flight: {list(self._samples.keys.values())}")


class _Samples:
    """Reads single samples, each a tensor or a pair ``(key, tensor)``, and makes rows of them.

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
        """At most so many samples: their positions, long ``[m]``, and rows; ``None`` if there are no more."""
        start, samples = self.read, []
        while len(samples) < most and not self._ended:
            try:
                key, sample = self._split(next(self._iterator))
                self._check(key, sample)
            except StopIteration:
                self._ended = True
            except Exception as error:  # to be raised once those read before have been answered
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
                "a stream must be alike (a stream for each shape, or padding)."
            )
        self._first = first


class _Started:
    """Samples as fresh rows, with what the policy knows of them."""

    def __init__(self, samples: _Samples, start: Start, first: tuple[Tensor, Tensor] | None) -> None:
        self._samples, self._start, self._first = samples, start, first

    def take(self, most: int) -> Fresh | None:
        taken, self._first = self._first or self._samples.take(most), None
        return None if taken is None else Fresh(*taken, self._start(taken[1]))


def _kind(item: Any) -> str:
    if isinstance(item, Tensor):
        return f"{item.dtype} tensor {tuple(item.shape)} on {item.device}"
    if isinstance(item, tuple):
        return f"tuple ({', '.join(type(part).__name__ for part in item)})"
    return type(item).__name__
