"""Bad input, bad options, bad moments: a clear error that says what was seen and what to do; nothing half-changed."""

from __future__ import annotations

import copy
import functools
import importlib.metadata
import importlib.util
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.contract import Adapter
from seenn_plugin.errors import AdapterError, InputError, ModelRefused, PolicyError, ReadoutError
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import ConfidencePolicy, Decision, FixedPolicy, PatiencePolicy, Policy
from seenn_plugin.readout import LastReadout, PopulationReadout

FEATURES, CLASSES, T = 6, 3, 4


class Scale(nn.Module):
    """Multiplies by a number, after whatever a test does in ``before``: raise, count, ..."""

    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.factor = factor

    before: Callable[[Tensor], None] = staticmethod(lambda x: None)

    def forward(self, x: Tensor) -> Tensor:
        type(self).before(x)
        return x * self.factor


def spikingjelly_net(step_mode: str = "s") -> nn.Module:
    net = nn.Sequential(
        layer.Linear(FEATURES, 8), neuron.LIFNode(tau=1.5), Scale(), layer.Linear(8, CLASSES), neuron.LIFNode(tau=1.5)
    )
    functional.set_step_mode(net, step_mode)
    return _lively(net)


def snntorch_net() -> nn.Module:
    return _lively(
        nn.Sequential(
            nn.Linear(FEATURES, 8),
            snntorch.Leaky(beta=0.8, init_hidden=True),
            Scale(),
            nn.Linear(8, CLASSES),
            snntorch.Leaky(beta=0.8, init_hidden=True),
        )
    )


def _lively(net: nn.Module) -> nn.Module:
    """Weights large enough for spikes in every layer."""
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.Linear):
                module.weight.mul_(3)
                module.bias.abs_().add_(0.2)
    return net


NETS: dict[str, Callable[[], nn.Module]] = {
    "spikingjelly-s": spikingjelly_net,
    "spikingjelly-m": functools.partial(spikingjelly_net, "m"),
    "snntorch": snntorch_net,
}


@pytest.fixture(params=NETS)
def net(request: pytest.FixtureRequest) -> nn.Module:
    return NETS[request.param]().eval()


def own_outputs(model: nn.Module, x: Tensor, timesteps: int, sequence: bool = False) -> Tensor:
    """The model's own answers ``[T, N, ...]``: every row alone, from a copy, for all timesteps, as its users run it.

    ``model`` must be in its fresh state.
    """
    rows = []
    for row in range(x.shape[1 if sequence else 0]):
        alone = copy.deepcopy(model)
        frames = x[:timesteps, row : row + 1] if sequence else torch.stack([x[row : row + 1]] * timesteps)
        if any(getattr(module, "step_mode", "s") == "m" for module in alone.modules()):
            outputs = alone(frames)
        else:
            outputs = torch.stack([_answer(alone(frame)) for frame in frames])
        rows.append(outputs)
    return torch.cat(rows, 1)


def _answer(output: Any) -> Tensor:
    """The first output of one timestep, out of reach of a network that writes it again at the next."""
    return (output[0] if isinstance(output, tuple) else output).clone()


def snapshot(model: nn.Module) -> dict[str, Any]:
    """Everything that a caller could see of a model: classes, attributes, tensors by identity and by value, hooks."""
    seen: dict[str, Any] = {}
    for name, module in model.named_modules():
        seen[f"{name}: class"] = type(module)
        for key, value in vars(module).items():
            entries = value.items() if isinstance(value, dict) else [("", value)]
            seen[f"{name}.{key} keys"] = [entry for entry, _ in entries]
            for entry, item in entries:
                seen[f"{name}.{key}.{entry}"] = (item, copy.deepcopy(item) if _is_data(item) else None)
    return seen


def _is_data(item: Any) -> bool:
    return isinstance(item, Tensor | int | float | str | list | tuple) and not isinstance(item, nn.Module)


def assert_unchanged(model: nn.Module, before: dict[str, Any]) -> None:
    """That a model is as it was at :func:`snapshot`, identity and value."""
    after = snapshot(model)
    assert list(after) == list(before)
    for name, (was, now) in {name: (before[name], after[name]) for name in before}.items():
        if not isinstance(was, tuple):
            assert now == was, name
            continue
        if not isinstance(was[0], set | frozenset):
            assert now[0] is was[0] or (not isinstance(was[0], Tensor) and now[0] == was[0]), f"{name} was replaced"
        if isinstance(was[1], Tensor):
            assert torch.equal(now[0].detach().nan_to_num(7), was[1].detach().nan_to_num(7)), (
                f"{name} changed its value"
            )
            assert now[0].requires_grad == was[1].requires_grad, name
        elif was[1] is not None and not isinstance(was[1], list | tuple):
            assert now[0] == was[1], f"{name} changed its value"


class StopAt(Policy):
    """Row i stops after ``exits[i]`` timesteps, whatever it answers; beyond the list, it starts again."""

    def __init__(self, *exits: int) -> None:
        self.exits = torch.tensor(exits)

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        row = torch.arange(logits.shape[0]) if policy_state is None else policy_state
        return Decision(self.exits[row % len(self.exits)] == timestep, timestep.float(), row)


