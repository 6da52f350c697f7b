"""snnTorch models that run all timesteps inside ``forward``, in the many ways in which people write that loop.

Each is small, fires, and comes with a plain reference of what it answers when its loop is stopped after t timesteps.
The weights are random; what matters is how ``forward`` is written.
"""

# People write loop variables that they do not use, name what they return, and concatenate lists.
# ruff: noqa: B007, F841, RET504, RUF005, RUF007, RUF059, SIM108

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import snntorch as snn
import torch
import torch.nn.functional as F
from snntorch import spikegen, surrogate
from torch import Tensor, nn

from ..reference import Outputs
from .entry import Entry

Prefix = Callable[[nn.Module, Tensor, int], list[Outputs]]
Made = TypeVar("Made", bound=Callable[..., nn.Module])

STEPS = 6
"""A number of timesteps of the module, as scripts have it; two models read it."""

# -- references -----------------------------------------------------------------------------------------------------


def own(model: nn.Module, x: Tensor, timesteps: int) -> Any:
    """The model's own answer. One that takes T as an argument without a default is given it."""
    parameters = list(inspect.signature(model.forward).parameters.values())
    required = [parameter for parameter in parameters[1:] if parameter.default is parameter.empty]
    return model(x, *[timesteps] * len(required))


def as_outputs(answer: Any) -> Outputs:
    return tuple(answer) if isinstance(answer, tuple | list) else (answer,)


