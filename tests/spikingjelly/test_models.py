"""SpikingJelly's own networks, unchanged, through every invariant, in both step modes and with chunks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import cache

import pytest
import torch
from spikingjelly.activation_based import functional, layer, neuron
from spikingjelly.activation_based.model import parametric_lif_net, sew_resnet, spiking_resnet, spiking_vgg
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import InputError, ModelRefused

from ..invariants import (
    FIRING,
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_saved,
    check_slots,
    check_whole,
    firing_rate,
    prescribed,
)
from ..reference import run_spikingjelly
from ..spikingjelly_nets import layers_of, make_fire, nodes_of

T, N, CLASSES = 4, 4, 10

NODES: dict[str, Callable[..., nn.Module]] = {
    "IF": neuron.IFNode,
    "LIF": neuron.LIFNode,
    "PLIF": neuron.ParametricLIFNode,
}


def sew_resnet18(node: str, cnf: str) -> nn.Module:
    return sew_resnet.sew_resnet18(pretrained=False, cnf=cnf, spiking_neuron=NODES[node], num_classes=CLASSES)


def spiking_resnet18(node: str) -> nn.Module:
    return spiking_resnet.spiking_resnet18(pretrained=False, spiking_neuron=NODES[node], num_classes=CLASSES)


def spiking_vgg11_bn(node: str) -> nn.Module:
    with torch.device("meta"):  # its classifier has 120 million weights, which nothing here needs
        model = spiking_vgg.spiking_vgg11_bn(pretrained=False, spiking_neuron=NODES[node], num_classes=CLASSES)
        model.avgpool = layer.AdaptiveAvgPool2d((1, 1))
        for position, sizes in ((0, (512, 512)), (3, (512, 512)), (6, (512, CLASSES))):
            model.classifier[position] = layer.Linear(*sizes)
    model.to_empty(device="cpu")
    for module in model.modules():
        if isinstance(module, neuron.ParametricLIFNode):
            nn.init.zeros_(module.w)
        elif hasattr(module, "reset_parameters"):
            module.reset_parameters()
    return model


def dvs_gesture_net(node: str) -> nn.Module:
    model = parametric_lif_net.DVSGestureNet(channels=8, spiking_neuron=NODES[node])
    return _fit_to_half_the_size(model)


def cifar10dvs_net(node: str) -> nn.Module:
    model = parametric_lif_net.CIFAR10DVSNet(channels=8, spiking_neuron=NODES[node])
    return _fit_to_half_the_size(model)


def _fit_to_half_the_size(model: nn.Module) -> nn.Module:
    """Let a network for 128 x 128 events take 64 x 64, by a narrower first linear layer."""
    first = next(i for i, module in enumerate(model.conv_fc) if isinstance(module, nn.Linear))
    old = model.conv_fc[first]
    model.conv_fc[first] = layer.Linear(old.in_features // 4, old.out_features)
    return model


def spikformer(node: str) -> nn.Module:
    module = pytest.importorskip("spikingjelly.activation_based.model.spikformer", reason="not in this version")
    return module.Spikformer(
        T=T,
        img_size_h=32,
        img_size_w=32,
        patch_size=16,
        num_classes=CLASSES,
        embed_dims=16,
        num_heads=2,
        mlp_ratio=2.0,
        depths=2,
        spiking_neuron=NODES[node],
    )


FACTORIES: dict[str, Callable[[], nn.Module]] = {
    **{
        f"sew_resnet18 {cnf} {node}": lambda cnf=cnf, node=node: sew_resnet18(node, cnf)
        for cnf in ("ADD", "AND", "IAND")
        for node in NODES
    },
    "spiking_resnet18 LIF": lambda: spiking_resnet18("LIF"),
    "spiking_resnet18 IF": lambda: spiking_resnet18("IF"),
    "spiking_vgg11_bn LIF": lambda: spiking_vgg11_bn("LIF"),
    "spiking_vgg11_bn PLIF": lambda: spiking_vgg11_bn("PLIF"),
    "DVSGestureNet PLIF": lambda: dvs_gesture_net("PLIF"),
    "CIFAR10DVSNet LIF": lambda: cifar10dvs_net("LIF"),
    "Spikformer LIF": lambda: spikformer("LIF"),
}
EVENTS = {"DVSGestureNet PLIF": 64, "CIFAR10DVSNet LIF": 64}
"""Networks for event frames of 2 channels, and their height and width."""
WIDE = ("sew_resnet18", "spiking_resnet18", "spiking_vgg11_bn")
"""Networks whose factories know one width only."""
CURRENTS = ("sew_resnet18", "spiking_resnet18", "spiking_vgg11_bn", "Spikformer")
"""Networks that end in a linear layer; the others vote with spikes."""


def _thin(model: nn.Module) -> None:
    """Make every layer an eighth as wide, in place: the network's own code is what is tested, not its size."""

    def width(channels: int) -> int:
        return channels // 8 if channels >= 64 else channels

    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Conv2d):
                thin: nn.Module = type(child)(
                    width(child.in_channels),
                    width(child.out_channels),
                    child.kernel_size,
                    child.stride,
                    child.padding,
                    bias=child.bias is not None,
                )
            elif isinstance(child, nn.BatchNorm2d):
                thin = type(child)(width(child.num_features))
            elif isinstance(child, nn.Linear):
                thin = type(child)(width(child.in_features), width(child.out_features))
            else:
                continue
            setattr(parent, name, thin)