def assert_refuses(model: nn.Module, call: Callable[[], Any], error: type[Exception], *said: str) -> None:
    """That ``call`` raises ``error``, says all of ``said``, and leaves the model as it was."""
    before = snapshot(model)
    with pytest.raises(error) as caught:
        call()
    for text in said:
        assert text in str(caught.value)
    assert_unchanged(model, before)


def wrap(model: nn.Module, policy: Any = "confidence", **options: Any) -> EarlyExitWrapper:
    return EarlyExitWrapper(model, policy, **{"timesteps": T, "readout": "sum", **options})


# -- the input ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", ["infer", "trace", "__call__"])
def test_a_static_input_without_a_batch_dimension_says_how_to_add_one(net, call):
    snn = wrap(net)
    assert_refuses(net, lambda: getattr(snn, call)(torch.rand(FEATURES)), InputError, "[N, ...]", "(6,)", "x[None]")


def test_a_static_input_of_too_high_a_rank_is_not_answered(net):
    snn = wrap(net)
    assert_refuses(net, lambda: snn.infer(torch.rand(2, 5, FEATURES)), Exception, "5")


def test_an_input_with_the_wrong_number_of_features_says_the_shape_and_the_options_to_check(net):
    snn = wrap(net)
    assert_refuses(net, lambda: snn.infer(torch.rand(2, 5)), InputError, "(5,)", "x[None]", "input=")


@pytest.mark.parametrize("value", [[1.0, 2.0], "image", None, 3])
def test_an_input_that_is_no_tensor_is_named(net, value):
    snn = wrap(net)
    assert_refuses(net, lambda: snn.infer(value), InputError, "tensor", type(value).__name__)


def test_a_sequence_without_a_time_axis_is_refused_with_its_shape(net):
    snn = wrap(net, input="sequence")
    assert_refuses(net, lambda: snn.infer(torch.rand(5)), InputError, "(5,)", "time axis", "[T, N, ...]", "'static'")


def test_a_sequence_of_length_0_is_refused_with_its_shape(net):
    for time_dim, shape in ((0, (0, 3, FEATURES)), (1, (3, 0, FEATURES))):
        snn = wrap(net, input="sequence", time_dim=time_dim)
        assert_refuses(net, lambda: snn.infer(torch.rand(shape)), InputError, "length 0", str(shape), str(time_dim))  # noqa: B023


def test_a_sequence_longer_than_timesteps_names_both_lengths_and_both_remedies(net):
    snn = wrap(net, input="sequence")
    assert_refuses(
        net, lambda: snn.infer(torch.rand(7, 3, FEATURES)), InputError, "(7, 3, 6)", "timesteps=4", "larger timesteps"
    )


def test_the_wrong_time_dim_is_pointed_at(net):
    batch_first = torch.rand(9, T, FEATURES)
    snn = wrap(net, input="sequence")
    assert_refuses(net, lambda: snn.infer(batch_first), InputError, "time_dim=1", "[N, T, ...]")
    snn = wrap(net, input="sequence", time_dim=1)
    assert_refuses(net, lambda: snn.infer(batch_first.transpose(0, 1)), InputError, "time_dim=0", "[T, N, ...]")


def test_a_batch_first_sequence_is_answered_as_its_time_first_twin(net):
    sequence = torch.rand(T, 5, FEATURES)
    first = wrap(net, StopAt(1, 2, 3, 4, 2), input="sequence").infer(sequence)
    second = wrap(net, StopAt(1, 2, 3, 4, 2), input="sequence", time_dim=1).infer(sequence.transpose(0, 1))
    torch.testing.assert_close(first.logits, second.logits)
    assert first.timesteps.tolist() == second.timesteps.tolist() == [1, 2, 3, 4, 2]


def test_a_sequence_shorter_than_timesteps_ends_with_its_last_frame(net):
    sequence = torch.rand(2, 3, FEATURES)
    result = wrap(net, StopAt(9, 1, 9), input="sequence").infer(sequence)
    assert result.timesteps.tolist() == [2, 1, 2]
    own = own_outputs(net, sequence, 2, sequence=True).cumsum(0)
    torch.testing.assert_close(result.logits, torch.stack([own[1, 0], own[0, 1], own[1, 2]]))


@pytest.mark.parametrize("kind", ["static", "time first", "batch first"])
def test_an_empty_batch_has_empty_results_of_the_right_shape(net, kind):
    options = {"input": "static" if kind == "static" else "sequence", "time_dim": int(kind == "batch first")}
    shape = {"static": (0, FEATURES), "time first": (3, 0, FEATURES), "batch first": (0, 3, FEATURES)}[kind]
    before = snapshot(net)
    snn, x = wrap(net, **options), torch.rand(shape)
    result = snn.infer(x)
    assert result.logits.shape == (0, CLASSES)
    assert result.timesteps.shape == result.score.shape == (0,)
    assert result.timesteps.dtype == torch.long
    assert result.logits.is_floating_point()
    assert result.steps_executed == 0
    assert len(result) == 0
    assert snn(x).shape == (0, CLASSES)
    assert snn.trace(x).shape == (T if kind == "static" else 3, 0, CLASSES)
    assert_unchanged(net, before)


