"""The stem of a network on static input: computed once for each row, and never where that could change an answer."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import layer, neuron
from torch import Tensor, nn
from torch.nn import functional as F

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter import module_adapter
from seenn_plugin.adapter.conformance import ModelRaised, Snapshot, raising
from seenn_plugin.adapter.module_adapter import ModuleAdapter
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import FixedPolicy

from .invariants import Case, check_alone, check_guest, check_prefix, check_saved, check_slots, check_whole, prescribed
from .reference import run_spikingjelly

T, N = 5, 4
IMAGE = (2, 4, 4)


class Net(nn.Module):
    """Layers for one timestep of a small network, on rows of shape :data:`IMAGE`."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        self.relu = nn.ReLU(inplace=True)
        self.pool = nn.AvgPool2d(2)
        self.neuron = neuron.LIFNode(v_threshold=0.3)
        self.flatten = nn.Flatten()
        self.fc = nn.Linear(32, 6)
        self.head = nn.Linear(48, 5)
        self.small_head = nn.Linear(6, 5)


def net(forward: Callable[[Any, Tensor], Tensor], **more: Any) -> Net:
    """A network that makes a timestep by this function, with attributes of its own."""
    torch.manual_seed(3)
    model = type("OneStep", (Net,), {"forward": forward})()
    for name, value in more.items():
        setattr(model, name, value)
    nn.init.uniform_(model.norm.running_mean, -0.2, 0.2)
    nn.init.uniform_(model.norm.running_var, 0.5, 1.5)
    return model.eval()


def images(n: int = N) -> Tensor:
    return torch.rand((n, *IMAGE), generator=torch.Generator().manual_seed(7))


def wrap(model: nn.Module, **options: Any) -> EarlyExitWrapper:
    return EarlyExitWrapper(model, FixedPolicy(1), **{"timesteps": T, "readout": "sum", **options})


def stem_of(snn: EarlyExitWrapper, x: Tensor) -> str:
    """The names of the layers of the stem; empty if there is none."""
    return snn.explain(x).facts.get("stem", "").partition(":")[0]


