"""snnTorch models whose rows cannot leave early with the right answer, each for one reason of its own.

They are written as people write them, fire, and run; what is wrong shows in how ``forward`` is written, or only in what
it answers.
"""

# Some names are there because people write them.
# ruff: noqa: RUF059

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import spikegen
from torch import Tensor, nn

from .entry import Refused
from .snntorch_models import make_fire

REFUSED: list[Refused] = []

Made = TypeVar("Made", bound=Callable[..., nn.Module])

SEVERAL = "(?i)(several|two|more than one).*loop"
NESTED = f"(?i)nest|inside another|{SEVERAL[4:]}"
CHANCE = "(?i)random|differently"
ROWS = "(?i)row"
LATER = "(?i)later|causal|future"

FEATURES, HIDDEN, CLASSES, T = 10, 12, 4, 6


def refused(
    match: str, row: tuple[int, ...] = (FEATURES,), sequence: bool = False, time_dim: int = 0
) -> Callable[[Made], Made]:
    """Enter a class, or a function that makes a model, under the first line of its docstring."""

    def enter(make: Made) -> Made:
        def build() -> nn.Module:
            x = torch.rand((T, 5, *row) if sequence else (5, *row), generator=torch.Generator().manual_seed(1))
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers are the caller's
                torch.manual_seed(3)
                model = make().eval()
                neurons = [module for module in model.modules() if isinstance(module, snn.Leaky)]
                make_fire(neurons, lambda: model(x.transpose(0, time_dim) if sequence else x), 0.7)
            return model

        name = (make.__doc__ or "").partition("\n")[0].rstrip(".")
        REFUSED.append(Refused(name, build, row, T, match, sequence, time_dim))
        return make

    return enter


class Net(nn.Module):
    """Two layers; each model writes its own ``forward``."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = T
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.lif1 = snn.Leaky(beta=0.9)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.lif2 = snn.Leaky(beta=0.9)


# -- loops that cannot be cut ---------------------------------------------------------------------------------------


@refused("(?i)while")
class WhileLoop(Net):
    """A while loop over time."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        step = 0
        while step < self.num_steps:
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
            step += 1
        return torch.stack(rec)


@refused("(?i)break")
class BreaksOut(Net):
    """An early exit of its own, for the whole batch, with break."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = torch.zeros(x.size(0), CLASSES)
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = count + spk2
            if (count.max(dim=1).values >= 4).all():
                break
        return count


@refused("(?i)return")
class ReturnsInside(Net):
    """A return inside the loop."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = 0
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = count + spk2
            if step == self.num_steps - 1:
                return count
        return None


