"""Folding, channels-last and autocast: proved, compared, and made anew when the model changes.

Networks on a grid have weights, thresholds and inputs of few bits, so that nothing rounds, in bfloat16 neither: the
copy must then answer exactly as the model does, and the invariants of the design hold as they stand.
"""

from __future__ import annotations

import copy
import io
import pickle
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import snntorch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from seenn_spikingjelly import SpikingJellyAdapter
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.acceleration.optimized_copy import OptimizedCopy
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.adapter.contract import Adapter
from seenn_plugin.errors import AdapterError, InputError, ModelRefused
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import RLPolicy
from seenn_plugin.state.values import tensors

from .invariants import Case, check_alone, check_guest, check_prefix, check_saved, check_stream, check_whole
from .reference import run_snntorch, run_spikingjelly
from .test_invariants import rules

T, N = 4, 6
OPTIONS: dict[str, dict[str, Any]] = {
    "fold": {"fold": True},
    "channels-last": {"channels_last": True},
    "autocast": {"autocast": torch.bfloat16},
    "fold, channels-last": {"fold": True, "channels_last": True},
    "all": {"fold": True, "channels_last": True, "autocast": torch.bfloat16},
}
each_options = pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)


def on_grid(model: nn.Module, seed: int) -> Any:
    """Weights of few bits; normalisations by factors of 1, 2 and 1/2."""
    generator = torch.Generator().manual_seed(seed)

    def pick(like: Tensor, *values: float) -> Tensor:
        return torch.tensor(values)[torch.randint(len(values), like.shape, generator=generator)]

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.data = pick(module.weight, -0.5, 0.0, 0.5, 0.5)
            if module.bias is not None:
                module.bias.data = pick(module.bias, 0.0, 0.5)
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eps = 0.125
            module.running_mean = pick(module.weight, -0.5, 0.0, 0.5)
            module.running_var = pick(module.weight, 1.0, 0.25) - module.eps
            module.weight.data = pick(module.weight, 0.5, 1.0)
            module.bias.data = pick(module.weight, 0.0, 0.5)
    return model.eval()


class Residual(nn.Module):
    """A block with two pairs on the way and one on the shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = layer.Conv2d(channels, 4, 3, padding=1, bias=False), layer.BatchNorm2d(4)
        self.sn1 = neuron.LIFNode(v_threshold=2.0, v_reset=None)
        self.conv2, self.bn2 = layer.Conv2d(4, 4, 3, padding=1), layer.BatchNorm2d(4)
        self.short, self.bn3 = layer.Conv2d(channels, 4, 1, bias=False), layer.BatchNorm2d(4)
        self.sn2 = neuron.IFNode(v_threshold=2.0)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.sn1(self.bn1(self.conv1(x)))))
        return self.sn2(y + self.bn3(self.short(x)))


def jelly(seed: int = 0, step_mode: str = "s") -> Any:
    model = nn.Sequential(Residual(2), layer.MaxPool2d(2), layer.Flatten(), layer.Linear(36, 5), neuron.IFNode(4.0))
    functional.set_step_mode(model, step_mode)
    return on_grid(model, seed)


def torch_net(seed: int = 0) -> Any:
    options: dict[str, Any] = {"init_hidden": True, "beta": 0.5, "threshold": 1.0}
    layers = [nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), snntorch.Leaky(**options), nn.MaxPool2d(2)]
    layers += [nn.Flatten(), nn.Linear(36, 5), nn.BatchNorm1d(5), snntorch.Leaky(**options)]
    return on_grid(nn.Sequential(*layers), seed)


class LoopInside(nn.Module):
    """The usual form of snnTorch's tutorials: membranes in local variables, all timesteps in ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = T
        self.conv, self.bn, self.lif = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), snntorch.Leaky(beta=0.5)
        self.fc, self.lif_out = nn.Linear(64, 5), snntorch.Leaky(beta=0.5)

    def forward(self, x: Tensor) -> Tensor:
        mem, mem_out = self.lif.init_leaky(), self.lif_out.init_leaky()  # pyright: ignore[reportCallIssue]
        spikes = []
        for _ in range(self.num_steps):
            spk, mem = self.lif(self.bn(self.conv(x)), mem)
            out, mem_out = self.lif_out(self.fc(spk.flatten(1)), mem_out)
            spikes.append(out)
        return torch.stack(spikes)


