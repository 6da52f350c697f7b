"""One timestep of SpikingJelly's most common neurons in a few passes over memory, with the framework's own numbers.

The framework writes charge, fire and reset as a dozen tensor operations, each of which reads and writes the whole
layer and allocates its result. On a CPU that takes as long as the convolutions in between. Here the same operations,
with the same roundings, are executed block by block, so that a block stays in the cache from the first to the last.

A neuron uses this step only where it is known to give the same numbers: exact types, no gradient, dense float tensors
on the CPU (in any memory format, channels-last included), single steps. When a neuron is first met with its settings,
both steps are compared, bit by bit, on made-up values. In every other case the framework's own code runs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
from torch import Tensor, nn

from seenn_plugin.state.memory_format import is_dense, same_format
from seenn_plugin.state.patching import patched_forward
from seenn_plugin.state.values import same

_NEURONS: Final = "spikingjelly.activation_based.neuron"
_SURROGATES: Final = "spikingjelly.activation_based.surrogate"
# Those whose value is the step function; what others let through (noise, fractions) is theirs to say.
_STEP_FUNCTIONS: Final = ("Sigmoid", "ATan", "PiecewiseQuadratic", "PiecewiseExp", "SoftSign", "SuperSpike", "Erf")
_DTYPES: Final = (torch.float32, torch.float64)
_BLOCK: Final = 128 * 1024
"""Numbers that one thread handles at a time: five tensors of them fit into a core's cache."""

Settings = tuple[Any, ...]


class FusedNeurons:
    """The fused steps of those of ``modules`` that have one."""

    def __init__(self, modules: Sequence[nn.Module] = ()) -> None:
        neurons = sys.modules.get(_NEURONS)
        known = [getattr(neurons, name, None) for name in ("IFNode", "LIFNode", "ParametricLIFNode")]
        self._steps = [FusedNeuron(module) for module in modules if type(module) in known]

    def patched(self) -> AbstractContextManager[None]:
        """A context in which the neurons use their fused step, unless gradients are on."""
        if torch.is_grad_enabled():
            return nullcontext()
        return patched_forward({step.node: step for step in self._steps if step.prepare()})


class FusedNeuron:
    """The fused step of one neuron, used as its ``forward``."""

    def __init__(self, node: Any) -> None:
        self.node = node
        self.kind = type(node)
        self.attributes: dict[str, Any] = vars(node)
        self._settings: Settings | None = None
        self._step: _Step | None = None
        self._is_equal: dict[torch.dtype, bool] = {}

    def prepare(self) -> bool:
        """Read the present settings of the neuron. Returns whether a fused step exists for them."""
        settings = _settings(self.node) if type(self.node) is self.kind else None
        if settings != self._settings:
            self._settings, self._is_equal = settings, {}
            self._step = None if settings is None else _Step(self.node)
        return self._step is not None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        memories = self.attributes["_memories"]
        if named or len(arguments) != 1 or self._step is None or not self._fits(arguments[0], memories["v"]):
            return self.kind.forward(self.node, *arguments, **named)
        # The old state is not changed: it belongs to the rows until the whole network has made its timestep.
        x, v = arguments[0], memories["v"]
        if type(v) is Tensor and not same_format(x, v):  # new rows have joined, or the memory format has changed
            v = torch.empty_like(x).copy_(v)
        spike, memories["v"] = self._step(x, v)
        return spike

    def _fits(self, x: Any, v: Any) -> bool:
        if type(x) is not Tensor or x.dtype not in _DTYPES or x.device.type != "cpu" or x.ndim == 0:
            return False
        if not is_dense(x) or torch.is_grad_enabled() or self.attributes["_step_mode"] != "s":
            return False
        if type(v) is not float and (
            type(v) is not Tensor or v.shape != x.shape or v.dtype != x.dtype or v.device != x.device
        ):
            return False
        if x.dtype not in self._is_equal:
            self._is_equal[x.dtype] = _is_equal(self.node, self._step, x.dtype)
        return self._is_equal[x.dtype]


def _settings(node: Any) -> Settings | None:
    """Everything that decides what a single step of ``node`` computes; ``None`` if that is not known."""
    a = vars(node)
    threshold, reset, tau, w = a.get("v_threshold"), a.get("v_reset"), a.get("tau"), a["_parameters"].get("w")
    surrogate = a["_modules"].get("surrogate_function", a.get("surrogate_function"))
    changed = "forward" in a or "single_step_forward" in a or a.get("_store_v_seq") or a["_memories"].keys() != {"v"}
    known_numbers = all(type(number) in (float, int) for number in (threshold, reset or 0.0, tau or 0.0))
    known_spikes = (
        type(surrogate).__module__ == _SURROGATES
        and type(surrogate).__name__ in _STEP_FUNCTIONS
        and getattr(surrogate, "spiking", True)
        and not getattr(surrogate, "_forward_hooks", None)
        and not getattr(surrogate, "_forward_pre_hooks", None)
    )
    known_leak = {"IFNode": True, "LIFNode": tau is not None, "ParametricLIFNode": w is not None}[type(node).__name__]
    if changed or not (known_numbers and known_spikes and known_leak):
        return None
    learnt = None if w is None else (w.dtype, w.shape, w.device)
    return threshold, reset, tau, learnt, a.get("decay_input"), a["training"], type(surrogate)