def test_an_empty_batch_does_not_decide_how_later_batches_are_read(net):
    x = torch.rand(5, FEATURES)
    fresh, used = wrap(net, readout="auto"), wrap(net, readout="auto")
    used.infer(x[:0])
    expected, found = fresh.infer(x), used.infer(x)
    torch.testing.assert_close(found.logits, expected.logits)
    assert found.timesteps.tolist() == expected.timesteps.tolist()


def test_a_batch_of_one_is_answered_as_the_same_row_in_company(net):
    x = torch.rand(4, FEATURES)
    own = own_outputs(net, x, T).cumsum(0)
    snn = wrap(net, FixedPolicy(3))
    alone = torch.cat([snn.infer(x[i : i + 1]).logits for i in range(4)])
    torch.testing.assert_close(alone, own[2])
    torch.testing.assert_close(snn.infer(x).logits, own[2])


class Amplifier(nn.Module):
    """A spiking network whose answers are real numbers: a row with a huge input overflows to infinity."""

    def __init__(self, spikes: nn.Module) -> None:
        super().__init__()
        self.spikes = spikes
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.spikes(x) + x * 4) * 1e5


NEURONS = {
    "spikingjelly": neuron.IFNode,
    "snntorch": lambda: snntorch.Leaky(beta=0.9, init_hidden=True),
}


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 3e37])
@pytest.mark.parametrize("policy", ["confidence", "entropy", "margin", "patience", "fixed"])
@pytest.mark.parametrize("framework", NEURONS)
def test_a_row_with_non_finite_logits_runs_to_the_end_with_a_warning_and_harms_no_other(framework, policy, bad):
    model = Amplifier(NEURONS[framework]()).eval()
    x = torch.rand(5, FEATURES)
    snn = wrap(model, FixedPolicy(1) if policy == "fixed" else policy, readout="sum")
    expected = snn.infer(x)
    assert expected.timesteps.max() < T
    before = snapshot(model)
    broken = x.clone()
    broken[1] = bad
    with pytest.warns(RuntimeWarning, match=rf"1 of 5 rows had NaN or infinite logits.*ran all {T} timesteps"):
        result = snn.infer(broken)
    assert result.timesteps[1] == T
    assert not result.logits[1].isfinite().all()
    others = [0, 2, 3, 4]
    assert result.timesteps[others].tolist() == expected.timesteps[others].tolist()
    torch.testing.assert_close(result.logits[others], expected.logits[others])
    assert_unchanged(model, before)


def test_a_first_batch_with_a_bad_row_is_answered_too():
    model = Amplifier(neuron.IFNode()).eval()
    x = torch.rand(3, FEATURES)
    x[0] = float("nan")
    with pytest.warns(RuntimeWarning, match="1 of 3 rows"):
        result = wrap(model).infer(x)
    good = wrap(model).infer(x[1:])
    assert result.timesteps.tolist() == [T, *good.timesteps.tolist()]


def test_patience_does_not_count_timesteps_at_which_the_logits_were_not_numbers():
    """argmax of a row with NaN is a class like any other; it must not count as an answer that was repeated."""
    nan = float("nan")
    trace = [torch.tensor([[nan, 0.0]]), torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 0.0]])]
    from seenn_plugin.policies import exit_timesteps

    assert exit_timesteps(PatiencePolicy(2), torch.stack(trace)).tolist() == [3]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int64, torch.bool, torch.float16, torch.float64, torch.bfloat16])
def test_an_input_of_another_dtype_names_both_and_the_conversion(net, dtype):
    snn = wrap(net)
    x = torch.ones(2, FEATURES).to(dtype)
    assert_refuses(net, lambda: snn.infer(x), InputError, str(dtype), "torch.float32", "x.to(torch.float32)")


def test_an_input_on_another_device_names_both_and_the_move(net):
    snn = wrap(net)
    x = torch.ones(2, FEATURES, device="meta")
    assert_refuses(net, lambda: snn.infer(x), InputError, "on meta", "on cpu", "x.to('cpu')")


def one_layer(framework: str) -> nn.Module:
    """A net for other dtypes: snnTorch's spikes are float32 in all of them, so that none can follow a neuron."""
    return _lively(nn.Sequential(nn.Linear(FEATURES, CLASSES), NEURONS[framework]())).eval()


@pytest.mark.parametrize("framework", NEURONS)
def test_a_float64_model_answers_as_its_own_run_in_float64(framework):
    exact = one_layer(framework).double()
    x = torch.rand(4, FEATURES, dtype=torch.float64)
    own = own_outputs(exact, x, T).cumsum(0)
    result = wrap(exact, StopAt(1, 4, 2, 3)).infer(x)
    torch.testing.assert_close(result.logits, own[torch.tensor([0, 3, 1, 2]), torch.arange(4)])
    assert result.logits.dtype == own.dtype
    assert wrap(exact).infer(x[:0]).logits.dtype == own.dtype


@pytest.mark.parametrize("framework", NEURONS)
def test_half_precision_models_are_answered_and_scored_in_float32(framework):
    half = one_layer(framework).to(torch.bfloat16)
    x = torch.rand(4, FEATURES).to(torch.bfloat16)
    result = wrap(half, ConfidencePolicy(0.5, temperature=1.0)).infer(x)
    assert result.logits.dtype == own_outputs(half, x, T).dtype
    assert result.score.dtype == torch.float32


