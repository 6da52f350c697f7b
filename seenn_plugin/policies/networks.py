"""Default policy networks: small ones, sized from the input and from what the spiking network costs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import PolicyError
from ..operations import count_operations

_LARGEST_SIDE = 32
"""Images are pooled down to this many pixels a side: what makes an input hard shows at a glance."""
_SMALLEST_SIDE = 4
_RESNET_WIDTHS = (16, 12, 8, 6, 4)
_FAIR_RESNET_WIDTH = 8
"""A finer image is worth fewer channels down to here."""
_MLP_WIDTHS = (128, 96, 64, 48, 32, 24, 16, 8, 4)


class _Block(nn.Module):
    """Two 3x3 convolutions and a shortcut (He et al., arXiv 1512.03385)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.branch = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
            nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = (
            nn.Identity()
            if inputs == outputs
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.branch(x) + self.shortcut(x))


class ResNet8(nn.Module):
    """ResNet-8: a stem and three blocks of ``width``, 2 ``width`` and 4 ``width`` channels.

    Args:
        row_shape: ``(C, H, W)`` of one input.
        outputs: the number of policy logits.
        width: channels of the stem; 16 in the original.
        pool: side of the squares of pixels that are averaged first.
    """

    def __init__(self, row_shape: Sequence[int], outputs: int, width: int, pool: int = 1) -> None:
        super().__init__()
        self.architecture = {
            "kind": "ResNet8",
            "row_shape": list(row_shape),
            "outputs": outputs,
            "width": width,
            "pool": pool,
        }
        self.layers = nn.Sequential(
            nn.AvgPool2d(pool, ceil_mode=True) if pool > 1 else nn.Identity(),
            nn.Conv2d(row_shape[0], width, 3, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(),
            _Block(width, width, 1),
            _Block(width, 2 * width, 2),
            _Block(2 * width, 4 * width, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(4 * width, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Policy logits ``[n, outputs]`` of ``[n, C, H, W]``."""
        return self.layers(x)


class MLP(nn.Module):
    """Two hidden layers on the flattened input, which is normalised first.

    Args:
        row_shape: the shape of one input.
        outputs: the number of policy logits.
        width: units of each hidden layer.
    """

    def __init__(self, row_shape: Sequence[int], outputs: int, width: int) -> None:
        super().__init__()
        self.architecture = {"kind": "MLP", "row_shape": list(row_shape), "outputs": outputs, "width": width}
        features = prod(row_shape)
        self.layers = nn.Sequential(
            nn.Flatten(),
            nn.BatchNorm1d(features),
            nn.Linear(features, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Policy logits ``[n, outputs]`` of ``[n, ...]``."""
        return self.layers(x)


_KINDS: dict[str, type[nn.Module]] = {"ResNet8": ResNet8, "MLP": MLP}


def build_network(architecture: dict[str, Any]) -> nn.Module:
    """A default network, with fresh weights, from its ``architecture`` attribute.

    Raises:
        PolicyError: there is no such architecture.
    """
    settings = dict(architecture)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise PolicyError(f"unknown policy network {kind!r}; known: {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{kind} cannot be made from {settings}: {error}") from error


def is_default(network: nn.Module) -> bool:
    """Whether a network is one of those that are made here, and can be made again from its architecture."""
    return type(network) in _KINDS.values()


def default_network(row_shape: Sequence[int], outputs: int, max_operations: float) -> tuple[nn.Module, int]:
    """The largest default network within ``max_operations``, and its multiply-accumulates for one input.

    A ResNet-8 for images ``(C, H, W)``, an MLP for everything else and for images that are too small for a ResNet-8
    within the limit. If none is small enough, the smallest.
    """
    smallest: tuple[dict[str, Any], int] | None = None
    for architecture in _by_preference(row_shape, outputs):
        operations = _operations(architecture, row_shape)
        if operations <= max_operations:
            return build_network(architecture), operations
        if smallest is None or operations < smallest[1]:
            smallest = architecture, operations
    assert smallest is not None
    return build_network(smallest[0]), smallest[1]


def _by_preference(row_shape: Sequence[int], outputs: int) -> Iterator[dict[str, Any]]:
    common = {"row_shape": list(row_shape), "outputs": outputs}
    if len(row_shape) == 3 and min(row_shape[1:]) >= _SMALLEST_SIDE:
        side = max(row_shape[1:])
        pools = [ceil(side / _LARGEST_SIDE)]
        while side // (2 * pools[-1]) >= _SMALLEST_SIDE:
            pools.append(2 * pools[-1])
        for fair in (True, False):
            for pool in pools:
                for width in _RESNET_WIDTHS:
                    if (width >= _FAIR_RESNET_WIDTH) == fair:
                        yield {"kind": "ResNet8", **common, "width": width, "pool": pool}
    for width in _MLP_WIDTHS:
        yield {"kind": "MLP", **common, "width": width}


def _operations(architecture: dict[str, Any], row_shape: Sequence[int]) -> int:
    with torch.device("meta"):  # shapes alone: nothing is computed
        network, row = build_network(architecture).eval(), torch.empty(1, *row_shape)
        return count_operations(lambda: network(row))
