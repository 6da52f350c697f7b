"""Captured steps: the same answers as the model's own, for whom they are used, and when they are not."""

from __future__ import annotations

import copy
import logging
import shutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.acceleration import CompiledAdapter
from seenn_plugin.acceleration.compile_settings import CompileSettings
from seenn_plugin.acceleration.compiled_check import Disagrees, check_compiled
from seenn_plugin.acceleration.compiled_step import precision
from seenn_plugin.acceleration.cuda_graph import GraphStep, Recorder
from seenn_plugin.adapter import ModuleAdapter
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import AdapterError, InputError
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import FixedPolicy

from . import snntorch_nets, spikingjelly_nets
from .invariants import (
    Case,
    assert_agree,
    check_alone,
    check_prefix,
    check_slots,
    check_stream,
    check_whole,
    prescribed,
)
from .test_invariants import cases, each_framework, rules

EPS = torch.finfo(torch.float32).eps


class FakeRecorder(Recorder):
    """Does as CUDA graphs do, by calling the function again: into the same memory, and after a few runs to warm up."""

    def __init__(self) -> None:
        self.recorded = self.replayed = 0

    def blocker(self, device: torch.device) -> str:
        return ""

    def record(self, work: Callable[[], list[Tensor]], device: torch.device) -> tuple[list[Tensor], Callable[[], None]]:
        self.recorded += 1
        for _ in range(3):
            made = work()

        def replay() -> None:
            self.replayed += 1
            for tensor, new in zip(made, work(), strict=True):
                tensor.copy_(new)

        return made, replay


def captured(model: nn.Module, rows: tuple[int, ...], **options: Any) -> tuple[EarlyExitWrapper, FakeRecorder]:
    """A wrapper whose timesteps of these numbers of rows are recorded, and what records them."""
    snn, recorder = EarlyExitWrapper(model, **options), FakeRecorder()
    snn._compile = CompileSettings(rows, compile=False, recorder=recorder)
    return snn, recorder


def adapter_of(snn: EarlyExitWrapper) -> CompiledAdapter:
    """The adapter with which the wrapper runs its rows."""
    assert isinstance(snn.adapter, ModuleAdapter)
    assert snn._compile is not None
    return CompiledAdapter(snn.adapter, snn._compile, snn._compiled_steps)


def spiking_net(dtype: torch.dtype = torch.float32) -> nn.Module:
    frames = torch.randn(6, 8, 2, 6, 6)
    return spikingjelly_nets.build(spikingjelly_nets.NetSpec("conv", ("LIF", "IF"), False, "m", 11, dtype), frames)


def leaky_net() -> nn.Module:
    torch.manual_seed(4)
    fire = snntorch.Leaky(0.8, threshold=0.3, init_hidden=True)
    return nn.Sequential(
        nn.Linear(7, 8), fire, nn.Linear(8, 5), snntorch.Leaky(0.9, init_hidden=True, output=True)
    ).eval()