def test_autocast_is_obeyed_and_equal_to_the_models_own_run_under_autocast(net):
    x = torch.rand(4, FEATURES)
    with torch.autocast("cpu", dtype=torch.bfloat16), torch.no_grad():
        own = own_outputs(net, x, T).float().cumsum(0)
        result = wrap(net, StopAt(1, 2, 3, 4)).infer(x)
        half = wrap(net, FixedPolicy(1)).infer(x.bfloat16())
    torch.testing.assert_close(result.logits.float(), own[torch.arange(4), torch.arange(4)])
    assert half.timesteps.tolist() == [1] * 4


# -- the model ---------------------------------------------------------------------------------------------------------


TRAINING = {"BatchNorm1d": lambda: nn.BatchNorm1d(FEATURES), "Dropout": lambda: nn.Dropout(0.5)}


@pytest.mark.parametrize("kind", TRAINING)
@pytest.mark.parametrize("framework", NEURONS)
def test_batch_statistics_and_dropout_in_training_mode_are_refused_by_name(framework, kind):
    model = nn.Sequential(TRAINING[kind](), nn.Linear(FEATURES, CLASSES), NEURONS[framework]()).train()
    snn, x = wrap(model), torch.rand(4, FEATURES)
    snn.train()
    for call in (snn.infer, snn.trace, snn):
        assert_refuses(model, lambda: call(x), ModelRefused, f"0 ({kind})", "training mode", "eval()")  # noqa: B023
    assert_refuses(model, lambda: snn.infer(x[:0]), ModelRefused, kind)
    snn.eval()
    assert snn.infer(x).timesteps.shape == (4,)
    model.train()
    assert_refuses(model, lambda: snn.infer(x), ModelRefused, kind)


def test_functional_dropout_in_training_mode_is_refused_as_not_repeatable():
    class Noisy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return nn.functional.dropout(x, 0.5, self.training)

    model = nn.Sequential(Noisy(), nn.Linear(FEATURES, CLASSES), snntorch.Leaky(beta=0.9, init_hidden=True))
    _lively(model).train()
    snn = wrap(model)
    assert_refuses(model, lambda: snn.infer(torch.rand(4, FEATURES)), ModelRefused, "repeatable")
    model.eval()
    assert snn.infer(torch.rand(4, FEATURES)).timesteps.shape == (4,)


def test_training_mode_is_fine_where_nothing_minds_it(net):
    net.train()
    x = torch.rand(4, FEATURES)
    own = own_outputs(net, x, T).cumsum(0)
    before = snapshot(net)
    torch.testing.assert_close(wrap(net).trace(x), own)
    assert_unchanged(net, before)


class Interrupted(Exception):
    pass


@pytest.mark.parametrize("error", [Interrupted("boom"), KeyboardInterrupt("boom"), torch.OutOfMemoryError("boom")])
@pytest.mark.parametrize("call", ["infer", "trace"])
def test_a_model_that_raises_in_the_middle_of_a_run_is_as_it_was_and_answers_the_next_call(
    net, call, error, monkeypatch
):
    x = torch.rand(4, FEATURES)
    own = own_outputs(net, x, T).cumsum(0)
    snn = wrap(net, StopAt(1, 3, 4, 4))
    snn.infer(x)
    before = snapshot(net)
    calls: list[int] = []

    def raise_at_the_third(x: Tensor) -> None:
        calls.append(len(x))
        if len(calls) == 3:
            raise error

    monkeypatch.setattr(Scale, "before", staticmethod(raise_at_the_third))
    with pytest.raises(type(error), match="boom"):
        getattr(snn, call)(x)
    assert len(calls) == 3
    assert_unchanged(net, before)
    monkeypatch.undo()
    result = snn.infer(x)
    torch.testing.assert_close(result.logits, own[torch.tensor([0, 2, 3, 3]), torch.arange(4)])


def test_a_model_that_raises_at_first_use_says_its_error_and_is_looked_at_again(net, monkeypatch):
    def fail(x: Tensor) -> None:
        raise Interrupted("boom at once")

    snn, x = wrap(net), torch.rand(4, FEATURES)
    monkeypatch.setattr(Scale, "before", staticmethod(fail))
    assert_refuses(net, lambda: snn.infer(x), InputError, "Interrupted: boom at once", "(6,)")
    monkeypatch.undo()
    torch.testing.assert_close(snn.trace(x), own_outputs(net, x, T).cumsum(0))


