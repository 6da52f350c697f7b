"""The short way of a neuron's single step: the framework's numbers, bit by bit, or the framework's own code."""

from __future__ import annotations

import copy
import io
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from seenn_spikingjelly import SpikingJellyAdapter
from seenn_spikingjelly import fused_neurons as neuron_step
from seenn_spikingjelly.fused_neurons import FusedNeuron, FusedNeurons
from spikingjelly.activation_based import functional, layer, neuron, surrogate
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.inputs import InputBatch
from seenn_plugin.state.values import same

T, N = 4, 5


def make(kind: str, tau: float, decay_input: bool, **options: Any) -> Any:
    if kind == "IF":
        return neuron.IFNode(**options).eval()
    if kind == "LIF":
        return neuron.LIFNode(tau=tau, decay_input=decay_input, **options).eval()
    return neuron.ParametricLIFNode(init_tau=tau, decay_input=decay_input, **options).eval()


def went_the_short_way(steps: FusedNeurons, dtype: torch.dtype) -> bool:
    return all(step._is_equal.get(dtype, False) for step in steps._steps) and bool(steps._steps)


nodes = st.builds(
    make,
    kind=st.sampled_from(["IF", "LIF", "PLIF"]),
    tau=st.sampled_from([2.0, 1.1, 3.0, 7.3]),
    decay_input=st.booleans(),
    v_threshold=st.sampled_from([1.0, 0.1, 2.7]),
    v_reset=st.sampled_from([None, 0.0, 0.3, -0.7]),
    surrogate_function=st.sampled_from([surrogate.ATan(), surrogate.Sigmoid(), surrogate.PiecewiseQuadratic()]),
    detach_reset=st.booleans(),
)


@given(
    node=nodes,
    dtype=st.sampled_from([torch.float32, torch.float64]),
    shape=st.sampled_from([(1,), (3, 7), (2, 3, 5, 4), (5, 101), (0, 4)]),
    start=st.sampled_from([None, "another number", "a tensor"]),
    block=st.sampled_from([16, 1 << 17]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_framework_bit_by_bit(node, dtype, shape, start, block, seed):
    node.to(dtype)
    generator = torch.Generator().manual_seed(seed)
    if start is not None:
        node.v = 0.125 if start == "another number" else torch.randn(shape, generator=generator, dtype=dtype)
    own = copy.deepcopy(node)
    steps = FusedNeurons([node])
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(neuron_step, "_BLOCK", block)
        for _ in range(T):
            x = 2 * torch.randn(shape, generator=generator, dtype=dtype)
            x[torch.rand(shape, generator=generator) < 0.2] = node.v_threshold  # at the threshold exactly, from rest
            given_x, before = x.clone(), node.v
            kept = before.clone() if isinstance(before, Tensor) else before
            with steps.patched():
                spike = node(x)
            assert same([spike, node.v], [own(x), own.v])
            assert same([x, before], [given_x, kept]), "input or old state was written"
    assert went_the_short_way(steps, dtype)
    assert "forward" not in vars(node)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last),
    "rows innermost": lambda x: x.permute(3, 1, 2, 0).contiguous().permute(3, 1, 2, 0),
    "transposed": lambda x: x.transpose(1, 3).contiguous().transpose(1, 3),
}


