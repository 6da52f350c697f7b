"""What the core asks of a framework, and how the adapter for a model is found."""

from __future__ import annotations

import importlib.util
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from .errors import AdapterError, InputError
from .layout import select
from .naming import unknown_name

if TYPE_CHECKING:
    from .captured_step import CaptureSettings

ENTRY_POINT_GROUP = "seenn_plugin.adapters"


@dataclass
class Rows:
    """Some rows in flight: everything that they need to go on. The engine holds it.

    Attributes:
        inputs: ``[m, ...]`` for static input (shown at every timestep), ``[T, m, ...]`` for a sequence.
        sequence: whether ``inputs`` has a time axis.
        memory: what the adapter carries for these rows (membrane potentials, recurrent spikes, ...).
        now: the timesteps that have been made since the first rows began.
        born: long ``[n]`` on the CPU: the value of ``now`` when each row began; ``None`` while all began at 0, so that
            rows in lockstep cost no arithmetic.
        where: long ``[n]``: the place of each row in ``inputs``; ``None`` if row i is at place i. A sequence is not
            copied when rows leave: most of it lies in the past.
        padded: row-steps computed beside those of the rows, to make up the number that a captured step is made for.
    """

    inputs: Tensor
    sequence: bool
    memory: Any = None
    now: int = 0
    born: Tensor | None = None
    where: Tensor | None = None
    padded: int = 0

    def __len__(self) -> int:
        if self.where is not None:
            return self.where.numel()
        return self.inputs.shape[1 if self.sequence else 0]

    @property
    def clock(self) -> Tensor:
        """Long ``[n]`` on the CPU: the timesteps that each row has made."""
        return torch.full((len(self),), self.now) if self.born is None else self.now - self.born

    @property
    def youngest(self) -> int:
        """The fewest timesteps that any row has made."""
        return self.now if self.born is None else int(self.clock.min())

    def frames(self, steps: int) -> Tensor:
        """Input of the next ``steps`` timesteps of every row, ``[steps, n, ...]``."""
        if not self.sequence:
            frame = self.inputs.unsqueeze(0)
            return frame if steps == 1 else frame.expand(steps, *self.inputs.shape)
        if self.born is None:
            frames = self.inputs[self.now : self.now + steps]
            return frames if self.where is None else frames.index_select(1, self.where)
        time = (self.clock + torch.arange(steps).unsqueeze(1)).to(self.inputs.device, non_blocking=True)
        where = torch.arange(len(self), device=self.inputs.device) if self.where is None else self.where
        return self.inputs[time, where]

    def keep(self, index: Tensor) -> None:
        """Keep input and clock of the rows at ``index``; the memory is the adapter's to keep."""
        if self.born is not None:
            self.born = self.born[index.cpu()]
        if self.sequence:
            self.where = index if self.where is None else self.where[index]
        else:
            self.inputs = select(self.inputs, 0, index)

    def place(self, index: Tensor, inputs: Tensor) -> None:
        """Put input and clock of fresh rows at the places ``index``; the memory is the adapter's to fill.

        Raises:
            InputError: ``inputs`` does not fit the places, or the rows in flight.
        """
        row_dim = 1 if self.sequence else 0

        def one_row(tensor: Tensor) -> tuple[int, ...]:
            return (*tensor.shape[:row_dim], *tensor.shape[row_dim + 1 :])

        if one_row(inputs) != one_row(self.inputs) or inputs.shape[row_dim] != index.numel():
            raise InputError(
                f"cannot place {tuple(inputs.shape)} at {index.numel()} of the rows of {tuple(self.inputs.shape)}."
            )
        born = torch.zeros(len(self), dtype=torch.long) if self.born is None else self.born
        self.born = born.index_fill(0, index.cpu(), self.now)
        if self.where is not None:
            self.inputs, self.where = self.inputs.index_select(1, self.where), None
        self.inputs = self.inputs.clone().index_copy_(row_dim, index, inputs)  # in its own layout