def test_rows_are_unchanged_when_the_model_raises_even_if_it_writes_its_state_in_place(monkeypatch):
    """``Adapter.advance`` promises it, so that a caller can go on with the rows it holds."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("v", None, persistent=False)

        def forward(self, x: Tensor) -> Tensor:
            if self.v is None:
                self.v = torch.zeros_like(x)
            self.v.mul_(0.5).add_(x)
            return (self.v > 0.7).float()

    model = nn.Sequential(
        InPlace(), Scale(), nn.Linear(FEATURES, CLASSES), snntorch.Leaky(beta=0.8, init_hidden=True)
    ).eval()
    x = torch.rand(3, FEATURES)
    snn = wrap(_lively(model))
    expected = snn.trace(x)
    rows = snn.adapter.begin(InputBatch(x))
    found = [snn.adapter.advance(rows)[0][0]]

    def fail(x: Tensor) -> None:
        raise Interrupted

    monkeypatch.setattr(Scale, "before", staticmethod(fail))
    with pytest.raises(Interrupted):
        snn.adapter.advance(rows)
    monkeypatch.undo()
    found += [snn.adapter.advance(rows)[0][0] for _ in range(T - 1)]
    torch.testing.assert_close(torch.stack(found).cumsum(0), expected)


def test_a_model_without_a_spiking_neuron_is_claimed_by_no_adapter():
    model = nn.Linear(FEATURES, CLASSES)
    assert_refuses(
        model, lambda: wrap(model), AdapterError, "no adapter claims Linear", "snntorch", "spikingjelly", "adapter="
    )


@pytest.mark.parametrize("adapter", ["spikingjelly", "snntorch"])
def test_a_model_without_spiking_state_is_refused(adapter):
    model = nn.Sequential(nn.Linear(FEATURES, CLASSES), nn.ReLU()).eval()
    snn = wrap(model, adapter=adapter)
    assert_refuses(
        model, lambda: snn.infer(torch.rand(3, FEATURES)), ModelRefused, "no spiking state", "one step", "Sequential"
    )


class LoopInside(nn.Module):
    """A network that shows a static input to itself, all timesteps in one call."""

    def __init__(self, net: nn.Module, steps: int, total: str) -> None:
        super().__init__()
        self.net, self.steps, self.total = net, steps, total

    def forward(self, x: Tensor) -> Tensor:
        outputs = torch.stack([self.net(x) for _ in range(self.steps)])
        return outputs if self.total == "stack" else outputs.sum(0)


class OpenLoop(nn.Module):
    """snnTorch's tutorial form: states made, looped over and dropped inside forward."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(FEATURES, CLASSES)
        self.lif = snntorch.Leaky(beta=0.9)

    def forward(self, x: Tensor) -> Tensor:
        mem, total = self.lif.init_leaky(), 0
        for _ in range(4):
            spk, mem = self.lif(self.fc(x), mem)
            total = total + spk
        return total


@pytest.mark.parametrize("total", ["stack", "sum"])
@pytest.mark.parametrize("build", [spikingjelly_net, snntorch_net])
def test_a_time_loop_inside_forward_is_refused_by_name(build, total):
    model = LoopInside(build(), T, total).eval()
    snn = wrap(model)
    assert_refuses(model, lambda: snn.infer(torch.rand(3, FEATURES)), ModelRefused, "LoopInside", "forward()", "step")


def test_a_time_loop_inside_forward_with_states_of_its_own_is_taken_and_reads_one_answer_only():
    model = _lively(OpenLoop()).eval()
    x = torch.rand(3, FEATURES)
    with torch.no_grad():
        assert torch.equal(wrap(model, "fixed", readout="auto", timesteps=1).trace(x)[0], model.lif(model.fc(x))[0])
    snn = wrap(model)
    assert_refuses(model, lambda: snn.infer(x), ReadoutError, "'sum'", "one prediction", "readout='auto'")


class RepeatInside(nn.Module):
    """A multi-step network that repeats a static image T times by itself."""

    def __init__(self, net: nn.Module, steps: int) -> None:
        super().__init__()
        self.net, self.T = net, steps

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.unsqueeze(0).repeat(self.T, 1, 1) if x.ndim == 2 else x)


class MeanInside(nn.Module):
    def __init__(self, net: nn.Module, keepdim: bool) -> None:
        super().__init__()
        self.net, self.keepdim = net, keepdim
        self.head = nn.Linear(CLASSES, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.net(x).mean(0, keepdim=self.keepdim))


def test_an_answer_without_one_row_for_each_sample_is_refused_with_the_shape_seen():
    model = MeanInside(spikingjelly_net("m"), keepdim=True).eval()
    snn = wrap(model)
    assert_refuses(
        model, lambda: snn.infer(torch.rand(3, FEATURES)), ModelRefused, "MeanInside", "(1, 2, 3)", "[T, N, C]"
    )


def test_the_number_of_timesteps_is_read_from_the_model_if_it_carries_it():
    model = RepeatInside(spikingjelly_net("m"), 3).eval()
    assert EarlyExitWrapper(model).timesteps == 3


# -- adapters ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def entry_points(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes ``seenn_plugin`` see some entry points more than those installed."""
    installed = tuple(importlib.metadata.entry_points(group="seenn_plugin.adapters"))

    def install(**values: str) -> None:
        group = "seenn_plugin.adapters"
        more = tuple(importlib.metadata.EntryPoint(name, value, group) for name, value in values.items())
        monkeypatch.setattr("seenn_plugin.adapter.registry.entry_points", lambda group: installed + more)

    return install


class Rival(Adapter):
    """Claims every model."""

    name = "rival"

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        return True

    def begin(self, inputs, sequence):
        raise NotImplementedError

    advance = keep = place = begin


def test_two_adapters_that_claim_one_model_are_both_named_and_one_can_be_chosen(net, entry_points):
    entry_points(rival=f"{__name__}:Rival")
    own = wrap(net, adapter="snntorch").adapter.name if "Leaky" in repr(net) else "spikingjelly"
    assert_refuses(net, lambda: wrap(net), AdapterError, "Sequential", "several", "'rival'", repr(own), "adapter=")
    assert wrap(net, adapter="rival").adapter.name == "rival"
    assert wrap(net, adapter=own).adapter.name == own