@given(
    node=nodes,
    layout=st.sampled_from(list(LAYOUTS)),
    layout_of_v=st.sampled_from([*LAYOUTS, "expanded"]),
    shape=st.sampled_from([(3, 4, 5, 6), (1, 3, 4, 4), (2, 1, 5, 4), (3, 4, 1, 1), (0, 2, 3, 3)]),
    block=st.sampled_from([16, 1 << 17]),
    seed=st.integers(0, 2**16),
)
def test_equals_the_framework_bit_by_bit_in_every_dense_layout(node, layout, layout_of_v, shape, block, seed):
    generator = torch.Generator().manual_seed(seed)
    v = torch.randn(shape, generator=generator)
    v = v[:1].expand(shape) if layout_of_v == "expanded" and shape[0] else LAYOUTS.get(layout_of_v, torch.clone)(v)
    node.v = v
    own = copy.deepcopy(node)
    steps = FusedNeurons([node])
    short_way, taken = neuron_step._Step.__call__, []
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(neuron_step, "_BLOCK", block)
        patch.setattr(neuron_step._Step, "__call__", lambda *arguments: taken.append(1) or short_way(*arguments))
        for step in range(T):
            # The layout changes on the way, as it does where a layer of the network goes its own way.
            x = LAYOUTS[layout if step < 2 else "contiguous"](2 * torch.randn(shape, generator=generator))
            given_x, before = x.clone(), node.v
            kept = before.clone()
            taken.clear()
            with steps.patched():
                spike = node(x)
            assert taken
            assert same([spike, node.v], [own(x), own.v])
            assert same([x, before], [given_x, kept]), "input or old state was written"
            assert spike.stride() == node.v.stride() == torch.empty_like(x).stride()
    assert went_the_short_way(steps, torch.float32)


class MyLIF(neuron.LIFNode):
    """A neuron of the user's own."""


class MySurrogate(surrogate.ATan):
    """Spikes of the user's own."""


def _with(change: Callable[[Any], Any], **options: Any) -> Any:
    node = make("LIF", 2.0, True, **options)
    change(node)
    return node


FALLBACKS: dict[str, Callable[[], Any]] = {
    "a subclass": lambda: MyLIF().eval(),
    "another neuron": lambda: neuron.QIFNode().eval(),
    "spikes of the user's own": lambda: make("LIF", 2.0, True, surrogate_function=MySurrogate()),
    "no spikes": lambda: make("PLIF", 2.0, True, surrogate_function=surrogate.ATan(spiking=False)),
    "history kept": lambda: make("IF", 2.0, True, store_v_seq=True),
    "a forward of its own": lambda: _with(lambda node: vars(node).update(forward=lambda x: x + 1)),
    "a hook on its surrogate": lambda: _with(  # the default one is shared by all neurons of the process
        lambda node: node.surrogate_function.register_forward_hook(lambda *_: None),
        surrogate_function=surrogate.ATan(),
    ),
}


@pytest.mark.parametrize("what", FALLBACKS)
def test_what_is_not_known_runs_the_frameworks_code(what, monkeypatch):
    node = FALLBACKS[what]()
    own = copy.deepcopy(node)
    steps = FusedNeurons([node])
    monkeypatch.setattr(neuron_step._Step, "__call__", _never)
    with torch.no_grad():
        for seed in range(3):
            x = torch.randn(N, 6, generator=torch.Generator().manual_seed(seed))
            with steps.patched():
                spike = node(x)
            assert same([spike, node.v], [own(x), own.v])


def _never(*_: Any) -> Any:
    raise AssertionError("the short way was taken")


@pytest.mark.parametrize(
    "make_x",
    [
        lambda x: x.requires_grad_(),
        lambda x: x.bfloat16(),
        lambda x: x[:1].expand(N, -1, -1, -1),
        lambda x: x[..., ::2],
    ],
    ids=["gradient", "bfloat16", "expanded", "strided"],
)
def test_inputs_that_are_not_known_run_the_frameworks_code(make_x, monkeypatch):
    node = make("LIF", 2.0, True, surrogate_function=surrogate.ATan())
    own = copy.deepcopy(node)
    x = make_x(torch.randn(N, 3, 4, 4))
    monkeypatch.setattr(neuron_step._Step, "__call__", _never)
    with torch.set_grad_enabled(x.requires_grad):
        with FusedNeurons([node]).patched():
            spike = node(x)
        assert same([spike.detach(), node.v.detach()], [own(x).detach(), own.v.detach()])
        assert spike.stride() == own(x).stride()
    assert spike.requires_grad == own(x).requires_grad


