"""The front door: wrap a spiking network, and each input takes only the timesteps that it needs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

from torch import Tensor, nn

from . import calibration as _calibration
from . import engine, policy_training
from .adapter import AdapterChoice, find_adapter
from .captured_step import CaptureSettings
from .checks import CheckResult, run_checks
from .engine import ExitResult
from .engine.trace import advance_to, read_all
from .errors import AdapterError, InputError, ModelRefused, PolicyError, SeennError
from .explanation import Explanation
from .full_run import FullRun
from .inputs import InputKind, as_rows, guess_timesteps, refuse_training_mode
from .module_adapter import ModuleAdapter
from .module_state import isolated, modules_of
from .policies import FixedPolicy, Policy, RLPolicy, make_policy, start_rows
from .policies.combined import leaves, map_leaves, networks
from .probing import check_rows
from .readout import Readout, ReadoutChoice, choose_readout, make_readout, spike_lead
from .time_loop import has_loop

_OFFER = (
    "To see how early it could have answered, pass full_run=True: all timesteps are computed and the exits picked "
    "afterwards, which saves nothing."
)


@dataclass(frozen=True)
class _Look:
    """What the first look at a kind of input settled."""

    timesteps: int
    readout: Readout
    readout_reason: str
    lead: float | None  # of spikes, see readout.spike_lead
    no_logits: Tensor  # of no rows, [0, C]: number of classes, dtype and device
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
        chunk: timesteps computed at a time, for frameworks with fused multi-step kernels.
        check: whether to check on the first rows that stepping gives the network's own answers.
        compile: compile single timesteps with ``torch.compile``'s compiler, for 64, 16, 4 and 1 rows, or for the
            numbers given, such as ``(64, 1)``. Each is compiled when it is first needed, which may take a minute,
            compared with the model's own step, and compiled anew when the weights have changed; other numbers of rows,
            and runs with gradients, take the model's own step. What cannot be compiled warns once and runs as it is.
        cuda_graphs: replay single timesteps of such numbers of rows as CUDA graphs; may be combined with ``compile``.
        full_run: for a network that is refused: compute all timesteps, and pick the exits afterwards. Nothing is
            saved, and the reports say so; for networks that return the outputs of all timesteps.

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
        chunk: int = 1,
        check: bool = True,
        compile: bool | Sequence[int] = False,
        cuda_graphs: bool = False,
        full_run: bool = False,
    ) -> None:
        super().__init__()
        if not isinstance(model, nn.Module):
            raise InputError(f"model must be a torch.nn.Module, not {type(model).__name__}.")
        if input not in ("static", "sequence"):
            raise InputError(f"input must be 'static' or 'sequence', not {input!r}.")
        if time_dim not in (0, 1):
            raise InputError(f"time_dim must be 0 ([T, N, ...]) or 1 ([N, T, ...]), not {time_dim!r}.")
        for name, value in (("timesteps", timesteps), ("chunk", chunk)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise InputError(f"{name} must be an integer of at least 1, not {value!r}.")
        self.model = model
        self.policy = make_policy(policy)
        if isinstance(self.policy, FixedPolicy) and timesteps is not None and self.policy.timesteps > timesteps:
            raise PolicyError(f"FixedPolicy({self.policy.timesteps}) is later than timesteps={timesteps}.")
        self.timesteps = guess_timesteps(model) if timesteps is None and input == "static" else timesteps
        self.input: InputKind = input
        self.time_dim = time_dim
        self.chunk = chunk
        self.check = check
        self.readout = make_readout(readout)
        self.adapter = find_adapter(model, adapter)
        self.capture = CaptureSettings.of(compile, cuda_graphs)
        if self.capture is not None and (full_run or not isinstance(self.adapter, ModuleAdapter)):
            what = "full_run=True" if full_run else f"the adapter {self.adapter.name!r}"
            raise AdapterError(f"compile= and cuda_graphs= capture single timesteps, which {what} does not offer.")
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
        if inputs.shape[1 if self._is_sequence else 0] == 0:
            look = self._look_at(inputs, check=False)
            return engine.no_rows(look.no_logits)
        look = self._look(inputs)
        memory = self._start(inputs, look)
        return engine.infer(
            self.adapter, look.readout, self.policy, memory, inputs, self._is_sequence, look.timesteps, self.chunk
        )

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
        if inputs.shape[1 if self._is_sequence else 0] == 0:
            look = self._look_at(inputs, check=False)
            return look.no_logits.expand(look.timesteps, 0, -1)
        look = self._look(inputs)
        return engine.trace(self.adapter, look.readout, inputs, self._is_sequence, look.timesteps, self.chunk)

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
            look = self._look(self._rows(x))
        except SeennError as error:
            page.refused = str(error)
            page.facts |= self.adapter.explain()
        else:
            axes = "a sequence, one frame per timestep" if self._is_sequence else "static, shown at every timestep"
            page.facts["input"] = f"{axes}; {look.timesteps} timesteps, {self.chunk} at a time"
            page.facts |= self.adapter.explain()
            page.facts["readout"] = f"{look.readout.name}: {look.readout_reason}"
            page.facts["classes"] = str(look.classes)
            page.facts["policy"] = str(self.policy)
            page.facts["skipped"] = (
                "every timestep after a row's exit: its row leaves the input and every state"
                if self.adapter.saves
                else "nothing: all timesteps are computed, and the exits are picked afterwards (full_run=True)"
            )
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

    def _rows(self, x: Tensor) -> Tensor:
        # The adapter may be shared with another wrapper, whose caller says other things of time.
        self.adapter.timesteps, self.adapter.time_dim = self.timesteps, self.time_dim
        self.adapter.capture = self.capture
        return as_rows(x, self.model, self.input, self.time_dim, self.timesteps)

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

    def _start(self, inputs: Tensor, look: _Look) -> Any:
        return start_rows(self.policy, inputs, self._is_sequence, look.timesteps, look.classes)

    def _look_at(self, inputs: Tensor, check: bool) -> _Look:
        refuse_training_mode(self.model, self.model.modules())
        # A model that is run whole may be one for a certain number of rows.
        rows = inputs if not self.adapter.saves and inputs.numel() else check_rows(inputs, self._is_sequence)
        timesteps = self._timesteps_of(inputs)
        with isolated(self.model):
            check = check and self.adapter.saves  # a model that is run whole need not stand any
            checks = run_checks(self.adapter, rows, self._is_sequence, timesteps, self.chunk) if check else []
            steps = advance_to(self.adapter, self.adapter.begin(rows, self._is_sequence), timesteps, self.chunk)
            answer = self.adapter.answer(rows, self._is_sequence)
            readout, reason = choose_readout(steps, answer, self.readout)
            logits = read_all(readout, steps)
        return _Look(timesteps, readout, reason, spike_lead(readout, steps), logits[0, :0], tuple(checks))

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
