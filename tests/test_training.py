"""The TET loss against the formula written out."""

import math

import pytest
import torch

from seenn_plugin.errors import InputError
from seenn_plugin.training import tet_loss


def slow_tet_loss(outputs, labels, lamb, target):
    steps, n, classes = outputs.shape
    entropy = square = 0.0
    for t in range(steps):
        for i in range(n):
            row = outputs[t, i].tolist()
            entropy += (math.log(sum(math.exp(value) for value in row)) - row[int(labels[i])]) / (steps * n)
            square += sum((value - target) ** 2 for value in row) / (steps * n * classes)
    return (1 - lamb) * entropy + lamb * square


@pytest.mark.parametrize(("lamb", "target"), [(1e-3, 1.0), (0.0, 1.0), (1.0, 0.5), (0.3, -2.0)])
@pytest.mark.parametrize("shape", [(1, 1, 2), (4, 3, 5), (8, 2, 10)])
def test_it_is_the_formula(shape, lamb, target):
    outputs, labels = torch.randn(shape, dtype=torch.float64), torch.randint(shape[2], (shape[1],))
    assert float(tet_loss(outputs, labels, lamb, target)) == pytest.approx(slow_tet_loss(outputs, labels, lamb, target))


def test_every_timestep_gets_a_gradient():
    outputs = torch.zeros(3, 2, 4, requires_grad=True)
    tet_loss(outputs, torch.tensor([0, 3])).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().sum((1, 2)).gt(0).all()


@pytest.mark.parametrize(("shape", "n"), [((2, 3), 2), ((4, 3, 5), 4), ((4, 3, 5, 1), 3)])
def test_wrong_shapes_are_named(shape, n):
    with pytest.raises(InputError, match=r"\[T, N, C\]"):
        tet_loss(torch.zeros(shape), torch.zeros(n, dtype=torch.long))