class Loop(nn.Module):
    """All timesteps inside forward, with membranes in local variables."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.fc1, self.fc2 = nn.Linear(7, 8), nn.Linear(8, 5)
        self.lif1, self.lif2 = snntorch.Leaky(0.8, threshold=0.3), snntorch.Leaky(0.9)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(4):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)


# -- the invariants -------------------------------------------------------------------------------------------------


def captured_case(case: Case, rows: tuple[int, ...]) -> FakeRecorder:
    """Let the case run with captured steps."""
    rule = prescribed(*[case.timesteps] * case.n)
    case.chunk = 1
    case.wrapper = None
    snn, recorder = case.wrap(rule), FakeRecorder()
    snn._compile = CompileSettings(rows, compile=False, recorder=recorder)
    case.wrapper, case.adapter = snn, adapter_of(snn)
    return recorder


@pytest.mark.filterwarnings("ignore:.*not compiled.*:RuntimeWarning")
@each_framework
@settings(max_examples=8)
@given(data=st.data())
def test_random_networks_answer_as_ever(framework, data):
    case = data.draw(cases(framework))
    rule = data.draw(rules(case.timesteps, case.n))
    captured_case(case, tuple(sorted(data.draw(st.sets(st.integers(1, 9), min_size=1, max_size=4), label="captured"))))
    check_whole(case)
    check_prefix(case, rule)
    check_alone(case, rule, data.draw(st.permutations(range(case.n)), label="order"))
    slots = data.draw(st.integers(1, 4), label="slots")
    check_slots(case, rule, slots)
    check_stream(case, None if rule.name == "prescribed" else rule, slots, counted=False)


@each_framework
@pytest.mark.parametrize("sequence", [False, True])
def test_rows_that_leave_come_and_interleave(framework, sequence):
    frames = torch.randn(6, 8, 7, dtype=torch.float64)
    if framework == "spikingjelly":
        model = spikingjelly_nets.build(spikingjelly_nets.NetSpec("fc", ("LIF",), True, "m", 4), frames)
    else:
        model = snntorch_nets.build(snntorch_nets.NetSpec("fc", "Synaptic", "required", False, 4), frames)
    inputs = frames if sequence else frames[0]
    options = {"input": "sequence"} if sequence else {"timesteps": 6}
    plain = EarlyExitWrapper(model, FixedPolicy(6), **options)
    snn, recorder = captured(model, (2, 4), policy=FixedPolicy(6), **options)
    with torch.no_grad():
        adapter = adapter_of(snn)

        def some(*rows: int) -> Tensor:
            return inputs[:, list(rows)] if sequence else inputs[list(rows)]

        own = plain.adapter.begin(InputBatch(some(*range(8)), sequence))
        wanted = [plain.adapter.advance(own)[0][0] for _ in range(6)]
        first, second = (adapter.begin(InputBatch(some(*r), sequence)) for r in ((0, 1, 2, 3), (4, 5, 6, 7)))
        for t in range(2):
            assert_agree(adapter.advance(first)[0][0], wanted[t][:4], "the first run", "eager")
            assert_agree(adapter.advance(second)[0][0], wanted[t][4:], "the second run", "eager")
        seen = adapter.state_tensors(second)
        before = [tensor.clone() for tensor in seen]
        adapter.keep(first, torch.tensor([3, 1]))
        for t in range(2, 4):
            assert_agree(adapter.advance(second)[0][0], wanted[t][4:], "the second run", "eager")
            assert_agree(adapter.advance(first)[0][0], wanted[t][[3, 1]], "what is left of the first", "eager")
        assert all(map(torch.equal, seen, before)), "what was looked at changed with the next timestep"
        adapter.place(second, torch.tensor([2]), InputBatch(some(0), sequence))
        made = adapter.advance(second)[0][0]
        assert_agree(
            made, torch.stack([wanted[4][4], wanted[4][5], wanted[0][0], wanted[4][7]]), "a fresh row", "eager"
        )
    assert recorder.recorded == 2
    assert recorder.replayed >= 9


def test_outputs_are_not_overwritten_by_the_next_timestep():
    snn, recorder = captured(spiking_net(), (4,), policy=FixedPolicy(4), timesteps=4)
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        snn.infer(x)
        rows = adapter_of(snn).begin(InputBatch(x))
        first = adapter_of(snn).advance(rows)[0]
        kept = first.clone()
        adapter_of(snn).advance(rows)
    assert recorder.replayed > 4
    assert torch.equal(first, kept)


def test_rows_are_whole_after_a_timestep_that_raised():
    model = spiking_net()
    snn, _ = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        snn.infer(x)
        rows = adapter_of(snn).begin(InputBatch(x))
        expected = [adapter_of(snn).advance(rows)[0] for _ in range(4)]
        rows = adapter_of(snn).begin(InputBatch(x))
        found = [adapter_of(snn).advance(rows)[0]]
        before = Snapshot(model)

        def fails(*_: Any) -> None:
            raise KeyError("from the model")

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            handle = model[-1].register_forward_pre_hook(fails)
            with pytest.raises(KeyError):
                adapter_of(snn).advance(rows)
            handle.remove()
        before.assert_unchanged("a captured step and a failed one")
        found += [adapter_of(snn).advance(rows)[0] for _ in range(3)]
    assert all(map(torch.equal, expected, found))


def test_padded_rows_are_counted_and_leave_no_trace():
    model = spiking_net(torch.float64)
    snn, recorder = captured(model, (11,), policy=FixedPolicy(4), timesteps=4)
    plain = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4)
    x = torch.randn(10, 2, 6, 6, dtype=torch.float64)
    with torch.no_grad():
        result, expected = snn.infer(x), plain.infer(x)
        assert snn.infer(x[:9]).steps_executed == 36  # 11 for 9 would be too many
    assert_agree(result.logits, expected.logits, "ten rows on eleven", "eager")
    assert recorder.recorded == 1
    assert (result.steps_executed, expected.steps_executed) == (44, 40)


def test_two_wrappers_on_one_model():
    model = spiking_net(torch.float64)
    x = torch.randn(4, 2, 6, 6, dtype=torch.float64)
    plain = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4)
    wrappers = [captured(model, (4,), policy=FixedPolicy(4), timesteps=4)[0] for _ in range(2)]
    with torch.no_grad():
        expected = plain.infer(x).logits
        for snn in (*wrappers, plain, *wrappers):
            assert_agree(snn.infer(x).logits, expected, "each wrapper", "the others")
    assert all("rows equal" in snn.explain(x).facts["compiled steps"] for snn in wrappers)
    assert "compiled steps" not in plain.explain(x).facts


@pytest.mark.parametrize("mode", ["inference_mode", "no_grad"])
def test_steps_that_were_captured_in_one_mode_run_in_the_other(mode):
    model = leaky_net()
    snn, recorder = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    x = torch.rand(4, 7)
    with getattr(torch, mode)():
        first = snn.infer(x).logits
    with torch.inference_mode():
        second = snn.infer(x.clone()).logits
    with torch.no_grad():
        third = snn.infer(x).logits
    assert recorder.recorded == 1
    assert torch.equal(first, second)
    assert torch.equal(first, third)


def test_a_time_loop_inside_forward_is_captured():
    model = Loop()
    snn, recorder = captured(model, (4, 2), policy=prescribed(1, 2, 4, 4).policy())
    x = torch.rand(4, 7)
    plain = EarlyExitWrapper(model, prescribed(1, 2, 4, 4).policy())
    with torch.no_grad():
        result, expected = snn.infer(x), plain.infer(x)
    assert recorder.recorded == 2
    assert result.timesteps.tolist() == [1, 2, 4, 4]
    assert_agree(result.logits, expected.logits, "captured", "eager")


# -- what is baked in -----------------------------------------------------------------------------------------------


def _train(model: nn.Module) -> None:
    weights = list(model.parameters())
    optimizer = torch.optim.SGD(weights, lr=0.25)
    with torch.enable_grad():
        sum(weight.square().sum() for weight in weights).backward()
    optimizer.step()
    optimizer.zero_grad()


def _through_data(model: nn.Module) -> None:
    for weight in model.parameters():
        weight.data.mul_(0.5)


def _load(model: nn.Module) -> None:
    model.load_state_dict({name: 0.5 * value for name, value in model.state_dict().items()})


def _new_parameter(model: nn.Module) -> None:
    model[0].weight = nn.Parameter(0.5 * model[0].weight.detach())


def _new_data(model: nn.Module) -> None:
    model[0].weight.data = 0.5 * model[0].weight.data
    model[0].weight.data = 0.5 * model[0].weight.data


def _threshold(model: nn.Module) -> None:
    model[1].threshold.fill_(0.6)


def _attribute(model: nn.Module) -> None:
    model[2].gain = 0.5


def _list(model: nn.Module) -> None:
    model[2].gains[0] = 0.5


def _forward(model: nn.Module) -> None:
    model[2].forward = lambda x: 0.25 * x


class Gain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gain, self.gains = 1.0, [1.0]

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gain * self.gains[0]


@pytest.mark.parametrize(
    "change",
    [_train, _through_data, _load, _new_parameter, _new_data, _threshold, _attribute, _list, _forward],
    ids=lambda change: change.__name__,
)
def test_changes_of_the_model_are_seen(change, caplog):
    torch.manual_seed(4)
    model = leaky_net()
    model.insert(2, Gain())
    model.eval()
    snn, recorder = captured(model, (4,), policy=FixedPolicy(4), timesteps=4, readout="sum")
    x = torch.rand(4, 7)
    with torch.no_grad():
        before = snn.infer(x).logits
        assert torch.equal(snn.infer(x).logits, before)
        assert recorder.recorded == 1
        with caplog.at_level(logging.INFO, "seenn_plugin"):
            change(model)
            after = snn.infer(x).logits
        expected = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4, readout="sum").infer(x).logits
    assert not torch.equal(expected, before), "the change makes no difference, and shows nothing"
    assert torch.equal(after, expected)
    assert recorder.recorded == 2


def test_changes_in_the_middle_of_a_run_are_seen():
    model = leaky_net()
    snn, _ = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    plain = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4)
    x = torch.rand(4, 7)
    with torch.no_grad():
        snn.infer(x)
        plain.infer(x)
        rows, others = adapter_of(snn).begin(InputBatch(x)), plain.adapter.begin(InputBatch(x))
        for factor in (1.0, 0.5, 2.0):
            model[0].weight.mul_(factor)
            found, wanted = adapter_of(snn).advance(rows)[-1][0], plain.adapter.advance(others)[-1][0]
            assert_agree(found, wanted, "captured", "eager")


def test_copies_capture_for_themselves():
    model = spiking_net()
    snn, recorder = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        expected = snn.infer(x).logits
        twin = copy.deepcopy(snn)
        for weight in twin.model.parameters():
            weight.mul_(0.7)
        assert not torch.equal(twin.infer(x).logits, expected)
        assert torch.equal(snn.infer(x).logits, expected)
    assert recorder.recorded == 1
    assert twin._compile is not None


# -- when the model makes its timesteps itself ----------------------------------------------------------------------


def test_gradients_take_the_models_own_step():
    snn, recorder = captured(spiking_net(), (4,), policy=FixedPolicy(4), timesteps=4)
    x = torch.randn(4, 2, 6, 6)
    assert snn.trace(x).requires_grad
    assert recorder.recorded == 0


def test_other_numbers_of_rows_take_the_models_own_step():
    snn, recorder = captured(spiking_net(), (4,), policy=FixedPolicy(4), timesteps=4)
    with torch.no_grad():
        snn.infer(torch.randn(7, 2, 6, 6))
    assert recorder.recorded == 0


def test_nothing_is_captured_while_a_model_is_only_looked_at():
    snn, recorder = captured(spiking_net(), (1, 2, 3, 6), policy=FixedPolicy(4), timesteps=4)
    with torch.no_grad():
        snn.explain(torch.randn(3, 2, 6, 6))
    assert recorder.recorded == 0


def test_autocast_has_steps_of_its_own():
    model = spiking_net()
    snn, recorder = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    plain = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4)
    x = torch.randn(4, 2, 6, 6)
    with torch.no_grad():
        for _ in range(2):
            assert_agree(snn.infer(x).logits, plain.infer(x).logits, "captured", "eager")
            with torch.autocast("cpu", dtype=torch.bfloat16):
                low, expected = snn.infer(x).logits, plain.infer(x).logits
            assert_agree(low, expected, "captured with autocast", "eager with autocast")
            assert not torch.equal(low, plain.infer(x).logits)
    assert recorder.recorded == 2


def test_hooks_of_the_caller_are_called_and_steps_captured_again_without_them():
    model = spiking_net()
    snn, recorder = captured(model, (4,), policy=FixedPolicy(4), timesteps=4)
    x, calls = torch.randn(4, 2, 6, 6), []
    with torch.no_grad():
        expected = snn.infer(x).logits
        replayed = recorder.replayed
        handle = model[0].register_forward_hook(lambda *_: calls.append(1))
        with pytest.warns(RuntimeWarning, match=r"Sequential are not compiled.* forward hooks"):
            snn.infer(x)
        snn.infer(x)  # says so once
        assert "forward hooks" in snn.explain(x).facts["compiled steps"]
        handle.remove()
        assert recorder.replayed == replayed
        assert len(calls) >= 8
        assert torch.equal(snn.infer(x).logits, expected)
    assert recorder.replayed > replayed


class Branches(nn.Module):
    """Decides in Python by a number from a tensor."""

    def forward(self, x: Tensor) -> Tensor:
        return x * 2 if bool((x > 0).any()) else x


class Clock(nn.Module):
    """Counts timesteps in Python."""

    def __init__(self) -> None:
        super().__init__()
        self.t = 0

    def forward(self, x: Tensor) -> Tensor:
        self.t += 1
        return x * self.t


class Escapes(nn.Module):
    """Computes outside of PyTorch, where no trace follows."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.from_numpy(1 + x.numpy() ** 2)