def frames(seed: int = 0, *shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, 3, shape or (N, 2, 6, 6), generator=generator) / 2.0


NETS: dict[str, Callable[[int], Any]] = {
    "SpikingJelly, s": jelly,
    "SpikingJelly, m": partial(jelly, step_mode="m"),
    "snnTorch": torch_net,
}


def wrap(model: nn.Module, *, policy: Any = "fixed", **options: Any) -> EarlyExitWrapper:
    return EarlyExitWrapper(model, policy, **{"timesteps": T, "readout": "last", **options})


def copy_of(snn: EarlyExitWrapper, x: Tensor) -> OptimizedCopy:
    inputs = snn._input_batch(x)
    adapter = snn._running(snn._inspect(inputs), inputs, snn._slots)
    assert isinstance(adapter, OptimizedCopy)
    return adapter


def folded(snn: EarlyExitWrapper, x: Tensor) -> set[str]:
    """Names of the layers that have taken over a normalisation."""
    adapter = copy_of(snn, x)
    names = {module: name for name, module in adapter.model.named_modules()}
    return {names[pair.layer] for pair in adapter.pairs if pair.is_folded}


def trace(snn: EarlyExitWrapper, x: Tensor) -> Tensor:
    with torch.no_grad():
        return snn.trace(x)


# -- the invariants -------------------------------------------------------------------------------------------------


@st.composite
def cases(draw: st.DrawFn, options: dict[str, Any]) -> Case:
    net = draw(st.sampled_from(list(NETS)))
    model, sequence = NETS[net](draw(st.integers(0, 1000))), draw(st.booleans())
    timesteps, n = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    shape = (timesteps, n, 2, 6, 6) if sequence else (n, 2, 6, 6)
    leaves = [m for m in model.modules() if not list(m.children()) and isinstance(m, nn.Conv2d | nn.Linear)]
    return Case(
        model=model,
        run=run_snntorch if net == "snnTorch" else run_spikingjelly,
        inputs=frames(draw(st.integers(0, 1000)), *shape),
        timesteps=timesteps,
        layers=leaves,
        sequence=sequence,
        time_dim=draw(st.integers(0, 1)) if sequence else 0,
        chunk=draw(st.integers(1, 3)),
        readout=draw(st.sampled_from(["sum", "last", "max"])),
        options=options,
    )


