"""Streams: many samples through few slots, in any order, with anything going wrong anywhere."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.engine import StreamItem
from seenn_plugin.errors import InputError, ModelRefused, PolicyError
from seenn_plugin.policies import ConfidencePolicy, Decision, FixedPolicy, PatiencePolicy, Policy
from seenn_plugin.policies.planned import PlanPolicy

from .invariants import ReadOffPolicy
from .rl_tasks import T as READER_T
from .rl_tasks import readable, reader

T, FEATURES, CLASSES = 6, 8, 4


def spiking_net(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(
        layer.Linear(FEATURES, 12), neuron.LIFNode(v_threshold=0.3), layer.Linear(12, CLASSES), neuron.IFNode()
    ).eval()


def wrapped(policy: Policy | None = None, **options: Any) -> EarlyExitWrapper:
    policy = policy or ConfidencePolicy(0.6, temperature=0.5)
    return EarlyExitWrapper(spiking_net(), policy, **{"timesteps": T, "readout": "sum", **options})


def samples(n: int, seed: int = 1) -> Tensor:
    return 2 * torch.rand(n, FEATURES, generator=torch.Generator().manual_seed(seed))


def alone(snn: EarlyExitWrapper, x: Tensor) -> tuple[Tensor, Tensor]:
    with torch.no_grad():
        results = [snn.infer(row[None]) for row in x]
    return torch.cat([r.logits for r in results]), torch.cat([r.timesteps for r in results])


# -- the soak ---------------------------------------------------------------------------------------------------------


def test_soak():
    """100,000 samples through 32 slots, in random order, with pauses: every answer is the one computed alone."""
    snn, pool = wrapped(), samples(500)
    logits, exits = alone(snn, pool)
    assert set(exits.tolist()) >= {2, 3, T}, "exits that differ too little test nothing"
    chance = random.Random(3)
    order = [chance.randrange(len(pool)) for _ in range(100_000)]
    unread = 0

    def reading() -> Iterator[tuple[int, Tensor]]:
        nonlocal unread
        for position, sample in enumerate(order):
            if chance.random() < 1e-3:
                time.sleep(1e-4)
            unread += 1
            yield position, pool[sample]

    stream = snn.stream(reading(), slots=32, ordered=False)
    answered = torch.zeros(len(order), dtype=torch.bool)
    held: list[int] = []
    recent: list[StreamItem] = []
    steps = 0
    for item in stream:
        if chance.random() < 1e-3:
            time.sleep(1e-4)
        unread -= 1
        assert unread <= 32, "more samples are active than there are slots"
        assert not answered[item.key]
        answered[item.key] = True
        steps += item.timesteps
        recent.append(item)
        if len(recent) == 10_000:
            rows = torch.tensor([order[item.key] for item in recent])
            assert torch.equal(torch.tensor([item.timesteps for item in recent]), exits[rows])
            assert torch.allclose(torch.stack([item.logits for item in recent]), logits[rows], atol=1e-5)
            recent.clear()
            gc.collect()
            held.append(sum(issubclass(type(thing), Tensor) for thing in gc.get_objects()))
    assert len(held) == 10
    assert bool(answered.all()), "a slot was lost"
    assert stream.steps_executed == steps
    assert max(held) - min(held) <= 64, f"tensors are held on to: {held}"


# -- order, keys, back-pressure ---------------------------------------------------------------------------------------


def test_keys_are_positions_unless_the_caller_gives_some():
    snn, x = wrapped(), samples(5)
    assert [item.key for item in snn.stream(iter(x))] == [0, 1, 2, 3, 4]
    assert [item.key for item in snn.stream(x)] == [0, 1, 2, 3, 4]
    named = [(name, row) for name, row in zip("abcab", x, strict=True)]
    assert [item.key for item in snn.stream(named)] == list("abcab")


def test_an_item_is_the_answer_of_its_sample():
    snn, x = wrapped(), samples(20)
    result = snn.infer(x)
    items = list(snn.stream(x, slots=7))
    assert torch.allclose(torch.stack([item.logits for item in items]), result.logits, atol=1e-6)
    assert [item.timesteps for item in items] == result.timesteps.tolist()
    assert [item.prediction for item in items] == result.predictions.tolist()
    assert [item.score for item in items] == pytest.approx(result.score.tolist(), abs=1e-6)


def test_unordered_answers_come_as_they_are_found():
    snn, x = wrapped(), samples(64)
    _, exits = alone(snn, x)
    first = [item.timesteps for item in snn.stream(x, slots=64, ordered=False)]
    assert first == sorted(exits.tolist())


@pytest.mark.parametrize("ordered", [True, False])
@pytest.mark.parametrize("slots", [1, 3, 8])
def test_nothing_is_read_before_there_is_a_slot_for_it(slots, ordered):
    snn, read, answered = wrapped(), [], 0

    def reading() -> Iterator[Tensor]:
        for i, row in enumerate(samples(40)):
            read.append(i)
            yield row

    stream = snn.stream(reading(), slots=slots, ordered=ordered)
    assert not read
    for _ in stream:
        answered += 1
        if not ordered:
            assert len(read) <= answered - 1 + slots
        # In order, what was found waits for the earliest active, which takes T timesteps at most.
        assert len(read) <= answered - 1 + slots * T
    assert answered == 40


def test_who_stops_half_way_leaves_the_rest_unread_and_the_model_as_it_was():
    snn = wrapped()
    list(snn.stream(samples(2)))
    snapshot, source = Snapshot(snn.model), iter(samples(40))
    stream = snn.stream(source, slots=4)
    for _ in range(3):
        next(stream)
        snapshot.assert_unchanged("an answer of a stream")
    stream.close()
    left = len(list(source))
    assert 40 - 3 - 4 * T <= left < 40
    assert list(stream) == []
    snapshot.assert_unchanged("a stream that was closed")
    assert len(list(snn.stream(samples(9)))) == 9


def test_streams_and_batches_interleave_on_one_model():
    snn, x, y = wrapped(), samples(30, 1), samples(30, 2)
    expected = [[(i.timesteps, i.logits.tolist()) for i in snn.stream(z, slots=5)] for z in (x, y)]
    first, second = snn.stream(x, slots=5), snn.stream(y, slots=5)
    found: list[list[Any]] = [[], []]
    for a, b in zip(first, second, strict=True):
        snn.infer(x[:3])
        for items, item in zip(found, (a, b), strict=True):
            items.append((item.timesteps, item.logits.tolist()))
    assert found == expected


def test_a_stream_keeps_the_policy_that_it_began_with():
    task = readable(30, 3)
    snn = EarlyExitWrapper(reader().eval(), Announced(), input="sequence", readout="last")
    plan = snn.plan(task.frames).timesteps.tolist()
    stream = snn.stream(task.frames.unbind(1), slots=4)
    exits = [next(stream).timesteps]
    snn.policy = FixedPolicy(1)
    exits += [item.timesteps for item in stream]
    assert exits == plan
    assert [item.timesteps for item in snn.stream(task.frames.unbind(1), slots=4)] == [1] * 30


def test_gradients_are_off_inside_and_as_they_were_outside():
    snn = wrapped()
    for item in snn.stream(samples(9), slots=2):
        assert torch.is_grad_enabled()
        assert not item.logits.requires_grad
    with torch.no_grad():
        for _ in snn.stream(samples(9), slots=2):
            assert not torch.is_grad_enabled()


def test_a_data_loader_with_workers_can_be_streamed():
    loader = DataLoader(TensorDataset(samples(12)), batch_size=None, num_workers=1)
    snn = wrapped()
    items = list(snn.stream((x for (x,) in loader), slots=4))
    assert [item.timesteps for item in items] == alone(snn, samples(12))[1].tolist()


def test_no_samples():
    snn = wrapped()
    stream = snn.stream([])
    assert list(stream) == []
    assert stream.steps_executed == 0


# -- who cannot be refilled -------------------------------------------------------------------------------------------


class Indexed(nn.Module):
    """Reads the index of its time loop: its rows share a clock."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.lif = snntorch.Leaky(0.8)

    def forward(self, x: Tensor) -> Tensor:
        mem = self.lif.init_leaky()
        out = []
        for step in range(T):
            _, mem = self.lif(self.fc(x) * (1 + 0.1 * step), mem)
            out.append(mem)
        return torch.stack(out)