@dataclass(frozen=True)
class Reference:
    """What a model answers in its own run.

    Attributes:
        outputs: each with how it is made of the outputs of the timesteps: ``"stack"`` (``[T, n, ...]``: all of them),
            or the name of a readout (``[n, ...]``: one answer).
        timesteps: the timesteps that the model made.
        state: :meth:`Adapter.inspect` at its end; ``None`` if the model does not leave it behind.
    """

    outputs: tuple[tuple[Tensor, str], ...]
    timesteps: int
    state: list[Tensor] | None


class Adapter(ABC):
    """One spiking network as a machine that can be advanced in time, row by row.

    It owns four abilities over an explicit :class:`Rows` object, so that two runs on one model can interleave:
    begin rows, advance all rows, keep some of them, place fresh ones. It never hears of policies or readouts.
    Between calls the caller's model is exactly as the caller left it.

    A third party ships one by registering a subclass under the entry-point group ``seenn_plugin.adapters``;
    ``seenn_plugin.testing.AdapterConformance`` checks it.
    """

    name: ClassVar[str]
    """The name under which users ask for it: ``EarlyExitWrapper(model, adapter=name)``."""
    framework: ClassVar[str | None] = None
    """The import package that must be installed, if any."""
    extra: ClassVar[str | None] = None
    """The extra of this distribution that installs the framework, if any."""

    saves: ClassVar[bool] = True
    """Whether a row that has left costs nothing more."""
    timesteps: int | None = None
    """What the caller of the wrapper said: the most timesteps that a row may take."""
    capture: CaptureSettings | None = None
    """What the caller of the wrapper said: which timesteps are captured. Adapters that capture none ignore it."""
    time_dim: int = 0
    """What the caller of the wrapper said: the time axis of his sequences, and so that of a model that takes them."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @classmethod
    @abstractmethod
    def claims(cls, model: nn.Module) -> bool:
        """Whether this adapter is made for ``model``. Must be cheap and must import no framework."""

    @abstractmethod
    def begin(self, inputs: Tensor, sequence: bool) -> Rows:
        """Fresh rows, before their first timestep. ``inputs`` as in :class:`Rows`."""

    @abstractmethod
    def advance(self, rows: Rows, steps: int = 1) -> tuple[Tensor, ...]:
        """Advance every row by ``steps`` timesteps and return the outputs, each ``[steps, n, ...]``.

        The first output is what the network answers with; further ones (a membrane potential returned beside
        the spikes) may follow. If the model raises, ``rows`` is unchanged.
        """

    @abstractmethod
    def keep(self, rows: Rows, index: Tensor) -> None:
        """Keep the rows at ``index`` (long ``[m]``, any order, repeats allowed) and drop all others, in place."""

    @abstractmethod
    def place(self, rows: Rows, index: Tensor, inputs: Tensor) -> None:
        """Put fresh rows with ``inputs`` at the places ``index`` (long ``[m]``), in place.

        Raises:
            ModelRefused: if the rows of this model share a clock, so that a fresh one cannot join them.
        """

    def why_not_refillable(self, rows: Rows) -> str:
        """Why :meth:`place` refuses fresh rows among ``rows``; empty if it does not."""
        return ""

    def inspect(self, rows: Rows) -> list[Tensor]:
        """All that the rows carry, in tensors with rows on dimension 0: the checks compare it. May be empty."""
        return []

    def reference(self, inputs: Tensor, sequence: bool, timesteps: int) -> Reference | None:
        """The model's own run, as its users make it."""
        return None

    def answer(self, inputs: Tensor, sequence: bool) -> str | None:
        """How the model itself makes one answer of its timesteps, as the name of a readout.

        ``"last"`` where the output of a timestep is the answer to all timesteps so far; ``None`` if the model leaves it
        to its users.
        """
        return None

    def own_timesteps(self, inputs: Tensor, sequence: bool) -> int | None:
        """How many timesteps the model makes of such input by itself; ``None`` if its users say."""
        return None

    def runs_whole(self, inputs: Tensor, sequence: bool) -> bool:
        """Whether the model takes this input in one call, in the layout of the caller, as far as is known."""
        return False

    def fingerprint(self, modules: tuple[nn.Module, ...]) -> Any:
        """What, beside ``modules`` (those of the model as it is now), decides how the model runs.

        If modules or fingerprint change, the model is looked at again.
        """
        return None

    def explain(self) -> dict[str, str]:
        """Facts that :meth:`EarlyExitWrapper.explain` prints: step mode, state found, ..."""
        return {}


