"""What must be refused, with the reason; and near misses that must not be, and whose answers must be right.

The failure that matters most is a wrong answer that looks right: every answer is compared with the framework's own
run of every row alone.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable
from typing import Any

import pytest
import snntorch
import torch
from spikingjelly.activation_based import base, functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import InputError, ModelRefused, SeennError
from seenn_plugin.inputs import InputBatch

from .test_bad_input import StopAt, assert_refuses, assert_unchanged, own_outputs, snapshot

FEATURES, CLASSES, T = 6, 4, 8
EXITS = (1, 8, 3, 5, 2)


def rows(n: int = len(EXITS)) -> Tensor:
    return torch.rand(n, FEATURES)


def lively(model: nn.Module) -> nn.Module:
    """Weights large enough for spikes in every layer, ready to answer."""
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear):
                module.weight.uniform_(-0.5, 1.5)
                if module.bias is not None:
                    module.bias.uniform_(0.1, 0.6)
    return model.eval()


def around(*inner: nn.Module, head: bool = True) -> nn.Module:
    """A snnTorch network with the modules under test in the middle."""
    tail = [nn.Linear(8, CLASSES), leaky()] if head else []
    return lively(nn.Sequential(nn.Linear(FEATURES, 8), leaky(), *inner, *tail))


def around_sj(*inner: nn.Module, mode: str = "m", spikes: bool = True) -> nn.Module:
    """The same of SpikingJelly, in one step mode; it answers with spikes or with currents."""
    net = nn.Sequential(layer.Linear(FEATURES, 8), neuron.LIFNode(1.5), layer.Linear(8, 8), *inner)
    net.append(layer.Linear(8, CLASSES))
    if spikes:
        net.append(neuron.LIFNode(1.5))
    functional.set_step_mode(net, mode)
    return lively(net)


def leaky(beta: float = 0.8) -> nn.Module:
    return snntorch.Leaky(beta=beta, init_hidden=True)


def assert_right(model: nn.Module, x: Tensor | None = None, sequence: bool = False, **options: Any) -> EarlyExitWrapper:
    """That rows that leave at different times get their own answers, and that the model stays as it was."""
    x = rows() if x is None else x
    n, timesteps = (x.shape[1], x.shape[0]) if sequence else (x.shape[0], T)
    with torch.no_grad():
        own = own_outputs(model, x, timesteps, sequence).cumsum(0)
    exits = (EXITS * n)[:n]
    before = snapshot(model)
    snn = EarlyExitWrapper(
        model,
        StopAt(*exits),
        timesteps=timesteps,
        readout="sum",
        input="sequence" if sequence else "static",
        **options,
    )
    with torch.no_grad():
        result, trace = snn.infer(x), snn.trace(x)
    assert own[-1].sum() != 0, "a silent network shows nothing"
    torch.testing.assert_close(trace, own)
    assert result.timesteps.tolist() == list(exits)
    torch.testing.assert_close(result.logits, own[torch.tensor(exits) - 1, torch.arange(n)])
    assert_unchanged(model, before)
    return snn


def assert_refused(model: nn.Module, *said: str, x: Tensor | None = None, **options: Any) -> None:
    """That the first use is refused for the reason given, and that the model stays as it was."""
    x = rows() if x is None else x
    snn = EarlyExitWrapper(model, StopAt(*EXITS), **{"timesteps": T, "readout": "sum", **options})
    assert_refuses(model, lambda: snn.infer(x), ModelRefused, *said)
    assert_refuses(model, lambda: snn.trace(x), ModelRefused, *said)
    assert all(text in (snn.explain(x).refused or "") for text in said)


def rows_see_each_other(model: nn.Module, x: Tensor) -> bool:
    """Whether a row's answers in this batch are not those that it gets alone."""
    together = copy.deepcopy(model)
    with torch.no_grad():
        batch = torch.stack([together(x).clone() for _ in range(T)])
        return not torch.equal(batch, own_outputs(model, x, T))


def refused_or_right(model: nn.Module, *said: str, **options: Any) -> None:
    """For what the library may either answer or refuse: it must not answer wrongly."""
    try:
        assert_right(model, **options)
    except SeennError as error:
        if not isinstance(error, ModelRefused | InputError) or not all(text in str(error) for text in said):
            raise


# -- neurons and layers that look at all timesteps at once -------------------------------------------------------------


def test_parallel_spiking_neurons_are_refused():
    assert_refuses_on_first_use(around_sj(neuron.PSN(T=T)), "one timestep", "cannot be stepped")


