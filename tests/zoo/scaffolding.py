"""What the zoos of both frameworks share: parameters, exit rules, the invariants, the cases that must be refused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ..invariants import (
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_saved,
    check_slots,
    check_whole,
    prescribed,
)
from ..reference import Runner, exit_alone
from .entry import Entry, Refused

ROWS = 5
ORDERS = ((3, 0, 1, 1), (4, 2, 2, 0, 1, 3, 1))
"""Rows of a batch in another order: some are missing, some come twice."""


def each(entries: Iterable[Entry | Refused], name: str = "entry") -> Callable[..., Any]:
    """Parametrise a test, or all tests of a class, by the models of a zoo."""
    return pytest.mark.parametrize(name, [pytest.param(entry, id=entry.name) for entry in entries])


def mixed(timesteps: int) -> Rule:
    """Rows leave at the first timestep, at the last, and in between; two at the same."""
    return prescribed(2, timesteps, 1, 3, 2)


def exits_under(rule: Rule, trace: Tensor) -> list[int]:
    return [exit_alone(rule.name, rule.settings, trace[:, row], row)[0] for row in range(trace.shape[1])]


def confidence(trace: Tensor, temperature: float = 1.0) -> Rule:
    """The confidence rule under which rows of a trace ``[T, N, C]`` leave at the most different timesteps.

    Its threshold lies in the middle of the widest gap between two confidences, so that rounding decides nothing.
    """
    levels = trace.double().div(temperature).softmax(-1).amax(-1)[:-1].flatten().unique()
    best: tuple[tuple[int, float], Rule] | None = None
    for low, high in pairwise(levels):
        rule = Rule("confidence", {"threshold": float(low + high) / 2, "temperature": temperature})
        rank = len(set(exits_under(rule, trace))), float(high - low)
        if high - low > 1e-3 and rank[0] > 1 and (best is None or rank > best[0]):
            best = rank, rule
    assert best is not None, "no threshold lets rows leave at different timesteps"
    return best[1]


class InvariantTests:
    """The invariants of a model that must be taken. A subclass is parametrised with ``each`` and defines ``case``."""

    temperature: float = 1.0

    def other_models(self, case: Case) -> Sequence[nn.Module]:
        """Models of the process that must not be touched, in the middle of a run of their own."""
        raise NotImplementedError

    def confidence(self, case: Case) -> Rule:
        return confidence(case.trace, self.temperature)

    def test_rows_have_reason_to_leave_at_different_timesteps(self, case):
        exits = exits_under(self.confidence(case), case.trace)
        assert min(exits) < case.timesteps
        assert len(set(exits)) > 1

    def test_whole(self, case):
        check_whole(case)

    def test_prefix(self, case):
        check_prefix(case, mixed(case.timesteps))
        check_prefix(case, self.confidence(case))

    def test_alone(self, case):
        check_alone(case, mixed(case.timesteps), ORDERS[0])
        check_alone(case, self.confidence(case), ORDERS[1])

    def test_guest(self, case):
        others = self.other_models(case)
        check_guest(replace(case, wrapper=None), mixed(case.timesteps), failing_call=2, others=others)

    def test_saved(self, case):
        check_saved(case, mixed(case.timesteps))


class RefillableTests:
    """The invariant of a model whose rows can join active ones."""

    def test_alone_in_places_that_others_had(self, case):
        check_slots(case, mixed(case.timesteps), slots=2)


def refused_case(entry: Refused, run: Runner, seed: int, **options: Any) -> Case:
    """The case of a model that must be refused."""
    generator = torch.Generator().manual_seed(seed)
    shape = (entry.timesteps, ROWS, *entry.row) if entry.sequence else (ROWS, *entry.row)
    return Case(
        entry.build(),
        run,
        torch.rand(shape, generator=generator),
        entry.timesteps,
        layers=[],
        sequence=entry.sequence,
        time_dim=entry.time_dim,
        options={**options, **entry.options},
    )