AdapterChoice = str | Adapter | Callable[[nn.Module], Adapter]


def installed_adapters() -> tuple[dict[str, type[Adapter]], dict[str, Exception]]:
    """All installed adapters by name, in a fixed order, and the errors of those that are broken, which warn."""
    found: dict[str, type[Adapter]] = {}
    broken: dict[str, Exception] = {}
    for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: (point.name, point.value)):
        try:
            adapter = point.load()
            if not (isinstance(adapter, type) and issubclass(adapter, Adapter)):
                raise TypeError(f"{point.value} is not a subclass of seenn_plugin.adapter.Adapter")
            found.setdefault(point.name, adapter)
        except Exception as error:  # a third party's broken adapter must not take the others down
            broken[point.name] = error
            warnings.warn(
                f"adapter {point.name!r} ({point.value}) is broken and was skipped: {error!r}",
                RuntimeWarning,
                stacklevel=4,
            )
    return found, broken


def find_adapter(model: nn.Module, choice: AdapterChoice = "auto") -> Adapter:
    """The adapter for ``model``: the only one that claims it, or the caller's choice (a name, class or instance).

    Raises:
        AdapterError: none claims the model, several do, the name is unknown, or its framework is not installed.
    """
    if isinstance(choice, Adapter):
        if choice.model is not model:
            raise AdapterError(
                "the adapter given is bound to another model; pass its class, or one bound to this model."
            )
        return choice
    if not isinstance(choice, str):
        made = choice(model) if callable(choice) else None
        if not isinstance(made, Adapter):
            raise AdapterError(
                f"adapter must be a name, or an Adapter, its class or a function that makes it, not {choice!r}."
            )
        return made
    installed, broken = installed_adapters()
    if choice != "auto":
        if choice not in installed:
            raise AdapterError(unknown_name("adapter", choice, {*installed, "auto"}))
        if _is_missing(installed[choice]):
            raise AdapterError(f"adapter {choice!r} needs its framework: {_install_hint(installed[choice])}")
        return installed[choice](model)
    claiming = [adapter for name, adapter in installed.items() if _claims(name, adapter, model)]
    if len(claiming) == 1:
        return claiming[0](model)
    kind = type(model).__name__
    if claiming:
        names = ", ".join(repr(adapter.name) for adapter in claiming)
        raise AdapterError(
            f"{kind} is claimed by several adapters ({names}); choose one: adapter={claiming[0].name!r}."
        )
    missing = [f"{_install_hint(adapter)}" for adapter in installed.values() if _is_missing(adapter)]
    raise AdapterError(
        f"no adapter claims {kind}: it holds no neuron of a framework known here "
        f"(installed adapters: {', '.join(installed) or 'none'}). "
        + (f"Broken: {', '.join(f'{name} ({error!r})' for name, error in broken.items())}. " if broken else "")
        + (f"Not installed: {'; '.join(missing)}. " if missing else "")
        + "Name one with adapter=..., or write one (docs/architecture.md, seenn_plugin.adapter.Adapter)."
    )


def _claims(name: str, adapter: type[Adapter], model: nn.Module) -> bool:
    try:
        return bool(adapter.claims(model))
    except Exception as error:
        warnings.warn(
            f"adapter {name!r} cannot say whether it fits and was skipped: {error!r}", RuntimeWarning, stacklevel=5
        )
        return False


def _is_missing(adapter: type[Adapter]) -> bool:
    return adapter.framework is not None and importlib.util.find_spec(adapter.framework) is None


def _install_hint(adapter: type[Adapter]) -> str:
    package = f'"seenn-plugin[{adapter.extra}]"' if adapter.extra else str(adapter.framework)
    return f"pip install {package} ({adapter.framework})"
