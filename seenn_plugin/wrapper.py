"""The front door: wrap a spiking network, and each input takes only the timesteps that it needs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, Self, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from . import engine
from ._arguments import check as check_arguments
from ._arguments import flag_mistake
from .acceleration import CompiledAdapter, CompileSettings, OptimizedCopies, OptimizedCopy, Options, StepCache
from .adapter import Adapter, AdapterChoice, ModuleAdapter, find_adapter
from .adapter.full_run import FullRun
from .calibration import policy_fitting, thresholds, traces
from .engine import ExitResult
from .engine.inspection import Inspection, Inspector, Settings
from .errors import AdapterError, InputError, PolicyError, ReadoutError, SeennError
from .explanation import Explanation
from .inputs import InputBatch, InputKind, as_input_batch, guess_timesteps
from .policies import FixedPolicy, Policy, RLPolicy, make_policy
from .policies.base import leaves, map_leaves, networks, start_rows
from .readout import OutputFires, Readout, ReadoutChoice, SilentOutputReadout, make_readout
from .state.values import map_tensors
from .stepping.answer import OutputChoice
from .stepping.time_loop import has_loop

_Answer = TypeVar("_Answer")
_SLOTS: Final = 64
_SLOTS_ELSEWHERE: Final = 256
_CACHE: Final = 4 * 2**20  # bytes
_MOST_SLOTS: Final = 4096


class EarlyExitWrapper(nn.Module):
    """Make a spiking network stop, row by row, as soon as it knows the answer.

    The network is used as it is: its code, weights, state and hooks are the same before and after every call. At first
    use on a kind of input the wrapper finds out how the network carries its state, and checks on the first rows that
    stepping it gives its own answers. A network that cannot be stepped is refused, with the reason.

    Args:
        model: a one-step or multi-step network of a framework with an adapter (SpikingJelly, snnTorch, ...).
        policy: when a row stops: ``"confidence"``, ``"entropy"``, ``"margin"``, ``"patience"``, ``"stability"``,
            ``"fixed"``, ``"rl"`` (after :meth:`fit_policy`), or a :class:`~seenn_plugin.policies.Policy` class or
            instance.
        timesteps: T, the most timesteps that a row may take. If not given: for static input the model's ``T`` or
            ``num_steps``, or the timesteps of the time loop inside its ``forward``; for a sequence the length of its
            time axis.
        input: ``"static"``: ``[N, ...]``, shown at every timestep; ``"sequence"``: one frame for each timestep.
        time_dim: the time axis of a sequence: 0 for ``[T, N, ...]``, 1 for ``[N, T, ...]``.
        adapter: name, class or instance of the adapter, where the guess is wrong.
        output: which part of what ``forward`` returns is its answer: a key or attribute, a position, or a function of
            what it returns. By default the first tensor, and in a dictionary or dataclass the only one of
            floating-point numbers.
        readout: how outputs become decision logits: ``"sum"``, ``"mean"``, ``"last"``, ``"membrane"``, ``"max"``,
            ``"first_spike"``, a :class:`~seenn_plugin.readout.Readout`, a function ``[t, n, ...] -> [n, C]``, or
            ``"auto"`` to choose from the outputs.
        chunk: timesteps computed at a time. Decisions are made at every timestep; a row that stops inside a chunk is
            computed to its end, which ``steps_executed`` counts. ``"auto"`` measures on the first batch which of the
            divisors of T is fastest. By default 1, and for networks with little state up to 8, at most T / 32.
        slots: the most rows that are active at a time. ``infer`` runs a larger batch through so many slots, as
            :meth:`stream` does. By default 64 on a CPU, and 256 elsewhere; for ``infer`` on a CPU as many rows as have
            states that fit into the caches, if these are more.
        check_every: timesteps between two synchronisations with the host. Decisions are made at every timestep. On a
            GPU each synchronisation waits for the device; without it, rows that have stopped are computed on.
        check: whether to check on the first rows that stepping gives the network's own answers.
        compile: compile single timesteps with ``torch.compile``'s compiler, for batches of ``slots`` rows, a half, a
            quarter and an eighth of that, and one; or for the batch sizes given, such as ``(64, 1)``. Each is compiled
            when it is first needed, which may take a minute, compared with the model's own step, and compiled again
            when the weights have changed. Other batch sizes, and runs with gradients, use the model's own step. What
            cannot be compiled warns once and runs as it is.
        cuda_graphs: replay single timesteps of such batch sizes as CUDA graphs; may be combined with ``compile``.
        full_run: for a network that is refused: compute all timesteps, and pick the exits afterwards. Nothing is
            saved, and the reports say so; for networks that return the outputs of all timesteps.
        fold: fold batch normalisation into the convolution or linear layer before it, in a copy of the model.
        channels_last: keep images channels-last in memory, in a copy of the model.
        autocast: run a copy of the model under :class:`torch.autocast` with this dtype, ``torch.bfloat16`` or
            ``torch.float16``; membrane potentials stay in float32.

    ``fold``, ``channels_last`` and ``autocast`` change the arithmetic, so that a few rows may answer otherwise, by
    rounding at a spike threshold. :meth:`explain` says how the copy agrees with the model on the first batch, and a
    poor agreement warns. The copy takes the memory of one more model, is made again when weights, settings or modules
    of the model have changed, and runs the model's hooks. A write through ``weight.data`` may be missed if it changes
    few numbers of a large tensor; write under ``torch.no_grad()``. Answers of the copy have no gradient: :meth:`infer`
    gives none while an option is on, and :meth:`trace` uses the model itself while gradients are on.

    Example:
        >>> import snntorch
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 32), snntorch.Leaky(0.9, init_hidden=True), nn.Linear(32, 3)).eval()
        >>> snn = EarlyExitWrapper(model, policy="confidence", timesteps=4)
        >>> result = snn.infer(torch.rand(16, 8))
        >>> result.logits.shape, result.timesteps.shape, result.steps_executed == int(result.timesteps.sum())
        (torch.Size([16, 3]), torch.Size([16]), True)
    """

    def __init__(
        self,
        model: nn.Module,
        policy: str | type[Policy] | Policy = "confidence",
        *,
        timesteps: int | None = None,
        input: InputKind = "static",
        time_dim: int = 0,
        adapter: AdapterChoice = "auto",
        output: OutputChoice | None = None,
        readout: ReadoutChoice = "auto",
        chunk: int | Literal["auto"] | None = None,
        slots: int | None = None,
        check_every: int = 1,
        check: bool = True,
        compile: bool | Sequence[int] = False,
        cuda_graphs: bool = False,
        full_run: bool = False,
        fold: bool = False,
        channels_last: bool = False,
        autocast: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            called = " Wrap the module that it calls." if callable(model) else ""
            raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}.{called}")
        if isinstance(model, EarlyExitWrapper):
            raise InputError("the model is an EarlyExitWrapper already; wrap its model: EarlyExitWrapper(snn.model).")
        if input not in ("static", "sequence"):
            raise InputError(f"input must be 'static' or 'sequence', not {input!r}.")
        if isinstance(time_dim, bool) or not isinstance(time_dim, int) or time_dim not in (0, 1):
            raise InputError(f"time_dim must be 0 ([T, N, ...]) or 1 ([N, T, ...]), not {time_dim!r}.")
        _check_count("chunk", chunk, others=("auto", None))
        _check_count("slots", slots, others=(None,))
        _check_count("check_every", check_every, others=())
        _check_count("timesteps", timesteps, others=(None,))
        flags = {"check": check, "cuda_graphs": cuda_graphs, "full_run": full_run}
        check_arguments(InputError, *(flag_mistake(name, value) for name, value in flags.items()))
        self.model = model
        self.policy = make_policy(policy)
        if isinstance(self.policy, FixedPolicy) and timesteps is not None and (self.policy.timesteps or 1) > timesteps:
            raise PolicyError(f"FixedPolicy({self.policy.timesteps}) is later than timesteps={timesteps}.")
        self.input: InputKind = input
        self.timesteps = timesteps
        self.time_dim = time_dim
        self.chunk: int | Literal["auto"] | None = chunk
        self.slots = slots
        self.check_every = check_every
        self.check = check
        self.readout = make_readout(readout)
        self.adapter = find_adapter(model, adapter)
        if output is not None:
            if not isinstance(self.adapter, ModuleAdapter):
                raise AdapterError(f"output= is not offered by the adapter {self.adapter.name!r}; leave it out.")
            self.adapter.output = output
        self._compile = CompileSettings.of(compile, cuda_graphs)
        if self._compile is not None and (full_run or not isinstance(self.adapter, ModuleAdapter)):
            what = "full_run=True" if full_run else f"the adapter {self.adapter.name!r}"
            raise AdapterError(f"compile= and cuda_graphs= compile single timesteps, which {what} does not offer.")
        self._copies = self._optimized_copies(Options(fold, channels_last, autocast), full_run)
        if full_run:
            if not isinstance(self.adapter, ModuleAdapter):
                raise AdapterError(f"full_run=True is not offered by the adapter {self.adapter.name!r}.")
            self.adapter = FullRun(self.adapter)
        if self.timesteps is None and input == "static" and not any(map(has_loop, model.modules())):
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        self.calibration: thresholds.Calibration | None = None
        self.policy_fit: policy_fitting.PolicyFit | None = None
        self._inspector = Inspector(self.adapter)
        self._compiled_steps: StepCache = WeakKeyDictionary()

    def extra_repr(self) -> str:
        readout = self.readout.name if self.readout else "auto"
        return (
            f"policy={self.policy}, readout={readout}, timesteps={self.timesteps}, input={self.input}, "
            f"adapter={self.adapter.name}"
        )

    # -- answers --------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor) -> Tensor:
        """Decision logits ``[N, C]``, each row's at its own exit."""
        return self.infer(x).logits

    def infer(self, x: Tensor) -> ExitResult:
        """Answer a batch, each row with as few timesteps as the policy lets it take.

        Args:
            x: ``[N, ...]`` for static input; ``[T, N, ...]`` or ``[N, T, ...]`` for a sequence. N may be 0.

        Raises:
            InputError: the input does not fit.
            ModelRefused: the model cannot be stepped row by row with the right answer.
        """
        inputs = self._input_batch(x)
        if not len(inputs):
            return engine.no_rows(self._inspector.inspect_anew(inputs, self._settings(check=False)).no_logits)
        return self._reading_what_fires(inputs, self._infer)

    def _infer(self, inputs: InputBatch) -> ExitResult:
        inspection = self._inspect(inputs)
        config = self._run_config(inspection, inputs, self._slots)
        state = self._start(config, inspection, inputs)
        # New rows that join active ones would connect the gradients of all rows.
        slots = len(inputs) if torch.is_grad_enabled() else self._slots_of_batch(inspection, inputs)
        refill = len(inputs) > slots and not self._refill_blocker(config, inspection, inputs, state)
        return engine.infer(config, state, inputs, slots, refill)

    def stream(self, samples: Iterable[Any], *, slots: int | None = None, ordered: bool = True) -> engine.Stream:
        """Answer single samples as they come: a finished sample's slot is reused by the next (continuous batching).

        Gradients are off. If the rows of the model share a clock (:meth:`explain` says so), samples are processed in
        consecutive batches of at most ``slots`` rows instead.

        Args:
            samples: yields tensors, or pairs ``(key, tensor)``; ``[...]`` for static input, ``[T, ...]`` for a
                sequence, all of one shape. Read one at a time, when a slot is free.
            slots: the most samples that are active at a time; by default those of the wrapper.
            ordered: answers in the order of the samples; else as they are found.

        Returns:
            An iterator over answers: ``.key`` (the position, if the caller gave none), ``.logits`` ``[C]``,
            ``.timesteps``, ``.score``. It has ``.steps_executed``, and ``.close()`` ends it early.

        Raises:
            InputError: a sample is no tensor, or unlike the first. Raised when the samples before it are answered.
            ModelRefused: the model cannot be stepped row by row with the right answer.
        """
        _check_count("slots", slots, others=(None,))
        if isinstance(samples, Tensor) and self._is_sequence:
            raise InputError("stream() takes single sequences [T, ...], one by one; for a batch of them call infer(x).")
        check_arguments(InputError, flag_mistake("ordered", ordered))
        if not isinstance(samples, Iterable):
            raise InputError(f"stream() takes an iterable of samples, not a {type(samples).__name__}.")

        def prepare(first: Tensor) -> tuple[engine.RunConfig, bool, engine.MakeRows]:
            inputs = self._input_batch(first, time_dim=0)
            inspection = self._inspect(inputs)
            # One configuration for the whole stream, also if options of the wrapper change meanwhile.
            config = self._run_config(inspection, inputs, slots or self._slots)
            config = replace(config, readout=_only_warning(config.readout))

            def make_rows(samples: Tensor) -> tuple[InputBatch, Any]:
                rows = inputs.with_values(samples)
                return rows, self._start(config, inspection, rows)

            state = self._start(config, inspection, inputs)
            return config, not self._refill_blocker(config, inspection, inputs, state), make_rows

        return engine.Stream(samples, slots or self._slots, ordered, 1 if self._is_sequence else 0, prepare)

    def plan(self, x: Tensor) -> Any:
        """What the policy knows of each row before its first timestep.

        Returns:
            For ``"rl"`` a :class:`~seenn_plugin.policies.Plan`: ``.timesteps`` long ``[N]`` and ``.score`` ``[N]``.
            ``None`` for a policy that decides on logits alone; for combined policies, a tuple of these.
        """
        inputs = self._input_batch(x)
        inspection = self._inspect(inputs)
        return self._start(self._run_config(inspection, inputs, self._slots), inspection, inputs)

    def policy_for(self, x: Tensor) -> Policy:
        """The policy for input like ``x``, with nothing left open.

        A threshold on spike counts needs a temperature at which the count can reach it within T. Unless the policy has
        one, by the caller or by :meth:`calibrate`, it follows from the network's outputs on this kind of input. The
        wrapper's own :attr:`policy` stays as it is.
        """
        return self._inspect(self._input_batch(x)).settled(self.policy)

    def trace(self, x: Tensor) -> Tensor:
        """Decision logits after every timestep, ``[T, N, C]``, with no exit; differentiable when grad is on."""
        inputs = self._input_batch(x)
        if not len(inputs):
            inspection = self._inspector.inspect_anew(inputs, self._settings(check=False))
            return inspection.no_logits.expand(inspection.timesteps, *inspection.no_logits.shape)
        return self._reading_what_fires(inputs, self._trace)

    def _trace(self, inputs: InputBatch) -> Tensor:
        inspection = self._inspect(inputs)
        adapter = self.adapter if torch.is_grad_enabled() else self._running(inspection, inputs, self._slots)
        return engine.trace(adapter, inspection.readout, inputs, inspection.timesteps, inspection.chunk)

    def steps(self, x: Tensor) -> Iterator[Tensor]:
        """:meth:`trace` as an iterator over timesteps: decision logits ``[N, C]``, each computed when it is asked for.

        The model itself is stepped, one timestep at a time, with any options.
        """
        inputs = self._input_batch(x)
        if not len(inputs):
            return iter(self.trace(x))
        inspection = self._inspect(inputs)
        return engine.steps(self.adapter, _only_warning(inspection.readout), inputs, inspection.timesteps)

    def calibrate(
        self,
        loader: Iterable[Any],
        *,
        max_accuracy_drop: float | None = None,
        average_timesteps: float | None = None,
        progress: bool = False,
    ) -> Self:
        """Choose the policy's temperature and threshold on held-out data, for one of two targets.

        One pass over ``loader`` records traces; everything else is searched on them. The evidence is kept in
        ``self.calibration``.

        Args:
            loader: yields ``(x, labels)`` with labels long ``[N]``. Not the test set, not the training set.
            max_accuracy_drop: the fewest mean timesteps down to which accuracy stays at most this far (a fraction,
                0.005 for half a point) below the accuracy at full T.
            average_timesteps: the highest accuracy at no more mean timesteps than this.
            progress: show a progress bar.

        Raises:
            CalibrationError: no or two targets, a target out of range or one that nothing meets, no data, labels out of
                range, or a policy without a setting to choose.
        """
        thresholds.check_request(self.policy, max_accuracy_drop, average_timesteps, self.timesteps)
        trace, labels = traces.record(self, loader, progress=progress)
        self.calibration = thresholds.calibrate(self.policy, trace, labels, max_accuracy_drop, average_timesteps)
        self.policy = self.calibration.policy
        return self

    def fit_policy(
        self,
        train_loader: Iterable[Any],
        val_loader: Iterable[Any],
        *,
        max_accuracy_drop: float | None = None,
        average_timesteps: float | None = None,
        beta: float | None = None,
        step_cost: float | None = None,
        progress: bool = False,
        log_dir: str | Path | None = None,
        checkpoint: str | Path | None = None,
        **options: Any,
    ) -> Self:
        """Fit the network of the ``"rl"`` policy (SEENN-II), for one of two targets or with a given reward.

        Traces of the frozen spiking network are recorded once. A policy network is then fitted for several values of
        the reward's parameter, and the one that suits the target on ``val_loader`` is chosen. The evidence, with all
        values tried, is kept in ``self.policy_fit``. A policy network of your own is copied, not changed. In a
        combination of policies the rl policy is fitted alone.

        Args:
            train_loader: yields ``(x, labels)`` with labels long ``[N]``. Samples that the spiking network has
                memorised say little about those that it finds hard: prefer samples that it was not trained on.
            val_loader: likewise, disjoint from ``train_loader``, and not the test set.
            max_accuracy_drop: the fewest mean timesteps with an accuracy at most this far (a fraction, 0.005 for half
                a point) below that at full T.
            average_timesteps: the highest accuracy at no more mean timesteps than this.
            beta: instead of a target, what a wrong answer costs (``cost="exponential"``).
            step_cost: instead of a target, what a timestep costs (``cost="linear"``).
            progress: show progress bars.
            log_dir: write TensorBoard scalars there, one run for each value of the reward's parameter.
            checkpoint: a file from which an interrupted fit goes on, with the same result.
            options: see :class:`~seenn_plugin.calibration.policy_fitting.FitSettings`.

        Raises:
            PolicyError: there is no rl policy, or more than one; a wrong option; or a bad policy network.
            CalibrationError: data from which no policy can be fitted, or a target that no policy met.
        """
        unfitted = [leaf for leaf in leaves(self.policy) if isinstance(leaf, RLPolicy)]
        if len(unfitted) != 1:
            raise PolicyError(f"fit_policy fits one rl policy, and {self.policy} has {len(unfitted)}: policy='rl'.")
        settings = policy_fitting.FitSettings.of(options)
        if self.timesteps is not None:
            unfitted[0].candidates_for(self.timesteps)  # raises before anything is recorded
        self.policy_fit = policy_fitting.fit_policy(
            self,
            unfitted[0],
            train_loader,
            val_loader,
            settings,
            max_accuracy_drop=max_accuracy_drop,
            average_timesteps=average_timesteps,
            beta=beta,
            step_cost=step_cost,
            progress=progress,
            log_dir=log_dir,
            checkpoint=checkpoint,
        )
        fitted = self.policy_fit.policy
        self.policy = map_leaves(lambda leaf: fitted if leaf is unfitted[0] else leaf, self.policy)
        return self

    def explain(self, x: Tensor) -> Explanation:
        """How this model is stepped: adapter, state, readout, policy, checks, and why it is refused if it is."""
        page = Explanation(type(self.model).__name__, self.adapter.name)
        try:
            inputs = self._input_batch(x)
            inspection = self._inspect(inputs)
            running = self._running(inspection, inputs, self._slots) if len(inputs) else self.adapter
        except SeennError as error:
            page.refused = str(error)
            page.facts |= self.adapter.explain()
            return page
        axes = "a sequence, one frame per timestep" if self._is_sequence else "static, shown at every timestep"
        chunk = f"{inspection.chunk} at a time{inspection.chunk_reason}"
        policy = inspection.settled(self.policy)
        page.facts["input"] = f"{axes}; {inspection.timesteps} timesteps, {chunk}"
        if self.timesteps not in (None, inspection.timesteps) and self._timesteps is None:
            page.facts["input"] += f" (the model's own number; its attribute says {self.timesteps}, which is not used)"
        page.facts |= running.explain()
        page.facts["readout"] = f"{inspection.readout.name}: {inspection.readout_reason}"
        page.facts["classes"] = str(inspection.classes)
        page.facts["policy"] = str(policy)
        page.facts["skipped"] = (
            "every timestep after a row's exit: its row leaves the input and every state"
            if self.adapter.skips_finished_rows
            else "nothing: all timesteps are computed, and the exits are picked afterwards (full_run=True)"
        )
        page.facts["slots"] = self._explain_slots(inspection, inputs)
        if isinstance(running, OptimizedCopy):
            page.facts["options"] = running.describe(policy)
        if inspection.firing:
            rates = (f"{name} {100 * rate:.1f} %" for name, rate in inspection.firing.items())
            page.facts["firing rates"] = f"{', '.join(rates)} in the checks"
        page.checks = list(inspection.checks) or ["none made"]
        return page

    # -- saving ---------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> Tensor:
        # A tensor, as everything in a state_dict: safetensors takes nothing else.
        state = {"policy": type(self.policy).__name__, "settings": self.policy.settings()}
        return torch.tensor(list(json.dumps(state).encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Any) -> None:
        if isinstance(state, Tensor):  # earlier versions saved the dictionary itself
            state = json.loads(bytes(state.tolist()))
        if state["policy"] != type(self.policy).__name__:
            raise PolicyError(f"the saved policy is {state['policy']}, this wrapper's is {type(self.policy).__name__}.")
        self.policy = self.policy.with_settings(state["settings"])
        weight = next(self.model.parameters(), None)
        if weight is not None:  # a policy network that was just made goes where the model is
            self.policy_networks.to(weight.device, weight.dtype)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_compiled_steps"]  # compiled for this model, not for a copy
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._compiled_steps = WeakKeyDictionary()

    # -- how ------------------------------------------------------------------------------------------------------

    @property
    def policy(self) -> Policy:
        """When a row stops. The networks that it holds are submodules of the wrapper."""
        return self._policy

    @policy.setter
    def policy(self, policy: Policy) -> None:
        self._policy = policy
        self.policy_networks = nn.ModuleList(networks(policy))

    @property
    def timesteps(self) -> int | None:
        """T as the caller has given it; else, for static input, the number that the model carries in an attribute.

        A time loop inside ``forward`` makes its own number of timesteps, which counts for more than an attribute.
        """
        if self._timesteps is not None or self._is_sequence:
            return self._timesteps
        return guess_timesteps(self.model)

    @timesteps.setter
    def timesteps(self, timesteps: int | None) -> None:
        _check_count("timesteps", timesteps, others=(None,))
        self._timesteps = timesteps

    @property
    def _is_sequence(self) -> bool:
        return self.input == "sequence"

    @property
    def _slots(self) -> int:
        if self.slots is not None:
            return self.slots
        weight = next(self.model.parameters(), None)
        return _SLOTS if weight is None or weight.device.type == "cpu" else _SLOTS_ELSEWHERE

    def _slots_of_batch(self, inspection: Inspection, inputs: InputBatch) -> int:
        """The most rows of a batch that are active at a time: on a CPU those whose states fit into the caches."""
        if self.slots is not None or self._compile is not None or inputs.device.type != "cpu":
            return self._slots
        return max(self._slots, min(_MOST_SLOTS, _CACHE // max(1, inspection.row_bytes)))

    def _input_batch(self, x: Tensor, time_dim: int | None = None) -> InputBatch:
        """``x`` checked, with its time axis at ``time_dim``; by default where the model has it."""
        dim = self.time_dim if time_dim is None else time_dim
        return replace(as_input_batch(x, self.model, self.input, dim, self.timesteps), time_dim=self.time_dim)

    def _reading_what_fires(self, inputs: InputBatch, run: Callable[[InputBatch], _Answer]) -> _Answer:
        """The answer of ``run``, made again if output neurons spike that had been silent in the first inspection."""
        try:
            return run(inputs)
        except OutputFires:
            self._inspector.output_fires(inputs, self._settings(self.check))
        return run(inputs)

    @property
    def readout_changes(self) -> int:
        """How often a readout that was chosen for a silent output has been chosen again, because it spiked."""
        return self._inspector.readout_changes

    def _inspect(self, inputs: InputBatch) -> Inspection:
        found = self._inspector.inspect(inputs, self._settings(self.check))
        if found.no_logits.ndim > 2 and not self.policy.takes_maps:
            shape = ", ".join(map(str, found.no_logits.shape[1:]))
            raise ReadoutError(
                f"the model answers with [N, {shape}], and {type(self.policy).__name__} decides on logits [N, C]. If "
                "the first dimension of the input is time, pass input='sequence'. For an answer at every position "
                "(segmentation) pass policy=PatiencePolicy(2, share=0.99), which counts positions, or "
                "StabilityPolicy(), or readout=function, [t, n, ...] -> [n, C], as a mean over positions."
            )
        return found

    def _settings(self, check: bool) -> Settings:
        chunk = 1 if self.chunk is None and self._compile is not None else self.chunk  # single timesteps are compiled
        return Settings(self.readout, self.policy, chunk, check, self._slots, self._timesteps is not None)

    def _run_config(self, inspection: Inspection, inputs: InputBatch, slots: int) -> engine.RunConfig:
        return engine.RunConfig(
            adapter=self._running(inspection, inputs, slots),
            readout=inspection.readout,
            policy=inspection.settled(self.policy),
            timesteps=inspection.timesteps,
            chunk=inspection.chunk,
            check_every=self.check_every if self.adapter.skips_finished_rows else 1,
        )

    def _running(self, inspection: Inspection, inputs: InputBatch, slots: int) -> Adapter:
        """The adapter that answers: the model's, or that of an optimised copy, with compiled steps if asked for."""
        settings = self._compile and self._compile.for_slots(slots)
        if self._copies is not None:
            optimized = self._copies.adapter_for(
                inputs, inspection.timesteps, inspection.chunk, inspection.readout, self.check
            )
            return optimized if settings is None else optimized.compiled(settings, self._compiled_steps)
        if settings is None or not isinstance(self.adapter, ModuleAdapter):
            return self.adapter
        return CompiledAdapter(self.adapter, settings, self._compiled_steps)

    def _optimized_copies(self, options: Options, full_run: bool) -> OptimizedCopies | None:
        """What makes copies with ``options``; ``None`` if all of them are off."""
        if not options:
            return None
        if full_run:
            raise InputError("fold, channels_last and autocast are not offered with full_run=True; leave one out.")
        if not isinstance(self.adapter, ModuleAdapter):
            raise AdapterError(
                f"fold, channels_last and autocast are not offered by the adapter {self.adapter.name!r}; leave them "
                "out."
            )
        return OptimizedCopies(self.adapter, options)

    def _start(self, config: engine.RunConfig, inspection: Inspection, inputs: InputBatch) -> Any:
        """What the policy knows of rows before their first timestep."""
        return start_rows(config.policy, inputs, config.timesteps, inspection.classes)

    def _refill_blocker(self, config: engine.RunConfig, inspection: Inspection, inputs: InputBatch, state: Any) -> str:
        """Why new rows cannot take the places of finished ones; empty if they can."""
        reason = config.adapter.refill_blocker(config.adapter.begin(inputs.narrow(0, 1)))
        if reason:
            return reason
        try:
            mixes = config.can_mix(map_tensors(lambda rows: rows[:1], state), inspection.first_steps)
        except Exception as error:  # where it matters, the caller's rows raise it again
            return f"readout or policy fails on a single row ({type(error).__name__})"
        return "" if mixes else "the state of readout or policy changes its form with time"

    def _explain_slots(self, inspection: Inspection, inputs: InputBatch) -> str:
        most = self._slots_of_batch(inspection, inputs)
        slots = f"at most {most} active rows" + (f", {self._slots} in a stream" if most > self._slots else "")
        if not len(inputs):
            return slots
        config = self._run_config(inspection, inputs, self._slots)
        try:
            state = self._start(config, inspection, inputs)
        except PolicyError as error:  # its network was not fitted
            return f"{slots}, once the policy answers: {error}"
        reason = self._refill_blocker(config, inspection, inputs, state)
        if reason:
            return f"{slots}; more rows are processed in consecutive batches, because {reason}"
        return f"{slots}; further rows take the places of finished ones"


def _only_warning(readout: Readout) -> Readout:
    """The readout for answers that are handed out before all are known."""
    return replace(readout, raises=False) if isinstance(readout, SilentOutputReadout) else readout


def _check_count(name: str, value: Any, others: tuple[Any, ...]) -> None:
    if value not in others and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name} must be an integer of at least 1, not {value!r}.")
