"""What tests of models from notebooks, strings and scripts share: it is imported by their kernels and processes too."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import PatiencePolicy

STEPS, ROWS, FEATURES = 6, 5, 16

CLASS = """
class Net(nn.Module):
    def __init__(self, num_steps=6):
        super().__init__()
        self.num_steps = num_steps
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(16, 24), snntorch.Leaky(beta=0.9, threshold=0.3)
        self.fc2, self.lif2 = nn.Linear(24, 4), snntorch.Leaky(beta=0.8, threshold=0.2)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec).sum(0)
"""
IMPORTS = "import snntorch\nimport torch\nfrom torch import nn\n"
CELL = IMPORTS + CLASS
OTHER_CELL = CELL.replace("self.fc1(x)", "self.fc1(1 - x)")
"""The same class, whose networks answer otherwise."""


def rows() -> Tensor:
    strength = torch.linspace(0.2, 2, ROWS)[:, None]
    return strength * torch.rand(ROWS, FEATURES, generator=torch.Generator().manual_seed(4))


def own_answers(model: Any) -> Tensor:
    """What the network answers by itself when it is run for 1, 2, ... timesteps, ``[T, N, C]``."""
    answers = []
    with torch.no_grad():
        for steps in range(1, STEPS + 1):
            model.num_steps = steps
            answers.append(model(rows()))
    return torch.stack(answers)


def require(holds: bool, what: str) -> None:
    """An assertion that ``python -O`` keeps."""
    if not holds:
        raise AssertionError(what)


def assert_fires(model: nn.Module) -> None:
    """Every neuron layer spikes, not always, and no two rows are answered alike."""
    rates: dict[str, list[float]] = {"lif1": [], "lif2": []}
    handles = [
        getattr(model, name).register_forward_hook(
            lambda _, __, output, made=made: made.append(output[0].mean().item())
        )
        for name, made in rates.items()
    ]
    answers = own_answers(model)
    for handle in handles:
        handle.remove()
    for name, made in rates.items():
        require(0.05 < sum(made) / len(made) < 0.95, f"{name} fires at {sum(made) / len(made)}")
    require(len(torch.unique(answers[-1], dim=0)) == ROWS, f"rows are answered alike: {answers[-1]}")
    require(len(torch.unique(answers, dim=0)) == STEPS, "timesteps are answered alike")


def assert_stepped(model: nn.Module) -> Tensor:
    """The wrapper steps the network, bit by bit as it runs itself; what it answers after each timestep."""
    model.eval()
    assert_fires(model)
    own = own_answers(model)
    snn = EarlyExitWrapper(model, PatiencePolicy(2))
    require(torch.equal(snn.trace(rows()), own), "the trace is not the network's own")
    result = snn.infer(rows())
    require(
        torch.equal(result.logits, own[result.timesteps - 1, torch.arange(ROWS)]), "answers are not the network's own"
    )
    require(result.steps_executed == int(result.timesteps.sum()), "row-steps were executed in vain")
    require(result.steps_executed < STEPS * ROWS, "no row left early")
    return own


def refusal(model: nn.Module) -> str:
    """Why a network is refused."""
    try:
        EarlyExitWrapper(model.eval(), "confidence", timesteps=STEPS).infer(rows())
    except ModelRefused as error:
        return str(error)
    raise AssertionError("it was not refused")
