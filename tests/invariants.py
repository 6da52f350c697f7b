"""The six invariants of the design, each as a check on one case: a network, an input, a number of timesteps.

Random small networks (test_invariants.py) and the frameworks' own models go through the same checks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, ExitResult
from seenn_plugin.adapter import Adapter
from seenn_plugin.adapter.conformance import ModelRaised, Snapshot, raising
from seenn_plugin.errors import ModelRefused
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import (
    ConfidencePolicy,
    Decision,
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    PatiencePolicy,
    Policy,
)

from .closeness import differing_rows, largest_difference
from .device import DEVICE
from .reference import Outputs, Runner, decision_logits, exit_alone, outputs_alone, trace_alone

FIRING = (0.02, 0.6)
"""Firing rates between which a network is worth a test: silence and saturation hide mistakes."""


@dataclass(frozen=True)
class PrescribedPolicy(Policy):
    """Lets each row go at the timestep written down for it: any exit pattern can be had."""

    exits: tuple[int, ...] = ()

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        exits = torch.tensor(self.exits, device=logits.device) if policy_state is None else policy_state
        return Decision(timestep >= exits, timestep.double(), exits)


@dataclass(frozen=True)
class ReadOffPolicy(Policy):
    """Lets each row go at the timestep that is written in its input: any exit pattern, whoever joins whenever."""

    def start(self, inputs: InputBatch, timesteps: int, classes: int) -> Any:
        exits = [read_off(row, timesteps) for row in inputs.values.transpose(0, inputs.row_dim)]
        return torch.tensor(exits, device=inputs.device)

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        return Decision(timestep >= policy_state, timestep.double(), policy_state)


def read_off(row: Tensor, timesteps: int) -> int:
    """The exit that :class:`ReadOffPolicy` reads off one row of the input."""
    return int(row.flatten()[0].abs() * 1000) % timesteps + 1


@dataclass(frozen=True)
class Rule:
    """One exit rule with its settings, for the library and for the reference alike."""

    name: str
    settings: dict[str, Any]

    def policy(self) -> Policy:
        classes: dict[str, type[Policy]] = {
            "confidence": ConfidencePolicy,
            "entropy": EntropyPolicy,
            "margin": MarginPolicy,
            "patience": PatiencePolicy,
            "fixed": FixedPolicy,
            "prescribed": PrescribedPolicy,
        }
        return classes[self.name](**self.settings)

    def for_rows(self, rows: Sequence[int]) -> Rule:
        """The same rule for another batch, made of these rows."""
        if self.name != "prescribed":
            return self
        return Rule(self.name, {"exits": tuple(self.settings["exits"][row] for row in rows)})


def prescribed(*exits: int) -> Rule:
    return Rule("prescribed", {"exits": exits})


@dataclass
class Case:
    """A network and an input.

    Attributes:
        model: in evaluation mode.
        run: the framework's own way of running it.
        inputs: ``[N, ...]``, or time-first ``[T, N, ...]`` for a sequence, whatever ``time_dim`` says.
        layers: the modules at which rows are counted.
        readout: a name that the library and the reference share.
        options: further arguments of the wrapper.
        wrapper: a wrapper to use again, where another inspection of the model would take long.
        adapter: an adapter to use in place of the wrapper's own, where adapters are used directly.
    """

    model: nn.Module
    run: Runner
    inputs: Tensor
    timesteps: int
    layers: list[nn.Module]
    sequence: bool = False
    time_dim: int = 0
    chunk: int = 1
    readout: str = "sum"
    options: dict[str, Any] = field(default_factory=dict)
    wrapper: EarlyExitWrapper | None = None
    adapter: Adapter | None = None

    def __post_init__(self) -> None:
        self.model.to(DEVICE)
        self.inputs = self.inputs.to(DEVICE)

    @property
    def n(self) -> int:
        return self.inputs.shape[1 if self.sequence else 0]

    @cached_property
    def answers(self) -> list[list[Outputs]]:
        """Outputs by row and timestep, each row alone."""
        return outputs_alone(self.model, self.run, self.inputs, self.sequence, self.timesteps)

    @cached_property
    def trace(self) -> Tensor:
        """Decision logits ``[T, N, C]``, each row alone."""
        return trace_alone(self.answers, self.readout)

    def exits(self, rule: Rule) -> list[int]:
        """The exit timestep of every row under a rule, by the reference."""
        return [exit_alone(rule.name, rule.settings, self.trace[:, row], row)[0] for row in range(self.n)]

    def scores(self, rule: Rule) -> list[float]:
        return [exit_alone(rule.name, rule.settings, self.trace[:, row], row)[1] for row in range(self.n)]

    def rows(self, rows: Sequence[int]) -> Tensor:
        """The input of some rows, time-first."""
        return self.inputs.index_select(1 if self.sequence else 0, self.index(rows))

    def index(self, rows: Sequence[int]) -> Tensor:
        return torch.tensor(rows, dtype=torch.long, device=self.inputs.device)

    def as_given(self, inputs: Tensor) -> Tensor:
        """An input as the caller of the wrapper has it."""
        return inputs.transpose(0, self.time_dim) if self.sequence else inputs

    def wrap(self, rule: Rule, **options: Any) -> EarlyExitWrapper:
        """A new wrapper; or the one in ``wrapper``, which has looked at the model already, with this rule."""
        if self.wrapper is not None and not options:
            self.wrapper.policy = rule.policy()
            return self.wrapper
        settings: dict[str, Any] = {
            "timesteps": None if self.sequence else self.timesteps,
            "input": "sequence" if self.sequence else "static",
            "time_dim": self.time_dim,
            "chunk": self.chunk,
            "readout": self.readout,
            **self.options,
            **options,
        }
        return EarlyExitWrapper(self.model, rule.policy(), **settings)

    def infer(self, rule: Rule, **options: Any) -> ExitResult:
        with torch.no_grad():
            return self.wrap(rule, **options).infer(self.as_given(self.inputs))


# -- the invariants -------------------------------------------------------------------------------------------------


def check_whole(case: Case) -> None:
    """1. With no exit, the wrapper's answer is the model's own."""
    never = prescribed(*[case.timesteps] * case.n)
    snn = case.wrap(never)
    with torch.no_grad():
        result = snn.infer(case.as_given(case.inputs))
        trace = snn.trace(case.as_given(case.inputs))
        logits = snn(case.as_given(case.inputs))
    assert result.timesteps.tolist() == [case.timesteps] * case.n
    assert_agree(result.logits, case.trace[-1], "the answer at full T", "the model's own")
    assert_agree(trace, case.trace, "the trace", "the model's own", row_dim=1)
    assert torch.equal(logits, result.logits)


def check_prefix(case: Case, rule: Rule) -> None:
    """2. A row's logits are ``trace[t - 1, row]``, and t is what the policy says on that trace."""
    result = case.infer(rule)
    exits = case.exits(rule)
    assert result.timesteps.tolist() == exits
    assert result.timesteps.dtype == torch.long
    assert_agree(result.logits, _at(case.trace, exits), "logits at the exit", "the trace of the rows alone")
    scores = torch.tensor(case.scores(rule), dtype=result.score.dtype).unsqueeze(1)
    assert_agree(result.score.unsqueeze(1), scores, "scores at the exit", "the rule's")
    with torch.no_grad():
        own = case.wrap(rule).trace(case.as_given(case.inputs))
    assert_agree(result.logits, _at(own, exits), "logits at the exit", "the wrapper's own trace")