def test_a_missing_framework_is_named_with_its_extra(monkeypatch):
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "seenn_plugin.adapter.registry.importlib.util.find_spec",
        lambda name, *rest: None if name in ("snntorch", "spikingjelly") else find_spec(name, *rest),
    )
    model = nn.Linear(FEATURES, CLASSES)
    for framework in ("spikingjelly", "snntorch"):
        extra = f'pip install "seenn-plugin[{framework}]"'
        assert_refuses(model, lambda: wrap(model), AdapterError, "Not installed", extra)
        assert_refuses(model, lambda: wrap(model, adapter=framework), AdapterError, extra)  # noqa: B023


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_package_of_a_third_party:Adapter", "ModuleNotFoundError"),
        (f"{__name__}:NoSuchName", "AttributeError"),
        (f"{__name__}:StopAt", "not a subclass"),
        (f"{__name__}:wrap", "not a subclass"),
    ],
)
def test_a_broken_third_party_adapter_warns_and_is_skipped(net, entry_points, value, reason):
    entry_points(broken=value)
    with pytest.warns(RuntimeWarning, match="adapter 'broken'.*skipped") as warned:
        snn = wrap(net)
    assert any(reason in str(warning.message) for warning in warned)
    x = torch.rand(3, FEATURES)
    torch.testing.assert_close(snn.trace(x), own_outputs(net, x, T).cumsum(0))


def test_a_third_party_adapter_that_raises_when_it_is_asked_warns_and_is_skipped(net, entry_points, monkeypatch):
    def fail(cls: type, model: nn.Module) -> bool:
        raise Interrupted("boom")

    monkeypatch.setattr(Rival, "claims", classmethod(fail))
    entry_points(rival=f"{__name__}:Rival")
    with pytest.warns(RuntimeWarning, match=r"adapter 'rival'.*skipped"):
        snn = wrap(net)
    assert snn.adapter.name in ("spikingjelly", "snntorch")


def test_an_unknown_adapter_lists_the_valid_ones_and_the_closest(net):
    assert_refuses(
        net,
        lambda: wrap(net, adapter="spikingjely"),
        AdapterError,
        "'spikingjely'",
        "auto, snntorch, spikingjelly",
        "Did you mean 'spikingjelly'?",
    )


@pytest.mark.parametrize("adapter", [42, None, lambda model: None, nn.Flatten])
def test_an_adapter_of_the_wrong_type_is_refused(adapter):
    net = spikingjelly_net()
    assert_refuses(net, lambda: wrap(net, adapter=adapter), AdapterError, "adapter")


def test_an_adapter_of_another_model_is_refused(net):
    other = wrap(copy.deepcopy(net)).adapter
    assert_refuses(net, lambda: wrap(net, adapter=other), AdapterError, "another model")


# -- options -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"timesteps": 0}, ("timesteps", "at least 1", "0")),
        ({"timesteps": -3}, ("timesteps", "at least 1", "-3")),
        ({"timesteps": 2.0}, ("timesteps", "integer", "2.0")),
        ({"timesteps": True}, ("timesteps", "integer", "True")),
        ({"timesteps": "4"}, ("timesteps", "integer", "'4'")),
        ({"timesteps": None}, ("timesteps=T",)),
        ({"chunk": 0}, ("chunk", "at least 1", "0")),
        ({"chunk": 1.5}, ("chunk", "integer", "1.5")),
        ({"input": "video"}, ("input", "'static'", "'sequence'", "'video'")),
        ({"time_dim": 2}, ("time_dim", "[T, N, ...]", "[N, T, ...]", "2")),
        ({"time_dim": -1}, ("time_dim", "-1")),
    ],
)
def test_an_option_out_of_range_says_its_name_its_value_and_what_is_allowed(net, options, said):
    assert_refuses(net, lambda: wrap(net, **options), InputError, *said)


def test_a_model_that_is_no_module_is_refused():
    with pytest.raises(InputError, match=r"torch\.nn\.Module, not function"):
        wrap(lambda x: x)


def test_an_unknown_policy_lists_the_valid_ones_and_the_closest(net):
    valid = "confidence, entropy, fixed, margin, patience"
    assert_refuses(net, lambda: wrap(net, "confidense"), PolicyError, "'confidense'", valid, "mean 'confidence'?")
    assert_refuses(net, lambda: wrap(net, "zzz"), PolicyError, "'zzz'", valid)


@pytest.mark.parametrize("policy", [0.9, None, nn.Linear, lambda logits: logits])
def test_a_policy_of_the_wrong_type_says_what_a_policy_can_be(net, policy):
    assert_refuses(net, lambda: wrap(net, policy), PolicyError, "policy must be", "confidence", "Policy class")