@pytest.mark.parametrize("kind", ["index of a loop", "growing readout", "growing policy", "full run"])
def test_rows_that_share_a_clock_are_run_in_consecutive_batches(kind):
    torch.manual_seed(0)
    policy, x = ConfidencePolicy(0.35, temperature=1.0), samples(23)
    if kind == "index of a loop":
        snn = EarlyExitWrapper(Indexed().eval(), policy)
    elif kind == "growing readout":
        snn = wrapped(policy, readout=lambda outputs: outputs.mean(0))
    elif kind == "growing policy":
        snn = wrapped(Growing())
    else:
        net = nn.Sequential(layer.Linear(FEATURES, CLASSES), neuron.IFNode(step_mode="m"))
        snn = EarlyExitWrapper(net.eval(), policy, timesteps=T, full_run=True)
    logits, exits = alone(snn, x)
    assert len(set(exits.tolist())) > 1
    assert "consecutive batches" in snn.explain(x).facts["slots"]
    items = list(snn.stream(x, slots=5))
    with torch.no_grad():
        batch = snn.infer(x)
        snn.slots = 5
        lots = snn.infer(x)
    for result in (batch, lots):
        assert result.timesteps.tolist() == exits.tolist()
        assert torch.allclose(result.logits, logits, atol=1e-5)
    assert [item.timesteps for item in items] == exits.tolist()
    assert torch.allclose(torch.stack([item.logits for item in items]), logits, atol=1e-5)