def check_alone(case: Case, rule: Rule, order: Sequence[int]) -> None:
    """3. A row's answer does not depend on its company, on the order, on who leaves, or on who was there before.

    Args:
        order: rows of the batch in another order; some may be missing, some may come twice.
    """
    exits = case.exits(rule)
    wanted = _at(case.trace, exits)
    snn = case.wrap(rule.for_rows(order))
    with torch.no_grad():
        result = snn.infer(case.as_given(case.rows(order)))
    assert result.timesteps.tolist() == [exits[row] for row in order]
    assert_agree(result.logits, wanted[list(order)], f"rows {list(order)} as one batch", "the same rows alone")


def check_slots(case: Case, rule: Rule, slots: int, steps: int = 1) -> None:
    """3, continued. Rows that take over a place in which another row has been, answer as they do alone.

    Args:
        slots: active rows at most; the others wait for a place.
        steps: timesteps between two looks, so that places fall free at the same time and at different ones.
    """
    exits = case.exits(rule)
    snn = case.wrap(rule)
    adapter = case.adapter or snn.adapter

    def batch(inputs: Tensor) -> InputBatch:  # as the wrapper makes it at every call
        return InputBatch(inputs, case.sequence, snn.time_dim, snn.timesteps)

    waiting = list(range(case.n))
    running, waiting = waiting[:slots], waiting[slots:]
    made: dict[int, list[Tensor]] = {row: [] for row in range(case.n)}
    with torch.no_grad():
        rows = adapter.begin(batch(case.rows(running)))
        while running:
            for _ in range(steps):
                if max(len(made[row]) for row in running) < case.timesteps:
                    output = adapter.advance(rows)[0][0]
                    for place, row in enumerate(running):
                        made[row].append(output[place].clone())
            free = [place for place, row in enumerate(running) if len(made[row]) >= exits[row]]
            taken, free = free[: len(waiting)], free[len(waiting) :]
            if taken:
                arriving, waiting = waiting[: len(taken)], waiting[len(taken) :]
                adapter.place(rows, case.index(taken), batch(case.rows(arriving)))
                for place, row in zip(taken, arriving, strict=True):
                    running[place] = row
                assert rows.clock.tolist() == [len(made[row]) for row in running]
            if free:
                staying = [place for place in range(len(running)) if place not in free]
                running = [running[place] for place in staying]
                if running:
                    adapter.keep(rows, case.index(staying))
    own = adapter.answer(batch(case.inputs))
    for row, outputs in made.items():
        if own is not None:  # the case knows the answers so far
            steps = [(output.unsqueeze(0),) for output in outputs]
            outputs = [decision_logits(steps[:t], own) for t in range(1, len(steps) + 1)]
        wanted = torch.cat([case.answers[row][t][0] for t in range(len(outputs))])
        assert_agree(torch.stack(outputs), wanted, f"row {row} in a place that others had", "the same row alone")