@refused("(?i)loop|comprehension")
class InAComprehension(nn.Module):
    """The loop over time is a comprehension."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(FEATURES, HIDDEN),
            snn.Leaky(beta=0.9, init_hidden=True),
            nn.Linear(HIDDEN, CLASSES),
            snn.Leaky(beta=0.9, init_hidden=True),
        )

    def forward(self, x):
        self.net[1].reset_mem()
        self.net[3].reset_mem()
        return torch.stack([self.net(x) for _ in range(T)])


@refused(SEVERAL)
class EncoderThenDecoder(Net):
    """Two loops: all timesteps of the encoder, then all of the decoder."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        code, rec = 0, []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            code = code + spk1
        for _ in range(self.num_steps):
            spk2, mem2 = self.lif2(self.fc2(code / self.num_steps), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@refused(SEVERAL)
class LayerAfterLayer(Net):
    """Two loops, layer by layer: the second runs over the spikes of the first."""

    def forward(self, x):
        hidden, out = [], []
        mem1 = self.lif1.init_leaky()
        for _ in range(self.num_steps):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            hidden.append(spk)
        mem2 = self.lif2.init_leaky()
        for spk in hidden:
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            out.append(spk)
        return torch.stack(out).sum(0)


@refused(NESTED, sequence=True)
class LayersThenTime(Net):
    """Nested loops: over the layers, and for each over time."""

    def forward(self, x):
        seq = list(x)
        for fc, lif in ((self.fc1, self.lif1), (self.fc2, self.lif2)):
            mem = lif.init_leaky()
            for t in range(len(seq)):
                seq[t], mem = lif(fc(seq[t]), mem)
        return torch.stack(seq)


@refused(NESTED)
class RowsThenTime(Net):
    """Nested loops: over the rows of the batch, and for each over time."""

    def forward(self, x):
        answers = []
        for i in range(x.size(0)):
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            count = torch.zeros(1, CLASSES)
            for _ in range(self.num_steps):
                spk1, mem1 = self.lif1(self.fc1(x[i : i + 1]), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                count = count + spk2
            answers.append(count)
        return torch.cat(answers)


@refused(NESTED, sequence=True)
class FramesThenSteps(Net):
    """Nested loops: over the frames, and some timesteps on each."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for frame in x:
            count = 0
            for _ in range(3):
                spk1, mem1 = self.lif1(self.fc1(frame), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                count = count + spk2
            rec.append(count)
        return torch.stack(rec)


@refused("(?i)source")
def without_source() -> nn.Module:
    """A forward without source code."""
    scope: dict[str, Any] = {"torch": torch}
    exec(
        "def forward(self, x):\n"
        "    mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()\n"
        "    rec = []\n"
        "    for _ in range(self.num_steps):\n"
        "        spk1, mem1 = self.lif1(self.fc1(x), mem1)\n"
        "        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)\n"
        "        rec.append(spk2)\n"
        "    return torch.stack(rec)\n",
        scope,
    )
    return type("WithoutSource", (Net,), {"forward": scope["forward"]})()


# The loop can be cut here, but what comes after it cannot work with fewer timesteps.
@refused("(?i)after the loop|behind|epilogue|early|stopp|number of timesteps")
class LinearOverTime(Net):
    """A linear layer over the spikes of all T timesteps, side by side."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(T * CLASSES, CLASSES)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return self.head(torch.cat(rec, dim=1))


# -- chance ---------------------------------------------------------------------------------------------------------


@refused(CHANCE)
class NoiseOnTheCurrent(Net):
    """Noise drawn in every step."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1 + 0.3 * torch.randn_like(cur1), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@refused(CHANCE)
class DropoutAlways(Net):
    """Dropout that eval() does not switch off."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(F.dropout(spk1, 0.4, training=True)), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@refused(CHANCE)
class PoissonInput(Net):
    """Input spikes drawn in every step, by comparison."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            drawn = (torch.rand_like(x) < x).float()
            spk1, mem1 = self.lif1(self.fc1(drawn), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@refused(CHANCE)
class RateCodeInTheLoop(Net):
    """Input spikes drawn in every step, by snnTorch's encoder."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = 0
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(spikegen.rate(x, num_steps=1)[0]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = count + spk2
        return count


# -- rows that see each other ---------------------------------------------------------------------------------------


@refused(ROWS)
class BatchMean(Net):
    """The mean over the batch subtracted in every step."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1 - cur1.mean(0) + 0.3, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@refused(ROWS)
class ScaledByTheBatch(Net):
    """Input scaled by the largest value of the batch before the loop."""

    def forward(self, x):
        x = x / x.abs().max()
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = 0
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = count + mem2
        return count


@refused(ROWS)
class LatencyByTheBatch(Net):
    """A latency code normalised by the latest spike of the batch."""

    def forward(self, x):
        # snnTorch's logarithmic code divides by the latest spike time of all rows; none is cut off at the threshold,
        # which would make it the same for every batch.
        code = spikegen.latency(0.3 + 0.7 * x, num_steps=self.num_steps, threshold=0.25, normalize=True)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(code[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@refused(ROWS)
class SharedThreshold(Net):
    """A threshold that follows the activity of all rows."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        level = 0.0
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x) - level, mem1)
            level = 0.5 * level + 0.5 * float(spk1.mean())
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


# The factor of each neuron lies on the axis of the rows: with as many rows as features it is a factor of each row, and
# with any other number of rows it fails.
@refused("(?i)batch of 5 rows, and not on one of another size", row=(5,))
class GradedByRow(nn.Module):
    """Graded spikes whose factors are broadcast over the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.lif1 = snn.Leaky(beta=0.9)
        self.graded = snn.GradedSpikes(5, None)
        self.fc = nn.Linear(5, CLASSES)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(T):
            spk1, mem1 = self.lif1(x, mem1)
            spk2, mem2 = self.lif2(self.fc(self.graded(spk1)), mem2)
            rec.append(spk2)
        return torch.stack(rec)


# -- early answers that depend on later input -----------------------------------------------------------------------


@refused(LATER, sequence=True)
class MinusTheMean(Net):
    """The mean over the sequence subtracted before the loop."""

    def forward(self, x):
        x = x - x.mean(0, keepdim=True) + 0.4
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for frame in x:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@refused(LATER, sequence=True)
class AttentionOverFrames(Net):
    """Attention over the frames before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.query = nn.Linear(FEATURES, FEATURES)
        self.key = nn.Linear(FEATURES, FEATURES)

    def forward(self, x):
        tokens = x.transpose(0, 1)
        weight = torch.softmax(4 * self.query(tokens) @ self.key(tokens).transpose(1, 2), dim=-1)
        seen = (weight @ tokens).transpose(0, 1)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = 0
        for t in range(seen.size(0)):
            spk1, mem1 = self.lif1(self.fc1(seen[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = count + mem2
        return count


@refused(LATER, sequence=True, time_dim=1)
class LooksAhead(Net):
    """Every step looks at the next frame too."""

    def forward(self, x):
        steps = x.size(1)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for t in range(steps):
            ahead = x[:, min(t + 1, steps - 1)]
            spk1, mem1 = self.lif1(self.fc1(0.5 * x[:, t] + 0.5 * ahead), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@refused(LATER, sequence=True)
class Backwards(Net):
    """The frames are read from the last to the first."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for t in reversed(range(x.size(0))):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@refused(LATER, sequence=True)
class NormOverTime(Net):
    """Currents normalised over all timesteps, with a factor for each."""

    def __init__(self) -> None:
        super().__init__()
        self.factor = nn.Parameter(torch.linspace(0.8, 1.2, T).view(T, 1, 1))

    def forward(self, x):
        cur = self.fc1(x)
        cur = self.factor * (cur - cur.mean(0)) / (cur.std(0) + 1e-3)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(cur[t], mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


# -- neurons that take all timesteps at once ------------------------------------------------------------------------


@refused("(?i)parallel|loop|timestep", sequence=True)
class TimeParallel(nn.Module):
    """Time-parallel neurons, which have no loop at all."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(FEATURES, HIDDEN)
        self.neuron1 = snn.StateLeaky(beta=0.8, channels=HIDDEN, threshold=0.5)
        self.fc2 = nn.Linear(HIDDEN, CLASSES)
        self.neuron2 = snn.StateLeaky(beta=0.8, channels=CLASSES, threshold=1.0)

    def forward(self, x: Tensor) -> Tensor:
        spk, _ = self.neuron1(self.fc1(x))
        spk, _ = self.neuron2(self.fc2(spk))
        return spk


@refused("(?i)parallel|loop|timestep", sequence=True)
class TimeParallelLinear(nn.Module):
    """Time-parallel neurons with a linear layer inside, one answer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer1 = snn.LinearLeaky(beta=0.8, in_features=FEATURES, out_features=HIDDEN, threshold=0.5)
        self.layer2 = snn.LinearLeaky(beta=0.7, in_features=HIDDEN, out_features=CLASSES, threshold=1.0)

    def forward(self, x: Tensor) -> Tensor:
        spk, _ = self.layer1(x)
        spk, mem = self.layer2(spk)
        return mem.mean(0)
