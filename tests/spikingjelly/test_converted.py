"""Quantised activations against their formula, and converted networks against those that they are made of."""

import math

import pytest
import torch
from spikingjelly.activation_based import neuron
from torch import nn

from seenn_plugin.checkpoints.pretrained import Card, Pretrained
from seenn_plugin.models.converted import QCFS, convert, run, small_converted_resnet, small_quantised_resnet

IMAGES = (8, 3, 16, 16)


def trained_like(model, images):
    """In double precision, with batch normalisation and thresholds as after some training."""
    model.double().train()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        for position, module in enumerate(m for m in model.modules() if isinstance(m, QCFS)):
            module.threshold.fill_(1.5 + 0.25 * position)
        model(images)
    return model.eval()


def slow_qcfs(x, levels, threshold):
    return threshold * min(max(math.floor(x * levels / threshold + 0.5) / levels, 0.0), 1.0)


@pytest.mark.parametrize("levels", [1, 4, 8])
@pytest.mark.parametrize("threshold", [0.5, 3.0])
def test_qcfs_is_its_formula(levels, threshold):
    x = torch.linspace(-5, 5, 333, dtype=torch.float64)
    found = QCFS(levels, threshold).double()(x)
    assert found.tolist() == pytest.approx([slow_qcfs(value, levels, threshold) for value in x.tolist()])
    assert len({round(value, 9) for value in found.tolist()}) == levels + 1


def test_gradients_pass_the_staircase_as_a_slope():
    activation = QCFS(levels=4, threshold=2.0).double()
    x = torch.tensor([-1.0, 0.3, 1.1, 5.0], dtype=torch.float64, requires_grad=True)
    activation(x).sum().backward()
    assert x.grad.tolist() == [0, 1, 1, 0]
    # In range, what rounding adds in units of the threshold; above, the threshold is the answer.
    rounding = [slow_qcfs(value, 4, 2.0) / 2.0 - value / 2.0 for value in (0.3, 1.1)]
    assert float(activation.threshold.grad) == pytest.approx(sum(rounding) + 1)


def test_under_a_constant_current_a_neuron_climbs_the_staircase():
    """One layer, so that currents are constant: after as many timesteps as levels, both networks are the same."""
    images = torch.randn(IMAGES, dtype=torch.float64)
    layers = [nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), QCFS(levels=4), nn.Flatten(), nn.Linear(784, 10)]
    ann = trained_like(nn.Sequential(*layers), images)
    with torch.no_grad():
        found, wanted = run(convert(ann, images), images, 4).mean(0), ann(images)
    assert wanted.std() > 0.05
    torch.testing.assert_close(found, wanted)


def test_a_deep_network_comes_close_to_what_it_was_made_of():
    images = torch.randn(IMAGES, dtype=torch.float64)
    ann = trained_like(small_quantised_resnet(channels=8, levels=10_000), images)
    with torch.no_grad():
        outputs, wanted = run(convert(ann, images), images, 256), ann(images)
    differences = [float((outputs[:t].mean(0) - wanted).abs().mean() / wanted.std()) for t in (4, 16, 64, 256)]
    assert differences == sorted(differences, reverse=True)
    assert differences[-1] < 0.05


def test_the_values_of_the_example_do_not_matter():
    ann = trained_like(small_quantised_resnet(channels=4), torch.randn(IMAGES, dtype=torch.float64))
    zeros, other = (convert(ann, x).state_dict() for x in (torch.zeros(IMAGES).double(), torch.randn(IMAGES).double()))
    assert list(zeros) == list(other)
    assert all(torch.equal(zeros[name], other[name]) for name in zeros)


def test_the_conventional_network_stays_as_it_is():
    ann = small_quantised_resnet(channels=4).train()
    modules, weights = list(ann.named_modules()), {name: value.clone() for name, value in ann.state_dict().items()}
    convert(ann, torch.zeros(IMAGES))
    assert list(ann.named_modules()) == modules
    assert all(module.training for module in ann.modules())
    assert all(torch.equal(value, weights[name]) for name, value in ann.state_dict().items())


def test_names_of_weights_do_not_depend_on_the_version():
    scales = [name for name in small_converted_resnet(channels=4).state_dict() if name.endswith("scale")]
    assert scales == [f"spiking.{k}.{part}.scale" for k in range(7) for part in (0, 2)]


def test_every_run_begins_at_half_of_the_threshold():
    snn = small_converted_resnet(channels=4)
    nodes = [module for module in snn.modules() if isinstance(module, neuron.IFNode)]
    assert len(nodes) == 7
    for _ in range(2):
        assert [float(node.v) for node in nodes] == [0.5] * 7
        run(snn, torch.randn(2, 3, 32, 32), 2)


def test_it_comes_back_from_disk(tmp_path):
    images = torch.randn(4, 3, 32, 32)
    ann = trained_like(small_quantised_resnet(channels=4), images.double()).float()
    arguments = {"channels": 4}
    card = Card(
        *("a title", "seenn_plugin.models.converted:small_converted_resnet", arguments, {"timesteps": 4}),
        *("seenn_plugin.data:cifar10", {}, "made up", [], 0),
    )
    made = Pretrained(convert(ann, images), card)
    made.save(tmp_path)
    loaded = Pretrained.load(tmp_path)
    made.model.load_state_dict({name: value.half().float() for name, value in made.model.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(run(loaded.model, images, 4), run(made.model, images, 4))