def test_an_unknown_readout_lists_the_valid_ones_and_the_closest(net):
    valid = "auto, first_spike, last, max, mean, membrane, sum"
    assert_refuses(net, lambda: wrap(net, readout="membran"), ReadoutError, "'membran'", valid, "mean 'membrane'?")
    assert_refuses(net, lambda: wrap(net, readout=3), ReadoutError, "readout must be", "3")
    assert_refuses(net, lambda: wrap(net, readout=LastReadout), ReadoutError, "readout must be")
    assert_refuses(net, lambda: wrap(net, readout="population"), ReadoutError, "PopulationReadout(classes=10)")


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: ConfidencePolicy(float("nan")), ("threshold", "nan")),
        (lambda: ConfidencePolicy("high"), ("threshold", "'high'")),
        (lambda: ConfidencePolicy(temperature=0.0), ("temperature", "positive", "0.0")),
        (lambda: ConfidencePolicy(temperature=-1.0), ("temperature", "positive", "-1.0")),
        (lambda: ConfidencePolicy(temperature=float("inf")), ("temperature", "finite", "inf")),
        (lambda: PatiencePolicy(0), ("patience", "at least 1", "0")),
        (lambda: PatiencePolicy(1.5), ("patience", "integer", "1.5")),
        (lambda: FixedPolicy(0), ("timesteps", "at least 1", "0")),
    ],
)
def test_a_policy_setting_out_of_range_says_its_name_and_value(build, said):
    with pytest.raises(PolicyError) as caught:
        build()
    assert all(text in str(caught.value) for text in said)


def test_a_fixed_policy_later_than_timesteps_names_both(net):
    assert_refuses(net, lambda: wrap(net, FixedPolicy(9)), PolicyError, "FixedPolicy(9)", f"timesteps={T}")


def test_readouts_that_do_not_fit_the_output_say_the_shapes(net):
    x = torch.rand(2, FEATURES)
    for readout, said in (
        ("membrane", ("several outputs", "output=True")),
        (PopulationReadout(2), ("PopulationReadout(classes=2)", f", {CLASSES})")),
        (lambda history: history, ("[n, C]", "callable")),
        (lambda history: history.sum(), ("[n, C]", "()")),
    ):
        snn = wrap(net, readout=readout)
        assert_refuses(net, lambda: snn.infer(x), ReadoutError, *said)  # noqa: B023


# -- policies that break their word ------------------------------------------------------------------------------------


class Answers(Policy):
    """Decides whatever the function given returns."""

    def __init__(self, decide: Callable[[Tensor], Any]) -> None:
        self._decide = decide

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Any:
        return self._decide(logits)


def _yes(logits: Tensor) -> Tensor:
    return torch.ones(len(logits), dtype=torch.bool)


@pytest.mark.parametrize(
    ("decide", "said"),
    [
        (lambda a: True, ("Answers.decide", "Decision", "bool")),
        (lambda a: (_yes(a), a.amax(1)), ("Decision(stop, score, policy_state)", "tuple")),
        (lambda a: Decision(_yes(a)[:2], a.amax(1)), ("stop", "(2,)", "(3,)")),
        (lambda a: Decision(_yes(a)[:, None], a.amax(1)), ("stop", "(3, 1)", "(3,)")),
        (lambda a: Decision(_yes(a).all(), a.amax(1)), ("stop", "()", "(3,)")),
        (lambda a: Decision(a > 0, a.amax(1)), ("stop", f"(3, {CLASSES})", "(3,)")),
        (lambda a: Decision(_yes(a).float(), a.amax(1)), ("stop", "float32", "bool")),
        (lambda a: Decision([True] * 3, a.amax(1)), ("stop", "list", "bool")),
        (lambda a: Decision(_yes(a), a), ("score", f"(3, {CLASSES})", "(3,)")),
        (lambda a: Decision(_yes(a), a.argmax(1)), ("score", "int64", "floating point")),
        (lambda a: Decision(_yes(a), 0.5), ("score", "float", "floating point")),
        (lambda a: Decision(_yes(a), a.amax(1), a.T[:2]), ("policy state of", "(2, 3)", "3 rows on dimension 0")),
        (lambda a: Decision(_yes(a), a.amax(1), {"best": a.max()}), ("policy state of", "()", "3 rows on dimension 0")),
    ],
)
def test_a_policy_that_decides_the_wrong_thing_is_told_what_it_gave_and_what_is_needed(net, decide, said):
    snn = wrap(net, Answers(decide))
    assert_refuses(net, lambda: snn.infer(torch.rand(3, FEATURES)), PolicyError, *said)


@pytest.mark.parametrize("kind", ["list", "numpy"])
def test_a_policy_whose_memory_cannot_follow_the_rows_is_refused(net, kind):
    """A list of one number per row keeps its length when rows leave: every later row would see another's memory."""

    def decide(logits: Tensor) -> Decision:
        score = logits.sum(1)
        memory = score.tolist() if kind == "list" else score.detach().numpy()
        return Decision(torch.zeros(len(logits), dtype=torch.bool), score, memory)

    snn = wrap(net, Answers(decide))
    assert_refuses(net, lambda: snn.infer(torch.rand(3, FEATURES)), PolicyError, "policy state of", "tensor")


def test_a_policy_that_raises_leaves_the_model_as_it_was(net):
    def fail(logits: Tensor) -> Decision:
        raise Interrupted("boom")

    snn = wrap(net, Answers(fail))
    assert_refuses(net, lambda: snn.infer(torch.rand(3, FEATURES)), Interrupted, "boom")