def test_multi_step_calls_run_the_frameworks_code(monkeypatch):
    node = make("LIF", 2.0, True)
    node.step_mode = "m"
    own = copy.deepcopy(node)
    monkeypatch.setattr(neuron_step._Step, "__call__", _never)
    x = torch.randn(T, N, 6)
    with torch.no_grad(), FusedNeurons([node]).patched():
        assert torch.equal(node(x), own(x))


def test_an_input_of_another_shape_is_the_frameworks_to_handle():
    node = make("LIF", 2.0, True)
    own = copy.deepcopy(node)
    steps = FusedNeurons([node])
    with torch.no_grad(), steps.patched():
        for n in (4, 1, 4):
            x = torch.randn(n, 6)
            try:
                expected: Any = own(x)
            except RuntimeError as error:
                with pytest.raises(type(error)):
                    node(x)
            else:
                assert same([node(x), node.v], [expected, own.v])


def test_a_formula_that_is_not_the_frameworks_is_found_out(monkeypatch):
    node = make("LIF", 2.0, True)
    own = copy.deepcopy(node)
    monkeypatch.setattr(
        neuron_step._Step, "_leak", lambda self, v, drive, h, factor, sign: torch.lerp(v, h, 0.4, out=h)
    )
    steps = FusedNeurons([node])
    with torch.no_grad(), steps.patched():
        for _ in range(2):
            x = torch.randn(N, 6)
            assert same([node(x), node.v], [own(x), own.v])
    assert steps._steps[0]._is_equal == {torch.float32: False}


# -- in a network -----------------------------------------------------------------------------------------------------


def network(step_mode: str = "s") -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        layer.Conv2d(2, 4, 3, padding=1, bias=False),
        layer.BatchNorm2d(4),
        make("LIF", 2.0, True, v_threshold=0.3, surrogate_function=surrogate.ATan()),
        layer.Conv2d(4, 4, 3, padding=1, bias=False),
        make("PLIF", 2.0, False, v_threshold=0.2, v_reset=None),
        layer.Flatten(),
        layer.Linear(144, 6),
        make("IF", 2.0, True, v_threshold=0.2),
    ).eval()
    functional.set_step_mode(model, step_mode)
    return model


def full(model: nn.Sequential, x: Tensor) -> list[Tensor]:
    """The network's own outputs at every timestep."""
    model = copy.deepcopy(model)
    functional.set_step_mode(model, "s")
    functional.reset_net(model)
    with torch.no_grad():
        return [model(x) for _ in range(T)]


def steps_of(snn: EarlyExitWrapper) -> FusedNeurons:
    assert isinstance(snn.adapter, SpikingJellyAdapter)
    return snn.adapter._fused_neurons


@pytest.fixture
def x() -> Tensor:
    return torch.randn(N, 2, 6, 6, generator=torch.Generator().manual_seed(3))


def wrap(model: nn.Module) -> EarlyExitWrapper:
    return EarlyExitWrapper(model, "fixed", timesteps=T, readout="last")


@pytest.mark.parametrize("step_mode", ["s", "m"])
def test_answers_are_the_networks_own_bit_by_bit(step_mode, x):
    model = network(step_mode)
    snn = wrap(model)
    with torch.no_grad():
        assert torch.equal(snn.trace(x), torch.stack(full(model, x)))
    assert went_the_short_way(steps_of(snn), torch.float32)