def check_stream(
    case: Case, rule: Rule | None, slots: int, ordered: bool = False, check_every: int = 1, counted: bool = True
) -> None:
    """2, 3 and 5 for rows that come and go: each answers as it does alone, and only the overshoot is computed in vain.

    Args:
        rule: ``None`` for exits that are written in the input.
        counted: whether to count rows at the layers, by hooks, which a captured step has no place for.
    """
    known = rule or prescribed(*(read_off(case.rows([row]), case.timesteps) for row in range(case.n)))
    exits = case.exits(known)
    snn = case.wrap(known)
    snn.check_every, snn.slots = check_every, slots
    if rule is None:
        snn.policy = ReadOffPolicy()
    samples = case.inputs.unbind(1 if case.sequence else 0)
    read: list[int] = []

    def reading() -> Iterator[tuple[str, Tensor]]:
        for row, sample in enumerate(samples):
            read.append(row)
            yield f"key {row}", sample

    with torch.no_grad():
        list(snn.stream(samples[:1]))  # the first look is not part of the answer
        answered: dict[int, Any] = {}
        with counting(case.layers if counted else []) as counts:
            stream = snn.stream(reading(), ordered=ordered)
            for item in stream:
                assert item.key == f"key {item.position}"
                assert item.position not in answered, "a sample was answered twice"
                if not ordered:
                    assert len(read) - len(answered) <= slots, "it reads further ahead than asked"
                answered[item.position] = item
        batch = snn.infer(case.as_given(case.inputs))
    assert sorted(answered) == list(range(case.n)), "a sample was lost"
    if ordered:
        assert list(answered) == list(range(case.n))
    items = [answered[row] for row in range(case.n)]
    assert [item.timesteps for item in items] == exits
    assert_agree(
        torch.stack([item.logits for item in items]), _at(case.trace, exits), "streamed rows", "the rows alone"
    )
    scores = torch.tensor([[score] for score in case.scores(known)], dtype=torch.float64)
    assert_agree(torch.tensor([[item.score] for item in items], dtype=torch.float64), scores, "scores", "the rule's")
    assert counts == [stream.steps_executed] * len(counts)
    assert stream.steps_executed >= sum(exits)
    if check_every == case.chunk == 1 and counted:
        assert stream.steps_executed == sum(exits)
    assert batch.timesteps.tolist() == exits
    assert_agree(batch.logits, _at(case.trace, exits), "a batch larger than the slots", "the rows alone")