@pytest.mark.parametrize(
    ("layer", "reason"),
    [(Branches(), "data-dependent"), (Clock(), "clock that all rows share"), (Escapes(), "differs")],
)
def test_what_cannot_be_captured_runs_as_it_is_and_says_so_once(layer, reason):
    model = nn.Sequential(
        nn.Linear(7, 8), layer, snntorch.Leaky(0.8, threshold=0.3, init_hidden=True), nn.Linear(8, 5)
    ).eval()
    snn, _ = captured(model, (4,), policy=FixedPolicy(4), timesteps=4, check=False)
    plain = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4, check=False)
    x = torch.rand(4, 7)
    before = Snapshot(model)
    with torch.no_grad():
        with pytest.warns(
            RuntimeWarning, match=f"Sequential are not compiled, and run as they are: .*{reason}"
        ) as caught:
            snn.infer(x)
        assert len(caught) == 1
        assert_agree(snn.infer(x).logits, plain.infer(x).logits, "fallen back", "eager")
        assert reason in snn.explain(x).facts["compiled steps"]
    before.assert_unchanged("a capture that failed")


def test_a_compiler_that_fails_is_reported_and_the_model_runs(monkeypatch):
    def broken(*_: Any) -> None:
        raise OSError("no C++ compiler\nand many lines more")

    monkeypatch.setattr("seenn_plugin.acceleration.compiled_step.compile_graph", broken)
    model = spiking_net()
    snn = EarlyExitWrapper(model, FixedPolicy(4), timesteps=4, compile=True)
    x = torch.randn(8, 2, 6, 6)
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="run as they are: OSError: no C\\+\\+ compiler.$"):
            result = snn.infer(x)
        assert torch.equal(snn.infer(x).logits, result.logits)
        assert torch.equal(EarlyExitWrapper(model, FixedPolicy(4), timesteps=4).infer(x).logits, result.logits)