# -- moments -----------------------------------------------------------------------------------------------------------


def test_two_runs_interleaved_on_one_model_do_not_see_each_other(net):
    first, second = torch.rand(3, FEATURES), torch.rand(5, FEATURES)
    snn = wrap(net)
    snn.infer(first)
    before = snapshot(net)
    adapter = snn.adapter
    runs = [(adapter.begin(InputBatch(x)), own_outputs(net, x, T)) for x in (first, second)]
    for t in range(T):
        for rows, own in runs:
            torch.testing.assert_close(adapter.advance(rows)[0][0], own[t])
        if t == 1:
            adapter.keep(runs[1][0], torch.tensor([4, 0]))
            runs[1] = (runs[1][0], runs[1][1][:, [4, 0]])
    assert_unchanged(net, before)


def test_two_wrappers_on_one_model_interleave(net):
    x = torch.rand(4, FEATURES)
    own = own_outputs(net, x, T).cumsum(0)
    one, other = wrap(net, StopAt(1, 2, 3, 4)), wrap(net, FixedPolicy(2))
    for _ in range(2):
        torch.testing.assert_close(one.infer(x).logits, own[torch.arange(4), torch.arange(4)])
        torch.testing.assert_close(other.infer(x[1:]).logits, own[1, 1:])


def test_a_run_started_by_the_model_itself_is_refused(net, monkeypatch):
    x = torch.rand(2, FEATURES)
    snn = wrap(net)
    snn.infer(x)
    inside: list[Tensor] = []

    def start_another(frame: Tensor) -> None:
        if not inside:
            inside.append(frame)
            snn.infer(x)

    monkeypatch.setattr(Scale, "before", staticmethod(start_another))
    assert_refuses(net, lambda: snn.infer(x), RuntimeError, "advanced already")
    monkeypatch.undo()
    torch.testing.assert_close(snn.trace(x), own_outputs(net, x, T).cumsum(0))


@pytest.mark.parametrize("first", ["no_grad", "inference_mode", "enable_grad"])
def test_answers_are_the_same_with_grad_without_and_in_inference_mode_in_any_order(net, first):
    x = torch.rand(4, FEATURES)
    with torch.no_grad():
        own = own_outputs(net, x, T).cumsum(0)
    snn = wrap(net, StopAt(1, 2, 3, 4))
    before = snapshot(net)
    for mode in (first, "inference_mode", "enable_grad", "no_grad"):
        with getattr(torch, mode)():
            result, trace = snn.infer(x.clone()), snn.trace(x.clone())
            assert result.logits.requires_grad == trace.requires_grad == (mode == "enable_grad")
            torch.testing.assert_close(result.logits.detach(), own[torch.arange(4), torch.arange(4)])
            torch.testing.assert_close(trace.detach(), own)
        assert_unchanged(net, before)


def test_gradients_reach_the_parameters_through_trace_and_through_infer(net):
    x = torch.rand(4, FEATURES)
    parameters = list(net.parameters())

    def gradients(logits: Tensor) -> list[Tensor]:
        weights = torch.linspace(-1, 1, logits.numel()).reshape(logits.shape)
        return list(torch.autograd.grad((logits * weights).sum(), parameters))

    own = _own_with_grad(net, x)
    for found, wanted in zip(gradients(wrap(net).trace(x)), gradients(own), strict=True):
        torch.testing.assert_close(found, wanted)
        assert wanted.abs().sum() > 0
    exits = (2, 1, 4, 3)
    own = _own_with_grad(net, x)[torch.tensor(exits) - 1, torch.arange(4)]
    for found, wanted in zip(gradients(wrap(net, StopAt(*exits)).infer(x).logits), gradients(own), strict=True):
        torch.testing.assert_close(found, wanted)


def _own_with_grad(net: nn.Module, x: Tensor) -> Tensor:
    """Decision logits ``[T, N, C]`` of the model itself, with its graph; the model is left fresh."""
    if any(isinstance(module, neuron.BaseNode) for module in net.modules()):
        functional.reset_net(net)
        multi = any(getattr(module, "step_mode", "s") == "m" for module in net.modules())
        outputs = net(torch.stack([x] * T)) if multi else torch.stack([net(x) for _ in range(T)])
        functional.reset_net(net)
    else:
        for module in net.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
        outputs = torch.stack([net(x) for _ in range(T)])
        for module in net.modules():
            if isinstance(module, snntorch.Leaky):
                module.reset_mem()
    return outputs.cumsum(0)


def test_the_callers_input_is_not_changed(net):
    x = torch.rand(4, FEATURES)
    was, version = x.clone(), x._version
    snn = wrap(net, StopAt(1, 2, 3, 4))
    snn.infer(x)
    snn.trace(x)
    assert torch.equal(x, was)
    assert x._version == version


def test_answers_are_repeatable_and_do_not_touch_the_random_generator(net):
    x = torch.rand(4, FEATURES)
    state = torch.get_rng_state()
    snn = wrap(net)
    first = snn.infer(x)
    assert torch.equal(torch.get_rng_state(), state)
    second = snn.infer(x)
    assert torch.equal(first.logits, second.logits)


def test_nothing_warns_on_a_sound_model(net):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        wrap(net).infer(torch.rand(3, FEATURES))
