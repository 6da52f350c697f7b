"""Random networks of any firing rate, some of which mix rows or look ahead: each is answered right, or refused.

``python -m tests.random_networks 1000`` tries a thousand of each kind and prints what became of them.
"""

from __future__ import annotations

import copy
import random
import sys
import warnings
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.errors import ModelRefused
from seenn_plugin.policies import ConfidencePolicy

from .closeness import differing_rows

FEATURES, WIDTH, CLASSES, TIMESTEPS, ROWS = 6, 8, 3, 5, 16
STRENGTHS = (0.03, 0.3, 1.0, 3.0, 30.0)


# -- what may lie between two neuron layers: [T, N, D] -> [T, N, D] ----------------------------------------------------


def _attention(z: Tensor) -> Tensor:
    scores = torch.einsum("tnd,snd->nts", z, z).softmax(-1)
    return torch.einsum("nts,snd->tnd", scores, z)


def _causal_attention(z: Tensor) -> Tensor:
    """Attention over the features of one timestep."""
    return torch.einsum("tnde,tne->tnd", torch.einsum("tnd,tne->tnde", z, z).softmax(-1), z)


CAUSAL: dict[str, Callable[[Tensor], Tensor]] = {
    "nothing": lambda z: z,
    "square": lambda z: z * z - 0.5 * z,
    "attention over features": _causal_attention,
    "normalised features": lambda z: (z - z.mean(2, keepdim=True)) / (z.std(2, keepdim=True) + 0.1),
}
MIXING: dict[str, Callable[[Tensor], Tensor]] = {
    "batch mean subtracted": lambda z: z - z.mean(1, keepdim=True),
    "gain by the batch": lambda z: z * (1 + z.mean(1, keepdim=True)),
    "batch statistics": lambda z: (z - z.mean(1, keepdim=True)) / (z.std(1, keepdim=True, unbiased=False) + 0.1),
    "maximum of the batch": lambda z: z / (1 + z.amax(1, keepdim=True)),
    "sum over the batch": lambda z: z + 0.1 * z.sum(1, keepdim=True),
    "neighbour": lambda z: z + z.roll(1, 1),
}
AHEAD: dict[str, Callable[[Tensor], Tensor]] = {
    "attention over time": _attention,
    "mean over time": lambda z: z - z.mean(0, keepdim=True),
    "one timestep ahead": lambda z: torch.cat([z[1:], z[-1:]]),
    "reversed time": lambda z: z.flip(0),
    "sum of what comes": lambda z: z.flip(0).cumsum(0).flip(0),
    "softmax over time": lambda z: z.softmax(0),
    "gain by all timesteps": lambda z: z * (1 + z.mean((0, 2), keepdim=True)),
}


class MultiStep(nn.Module):
    """A SpikingJelly network in multi-step mode, ``[T, N, FEATURES]`` to ``[T, N, CLASSES]``."""

    def __init__(self, nodes: list[Callable[[], nn.Module]], between: Callable[[Tensor], Tensor], at: int) -> None:
        super().__init__()
        sizes = [FEATURES, *[WIDTH] * len(nodes)]
        pairs = pairwise(sizes)
        self.linears = nn.ModuleList(layer.Linear(a, b, step_mode="m") for a, b in pairs)
        self.nodes = nn.ModuleList(make() for make in nodes)
        self.head = layer.Linear(WIDTH, CLASSES, step_mode="m")
        self.between, self.at = between, at

    def forward(self, x: Tensor) -> Tensor:
        for i, (linear, node) in enumerate(zip(self.linears, self.nodes, strict=True)):
            x = node(linear(x))
            if i == self.at:
                x = self.between(x)
        return self.head(x)


class Loop(nn.Module):
    """A snnTorch network with its loop in ``forward``, ``[T, N, FEATURES]`` to ``[T, N, CLASSES]``.

    Args:
        ahead: how many frames it looks ahead.
    """

    def __init__(
        self, nodes: list[Callable[[], nn.Module]], between: Callable[[Tensor], Tensor], at: int, ahead: int
    ) -> None:
        super().__init__()
        sizes = [FEATURES, *[WIDTH] * len(nodes)]
        pairs = pairwise(sizes)
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in pairs)
        self.nodes = nn.ModuleList(make() for make in nodes)
        self.head = nn.Linear(WIDTH, CLASSES)
        self.between, self.at, self.ahead = between, at, ahead

    def forward(self, x: Tensor) -> Tensor:
        mems = [node.reset_mem() for node in self.nodes]
        out = []
        for t in range(x.shape[0]):
            z = x[min(t + self.ahead, x.shape[0] - 1)]
            spikes = []
            for i, (linear, node) in enumerate(zip(self.linears, self.nodes, strict=True)):
                z, mems[i] = node(linear(z), mems[i])
                if i == self.at:
                    z = self.between(z.unsqueeze(0)).squeeze(0)
                spikes.append(z)
            out.append(self.head(z))
        return torch.stack(out)


