"""A third party's adapter: for a plain PyTorch recurrent network that keeps its hidden state in an attribute."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seenn_plugin.adapter.module_adapter import ModuleAdapter


class ToyRnn(nn.Module):
    """One timestep of a recurrent network with an integrating output."""

    def __init__(self, features: int = 6, hidden: int = 8, classes: int = 3) -> None:
        super().__init__()
        self.cell = nn.RNNCell(features, hidden)
        self.head = nn.Linear(hidden, classes)
        self.hidden: Tensor | None = None

    def forget(self) -> None:
        self.hidden = None

    def forward(self, x: Tensor) -> Tensor:
        self.hidden = self.cell(x, self.hidden)
        return self.head(self.hidden)


class ToyRnnAdapter(ModuleAdapter):
    """All that the core cannot find out by itself: which models are ours, and how they forget."""

    name = "toy_rnn"

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        return any(isinstance(module, ToyRnn) for module in model.modules())

    def reset(self) -> None:
        for module in self.model.modules():
            if isinstance(module, ToyRnn):
                module.forget()

    def owns(self, cell) -> bool:
        return isinstance(cell.module, ToyRnn) and cell.path == () and cell.key == "hidden"


def make_model() -> ToyRnn:
    """A network with fixed random weights."""
    generator = torch.Generator().manual_seed(0)
    model = ToyRnn().double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model
