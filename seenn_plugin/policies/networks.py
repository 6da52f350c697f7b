"""Default policy networks, sized from the shape of the input and a limit on the number of operations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import ceil, prod
from typing import Any

import torch
from torch import Tensor, nn

from .._operations import count_operations
from ..errors import PolicyError

_LARGEST_SIDE = 32
"""Larger images are average-pooled to at most this many pixels per side."""
_SMALLEST_SIDE = 4
"""Images are not pooled below this many pixels per side; smaller images get an MLP."""
_RESNET_WIDTHS = (16, 12, 8, 6, 4)
_PREFERRED_RESNET_WIDTH = 8
"""Down to this width, a narrower network on a finer image is preferred to a wider one on a coarser image."""
_MLP_WIDTHS = (128, 96, 64, 48, 32, 24, 16, 8, 4)


class _Block(nn.Module):
    """Two 3x3 convolutions with a shortcut (He et al., "Deep Residual Learning", arXiv 1512.03385)."""

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
    """ResNet-8 for images: a convolution and three residual blocks of ``width``, 2 ``width`` and 4 ``width`` channels.

    Args:
        row_shape: ``(C, H, W)`` of one row.
        outputs: the number of policy logits.
        width: channels of the first convolution; 16 in the original ResNet-8.
        pool: kernel size and stride of the average pooling of the input; 1 for none.

    Attributes:
        architecture: plain values from which :func:`build_network` makes the same architecture again.
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
        """Return policy logits ``[n, outputs]`` of images ``[n, C, H, W]``."""
        return self.layers(x)


class MLP(nn.Module):
    """Batch normalisation and two hidden layers, on the flattened input.

    Args:
        row_shape: the shape of one row.
        outputs: the number of policy logits.
        width: units of each hidden layer.

    Attributes:
        architecture: plain values from which :func:`build_network` makes the same architecture again.
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
        """Return policy logits ``[n, outputs]`` of ``[n, ...]``."""
        return self.layers(x)


_KINDS: dict[str, type[nn.Module]] = {"ResNet8": ResNet8, "MLP": MLP}


def build_network(architecture: dict[str, Any]) -> nn.Module:
    """Build a default network, with new weights, from the ``architecture`` attribute of another.

    Raises:
        PolicyError: the architecture is unknown, or its arguments are invalid.

    Example:
        >>> build_network(MLP((20,), outputs=4, width=8).architecture).layers[-1]
        Linear(in_features=8, out_features=4, bias=True)
    """
    settings = dict(architecture)
    kind = settings.pop("kind", None)
    if kind not in _KINDS:
        raise PolicyError(f"unknown policy network {kind!r}; known: {', '.join(_KINDS)}.")
    try:
        return _KINDS[kind](**settings)
    except (TypeError, ValueError, RuntimeError) as error:
        raise PolicyError(f"{kind} cannot be built from {settings}: {error}") from error


def is_default(network: nn.Module) -> bool:
    """Return whether :func:`build_network` can build a network of the same architecture."""
    return type(network) in _KINDS.values()


def default_network(row_shape: Sequence[int], outputs: int, max_operations: float) -> tuple[nn.Module, int]:
    """Build the preferred default network among those within a limit on operations.

    For images ``(C, H, W)`` that is a ResNet-8: of at least 8 channels if possible, then with the least pooling, then
    the widest. For other inputs, and for images where no ResNet-8 is within the limit, it is the widest MLP.

    Args:
        row_shape: the shape of one row.
        outputs: the number of policy logits.
        max_operations: the largest number of multiply-accumulates for one row.

    Returns:
        The network, and its multiply-accumulates for one row. If no network is within the limit, the one with the
        fewest.

    Example:
        >>> network, operations = default_network((3, 32, 32), outputs=4, max_operations=1e6)
        >>> type(network).__name__, network.architecture["pool"]
        ('ResNet8', 2)
    """
    smallest: tuple[dict[str, Any], int] | None = None
    for architecture in _architectures(row_shape, outputs):
        operations = _operations(architecture, row_shape)
        if operations <= max_operations:
            return build_network(architecture), operations
        if smallest is None or operations < smallest[1]:
            smallest = architecture, operations
    assert smallest is not None
    return build_network(smallest[0]), smallest[1]


def _architectures(row_shape: Sequence[int], outputs: int) -> Iterator[dict[str, Any]]:
    """Yield the architectures of all default networks for a row, the preferred ones first."""
    common = {"row_shape": list(row_shape), "outputs": outputs}
    if len(row_shape) == 3 and min(row_shape[1:]) >= _SMALLEST_SIDE:
        side = max(row_shape[1:])
        pools = [ceil(side / _LARGEST_SIDE)]
        while side // (2 * pools[-1]) >= _SMALLEST_SIDE:
            pools.append(2 * pools[-1])
        for preferred in (True, False):
            for pool in pools:
                for width in _RESNET_WIDTHS:
                    if (width >= _PREFERRED_RESNET_WIDTH) == preferred:
                        yield {"kind": "ResNet8", **common, "width": width, "pool": pool}
    for width in _MLP_WIDTHS:
        yield {"kind": "MLP", **common, "width": width}


def _operations(architecture: dict[str, Any], row_shape: Sequence[int]) -> int:
    with torch.device("meta"):  # shapes only: no memory, no computation
        network, row = build_network(architecture).eval(), torch.empty(1, *row_shape)
        return count_operations(lambda: network(row))