@contextmanager
def no_stem() -> Iterator[None]:
    """In here no model that is looked at has a stem."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module_adapter, "with_stem", lambda adapter, stepper, few, more: stepper)
        yield


@contextmanager
def counting(weight: Tensor) -> Iterator[list[int]]:
    """The rows of each time that a convolution or a linear map with this weight is computed, hooks or not."""
    rows: list[int] = []
    with pytest.MonkeyPatch.context() as patch:
        for name in ("conv2d", "linear"):
            own = getattr(F, name)

            def counted(x: Tensor, w: Tensor, *arguments: Any, own: Any = own, **named: Any) -> Tensor:
                if w is weight:
                    rows.append(x.shape[0])
                return own(x, w, *arguments, **named)

            patch.setattr(F, name, counted)
        yield rows


def plainly(model: nn.Module, x: Tensor, **options: Any) -> Tensor:
    """The trace of a copy of a model that computes everything at every timestep."""
    snn = wrap(copy.deepcopy(model), **options)
    with no_stem(), torch.no_grad():
        assert stem_of(snn, x) == ""
        return snn.trace(x)


def assert_right(model: nn.Module, stem: str, x: Tensor | None = None, **options: Any) -> EarlyExitWrapper:
    """The model has this stem, and answers as it does without, bit by bit."""
    x = images() if x is None else x
    snn = wrap(model, **options)
    assert stem_of(snn, x) == stem
    given, before = x.clone(), Snapshot(model)
    with torch.no_grad():
        trace = snn.trace(x)
    assert torch.equal(trace, plainly(model, x, **options))
    assert trace.diff(dim=0).abs().amax() > 0
    assert torch.equal(x, given)
    before.assert_unchanged()
    return snn


def names_carried(snn: EarlyExitWrapper) -> set[str]:
    state = snn.explain(images()).facts["state"]
    return {name for name in ("conv", "norm", "relu", "pool", "fc") if f"stem {name} " in state}


# -- what is a stem -------------------------------------------------------------------------------------------------


def usual(self: Any, x: Tensor) -> Tensor:
    return self.head(self.flatten(self.neuron(self.norm(self.conv(x)))))


def test_is_computed_once_for_each_row():
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    assert names_carried(snn) == {"norm"}, "nothing but the norm reads the convolution"
    with counting(model.conv.weight) as stem, counting(model.head.weight) as rest, torch.no_grad():
        snn.infer(images())
    assert stem == [N]
    assert rest == [N]
    snn.policy = prescribed(1, 5, 2, 5).policy()
    with counting(model.conv.weight) as stem, counting(model.head.weight) as rest, torch.no_grad():
        result = snn.infer(images())
    assert result.timesteps.tolist() == [1, 5, 2, 5]
    assert (stem, rest) == ([4], [4, 3, 2, 2, 2])


def test_fresh_rows_bring_their_own():
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    assert isinstance(snn.adapter, ModuleAdapter)
    with counting(model.conv.weight) as stem, torch.no_grad():
        rows = snn.adapter.begin(snn._input_batch(images()))
        snn.adapter.advance(rows)
        snn.adapter.place(rows, torch.tensor([1, 3]), snn._input_batch(images(6)[4:]))
        snn.adapter.advance(rows)
    assert stem == [4, 2]


@pytest.mark.parametrize(
    ("forward", "stem", "carried"),
    [
        pytest.param(
            lambda self, x: self.head((self.neuron(y := self.conv(x)) + y).flatten(1)), "conv", "conv", id="skip"
        ),
        pytest.param(
            lambda self, x: self.head((self.neuron(self.norm(y := self.conv(x))) + y).flatten(1)),
            "conv, norm",
            "conv norm",
            id="skip from the first layer",
        ),
        pytest.param(
            lambda self, x: self.head(self.neuron(self.relu(self.norm(self.conv(x)))).flatten(1)),
            "conv, norm, relu",
            "relu",
            id="ReLU in place",
        ),
        pytest.param(
            lambda self, x: self.head(self.neuron(F.relu(self.conv(x), inplace=True)).flatten(1)),
            "conv",
            "conv",
            id="function in place",
        ),
        pytest.param(
            lambda self, x: self.head((self.neuron(y := self.conv(x)) + y.mul_(2)).flatten(1)),
            "conv",
            "conv",
            id="in place behind the neuron",
        ),
        pytest.param(
            lambda self, x: self.head(self.neuron(self.norm(self.conv(x).relu())).flatten(1)),
            "conv",
            "conv",
            id="function between",
        ),
        pytest.param(
            lambda self, x: self.small_head(self.neuron(self.fc(x.view(len(x), -1)))), "fc", "fc", id="behind a view"
        ),
        pytest.param(
            lambda self, x: self.small_head(self.neuron(self.fc(self.flatten(x)))), "fc", "fc", id="behind Flatten"
        ),
        pytest.param(
            lambda self, x: self.head((self.neuron(self.conv(x)) + self.norm(self.conv.forward(x))).flatten(1)),
            "",
            "",
            id="a layer called twice",
        ),
        pytest.param(
            lambda self, x: self.head(self.neuron(self.conv(2 * x)).flatten(1)), "", "", id="not given the frame itself"
        ),
        pytest.param(
            lambda self, x: self.head(self.neuron(self.conv(x.mul_(1))).flatten(1)), "", "", id="the frame is written"
        ),
        pytest.param(
            lambda self, x: self.head((self.neuron(x[:, :1]) + self.conv(x)).flatten(1)), "", "", id="behind a neuron"
        ),
        pytest.param(
            lambda self, x: self.head((self.neuron(self.conv(x)) + self.pool(x).mean((1, 2, 3), True)).flatten(1)),
            "conv",
            "conv",
            id="before a neuron and behind it",
        ),
        pytest.param(
            lambda self, x: self.head(self.conv(self.neuron(x)).flatten(1)), "", "", id="a neuron comes first"
        ),
    ],
)
def test_what_is_a_stem(forward, stem, carried):
    model = net(forward)
    snn = assert_right(model, stem)
    assert names_carried(snn) == set(carried.split())


class OwnConv(nn.Conv2d):
    """Whose forward may do anything."""


def patched(model: Net) -> None:
    model.conv.forward = lambda x: nn.Conv2d.forward(model.conv, x)  # pyright: ignore[reportAttributeAccessIssue]


def of_own_class(model: Net) -> None:
    model.conv.__class__ = OwnConv


def parametrized(model: Net) -> None:
    nn.utils.parametrizations.weight_norm(model.conv)


def hooked(model: Net) -> None:
    model.conv.register_forward_hook(lambda *_: None)


@pytest.mark.parametrize("change", [patched, of_own_class, parametrized, hooked])
def test_layers_that_the_caller_has_changed_are_left_alone(change):
    model = net(usual)
    change(model)
    snn = wrap(model)
    assert stem_of(snn, images()) == ""
    with torch.no_grad():
        assert torch.equal(snn.trace(images()), plainly(model, images()))


def test_a_sequence_has_none():
    model = net(usual)
    snn = EarlyExitWrapper(model, FixedPolicy(1), input="sequence", readout="sum")
    assert stem_of(snn, torch.stack([images()] * T)) == ""


def test_a_layer_that_draws_is_refused_as_ever():
    model = net(lambda self, x: self.draw_head(self.neuron(self.draw(self.conv(x))).flatten(1)))
    model.draw, model.draw_head = nn.FractionalMaxPool2d(2, output_size=3), nn.Linear(27, 5)
    with pytest.raises(ModelRefused, match="repeatable"):
        wrap(model).infer(images())


def test_what_is_written_before_the_first_neuron_is_written_at_timesteps_only():
    def forward(self: Any, x: Tensor) -> Tensor:
        self.count = self.count + 1
        return self.head(self.flatten(self.neuron(self.conv(x)))) * self.count

    assert_right(net(forward, count=0), "")


def test_state_read_before_the_first_neuron():
    def forward(self: Any, x: Tensor) -> Tensor:
        now = self.neuron.v if isinstance(self.neuron.v, Tensor) else torch.zeros(len(x), 2, 4, 4)
        return self.head(self.conv(self.neuron(x + self.norm2(now))).flatten(1))

    assert_right(net(forward, norm2=nn.BatchNorm2d(2)), "")


def test_another_input_at_a_later_timestep_is_computed():
    """Nothing is taken for granted of timesteps that were not looked at."""

    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x if self.count < 6 else -x))
        spikes = self.neuron(y)
        self.count = self.count + 1
        return self.head(self.flatten(spikes))

    model = net(forward, count=0)
    assert_right(model, "conv, norm", timesteps=9)


def test_a_recurrent_layer_is_not_static():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(32, 6), layer.LinearRecurrentContainer(neuron.LIFNode(v_threshold=0.3), 6, 6)]
    model = nn.Sequential(*layers, nn.Linear(6, 5)).eval()
    assert_right(model, "1")


# -- the caller's model ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["", "conv", "norm"])
def test_the_callers_hooks_see_every_call(path):
    """On a layer, or on what holds it: what they see is what they see without a stem."""
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    wanted = plainly(model, images())
    seen: list[tuple[int, bool]] = []

    def note(module: nn.Module, inputs: Any, output: Tensor) -> None:
        seen.append((len(output), bool(inputs[0].isfinite().all() and output.isfinite().all())))

    handle = model.get_submodule(path).register_forward_hook(note)
    with torch.no_grad():
        assert torch.equal(snn.trace(images()), wanted)
    assert seen == [(N, True)] * T
    handle.remove()
    with counting(model.conv.weight) as rows, torch.no_grad():
        assert torch.equal(snn.trace(images()), wanted)
    assert rows == [N]


@pytest.mark.parametrize("at", ["the start", "a timestep", "a refill"])
def test_a_hook_may_come_and_go_while_rows_are_in_flight(at):
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    calls: list[int] = []

    def hook(*_: Any) -> None:
        calls.append(1)

    def hooked_during(moment: str, action: Callable[[], Any]) -> Any:
        handle = model.conv.register_forward_hook(hook) if moment == at else None
        result = action()
        if handle is not None:
            handle.remove()
        return result

    adapter = snn.adapter
    with torch.no_grad():
        rows = hooked_during("the start", lambda: adapter.begin(snn._input_batch(images())))
        hooked_during("a timestep", lambda: adapter.advance(rows))
        hooked_during("a refill", lambda: adapter.place(rows, torch.tensor([2]), snn._input_batch(images(N + 1)[N:])))
        found = torch.stack([adapter.advance(rows)[0][0] for _ in range(3)])
        alone = adapter.begin(snn._input_batch(images(N + 1)[N:]))
        fresh = torch.stack([adapter.advance(alone)[0][0] for _ in range(3)])
        others = adapter.begin(snn._input_batch(images()))
        old = torch.stack([adapter.advance(others)[0][0] for _ in range(4)])[1:]
    assert len(calls) == (at == "a timestep")
    torch.testing.assert_close(found[:, 2:3], fresh)
    torch.testing.assert_close(found[:, [0, 1, 3]], old[:, [0, 1, 3]])


def test_an_error_in_the_model_leaves_nothing_behind():
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    before = Snapshot(model)
    for failing in (model.head, model.neuron):
        with raising(failing, 2), pytest.raises(ModelRaised), torch.no_grad():
            snn.trace(images())
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setattr(F, "batch_norm", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            snn.trace(images())
    before.assert_unchanged("errors")
    assert not any("forward" in vars(module) for module in model.modules())
    with torch.no_grad():
        assert torch.equal(snn.trace(images()), plainly(model, images()))


def test_a_model_that_catches_everything_is_right_too():
    def forward(self: Any, x: Tensor) -> Tensor:
        try:
            y = self.conv(x)
        except BaseException:
            y = self.norm.weight.new_zeros(len(x), 3, 4, 4)
        return self.head(self.flatten(self.neuron(y)))

    assert_right(net(forward), "")


def test_gradients_are_those_of_the_plain_run():
    model = net(usual)
    grads = []
    for context in (torch.enable_grad, no_stem):
        snn, x = wrap(copy.deepcopy(model)), images().requires_grad_()
        with context():
            assert bool(stem_of(snn, images())) == (context is torch.enable_grad)
            snn.trace(x).pow(2).sum().backward()
        grads.append([x.grad, *(parameter.grad for parameter in snn.model.parameters() if parameter.grad is not None)])
    assert len(grads[0]) == 1 + 6
    for found, wanted in zip(*grads, strict=True):
        assert found.abs().amax() > 0
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_in_inference_mode():
    model = net(lambda self, x: self.head(self.neuron(F.relu(self.conv(x), inplace=True)).flatten(1)))
    snn = wrap(model)
    with torch.inference_mode():
        assert stem_of(snn, images()) == "conv"
        found = snn.trace(images())
    assert torch.equal(found, plainly(model, images()))


def test_integers_as_input():
    torch.manual_seed(0)
    words = nn.Sequential(nn.Embedding(9, 8), nn.Flatten(), nn.Linear(32, 6), neuron.LIFNode(v_threshold=0.2))
    assert_right(words.eval(), "0, 2", (images()[:, 0, 0] * 9).long())


def test_new_weights_count():
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    with torch.no_grad():
        model.conv.weight.mul_(-1)
        assert torch.equal(snn.trace(images()), plainly(model, images()))


def test_another_mode_is_another_layer():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(32, 6), nn.RReLU(), neuron.LIFNode(v_threshold=0.2), nn.Linear(6, 5)]
    model = nn.Sequential(*layers)  # as it is made: in training mode, in which the third draws
    with pytest.raises(ModelRefused, match="repeatable"):
        wrap(model).infer(images())
    snn = assert_right(model.eval(), "1, 2")
    layers[2].train()
    assert isinstance(snn.adapter, ModuleAdapter)
    with counting(layers[1].weight) as rows, torch.no_grad():
        snn.trace(images())
    assert rows == [N] * T
    del layers[2]
    assert_right(nn.Sequential(*layers).train(), "1")


def test_copies_find_their_own():
    model = net(usual)
    snn = assert_right(model, "conv, norm")
    copies = [copy.deepcopy(snn)]
    sequential = nn.Sequential(nn.Flatten(), nn.Linear(32, 6), neuron.LIFNode(v_threshold=0.3), nn.Linear(6, 5)).eval()
    other = assert_right(sequential, "1")
    copies.append(pickle.loads(pickle.dumps(other)))
    for original, copied in zip((snn, other), copies, strict=True):
        with torch.no_grad():
            for parameter in copied.model.parameters():
                parameter.mul_(1.5)
            assert torch.equal(copied.trace(images()), plainly(copied.model, images()))
            assert torch.equal(original.trace(images()), plainly(original.model, images()))


# -- the invariants -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", [False, True])
def test_invariants(skip):
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.conv(x)
        spikes = self.neuron(self.norm(y))
        return self.head((spikes + y if skip else spikes).flatten(1))

    model = net(forward).double()
    case = Case(model, run_spikingjelly, images().double(), T, [model.conv, model.head])
    rule = prescribed(2, 5, 1, 3)
    assert stem_of(case.wrap(rule), case.inputs) == "conv, norm"
    check_whole(case)
    check_prefix(case, rule)
    check_alone(case, rule, (3, 0, 1, 1))
    check_slots(case, rule, slots=2)
    check_saved(case, rule)
    check_guest(case, rule, failing_call=2)