def check_guest(case: Case, rule: Rule, failing_call: int, others: Sequence[nn.Module] = ()) -> None:
    """4. After any call, failed ones included, the caller's model is as it was, and so is every other model.

    Args:
        failing_call: the call of the last layer at which the model raises; at most one for each chunk.
        others: further models in the process, with states of their own.
    """
    inputs = case.as_given(case.inputs)
    with torch.no_grad():
        case.run(case.model, case.inputs[:1] if case.sequence else torch.stack([case.inputs]))
    snapshots = [Snapshot(case.model), *map(Snapshot, others)]
    registry = _registry()

    def assert_unchanged(after: str) -> None:
        for snapshot in snapshots:
            snapshot.assert_unchanged(after)
        assert list(map(id, _registry())) == list(map(id, registry)), f"{after} changed SpikingNeuron.instances"

    random_state = torch.random.get_rng_state()
    snn = case.wrap(rule)
    assert_unchanged("wrapping")
    assert snn.model is case.model
    calls: list[tuple[str, Callable[[], Any]]] = [
        ("explain", lambda: snn.explain(inputs)),
        ("infer", lambda: snn.infer(inputs)),
        ("trace", lambda: snn.trace(inputs)),
        ("infer on no rows", lambda: snn.infer(case.as_given(case.rows([])))),
    ]
    for name, call in calls:
        with torch.no_grad():
            call()
        assert_unchanged(name)
        assert torch.equal(torch.random.get_rng_state(), random_state), f"{name} drew random numbers"
    expected = snn.infer(inputs)
    assert_unchanged("infer with grad")

    never = prescribed(*[case.timesteps] * case.n)
    snn.policy = never.policy()
    for wrapper, moment in ((snn, "mid-run"), (case.wrap(never), "its first look")):
        for name in ("infer", "trace"):
            with raising(case.layers[-1], failing_call):
                inside = Snapshot(case.model)
                with torch.no_grad(), pytest.raises(Exception) as caught:  # a first look may wrap the error  # noqa: PT011
                    getattr(wrapper, name)(inputs)
                assert any(isinstance(error, ModelRaised) for error in _chain(caught.value)), repr(caught.value)
                inside.assert_unchanged(f"{name} that raised in {moment}")
            assert_unchanged(f"{name} that raised in {moment}")
    snn.policy = rule.policy()
    again = snn.infer(inputs)
    assert torch.equal(again.timesteps, expected.timesteps)
    assert torch.equal(again.logits, expected.logits), "a failed run changed the answers of the next"
    assert_unchanged("everything")


