"""Copies of a model with other arithmetic, which takes less time: an option of the user's.

Folded batch normalisation, channels-last memory format and autocast change answers in their last bits, and at a spike
threshold the last bit may decide about a spike. They are therefore off by default. They act on a copy, so that the
caller's model stays as it is, and the copy is compared with the model on the caller's first batch.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import chain
from types import MethodType
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..adapter.contract import Adapter, Reference, Rows
from ..adapter.module_adapter import ModuleAdapter
from ..discovery.probing import check_rows
from ..engine.trace import advance_to, trace
from ..errors import InputError, ModelRefused
from ..inputs import InputBatch
from ..policies import PlanPolicy, Policy
from ..policies.base import exit_timesteps, leaves
from ..readout import Outputs, Readout
from ..state.cells import OCCUPIED, every_module
from ..state.change_detection import ModelFingerprint
from ..state.hooks import OWN_HOOK
from ..state.isolation import isolated
from ..state.memory_format import channels_last
from ..state.values import map_tensors, same
from ..tolerance import largest_difference, rows_agree
from .compile_settings import CompileSettings
from .compiled_adapter import CompiledAdapter, StepCache
from .folding import LAYERS, Pair, fold

_SEED: Final = 20230401
_TRIED: Final = 8  # the most timesteps that the copy is run for while it is made
_COMPARED: Final = 64  # rows
_POOR: Final = 0.95  # agreement below which there is a warning,
_ENOUGH: Final = 16  # if at least so many rows were compared
_KEPT: Final = 4  # copies, each for one kind of input
_DTYPES: Final = (torch.bfloat16, torch.float16)
_HOOKS: Final = (
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
)


@dataclass(frozen=True)
class Options:
    """Which options are on.

    Attributes:
        fold: fold batch normalisation into the layer before it (:mod:`seenn_plugin.acceleration.folding`).
        channels_last: keep images in channels-last memory format.
        autocast: run timesteps under :class:`torch.autocast` with this dtype; membrane potentials stay in float32.

    Raises:
        InputError: an option has a wrong type.
    """

    fold: bool = False
    channels_last: bool = False
    autocast: torch.dtype | None = None

    def __post_init__(self) -> None:
        for name in ("fold", "channels_last"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} must be True or False, not {getattr(self, name)!r}.")
        if self.autocast is not None and self.autocast not in _DTYPES:
            raise InputError(f"autocast must be torch.bfloat16, torch.float16 or None, not {self.autocast!r}.")

    def __bool__(self) -> bool:
        return self.fold or self.channels_last or self.autocast is not None


@dataclass(frozen=True)
class Agreement:
    """The answers of the copy beside those of the model, on the first rows of a kind.

    Attributes:
        own, found: decision logits ``[T, n, C]`` of the model and of the copy.
    """

    own: Tensor
    found: Tensor

    @property
    def rows(self) -> int:
        return self.own.shape[1]

    @property
    def same_class(self) -> int:
        """Rows with the same class after all timesteps, at every position if there are several."""
        same = self.own[-1].argmax(1) == self.found[-1].argmax(1)
        return int(same.flatten(1).all(1).sum() if same.ndim > 1 else same.sum())

    @property
    def same_trace(self) -> int:
        """Rows whose logits agree within tolerance after every timestep."""
        return int(rows_agree(self.found, self.own, row_dim=1).sum())

    def same_exit(self, policy: Policy) -> int | None:
        """Rows with the same exit; ``None`` for a policy that plans before it sees any logits."""
        if any(isinstance(leaf, PlanPolicy) for leaf in leaves(policy)):
            return None
        return int((exit_timesteps(policy, self.own) == exit_timesteps(policy, self.found)).sum())

    def describe(self, policy: Policy) -> str:
        exits = self.same_exit(policy)
        return (
            f"on the first batch {self.same_class} of {self.rows} rows give the same class"
            + (f", {exits} the same exit" if exits is not None else "")
            + f", {self.same_trace} the same logits at every timestep; the largest difference is "
            f"{largest_difference(self.own, self.found):.1e}"
        )


class OptimizedCopy(Adapter):
    """An adapter that steps a copy of the model, in the copy's arithmetic.

    Answers have no gradient, whether or not the caller has gradients on.

    Args:
        inner: the adapter of the copy.
        modules: every module of the caller's model, with that of the copy.
    """

    name = "optimized copy"

    def __init__(self, inner: ModuleAdapter, modules: list[tuple[nn.Module, nn.Module]]) -> None:
        super().__init__(inner.model)
        self.inner = inner
        inner.is_private = True
        self._stepping: Adapter = inner
        self.pairs: list[Pair] = []
        self.channels_last = False
        self.autocast: torch.dtype | None = None
        self.made: list[str] = []  # what was done, in words
        self.agreement: Agreement | None = None
        self._modules = [(vars(own), vars(module), module) for own, module in modules]
        self._copy_of = {id(own): module for own, module in modules}

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        return False

    def compiled(self, settings: CompileSettings, cache: StepCache) -> OptimizedCopy:
        """The same copy, with compiled single steps."""
        other = copy.copy(self)
        other._stepping = CompiledAdapter(self.inner, settings, cache)
        return other

    # -- the abilities of the copy's adapter ----------------------------------------------------------------------

    def begin(self, inputs: InputBatch) -> Rows:
        with self._arithmetic(inputs.device.type):
            return self._stepping.begin(self._in_format(inputs))

    def advance(self, rows: Rows, steps: int = 1) -> Outputs:
        with self._arithmetic(rows.inputs.device.type):
            outputs = self._stepping.advance(rows, steps)
        if self.autocast is None:
            return outputs
        return tuple(output.float() if output.dtype == self.autocast else output for output in outputs)

    def keep(self, rows: Rows, index: Tensor) -> None:
        self.inner.keep(rows, index)

    def place(self, rows: Rows, index: Tensor, inputs: InputBatch) -> None:
        with self._arithmetic(inputs.device.type):
            self.inner.place(rows, index, self._in_format(inputs))

    def refill_blocker(self, rows: Rows) -> str:
        return self.inner.refill_blocker(rows)

    def state_tensors(self, rows: Rows) -> list[Tensor]:
        return self.inner.state_tensors(rows)

    def reference(self, inputs: InputBatch, timesteps: int) -> Reference | None:
        with self._arithmetic(inputs.device.type):
            return self.inner.reference(self._in_format(inputs), timesteps)

    def answer(self, inputs: InputBatch) -> str | None:
        with self._arithmetic(inputs.device.type):
            return self.inner.answer(self._in_format(inputs))

    def own_timesteps(self, inputs: InputBatch) -> int | None:
        with self._arithmetic(inputs.device.type):
            return self.inner.own_timesteps(self._in_format(inputs))

    def structure_version(self) -> int:
        return self.inner.structure_version()

    def explain(self) -> dict[str, str]:
        return self._stepping.explain()

    def describe(self, policy: Policy) -> str:
        """What was done, and how the copy agrees with the model."""
        agreement = "not compared (check=False)" if self.agreement is None else self.agreement.describe(policy)
        return f"{', '.join(self.made)}; {agreement}"

    @contextmanager
    def _arithmetic(self, device: str) -> Iterator[None]:
        cast = nullcontext() if self.autocast is None else torch.autocast(device, dtype=self.autocast)
        with torch.no_grad(), cast:
            yield

    def _in_format(self, inputs: InputBatch) -> InputBatch:
        return inputs.with_values(channels_last(inputs.values, inputs.sequence)) if self.channels_last else inputs

    # -- following the caller's model -----------------------------------------------------------------------------

    def follow(self) -> None:
        """Take over the hooks that the caller's modules have now.

        They run on the modules of the copy. A layer and a normalisation with a hook on either are not folded, so that
        the hook sees the values that it would see on the model.
        """
        neurons = set(self.inner.neurons) if self.autocast is not None else ()
        for own, attributes, module in self._modules:
            for name in _HOOKS:
                hooks, copied = own[name], attributes[name]
                if hooks or copied:
                    copied.clear()
                    copied.update((key, self._bound(hook)) for key, hook in hooks.items())
            if module in neurons:  # after the caller's hooks, which may return any dtype
                attributes["_forward_pre_hooks"][OWN_HOOK] = _to_float32
                attributes["_forward_pre_hooks_with_kwargs"][OWN_HOOK] = True
        for pair in self.pairs:
            if pair.is_folded == pair.has_hooks:
                pair.fold(not pair.has_hooks)

    def _bound(self, hook: Any) -> Any:
        """A hook that is a method of a module of the caller's model, as a method of the copy's."""
        owner = self._copy_of.get(id(hook.__self__)) if isinstance(hook, MethodType) else None
        return hook if owner is None else MethodType(hook.__func__, owner)

    # -- the options ----------------------------------------------------------------------------------------------

    def apply_fold(self, run: Callable[[], list[Tensor]]) -> None:
        self.pairs = fold(self.model, run)
        self.inner.forget()
        left = sum(isinstance(module, nn.modules.batchnorm._BatchNorm) for _, _, module in self._modules)
        left -= len(self.pairs)
        self.made.append(f"fold ({len(self.pairs)} pairs" + (f", {left} left as they are)" if left else ")"))

    def apply_channels_last(self, run: Callable[[], list[Tensor]]) -> None:
        self.channels_last = True

        def lay_out(tensor: Tensor) -> Tensor:
            return tensor.contiguous(memory_format=torch.channels_last) if tensor.ndim == 4 else tensor

        self._change_parameters(lambda _: True, lay_out)
        self.made.append("channels-last")

    def apply_autocast(self, run: Callable[[], list[Tensor]], dtype: torch.dtype) -> None:
        weight = next((p for p in self.model.parameters() if p.is_floating_point() and p.dtype != torch.float32), None)
        if weight is not None:
            raise ModelRefused(
                f"autocast={dtype} is for models in float32, and this one is in {weight.dtype}.",
                "Leave autocast out, or convert the model: model.float().",
            )
        self.autocast = dtype
        self.follow()
        self.inner.forget()
        # Autocast casts the weights of layers at every call. Casting them once is enough if the answers stay equal.
        expected = run()
        undo = self._change_parameters(lambda module: isinstance(module, LAYERS), lambda tensor: tensor.to(dtype))
        try:
            equal = same(run(), expected)
        except Exception:  # other code uses the weights and does not expect this dtype
            equal = False
        if not equal:
            undo()
        self.made.append(f"autocast {str(dtype).removeprefix('torch.')}")

    def _change_parameters(
        self, of: Callable[[nn.Module], bool], change: Callable[[Tensor], Tensor]
    ) -> Callable[[], None]:
        """Replace the parameters of modules, including the parameters kept in pairs. A shared parameter stays shared.

        Returns:
            A function that undoes it.
        """
        stores = [module._parameters for _, _, module in self._modules if of(module)]
        stores += [parameters for pair in self.pairs for parameters in (pair.plain, pair.folded)]
        before = [(store, dict(store)) for store in stores]
        changed: dict[int, nn.Parameter] = {}
        for _, parameters in before:
            for parameter in parameters.values():
                if parameter is not None and id(parameter) not in changed:
                    changed[id(parameter)] = nn.Parameter(change(parameter.detach()), requires_grad=False)
        for store, parameters in before:
            store.update({key: p if p is None else changed[id(p)] for key, p in parameters.items()})

        def undo() -> None:
            for store, parameters in before:
                store.update(parameters)

        return undo


class OptimizedCopies:
    """Optimised copies of one model: made at first use on a kind of input, and again if the model has changed.

    Args:
        adapter: the adapter of the caller's model.
        options: at least one of them is on.
    """

    def __init__(self, adapter: ModuleAdapter, options: Options) -> None:
        self.adapter = adapter
        self.options = options
        self._made: dict[Any, OptimizedCopy] = {}
        self._fingerprint: ModelFingerprint | None = None
        self._warned = False

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_made": {}, "_fingerprint": None}  # a copy has another model

    def adapter_for(
        self, inputs: InputBatch, timesteps: int, chunk: int, readout: Readout, compare: bool
    ) -> OptimizedCopy:
        """The adapter of the copy for this kind of input, as the caller's model is now.

        Args:
            inputs: of ``N >= 1`` rows.
            timesteps: T.
            chunk: timesteps computed at a time.
            readout: makes the decision logits that are compared.
            compare: whether to compare the copy with the model on the first rows.

        Raises:
            ModelRefused: the model cannot be copied, or an option, which is named, does not work with it.
        """
        own = self.adapter
        if self._fingerprint is not None and self._fingerprint.changed():
            self._made, self._fingerprint = {}, None
        key = (*inputs.kind, chunk)
        found = self._made.get(key)
        if found is None:
            with isolated(own.model), torch.no_grad():
                found = self._make(inputs, timesteps, chunk)
                if compare:
                    found.agreement = self._compare(found, inputs, timesteps, chunk, readout)
            self._made[key] = found
            while len(self._made) > _KEPT:
                del self._made[next(iter(self._made))]
            self._fingerprint = ModelFingerprint(own.model, own.places_of_state())
        found.follow()
        return found

    def _make(self, inputs: InputBatch, timesteps: int, chunk: int) -> OptimizedCopy:
        """Copy the model and turn on one option after the other. The copy is run after each."""
        rows = check_rows(inputs)
        steps = min(timesteps, _TRIED)

        def run(adapter: Adapter) -> tuple[list[Tensor], Rows]:
            torch.manual_seed(_SEED)
            begun = adapter.begin(rows)
            made = advance_to(adapter, begun, steps, chunk)
            return [output for outputs in made for output in outputs], begun

        def everything(adapter: OptimizedCopy) -> list[Tensor]:
            outputs, begun = run(adapter)
            return [*outputs, *chain(*adapter.inner.named_state(begun).values())]

        own, own_rows = run(self.adapter)
        optimized = self._copy()
        apply: list[tuple[str, Callable[..., None]]] = []
        options = self.options
        if options.fold:
            apply.append(("fold=True", optimized.apply_fold))
        if options.channels_last:
            apply.append(("channels_last=True", optimized.apply_channels_last))
        if options.autocast is not None:
            apply.append((f"autocast={options.autocast}", partial(optimized.apply_autocast, dtype=options.autocast)))
        kind = type(self.adapter.model).__name__
        for name, option in apply:
            remedy = f"Leave {name.split('=')[0]} out."
            try:
                option(lambda: everything(optimized))
                found, found_rows = run(optimized)
            except ModelRefused as error:
                raise ModelRefused(f"{name} does not work with {kind}: {error.reason}", error.remedy) from error
            except Exception as error:
                raise ModelRefused(
                    f"{name} does not work with {kind}: its copy raised {type(error).__name__}: {error}.", remedy
                ) from error
            state, found_state = self.adapter.named_state(own_rows), optimized.inner.named_state(found_rows)
            if state.keys() != found_state.keys():  # changed in a way that its structure does not show: pruned
                self.adapter.forget()
                own, own_rows = run(self.adapter)
                state = self.adapter.named_state(own_rows)
            _refuse_other_dtypes(name, kind, state, found_state)
            pairs = list(zip([*own, *chain(*state.values())], [*found, *chain(*found_state.values())], strict=True))
            if any(a.shape != b.shape for a, b in pairs):
                raise ModelRefused(f"{name} does not work with {kind}: answers or state have another shape.", remedy)
            if any(bool((a.isfinite() & ~b.isfinite()).any()) for a, b in pairs):
                raise ModelRefused(f"{name} does not work with {kind}: NaN or infinite values come out.", remedy)
        return optimized

    def _copy(self) -> OptimizedCopy:
        """A copy of the model and its adapter, with fresh state. Call it while the model is isolated."""
        own, memo = self.adapter, {}
        own.reset()
        try:
            inner = copy.deepcopy(own, memo)
        except Exception as error:
            raise ModelRefused(
                f"{type(own.model).__name__} cannot be copied: {type(error).__name__}: {error}.",
                "fold, channels_last and autocast act on a copy of the model: make it one that copy.deepcopy takes, "
                "or leave them out.",
            ) from error
        vars(inner.model).pop(OCCUPIED, None)
        for parameter in inner.model.parameters():
            parameter.grad = None
            parameter.requires_grad_(False)
        modules = [(module, memo[id(module)]) for _, module in every_module(own.model)]
        return OptimizedCopy(inner, modules)

    def _compare(
        self, optimized: OptimizedCopy, inputs: InputBatch, timesteps: int, chunk: int, readout: Readout
    ) -> Agreement:
        rows = inputs.narrow(0, min(_COMPARED, len(inputs)))
        traces = []
        for adapter in (self.adapter, optimized):
            torch.manual_seed(_SEED)
            traces.append(trace(adapter, readout, rows, timesteps, chunk).detach().clone())
        agreement = Agreement(*traces)
        names = ", ".join(optimized.made)
        if bool((agreement.own.isfinite() & ~agreement.found.isfinite()).any()):
            raise ModelRefused(
                f"with {names}, {type(self.adapter.model).__name__} answers NaN or infinity where it does not by "
                "itself.",
                "Leave out an option: autocast first.",
            )
        poor = agreement.rows >= _ENOUGH and agreement.same_class < _POOR * agreement.rows
        if poor and not self._warned:
            self._warned = True
            warnings.warn(
                f"with {names}, {agreement.rows - agreement.same_class} of the first {agreement.rows} rows give "
                "another class than the model itself. A network that is not trained, or is unsure, may do so by "
                "rounding at its spike thresholds: compare the accuracy on your data, or leave out an option "
                "(autocast first).",
                RuntimeWarning,
                stacklevel=5,
            )
        return agreement


State = dict[str, list[Tensor]]


def _refuse_other_dtypes(name: str, kind: str, own: State, found: State) -> None:
    """Refuse an option under which state would be kept in less than its precision."""
    for label, held in own.items():
        dtypes = [{tensor.dtype for tensor in state} for state in (held, found[label])]
        if dtypes[0] != dtypes[1]:
            raise ModelRefused(
                f"{name} does not work with {kind}: it would keep {label} as {_names(dtypes[1])} from one "
                f"timestep to the next, not as {_names(dtypes[0])}.",
                "Start it as a float32 tensor, or leave the option out.",
            )


def _names(dtypes: set[torch.dtype]) -> str:
    return ", ".join(sorted(map(str, dtypes))) or "no tensor"


def _to_float32(_: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
    """Neurons charge, compare and reset in float32, whatever the dtype of the layer before them."""

    def cast(tensor: Tensor) -> Tensor:
        return tensor.float() if tensor.is_floating_point() else tensor

    return map_tensors(cast, inputs), map_tensors(cast, named)