def all_steps(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The model returns every timestep, on dimension 0."""
    outputs = as_outputs(own(model, x, timesteps))
    return [tuple(output[t] for output in outputs) for t in range(timesteps)]


def all_steps_second(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The model returns every timestep, on dimension 1: ``[N, T, ...]``."""
    outputs = as_outputs(own(model, x, timesteps))
    return [tuple(output[:, t] for output in outputs) for t in range(timesteps)]


def shorter_attribute(name: str = "num_steps", divides: bool = False) -> Prefix:
    """The model runs as many timesteps as an attribute says: set it to t.

    Args:
        divides: the epilogue averages over a record of the full length, which a loop that is stopped leaves unfilled:
            what the model made of t timesteps is then a t-th part of a sum, and must be a T-th part.
    """

    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        answers = []
        for t in range(1, timesteps + 1):
            with replaced(model, name, t):
                outputs = as_outputs(model(x))
            answers.append(tuple(output * (t / timesteps) for output in outputs) if divides else outputs)
        return answers

    return prefix


def shorter_list(name: str) -> Prefix:
    """The model runs one timestep for each item of a list in an attribute: cut the list."""

    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        answers = []
        for t in range(1, timesteps + 1):
            with replaced(model, name, getattr(model, name)[:t]):
                answers.append(as_outputs(model(x)))
        return answers

    return prefix


def shorter_global(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The model runs ``STEPS`` timesteps."""
    scope = globals()
    answers = []
    try:
        for t in range(1, timesteps + 1):
            scope["STEPS"] = t
            answers.append(as_outputs(model(x)))
    finally:
        scope["STEPS"] = timesteps
    return answers


def shorter_argument(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
    """The model takes T as its second argument."""
    return [as_outputs(model(x, t)) for t in range(1, timesteps + 1)]


def fewer_frames(time_dim: int = 0) -> Prefix:
    """The model runs over the frames of its input and sees each in its own timestep only: give it t of them."""

    def prefix(model: nn.Module, x: Tensor, timesteps: int) -> list[Outputs]:
        return [as_outputs(model(x.narrow(time_dim, 0, t))) for t in range(1, timesteps + 1)]

    return prefix


@contextmanager
def replaced(model: nn.Module, name: str, value: Any) -> Iterator[None]:
    kept = getattr(model, name)
    setattr(model, name, value)
    try:
        yield
    finally:
        setattr(model, name, kept)


# -- entries --------------------------------------------------------------------------------------------------------

ENTRIES: list[Entry] = []
RANDOM_ENCODERS: list[Entry] = []
"""Models that draw their input spikes in ``forward``. A reference holds under the seed that the caller has set."""


def uniform(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    return torch.rand(shape, generator=generator)


def events(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Frames of an event camera: mostly nothing."""
    return (torch.rand(shape, generator=generator) < 0.35).float()


def smooth(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Slow signals ``[T, N, ...]`` in [0, 1], whose changes an encoder can look for."""
    phase, pace = torch.rand(shape[1:], generator=generator), torch.rand(shape[1:], generator=generator)
    t = torch.arange(shape[0]).view(-1, *[1] * (len(shape) - 1))
    return 0.5 + 0.5 * torch.sin(6.28 * phase + (0.4 + 1.6 * pace) * t)


SUMMED = {"readout": "sum", "readout_asked": "sum"}
AVERAGED = {"readout": "mean", "readout_asked": "mean"}
AS_IT_IS = {"readout": "last", "readout_asked": "last"}
FRAMES = {"sequence": True, "refillable": False}  # all rows look at the same frame
BATCH_FIRST = {**FRAMES, "time_dim": 1}
EVENTS = {**FRAMES, "sample": events}
CLOCKED = {"refillable": False}  # all rows are in the same step


def entry(
    row: int | tuple[int, ...],
    timesteps: int,
    prefix: Prefix,
    neurons: str = "lif1 lif2",
    layers: str = "fc1 lif1 fc2 lif2",
    *,
    args: tuple[Any, ...] = (),
    quantile: float = 0.7,
    seed: int = 0,
    to: list[Entry] = ENTRIES,
    **rest: Any,
) -> Callable[[Made], Made]:
    """Enter a class, or a function that makes a model, under the first line of its docstring.

    Args:
        row: shape of one row, or a number of features.
        neurons, layers: names with a space between them; by default those of :class:`TwoLayers`.
        args: of the class or function.
        quantile: how much of the membrane potentials lies under the thresholds, about.
        seed: of the weights.
    """
    shape = (row,) if isinstance(row, int) else row
    sequence, time_dim = rest.get("sequence", False), rest.get("time_dim", 0)
    sample = rest.setdefault("sample", uniform)

    def enter(make: Made) -> Made:
        def build() -> nn.Module:
            x = sample((timesteps, 16, *shape) if sequence else (16, *shape), torch.Generator().manual_seed(seed + 1))
            with torch.random.fork_rng(devices=[]):  # the caller's random numbers are the caller's
                torch.manual_seed(seed)
                model = make(*args).eval()
                make_fire(
                    [model.get_submodule(name) for name in neurons.split()],
                    lambda: own(model, x.transpose(0, time_dim) if sequence else x, timesteps),
                    quantile,
                )
            return model

        name = (make.__doc__ or "").partition("\n")[0].rstrip(".")
        to.append(Entry(name, build, shape, timesteps, prefix, tuple(neurons.split()), tuple(layers.split()), **rest))
        return make

    return enter


def make_fire(neurons: Sequence[nn.Module], run: Callable[[], Any], quantile: float) -> None:
    """Set the thresholds, neuron by neuron, at a quantile of the membrane potentials that the input leads to.

    What the runs leave in the neurons is left there: a model that comes to the library has been run by its owner, on
    batches of another size.
    """
    for neuron in neurons:
        if isinstance(neuron, snn.DeltaLeaky):
            continue  # it has another threshold, of its own
        seen: list[Tensor] = []
        neuron.threshold = torch.full_like(neuron.threshold, 1e6)
        handle = neuron.register_forward_hook(lambda module, *_, seen=seen: seen.append(module.mem.detach().flatten()))
        with torch.no_grad():
            run()
        handle.remove()
        level = float(torch.cat(seen).double().quantile(quantile))
        neuron.threshold = torch.full_like(neuron.threshold, max(level, 1e-2))


# -- fully connected networks: where T comes from -------------------------------------------------------------------


class TwoLayers(nn.Module):
    """What most of the fully connected models are made of; each writes its own ``forward``."""

    def __init__(
        self,
        features: int = 12,
        hidden: int = 10,
        classes: int = 4,
        beta: float = 0.9,
        steps: int = 6,
        init_hidden: bool = False,
    ) -> None:
        super().__init__()
        self.num_steps = steps
        self.hidden = hidden
        self.classes = classes
        self.fc1 = nn.Linear(features, hidden)
        self.lif1 = snn.Leaky(beta=beta, init_hidden=init_hidden)
        self.fc2 = nn.Linear(hidden, classes)
        self.lif2 = snn.Leaky(beta=beta, init_hidden=init_hidden)


@entry(12, 6, all_steps, **SUMMED)
class StackedRecords(TwoLayers):
    """T in an attribute, all spikes and membranes."""

    def forward(self, x):
        # Initialise the membranes
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()

        # What the last layer does
        spk2_rec = []
        mem2_rec = []

        for step in range(self.num_steps):
            cur1 = self.fc1(x)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = self.fc2(spk1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)

        return torch.stack(spk2_rec, dim=0), torch.stack(mem2_rec, dim=0)


@entry(20, 7, all_steps, "lif_in lif_mid lif_out", "fc_in lif_in fc_mid lif_mid fc_out lif_out", seed=1, **AVERAGED)
class ThreeLayers(nn.Module):
    """Three layers, one name for all spikes."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 7
        self.fc_in = nn.Linear(20, 14)
        self.lif_in = snn.Leaky(beta=0.85, learn_beta=True, spike_grad=surrogate.fast_sigmoid(slope=25))
        self.fc_mid = nn.Linear(14, 9)
        self.lif_mid = snn.Leaky(beta=torch.linspace(0.5, 0.95, 9), reset_mechanism="zero")
        self.fc_out = nn.Linear(9, 5, bias=False)
        self.lif_out = snn.Leaky(beta=0.95, reset_delay=False)

    def forward(self, x):
        u_in = self.lif_in.reset_mem()
        u_mid = self.lif_mid.reset_mem()
        u_out = self.lif_out.reset_mem()
        record = []
        for _ in range(0, self.T, 1):
            s, u_in = self.lif_in(self.fc_in(x), u_in)
            s, u_mid = self.lif_mid(self.fc_mid(s), u_mid)
            s, u_out = self.lif_out(self.fc_out(s), u_out)
            record.append(s)
        return torch.stack(record)


@entry(9, STEPS, all_steps, args=(9, 11, 3, 0.8), **AVERAGED)
class GlobalT(TwoLayers):
    """T in a global, all membranes."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        mem2_rec = []
        for _ in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            mem2_rec.append(mem2)
        return torch.stack(mem2_rec, 0)


@entry(16, STEPS, shorter_global, args=(16, 12, 5, 0.7), **CLOCKED)
class GlobalTCount(TwoLayers):
    """T in a global, spikes summed."""

    def forward(self, x):
        """How often each class spiked."""
        mem1 = self.lif1.reset_mem()
        mem2 = self.lif2.reset_mem()
        spikes = []
        for step in range(STEPS):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes += [spk2]
        return torch.stack(spikes).sum(0)


@entry(10, 7, all_steps, args=(10, 8, 4, 0.95), seed=2, **SUMMED)
class LiteralT(TwoLayers):
    """T written as a number, records under one name."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for _ in range(7):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        spk_rec = torch.stack(spk_rec, dim=0)
        mem_rec = torch.stack(mem_rec, dim=0)
        return spk_rec, mem_rec


def literal_rate(model: LiteralTRate, x: Tensor, timesteps: int) -> list[Outputs]:
    mem1, mem2 = model.lif1.reset_mem(), model.lif2.reset_mem()
    count, answers = torch.zeros(x.size(0), 3), []
    for _ in range(timesteps):
        spk1, mem1 = model.lif1(model.fc1(x), mem1)
        spk2, mem2 = model.lif2(model.fc2(spk1), mem2)
        count = count + spk2
        answers.append((count / 5,))
    return answers


@entry(14, 5, literal_rate, args=(14, 10, 3, 0.9))
class LiteralTRate(TwoLayers):
    """T written as a number, a rate that grows."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        rate = torch.zeros(x.size(0), 3)
        for _ in range(5):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rate = rate + spk2 / 5
        return rate


@entry(8, 8, all_steps, args=(8, 12, 4, 0.85), **SUMMED)
class ArgumentT(TwoLayers):
    """T as an argument."""

    def forward(self, x, num_steps):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk2_rec, mem2_rec = [], []
        for step in range(num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(mem2_rec)


@entry(18, 6, shorter_argument, args=(18, 9, 5, 0.8))
class ArgumentTDefault(TwoLayers):
    """T as an argument with a default, type hints, mean membrane."""

    def forward(self, x: Tensor, num_steps: int = 6) -> Tensor:
        mem1: Tensor = self.lif1.init_leaky()
        mem2: Tensor = self.lif2.init_leaky()
        rec: list[Tensor] = []
        for _ in range(num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec).mean(dim=0)


@entry(12, 5, shorter_list("gains"), args=(12, 10, 4, 0.9), **CLOCKED)
class OneStepPerGain(TwoLayers):
    """T is the length of a list that the steps read."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.gains = [1.0, 0.8, 1.3, 0.6, 1.1]

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        total = 0
        for t in range(len(self.gains)):
            spk1, mem1 = self.lif1(self.gains[t] * self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + spk2
        return total


@entry(15, 5, all_steps_second, args=(15, 13, 3, 0.75), seed=1, **SUMMED)
class OneStepPerName(TwoLayers):
    """T is the length of a class attribute, time on dimension 1."""

    phases = ("rest", "look", "look again", "think", "answer")

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for _ in range(len(self.phases)):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out, dim=1)


@entry(11, 6, all_steps_second, args=(6,), seed=1, **AVERAGED)
def with_steps(steps: int) -> nn.Module:
    """T in a closure, time on dimension 1.

    A class made in a function: T is in its closure.
    """
    base = 0.82

    class Closure(TwoLayers):
        def forward(self, x):
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            voltages, spikes = [], []
            for _ in range(steps):
                spk1, mem1 = self.lif1(self.fc1(x), mem1)
                spk2, mem2 = self.lif2(base * self.fc2(spk1), mem2)
                spikes.append(spk2)
                voltages.append(mem2)
            return torch.stack(spikes, 1), torch.stack(voltages, 1)

    return Closure(11, 10, 4, 0.9)


# -- convolutions ---------------------------------------------------------------------------------------------------


class ConvNet(nn.Module):
    def __init__(
        self, channels: int = 4, classes: int = 4, beta: float = 0.85, steps: int = 5, init_hidden: bool = False
    ) -> None:
        super().__init__()
        self.num_steps = steps
        self.conv1 = nn.Conv2d(1, channels, 3, padding=1)
        self.lif1 = snn.Leaky(beta=beta, init_hidden=init_hidden)
        self.conv2 = nn.Conv2d(channels, channels + 2, 3, padding=1)
        self.lif2 = snn.Leaky(beta=beta, init_hidden=init_hidden)
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(channels + 2, classes)
        self.lif3 = snn.Leaky(beta=beta, init_hidden=init_hidden)


CONV_NEURONS = "lif1 lif2 lif3"

CONV_LAYERS = "conv1 lif1 conv2 lif2 fc lif3"


@entry((1, 6, 6), 5, all_steps, CONV_NEURONS, CONV_LAYERS, seed=2, **SUMMED)
class ConvView(ConvNet):
    """Conv, view with the batch size of the prologue."""

    def forward(self, x):
        batch_size = x.size(0)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        spk3_rec = []
        mem3_rec = []

        for step in range(self.num_steps):
            cur1 = F.max_pool2d(self.conv1(x), 2)
            spk1, mem1 = self.lif1(cur1, mem1)
            cur2 = F.max_pool2d(self.conv2(spk1), 3)
            spk2, mem2 = self.lif2(cur2, mem2)
            cur3 = self.fc(spk2.view(batch_size, -1))
            spk3, mem3 = self.lif3(cur3, mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)

        return torch.stack(spk3_rec, dim=0), torch.stack(mem3_rec, dim=0)


@entry((2, 6, 6), 6, shorter_argument, "act act_out", "features features.0 features.1 act drop head act_out", seed=1)
class ConvFlatten(nn.Module):
    """Conv with batch norm and dropout, flatten, mean rate."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.AvgPool2d(2))
        self.norm = self.features[1]
        nn.init.uniform_(self.norm.weight, 0.5, 1.5)
        nn.init.uniform_(self.norm.running_mean, -0.1, 0.1)
        self.act = snn.Leaky(beta=0.8, spike_grad=surrogate.atan())
        self.drop = nn.Dropout(0.4)
        self.head = nn.Linear(4 * 9, 5)
        self.act_out = snn.Leaky(beta=0.9)

    def forward(self, x, steps=6):
        mem = self.act.init_leaky()
        mem_out = self.act_out.init_leaky()
        logits = []
        for _ in range(steps):
            spk, mem = self.act(self.features(x), mem)
            spk_out, mem_out = self.act_out(self.head(self.drop(spk).flatten(1)), mem_out)
            logits.append(spk_out)
        return torch.stack(logits).mean(0)


@entry((1, 6, 6), 6, shorter_attribute(), CONV_NEURONS, CONV_LAYERS, args=(3, 3, 0.9, 6), seed=2)
class ConvUnpackedShape(ConvNet):
    """Conv, sizes from an unpacked shape, epilogue with the batch size."""

    def forward(self, x):
        n, c, h, w = x.shape
        mem1 = torch.zeros(n, 3, h // 2, w // 2)
        mem2 = torch.zeros(n, 5, 1, 1)
        mem3 = torch.zeros(n, 3)
        votes = x.new_zeros(n, 3)
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.pool(self.conv1(x)), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.reshape(n, -1)), mem3)
            votes += spk3
        return votes.view(n, -1)


@entry((1, 6, 6), 4, all_steps, CONV_NEURONS, CONV_LAYERS, args=(5, 4, 0.8, 4), seed=2, **SUMMED)
class ConvSizeInside(ConvNet):
    """Conv, a record of pairs."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        mem3 = self.lif3.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.pool(self.conv1(x)), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            flat = spk2.view(spk2.size(0), -1)
            spk3, mem3 = self.lif3(self.fc(flat), mem3)
            rec.append((spk3, mem3))
        spikes = torch.stack([spk for spk, _ in rec])
        voltages = torch.stack([mem for _, mem in rec])
        return spikes, voltages


# -- neurons that keep their states ---------------------------------------------------------------------------------


@entry(12, 6, all_steps, "net.1 net.3 net.5", "net net.0 net.1 net.3 net.5", **SUMMED)
class HiddenSequential(nn.Module):
    """Hidden states in a Sequential, reset in a loop of the prologue."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.net = nn.Sequential(
            nn.Linear(12, 10),
            snn.Leaky(beta=0.9, init_hidden=True),
            nn.Linear(10, 8),
            snn.Leaky(beta=0.8, init_hidden=True),
            nn.Linear(8, 4),
            snn.Leaky(beta=0.95, init_hidden=True, output=True),
        )

    def forward(self, x):
        for layer in self.net:  # not over time
            if isinstance(layer, snn.Leaky):
                layer.reset_mem()
        spk_rec = []
        for step in range(self.num_steps):
            spk_out, mem_out = self.net(x)
            spk_rec.append(spk_out)
        return torch.stack(spk_rec)


@entry(10, 7, shorter_attribute(), args=(10, 12, 4, 0.85, 7, True), **CLOCKED)
class HiddenNamed(TwoLayers):
    """Hidden states, rate in place."""

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        out = torch.zeros(x.shape[0], self.classes, device=x.device)
        for _ in range(self.num_steps):
            out += self.lif2(self.fc2(self.lif1(self.fc1(x))))
        return out / self.num_steps


@entry((1, 6, 6), 5, all_steps, CONV_NEURONS, CONV_LAYERS, args=(4, 4, 0.8, 5, True), **SUMMED, **EVENTS)
class HiddenConvSequence(ConvNet):
    """Hidden states, conv, event frames by index."""

    def forward(self, x):
        for module in self.modules():
            if hasattr(module, "reset_mem"):
                module.reset_mem()
        rec = []
        for step in range(x.size(0)):
            x_step = self.pool(self.lif1(self.conv1(x[step])))
            x_step = self.pool(self.lif2(self.conv2(x_step)))
            x_step = self.lif3(self.fc(x_step.flatten(1)))
            rec.append(x_step)
        return torch.stack(rec)


# -- lists and dictionaries of states -------------------------------------------------------------------------------


def list_prefix(model: MembraneList, x: Tensor, timesteps: int) -> list[Outputs]:
    """Of two answers the first has all timesteps and the second the last one only."""
    spikes = model(x)[0]
    answers = []
    for t in range(1, timesteps + 1):
        with replaced(model, "num_steps", t):
            answers.append((spikes[t - 1], model(x)[1]))
    return answers


@entry(12, 6, list_prefix, "lifs.0 lifs.1 lifs.2", "fcs.0 lifs.0 fcs.1 lifs.1 fcs.2 lifs.2", **SUMMED)
class MembraneList(nn.Module):
    """Membranes in a list, replaced by index, last membrane beside all spikes."""

    def __init__(self, sizes: tuple[int, ...] = (12, 10, 8, 4)) -> None:
        super().__init__()
        self.num_steps = 6
        self.fcs = nn.ModuleList(nn.Linear(a, b) for a, b in zip(sizes, sizes[1:], strict=False))
        self.lifs = nn.ModuleList(snn.Leaky(beta=0.9 - 0.05 * i) for i in range(len(sizes) - 1))

    def forward(self, x):
        mems = [lif.init_leaky() for lif in self.lifs]
        spk_rec = []
        for _ in range(self.num_steps):
            spk = x
            for i in range(len(self.lifs)):
                spk, mems[i] = self.lifs[i](self.fcs[i](spk), mems[i])
            spk_rec.append(spk)
        return torch.stack(spk_rec), mems[-1]


@entry(16, 5, shorter_attribute("T"), "neurons.0 neurons.1", "layers.0 neurons.0 layers.1 neurons.1")
class ZippedLayers(nn.Module):
    """Layers and neurons zipped, list of states, accumulator that starts as a float."""

    def __init__(self) -> None:
        super().__init__()
        self.T = 5
        self.layers = nn.ModuleList([nn.Linear(16, 9), nn.Linear(9, 5)])
        self.neurons = nn.ModuleList([snn.Leaky(0.7), snn.Leaky(0.9)])

    def forward(self, x):
        potentials = [neuron.reset_mem() for neuron in self.neurons]
        summed = 0.0
        for t in range(self.T):
            h = x
            for i, (layer, neuron) in enumerate(zip(self.layers, self.neurons, strict=True)):
                h, potentials[i] = neuron(layer(h), potentials[i])
            summed = summed + h
        return summed


@entry(8, 6, shorter_attribute(), "lifs.0 lifs.1", "fcs.0 lifs.0 fcs.1 lifs.1", args=((8, 9, 3),), seed=3, **CLOCKED)
class RebuiltList(MembraneList):
    """A tuple of states rebuilt in every step."""

    def forward(self, x):
        states = tuple(lif.init_leaky() for lif in self.lifs)
        out = []
        for _ in range(self.num_steps):
            fresh = []
            h = x
            for fc, lif, mem in zip(self.fcs, self.lifs, states, strict=True):
                h, mem = lif(fc(h), mem)
                fresh.append(mem)
            states = tuple(fresh)
            out = out + [h]
        return torch.stack(out).sum(dim=0)


@entry(
    10,
    7,
    all_steps,
    "cells.hidden cells.out",
    "weights.hidden cells.hidden weights.out cells.out",
    seed=3,
    **AVERAGED,
    **CLOCKED,
)
class StateDict(nn.Module):
    """States and records in dictionaries, ModuleDict."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 7
        self.weights = nn.ModuleDict({"hidden": nn.Linear(10, 12), "out": nn.Linear(12, 4)})
        self.cells = nn.ModuleDict({"hidden": snn.Leaky(beta=0.8), "out": snn.Leaky(beta=0.9)})

    def forward(self, x):
        state = {name: cell.init_leaky() for name, cell in self.cells.items()}
        record = {"spk": [], "mem": []}
        for _ in range(self.num_steps):
            h = x
            for name in self.cells:
                h, state[name] = self.cells[name](self.weights[name](h), state[name])
            record["spk"].append(h)
            record["mem"].append(state["out"])
        return torch.stack(record["spk"]), torch.stack(record["mem"])


@entry(9, 5, shorter_attribute(), args=(9, 10, 5, 0.9, 5))
class LiteralStateDict(TwoLayers):
    """A dictionary of states and a count."""

    def forward(self, x):
        s = dict(m1=self.lif1.init_leaky(), m2=self.lif2.init_leaky(), count=0)  # noqa: C408
        for _ in range(self.num_steps):
            spk1, s["m1"] = self.lif1(self.fc1(x), s["m1"])
            spk2, s["m2"] = self.lif2(self.fc2(spk1), s["m2"])
            s["count"] = s["count"] + spk2
        return s["count"] + 0.1 * s["m2"]


# -- one answer for all timesteps -----------------------------------------------------------------------------------


@entry(12, 8, shorter_attribute(), args=(12, 10, 4, 0.8, 8))
class RateMean(TwoLayers):
    """Mean rate."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec, dim=0).mean(dim=0)


@entry(12, 5, shorter_attribute(), args=(12, 14, 5, 0.95, 5))
class LastOfStack(TwoLayers):
    """Last of a stack of membranes."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)[-1]


@entry(7, 7, shorter_attribute(), args=(7, 10, 3, 0.9, 7))
class LastOfList(TwoLayers):
    """Last of a list."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk2_rec.append(spk2 + mem2)
        return spk2_rec[-1]


@entry(20, 6, shorter_attribute(), args=(20, 10, 4, 0.9), **CLOCKED)
class HighestMembrane(TwoLayers):
    """Log-softmax of the highest membrane."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        mem_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            _, mem2 = self.lif2(self.fc2(spk1), mem2)
            mem_rec.append(mem2)
        return F.log_softmax(torch.stack(mem_rec).max(0)[0], dim=1)


@entry((1, 6, 6), 6, shorter_attribute(), CONV_NEURONS, CONV_LAYERS, args=(4, 5, 0.9, 6))
class HighestValues(ConvNet):
    """Conv, highest membrane by name."""

    def forward(self, x):
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        seen = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.pool(self.conv1(x)), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            seen.append(mem3)
        best = torch.stack(seen).max(dim=0)
        return best.values


@entry(12, 5, shorter_attribute(), args=(12, 16, 3, 0.85, 5), seed=2)
class PythonSum(TwoLayers):
    """Sum of a list by T."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spikes = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spikes.append(spk2)
        return sum(spikes) / self.num_steps


@entry((1, 6, 6), 6, shorter_attribute(), CONV_NEURONS, CONV_LAYERS, args=(4, 3, 0.8, 6), seed=4)
class PythonSumConv(ConvNet):
    """Conv, sum of a list by its length."""

    def forward(self, x):
        mem1, mem2, mem3 = [lif.init_leaky() for lif in (self.lif1, self.lif2, self.lif3)]
        outs = []
        for _ in range(self.num_steps):
            h, mem1 = self.lif1(self.pool(self.conv1(x)), mem1)
            h, mem2 = self.lif2(self.pool(self.conv2(h)), mem2)
            h, mem3 = self.lif3(self.fc(torch.flatten(h, 1)), mem3)
            outs.append(h)
        return sum(outs) / len(outs)


@entry(11, 8, shorter_attribute(), args=(11, 9, 4, 0.9, 8))
class FromIntZero(TwoLayers):
    """Accumulator that starts as an int."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        out = 0
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + spk2
        return out


@entry(13, 6, shorter_attribute(), args=(13, 9, 5, 0.8, 6), seed=1)
class FromNone(TwoLayers):
    """Accumulator that starts as None."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        out = None
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            if out is None:
                out = spk2
            else:
                out = out + spk2
        return out


@entry(12, 6, shorter_attribute(), args=(12, 12, 4, 0.9), seed=1, **CLOCKED)
class SoftmaxOfMean(TwoLayers):
    """Softmax of the mean rate."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.softmax(torch.stack(rec).mean(0), dim=-1)


@entry(16, 7, shorter_attribute(), "lif1", "fc1 lif1 fc2", args=(16, 20, 5, 0.8, 7), **CLOCKED)
class SoftmaxOfMeanCurrent(TwoLayers):
    """Softmax of the mean current, no output neuron."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        del self.lif2

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        currents = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            currents.append(self.fc2(spk1))
        averaged = torch.stack(currents, dim=1).mean(dim=1)
        return F.softmax(4 * averaged, dim=1)


@entry(14, 6, shorter_attribute(), "lif1 lif2", "embed lif1 mix lif2")
class HeadOnRate(nn.Module):
    """A last linear layer on the mean rate."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.embed = nn.Linear(14, 12)
        self.lif1 = snn.Leaky(beta=0.8)
        self.mix = nn.Linear(12, 10)
        self.lif2 = snn.Leaky(beta=0.8)
        self.head = nn.Linear(10, 4)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        hidden = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.embed(x), mem1)
            spk2, mem2 = self.lif2(self.mix(spk1), mem2)
            hidden.append(spk2)
        rate = torch.stack(hidden).mean(0)
        return self.head(rate)


@entry((1, 6, 6), 5, shorter_attribute(), "spike", "stem spike", **CLOCKED)
class HeadOnSumConv(nn.Module):
    """Conv, a nonlinear head on a sum by T."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.stem = nn.Conv2d(1, 4, 3)
        self.spike = snn.Leaky(beta=0.85)
        self.head = nn.Sequential(nn.LayerNorm(4), nn.Linear(4, 3))

    def forward(self, x):
        mem = self.spike.init_leaky()
        pooled = 0
        for _ in range(self.num_steps):
            spk, mem = self.spike(self.stem(x), mem)
            pooled = pooled + spk.mean(dim=(2, 3))
        features = pooled / self.num_steps
        return self.head(features)


@entry(12, 6, shorter_attribute(), args=(12, 12, 4, 0.9, 6), **CLOCKED)
class AttentionOverRecord(TwoLayers):
    """Attention over the record in the epilogue.

    The epilogue weighs the timesteps that there are: nothing that can be added up step by step.
    """

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.score = nn.Linear(self.classes, 1)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        rec = torch.stack(rec)
        weight = torch.softmax(10 * self.score(rec), dim=0)
        return (weight * rec).sum(0)


@entry(10, 7, fewer_frames(), args=(10, 12, 3, 0.9), **FRAMES)
class MedianOfRecord(TwoLayers):
    """Median of the record in the epilogue, sequence."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for frame in x:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec).median(dim=0).values


@entry(12, 6, shorter_attribute(), args=(12, 10, 4, 0.9))
class LastMembrane(TwoLayers):
    """Last membrane, nothing recorded."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2


# The prologue calls the linear layers once more, for a shape: they are not counted.
@entry(10, 7, shorter_attribute(), "lif1 lif2", "lif1 lif2", args=(10, 11, 5, 0.9, 7), seed=1)
class LastSpikesAndCount(TwoLayers):
    """A count and the last membrane."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        count = torch.zeros_like(self.fc2(self.fc1(x)))
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            count = torch.add(count, spk2)
        return count, mem2


# -- time on an axis of the input -----------------------------------------------------------------------------------


@entry(12, 6, all_steps, args=(12, 10, 4, 0.9), **SUMMED, **FRAMES)
class FramesByIndex(TwoLayers):
    """Frames by index."""

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


@entry((1, 6, 6), 5, fewer_frames(), CONV_NEURONS, CONV_LAYERS, args=(4, 4, 0.8), seed=3, **EVENTS)
class FramesByIndexConv(ConvNet):
    """Conv frames by index, votes by the length of the sequence."""

    def forward(self, data):
        steps, batch = data.shape[0], data.shape[1]
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        votes = 0
        for step in range(steps):
            spk1, mem1 = self.lif1(self.pool(self.conv1(data[step])), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.view(batch, -1)), mem3)
            votes = votes + spk3
        return votes / steps


@entry(9, 7, all_steps_second, args=(9, 12, 4, 0.9), **AVERAGED, **BATCH_FIRST)
class BatchFirst(TwoLayers):
    """Batch first, frames by index."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for t in range(x.size(1)):
            spk1, mem1 = self.lif1(self.fc1(x[:, t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out, dim=1)


@entry((1, 6, 6), 4, fewer_frames(1), CONV_NEURONS, CONV_LAYERS, args=(3, 4, 0.9), seed=10, **EVENTS, time_dim=1)
class BatchFirstConv(ConvNet):
    """Batch first, conv frames by slices, count."""

    def forward(self, x):
        num_steps = x.size()[1]
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        spk3_rec = []
        for step in range(num_steps):
            x_step = x[:, step, :, :, :]
            spk1, mem1 = self.lif1(self.pool(self.conv1(x_step)), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            spk3_rec.append(spk3)
        return torch.stack(spk3_rec).sum(0)


@entry(12, 6, fewer_frames(), args=(12, 8, 3, 0.8), seed=1, **FRAMES)
class EnumeratedFrames(TwoLayers):
    """Frames enumerated, mean membrane."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step, frame in enumerate(x):
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec).mean(0)