def test_temporal_attention_is_refused():
    class ImageNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = layer.Conv2d(2, 4, 3, padding=1, step_mode="m")
            self.attention = layer.TemporalWiseAttention(T=T, reduction=2, dimension=4)
            self.neuron = neuron.LIFNode(1.5, step_mode="m")

        def forward(self, x: Tensor) -> Tensor:
            return self.neuron(self.attention(self.conv(x))).flatten(2)

    assert_refuses_on_first_use(ImageNet().eval(), x=torch.rand(3, 2, 4, 4))


def assert_refuses_on_first_use(model: nn.Module, *said: str, x: Tensor | None = None) -> None:
    """Refused by the model itself when it is asked for one timestep, or by a check."""
    x = rows() if x is None else x
    snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T, readout="sum")
    before = snapshot(model)
    with pytest.raises((InputError, ModelRefused)) as caught:
        snn.infer(x)
    assert all(text in str(caught.value) for text in said)
    assert_unchanged(model, before)


@pytest.mark.parametrize("chunk", [1, 2, 3, T])
@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("kind", ["MaskedPSN", "SlidingPSN"])
def test_masked_and_sliding_parallel_neurons_are_refused_where_chunks_would_be_wrong(kind, mode, chunk):
    if kind == "SlidingPSN":
        inner = neuron.SlidingPSN(k=2, step_mode=mode)
    else:
        inner = neuron.MaskedPSN(k=2, T=T, lambda_init=1.0, step_mode=mode)
    refused_or_right(around_sj(inner, mode=mode), chunk=chunk)


class AverageOverTime(nn.Module):
    """Sees all timesteps of a multi-step run: centres them on their mean over time."""

    def forward(self, x: Tensor) -> Tensor:
        return x - 0.5 * x.mean(0, keepdim=True) if x.ndim == 3 else x


def test_normalisation_over_time_is_refused():
    assert_refused(
        around_sj(AverageOverTime(), neuron.LIFNode(1.5), spikes=False), "whole", "later timesteps", x=rows()
    )


class Previous(nn.Module):
    """Adds the frame before, inside one multi-step run only: it starts anew at every chunk."""

    def forward(self, x: Tensor) -> Tensor:
        return x + torch.cat([torch.zeros_like(x[:1]), x[:-1]])


@pytest.mark.parametrize("chunk", [1, 2, 3])
def test_a_layer_that_looks_back_without_carrying_state_is_refused(chunk):
    assert_refused(around_sj(Previous(), neuron.LIFNode(1.5), spikes=False), "whole", chunk=chunk)


@pytest.mark.parametrize("name", ["LeakyParallel", "StateLeaky", "LinearLeaky", "AssociativeLeaky", "DeltaLeaky"])
def test_time_parallel_snntorch_neurons_are_refused_or_right(name):
    """Some take a time axis, some have other arguments: none of them may be answered wrongly."""
    neurons = {
        "LeakyParallel": lambda: snntorch.LeakyParallel(8, 8),
        "StateLeaky": lambda: snntorch.StateLeaky(beta=0.8, channels=8),
        "LinearLeaky": lambda: snntorch.LinearLeaky(beta=0.8, in_features=8, out_features=8),
        "AssociativeLeaky": lambda: snntorch.AssociativeLeaky(8, 4, 2, 8),
        "DeltaLeaky": lambda: snntorch.DeltaLeaky(beta=0.8, init_hidden=True),
    }
    try:
        model = around(First(neurons[name]()))
    except (TypeError, ValueError) as error:
        pytest.skip(f"this neuron has other arguments here: {error}")
    try:
        own_outputs(model, rows(), T)
    except Exception:
        snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T)
        assert_refuses(model, lambda: snn.infer(rows()), SeennError, "Sequential")
    else:
        refused_or_right(model)