def test_a_wrongly_captured_step_is_found_out(monkeypatch):
    compile_graph = "seenn_plugin.acceleration.compiled_step.compile_graph"
    monkeypatch.setattr(compile_graph, lambda graph, _: lambda *t: [1.01 * o for o in graph(*t)])
    snn = EarlyExitWrapper(spiking_net(), FixedPolicy(4), timesteps=4, compile=(4,))
    with torch.no_grad(), pytest.warns(RuntimeWarning, match="differs from the model's own step"):
        snn.infer(torch.randn(4, 2, 6, 6))


@pytest.mark.parametrize("compile", [False, True])
def test_cuda_graphs_need_a_cuda_device(compile, monkeypatch):
    compilations = []
    compiled = "seenn_plugin.acceleration.compiled_step.compile_graph"
    monkeypatch.setattr(compiled, lambda graph, _: compilations.append(1) or graph)
    snn = EarlyExitWrapper(spiking_net(), FixedPolicy(4), timesteps=4, compile=compile, cuda_graphs=True)
    x = torch.randn(8, 2, 6, 6)
    with torch.no_grad():
        with pytest.warns(RuntimeWarning, match="not replayed as CUDA graphs: .* are on cpu"):
            snn.infer(x)
        snn.infer(x)
    assert len(compilations) == compile
    assert "are on cpu" in snn.explain(x).facts["compiled steps"]