@each_options
@settings(max_examples=6)  # each of them makes several copies
@given(data=st.data())
def test_the_invariants_hold(options, data):
    case = data.draw(cases(options))
    rule = data.draw(rules(case.timesteps, case.n))
    check_whole(case)
    check_prefix(case, rule)
    check_alone(case, rule, data.draw(st.permutations(range(case.n))))
    check_saved(case, rule)
    check_stream(case, None if rule.name == "prescribed" else rule, slots=data.draw(st.integers(1, 3)))
    check_guest(case, rule, failing_call=data.draw(st.integers(1, -(-case.timesteps // case.chunk))))


@each_options
@pytest.mark.parametrize("net", NETS)
def test_the_networks_of_these_tests_spike_and_the_copy_answers_the_same(net, options):
    model, x = NETS[net](3), frames(1)
    own = trace(wrap(model), x)
    assert 0.05 < float((own > 0).double().mean()) < 0.95
    assert torch.equal(trace(wrap(model, **options), x), own)


@each_options
def test_rows_can_take_the_places_of_others(options):
    """In the memory layout of those who were there: a conversion in every timestep would cost what it saves."""
    snn = wrap(jelly(3), readout="last", **options)
    x = frames(1)
    own, adapter = trace(wrap(jelly(3)), x), copy_of(snn, x)
    with torch.no_grad():
        rows = adapter.begin(InputBatch(x[:2]))
        adapter.advance(rows)
        layouts = [value.stride() for value in tensors(rows.state.values)]
        adapter.place(rows, torch.tensor([1]), InputBatch(x[2:3]))
        assert [value.stride() for value in tensors(rows.state.values)] == layouts
        outputs = [adapter.advance(rows)[0][0] for _ in range(2)]
    assert torch.equal(torch.stack(outputs)[:, 0], own[1:3, 0])
    assert torch.equal(torch.stack(outputs)[:, 1], own[:2, 2])


@each_options
def test_the_models_weights_keep_dtype_and_layout(options):
    model, x = jelly(), frames()
    kept = {name: (t.dtype, t.stride(), t.data_ptr(), t.clone()) for name, t in model.state_dict().items()}
    snn = wrap(model, **options)
    before = Snapshot(model)
    trace(snn, x)
    before.assert_unchanged("a trace")
    for name, tensor in model.state_dict().items():
        dtype, stride, address, value = kept[name]
        assert (tensor.dtype, tensor.stride(), tensor.data_ptr()) == (dtype, stride, address)
        assert torch.equal(tensor, value)


# -- folding --------------------------------------------------------------------------------------------------------


def test_pairs_are_found_in_both_step_modes_and_by_chunks():
    names = {"0.conv1", "0.conv2", "0.short"}
    for step_mode in ("s", "m"):
        for chunk in (1, 3):
            assert folded(wrap(jelly(step_mode=step_mode), fold=True, chunk=chunk), frames()) == names
    assert folded(wrap(torch_net(), fold=True), frames()) == {"0", "5"}
    assert folded(wrap(LoopInside().eval(), fold=True), frames()) == {"conv"}


def test_folding_with_statistics_of_any_kind_agrees():
    torch.manual_seed(0)
    model = jelly()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var = torch.rand(4) + 0.3
            module.running_mean = torch.randn(4)
            module.weight.data = torch.rand(4) + 0.5
            module.eps = 1e-3
    model[4].v_threshold = 1e6  # the last neuron shows its input, summed up, in its membrane potential
    membranes = []
    for adapter in (wrap(model).adapter, copy_of(wrap(model, fold=True), frames())):
        with torch.no_grad():
            rows = adapter.begin(InputBatch(frames()))
            adapter.advance(rows)
            membranes.append(adapter.state_tensors(rows))
    for own, found in zip(*membranes, strict=True):
        torch.testing.assert_close(own, found)


class Variant(nn.Module):
    """One pair that may be folded, and something that forbids it."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.conv, self.bn = nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.other = nn.BatchNorm2d(4)
        self.first, self.conv_after = nn.BatchNorm2d(2), nn.Conv2d(2, 4, 1)
        self.sn = neuron.IFNode(v_threshold=0.5)
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        how = self.how
        if how == "bn first":
            y = self.conv_after(self.first(x))
        elif how == "changed in place":
            y = self.bn(self.conv(x).mul_(2.0))
        else:
            made = self.conv(x)
            y = self.bn(made)
            if how == "skip":
                y = y + made
            elif how == "skip that is rarely seen":
                y = y + (made > 1e3).float()
            elif how == "skip by NaN":
                y = y + made.isnan().float()
            elif how == "shared layer":
                y = y + self.conv(-x)
            elif how == "two normalisations":
                y = y + self.other(made)
            elif how == "shared normalisation":
                y = y + self.bn(self.conv_after(x))
            elif how == "weight used elsewhere":
                y = y + self.conv.weight.mean()
            elif how == "bias used elsewhere":
                y = y + self.conv.bias.view(1, -1, 1, 1)
        return self.head(self.sn(y).mean((2, 3)))


FORBIDDEN = [
    "bn first",
    "changed in place",
    "skip",
    "skip that is rarely seen",
    "skip by NaN",
    "shared layer",
    "two normalisations",
    "shared normalisation",
    "weight used elsewhere",
    "bias used elsewhere",
]


@pytest.mark.parametrize("how", FORBIDDEN)
def test_what_is_no_pair_is_left_alone(how):
    model = on_grid(Variant(how), 3)
    snn = wrap(model, fold=True)
    assert folded(snn, frames()) == set()
    assert torch.equal(trace(snn, frames()), trace(wrap(model), frames()))


def test_one_pair_that_may_not_be_folded_does_not_keep_others_from_it():
    model = nn.Sequential(
        on_grid(Variant("skip"), 3), nn.Unflatten(1, (5, 1, 1)), nn.Conv2d(5, 3, 1), nn.BatchNorm2d(3)
    )
    model = on_grid(model.append(neuron.IFNode()).append(nn.Flatten()), 4)
    snn = wrap(model, fold=True)
    assert folded(snn, frames()) == {"2"}
    assert torch.equal(trace(snn, frames()), trace(wrap(model), frames()))


class ScaledNorm(nn.BatchNorm2d):
    """As threshold-dependent batch normalisations do: the affine part is not all there is."""

    def forward(self, input: Tensor) -> Tensor:
        return 2.0 * super().forward(input)


class StandardisedConv(nn.Conv2d):
    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight / self.weight.abs().amax((1, 2, 3), keepdim=True).sqrt()
        return nn.functional.conv2d(input, weight, self.bias, padding=1)


def _own_norm(model: Any) -> None:
    model.bn = ScaledNorm(4)


def _own_conv(model: Any) -> None:
    model.conv = StandardisedConv(2, 4, 3, padding=1)


def _no_statistics(model: Any) -> None:
    model.bn = nn.BatchNorm2d(4, track_running_stats=False)


def _parametrised(model: Any) -> None:
    nn.utils.parametrizations.weight_norm(model.conv)


@pytest.mark.parametrize("change", [_own_norm, _own_conv, _parametrised])
def test_arithmetic_that_is_not_the_usual_is_left_alone(change):
    model: Any = Variant("plain")
    assert folded(wrap(on_grid(model, 3), fold=True), frames()) == {"conv"}
    change(model)
    model.eval()
    snn = wrap(model, fold=True)
    assert folded(snn, frames()) == set()
    assert torch.equal(trace(snn, frames()), trace(wrap(model), frames()))


def test_statistics_of_the_batch_are_refused_as_ever():
    model = on_grid(Variant("plain"), 3)
    _no_statistics(model)
    with pytest.raises(ModelRefused, match="alone check"):
        trace(wrap(model.eval(), fold=True), frames())


@pytest.mark.parametrize("norm", ["ThresholdDependentBatchNorm2d"])
def test_normalisations_of_spikingjelly(norm):
    if hasattr(functional, "set_backend"):
        pytest.skip(f"{norm} of SpikingJelly 0.0.0.0.14 cannot be called")
    model = nn.Sequential(
        layer.Conv2d(2, 4, 3), getattr(layer, norm)(1.0, 1.0, 4), neuron.IFNode(), layer.Flatten(), layer.Linear(64, 5)
    )
    functional.set_step_mode(model, "m")
    on_grid(model, 3)
    snn = wrap(model, fold=True)
    assert folded(snn, frames()) == {"0"}
    assert torch.equal(trace(snn, frames()), trace(wrap(model), frames()))


def test_transposed_and_grouped_convolutions():
    model = nn.Sequential(
        nn.ConvTranspose2d(2, 4, 2),
        nn.BatchNorm2d(4),
        neuron.IFNode(),
        nn.Conv2d(4, 4, 3, groups=2),
        nn.BatchNorm2d(4),
        neuron.IFNode(),
        nn.ConvTranspose2d(4, 4, 2, groups=4),
        nn.BatchNorm2d(4),
        neuron.IFNode(),
        nn.Flatten(),
    ).eval()
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_var = torch.rand(4) + 0.3
            module.running_mean = torch.randn(4)
    snn = wrap(model, fold=True)
    assert {"0", "3"} <= folded(snn, frames())
    assert torch.equal(trace(snn, frames()), trace(wrap(model), frames()))


# -- hooks ----------------------------------------------------------------------------------------------------------


@each_options
def test_hooks_fire_and_see_what_they_would_see(options):
    model, x = jelly(3), frames()
    seen: dict[str, list[Tensor]] = {"own": [], "found": []}
    now = "own"
    snn, plain = wrap(model, **options), wrap(model)
    trace(snn, x), trace(plain, x)
    handle = model[0].conv1.register_forward_hook(lambda m, i, output: seen[now].append(output.float().clone()))
    own = trace(plain, x)
    now = "found"
    assert torch.equal(trace(snn, x), own)
    assert len(seen["found"]) == T
    assert all(map(torch.equal, seen["own"], seen["found"]))
    if options.get("fold"):
        assert folded(snn, x) == {"0.conv2", "0.short"}
    handle.remove()
    trace(snn, x)
    assert len(seen["found"]) == T
    if options.get("fold"):
        assert folded(snn, x) == {"0.conv1", "0.conv2", "0.short"}


def test_a_hook_that_changes_what_it_sees_does_so():
    model, x = jelly(3), frames()
    snn = wrap(model, fold=True, autocast=torch.bfloat16)
    before = trace(snn, x)
    model[0].sn1.register_forward_pre_hook(lambda m, inputs: (inputs[0] + 1,))
    assert torch.equal(trace(snn, x), trace(wrap(model), x))
    assert not torch.equal(trace(snn, x), before)


class Hooked(nn.Module):
    """Hooks itself with a method of its own, and keeps what it sees."""

    def __init__(self) -> None:
        super().__init__()
        self.net = jelly(3)
        self.net[0].register_forward_hook(self.note)

    def note(self, module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        self.seen = output
        return output

    def forward(self, x: Tensor) -> Tensor:
        y = self.net(x)
        return y + self.seen.mean((1, 2, 3)).unsqueeze(1)


def test_hooks_that_are_methods_of_the_model_are_the_copys():
    model, x = Hooked().eval(), frames()
    snn = wrap(model, channels_last=True)
    before = Snapshot(model)
    assert torch.equal(trace(snn, x), trace(wrap(model), x))
    before.assert_unchanged("a trace")


# -- autocast -------------------------------------------------------------------------------------------------------


def test_layers_run_in_the_dtype_and_neurons_in_float32():
    x = frames()
    for make in NETS.values():
        model = make(3)
        snn = wrap(model, autocast=torch.bfloat16)
        trace(snn, x)
        dtypes: dict[str, set[torch.dtype]] = {"layer": set(), "neuron": set()}
        handles = []
        adapter = copy_of(snn, x)
        for module in adapter.model.modules():
            kind = "neuron" if module in set(adapter.inner.neurons) else "layer"
            if kind == "neuron" or isinstance(module, nn.Conv2d | nn.Linear):
                note = dtypes[kind]
                handles.append(module.register_forward_hook(lambda m, i, output, note=note: note.add(output.dtype)))
                assert kind == "neuron" or all(p.dtype == torch.bfloat16 for p in module.parameters())
        with torch.no_grad():
            rows = adapter.begin(InputBatch(x))
            outputs = adapter.advance(rows)
        for handle in handles:
            handle.remove()
        assert dtypes == {"layer": {torch.bfloat16}, "neuron": {torch.float32}}
        assert outputs[0].dtype == torch.float32
        assert {state.dtype for state in adapter.state_tensors(rows)} == {torch.float32}


class Accumulates(nn.Module):
    """Adds its answers up in a local variable that starts as the first of them."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = T
        self.fc, self.lif, self.head = nn.Linear(8, 8), snntorch.Leaky(beta=0.5), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        mem, total = self.lif.init_leaky(), 0  # pyright: ignore[reportCallIssue]
        for _ in range(self.num_steps):
            spk, mem = self.lif(self.fc(x.flatten(1)), mem)
            total = total + self.head(spk)
        return total  # pyright: ignore[reportReturnType]


def test_state_in_less_than_its_precision_is_refused_by_name():
    x = frames(0, N, 8)
    assert trace(wrap(Accumulates().eval(), readout="auto"), x).shape == (T, N, 5)
    with pytest.raises(ModelRefused, match=r"autocast=torch.bfloat16 does not work.*total as torch.bfloat16") as caught:
        trace(wrap(Accumulates().eval(), readout="auto", autocast=torch.bfloat16), x)
    assert "float32" in caught.value.remedy


def test_a_model_in_another_dtype_is_refused():
    with pytest.raises(ModelRefused, match=r"autocast=torch.bfloat16 .* torch.float64"):
        trace(wrap(jelly().double(), autocast=torch.bfloat16), frames().double())


class Views(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.sn, self.fc = nn.Conv2d(2, 4, 3, padding=1), neuron.IFNode(), nn.Linear(144, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.sn(self.conv(x)).view(-1, 144))


def test_an_option_with_which_the_model_cannot_run_is_refused_by_name():
    snn = wrap(Views().eval(), fold=True, channels_last=True)
    with pytest.raises(ModelRefused, match=r"channels_last=True does not work with Views: .*view") as caught:
        trace(snn, frames())
    assert caught.value.remedy == "Leave channels_last out."
    assert "channels_last" in str(snn.explain(frames()).refused)


def test_overflow_is_refused_by_name():
    model = jelly(3)
    model[3].weight.data.fill_(1e5)
    model[4] = neuron.IFNode(v_threshold=1e9)
    with pytest.raises(ModelRefused, match=r"autocast=torch.float16 .*NaN or infinite"):
        trace(wrap(model, autocast=torch.float16), frames().abs() + 1)


def test_a_model_that_cannot_be_copied_is_refused():
    model = jelly()
    model.generator = (i for i in range(3))
    with pytest.raises(ModelRefused, match="cannot be copied"):
        trace(wrap(model, fold=True), frames())


# -- the copy follows the model -------------------------------------------------------------------------------------


def _optimise(model: Any) -> None:
    optimiser = torch.optim.SGD(model.parameters(), lr=0.5)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimiser.step()
    optimiser.zero_grad()


CHANGES: dict[str, Callable[[Any], Any]] = {
    "optimiser": _optimise,
    "load_state_dict": lambda model: model.load_state_dict(jelly(8).state_dict()),
    "in place": lambda model: model[0].conv1.weight.detach().add_(0.5),
    "data in place": lambda model: model[0].conv1.weight.data.add_(0.5),
    "data replaced": lambda model: setattr(model[0].conv1.weight, "data", model[0].conv1.weight.detach() + 0.5),
    "parameter replaced": lambda model: setattr(model[0].conv1, "weight", nn.Parameter(-model[0].conv1.weight)),
    "statistics": lambda model: model[0].bn1.running_mean.sub_(0.5),
    "statistics replaced": lambda model: setattr(model[0].bn1, "running_mean", model[0].bn1.running_mean - 0.5),
    "threshold": lambda model: setattr(model[0].sn1, "v_threshold", 0.5),
    "eps": lambda model: setattr(model[0].bn1, "eps", 3.0),
    "module replaced": lambda model: model.__setitem__(1, layer.AvgPool2d(2)),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_change_of_the_model_is_seen(change):
    model, x = jelly(3), frames()
    snn = wrap(model, fold=True, channels_last=True)
    before, prepared = trace(snn, x), copy_of(snn, x)
    assert copy_of(snn, x) is prepared
    change(model)
    assert copy_of(snn, x) is not prepared
    found = trace(snn, x)
    torch.testing.assert_close(found, trace(wrap(model), x))
    assert not torch.equal(found, before)
    prepared = copy_of(snn, x)
    assert copy_of(snn, x) is prepared


@pytest.mark.parametrize("net", NETS)
def test_state_that_the_callers_own_runs_leave_is_no_change(net):
    model, x = NETS[net](3), frames()
    snn = wrap(model, fold=True)
    trace(snn, x)
    prepared = copy_of(snn, x)
    for n in (3, 3):
        model(frames(4, *((T, n, 2, 6, 6) if net.endswith("m") else (n, 2, 6, 6))))  # with a gradient, even
        assert copy_of(snn, x) is prepared
    assert torch.equal(trace(snn, x), trace(wrap(NETS[net](3)), x))


def test_a_state_with_a_gradient_can_be_copied():
    model, x = jelly(3), frames()
    model(x)
    assert torch.equal(trace(wrap(model, fold=True), x), trace(wrap(jelly(3)), x))


# -- gradients, copies, saving --------------------------------------------------------------------------------------


def test_traces_have_the_models_own_gradients_and_infer_has_none():
    model, x = jelly(3), frames()
    snn = wrap(model, fold=True, autocast=torch.bfloat16)
    found = snn.trace(x)
    result = snn.infer(x)
    assert not result.logits.requires_grad
    assert torch.equal(result.logits, trace(snn, x)[result.timesteps - 1, torch.arange(N)])
    if found.requires_grad:  # 0.0.0.0.14 makes spikes without a gradient in evaluation mode
        found.sum().backward()
        grads = [parameter.grad for parameter in model.parameters()]
        other = jelly(3)
        wrap(other).trace(x).sum().backward()
        assert all(map(torch.equal, grads, [parameter.grad for parameter in other.parameters()]))  # pyright: ignore


@each_options
def test_the_copy_is_no_part_of_the_wrapper_and_copies_make_their_own(options):
    model, x = jelly(3), frames()
    snn = wrap(model, **options)
    expected = trace(snn, x)
    assert [*snn.state_dict()] == [*wrap(model).state_dict()]
    assert {id(p) for p in snn.parameters()} == {id(p) for p in model.parameters()}
    buffer = io.BytesIO()
    pickle.dump(snn, buffer)
    for other in (copy.deepcopy(snn), pickle.loads(buffer.getvalue())):
        assert torch.equal(trace(other, x), expected)
        assert not {id(m) for m in copy_of(other, x).model.modules()} & {id(m) for m in copy_of(snn, x).model.modules()}
        other.load_state_dict(wrap(jelly(5)).state_dict())
        assert torch.equal(trace(other, x), trace(wrap(jelly(5)), x))
    assert torch.equal(trace(snn, x), expected)


def test_settings_of_the_adapter_are_kept():
    adapter = partial(SpikingJellyAdapter, step_mode="m")
    snn = wrap(jelly(3, step_mode="m"), fold=True, adapter=adapter)
    twin = copy_of(snn, frames()).inner
    assert isinstance(twin, SpikingJellyAdapter)
    assert twin._given_mode == "m"


# -- arguments and reports ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong", [{"fold": 1}, {"channels_last": "yes"}, {"autocast": torch.float32}, {"autocast": True}]
)
def test_wrong_options_are_refused(wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        wrap(jelly(), **wrong)


def test_options_are_not_offered_where_nothing_is_stepped_by_modules():
    with pytest.raises(InputError, match="full_run"):
        wrap(jelly(), fold=True, full_run=True)

    class Other(Adapter):
        name = "other"
        claims = begin = advance = keep = place = lambda *_: None  # pyright: ignore

    with pytest.raises(AdapterError, match="not offered by the adapter 'other'"):
        wrap(jelly(), fold=True, adapter=Other)


def test_explain_says_what_was_done_and_how_it_agrees():
    model, x = jelly(3), frames()
    snn = wrap(model, policy="confidence", **OPTIONS["all"])
    fact = snn.explain(x).facts["options"]
    assert fact.startswith("fold (3 pairs), channels-last, autocast bfloat16; on the first batch 6 of 6 rows give the")
    assert "6 the same exit" in fact
    assert "6 the same logits" in fact
    assert "not compared" in wrap(model, fold=True, check=False).explain(x).facts["options"]
    assert "1 pairs, 1 left" in wrap(_with_two_norms(), fold=True).explain(x).facts["options"]
    assert "options" not in wrap(model).explain(x).facts
    assert snn.explain(x[:0]).refused is None


def _with_two_norms() -> nn.Module:
    return on_grid(
        nn.Sequential(nn.BatchNorm2d(2), jelly(3)[0].conv1, nn.BatchNorm2d(4), neuron.IFNode(), nn.Flatten()), 3
    )


def test_policies_without_an_answer_yet_can_be_traced():
    snn = wrap(jelly(3), policy=RLPolicy(), fold=True)
    assert torch.equal(trace(snn, frames()), trace(wrap(jelly(3)), frames()))
    assert "same exit" not in snn.explain(frames()).facts["options"]


def test_poor_agreement_warns_once():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), neuron.IFNode(v_threshold=0.1), nn.Linear(8, 50)).eval()
    model[2].weight.data = 1 + 1e-3 * torch.randn(50, 8)  # all of them are 1 in bfloat16
    x = torch.randn(64, 8)
    snn = wrap(model, readout="mean", autocast=torch.bfloat16)
    with pytest.warns(RuntimeWarning, match=r"with autocast bfloat16, \d+ of the first 64 rows give another class"):
        snn.infer(x)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        snn.infer(x)
    found = copy_of(snn, x).agreement
    assert found is not None
    assert found.same_class < 61
    assert found.same_class >= found.same_trace
