"""The front door: wrap a spiking network, and each input takes only the timesteps that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, Literal, Self

import torch
from torch import Tensor, nn

from . import calibration as _calibration
from . import engine, policy_training
from .adapter import Adapter, AdapterChoice, find_adapter
from .captured_step import CaptureSettings
from .checks import CheckResult, run_checks
from .engine import ExitResult
from .engine.trace import advance_to, read_all
from .errors import AdapterError, InputError, ModelRefused, PolicyError, SeennError
from .explanation import Explanation
from .full_run import FullRun
from .inputs import InputKind, as_rows, guess_timesteps, refuse_training_mode
from .module_adapter import ModuleAdapter
from .module_state import isolated, map_tensors, modules_of
from .policies import FixedPolicy, Policy, RLPolicy, make_policy, start_rows
from .policies.combined import leaves, map_leaves, networks
from .prepared import Options, Preparation, PreparedAdapter
from .probing import check_rows
from .readout import Outputs, Readout, ReadoutChoice, choose_readout, make_readout, spike_lead
from .time_loop import has_loop

_OFFER = (
    "To see how early it could have answered, pass full_run=True: all timesteps are computed and the exits picked "
    "afterwards, which saves nothing."
)

_SLOTS: Final = 64
_SLOTS_ELSEWHERE: Final = 256


@dataclass(frozen=True)
class _Look:
    """What the first look at a kind of input settled."""

    timesteps: int
    readout: Readout
    readout_reason: str
    lead: float | None  # of spikes, see readout.spike_lead
    no_logits: Tensor  # of no rows, [0, C]: number of classes, dtype and device
    first_steps: tuple[Outputs, ...]  # outputs of one row at its first timesteps
    chunk: int
    chunk_reason: str
    checks: tuple[CheckResult, ...]

    @property
    def classes(self) -> int:
        return self.no_logits.shape[1]


class EarlyExitWrapper(nn.Module):
    """Make a spiking network stop, row by row, as soon as it knows the answer.

    The network is used as it is: its code, weights, state and hooks are the caller's before and after every call.
    At first use on a kind of input the wrapper looks at how the network carries its state and checks, on the first
    rows, that stepping it gives its own answers; what cannot be stepped is refused with the reason.

    Args:
        model: a one-step or multi-step network of a framework with an adapter (SpikingJelly, snnTorch, ...).
        policy: when a row stops: ``"confidence"``, ``"entropy"``, ``"margin"``, ``"patience"``, ``"fixed"``,
            ``"rl"`` (after :meth:`fit_policy`), or a :class:`~seenn_plugin.policies.Policy` class or instance.
        timesteps: T, the most timesteps that a row may take. For static input, if not given, read from the model's
            ``T`` or ``num_steps``, or what the time loop inside its ``forward`` makes; for a sequence, the length of
            its time axis.
        input: ``"static"``: ``[N, ...]``, shown at every timestep; ``"sequence"``: one frame for each timestep.
        time_dim: the time axis of a sequence: 0 for ``[T, N, ...]``, 1 for ``[N, T, ...]``.
        adapter: name, class or instance of the adapter, where the guess is wrong.
        readout: how outputs become decision logits: ``"sum"``, ``"mean"``, ``"last"``, ``"membrane"``, ``"max"``,
            ``"first_spike"``, a :class:`~seenn_plugin.readout.Readout`, a function ``[t, n, ...] -> [n, C]``, or
            ``"auto"`` to choose by looking at the outputs.
        chunk: timesteps computed at a time, for frameworks with fused multi-step kernels; ``"auto"`` measures on the
            first batch which of the divisors of T is fastest.
        slots: rows in flight at most: ``infer`` runs a larger batch through so many slots, as :meth:`stream` does. By
            default 64 on a CPU, whose caches a larger batch leaves, and 256 elsewhere.
        check_every: timesteps after which the host looks which rows have stopped. Decisions are made at every timestep;
            on a GPU, each look waits for the device, and each timestep without one may compute rows in vain.
        check: whether to check on the first rows that stepping gives the network's own answers.
        compile: compile single timesteps with ``torch.compile``'s compiler, for ``slots`` rows, a half, a quarter
            and an eighth of that, and one; or for the numbers given, such as ``(64, 1)``. Each is compiled when it is
            first needed, which may take a minute, compared with the model's own step, and compiled anew when the
            weights have changed; other numbers of rows, and runs with gradients, take the model's own step. What
            cannot be compiled warns once and runs as it is.
        cuda_graphs: replay single timesteps of such numbers of rows as CUDA graphs; may be combined with ``compile``.
        full_run: for a network that is refused: compute all timesteps, and pick the exits afterwards. Nothing is
            saved, and the reports say so; for networks that return the outputs of all timesteps.
        fold: fold batch normalisation into the convolution or linear layer before it, in a copy of the model.
        channels_last: keep images channels-last in memory, in a copy of the model.
        autocast: run a copy of the model under :class:`torch.autocast` with this dtype, ``torch.bfloat16`` or
            ``torch.float16``; membrane potentials stay in float32.

    ``fold``, ``channels_last`` and ``autocast`` change the arithmetic, so that a few rows may answer otherwise, by
    rounding at a spike threshold. :meth:`explain` says how the copy agrees with the model on the first batch, and a
    poor agreement warns. The copy takes the memory of one more model, is made anew when weights, settings or modules of
    the model have changed, and calls the model's hooks. A write through ``weight.data`` may escape notice if it changes
    few numbers of a large tensor; write under ``torch.no_grad()``. Answers of the copy have no gradient: :meth:`infer`
    gives none while an option is on, and :meth:`trace` uses the model itself while gradients are on.

    Example:
        >>> snn = EarlyExitWrapper(model, policy="confidence", timesteps=4)  # doctest: +SKIP
        >>> result = snn.infer(images)                                       # doctest: +SKIP
        >>> result.timesteps.float().mean()                                  # doctest: +SKIP
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
        readout: ReadoutChoice = "auto",
        chunk: int | Literal["auto"] = 1,
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
            raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if input not in ("static", "sequence"):
            raise InputError(f"input must be 'static' or 'sequence', not {input!r}.")
        if time_dim not in (0, 1):
            raise InputError(f"time_dim must be 0 ([T, N, ...]) or 1 ([N, T, ...]), not {time_dim!r}.")
        _check_count("timesteps", timesteps, others=(None,))
        _check_count("chunk", chunk, others=("auto",))
        _check_count("slots", slots, others=(None,))
        _check_count("check_every", check_every, others=())
        self.model = model
        self.policy = make_policy(policy)
        if isinstance(self.policy, FixedPolicy) and timesteps is not None and self.policy.timesteps > timesteps:
            raise PolicyError(f"FixedPolicy({self.policy.timesteps}) is later than timesteps={timesteps}.")
        self.timesteps = guess_timesteps(model) if timesteps is None and input == "static" else timesteps
        self.input: InputKind = input
        self.time_dim = time_dim
        self.chunk: int | Literal["auto"] = chunk
        self.slots = slots
        self.check_every = check_every
        self.check = check
        self.readout = make_readout(readout)
        self.adapter = find_adapter(model, adapter)
        self.capture = CaptureSettings.of(compile, cuda_graphs)
        if self.capture is not None and (full_run or not isinstance(self.adapter, ModuleAdapter)):
            what = "full_run=True" if full_run else f"the adapter {self.adapter.name!r}"
            raise AdapterError(f"compile= and cuda_graphs= capture single timesteps, which {what} does not offer.")
        self._preparation = self._prepare(Options(fold, channels_last, autocast), full_run)
        if full_run:
            if not isinstance(self.adapter, ModuleAdapter):
                raise AdapterError(f"full_run=True is not offered by the adapter {self.adapter.name!r}.")
            self.adapter = FullRun(self.adapter)
        if self.timesteps is None and input == "static" and not has_loop(model):
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        self.calibration: _calibration.Calibration | None = None
        self.policy_fit: policy_training.PolicyFit | None = None
        self._looks: dict[Any, _Look] = {}

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
        inputs = self._rows(x)
        n = inputs.shape[self._row_dim]
        if n == 0:
            look = self._look_at(inputs, check=False)
            return engine.no_rows(look.no_logits)
        look = self._look(inputs)
        memory = self._start(inputs, look)
        # Rows that join others would tie the gradients of all of them together.
        slots = n if torch.is_grad_enabled() else self._slots
        way = self._way(look, inputs)
        refill = n > slots and not self._why_not_refillable(way, look, inputs, memory)
        return engine.infer(way, memory, inputs, slots, refill)

    def stream(self, samples: Iterable[Any], *, slots: int | None = None, ordered: bool = True) -> engine.Stream:
        """Answer single samples as they come: whoever has answered hands its slot to the next (continuous batching).

        Gradients are off. Where rows share a clock (``explain`` says so), they are run in lots of ``slots`` instead.

        Args:
            samples: yields tensors, or pairs ``(key, tensor)``; ``[...]`` for static input, ``[T, ...]`` for a
                sequence, all alike. Read one at a time, as slots fall free.
            slots: samples in flight at most; by default that of the wrapper.
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
        if not isinstance(samples, Iterable):
            raise InputError(f"stream() takes an iterable of samples, not a {type(samples).__name__}.")

        def prepare(first: Tensor) -> tuple[engine.Way, bool, engine.Start]:
            inputs = self._rows(first, 0, slots)
            look = self._look(inputs)
            way = self._way(look, inputs)

            def start(rows: Tensor) -> Any:
                # By the policy that the stream began with, whatever the wrapper's is by then.
                rows = self._rows(rows, 0, slots)
                return start_rows(way.policy, rows, self._is_sequence, look.timesteps, look.classes)

            return way, not self._why_not_refillable(way, look, inputs, start(inputs)), start

        return engine.Stream(samples, slots or self._slots, ordered, self._row_dim, prepare)

    def plan(self, x: Tensor) -> Any:
        """What the policy knows of each row before its first timestep.

        Returns:
            For ``"rl"`` a :class:`~seenn_plugin.policies.Plan`: ``.timesteps`` long ``[N]`` and ``.score`` ``[N]``.
            ``None`` for a policy that decides on logits alone; for combined policies, a tuple of these.
        """
        inputs = self._rows(x)
        return self._start(inputs, self._look(inputs))

    def trace(self, x: Tensor) -> Tensor:
        """Decision logits after every timestep, ``[T, N, C]``, with no exit; differentiable when grad is on."""
        inputs = self._rows(x)
        if inputs.shape[self._row_dim] == 0:
            look = self._look_at(inputs, check=False)
            return look.no_logits.expand(look.timesteps, 0, -1)
        look = self._look(inputs)
        adapter = self.adapter if torch.is_grad_enabled() else self._running(inputs, look)
        return engine.trace(adapter, look.readout, inputs, self._is_sequence, look.timesteps, look.chunk)

    def steps(self, x: Tensor) -> Iterator[Tensor]:
        """:meth:`trace` one timestep at a time, each made when it is asked for: T times decision logits ``[N, C]``.

        The model itself is run, not the copy that options make.
        """
        inputs = self._rows(x)
        if inputs.shape[self._row_dim] == 0:
            return iter(self.trace(x))
        look = self._look(inputs)
        return engine.steps(self.adapter, look.readout, inputs, self._is_sequence, look.timesteps)

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
            CalibrationError: no or two targets, no data, labels out of range, a target that nothing meets, or a
                policy without a dial.
        """
        traces, labels = _calibration.record(self, loader, progress=progress)
        self.calibration = _calibration.calibrate(self.policy, traces, labels, max_accuracy_drop, average_timesteps)
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
        """Fit the network of the ``"rl"`` policy (SEENN-II), for one of two targets or at a given dial.

        Traces of the frozen spiking network are recorded once; then a policy network is fitted for one setting of the
        reward's dial after the other, and the one that suits the target on ``val_loader`` is chosen. The evidence, with
        all settings tried, is kept in ``self.policy_fit``. A network of your own is copied, not changed. In a
        combination of policies the rl policy is fitted by itself.

        Args:
            train_loader: yields ``(x, labels)`` with labels long ``[N]``. What the spiking network knows by heart
                teaches little about what it finds hard: prefer samples that it was not trained on.
            val_loader: likewise, disjoint from ``train_loader``, and not the test set.
            max_accuracy_drop: the fewest mean timesteps with an accuracy at most this far (a fraction, 0.005 for half
                a point) below that at full T.
            average_timesteps: the highest accuracy at no more mean timesteps than this.
            beta: instead of a target, what a wrong answer costs (``cost="exponential"``).
            step_cost: instead of a target, what a timestep costs (``cost="linear"``).
            progress: show progress bars.
            log_dir: write TensorBoard scalars there, one run for each setting of the dial.
            checkpoint: a file from which an interrupted fit goes on, with the same result.
            options: see :class:`~seenn_plugin.policy_training.FitSettings`.

        Raises:
            PolicyError: there is no rl policy, or more than one; a wrong option; or a bad policy network.
            CalibrationError: data from which no policy can be fitted, or a target that no policy met.
        """
        unfitted = [leaf for leaf in leaves(self.policy) if isinstance(leaf, RLPolicy)]
        if len(unfitted) != 1:
            raise PolicyError(f"fit_policy fits one rl policy, and {self.policy} has {len(unfitted)}: policy='rl'.")
        self.policy_fit = policy_training.fit_policy(
            self,
            unfitted[0],
            train_loader,
            val_loader,
            policy_training.FitSettings.of(options),
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
            inputs = self._rows(x)
            look = self._look(inputs)
            running = self._running(inputs, look) if inputs.shape[self._row_dim] else self.adapter
        except SeennError as error:
            page.refused = str(error)
            page.facts |= self.adapter.explain()
        else:
            axes = "a sequence, one frame per timestep" if self._is_sequence else "static, shown at every timestep"
            page.facts["input"] = f"{axes}; {look.timesteps} timesteps, {look.chunk} at a time{look.chunk_reason}"
            page.facts |= running.explain()
            page.facts["readout"] = f"{look.readout.name}: {look.readout_reason}"
            page.facts["classes"] = str(look.classes)
            page.facts["policy"] = str(self.policy)
            page.facts["skipped"] = (
                "every timestep after a row's exit: its row leaves the input and every state"
                if self.adapter.saves
                else "nothing: all timesteps are computed, and the exits are picked afterwards (full_run=True)"
            )
            page.facts["slots"] = self._explain_slots(inputs, look)
            if isinstance(running, PreparedAdapter):
                page.facts["options"] = running.describe(self.policy)
            page.checks = [str(result) for result in look.checks] or ["none made"]
        return page

    # -- saving ---------------------------------------------------------------------------------------------------

    def get_extra_state(self) -> dict[str, Any]:
        return {"policy": type(self.policy).__name__, "settings": self.policy.settings()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        if state["policy"] != type(self.policy).__name__:
            raise PolicyError(f"the saved policy is {state['policy']}, this wrapper's is {type(self.policy).__name__}.")
        self.policy = self.policy.with_settings(state["settings"])
        weight = next(self.model.parameters(), None)
        if weight is not None:  # a policy network that was just made goes where the model is
            self.policy_networks.to(weight.device, weight.dtype)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_looks": {}}  # a copy of the model is another model: look again

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
    def _is_sequence(self) -> bool:
        return self.input == "sequence"

    @property
    def _row_dim(self) -> int:
        return 1 if self._is_sequence else 0

    @property
    def _slots(self) -> int:
        if self.slots is not None:
            return self.slots
        weight = next(self.model.parameters(), None)
        return _SLOTS if weight is None or weight.device.type == "cpu" else _SLOTS_ELSEWHERE

    def _rows(self, x: Tensor, time_dim: int | None = None, slots: int | None = None) -> Tensor:
        # The adapter may be shared with another wrapper, whose caller says other things of time.
        self.adapter.timesteps, self.adapter.time_dim = self.timesteps, self.time_dim
        self.adapter.capture = self.capture and self.capture.for_slots(slots or self._slots)
        return as_rows(x, self.model, self.input, self.time_dim if time_dim is None else time_dim, self.timesteps)

    def _way(self, look: _Look, inputs: Tensor) -> engine.Way:
        return engine.Way(
            self._running(inputs, look),
            look.readout,
            self.policy,
            self._is_sequence,
            look.timesteps,
            look.chunk,
            self.check_every if self.adapter.saves else 1,
        )

    def _why_not_refillable(self, way: engine.Way, look: _Look, inputs: Tensor, memory: Any) -> str:
        """Why fresh rows cannot take the places of those that have answered; empty if they can."""
        one = way.adapter.begin(inputs.narrow(self._row_dim, 0, 1), self._is_sequence)
        reason = way.adapter.why_not_refillable(one)
        if reason:
            return reason
        try:
            mixes = way.can_mix(map_tensors(lambda rows: rows[:1], memory), look.first_steps)
        except Exception as error:  # where it matters it is raised again, by the rows of the caller
            return f"readout or policy cannot be asked about one row ({type(error).__name__})"
        return "" if mixes else "what readout or policy remember of a row changes its form with time"

    def _explain_slots(self, inputs: Tensor, look: _Look) -> str:
        if inputs.shape[self._row_dim] == 0:
            return str(self._slots)
        try:
            memory = self._start(inputs, look)
        except PolicyError as error:  # it has no answer yet: a network that was not fitted
            return f"{self._slots} rows in flight, once the policy answers: {error}"
        reason = self._why_not_refillable(self._way(look, inputs), look, inputs, memory)
        more = f"run in lots, because {reason}" if reason else "taking the places of those that have answered"
        return f"{self._slots} rows in flight; more rows are {more}"

    def _look(self, inputs: Tensor) -> _Look:
        """Timesteps, readout, classes and checks for this kind of input, from the first batch of the kind."""
        row = inputs.shape[2:] if self._is_sequence else inputs.shape[1:]
        modules = modules_of(self.model)
        refuse_training_mode(self.model, modules)
        fingerprint = self.adapter.fingerprint(modules)
        key = (row, self.timesteps, inputs.dtype, inputs.device, self.chunk, self.readout, modules, fingerprint)
        look = self._looks.get(key)
        if look is None:
            try:
                look = self._looks[key] = self._look_at(inputs, self.check)
            except ModelRefused as error:
                if not self.adapter.saves:
                    raise
                raise ModelRefused(error.reason, f"{error.remedy} {_OFFER}") from error
            except InputError as error:
                # The model raised on the few rows that it was looked at with; does it on these?
                if error.__cause__ is None or not self.adapter.runs_whole(inputs, self._is_sequence):
                    raise
                n = inputs.shape[1 if self._is_sequence else 0]
                raise ModelRefused(
                    f"{type(self.model).__name__} runs on a batch of {n} rows, and not on one of another size: {error}",
                    "Read the batch size from the input, and keep parameters from meeting the dimension of the rows.",
                ) from error
        settled = self.policy.settle(look.classes, look.lead)
        if settled is not self.policy:
            self.policy = settled
        # What was found holds for sequences of any length.
        return replace(look, timesteps=len(inputs)) if self._is_sequence else look

    def _prepare(self, options: Options, full_run: bool) -> Preparation | None:
        """What makes the copy with ``options``; ``None`` if all of them are off."""
        if not options:
            return None
        if full_run:
            raise InputError("fold, channels_last and autocast are not offered with full_run=True; leave one out.")
        if not isinstance(self.adapter, ModuleAdapter):
            raise AdapterError(
                f"fold, channels_last and autocast are not offered by the adapter {self.adapter.name!r}; leave them "
                "out."
            )
        return Preparation(self.adapter, options)

    def _running(self, inputs: Tensor, look: _Look) -> Adapter:
        """The adapter that answers: the model's, or that of its copy if options are on."""
        if self._preparation is None:
            return self.adapter
        prepared = self._preparation.adapter_for(
            inputs, self._is_sequence, look.timesteps, look.chunk, look.readout, self.check
        )
        prepared.twin.capture = self.adapter.capture
        return prepared

    def _start(self, inputs: Tensor, look: _Look) -> Any:
        return start_rows(self.policy, inputs, self._is_sequence, look.timesteps, look.classes)

    def _look_at(self, inputs: Tensor, check: bool) -> _Look:
        refuse_training_mode(self.model, self.model.modules())
        # A model that is run whole may be one for a certain number of rows.
        rows = inputs if not self.adapter.saves and inputs.numel() else check_rows(inputs, self._is_sequence)
        timesteps = self._timesteps_of(inputs)
        with isolated(self.model):
            check = check and self.adapter.saves  # a model that is run whole need not stand any
            chunk = 1 if self.chunk == "auto" else self.chunk
            checks = run_checks(self.adapter, rows, self._is_sequence, timesteps, chunk) if check else []
            steps = advance_to(self.adapter, self.adapter.begin(rows, self._is_sequence), timesteps, chunk)
            answer = self.adapter.answer(rows, self._is_sequence)
            readout, reason = choose_readout(steps, answer, self.readout)
            logits = read_all(readout, steps)
            first_steps = tuple(tuple(output[:1].clone() for output in outputs) for outputs in steps[:2])
            look = _Look(
                timesteps=timesteps,
                readout=readout,
                readout_reason=reason,
                lead=spike_lead(readout, steps),
                no_logits=logits[0, :0],
                first_steps=first_steps,
                chunk=chunk,
                chunk_reason="",
                checks=tuple(checks),
            )
            if self.chunk == "auto" and self.adapter.saves and inputs.numel():
                look = self._with_fastest_chunk(look, inputs, rows, check)
        return look

    def _with_fastest_chunk(self, look: _Look, inputs: Tensor, rows: Tensor, check: bool) -> _Look:
        some = inputs.narrow(self._row_dim, 0, min(self._slots, inputs.shape[self._row_dim]))
        policy = self.policy.settle(look.classes, look.lead)
        memory = start_rows(policy, some, self._is_sequence, look.timesteps, look.classes)
        chunk, seconds = engine.fastest_chunk(replace(self._way(look, some), policy=policy), memory, some)
        if check and chunk > 1:
            run_checks(self.adapter, rows, self._is_sequence, look.timesteps, chunk)
        n = some.shape[self._row_dim]
        tried = ", ".join(f"{k}: {1e3 * s / n:.2f}" for k, s in seconds.items())
        return replace(look, chunk=chunk, chunk_reason=f", as the fastest on the first batch (ms per row: {tried})")

    def _timesteps_of(self, inputs: Tensor) -> int:
        """T for this input: the length of a sequence; what the caller said; or what the model makes by itself."""
        if self._is_sequence:
            return len(inputs)
        own = self.adapter.own_timesteps(inputs, False)
        if own is None and self.timesteps is None:
            raise InputError("static input needs timesteps=T, the most timesteps that a row may take.")
        if own is not None and self.timesteps is not None and self.timesteps > own:
            raise InputError(
                f"timesteps={self.timesteps}, and {type(self.model).__name__} makes {own} by itself; make the model "
                "longer, or leave timesteps out."
            )
        return self.timesteps or own or 0


def _check_count(name: str, value: Any, others: tuple[Any, ...]) -> None:
    if value not in others and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        raise InputError(f"{name} must be an integer of at least 1, not {value!r}.")