# -- parts ----------------------------------------------------------------------------------------------------------


def test_settings():
    def slotted(compile, slots):
        settings = CompileSettings.of(compile, False)
        assert settings is not None
        return settings.for_slots(slots)

    assert CompileSettings.of(False, False) is None
    assert slotted(True, 64) == CompileSettings((1, 8, 16, 32, 64), compile=True)
    assert slotted(True, 8) == CompileSettings((1, 2, 4, 8), compile=True)
    assert slotted([64, 1], 8) == CompileSettings((1, 64), compile=True)
    graphs = CompileSettings.of(False, True)
    assert graphs is not None
    assert not graphs.compile
    assert graphs.recorder is not None
    settings = CompileSettings((1, 4, 16), compile=True)
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert [settings.rows_for(n, cpu) for n in (1, 2, 3, 4, 14, 15, 16, 17)] == [1, None, None, 4, None, 16, 16, None]
    with torch.autocast("cpu"):
        assert [settings.rows_for(n, cpu) for n in (1, 2, 3, 7, 8, 17)] == [1, 4, 4, None, 16, None]
    assert [settings.rows_for(n, cuda) for n in (1, 2, 3, 7, 8, 17)] == [1, 4, 4, None, 16, None]


@pytest.mark.parametrize("compile", [(), (0,), (True,), "64", 64, (1.5,)])
def test_bad_numbers_of_rows_are_refused(compile):
    with pytest.raises(InputError, match="compile must be True, False or numbers of rows"):
        EarlyExitWrapper(leaky_net(), timesteps=4, compile=compile)


def test_a_full_run_has_no_single_timesteps_to_capture():
    with pytest.raises(AdapterError, match="full_run=True does not offer"):
        EarlyExitWrapper(leaky_net(), timesteps=4, full_run=True, compile=True)