@dataclass(frozen=True)
class Growing(Policy):
    """Remembers all logits, and stops when they have summed up to enough."""

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        history = logits[:, None] if policy_state is None else torch.cat([policy_state, logits[:, None]], 1)
        total = history.sum((1, 2))
        return Decision(total > 2, total, history)


def test_who_can_be_refilled_says_so():
    assert "take the places" in wrapped().explain(samples(3)).facts["slots"]


# -- planned exits ----------------------------------------------------------------------------------------------------


class Announced(PlanPolicy):
    """Reads its plan off the first frame."""

    def plan(self, frames: Tensor, timesteps: int) -> Tensor:
        return frames[:, :READER_T].argmax(1) + 1


@pytest.mark.parametrize("check_every", [1, 3])
def test_planned_exits_compute_nothing_in_vain(check_every):
    task = readable(50, 3)
    snn = EarlyExitWrapper(reader().eval(), Announced(), input="sequence", readout="last", check_every=check_every)
    frames = task.frames.unbind(1)
    stream = snn.stream(frames, slots=8)
    exits = [item.timesteps for item in stream]
    assert exits == snn.plan(task.frames).timesteps.tolist()
    assert len(set(exits)) == READER_T
    assert stream.steps_executed == sum(exits)


# -- decisions without stalls -----------------------------------------------------------------------------------------


@cache
def _wrapped_twice() -> tuple[EarlyExitWrapper, EarlyExitWrapper]:
    return wrapped(ReadOffPolicy()), wrapped(ReadOffPolicy())


