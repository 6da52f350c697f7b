"""The networks that the adapter ships: what they are, and every invariant of early exit on small ones of them."""

import copy
import importlib.util
import shutil
from functools import partial

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import nn
from torch.utils.data import TensorDataset

from seenn_plugin.errors import OptionalDependencyError
from seenn_plugin.models.converted import convert, small_quantised_resnet
from seenn_plugin.models.converted import run as run_converted
from seenn_plugin.models.spikingjelly import resnet19, run, sew_resnet18, small_sew_resnet, spikformer
from seenn_plugin.training import Recipe, train

from ..invariants import (
    FIRING,
    Case,
    Rule,
    check_alone,
    check_prefix,
    check_saved,
    check_slots,
    check_whole,
    firing_rate,
)
from ..reference import run_spikingjelly
from ..spikingjelly_nets import make_fire, nodes_of
from .test_converted import trained_like

T, N = 3, 4
HAS_SPIKFORMER = importlib.util.find_spec("spikingjelly.activation_based.model.spikformer") is not None

# Every network in a small form, made to fire on frames, and the height of images that it can take.
SMALL = {
    "small_sew_resnet": (lambda frames: _firing(small_sew_resnet(channels=4), frames), 16),
    "sew_resnet18": (lambda frames: _firing(sew_resnet18(), frames), 8),
    "resnet19": (lambda frames: _firing(resnet19(widths=(4, 8, 8), hidden=8), frames), 8),
    "spikformer": (lambda frames: _firing(spikformer(width=32, depth=1, heads=2), frames), 32),
    "small_converted_resnet": (
        lambda frames: convert(trained_like(small_quantised_resnet(channels=4), frames[0]), frames[0]),
        16,
    ),
}


@torch.no_grad()
def _firing(model, frames):
    """In double precision, with batch normalisation as after some training, and thresholds that are reached."""
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.momentum = None
    run_spikingjelly(model.train(), frames)
    make_fire(model.eval(), frames)
    return model


@pytest.fixture(scope="module", params=SMALL)
def case(request):
    """A network that fires, its own run, and images."""
    if request.param == "spikformer" and not HAS_SPIKFORMER:
        pytest.skip("not in this version")
    torch.manual_seed(0)
    make, size = SMALL[request.param]
    images = torch.randn(N, 3, size, size, dtype=torch.float64)
    frames = images.expand(T, *images.shape)
    model = make(frames).eval()
    rates = firing_rate(model, nodes_of(model), run_spikingjelly, frames)
    assert FIRING[0] <= sum(rates) / len(rates) <= FIRING[1]
    made = Case(model, run_spikingjelly, images, T, nodes_of(model), readout="mean")
    made.wrapper = made.wrap(Rule("fixed", {"timesteps": T}))
    return made


def _rule(case):
    """One under which rows leave at different timesteps: its threshold lies in the midst of their scores at one."""
    scores = torch.softmax(case.trace, -1).amax(-1)
    thresholds = (float(score.median()) + 1e-9 for score in scores)
    rules = (Rule("confidence", {"threshold": threshold, "temperature": 1.0}) for threshold in thresholds)
    return next(rule for rule in rules if len(set(case.exits(rule))) > 1)


def test_it_is_accepted_and_exits_early_as_the_policy_says(case):
    report = case.wrapper.explain(case.inputs)
    assert report.refused is None
    check_whole(case)
    rule = _rule(case)
    check_prefix(case, rule)
    check_alone(case, rule, [2, 0, 2])
    check_slots(case, rule, slots=2)
    check_saved(case, rule)


