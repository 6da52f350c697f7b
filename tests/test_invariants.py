"""The six invariants on random small networks of both frameworks, with random exits, batches, lengths and chunks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import AdapterError, ModelRefused

from . import snntorch_nets, spikingjelly_nets
from .invariants import (
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_refused,
    check_saved,
    check_slots,
    check_stream,
    check_whole,
    prescribed,
)
from .reference import run_snntorch, run_spikingjelly

FRAMEWORKS = ("spikingjelly", "snntorch")
each_framework = pytest.mark.parametrize("framework", FRAMEWORKS)


# -- random cases ---------------------------------------------------------------------------------------------------


def draw_inputs(draw: st.DrawFn, row: tuple[int, ...], sequence: bool, timesteps: int, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 10**6), label="input seed"))
    shape = (timesteps, n, *row) if sequence else (n, *row)
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def spikingjelly_spec(draw: st.DrawFn) -> spikingjelly_nets.NetSpec:
    kind = draw(st.sampled_from(["fc", "conv"]))
    plain = [name for name in spikingjelly_nets.NODES if name != "recurrent"]
    hidden = st.sampled_from(plain if kind == "conv" else list(spikingjelly_nets.NODES))
    return spikingjelly_nets.NetSpec(
        kind=kind,
        nodes=tuple(draw(st.lists(hidden, min_size=1, max_size=2))),
        spiking_head=draw(st.booleans()),
        step_mode=draw(st.sampled_from(["s", "m"])),
        seed=draw(st.integers(0, 10**6)),
    )


def snntorch_spec(draw: st.DrawFn) -> snntorch_nets.NetSpec:
    form = draw(st.sampled_from(snntorch_nets.FORMS))
    kind = draw(st.sampled_from(["fc", "conv"]))
    lstm = {"SLSTM", "SConv2dLSTM"}  # they make their states in float32; test_models.py has them
    names = set(snntorch_nets.NEURONS if form in ("sequential", "hidden") else snntorch_nets.STATES) - lstm
    if kind == "conv":
        names -= {"RLeaky", "RSynaptic", "Leaky per neuron"}  # their parameters are made for rows of one dimension
    return snntorch_nets.NetSpec(
        kind=kind,
        neuron=draw(st.sampled_from(sorted(names))),
        form=form,
        membrane=draw(st.booleans()),
        seed=draw(st.integers(0, 10**6)),
    )


@st.composite
def cases(draw: st.DrawFn, framework: str) -> Case:
    spec = spikingjelly_spec(draw) if framework == "spikingjelly" else snntorch_spec(draw)
    nets = spikingjelly_nets if framework == "spikingjelly" else snntorch_nets
    sequence = draw(st.booleans(), label="sequence")
    timesteps = draw(st.integers(1, 12), label="T")
    n = draw(st.integers(1, 9), label="N")
    inputs = draw_inputs(draw, spec.row, sequence, timesteps, n)
    # The rate is set on frames of the same kind, but longer: one step of one row cannot tell a firing rate.
    many = torch.randn((8, 16, *spec.row), generator=torch.Generator().manual_seed(spec.seed), dtype=torch.float64)
    readouts = ["sum", "mean", "last", "max", "first_spike"]
    if framework == "snntorch" and (spec.membrane or spec.form in ("required", "optional")):
        readouts.append("membrane")
    return Case(
        model=nets.build(spec, many),
        run=run_spikingjelly if framework == "spikingjelly" else run_snntorch,
        inputs=inputs,
        timesteps=timesteps,
        layers=[],
        sequence=sequence,
        time_dim=draw(st.integers(0, 1), label="time_dim") if sequence else 0,
        chunk=draw(st.integers(1, 4), label="chunk"),
        readout=draw(st.sampled_from(readouts), label="readout"),
    )


@st.composite
def rules(draw: st.DrawFn, timesteps: int, n: int) -> Rule:
    name = draw(st.sampled_from(["prescribed", "confidence", "entropy", "margin", "patience", "fixed"]), label="rule")
    if name == "prescribed":
        return prescribed(*draw(st.lists(st.integers(1, timesteps), min_size=n, max_size=n), label="exits"))
    if name == "patience":
        return Rule(name, {"patience": draw(st.integers(1, 4))})
    if name == "fixed":
        return Rule(name, {"timesteps": draw(st.integers(1, timesteps))})
    # Off the round numbers, where scores of equal logits lie and rounding would decide.
    threshold = draw(st.integers(0, 99), label="threshold in %") / 100 + 0.00317
    return Rule(name, {"threshold": threshold, "temperature": draw(st.sampled_from([0.3, 1.0, 2.5]))})


@st.composite
def cases_with_rules(draw: st.DrawFn, framework: str) -> tuple[Case, Rule]:
    case = draw(cases(framework))
    case.layers = (spikingjelly_nets if framework == "spikingjelly" else snntorch_nets).layers_of(case.model)
    return case, draw(rules(case.timesteps, case.n))


# -- the invariants -------------------------------------------------------------------------------------------------


@each_framework
@given(data=st.data())
def test_whole(framework, data):
    check_whole(data.draw(cases(framework)))


@each_framework
@given(data=st.data())
def test_prefix(framework, data):
    check_prefix(*data.draw(cases_with_rules(framework)))


@each_framework
@given(data=st.data())
def test_alone(framework, data):
    case, rule = data.draw(cases_with_rules(framework))
    check_alone(case, rule, data.draw(st.permutations(range(case.n)), label="order"))
    some = data.draw(st.lists(st.integers(0, case.n - 1), min_size=1, max_size=9), label="company")
    check_alone(case, rule, some)


@each_framework
@given(data=st.data())
def test_alone_in_places_that_others_had(framework, data):
    case, rule = data.draw(cases_with_rules(framework))
    check_slots(case, rule, data.draw(st.integers(1, 4), label="slots"), data.draw(st.integers(1, 3), label="steps"))


@each_framework
@given(data=st.data())
def test_streamed(framework, data):
    case, rule = data.draw(cases_with_rules(framework))
    check_stream(
        case,
        None if rule.name == "prescribed" else rule,
        slots=data.draw(st.integers(1, 5), label="slots"),
        ordered=data.draw(st.booleans(), label="ordered"),
        check_every=data.draw(st.integers(1, 4), label="check_every"),
    )


@each_framework
@given(data=st.data())
def test_guest(framework, data):
    case, rule = data.draw(cases_with_rules(framework))
    others = [_used_spikingjelly_net(), _used_snntorch_net()]
    chunks = -(-case.timesteps // case.chunk)
    check_guest(case, rule, failing_call=data.draw(st.integers(1, chunks), label="failing call"), others=others)


@each_framework
@given(data=st.data())
def test_saved(framework, data):
    check_saved(*data.draw(cases_with_rules(framework)))


def _used_spikingjelly_net() -> nn.Module:
    """Another model of the process, with states from a run of its own."""
    frames = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = spikingjelly_nets._draw(spikingjelly_nets.NetSpec("fc", ("LIF",), True, "s", 3), 3)
    with torch.no_grad():
        for frame in frames:
            model(frame)
    return model


def _used_snntorch_net() -> nn.Module:
    frames = torch.randn(3, 2, 7, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    model = snntorch_nets._draw(snntorch_nets.NetSpec("fc", "Leaky", "sequential", False, 3)).double()
    with torch.no_grad():
        for frame in frames:
            model(frame)
    return model


# -- float32, at a fixed batch size ---------------------------------------------------------------------------------


@pytest.mark.parametrize("form", snntorch_nets.FORMS)
def test_float32_is_bit_exact_at_a_fixed_batch_size_snntorch(form):
    frames = torch.randn(6, 8, 2, 6, 6)
    spec = snntorch_nets.NetSpec("conv", "Synaptic", form, False, 11, torch.float32)
    _check_bit_exact(snntorch_nets.build(spec, frames), run_snntorch, frames, chunk=2)


@pytest.mark.parametrize(("step_mode", "chunk"), [("s", 1), ("m", 6)])
@pytest.mark.parametrize("node", ["IF", "LIF", "PLIF"])
def test_float32_is_bit_exact_at_a_fixed_batch_size_spikingjelly(node, step_mode, chunk):
    frames = torch.randn(6, 8, 2, 6, 6)
    spec = spikingjelly_nets.NetSpec("conv", (node, node), False, step_mode, 11, torch.float32)
    _check_bit_exact(spikingjelly_nets.build(spec, frames), run_spikingjelly, frames, chunk)


def _check_bit_exact(model: nn.Module, run, frames: Tensor, chunk: int) -> None:
    with torch.no_grad():
        own = torch.stack([step[0] for step in run(model, frames)])
        snn = EarlyExitWrapper(model, input="sequence", readout="last", chunk=chunk)
        assert torch.equal(snn.trace(frames), own)
        result = snn.infer(frames)
        again = snn.infer(frames)
    exits = result.timesteps
    assert torch.equal(again.logits, result.logits)
    assert torch.equal(again.timesteps, exits)
    stay_together = exits == exits.min()  # up to the first exit, the batch keeps its size
    assert torch.equal(result.logits[stay_together], own[exits.min() - 1][stay_together])


# -- 6. refuse rather than be wrong ---------------------------------------------------------------------------------


class MixesRows(nn.Module):
    """Subtracts the mean over the batch: rows depend on each other."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.dim = dim

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(self.dim, keepdim=True)