class First(nn.Module):
    """The first of several outputs."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x: Tensor) -> Tensor:
        out = self.module(x)
        return out[0] if isinstance(out, tuple) else out


# -- rows that see each other ------------------------------------------------------------------------------------------


class MinusBatchMean(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0, keepdim=True)


class SoftmaxOverBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return 6 * x.softmax(0)


class AttentionOverBatch(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * ((x @ x.T).softmax(1) @ x)


class Shift(nn.Module):
    """Every row sees its neighbour."""

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.5 * x.roll(1, 0)


def mixing(mixer: nn.Module) -> nn.Module:
    return lively(nn.Sequential(nn.Linear(FEATURES, 8), mixer, nn.Linear(8, CLASSES), leaky()))


MIXERS = [MinusBatchMean, SoftmaxOverBatch, AttentionOverBatch, Shift]


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("n", [1, 2, 5])
def test_a_layer_that_mixes_rows_is_refused(mixer, n):
    model = mixing(mixer())
    assert rows_see_each_other(model, rows())
    assert_refused(model, "alone", "other rows", "dimension 0", x=rows(n))


@pytest.mark.parametrize("n", [1, 2, 5])
def test_batch_statistics_in_evaluation_mode_are_refused(n):
    model = lively(
        nn.Sequential(
            nn.Linear(FEATURES, 8), nn.BatchNorm1d(8, track_running_stats=False), nn.Linear(8, CLASSES), leaky()
        )
    )
    assert_refused(model, "alone", "batch statistics", x=rows(n))


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize(
    "warm_up", [torch.zeros(1, FEATURES), torch.ones(1, FEATURES), torch.zeros(4, FEATURES), torch.full((2, 6), 0.3)]
)
def test_a_warm_up_with_equal_rows_does_not_let_a_row_mixing_model_through(mixer, warm_up):
    """Rows that are all alike show nothing: what is settled on them must not be trusted for others."""
    assert_refused_after(warm_up, mixing(mixer()), "other rows")


def assert_refused_after(warm_up: Tensor, model: nn.Module, said: str) -> None:
    snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T, readout="sum")
    try:
        snn.infer(warm_up)
    except ModelRefused as error:
        assert said in str(error)  # noqa: PT017
        return
    with pytest.raises(ModelRefused, match=said):
        snn.infer(rows())


def test_an_empty_batch_does_not_let_a_row_mixing_model_through():
    assert_refused_after(rows(0), mixing(MinusBatchMean()), "other rows")


# -- chance ------------------------------------------------------------------------------------------------------------


class PoissonEncoder(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.bernoulli(x.clamp(0, 1))


def test_random_encoding_in_evaluation_mode_is_refused():
    model = lively(nn.Sequential(PoissonEncoder(), nn.Linear(FEATURES, CLASSES), leaky()))
    assert_refused(model, "repeatable", "input='sequence'")


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_warm_up_that_leaves_nothing_to_chance_does_not_let_a_random_model_through(value):
    model = lively(nn.Sequential(PoissonEncoder(), nn.Linear(FEATURES, CLASSES), leaky()))
    assert_refused_after(torch.full((1, FEATURES), value), model, "repeatable")


@pytest.mark.parametrize("warm_up", [torch.zeros(1, FEATURES), torch.zeros(5, FEATURES)])
@pytest.mark.parametrize("outputs", ["spikes and membrane", "currents"])
def test_a_warm_up_with_zeros_does_not_decide_how_later_outputs_are_read(outputs, warm_up):
    """Silent outputs look like spikes, and like currents: they say nothing about what the network answers with."""
    tail = [snntorch.Leaky(beta=0.8, init_hidden=True, output=True)] if outputs == "spikes and membrane" else []
    net = nn.Sequential(nn.Linear(FEATURES, 8, bias=False), leaky(), nn.Linear(8, CLASSES, bias=False), *tail)
    model = lively(net)
    fresh, warm = (EarlyExitWrapper(model, "confidence", timesteps=T) for _ in range(2))
    x = rows(5) * 3
    warm.infer(warm_up)
    torch.testing.assert_close(warm.trace(x), fresh.trace(x))
    assert warm.infer(x).timesteps.tolist() == fresh.infer(x).timesteps.tolist()


def test_a_short_first_sequence_does_not_settle_how_sure_later_ones_must_be():
    """The temperature that makes spike counts reach the threshold depends on the number of timesteps."""
    model, frames = around(), torch.rand(T, 5, FEATURES)
    fresh, used = (EarlyExitWrapper(model, "confidence", input="sequence") for _ in range(2))
    used.infer(frames[:2])
    assert used.infer(frames).timesteps.tolist() == fresh.infer(frames).timesteps.tolist()


# -- state that cannot be followed -------------------------------------------------------------------------------------


class Holder:
    """Somebody's own class for state, with no registered way to look inside."""

    def __init__(self) -> None:
        self.v: Any = None


