"""Default policy networks: within the limit on operations, for every shape of input."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin._operations import count_operations
from seenn_plugin.errors import PolicyError
from seenn_plugin.policies.networks import MLP, ResNet8, build_network, default_network


def test_the_default_network_for_sew_resnet18_takes_at_most_one_percent():
    """For CIFAR-10 at T = 4. The policy network of SEENN's authors takes about half a percent of their ResNet-19."""
    from spikingjelly.activation_based import functional, layer, neuron
    from spikingjelly.activation_based.model import sew_resnet

    model = sew_resnet.sew_resnet18(num_classes=10, cnf="ADD", spiking_neuron=neuron.LIFNode)
    model.conv1 = layer.Conv2d(3, 64, kernel_size=3, stride=1, padding=1, bias=False)
    model.maxpool = nn.Identity()
    functional.set_step_mode(model, "m")
    snn = EarlyExitWrapper(model.eval(), timesteps=4, check=False)
    x = torch.rand(1, 3, 32, 32)
    snn.trace(x)  # the first call inspects the model
    full = count_operations(lambda: snn.trace(x))
    assert full > 2e9
    network, operations = default_network((3, 32, 32), 4, 0.01 * full)
    assert isinstance(network, ResNet8)
    assert network.architecture["width"] == 16
    assert 0.001 * full < operations <= 0.01 * full
    network.eval()
    assert count_operations(lambda: network(x)) == operations


def test_operations_are_multiply_accumulates():
    conv, linear = nn.Conv2d(3, 5, 3, padding=1), nn.Linear(7, 2)
    assert count_operations(lambda: conv(torch.rand(2, 3, 4, 4))) == 2 * 3 * 5 * 9 * 16
    assert count_operations(lambda: linear(torch.rand(4, 7))) == 4 * 7 * 2


@pytest.mark.parametrize(
    ("shape", "limit", "kind"),
    [
        ((3, 224, 224), 7e7, ResNet8),
        ((2, 128, 128), 7e6, ResNet8),
        ((1, 8, 8), 1e5, ResNet8),
        ((1, 8, 8), 1e3, MLP),
        ((4, 5, 40), 1e6, ResNet8),
        ((3, 3, 3), 1e9, MLP),
        ((20,), 1e5, MLP),
        ((2, 30), 1e5, MLP),
        ((2, 3, 4, 5), 1e5, MLP),
    ],
)
def test_every_shape_has_a_network_within_the_limit(shape, limit, kind):
    network, operations = default_network(shape, 6, limit)
    assert isinstance(network, kind)
    assert operations <= limit
    network.eval()
    assert network(torch.rand(2, *shape)).shape == (2, 6)
    again = build_network(network.architecture)
    again.load_state_dict(network.state_dict())


def test_if_no_network_is_within_the_limit_the_smallest_is_built():
    network, operations = default_network((1000,), 4, 10)
    assert operations > 10
    assert network.architecture["width"] == 4


@pytest.mark.parametrize("architecture", [{}, {"kind": "MLP"}, {"kind": "MLP", "row_shape": [3], "outputs": 2, "w": 1}])
def test_an_architecture_that_cannot_be_built_is_refused(architecture):
    with pytest.raises(PolicyError, match=r"unknown policy network|cannot be built"):
        build_network(architecture)