class _Holder:
    def __init__(self, *values: Tensor) -> None:
        self.values: list[Any] = list(values)


def test_a_graph_moves_state_out_of_the_way_of_others_and_of_itself():
    def shift(x: Tensor, a: Tensor, b: Tensor) -> list[Tensor]:
        return [b, x + b, a]  # outputs and hands on the very memory that it is given

    x, a, b = torch.ones(2), torch.full((2,), 10.0), torch.full((2,), 20.0)
    step = GraphStep(shift, [x], [a, b], FakeRecorder())
    holders, expected = [_Holder(a, b), _Holder(3 * a, 3 * b)], []
    for _ in range(3):
        expected = []
        for holder in holders:
            wanted = shift(x, *(value.clone() for value in holder.values))
            outputs, holder.values = step([x], holder.values, holder)
            assert torch.equal(outputs[0], wanted[0])
            assert all(map(torch.equal, holder.values, wanted[1:]))
            expected.append([value.clone() for value in holder.values])
    for holder, values in zip(holders, expected, strict=True):
        assert all(map(torch.equal, holder.values, values))


def test_the_comparison_takes_rounding_at_thresholds_and_nothing_else():
    weight = torch.randn(64, 64)

    def step(frames: Any, state: Any, order: Any = slice(None), wrong: float = 0.0) -> Any:
        (x,), (v,) = frames, state
        v = 0.5 * v + x[0][:, order] @ weight[order]
        s = (v >= 0.1).float()
        return (s[None] + wrong,), [v * (1 - s)]

    frames, state = [torch.randn(1, 8, 64)], [torch.zeros(8, 64)]
    reordered = torch.randperm(64)
    assert "24 of 24 rows" in check_compiled(step, lambda f, s: step(f, s, reordered), frames, state, EPS)
    with pytest.raises(Disagrees):
        check_compiled(step, lambda f, s: step(f, s, wrong=1e-2), frames, state, EPS)
    with pytest.raises(Disagrees):
        check_compiled(step, lambda f, s: step(f, s, wrong=float("nan")), frames, state, EPS)
    first = step(frames, state)
    with pytest.raises(Disagrees):  # a constant that holds for the first rows only
        check_compiled(step, lambda f, s: first, frames, state, EPS)


# -- the compiler itself --------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
@pytest.mark.parametrize("make", [spiking_net, leaky_net], ids=["spikingjelly", "snntorch"])
def test_compiled_steps_answer_as_the_model_does(make, caplog):
    model = make()
    x = torch.randn(4, 2, 6, 6) if make is spiking_net else torch.rand(4, 7)
    rule = prescribed(4, 1, 4, 4)
    plain = EarlyExitWrapper(model, rule.policy(), timesteps=4)
    snn = EarlyExitWrapper(model, rule.policy(), timesteps=4, compile=(4,))
    before = Snapshot(model)
    with caplog.at_level(logging.INFO, "seenn_plugin"), torch.no_grad():
        result, expected = snn.infer(x), plain.infer(x)
        fact = snn.explain(x).facts["compiled steps"]
        before.assert_unchanged("compiling")
        with torch.inference_mode():
            again = snn.infer(x.clone())
    assert "compiling one timestep of Sequential for 4 rows" in caplog.text
    assert caplog.text.count("compiling") == 1
    assert "4 rows: 12 of 12 rows equal" in fact
    assert_agree(result.logits, expected.logits, "compiled", "eager")
    assert torch.equal(again.logits, result.logits)
    assert result.timesteps.tolist() == [4, 1, 4, 4]
    assert (result.steps_executed, expected.steps_executed) == (13, 13)  # three rows are too few for four


def test_precision_is_that_of_the_least_precise_arithmetic():
    cpu, cuda, eps = torch.device("cpu"), torch.device("cuda"), torch.finfo
    single, double, whole = torch.zeros(1), torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.long)
    assert precision([single, double, whole], cpu) == EPS
    assert precision([double], cuda) == eps(torch.float64).eps
    with torch.autocast("cpu", torch.bfloat16):
        assert precision([single], cpu) == eps(torch.bfloat16).eps
    before = torch.backends.cudnn.allow_tf32
    try:
        torch.backends.cudnn.allow_tf32 = True  # what PyTorch does by itself
        assert precision([single], cuda) == 2**-10
        torch.backends.cudnn.allow_tf32 = False
        assert precision([single], cuda) == EPS
    finally:
        torch.backends.cudnn.allow_tf32 = before
