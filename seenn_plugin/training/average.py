"""An exponential moving average of a model's weights."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class MovingAverage:
    """Follows a model's ``state_dict``: a_1 = w_1, a_k = decay * a_(k-1) + (1 - decay) * w_k.

    Running statistics of normalisation are averaged like weights; whole numbers are the model's. It holds tensors and
    is no copy of the model, as ``torch.optim.swa_utils.AveragedModel`` is: snnTorch resets the networks that were
    built, and not their copies.

    Args:
        decay: above 0 and below 1.
    """

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._values: dict[str, Tensor] = {}

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take the current weights into the average."""
        self._values = {name: self._with(name, value) for name, value in model.state_dict().items()}

    def _with(self, name: str, value: Tensor) -> Tensor:
        if name not in self._values or not value.is_floating_point():
            return value.clone()
        return self._values[name].to(value.device).lerp(value, 1 - self._decay)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Within the block the model has the averaged weights; afterwards it has its own again."""
        own = {name: value.clone() for name, value in model.state_dict().items()}
        model.load_state_dict(self._values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def state_dict(self) -> dict[str, Tensor]:
        """The average; it can be loaded into the model."""
        return dict(self._values)

    def load_state_dict(self, values: dict[str, Tensor]) -> None:
        """Continue from a saved average."""
        self._values = dict(values)