@entry(10, 6, fewer_frames(1), args=(10, 12, 4, 0.9), **BATCH_FIRST)
class EnumeratedUnbound(TwoLayers):
    """Frames unbound and enumerated from 1, early spikes weigh more."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        weighted = torch.zeros(x.shape[0], self.classes)
        for t, frame in enumerate(torch.unbind(x, dim=1), start=1):
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            weighted = weighted + spk2 / t
        return weighted


@entry((2, 3, 3), 8, all_steps, args=(18, 12, 5, 0.85), **SUMMED, **EVENTS)
class EachFrame(TwoLayers):
    """Each frame in turn."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for frame in x:
            spk1, mem1 = self.lif1(self.fc1(frame.flatten(1)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@entry(8, 6, fewer_frames(1), args=(8, 10, 4, 0.95), **BATCH_FIRST)
class UnboundFrames(TwoLayers):
    """Frames unbound, last membrane."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        for frame in x.unbind(1):
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2


@entry(12, 5, all_steps, args=(12, 12, 4, 0.9), **SUMMED, **BATCH_FIRST)
class Transposed(TwoLayers):
    """Transposed in the prologue."""

    def forward(self, x):
        x = x.transpose(0, 1)  # time first
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec, 0)


@entry(10, 6, all_steps_second, args=(10, 10, 3, 0.8), **SUMMED, **BATCH_FIRST)
class Permuted(TwoLayers):
    """Permuted in the prologue and back in the epilogue."""

    def forward(self, x):
        frames = x.permute(1, 0, 2).contiguous()
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for frame in frames:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        out = torch.stack(rec)
        return out.permute(1, 0, 2)


@entry(12, 6, all_steps, args=(12, 12, 4, 0.9), **SUMMED, **FRAMES)
class Preallocated(TwoLayers):
    """A record made in advance and written in place."""

    def forward(self, x):
        steps, n = x.shape[:2]
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = torch.zeros(steps, n, self.classes)
        for t in range(steps):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec[t] = spk2
        return rec


# Rows of the record that were not reached stay zero, and the mean is over T of them.
@entry(14, 7, shorter_attribute(divides=True), args=(14, 9, 4, 0.9, 7), **CLOCKED)
class PreallocatedStatic(TwoLayers):
    """A record made in advance, its mean, static input."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = torch.zeros((self.num_steps, x.size(0), self.classes), dtype=x.dtype)
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec[step, :, :] = spk2
        return rec.mean(0)


@entry((2, 4, 4), 6, all_steps, "lif1 lif2", "lif1 fc lif2", **SUMMED, **EVENTS)
class ConvOnAllFrames(nn.Module):
    """Conv on all frames before the loop."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3)
        self.lif1 = snn.Leaky(beta=0.8)
        self.fc = nn.Linear(4 * 4, 4)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x):
        t, n = x.size(0), x.size(1)
        maps = self.conv(x.flatten(0, 1))
        maps = maps.view(t, n, *maps.shape[1:])
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(t):
            spk1, mem1 = self.lif1(maps[step], mem1)
            spk2, mem2 = self.lif2(self.fc(spk1.flatten(1)), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@entry(12, 5, fewer_frames(1), "lif1 lif2", "lif1 fc2 lif2", args=(12, 12, 5, 0.9), seed=1, **BATCH_FIRST)
class LinearOnAllFrames(TwoLayers):
    """A linear layer on all frames before the loop, batch first."""

    def forward(self, x):
        n, t, f = x.shape
        currents = F.relu(self.fc1(x.reshape(n * t, f))).reshape(n, t, -1)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        score = torch.zeros(n, self.classes)
        for step in range(t):
            spk1, mem1 = self.lif1(currents[:, step], mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            score = score + mem2
        return score


# -- states in loop locals ------------------------------------------------------------------------------------------


@entry(10, 8, all_steps, "lif1 lif2", "fc1 rec lif1 fc2 lif2", args=(10, 14, 4, 0.85, 8), **SUMMED)
class RecurrentSpikes(TwoLayers):
    """Recurrent spikes fed back."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.rec = nn.Linear(self.hidden, self.hidden)

    def forward(self, x):
        spk1 = torch.zeros(x.size(0), self.hidden)
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        out = []
        for _ in range(self.num_steps):
            cur1 = self.fc1(x) + self.rec(spk1)
            spk1, mem1 = self.lif1(cur1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out.append(spk2)
        return torch.stack(out)


@entry(12, 7, fewer_frames(), "lif1 lif2", "fc1 back lif1 fc2 lif2", args=(12, 12, 4, 0.9), **FRAMES)
class FeedbackFromOutput(TwoLayers):
    """Output spikes fed back, sequence."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.back = nn.Linear(self.classes, self.hidden, bias=False)

    def forward(self, x):
        batch = x.shape[1]
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2 = x.new_zeros((batch, self.classes))
        total = torch.zeros_like(spk2)
        for t in range(len(x)):
            spk1, mem1 = self.lif1(self.fc1(x[t]) - 2 * self.back(spk2), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total += spk2
        return total


@entry(10, 7, all_steps, "lif lif_out", "encode mix lif head lif_out", **SUMMED, **FRAMES)
class DelayLine(nn.Module):
    """A memory cell of a matrix, written by hand.

    A hand-written memory of the recent past: a linear system of a few states for each unit, read by neurons.
    """

    def __init__(self, features: int = 10, units: int = 3, order: int = 4, window: float = 4.0) -> None:
        super().__init__()
        i = torch.arange(order)
        scale = (2.0 * i + 1)[:, None] / window
        sign = torch.where(i[:, None] < i[None, :], -1.0, (-1.0) ** (i[:, None] - i[None, :] + 1))
        self.register_buffer("a", torch.linalg.matrix_exp(scale * sign))
        self.register_buffer("b", (scale * (-1.0) ** i[:, None])[:, 0] * 0.5)
        self.encode = nn.Linear(features, units)
        self.mix = nn.Linear(units * order, 12)
        self.lif = snn.Leaky(beta=0.7)
        self.head = nn.Linear(12, 4)
        self.lif_out = snn.Leaky(beta=0.9)
        self.units, self.order = units, order

    def forward(self, x):
        memory = torch.zeros(x.size(1), self.units, self.order)
        mem, mem_out = self.lif.init_leaky(), self.lif_out.init_leaky()
        record = []
        for t in range(x.size(0)):
            u = self.encode(x[t])
            memory = memory @ self.a.T + u.unsqueeze(-1) * self.b
            spk, mem = self.lif(self.mix(memory.flatten(1)), mem)
            spk_out, mem_out = self.lif_out(self.head(spk), mem_out)
            record.append(spk_out)
        return torch.stack(record)


@entry(9, 6, shorter_attribute(), "encode out", "read drive encode head out")
class SpikingDelayLine(nn.Module):
    """Spikes in a delay line that is written in place and fed back.

    Spikes go into the memory, and what the memory says goes back into the neurons.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.shift = nn.Parameter(torch.eye(5).roll(1, 0) * 0.9, requires_grad=False)
        self.drive = nn.Linear(9, 8)
        self.encode = snn.Leaky(beta=0.8)
        self.read = nn.Linear(8 * 5, 8)
        self.head = nn.Linear(8, 3)
        self.out = snn.Leaky(beta=0.9)

    def forward(self, x):
        n = x.size(0)
        memory = torch.zeros(n, 8, 5)
        mem = torch.zeros(n, 8)
        mem_out = torch.zeros(n, 3)
        answers = 0
        for _ in range(self.num_steps):
            echo = torch.tanh(self.read(memory.reshape(n, 40)))
            spk, mem = self.encode(self.drive(x) + echo, mem)
            memory = torch.einsum("nuo,po->nup", memory, self.shift)
            memory[:, :, 0] += spk
            spk_out, mem_out = self.out(self.head(spk), mem_out)
            answers = answers + spk_out
        return answers


@entry(12, 6, all_steps, "lif1", "fc1 lif1 fc2", args=(12, 12, 4, 0.9), **AS_IT_IS)
class HandIntegrator(TwoLayers):
    """A leaky integrator by hand, its whole course."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        del self.lif2

    def forward(self, x):
        batch = x.shape[0]
        mem1 = torch.zeros(batch, self.hidden, device=x.device)
        v = torch.zeros(batch, self.classes, device=x.device)
        trace = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            v = 0.8 * v + 0.2 * self.fc2(spk1)
            trace.append(v)
        return torch.stack(trace)


@entry(10, 8, shorter_attribute(), "lif2", "fc1 fc2 lif2", args=(10, 10, 4, 0.95, 8))
class HandNeuronInPlace(TwoLayers):
    """A neuron by hand, changed in place."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        del self.lif1

    def forward(self, x):
        v = x.new_zeros(x.size(0), self.hidden)
        mem2 = self.lif2.init_leaky()
        for step in range(self.num_steps):
            v *= 0.9
            v += self.fc1(x)
            spk1 = (v > 0.4).float()
            v -= 0.4 * spk1
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return mem2


# The record is a state of the model here, and all rows write into it at one place.
@entry(12, 5, all_steps, args=(12, 9, 4, 0.9, 5), **SUMMED, **CLOCKED)
class StateInAttributes(TwoLayers):
    """States and records in the model's attributes."""

    def forward(self, x):
        self.mem1 = torch.zeros(x.size(0), self.hidden)
        self.mem2 = torch.zeros(x.size(0), self.classes)
        self.spikes = []
        for _ in range(self.num_steps):
            spk1, self.mem1 = self.lif1(self.fc1(x), self.mem1)
            spk2, self.mem2 = self.lif2(self.fc2(spk1), self.mem2)
            self.spikes.append(spk2)
        return torch.stack(self.spikes)


@entry(9, 6, shorter_attribute(), args=(9, 10, 3, 0.8, 6, True), seed=1)
class TraceInAttributes(TwoLayers):
    """A trace in an attribute beside hidden states."""

    def reset(self, n: int) -> None:
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        self.eligibility = torch.zeros(n, self.hidden)
        self.spike_count = 0.0

    def forward(self, x):
        self.reset(x.size(0))
        out = 0
        for _ in range(self.num_steps):
            spk1 = self.lif1(self.fc1(x))
            self.eligibility = 0.7 * self.eligibility + spk1
            self.spike_count = self.spike_count + spk1.sum(1)
            out = out + self.lif2(self.fc2(self.eligibility))
        return out - 0.01 * self.spike_count.unsqueeze(1)


# -- neurons, blocks, and how they are called -----------------------------------------------------------------------


@entry(12, 6, all_steps, "lif lif_out", "fc1 fc2 fc3 lif_out", **SUMMED)
class OneNeuronTwice(nn.Module):
    """One neuron called twice in a step, two membranes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 10)
        self.fc2 = nn.Linear(10, 10)
        self.fc3 = nn.Linear(10, 4)
        self.lif = snn.Leaky(beta=0.9)
        self.lif_out = snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1 = mem2 = self.lif.init_leaky()
        mem3 = self.lif_out.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk, mem1 = self.lif(self.fc1(x), mem1)
            spk, mem2 = self.lif(self.fc2(spk), mem2)
            spk, mem3 = self.lif_out(self.fc3(spk), mem3)
            rec.append(spk)
        return torch.stack(rec)


@entry(12, 5, shorter_attribute(), "lif lif_out", "left right head lif_out", seed=8)
class OneHiddenNeuronTwice(nn.Module):
    """One hidden neuron called twice in a step, one membrane.

    Both calls charge the same membrane.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(6, 8)
        self.lif = snn.Leaky(beta=0.8, init_hidden=True)
        self.head = nn.Linear(8, 3)
        self.lif_out = snn.Leaky(beta=0.9, init_hidden=True)

    def forward(self, x):
        for neuron in (self.lif, self.lif_out):
            neuron.reset_mem()
        a, b = x[:, :6], x[:, 6:]
        count = 0
        for _ in range(self.num_steps):
            spk = self.lif(self.left(a)) + self.lif(self.right(b))
            count = count + self.lif_out(self.head(spk))
        return count


class StepBlock(nn.Module):
    """One timestep of one layer; the caller keeps its state."""

    def __init__(self, features: int, hidden: int, beta: float = 0.9) -> None:
        super().__init__()
        self.fc = nn.Linear(features, hidden)
        self.norm = nn.LayerNorm(hidden)
        self.lif = snn.Leaky(beta=beta)

    def start(self) -> Tensor:
        return self.lif.init_leaky()

    def forward(self, x, state):
        return self.lif(self.norm(self.fc(x)), state)


@entry(
    16,
    6,
    all_steps,
    "block1.lif block2.lif head.lif",
    "block1 block1.fc block1.lif block2 head.fc head.lif head",
    **SUMMED,
)
class Blocks(nn.Module):
    """Blocks that take and return their state, skip connection."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.block1 = StepBlock(16, 10)
        self.block2 = StepBlock(10, 10, 0.8)
        self.head = StepBlock(10, 5)

    def forward(self, x):
        s1, s2, s3 = self.block1.start(), self.block2.start(), self.head.start()
        outputs = []
        for _ in range(self.num_steps):
            h, s1 = self.block1(x, s1)
            skip = h
            h, s2 = self.block2(h, s2)
            out, s3 = self.head(h + skip, s3)
            outputs.append(out)
        return torch.stack(outputs)


class HiddenBlock(nn.Module):
    """One timestep of one layer, which keeps its state."""

    def __init__(self, features: int, hidden: int) -> None:
        super().__init__()
        self.fc = nn.Linear(features, hidden)
        self.lif = snn.Leaky(beta=0.85, init_hidden=True)

    def reset(self) -> None:
        self.lif.reset_mem()

    def forward(self, x):
        return self.lif(self.fc(x))


@entry(14, 7, shorter_attribute(), "blocks.0.lif blocks.1.lif", "blocks.0 blocks.0.lif blocks.1.fc blocks.1 classifier")
class HiddenBlocks(nn.Module):
    """Blocks that keep their state, mean current."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 7
        self.blocks = nn.ModuleList([HiddenBlock(14, 9), HiddenBlock(9, 9)])
        self.classifier = nn.Linear(9, 4)

    def forward(self, x):
        for block in self.blocks:
            block.reset()
        logits = []
        for t in range(self.num_steps):
            h = x
            for block in self.blocks:
                h = block(h)
            logits.append(self.classifier(h))
        return torch.stack(logits).mean(0)


@entry(12, 8, all_steps, **SUMMED)
class SynapticNet(nn.Module):
    """Synaptic, three records."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 8
        self.fc1 = nn.Linear(12, 10)
        self.lif1 = snn.Synaptic(alpha=0.7, beta=0.8)
        self.fc2 = nn.Linear(10, 4)
        self.lif2 = snn.Synaptic(alpha=0.6, beta=0.9)

    def forward(self, x):
        syn1, mem1 = self.lif1.init_synaptic()
        syn2, mem2 = self.lif2.init_synaptic()
        spk2_rec, syn2_rec, mem2_rec = [], [], []
        for step in range(self.num_steps):
            spk1, syn1, mem1 = self.lif1(self.fc1(x), syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), syn2, mem2)
            spk2_rec.append(spk2)
            syn2_rec.append(syn2)
            mem2_rec.append(mem2)
        return torch.stack(spk2_rec), torch.stack(syn2_rec), torch.stack(mem2_rec)


@entry((2, 6), 6, fewer_frames(), "lif1 lif2", "stem lif1 fc lif2", **FRAMES)
class SynapticHidden(nn.Module):
    """Synaptic with hidden states, conv over a signal, running maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv1d(2, 4, 3, padding=1)
        self.lif1 = snn.Synaptic(alpha=0.5, beta=0.8, init_hidden=True)
        self.fc = nn.Linear(24, 4)
        self.lif2 = snn.Synaptic(alpha=0.6, beta=0.8, init_hidden=True, output=True)

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        best = torch.full((x.size(1), 4), -100.0)
        for frame in x:
            spk, syn, mem = self.lif2(self.fc(self.lif1(self.stem(frame)).flatten(1)))
            best = torch.maximum(best, mem)
        return best


@entry(12, 7, all_steps, **AVERAGED)
class AlphaNet(nn.Module):
    """Alpha."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 7
        self.fc1 = nn.Linear(12, 10)
        self.lif1 = snn.Alpha(alpha=0.85, beta=0.6)
        self.fc2 = nn.Linear(10, 4)
        self.lif2 = snn.Alpha(alpha=0.9, beta=0.7)

    def forward(self, x):
        exc1, inh1, mem1 = self.lif1.init_alpha()
        exc2, inh2, mem2 = self.lif2.init_alpha()
        out = []
        for _ in range(self.num_steps):
            spk1, exc1, inh1, mem1 = self.lif1(self.fc1(x), exc1, inh1, mem1)
            spk2, exc2, inh2, mem2 = self.lif2(self.fc2(spk1), exc2, inh2, mem2)
            out.append(mem2)
        return torch.stack(out)


@entry(10, 8, shorter_attribute(), "neuron1 neuron2", "fc1 neuron1 fc2 neuron2")
class AlphaStarred(nn.Module):
    """Alpha, states in a starred list."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 8
        self.fc1 = nn.Linear(10, 12)
        self.neuron1 = snn.Alpha(alpha=0.8, beta=0.5)
        self.fc2 = nn.Linear(12, 3)
        self.neuron2 = snn.Leaky(beta=0.9)

    def forward(self, x):
        state1 = self.neuron1.reset_mem()
        state2 = self.neuron2.reset_mem()
        count = 0
        for _ in range(self.num_steps):
            spk, *state1 = self.neuron1(self.fc1(x), *state1)
            spk, state2 = self.neuron2(self.fc2(spk), state2)
            count = count + spk
        return count


@entry(12, 6, all_steps, **SUMMED)
class LapicqueNet(nn.Module):
    """Lapicque."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 10)
        self.lif1 = snn.Lapicque(beta=0.8)
        self.fc2 = nn.Linear(10, 5)
        self.lif2 = snn.Lapicque(R=5.0, C=1.0, time_step=1)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_lapicque(), self.lif2.init_lapicque()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@entry((1, 6, 6), 5, shorter_attribute(), "lif1 lif2", "conv lif1 fc lif2")
class LapicqueHidden(nn.Module):
    """Lapicque with hidden states, conv, votes in one expression."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.conv = nn.Conv2d(1, 3, 3)
        self.lif1 = snn.Lapicque(beta=0.7, init_hidden=True)
        self.fc = nn.Linear(48, 4)
        self.lif2 = snn.Lapicque(beta=0.9, init_hidden=True)

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        votes = 0
        for _ in range(self.num_steps):
            votes = votes + self.lif2(self.fc(self.lif1(self.conv(x)).flatten(1)))
        return votes


@entry(12, 6, all_steps, **SUMMED)
class RLeakyNet(nn.Module):
    """RLeaky, all to all and one to one."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 10)
        self.lif1 = snn.RLeaky(beta=0.8, linear_features=10)
        self.fc2 = nn.Linear(10, 4)
        self.lif2 = snn.RLeaky(beta=0.9, all_to_all=False, V=0.3)

    def forward(self, x):
        spk1, mem1 = self.lif1.init_rleaky()
        spk2, mem2 = self.lif2.init_rleaky()
        spk2_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), spk1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), spk2, mem2)
            spk2_rec.append(spk2)
        return torch.stack(spk2_rec)


@entry((1, 6, 6), 5, shorter_attribute(), "lif1", "conv lif1 fc")
class RLeakyConv(nn.Module):
    """RLeaky with a recurrent convolution and hidden states."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.conv = nn.Conv2d(1, 3, 3)
        self.lif1 = snn.RLeaky(beta=0.8, conv2d_channels=3, kernel_size=3, init_hidden=True)
        self.fc = nn.Linear(48, 4)

    def forward(self, x):
        self.lif1.reset_mem()
        logits = []
        for _ in range(self.num_steps):
            logits.append(self.fc(self.lif1(self.conv(x)).flatten(1)))
        return torch.stack(logits).sum(0)


@entry(10, 6, shorter_attribute())
class RSynapticNet(nn.Module):
    """RSynaptic."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(10, 9)
        self.lif1 = snn.RSynaptic(alpha=0.6, beta=0.7, linear_features=9)
        self.fc2 = nn.Linear(9, 4)
        self.lif2 = snn.RSynaptic(alpha=0.5, beta=0.8, all_to_all=False, V=0.2)

    def forward(self, x):
        spk1, syn1, mem1 = self.lif1.init_rsynaptic()
        spk2, syn2, mem2 = self.lif2.init_rsynaptic()
        rec = []
        for _ in range(self.num_steps):
            spk1, syn1, mem1 = self.lif1(self.fc1(x), spk1, syn1, mem1)
            spk2, syn2, mem2 = self.lif2(self.fc2(spk1), spk2, syn2, mem2)
            rec.append(spk2)
        return torch.stack(rec).mean(0)


@entry(10, 6, all_steps, **SUMMED, **BATCH_FIRST)
class RSynapticSequence(nn.Module):
    """RSynaptic with hidden states, batch first in, time first out."""

    def __init__(self) -> None:
        super().__init__()
        self.fc1 = nn.Linear(10, 9)
        self.lif1 = snn.RSynaptic(alpha=0.6, beta=0.7, linear_features=9, init_hidden=True)
        self.fc2 = nn.Linear(9, 4)
        self.lif2 = snn.Synaptic(alpha=0.5, beta=0.8, init_hidden=True)

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        return_spikes = []
        for i in range(x.shape[1]):
            return_spikes.append(self.lif2(self.fc2(self.lif1(self.fc1(x[:, i, :])))))
        return torch.stack(return_spikes)


@entry(12, 6, all_steps, "lstm lif", "fc1 lstm fc2 lif", **SUMMED)
class Slstm(nn.Module):
    """SLSTM."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 10)
        self.lstm = snn.SLSTM(10, 10)
        self.fc2 = nn.Linear(10, 4)
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x):
        syn, mem = self.lstm.init_slstm()
        mem_out = self.lif.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk, syn, mem = self.lstm(self.fc1(x), syn, mem)
            spk_out, mem_out = self.lif(self.fc2(spk), mem_out)
            rec.append(spk_out)
        return torch.stack(rec)


@entry(9, 7, fewer_frames(), "lstm1 lstm2", "lstm1 lstm2", **FRAMES)
class SlstmSequence(nn.Module):
    """SLSTM with hidden states, a linear layer on the last membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm1 = snn.SLSTM(9, 9, init_hidden=True)
        self.lstm2 = snn.SLSTM(9, 9, init_hidden=True, reset_mechanism="subtract", output=True)
        self.fc = nn.Linear(9, 3)

    def forward(self, x):
        self.lstm1.reset_mem()
        self.lstm2.reset_mem()
        for step in range(x.size(0)):
            spk, syn, mem = self.lstm2(self.lstm1(x[step]))
        return self.fc(mem)


@entry((1, 6, 6), 6, all_steps, "cell1 cell2 lif", "cell1 cell2 fc lif", seed=11, **SUMMED, **EVENTS, time_dim=1)
class ConvLstm(nn.Module):
    """SConv2dLSTM with pooling, batch first."""

    def __init__(self) -> None:
        super().__init__()
        self.cell1 = snn.SConv2dLSTM(1, 3, 3, max_pool=2)
        self.cell2 = snn.SConv2dLSTM(3, 4, 3, avg_pool=3)
        self.fc = nn.Linear(4, 4)
        self.lif = snn.Leaky(beta=0.8)

    def forward(self, x):
        syn1, mem1 = self.cell1.init_sconv2dlstm()
        syn2, mem2 = self.cell2.init_sconv2dlstm()
        mem3 = self.lif.init_leaky()
        spk3_rec, mem3_rec = [], []
        num_steps = x.size()[1]
        for step in range(num_steps):
            x_step = x[:, step]
            spk1, syn1, mem1 = self.cell1(x_step, syn1, mem1)
            spk2, syn2, mem2 = self.cell2(spk1, syn2, mem2)
            spk3, mem3 = self.lif(self.fc(spk2.flatten(1)), mem3)
            spk3_rec.append(spk3)
            mem3_rec.append(mem3)
        return torch.stack(spk3_rec), torch.stack(mem3_rec)


@entry((1, 5, 5), 5, shorter_attribute(), "cell out", "cell fc out")
class ConvLstmHidden(nn.Module):
    """SConv2dLSTM with hidden states, static input, last membrane."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.cell = snn.SConv2dLSTM(1, 3, 3, init_hidden=True)
        self.fc = nn.Linear(3 * 25, 4)
        self.out = snn.Leaky(beta=0.9, init_hidden=True, output=True)

    def forward(self, x):
        self.cell.reset_mem()
        self.out.reset_mem()
        for _ in range(self.num_steps):
            spk, mem = self.out(self.fc(self.cell(x).flatten(1)))
        return mem


@entry(12, 6, shorter_attribute(), "delta lif", "fc1 delta fc2 lif")
class DeltaNet(nn.Module):
    """DeltaLeaky, a pair of states that starts as None.

    States that are ``None`` until the first step.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 10)
        self.delta = snn.DeltaLeaky(beta=0.7, delta_threshold=0.15)
        self.fc2 = nn.Linear(10, 4)
        self.lif = snn.Leaky(beta=0.9)

    def forward(self, x):
        state = (None, None)
        mem = self.lif.init_leaky()
        count = 0
        for _ in range(self.num_steps):
            spk, state = self.delta(self.fc1(x), state)
            spk, mem = self.lif(self.fc2(spk), mem)
            count = count + spk
        return count


@entry(10, 6, all_steps, args=(10, 10, 4, 0.9), seed=1, **SUMMED)
class ResetThenNone(TwoLayers):
    """Membranes that start as None after a reset.

    An explicit membrane of None lets the neuron take the one that it has, which has just been reset.
    """

    def forward(self, x):
        self.lif1.reset_mem()
        self.lif2.reset_mem()
        mem1 = mem2 = None
        spk_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem=mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


# -- encoders -------------------------------------------------------------------------------------------------------


@entry(14, 7, all_steps, args=(14, 12, 4, 0.95, 7), **SUMMED, **CLOCKED)
class LatencyCoded(TwoLayers):
    """Latency code in the prologue."""

    def forward(self, x):
        spikes_in = spikegen.latency(x, num_steps=self.num_steps, normalize=True, linear=True)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(spikes_in[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


def latency_count(model: LatencyCodedCount, x: Tensor, timesteps: int) -> list[Outputs]:
    # The code of a shorter run would be another code: all of it is made, and the first t frames are used.
    code = spikegen.latency(x, num_steps=timesteps, tau=4.0, threshold=0.4, clip=True, bypass=True)
    mem1, mem2 = model.lif1.reset_mem(), model.lif2.reset_mem()
    total, answers = torch.zeros(x.size(0), model.classes), []
    for t in range(timesteps):
        spk1, mem1 = model.lif1(model.fc1(code[t]), mem1)
        spk2, mem2 = model.lif2(model.fc2(spk1), mem2)
        total = total + mem2
        answers.append((total,))
    return answers


@entry(16, 6, latency_count, args=(16, 12, 4, 0.95, 6), seed=1, **CLOCKED)
class LatencyCodedCount(TwoLayers):
    """Logarithmic latency code, each frame in turn, one answer."""

    def forward(self, x):
        code = spikegen.latency(x, num_steps=self.num_steps, tau=4.0, threshold=0.4, clip=True, bypass=True)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        total = torch.zeros(x.size(0), self.classes)
        for frame in code:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            total = total + mem2
        return total


@entry(12, 8, all_steps, args=(12, 12, 4, 0.9), **SUMMED, **FRAMES, sample=smooth)
class DeltaCoded(TwoLayers):
    """Delta code in the prologue."""

    def forward(self, x):
        changes = spikegen.delta(x, threshold=0.15, off_spike=True)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for t in range(changes.size(0)):
            spk1, mem1 = self.lif1(self.fc1(changes[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2)
        return torch.stack(rec)


@entry(10, 7, fewer_frames(1), args=(10, 14, 4, 0.9), seed=1, **BATCH_FIRST, sample=smooth)
class DeltaCodedMean(TwoLayers):
    """Delta code of a transposed signal, mean."""

    def forward(self, x):
        changes = spikegen.delta(x.transpose(0, 1), threshold=0.1, padding=True)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for change in changes:
            spk1, mem1 = self.lif1(self.fc1(change), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            rec.append(spk2 + 0.1 * mem2)
        return torch.stack(rec).mean(0)


@entry(12, 6, all_steps, args=(12, 12, 4, 0.9), **SUMMED, **CLOCKED, to=RANDOM_ENCODERS)
class RateCoded(TwoLayers):
    """Rate code in the prologue."""

    def forward(self, x):
        spikes_in = spikegen.rate(x, num_steps=self.num_steps)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec, mem_rec = [], []
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(spikes_in[step]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
            mem_rec.append(mem2)
        return torch.stack(spk_rec), torch.stack(mem_rec)


def rate_mean(model: RateCodedMean, x: Tensor, timesteps: int) -> list[Outputs]:
    frames = spikegen.rate(x, num_steps=timesteps, gain=0.8)
    mem1, mem2, mem3 = model.lif1.reset_mem(), model.lif2.reset_mem(), model.lif3.reset_mem()
    total, answers = 0, []
    for t in range(timesteps):
        spk1, mem1 = model.lif1(model.pool(model.conv1(frames[t])), mem1)
        spk2, mem2 = model.lif2(model.pool(model.conv2(spk1)), mem2)
        _, mem3 = model.lif3(model.fc(spk2.flatten(1)), mem3)
        total = total + mem3
        answers.append((total / (t + 1),))
    return answers


@entry((1, 6, 6), 6, rate_mean, CONV_NEURONS, CONV_LAYERS, args=(4, 4, 0.85, 6), **CLOCKED, to=RANDOM_ENCODERS)
class RateCodedMean(ConvNet):
    """Rate code with a gain, conv, mean membrane."""

    def forward(self, x):
        spikes_in = spikegen.rate(x, num_steps=self.num_steps, gain=0.8)
        mem1, mem2, mem3 = self.lif1.init_leaky(), self.lif2.init_leaky(), self.lif3.init_leaky()
        voltages = []
        for frame in spikes_in:
            spk1, mem1 = self.lif1(self.pool(self.conv1(frame)), mem1)
            spk2, mem2 = self.lif2(self.pool(self.conv2(spk1)), mem2)
            spk3, mem3 = self.lif3(self.fc(spk2.flatten(1)), mem3)
            voltages.append(mem3)
        return torch.stack(voltages).mean(0)


# -- steps that know which step they are ----------------------------------------------------------------------------


def norm_per_step(features: int, steps: int) -> nn.ModuleList:
    """Batch normalisation with statistics of its own in every timestep, as after training."""
    norms = nn.ModuleList(nn.BatchNorm1d(features) for _ in range(steps))
    for norm in norms:
        nn.init.uniform_(norm.weight, 0.4, 1.6)
        nn.init.uniform_(norm.running_mean, -0.2, 0.2)
        nn.init.uniform_(norm.running_var, 0.5, 2.0)
    return norms


@entry(12, 6, all_steps, args=(12, 10, 4, 0.9, 6), **SUMMED, **CLOCKED)
class NormPerStep(TwoLayers):
    """One batch norm for each step."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.bn = norm_per_step(self.hidden, self.num_steps)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.bn[step](self.fc1(x)), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@entry(10, 5, fewer_frames(), args=(10, 10, 3, 0.8, 5), **FRAMES)
class NormPerStepSequence(TwoLayers):
    """Batch norms zipped with the frames."""

    def __init__(self, *sizes: Any) -> None:
        super().__init__(*sizes)
        self.bn1 = norm_per_step(self.hidden, self.num_steps)
        self.bn2 = norm_per_step(self.classes, self.num_steps)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        score = 0
        for step, (frame, norm) in enumerate(zip(x, self.bn1, strict=False)):
            spk1, mem1 = self.lif1(norm(self.fc1(frame)), mem1)
            spk2, mem2 = self.lif2(self.bn2[step](self.fc2(spk1)), mem2)
            score = score + spk2
        return score


@entry(12, 6, shorter_attribute(), args=(12, 10, 4, 0.9, 6), **CLOCKED)
class DecayByStep(TwoLayers):
    """Spikes weighed by the step."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = torch.zeros(x.size(0), self.classes)
        for step in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            out = out + (0.9**step) * spk2
        return out


@entry(12, 7, shorter_attribute(), args=(12, 12, 5, 0.85, 7), seed=4, **CLOCKED)
class RunningMean(TwoLayers):
    """A running mean, steps counted from 1."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        average = torch.zeros(x.size(0), self.classes)
        for step in range(1, self.num_steps + 1):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            average += (spk2 - average) / step
        return average


@entry(10, 6, all_steps, args=(10, 12, 4, 0.9), **SUMMED, **CLOCKED)
class FirstStepBranch(TwoLayers):
    """States made in the first step."""

    def forward(self, x):
        spk_rec = []
        for step in range(self.num_steps):
            if step == 0:
                mem1 = self.lif1.init_leaky()
                mem2 = self.lif2.init_leaky()
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@entry(12, 8, shorter_attribute(), args=(12, 14, 4, 0.9, 8), **CLOCKED)
class WarmUp(TwoLayers):
    """First steps that do not count, continue.

    The first steps do not count.
    """

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        count = torch.zeros(x.size(0), self.classes)
        warm_up = 2
        for step in range(self.num_steps):
            cur = self.fc1(x) if step % 2 == 0 else 0.5 * self.fc1(x)
            spk1, mem1 = self.lif1(cur, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            if step < warm_up:
                continue
            count = count + spk2
        return count


@entry(12, 6, all_steps, args=(12, 10, 4, 0.9), **SUMMED, **CLOCKED)
class ReadsItsRecord(TwoLayers):
    """Steps that read the last item of the record.

    The last output inhibits the next one; it is looked up in the record.
    """

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            cur2 = self.fc2(spk1)
            if len(spk_rec) > 0:
                cur2 = cur2 - 0.3 * spk_rec[-1].roll(1, dims=1)
            spk2, mem2 = self.lif2(cur2, mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@entry(12, 7, fewer_frames(), args=(12, 12, 4, 0.9), seed=1, **FRAMES)
class MovingWindow(TwoLayers):
    """A moving window over the record."""

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        recent = []
        answers = []
        for t in range(x.size(0)):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            recent.append(spk1)
            window = torch.stack(recent[-3:]).mean(0)
            spk2, mem2 = self.lif2(self.fc2(window), mem2)
            answers.append(spk2)
        return torch.stack(answers).sum(0)


# -- other ways to write the body -----------------------------------------------------------------------------------


@entry(12, 6, shorter_attribute(), "lif1 lif2", "lif1 fc2 lif2", args=(12, 10, 4, 0.9))
class ConstantCurrent(TwoLayers):
    """A constant current, made once."""

    def forward(self, x):
        cur1 = self.fc1(x)  # the same in every step
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(cur1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec).sum(0)


@entry((1, 6, 6), 5, all_steps, "lif1 lif2", "lif1 fc lif2", **AVERAGED)
class ConstantFeatures(nn.Module):
    """Features and a gate of each row, made once."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 5
        self.backbone = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten())
        self.lif1 = snn.Leaky(beta=0.9)
        self.fc = nn.Linear(16, 4)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x):
        features = self.backbone(x)
        gate = torch.sigmoid(features.mean(1, keepdim=True))
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        rec = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(features * gate, mem1)
            spk2, mem2 = self.lif2(self.fc(spk1), mem2)
            rec.append(mem2)
        return torch.stack(rec)


@entry(12, 6, shorter_attribute(), args=(12, 12, 4, 0.95))
class LocalsInside(TwoLayers):
    """Names bound in the loop and read after it.

    Names that are bound in the loop alone, some of them read after it.
    """

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        high = -1e3 * torch.ones(x.size(0), self.classes)
        for i in range(self.num_steps):
            drive = self.fc1(x)
            hidden_spikes, mem1 = self.lif1(drive, mem1)
            class_spikes, mem2 = self.lif2(self.fc2(hidden_spikes), mem2)
            silent = class_spikes.sum(dim=1, keepdim=True) == 0
            answer = torch.where(silent, mem2, class_spikes)
            high = torch.max(high, answer)
        return high + 0.5 * answer


@entry(12, 6, all_steps, "lif1 lif2", "branches.0 branches.1 lif1 fc lif2", **SUMMED, **CLOCKED)
class Comprehension(nn.Module):
    """Comprehensions in the body and in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.branches = nn.ModuleList([nn.Linear(12, 6), nn.Linear(12, 6)])
        self.lif1 = snn.Leaky(beta=0.8)
        self.fc = nn.Linear(6, 4)
        self.lif2 = snn.Leaky(beta=0.9)

    def forward(self, x):
        mem1 = self.lif1.init_leaky()
        mem2 = self.lif2.init_leaky()
        seen = {"step": [], "spk": []}
        for _ in range(self.num_steps):
            cur = sum([branch(x) * weight for branch, weight in zip(self.branches, (1.0, 0.5), strict=True)])
            spk1, mem1 = self.lif1(cur, mem1)
            spk2, mem2 = self.lif2(self.fc(spk1), mem2)
            for key, value in zip(seen, (mem2, spk2), strict=True):
                seen[key].append(value)
        return tuple(torch.stack(seen[key]) for key in ("spk", "step"))


@entry(12, 7, all_steps, args=(12, 12, 4, 0.85, 7), **SUMMED)
class UnpackedTargets(TwoLayers):
    """Unpacked targets."""

    def forward(self, x):
        (mem1, mem2), rec = (self.lif1.init_leaky(), self.lif2.init_leaky()), []
        pace, leak = 1.0, (0.5, 0.5)
        for _ in range(self.num_steps):
            (spk1, mem1), cur1 = self.lif1(self.fc1(x), mem1), None
            a, b = spk1.chunk(2, dim=1)
            (left, right) = leak
            spk2, mem2 = self.lif2(self.fc2(torch.cat([a * left, b * right], 1)) * pace, mem2)
            rec.append(spk2)
        return torch.stack(rec)


@entry(9, 6, shorter_attribute(), args=(9, 11, 3, 0.9, 6))
class Annotated(TwoLayers):
    """Annotated and augmented assignments, a default argument."""

    def forward(self, x: Tensor, scale: float = 1.5) -> tuple[Tensor, Tensor]:
        mem1: Tensor = self.lif1.init_leaky()
        mem2: Tensor = self.lif2.init_leaky()
        votes: Tensor
        votes = torch.zeros((len(x), self.classes))
        for step in range(self.num_steps):  # type: int
            cur1: Tensor = scale * self.fc1(x)
            spk1: Tensor
            spk1, mem1 = self.lif1(cur1, mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            votes += spk2
            votes -= 0.05 * mem2
        return votes, mem2


@entry(12, 6, all_steps, args=(12, 10, 5, 0.8), **SUMMED)
class HelperMethod(TwoLayers):
    """A method that makes one step."""

    def one_step(self, x, mem1, mem2):
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        out = []
        for _ in range(self.num_steps):
            spk, mem1, mem2 = self.one_step(x, mem1, mem2)
            out.append(spk)
        return torch.stack(out)


@entry((1, 6, 6), 5, fewer_frames(), CONV_NEURONS, CONV_LAYERS, args=(4, 3, 0.85), seed=2, **EVENTS)
class HelperFunction(ConvNet):
    """A method that changes a dictionary of states, a function in forward."""

    def _conv_step(self, frame: Tensor, state: dict[str, Tensor]) -> Tensor:
        spk, state["1"] = self.lif1(self.pool(self.conv1(frame)), state["1"])
        spk, state["2"] = self.lif2(self.pool(self.conv2(spk)), state["2"])
        return spk.flatten(1)

    def forward(self, x):
        state = {"1": self.lif1.init_leaky(), "2": self.lif2.init_leaky()}
        mem3 = self.lif3.init_leaky()

        def classify(spk, mem):
            return self.lif3(self.fc(spk), mem)

        readout = 0
        for frame in x:
            spk3, mem3 = classify(self._conv_step(frame, state), mem3)
            readout = readout + mem3
        return readout / x.shape[0]


@entry(12, 5, all_steps, args=(12, 10, 4, 0.85, 5), **SUMMED)
class LoopUnderNoGrad(TwoLayers):
    """The loop under no_grad."""

    def forward(self, x):
        with torch.no_grad():
            mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
            spk_rec = []
            for _ in range(self.num_steps):
                spk1, mem1 = self.lif1(self.fc1(x), mem1)
                spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
                spk_rec.append(spk2)
            out = torch.stack(spk_rec)
        return out


@entry(12, 6, fewer_frames(), args=(12, 11, 4, 0.9), **FRAMES)
class EitherInput(TwoLayers):
    """Input of either kind, answer of either kind.

    Static input is shown T times; input with a time axis is run through. The model gets the latter.
    """

    def forward(self, x, return_all=False):
        if x.dim() == 2:
            x = x.unsqueeze(0).repeat(self.num_steps, 1, 1)
        assert x.dim() == 3, "time, batch, features"
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for t in range(x.shape[0]):
            spk1, mem1 = self.lif1(self.fc1(x[t]), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        if return_all:
            return torch.stack(spk_rec)
        return torch.stack(spk_rec).sum(0)


@entry(12, 6, all_steps, args=(12, 12, 3, 0.9), seed=1, **SUMMED, **CLOCKED)
class ShownTTimes(TwoLayers):
    """Static input repeated on a time axis.

    Static input, repeated on a time axis in the prologue.
    """

    def forward(self, x):
        frames = x.unsqueeze(0).repeat(self.num_steps, 1, 1)
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk_rec = []
        for frame in frames:
            spk1, mem1 = self.lif1(self.fc1(frame), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
            spk_rec.append(spk2)
        return torch.stack(spk_rec)


@entry(12, 6, shorter_attribute())
class Population(nn.Module):
    """Population votes, lateral inhibition, epilogue with the batch size.

    Several neurons vote for each class, and lateral inhibition lets one of them win.
    """

    def __init__(self) -> None:
        super().__init__()
        self.num_steps = 6
        self.fc1 = nn.Linear(12, 12)
        self.lif1 = snn.Leaky(beta=0.9, reset_mechanism="zero")
        self.fc2 = nn.Linear(12, 12)
        self.lif2 = snn.Leaky(beta=0.9)
        self.lateral = nn.Parameter(0.2 * (1 - torch.eye(12)), requires_grad=False)

    def forward(self, x):
        mem1, mem2 = self.lif1.init_leaky(), self.lif2.init_leaky()
        spk2 = torch.zeros(x.size(0), 12)
        votes = []
        for _ in range(self.num_steps):
            spk1, mem1 = self.lif1(self.fc1(x), mem1)
            spk2, mem2 = self.lif2(self.fc2(spk1) - F.linear(spk2, self.lateral), mem2)
            votes.append(spk2)
        return torch.stack(votes).sum(0).view(x.size(0), 4, 3).sum(-1)