def test_the_reference_of_the_checks_is_the_frameworks_own_code(x, monkeypatch):
    snn = wrap(network())
    with torch.no_grad():
        snn.infer(x)
        monkeypatch.setattr(FusedNeuron, "__call__", _never)
        assert snn.adapter.reference(InputBatch(x), T) is not None
        with pytest.raises(AssertionError, match="short way"):
            snn.infer(x)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model[2], "tau", 3.0),
        lambda model: setattr(model[2], "v_threshold", 0.1),
        lambda model: setattr(model[2], "v_reset", None),
        lambda model: setattr(model[2], "decay_input", False),
        lambda model: model[4].w.data.fill_(0.7),
        lambda model: setattr(model[4].w, "data", torch.tensor(-0.7)),
        lambda model: setattr(model[4], "w", nn.Parameter(torch.tensor(0.9))),
        lambda model: model.load_state_dict({k: v * 1.5 for k, v in model.state_dict().items()}),
    ],
    ids=["tau", "threshold", "reset", "decay_input", "w in place", "w.data", "w replaced", "load_state_dict"],
)
def test_a_change_between_two_calls_shows(change, x):
    model = network()
    snn = wrap(model)
    with torch.no_grad():
        before = snn.trace(x)
        change(model)
        found = snn.trace(x)
    assert torch.equal(found, torch.stack(full(model, x)))
    assert not torch.equal(found, before)


def test_a_model_that_raises_gets_its_neurons_back_and_the_rows_go_on(x):
    model = network()
    snn = wrap(model)
    with torch.no_grad():
        snn.infer(x)
        rows = snn.adapter.begin(InputBatch(x))
        first = snn.adapter.advance(rows)[0]
        snapshot = Snapshot(model)
        handle = model[6].register_forward_pre_hook(_raise)
        with pytest.raises(RuntimeError, match="in the middle"):
            snn.adapter.advance(rows)
        handle.remove()
        snapshot.assert_unchanged("a timestep that failed")
        assert all("forward" not in vars(module) for module in model.modules())
        outputs = [first, *(snn.adapter.advance(rows)[0] for _ in range(T - 1))]
    assert torch.equal(torch.cat(outputs), torch.stack(full(model, x)))


def _raise(*_: Any) -> None:
    raise RuntimeError("in the middle")


def test_hooks_on_neurons_fire_and_see_what_the_neuron_answers(x):
    model = network()
    snn = wrap(model)
    with torch.no_grad():
        snn.infer(x)
        seen: list[Tensor] = []
        model[2].register_forward_hook(lambda node, arguments, spikes: seen.append(spikes))
        model[2].register_forward_pre_hook(lambda node, arguments: (arguments[0] + 1,))
        expected = torch.stack(full(model, x))
        seen.clear()
        assert torch.equal(snn.trace(x), expected)
    assert len(seen) == T
    assert all(bool(((spikes == 0) | (spikes == 1)).all()) for spikes in seen)


def test_gradients_are_the_frameworks(x):
    model = network()
    snn = wrap(model)
    with torch.no_grad():
        snn.infer(x)
    trace = snn.trace(x)
    if hasattr(functional, "set_backend"):  # 0.0.0.0.14 makes spikes without a gradient in evaluation mode
        assert torch.equal(trace.detach(), torch.stack(full(model, x)))
        return
    trace.sum().backward()
    found = [parameter.grad for parameter in model.parameters()]
    other = network()
    torch.stack([other(x) for _ in range(T)]).sum().backward()
    for gradient, parameter in zip(found, other.parameters(), strict=True):  # of a stem: summed up earlier
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-5, atol=1e-6)


def test_copies_and_pickles_go_the_short_way_on_their_own_neurons(x):
    model = network()
    snn = wrap(model)
    with torch.no_grad():
        expected = snn.trace(x)
        twin = copy.deepcopy(snn)
        buffer = io.BytesIO()
        pickle.dump(snn.adapter, buffer)
        pickled = wrap(pickle.loads(buffer.getvalue()).model)
        for other in (twin, pickled):
            assert torch.equal(other.trace(x), expected)
            assert went_the_short_way(steps_of(other), torch.float32)
            assert not {id(step.node) for step in steps_of(other)._steps} & {id(module) for module in model.modules()}