class MixesTime(nn.Module):
    """Subtracts the mean over all timesteps: early answers depend on later ones."""

    def forward(self, x_seq: Tensor) -> Tensor:
        return x_seq - 0.7 * x_seq.mean(0, keepdim=True)


class Noise(nn.Module):
    """Draws random numbers in evaluation mode."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.randn_like(x)


class LoopsInside(nn.Module):
    """Runs all timesteps inside forward."""

    def __init__(self, step: nn.Module) -> None:
        super().__init__()
        self.step = step

    def forward(self, x: Tensor) -> Tensor:
        outputs = [self.step(x) for _ in range(4)]
        return torch.stack(outputs).mean(0)


def defective(framework: str, step_mode: str, defect: nn.Module) -> Case:
    frames = torch.randn(6, 6, 7, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    if framework == "spikingjelly":
        spec = spikingjelly_nets.NetSpec("fc", ("LIF",), False, step_mode, 4)
        model, run = spikingjelly_nets.build(spec, frames), run_spikingjelly
    else:
        model, run = (
            snntorch_nets.build(snntorch_nets.NetSpec("fc", "Leaky", "sequential", False, 4), frames),
            run_snntorch,
        )
    assert isinstance(model, nn.Sequential)
    model.insert(1, defect.double().eval())
    return Case(model, run, frames, 6, [], sequence=True, readout="mean")


@pytest.mark.parametrize(("framework", "step_mode"), [("spikingjelly", "s"), ("spikingjelly", "m"), ("snntorch", "s")])
def test_refuses_rows_that_depend_on_each_other(framework, step_mode):
    check_refused(defective(framework, step_mode, MixesRows(1 if step_mode == "m" else 0)), "alone check")


def test_refuses_timesteps_that_depend_on_later_ones():
    check_refused(defective("spikingjelly", "m", MixesTime()), "whole check")


@pytest.mark.parametrize(("framework", "step_mode"), [("spikingjelly", "s"), ("spikingjelly", "m"), ("snntorch", "s")])
def test_refuses_random_answers(framework, step_mode):
    check_refused(defective(framework, step_mode, Noise()), "repeatable check")


@each_framework
def test_refuses_batch_statistics(framework):
    case = defective(framework, "s", nn.BatchNorm1d(spikingjelly_nets.HIDDEN if framework == "spikingjelly" else 8))
    case.model.train()
    check_refused(case, "training mode")


@each_framework
def test_refuses_a_time_loop_inside_forward(framework):
    case = defective(framework, "s", nn.Identity())
    case.model = LoopsInside(case.model)
    case.inputs, case.sequence = case.inputs[0], False
    check_refused(case, r"time loop is not in its own forward\(\)")


def test_refuses_a_state_without_rows():
    class SharedState(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.level = torch.zeros(8, dtype=torch.float64)

        def forward(self, x: Tensor) -> Tensor:
            self.level = 0.9 * self.level + x.mean(0)
            return x - self.level

    check_refused(defective("snntorch", "s", SharedState()), "level.*cannot be split into rows")


@each_framework
def test_refuses_a_network_without_neurons(framework):
    plain = nn.Sequential(nn.Linear(7, 4), nn.ReLU(), nn.Linear(4, 3))
    with pytest.raises(AdapterError, match="no adapter claims Sequential"):
        EarlyExitWrapper(plain, timesteps=4)
    before = Snapshot(plain)
    snn = EarlyExitWrapper(plain, timesteps=4, adapter=framework)
    with pytest.raises(ModelRefused, match="no spiking state"):
        snn.infer(torch.rand(3, 7))
    before.assert_unchanged("a refusal")