class ObjectState(nn.Module):
    """Integrates, with its potential in an object: replaced at every step, or changed."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.held: Any = types.SimpleNamespace(v=None) if kind == "namespace" else Holder()

    def forward(self, x: Tensor) -> Tensor:
        v = self.held.v
        v = x if v is None or v.shape != x.shape else 0.7 * v + x
        if self.kind == "replaced":
            self.held = Holder()
        self.held.v = v
        return (v > 1).to(x)


class DictSubclass(nn.Module):
    """Integrates, with its potential in a class of its own that is a dictionary."""

    class Store(dict):
        pass

    def __init__(self, replaced: bool) -> None:
        super().__init__()
        self.replaced = replaced
        self.held = self.Store()

    def forward(self, x: Tensor) -> Tensor:
        v = self.held.get("v")
        v = x if v is None or v.shape != x.shape else 0.7 * v + x
        if self.replaced:
            self.held = self.Store()
        self.held["v"] = v
        return (v > 1).to(x)


class NumpyState(nn.Module):
    def __init__(self, in_place: bool) -> None:
        super().__init__()
        self.in_place = in_place
        self.v: Any = None

    def forward(self, x: Tensor) -> Tensor:
        now = x.detach().numpy()
        if self.v is None or self.v.shape != now.shape:
            self.v = now.copy()
        elif self.in_place:
            self.v *= 0.7
            self.v += now
        else:
            self.v = 0.7 * self.v + now
        return (torch.from_numpy(self.v) > 1).to(x)


class ListedNeurons(nn.Module):
    """Its neurons lie in a plain list, where nobody finds them."""

    def __init__(self) -> None:
        super().__init__()
        self.neurons = [neuron.IFNode(v_threshold=2.5)]

    def forward(self, x: Tensor) -> Tensor:
        return self.neurons[0](x)


class ClosureState(nn.Module):
    """Integrates in a variable of a function."""

    def __init__(self) -> None:
        super().__init__()
        potential: list[Tensor] = []

        def integrate(x: Tensor) -> Tensor:
            if not potential or potential[0].shape != x.shape:
                potential[:] = [x]
            else:
                potential[0] = 0.7 * potential[0] + x
            return (potential[0] > 1).to(x)

        self.integrate = integrate

    def forward(self, x: Tensor) -> Tensor:
        return self.integrate(x)


class ParameterState(nn.Module):
    """Integrates in the data of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.v = nn.Parameter(torch.zeros(0), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        self.v.data = 0.7 * self.v.data + x.detach() if self.v.shape == x.shape else x.detach()
        return (self.v > 1).to(x)


OPAQUE: dict[str, Callable[[], nn.Module]] = {
    "object, replaced": lambda: ObjectState("replaced"),
    "object, changed": lambda: ObjectState("changed"),
    "namespace, changed": lambda: ObjectState("namespace"),
    "dictionary class, replaced": lambda: DictSubclass(True),
    "dictionary class, changed": lambda: DictSubclass(False),
    "numpy, replaced": lambda: NumpyState(False),
    "numpy, in place": lambda: NumpyState(True),
    "neurons in a list": ListedNeurons,
    "a closure": ClosureState,
    "a parameter": ParameterState,
}


@pytest.mark.parametrize("kind", OPAQUE)
def test_state_where_nobody_can_follow_it_is_refused(kind):
    model = around(OPAQUE[kind]())
    own = own_outputs(model, rows(), T)
    assert own.any()
    with pytest.raises(ModelRefused):
        assert_right(model)


@pytest.mark.parametrize("kind", ["object, replaced", "object, changed", "namespace, changed"])
def test_a_refused_model_keeps_the_state_it_had_in_an_object(kind):
    model = around(OPAQUE[kind]())
    held = model[2].held
    with pytest.raises(ModelRefused):
        EarlyExitWrapper(model, timesteps=T).infer(rows())
    assert model[2].held is held
    assert held.v is None


class Homeostasis(nn.Module):
    """A running mean over the batch, read at the next timestep: as a tensor, a buffer or a number."""

    def __init__(self, kind: str, strength: float = 1.0, warm_up: int = 0) -> None:
        super().__init__()
        self.kind, self.strength, self.warm_up = kind, strength, warm_up
        self.t = 0
        if kind == "buffer":
            self.register_buffer("rate", torch.zeros(()), persistent=False)
        else:
            self.rate = torch.zeros(()) if kind == "tensor" else 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.t += 1
        out = x - self.strength * self.rate if self.t > self.warm_up else x
        now = x.detach().mean()
        self.rate = 0.5 * self.rate + (now.item() if self.kind == "number" else now)
        return out


@pytest.mark.parametrize("kind", ["tensor", "buffer", "number"])
def test_a_running_mean_over_the_batch_that_is_read_is_refused_by_name(kind):
    assert_refused(around(Homeostasis(kind)), "rate", "row")


@pytest.mark.parametrize("kind", ["tensor", "buffer", "number"])
@pytest.mark.parametrize("warm_up", [2, 3, 5])
def test_a_running_mean_over_the_batch_that_is_read_later_is_refused(kind, warm_up):
    """Nothing of it shows in the first timesteps."""
    centred = Homeostasis(kind, strength=0.7, warm_up=warm_up)
    model = lively(nn.Sequential(nn.Linear(FEATURES, 8), centred, leaky(), nn.Linear(8, CLASSES)))
    x = rows(40)
    assert rows_see_each_other(model, x)
    assert_refused(model, "row", x=x)


class Weak(Homeostasis):
    """The running mean moves a threshold: mostly nothing changes."""

    def forward(self, x: Tensor) -> Tensor:
        out = (x > 1 + self.strength * self.rate).to(x)
        now = x.detach().mean()
        self.rate = 0.5 * self.rate + (now.item() if self.kind == "number" else now)
        return out


@pytest.mark.parametrize("kind", ["tensor", "buffer", "number"])
@pytest.mark.parametrize("strength", [0.01, 0.03, 0.1])
def test_a_weak_influence_of_the_batch_is_refused(kind, strength):
    """Too weak to flip a spike of the first rows in their first timesteps, strong enough to flip one of 200."""
    model = lively(nn.Sequential(nn.Linear(FEATURES, CLASSES), Weak(kind, strength), leaky()))
    x = rows(200)
    assert rows_see_each_other(model, x)
    refused_or_right(model, "row", x=x)


@pytest.mark.parametrize("write", ["attribute", "buffer", "list"])
def test_state_that_is_first_written_when_the_first_spike_arrives_is_refused_or_right(write):
    """A deep layer is silent in the first timesteps: what it writes later must not leak into the caller's model."""

    class OnSpikes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            if write == "buffer":
                self.register_buffer("last", None, persistent=False)
            elif write == "list":
                self.last: Any = []
            else:
                self.last = None

        def forward(self, x: Tensor) -> Tensor:
            if x.any():
                last = (self.last[-1] if self.last else None) if write == "list" else self.last
                out = x if last is None or last.shape != x.shape else x + 0.5 * last
                if write == "list":
                    self.last.append(out)
                else:
                    self.last = out
                return out
            return x

    slow = snntorch.Leaky(beta=0.99, init_hidden=True)
    model = nn.Sequential(nn.Linear(FEATURES, 8), slow, OnSpikes(), nn.Linear(8, CLASSES), leaky()).eval()
    with torch.no_grad():
        model[0].weight.fill_(0.03)
        model[0].bias.fill_(0.14)
        model[3].weight.uniform_(0.2, 1.2)
    x = rows()
    assert not own_outputs(model[:2], x, 3).any()
    assert own_outputs(model[:2], x, T).any()
    before = snapshot(model)
    refused_or_right(model, x=x)
    assert_unchanged(model, before)


def test_a_shared_counter_of_spikes_that_is_silent_at_first_is_refused_or_right():
    """The number of spikes in the batch is 0 for two rows and for three as long as all are silent."""

    class Budget(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used = 0.0

        def forward(self, x: Tensor) -> Tensor:
            out = x * (self.used < 12)
            self.used += float(x.sum())
            return out

    slow = snntorch.Leaky(beta=0.99, init_hidden=True)
    model = nn.Sequential(nn.Linear(FEATURES, 8), slow, Budget(), nn.Linear(8, CLASSES), leaky()).eval()
    with torch.no_grad():
        model[0].weight.fill_(0.03)
        model[0].bias.fill_(0.14)
        model[3].weight.uniform_(0.2, 1.2)
    refused_or_right(model, x=rows())


def test_state_left_over_from_an_earlier_run_in_a_plain_attribute_is_refused():
    class Trace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trace: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.trace = x if self.trace is None else 0.5 * self.trace + x
            return self.trace

    model = around(Trace())
    x = rows()
    assert_right(copy.deepcopy(model), x)
    with torch.no_grad():
        model(x)
    assert_refused(model, "trace", "(5, 8)", "earlier run", x=x)


def test_state_left_over_from_an_earlier_run_of_one_row_is_refused():
    """One row fits every batch by broadcasting."""

    class Trace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.trace = torch.ones(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.trace = 0.5 * self.trace + x
            return self.trace

    assert_refused(around(Trace()), "trace", "(1, 8)", "earlier run")


def test_mixed_step_modes_are_refused_with_the_call_that_repairs_them():
    model = around_sj()
    model[1].step_mode = "s"
    assert_refused(model, "different step modes", "set_step_mode")


def test_a_model_that_drops_its_batch_dimension_for_one_row_is_refused_or_right():
    class Squeeze(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.unsqueeze(-1).squeeze()

    refused_or_right(around(Squeeze()))
    refused_or_right(around(Squeeze()), x=rows(1))


def test_a_model_with_its_batch_size_written_down_is_never_wrong():
    """``view(batch_size, -1)``: it cannot run fewer rows, and must not run them mixed up."""

    class View(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.reshape(4, -1)

    model = around(View())
    snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T)
    assert_refuses(model, lambda: snn.infer(rows(4)), SeennError, "Sequential")


def test_rows_folded_into_a_state_of_another_shape_are_refused():
    class Folded(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.v = x.flatten() if self.v is None else 0.5 * self.v + x.flatten()
            return self.v.view_as(x)

    assert_refused(around(Folded()), "v", "rows are mixed into its shape")


# -- near misses: not refused, and right -------------------------------------------------------------------------------


class Attribute(nn.Module):
    """Passes its input on and writes something down, in one way or another."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.seen: Any = None
        self.number = 0

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "features":
            self.seen = x.detach()
        elif self.kind == "features of all timesteps":
            self.seen = [*(self.seen or []), x.detach()]
        elif self.kind == "batch size":
            self.seen = len(x)
            return x.reshape(self.seen, -1)
        elif self.kind == "shape":
            self.seen = tuple(x.shape)
        elif self.kind == "mean rate":
            self.seen = x.mean().item()
        elif self.kind == "mean rate, tensor":
            self.seen = x.detach().mean()
        elif self.kind == "running mean rate":
            self.seen = x.detach().mean() + 0.9 * (0 if self.seen is None else self.seen)
        elif self.kind == "dictionary of monitors":
            self.seen = {"rate": x.detach().mean(), "rows": len(x), "features": x.detach()}
        elif self.kind == "calls":
            self.number += 1
        elif self.kind == "spikes":
            self.number += int(x.sum())
        return x


MONITORS = [
    "features",
    "features of all timesteps",
    "batch size",
    "shape",
    "mean rate",
    "mean rate, tensor",
    "running mean rate",
    "dictionary of monitors",
    "calls",
    "spikes",
]


@pytest.mark.parametrize("kind", MONITORS)
def test_what_a_model_writes_down_and_never_reads_is_no_reason_to_refuse_it(kind):
    assert_right(around(Attribute(kind)))


@pytest.mark.parametrize("kind", MONITORS)
def test_what_a_model_wrote_down_in_an_earlier_run_is_no_reason_to_refuse_it(kind):
    model = around(Attribute(kind))
    used = copy.deepcopy(model)
    with torch.no_grad():
        used[2](torch.rand(7, 8))
    if kind in ("features", "features of all timesteps", "dictionary of monitors"):
        refused_or_right(used, "seen", "earlier run")
    else:
        assert_right(used)


class Clock(nn.Module):
    """Its gain depends on the timestep, which it counts."""

    def __init__(self, tensor: bool) -> None:
        super().__init__()
        self.t: Any = torch.zeros((), dtype=torch.long) if tensor else 0

    def forward(self, x: Tensor) -> Tensor:
        self.t = self.t + 1
        return x * (1.5 if self.t >= 5 else 0.5 + 0.3 * self.t)


@pytest.mark.parametrize("tensor", [False, True])
def test_a_clock_shared_by_all_rows_is_right_and_fresh_rows_may_not_join(tensor):
    model = around(Clock(tensor))
    snn = assert_right(model)
    adapter, x = snn.adapter, rows()
    active = adapter.begin(InputBatch(x))
    adapter.advance(active)
    assert_refuses(
        model,
        lambda: adapter.place(active, torch.tensor([1]), InputBatch(x[:1])),
        ModelRefused,
        "clock",
        "batch of their own",
    )
    assert len(active) == len(x)


def test_state_that_is_made_at_the_first_timestep_is_right():
    class Lazy(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            self.v = 0.6 * self.v + x if hasattr(self, "v") else x
            spikes = (self.v > 1).to(x)
            self.v = self.v - spikes
            return spikes

    model = around(Lazy())
    assert_right(model)
    assert not hasattr(model[2], "v")


@pytest.mark.parametrize("returned", ["potential", "view", "spikes"])
@pytest.mark.parametrize("framework", ["snntorch", "spikingjelly"])
def test_state_that_is_written_in_place_is_right(framework, returned):
    """A network that answers with its very state hands out a tensor that it will write again."""

    class InPlace(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.v: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            if self.v is None:
                self.v = torch.zeros_like(x)
            self.v.mul_(0.7).add_(x)
            if returned == "spikes":
                return (self.v > 1).to(x)
            return self.v if returned == "potential" else self.v[:, :CLASSES]

    first = leaky() if framework == "snntorch" else neuron.IFNode()
    model = lively(nn.Sequential(nn.Linear(FEATURES, 8), first, nn.Linear(8, CLASSES), InPlace()))
    assert_right(model)


def test_a_model_that_answers_with_its_memory_written_in_place_is_right_in_every_readout():
    class Integrator(base.MemoryModule):
        def __init__(self) -> None:
            super().__init__()
            self.register_memory("v", 0.0)

        def single_step_forward(self, x: Tensor) -> Tensor:
            if isinstance(self.v, float):
                self.v = torch.zeros_like(x)
            self.v.add_(x)
            return self.v

    model = lively(nn.Sequential(layer.Linear(FEATURES, 8), neuron.IFNode(), layer.Linear(8, CLASSES), Integrator()))
    x = rows()
    own = own_outputs(model, x, T)
    for readout, expected in (("last", own), ("sum", own.cumsum(0)), ("max", own.cummax(0).values)):
        snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T, readout=readout)
        torch.testing.assert_close(snn.trace(x), expected)
        wanted = expected[torch.tensor(EXITS) - 1, torch.arange(5)]
        torch.testing.assert_close(snn.infer(x).logits, wanted)


@pytest.mark.parametrize("mode", ["s", "m"])
@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize(
    "build",
    [
        lambda mode: layer.Delay(delay_steps=2, step_mode=mode),
        lambda mode: layer.SynapseFilter(tau=2.0, step_mode=mode),
        lambda mode: layer.SynapseFilter(tau=2.0, learnable=True, step_mode=mode),
        lambda mode: neuron.LIFNode(1.5, store_v_seq=True, step_mode=mode),
        lambda mode: layer.LinearRecurrentContainer(neuron.LIFNode(1.5), 8, 8, step_mode=mode),
        lambda mode: layer.ElementWiseRecurrentContainer(
            neuron.LIFNode(1.5), element_wise_function=torch.add, step_mode=mode
        ),
        lambda mode: neuron.SlidingPSN(k=1, step_mode=mode),
        lambda mode: layer.TemporalEffectiveBatchNorm1d(T, 8),
        lambda mode: neuron.LIAFNode(torch.relu, False, tau=1.5, step_mode=mode),
        lambda mode: neuron.DSRIFNode(T=T, step_mode=mode),
        lambda mode: neuron.GatedLIFNode(T=T, step_mode=mode),
        lambda mode: neuron.ComplementaryLIFNode(tau=1.5, step_mode=mode),
        lambda mode: layer.DropConnectLinear(8, 8, p=0.5, step_mode=mode),
        lambda mode: layer.BatchNormThroughTime1d(T, 8, step_mode=mode),
    ],
    ids=[
        "Delay",
        "SynapseFilter",
        "learnable SynapseFilter",
        "store_v_seq",
        "LinearRecurrentContainer",
        "ElementWiseRecurrentContainer",
        "SlidingPSN k=1",
        "TEBN",
        "LIAFNode",
        "DSRIFNode",
        "GatedLIFNode",
        "ComplementaryLIFNode",
        "DropConnectLinear",
        "BNTT",
    ],
)
def test_layers_of_spikingjelly_with_a_memory_are_right_or_refused(build, mode, chunk, request):
    kind = request.node.callspec.id
    try:
        model = around_sj(build(mode), mode=mode)
    except (TypeError, ValueError, AttributeError, NotImplementedError, AssertionError) as error:
        pytest.skip(f"not in this mode, or not in this version: {error}")
    must_be_right = ("Delay", "SynapseFilter", "store_v_seq", "Recurrent", "ComplementaryLIF")
    if any(name in kind for name in must_be_right):
        assert_right(model, chunk=chunk)
        return
    try:
        own_outputs(model, rows(), T)
    except Exception as error:
        pytest.skip(f"this layer does not run in this mode at all: {error}")
    refused_or_right(model, chunk=chunk)


def test_state_left_over_in_the_framework_is_neither_used_nor_lost():
    for model in (around_sj(mode="s"), around_sj(mode="m"), around()):
        x = rows()
        own = own_outputs(model, x, T).cumsum(0).detach()
        model.requires_grad_(False)(
            torch.stack([rows(3)] * 2) if getattr(model[1], "step_mode", "s") == "m" else rows(3)
        )
        before = snapshot(model)
        snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T, readout="sum")
        torch.testing.assert_close(snn.trace(x), own)
        torch.testing.assert_close(snn.infer(x).logits, own[torch.tensor(EXITS) - 1, torch.arange(5)])
        assert_unchanged(model, before)


def test_slstm_that_forgets_its_state_is_answered_as_it_is_with_a_warning():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.lstm = snntorch.SLSTM(FEATURES, 8, init_hidden=True, threshold=0.05)
            self.head = nn.Linear(8, CLASSES)
            self.out = leaky()

        def forward(self, x: Tensor) -> Tensor:
            return self.out(self.head(self.lstm(x)))

    model = lively(Recurrent())
    with pytest.warns(UserWarning, match=r"SLSTM\(6, 8\) forgets its state.*input_size == hidden_size"):
        assert_right(model)


def test_other_models_in_the_process_are_never_touched():
    other, other_sj = around().requires_grad_(False), around_sj(mode="s").requires_grad_(False)
    other(rows(3))
    other_sj(rows(3))
    before, before_sj = snapshot(other), snapshot(other_sj)
    assert_right(around())
    assert_right(around_sj(mode="s"))
    assert_unchanged(other, before)
    assert_unchanged(other_sj, before_sj)


def test_a_module_that_keeps_its_step_mode_in_a_plain_attribute_is_right():
    """Users' blocks often do: ``functional.set_step_mode`` sets it like any other."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.step_mode = "m"
            self.bias = nn.Linear(1, 8)

        def forward(self, x: Tensor) -> Tensor:
            steps = x if self.step_mode == "m" else x.unsqueeze(0)
            out = torch.stack([step + self.bias.weight[:, 0] for step in steps])
            return out if self.step_mode == "m" else out[0]

    for mode in ("s", "m"):
        for chunk in (1, 3):
            assert_right(around_sj(Block(), mode=mode), chunk=chunk)


class ArgumentsWithNames(nn.Module):
    """A one-step network whose forward has an optional argument that is no state."""

    def __init__(self) -> None:
        super().__init__()
        self.net = around()


def _with_argument(name: str) -> nn.Module:
    scope: dict[str, Any] = {}
    exec(f"def forward(self, x, {name}=None):\n    return self.net(x)", scope)
    return type("OneStep", (ArgumentsWithNames,), {"forward": scope["forward"]})()


@pytest.mark.parametrize("name", ["hook", "mask", "cls", "verbose", "crop", "use", "context", "return_features"])
def test_an_optional_argument_that_is_no_state_is_left_alone(name):
    assert_right(_with_argument(name).eval())


def test_a_network_that_hands_its_hook_through_is_right():
    class Hooked(ArgumentsWithNames):
        def forward(self, x: Tensor, hook: dict[str, Tensor] | None = None) -> tuple[Tensor, Any]:
            return self.net(x), hook

    assert_right(Hooked().eval())


def test_kinds_of_input_do_not_settle_the_step_mode_for_each_other():
    """One kind shows no difference between single and multi-step mode, the other does."""

    class Differs(nn.Module):
        """Like some layers of the frameworks: not the same in single-step and in multi-step mode."""

        def __init__(self) -> None:
            super().__init__()
            self._step_mode = "m"
            self.pool = nn.AdaptiveAvgPool1d(FEATURES)

        @property
        def step_mode(self) -> str:
            return self._step_mode

        @step_mode.setter
        def step_mode(self, value: str) -> None:
            self._step_mode = value

        def forward(self, x: Tensor) -> Tensor:
            wide = x.shape[-1] > FEATURES
            x = self.pool(x.flatten(0, -2).unsqueeze(1)).view(*x.shape[:-1], FEATURES)
            return x * 0.5 if wide and self._step_mode == "s" else x

    model = nn.Sequential(Differs(), layer.Linear(FEATURES, CLASSES), neuron.LIFNode(1.5))
    functional.set_step_mode(model, "m")
    lively(model)
    wide, narrow = torch.rand(5, 2 * FEATURES) + 0.5, rows() + 0.5
    with torch.no_grad():
        own = own_outputs(model, wide, T).cumsum(0)
    snn = EarlyExitWrapper(model, StopAt(*EXITS), timesteps=T, readout="sum")
    torch.testing.assert_close(snn.trace(wide), own)
    snn.trace(narrow)
    torch.testing.assert_close(snn.trace(wide), own)


def test_a_network_that_changes_its_behaviour_late_is_right():
    """Clocks that matter only after the timesteps that the library looks at."""

    class Late(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.t = 0
            self.sum: Tensor | None = None

        def forward(self, x: Tensor) -> Tensor:
            self.t += 1
            self.sum = x if self.sum is None else self.sum + x
            return self.sum if self.t > 5 else x

    assert_right(around(Late()))


def test_sequences_are_right_where_frames_differ():
    frames = torch.rand(T, 5, FEATURES)
    assert_right(around(), frames, sequence=True)
    assert_right(around_sj(mode="s"), frames, sequence=True)
    for chunk in (1, 3):
        assert_right(around_sj(mode="m"), frames, sequence=True, chunk=chunk)