def check_saved(case: Case, rule: Rule) -> None:
    """5. The row-steps executed are the sum of the rows' t, plus the overshoot of chunks: counted at the layers."""
    exits = case.exits(rule)
    last = -(-case.timesteps // case.chunk) * case.chunk
    computed = sum(min(-(-t // case.chunk) * case.chunk, case.timesteps) for t in exits)
    assert sum(exits) <= computed <= min(last, case.timesteps) * case.n
    snn = case.wrap(rule)
    inputs = case.as_given(case.inputs)
    with torch.no_grad():
        snn.infer(inputs)  # the first look is not part of the answer
        with counting(case.layers) as counts:
            result = snn.infer(inputs)
    assert result.timesteps.tolist() == exits
    assert counts == [computed] * len(case.layers), f"rows entered the layers {counts} times; exits are {exits}"
    assert result.steps_executed == computed


def check_refused(case: Case, match: str) -> None:
    """6. What cannot be stepped or compacted is refused at first use, by name, and nothing is half-changed."""
    rule = prescribed(*[case.timesteps] * case.n)
    inputs = case.as_given(case.inputs)
    before = Snapshot(case.model)
    snn = case.wrap(rule)
    for call in (snn.infer, snn.trace, snn):
        with torch.no_grad(), pytest.raises(ModelRefused, match=match) as caught:
            call(inputs)
        assert caught.value.reason
        assert caught.value.remedy
        before.assert_unchanged("a refusal")
    assert snn.explain(inputs).refused == str(caught.value)
    before.assert_unchanged("explain of a refused model")


# -- tools ----------------------------------------------------------------------------------------------------------


def assert_agree(found: Tensor, wanted: Tensor, what: str, against: str, row_dim: int = 0) -> None:
    assert found.shape == wanted.shape, f"{what}: {tuple(found.shape)}, {against}: {tuple(wanted.shape)}"
    rows = differing_rows(found, wanted, row_dim)
    assert not rows, f"{what} differ from {against} in rows {rows} by up to {largest_difference(found, wanted):.2e}"


def _at(trace: Tensor, exits: Sequence[int]) -> Tensor:
    return torch.stack([trace[t - 1, row] for row, t in enumerate(exits)])


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _registry() -> list[Any]:
    """snnTorch's list of all neurons of the process, if snnTorch is imported."""
    import sys

    neurons = sys.modules.get("snntorch._neurons.neurons")
    return neurons.SpikingNeuron.instances if neurons else []


@contextmanager
def counting(layers: Sequence[nn.Module]) -> Iterator[list[int]]:
    """Count the row-steps that enter each layer. In multi-step mode a call brings ``[k, n, ...]``: k x n of them."""
    counts = [0] * len(layers)

    def hook(position: int) -> Callable[..., None]:
        def count(module: nn.Module, arguments: tuple[Any, ...]) -> None:
            x = arguments[0]
            multi_step = getattr(module, "step_mode", "s") == "m"
            counts[position] += x.shape[0] * x.shape[1] if multi_step else x.shape[0]

        return count

    handles = [layer.register_forward_pre_hook(hook(position)) for position, layer in enumerate(layers)]
    try:
        yield counts
    finally:
        for handle in handles:
            handle.remove()


def firing_rate(model: nn.Module, neurons: Sequence[nn.Module], run: Runner, frames: Tensor) -> list[float]:
    """Spikes per neuron and timestep, layer by layer, in the model's own run."""
    spikes: list[list[Tensor]] = [[] for _ in neurons]

    def hook(position: int) -> Callable[..., None]:
        def note(module: nn.Module, arguments: Any, result: Any) -> None:
            spikes[position].append((result[0] if isinstance(result, tuple) else result).detach().flatten())

        return note

    handles = [neuron.register_forward_hook(hook(position)) for position, neuron in enumerate(neurons)]
    try:
        with torch.no_grad():
            run(model, frames)
    finally:
        for handle in handles:
            handle.remove()
    return [float((torch.cat(layer) != 0).double().mean()) for layer in spikes]