class _Step:
    """The arithmetic of one neuron: :math:`x, v \\mapsto s, v'`, tensors of one shape and one layout.

    Operations are the framework's, in its order of rounding. Two are merged into one where the first is exact, so that
    it makes no difference whether the processor rounds in between.
    """

    def __init__(self, node: Any) -> None:
        attributes = vars(node)
        self.threshold = attributes["v_threshold"]
        self.soft = attributes["v_reset"] is None
        self.reset = 0.0 if self.soft else attributes["v_reset"]
        self.decay_input = attributes.get("decay_input")
        self.parameters = attributes["_parameters"]
        self.tau = attributes.get("tau")
        self._constants: dict[torch.dtype, tuple[Tensor, Tensor]] = {}
        self.leaks = self.tau is not None or "w" in self.parameters
        # 0.0.0.0.14 has formulas of its own where the resting potential is 0.
        older = hasattr(type(node), "neuronal_charge")
        self.shrinks = older and (self.soft if self.tau is not None else self.reset == 0) and not self.decay_input

    def __call__(self, x: Tensor, v: Tensor | float) -> tuple[Tensor, Tensor]:
        size = _BLOCK * torch.get_num_threads()
        spike, after = torch.empty_like(x), torch.empty_like(x)
        below = torch.empty_like(x) if x.numel() <= size else x.new_empty(size)
        threshold, factor = self._of_type(x.dtype)
        at_rest = type(v) is float and (v == self.reset or not self.leaks)
        if type(v) is float and not at_rest:
            v = torch.full_like(x, v)
        tensors = (x, spike, after, *([v] if isinstance(v, Tensor) else []))
        for x_part, s, h, *old in _blocks(tensors, size):
            if old:
                self._charge(x_part, old[0], h, factor)
            else:
                self._charge_at_rest(x_part, v, h, factor)
            torch.ge(h, threshold, out=s)
            if self.soft:
                h.add_(s, alpha=-self.threshold)
            else:
                one_minus_s = below if below.shape == h.shape else below[: h.numel()]
                h.mul_(torch.lt(h, threshold, out=one_minus_s))  # 0 for NaN, which stays NaN
                if self.reset:
                    h.add_(s, alpha=self.reset)
        return spike, after

    def _of_type(self, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """The threshold; and tau, or 1 / tau as the neuron has learnt it. Tensors ``[]``: numbers take longer."""
        if dtype not in self._constants:
            self._constants[dtype] = torch.tensor(self.threshold, dtype=dtype), torch.tensor(self.tau or 0, dtype=dtype)
        threshold, factor = self._constants[dtype]
        return threshold, self.parameters["w"].sigmoid() if self.leaks and self.tau is None else factor

    def _charge_at_rest(self, x: Tensor, v: Any, h: Tensor, factor: Tensor) -> None:
        if not (self.leaks and self.decay_input):
            torch.add(x, v, out=h)
            return
        if self.tau is not None:
            torch.div(x, factor, out=h)
        else:
            torch.mul(x, factor, out=h)
        if v:
            h.add_(v)

    def _charge(self, x: Tensor, v: Tensor, h: Tensor, factor: Tensor) -> None:
        if not self.leaks:
            torch.add(v, x, out=h)
        elif self.decay_input:
            torch.sub(x, torch.sub(v, self.reset, out=h) if self.reset else v, out=h)
            self._leak(v, h, h, factor, 1)
        elif self.shrinks:
            torch.mul(v, 1.0 - 1.0 / self.tau if self.tau is not None else 1.0 - factor, out=h)
            h.add_(x)
        else:
            self._leak(v, torch.sub(v, self.reset, out=h) if self.reset else v, h, factor, -1)
            h.add_(x)

    def _leak(self, v: Tensor, drive: Tensor, h: Tensor, factor: Tensor, sign: int) -> None:
        """h = v + sign * drive / tau; ``drive`` may be ``h``."""
        if self.tau is not None:
            torch.addcdiv(v, drive, factor, value=sign, out=h)
        else:
            torch.mul(drive, factor, out=h)
            torch.add(v, h, alpha=sign, out=h)


def _blocks(tensors: Sequence[Tensor], size: int) -> Iterator[Sequence[Tensor]]:
    """Tensors of one memory format in blocks of ``size`` numbers, in the order of their memory."""
    n = tensors[0].numel()
    if n <= size:
        return iter((tensors,))
    return zip(*(tensor.as_strided((n,), (1,)).split(size) for tensor in tensors), strict=True)


def _is_equal(node: Any, step: Callable[..., Any] | None, dtype: torch.dtype) -> bool:
    """Whether the fused step and the framework's own agree on made-up values, over a few steps from rest."""
    if step is None:
        return False
    size = abs(float(node.v_threshold)) + 1.0
    x = torch.linspace(-2 * size, 3 * size, 2003, dtype=dtype)
    exactly = torch.tensor([0.0, -0.0, node.v_threshold, float("inf"), float("-inf"), float("nan"), 1e-40], dtype=dtype)
    frames = [torch.cat([x, exactly]), torch.cat([x.flip(0), exactly.flip(0)]), torch.cat([x.roll(700), exactly])]
    twin: Any = object.__new__(type(node))  # shares the settings and the parameters, and has a state of its own
    vars(twin).update(vars(node), _memories=dict(node._memories_rv), _step_mode="s")
    vars(twin).pop("forward", None)
    try:
        v: Any = twin._memories["v"]
        for frame in frames:
            own = type(node).forward(twin, frame)
            spike, v = step(frame, v)
            if not same([own, twin._memories["v"]], [spike, v]):
                return False
    except Exception:  # the framework's own step will raise its own error
        return False
    return True