@given(st.integers(1, 8), st.integers(1, 9))
def test_looking_late_changes_no_answer_and_counts_what_it_computes_in_vain(check_every, slots):
    x = samples(40)
    soon, late = _wrapped_twice()
    late.check_every = check_every
    soon.slots = late.slots = slots
    a, b = list(soon.stream(x)), list(late.stream(x))
    assert [(i.key, i.timesteps) for i in a] == [(i.key, i.timesteps) for i in b]
    assert torch.allclose(torch.stack([i.logits for i in a]), torch.stack([i.logits for i in b]), atol=1e-6)
    with torch.no_grad():
        result = late.infer(x[:slots])
    exits = result.timesteps.tolist()
    # Everybody leaves at the next look, or at the last timestep.
    looked = [min(-(-t // check_every) * check_every, T) for t in exits]
    assert result.steps_executed == sum(looked)


def test_the_host_looks_no_more_often_than_asked(monkeypatch):
    """Each look waits for the device: the only ones are those of the engine, once every ``check_every`` timesteps."""
    x, looks = samples(8), []
    snn = wrapped(FixedPolicy(T), check_every=3)
    with torch.no_grad():
        snn.infer(x)
        own = Tensor.nonzero
        monkeypatch.setattr(Tensor, "nonzero", lambda self: looks.append(len(self)) or own(self))
        snn.infer(x)
    assert looks == [8]  # after three timesteps; after six all are known to leave


# -- what goes wrong --------------------------------------------------------------------------------------------------


class Injected(Exception):
    pass


class Faulty:
    """Raises at the n-th call, then never again."""

    def __init__(self, call: int) -> None:
        self.left = call

    def __call__(self) -> None:
        self.left -= 1
        if self.left == 0:
            raise Injected("injected")


@dataclass(frozen=True)
class FaultyPolicy(Policy):
    inner: Policy
    fault: Any

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        self.fault()
        return self.inner.decide(logits, timestep, policy_state)


@given(
    where=st.sampled_from(["model", "policy", "loader"]),
    call=st.integers(1, 7),
    slots=st.integers(1, 9),
    ordered=st.booleans(),
)
def test_whatever_raises_nothing_that_was_found_is_lost(where, call, slots, ordered):
    x = samples(40)
    snn = wrapped(PatiencePolicy(2))
    logits, exits = alone(snn, x)
    expected = [(int(t), row) for t, row in zip(exits, logits, strict=True)]
    snapshot = Snapshot(snn.model)
    fault = Faulty(call + 2 * (where == "policy"))  # it is asked about two timesteps of one row beforehand
    started: set[str] = set()

    def reading() -> Iterator[tuple[str, Tensor]]:
        for i, row in enumerate(x):
            if where == "loader":
                fault()
            started.add(f"sample {i}")
            yield f"sample {i}", row

    own_policy = snn.policy
    snn.policy = FaultyPolicy(own_policy, fault if where == "policy" else lambda: None)
    handle = snn.model[2].register_forward_pre_hook(lambda *_: fault()) if where == "model" else None
    found = []
    try:
        with pytest.raises(Injected) as caught:
            found.extend(snn.stream(reading(), slots=slots, ordered=ordered))
    finally:
        if handle is not None:
            handle.remove()
        snn.policy = own_policy
    snapshot.assert_unchanged("a stream that failed")
    for item in found:
        t, row = expected[item.position]
        assert item.timesteps == t
        assert torch.allclose(item.logits, row, atol=1e-6)
    answered = {item.key for item in found}
    (note,) = caught.value.__notes__
    if where == "loader":
        assert answered == started, "a sample that was read has no answer"
        assert f"sample {call - 1} of the stream" in note
    else:
        in_flight = started - answered
        assert in_flight
        assert all(repr(key) in note for key in in_flight), "samples got lost without being named"
        assert len(in_flight) <= slots
    if ordered:
        assert [item.position for item in found] == sorted(item.position for item in found)
    assert [item.timesteps for item in snn.stream(x, slots=slots)] == exits.tolist()


def test_a_bad_sample_is_named_when_those_before_it_are_answered():
    snn, x = wrapped(), samples(9)
    one = torch.zeros(FEATURES)
    for bad in (torch.zeros(3), one.double(), "x", (one, 3), (torch.zeros(2), one)):
        found = []
        with pytest.raises(InputError, match="sample") as caught:
            found.extend(snn.stream([*((f"k{i}", row) for i, row in enumerate(x)), bad], slots=4))
        assert [item.key for item in found] == [f"k{i}" for i in range(9)]
        assert "sample 9 of the stream" in caught.value.__notes__[0]


def test_bad_arguments():
    snn = wrapped()
    bad: Any
    for bad in (0, -1, 2.5, True, "4"):
        with pytest.raises(InputError, match="slots"):
            snn.stream([], slots=bad)
        with pytest.raises(InputError, match="slots"):
            wrapped(slots=bad)
    for bad in (0, None, 1.5):
        with pytest.raises(InputError, match="check_every"):
            wrapped(check_every=bad)
    bad = 3
    with pytest.raises(InputError, match="iterable"):
        snn.stream(bad)
    sequence = EarlyExitWrapper(spiking_net(), input="sequence")
    with pytest.raises(InputError, match="single sequences"):
        sequence.stream(torch.zeros(T, 3, FEATURES))


def test_rows_that_are_not_finite_run_to_the_end_and_warn():
    class Bypass(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lif = neuron.IFNode()

        def forward(self, x: Tensor) -> Tensor:
            return self.lif(x) * 0 + x

    x = samples(12)
    snn = EarlyExitWrapper(Bypass().eval(), FixedPolicy(2), timesteps=T)
    list(snn.stream(x))
    x[4, 1] = float("nan")
    with pytest.warns(RuntimeWarning, match="1 of 12 rows had NaN"):
        items = list(snn.stream(x, slots=5))
    assert [item.timesteps for item in items] == [2] * 4 + [T] + [2] * 7


def test_a_refused_model_is_refused_at_the_first_answer():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x + torch.rand_like(x)

    snn = EarlyExitWrapper(nn.Sequential(Noisy(), neuron.IFNode()).eval(), FixedPolicy(2), timesteps=T)
    with pytest.raises(ModelRefused):
        next(snn.stream(samples(3)))


def test_a_policy_that_breaks_its_contract_is_named():
    class Wrong(FixedPolicy):
        def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
            return Decision(timestep >= 3, timestep.double(), torch.zeros(1) if int(timestep.max()) == 2 else None)

    snn = wrapped(Wrong(4))
    with pytest.raises(PolicyError, match="Wrong"):
        list(snn.stream(samples(30), slots=4))


# -- chunks -----------------------------------------------------------------------------------------------------------


def test_the_chunk_is_chosen_by_measuring(monkeypatch):
    from seenn_plugin.engine import chunking

    clock, per_call = [0.0], {1: 3.0, 2: 4.0, 3: 5.0, 6: 20.0}
    monkeypatch.setattr(chunking, "perf_counter", lambda: clock[0])
    snn = wrapped(FixedPolicy(2), chunk="auto")
    advance = snn.adapter.advance

    def slow(rows, steps=1):
        clock[0] += per_call[steps]
        return advance(rows, steps)

    monkeypatch.setattr(snn.adapter, "advance", slow)
    x = samples(5)
    with torch.no_grad():
        result = snn.infer(x)
    # Two timesteps: 2 x 3 one by one, 4 as a pair, 5 and 20 with timesteps in vain.
    assert snn.explain(x).facts["input"].startswith(f"static, shown at every timestep; {T} timesteps, 2 at a time, as")
    assert result.steps_executed == 10
    assert result.timesteps.tolist() == [2] * 5
    snn.policy = FixedPolicy(3)
    with torch.no_grad():
        assert snn.infer(x).steps_executed == 20