NODES = (
    lambda: neuron.IFNode(step_mode="m"),
    lambda: neuron.LIFNode(step_mode="m"),
    lambda: neuron.LIFNode(tau=3.0, v_reset=None, decay_input=False, step_mode="m"),
    lambda: neuron.ParametricLIFNode(step_mode="m"),
    lambda: neuron.KLIFNode(step_mode="m"),
)
SNNTORCH_NODES = (
    lambda: snntorch.Leaky(0.9),
    lambda: snntorch.Leaky(0.5, reset_mechanism="zero"),
    lambda: snntorch.Lapicque(beta=0.8),
)


@dataclass(frozen=True)
class Drawn:
    """A random network.

    Attributes:
        model: the network.
        what: what lies between its neurons.
        sound: whether its rows are independent, and early answers of later frames.
        gain: factor on its weights, by which it is silent, or saturated.
    """

    model: nn.Module
    what: str
    sound: bool
    gain: float


def draw(seed: int) -> Drawn:
    """The random network of a seed."""
    rng = random.Random(seed)
    torch.manual_seed(seed)
    kinds = {**CAUSAL, **MIXING, **AHEAD}
    depth = rng.randint(1, 3)
    at = rng.randrange(depth)
    family = rng.choice(["multi-step", "loop"])
    if family == "multi-step":
        what = rng.choice([*CAUSAL, *MIXING, *AHEAD] if rng.random() < 0.7 else [*CAUSAL])
        model: nn.Module = MultiStep([rng.choice(NODES) for _ in range(depth)], kinds[what], at)
        sound = what in CAUSAL
    else:
        ahead = rng.choice([0, 0, 0, 1, 2])
        what = rng.choice([*CAUSAL, *MIXING] if not ahead and rng.random() < 0.7 else [*CAUSAL])
        model = Loop([rng.choice(SNNTORCH_NODES) for _ in range(depth)], kinds[what], at, ahead)
        sound = what in CAUSAL and not ahead
        what += f", {ahead} frame(s) ahead" if ahead else ""
    gain = rng.choice([0.1, 0.3, 1.0, 3.0, 10.0])
    shift = rng.choice([0.0, 0.0, -4.0, 4.0])
    with torch.no_grad():
        for linear in model.linears:
            linear.weight.mul_(gain)
            linear.bias.mul_(gain).add_(shift)
    return Drawn(model.eval(), f"{family}, {what}", sound, gain)


def stock(model: nn.Module, x: Tensor) -> Tensor:
    """The network's own full run, from fresh state, of a copy of it: ``[T, N, CLASSES]``."""
    model = copy.deepcopy(model)
    if isinstance(model, MultiStep):
        functional.reset_net(model)
    with torch.no_grad():
        return model(x)


def verdict(drawn: Drawn, seed: int) -> str:
    """``"right"``, ``"wrong"`` or ``"refused"``; wrong if any row of batches of any strength is answered wrong."""
    x = torch.rand(TIMESTEPS, ROWS, FEATURES, generator=torch.Generator().manual_seed(seed))
    snn = EarlyExitWrapper(drawn.model, ConfidencePolicy(0.6), input="sequence", readout="sum")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # layers that never fire
        try:
            results = [snn.infer(x * strength) for strength in STRENGTHS]
        except ModelRefused:
            return "refused"
    for strength, result in zip(STRENGTHS, results, strict=True):
        for row, t in enumerate(result.timesteps.tolist()):
            alone = stock(drawn.model, strength * x[:t, row : row + 1])  # all that the answer may depend on
            if differing_rows(result.logits[row : row + 1], alone.sum(0)):
                return "wrong"
    return "right"


def main(count: int) -> None:
    table: Counter[tuple[str, str]] = Counter()
    for seed in range(count):
        drawn = draw(seed)
        kind, outcome = "sound" if drawn.sound else "unsound", verdict(drawn, seed)
        table[kind, outcome] += 1
        if outcome == "wrong" or (drawn.sound and outcome == "refused"):
            print(f"seed {seed}: {drawn.what}, gain {drawn.gain}: {outcome}", flush=True)
    for (kind, outcome), number in sorted(table.items()):
        print(f"{kind:8} {outcome:8} {number}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 100)