@cache
def _prepared(name: str) -> tuple[nn.Module, torch.Tensor]:
    """A network with weights that fire, in float64, and its input."""
    rates: list[float] = []
    for attempt in range(10):
        torch.manual_seed(sum(map(ord, name)) + attempt)
        model = FACTORIES[name]()
        if name.startswith(WIDE):
            _thin(model)
        model.double().eval()
        functional.set_step_mode(model, "m")
        inputs = _inputs(name)
        frames = inputs if name in EVENTS else torch.stack([inputs] * T)
        _settle_batch_norm(model, frames)
        make_fire(model, frames, part=0.3 + 0.05 * attempt)
        rates = firing_rate(model, nodes_of(model), run_spikingjelly, frames)
        # A conjunction of spikes thins them out, and the last stage of a 32 x 32 image is one pixel: no layer is
        # silent, and most fire at the rate that is asked of the small networks.
        if min(rates) > 0.005 and FIRING[0] <= sorted(rates)[len(rates) // 4] and max(rates) <= FIRING[1]:
            return model, inputs
    raise AssertionError(f"{name} does not fire as it should: {[round(rate, 3) for rate in rates]}")


def _inputs(name: str) -> torch.Tensor:
    """Events ``[T, N, 2, size, size]`` or images ``[N, 3, 32, 32]`` of rising contrast."""
    if name in EVENTS:
        size = EVENTS[name]
        return (torch.rand(T, N, 2, size, size, dtype=torch.float64) < 0.2).double()
    return torch.rand(N, 3, 32, 32, dtype=torch.float64) * torch.linspace(0.4, 1.6, N).view(N, 1, 1, 1)


def _settle_batch_norm(model: nn.Module, frames: torch.Tensor) -> None:
    """Running statistics as after training: those of the input."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = 1.0
        norm.train()
    with torch.no_grad():
        run_spikingjelly(model, frames)
    for norm in norms:
        norm.momentum = 0.1
        norm.eval()


def make_case(name: str, step_mode: str, chunk: int) -> Case:
    model, inputs = _prepared(name)
    model = copy.deepcopy(model)
    if step_mode != "m":
        functional.set_step_mode(model, step_mode)
    return Case(
        model=model,
        run=run_spikingjelly,
        inputs=inputs,
        timesteps=T,
        layers=layers_of(model),
        sequence=name in EVENTS,
        chunk=chunk,
        readout="mean" if name.startswith(CURRENTS) else "sum",
    )


SETTINGS = [
    pytest.param(name, step_mode, chunk, id=f"{name} {step_mode} chunk {chunk}")
    for name in FACTORIES
    for step_mode, chunk in (("s", 1), ("m", 1), ("m", 3))
    if not (name.startswith("Spikformer") and step_mode == "s")  # it takes [T, N, C, H, W] alone
    and not (step_mode == "m" and chunk == 1 and "sew" in name and "LIF" not in name.split())  # nodes differ in "s"
]
each_model = pytest.mark.parametrize(("name", "step_mode", "chunk"), SETTINGS)
EXITS = prescribed(2, 4, 1, 2)


@cache
def _case(name: str, step_mode: str, chunk: int) -> Case:
    """A case that has looked at its model already; the looks themselves are tested by check_guest."""
    case = make_case(name, step_mode, chunk)
    if chunk > 1:  # the reference is the network's own multi-step run, whatever the chunk
        case.answers = _case(name, step_mode, 1).answers
    case.wrapper = case.wrap(EXITS)
    return case


@pytest.fixture
def case(name, step_mode, chunk) -> Case:
    return _case(name, step_mode, chunk)


def _confidence_rule(case: Case) -> Rule:
    """A confidence rule under which some rows leave early and some do not, with no score near its threshold."""
    confidence = case.trace.div(0.5).softmax(-1).amax(-1)[:-1].flatten().sort().values
    inner = confidence[confidence.numel() // 4 :]
    gap = int(inner.diff().argmax())
    return Rule("confidence", {"threshold": float(inner[gap : gap + 2].mean()), "temperature": 0.5})


@each_model
def test_whole(case):
    check_whole(case)


@each_model
def test_prefix(case):
    rule = _confidence_rule(case)
    assert min(case.exits(rule)) < T, "no row leaves early"
    check_prefix(case, rule)


@each_model
def test_alone(case):
    check_alone(case, EXITS, [3, 0, 1])


@each_model
def test_alone_in_places_that_others_had(case):
    check_slots(case, EXITS, slots=2)


@pytest.mark.parametrize(  # looking at a deep network again and again takes long: each in one setting
    ("name", "step_mode", "chunk"),
    [(name, *(("s", 1) if i % 2 and "sew" in name else ("m", 3))) for i, name in enumerate(FACTORIES)],
)
def test_guest(case):
    other = make_case("sew_resnet18 ADD LIF", "s", 1).model
    with torch.no_grad():
        other(torch.rand(2, 3, 32, 32, dtype=torch.float64))
    unseen = replace(case, wrapper=None)
    check_guest(unseen, EXITS, failing_call=2, others=[other])


@each_model
def test_saved(case):
    check_saved(case, EXITS)


def test_refuses_a_network_that_resets_itself_and_takes_the_batch_first():
    module = pytest.importorskip("spikingjelly.activation_based.examples.memopt.models", reason="not in this version")
    model = module.CIFAR10DVSVGG()
    _thin(model)
    model.eval()
    frames = torch.rand(T, N, 2, 48, 48)
    before = Snapshot(model)
    for time_dim, given in ((0, frames), (1, frames.transpose(0, 1))):
        snn = EarlyExitWrapper(model, "fixed", input="sequence", time_dim=time_dim, readout="mean")
        with torch.no_grad(), pytest.raises((ModelRefused, InputError), match="CIFAR10DVSVGG"):
            snn.infer(given)
        before.assert_unchanged("a refusal")


# -- SpikingJelly 0.0.0.0.14: the backend is the user's choice --------------------------------------------------------


def _backends() -> list[str]:
    try:
        import cupy  # noqa: F401
    except ImportError:
        return ["torch"]
    return ["torch", "cupy"]


@pytest.mark.skipif(not hasattr(functional, "set_backend"), reason="this version of SpikingJelly has no backends")
@pytest.mark.parametrize("backend", _backends())
@pytest.mark.parametrize(("step_mode", "chunk"), [("s", 1), ("m", 1), ("m", 3)])
def test_backend_stays_what_the_user_chose(backend, step_mode, chunk):
    if backend == "cupy" and step_mode == "s":
        pytest.skip("cupy kernels are for multi-step mode")
    case = make_case("sew_resnet18 ADD LIF", step_mode, chunk)
    functional.set_backend(case.model, backend)
    device = "cuda" if backend == "cupy" else "cpu"
    if backend == "cupy" and not torch.cuda.is_available():
        pytest.skip("cupy kernels need a GPU")
    case.model.to(device=device, dtype=torch.float32)
    inputs = case.inputs.to(device=device, dtype=torch.float32)
    snn = case.wrap(Rule("fixed", {"timesteps": 2}))
    seen = set()
    for node in nodes_of(case.model):
        node.register_forward_pre_hook(lambda node, _: seen.add(node.backend))
    with torch.no_grad():
        for call in (snn.infer, snn.trace, snn.explain):
            call(inputs)
            assert {node.backend for node in nodes_of(case.model)} == {backend}
    if step_mode == "m":
        assert seen == {backend}, "the neurons ran on another backend in between"