def test_run_is_the_frameworks_own_run(case):
    is_converted = nodes_of(case.model)[0].step_mode == "s"
    with torch.no_grad():
        found = (run_converted if is_converted else run)(case.model, case.inputs, T)
        wanted = torch.stack(
            [output for (output,) in run_spikingjelly(case.model, case.inputs.expand(T, *case.inputs.shape))]
        )
    assert found.shape == (T, N, 10)
    assert torch.equal(found, wanted)


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler")
# PyTorch's own doing while it traces a surrogate gradient and a state.
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_compiled_training_ends_with_the_weights_of_the_frameworks_own_run():
    """In double precision, where rounding moves no potential over a threshold."""
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(8, 3, 8, 8, dtype=torch.float64), torch.arange(8))
    first = small_sew_resnet(channels=4).double()
    models = {compiled: copy.deepcopy(first) for compiled in (False, True)}
    losses = {}
    for compiled, model in models.items():
        recipe = Recipe(epochs=2, batch_size=4, learning_rate=0.05, compile=compiled)
        losses[compiled] = [e.loss for e in train(model, partial(run, timesteps=T), data, recipe, progress=False)]
    assert losses[True] == pytest.approx(losses[False], rel=1e-5)
    torch.testing.assert_close(models[True].state_dict(), models[False].state_dict(), rtol=1e-6, atol=1e-8)
    moved = [not torch.equal(a, b) for a, b in zip(first.parameters(), models[True].parameters(), strict=True)]
    assert all(moved)


def test_resnet19_has_19_layers_of_the_widths_of_seenn():
    with torch.device("meta"):
        model = resnet19()
    main = [
        m for m in model.modules() if isinstance(m, nn.Linear) or (isinstance(m, nn.Conv2d) and m.kernel_size == (3, 3))
    ]
    assert len(main) == 19
    widths = [m.out_channels for m in main if isinstance(m, nn.Conv2d)]
    assert widths == [128] * 7 + [256] * 6 + [512] * 4
    assert [m.stride[0] for m in main if isinstance(m, nn.Conv2d)] == [1] * 7 + [2, 1, 1, 1, 1, 1] + [2, 1, 1, 1]
    assert [(m.in_features, m.out_features) for m in main if isinstance(m, nn.Linear)] == [(512, 256), (256, 10)]


@pytest.mark.parametrize("timesteps", range(1, 7))
def test_resnet19_runs_any_number_of_timesteps(timesteps):
    model = resnet19(widths=(4, 8), blocks=(1, 1), hidden=8, classes=5).eval()
    assert run(model, torch.randn(2, 3, 8, 8), timesteps).shape == (timesteps, 2, 5)


def test_neurons_of_resnet19_halve_their_potential_and_reset_to_zero():
    node = nodes_of(resnet19(widths=(4,), blocks=(1,), hidden=8))[0]
    currents = [0.6, 0.6, 0.6, 1.5, -0.4, 0.9, 0.5]
    spikes, potential = [], 0.0
    for current in currents:
        potential = potential / 2 + current
        spikes.append(float(potential >= 1))
        potential = 0.0 if potential >= 1 else potential
    functional.reset_net(node)
    assert node(torch.tensor(currents).view(-1, 1)).flatten().tolist() == spikes
    assert 0 < sum(spikes) < len(spikes)


def test_the_gradient_of_their_spikes_is_a_triangle():
    node = nodes_of(resnet19(widths=(4,), blocks=(1,), hidden=8))[0]
    functional.reset_net(node)
    x = torch.tensor([[-0.5, 0.0, 0.25, 1.0, 1.5, 2.5]], requires_grad=True)
    node(x).sum().backward()
    assert x.grad.flatten().tolist() == [max(0.0, 1 - abs(v - 1)) for v in x.flatten().tolist()]


def test_sew_resnet18_leaves_the_size_of_images_to_its_stages():
    model, sizes = sew_resnet18(classes=7).eval(), []
    for name in ("conv1", "layer1", "layer2", "layer3", "layer4"):
        getattr(model, name).register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    assert run(model, torch.randn(1, 3, 32, 32), 1).shape == (1, 1, 7)
    assert sizes == [32, 32, 16, 8, 4]


@pytest.mark.skipif(HAS_SPIKFORMER, reason="this version has one")
def test_a_spikingjelly_without_spikformer_is_named():
    with pytest.raises(OptionalDependencyError, match=r"SpikingJelly 2\.0"):
        spikformer()


@pytest.mark.skipif(not HAS_SPIKFORMER, reason="not in this version")
def test_spikformer_is_spikingjellys():
    from spikingjelly.activation_based.model.spikformer import Spikformer

    model = spikformer(width=32, depth=2, heads=4, classes=7)
    assert type(model) is Spikformer
    assert run(model.eval(), torch.randn(1, 3, 32, 32), 2).shape == (2, 1, 7)
