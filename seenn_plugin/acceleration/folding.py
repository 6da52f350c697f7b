"""Batch normalisation folded into the layer before it, where running the network proves that this is correct.

In evaluation mode a batch normalisation is a factor and an offset for each channel, which the convolution (or linear
layer) before it can apply. The pairs are found by running the network, not by the order of modules. The input of the
normalisation is the very tensor that the convolution returned, every time; its output is that of the folded
convolution;
and nothing else reads the output or the weights of the convolution, because with absurd numbers in their place the
network answers the same, bit by bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights

from ..state.cells import write
from ..state.hooks import has_hooks
from ..state.values import ABSENT, POISONS, map_tensors, same
from ..tolerance import ATOL, RTOL

Run = Callable[[], list[Tensor]]
"""Runs the network from fresh state on a few rows: its outputs, and all state at the end."""
Parameters = dict[str, nn.Parameter | None]
LAYERS: Final = (_ConvNd, nn.Linear)
"""Layers that can take a normalisation over."""


class Pair:
    """A layer, and the batch normalisation behind it.

    Attributes:
        layer, norm: the two modules.
        plain, folded: parameters of the layer by itself, and with the normalisation in it.
    """

    def __init__(self, layer: nn.Module, norm: nn.Module, folded: Parameters) -> None:
        self.layer, self.norm, self.folded = layer, norm, folded
        self.plain: Parameters = {name: layer._parameters[name] for name in folded}

    def use(self, parameters: Parameters) -> None:
        self.layer._parameters.update(parameters)

    def fold(self, on: bool = True) -> None:
        """Let the layer compute both, or each module its own part again.

        The normalisation stays in its place and returns its input, so that the modules of the network, and everything
        that was found out about them, stay the same.
        """
        self.use(self.folded if on else self.plain)
        write(vars(self.norm), "forward", _pass_on if on else ABSENT)

    @property
    def is_folded(self) -> bool:
        return "forward" in vars(self.norm)

    @property
    def has_hooks(self) -> bool:
        """Whether a hook of the caller sees the values between the two, which folding changes."""
        return has_hooks(self.layer) or has_hooks(self.norm)


def fold(model: nn.Module, run: Run) -> list[Pair]:
    """Fold every pair in ``model``, in evaluation mode, that a run proves to be one.

    Args:
        model: the network, which is changed.
        run: runs it.
    """
    pairs = [pair for layer, norm in _neighbours(model, run) if (pair := _make(layer, norm)) is not None]
    if pairs:
        with _looking(pairs, None) as exact:
            expected = run()
        pairs = _unread([pair for pair in pairs if pair in exact], run, expected)
    for pair in pairs:
        pair.fold()
    return pairs


def _neighbours(model: nn.Module, run: Run) -> list[tuple[nn.Module, nn.Module]]:
    """Layers and normalisations that are always called together: the one's output is the other's input."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and "forward" not in vars(m)]
    layers: list[nn.Module] = [m for m in model.modules() if isinstance(m, LAYERS) and "forward" not in vars(m)]
    made: dict[int, tuple[Tensor, int, nn.Module]] = {}  # what a layer made last, and its version then
    calls = dict.fromkeys(layers, 0)
    fed_by: dict[nn.Module, list[nn.Module | None]] = {}

    def note_layer(layer: nn.Module, _: Any, output: Any) -> None:
        calls[layer] += 1
        if isinstance(output, Tensor):
            made[id(output)] = (output, output._version, layer)

    def note_norm(norm: nn.Module, inputs: tuple[Any, ...]) -> None:
        x = inputs[0] if len(inputs) == 1 else None
        output, version, layer = made.pop(id(x), (None, 0, None))
        untouched = output is x and isinstance(x, Tensor) and x._version == version
        fed_by.setdefault(norm, []).append(layer if untouched else None)

    handles = [layer.register_forward_hook(note_layer) for layer in layers]
    handles += [norm.register_forward_pre_hook(note_norm) for norm in norms]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = []
    for norm, feeders in fed_by.items():
        layer = feeders[0]
        if layer is not None and feeders == [layer] * calls[layer]:
            found.append((layer, norm))
    return found


def _make(layer: nn.Module, norm: Any) -> Pair | None:
    """The pair of a layer and a normalisation in evaluation mode; ``None`` if its parameters cannot be folded."""
    own = layer._parameters
    weight, bias = own.get("weight"), own.get("bias")
    if weight is None or norm.training or norm.running_mean is None or norm.running_var is None:
        return None
    values = (weight, bias, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    # Any: the functions below take what is None, whatever they say.
    exact: list[Any] = [None if value is None else value.detach().cpu().double() for value in values]
    w, b, mean, var, scale, shift = exact
    try:
        if isinstance(layer, nn.Linear):
            ones, zeros = torch.ones_like(mean), torch.zeros_like(mean)
            scale, shift = ones if scale is None else scale, zeros if shift is None else shift
            folded = fuse_linear_bn_weights(w, b, mean, var, norm.eps, scale, shift)
        else:
            turned = isinstance(layer, _ConvTransposeNd)
            folded = fuse_conv_bn_weights(w, b, mean, var, norm.eps, scale, shift, transpose=turned)
    except RuntimeError:  # shapes that do not fit
        return None
    if folded[0].shape != weight.shape:
        return None
    made = [nn.Parameter(tensor.detach().to(weight), requires_grad=False) for tensor in folded]
    return Pair(layer, norm, {"weight": made[0], "bias": made[1]})


@contextmanager
def _looking(pairs: Sequence[Pair], poison: float | None) -> Iterator[dict[Pair, None]]:
    """Let every layer of ``pairs`` also try its folded parameters; those that were always right are left over.

    Args:
        poison: what everybody but the normalisation sees in the output of the layer, and in its parameters;
            ``None`` for the truth.
    """
    exact = dict.fromkeys(pairs)
    handles = []
    absurd = {pair: _poisoned(pair.plain, poison) for pair in pairs}

    def look(pair: Pair) -> None:
        held: list[tuple[Tensor, Tensor]] = []  # what the layer made, by itself and with the normalisation in it

        def before_layer(*_: Any) -> None:
            pair.use(pair.plain)

        def after_layer(layer: nn.Module, inputs: Any, named: Any, output: Tensor) -> Tensor:
            pair.use(pair.folded)
            held.append((output, layer.forward(*inputs, **named)))
            pair.use(absurd[pair])
            return output if poison is None else torch.full_like(output, poison)

        def after_norm(norm: nn.Module, _: Any, output: Tensor) -> Tensor:
            made, folded = held.pop()
            if poison is not None:
                output = norm.forward(made)
            if not _close(folded, output):
                exact.pop(pair, None)
            return output

        handles.append(pair.layer.register_forward_pre_hook(before_layer))
        handles.append(pair.layer.register_forward_hook(after_layer, with_kwargs=True))
        handles.append(pair.norm.register_forward_hook(after_norm))

    try:
        for pair in pairs:
            look(pair)
            pair.use(absurd[pair])
        yield exact
    finally:
        for handle in handles:
            handle.remove()
        for pair in pairs:
            pair.use(pair.plain)


def _unread(pairs: list[Pair], run: Run, expected: list[Tensor]) -> list[Pair]:
    """The pairs whose values between layer and normalisation nothing else reads."""
    if not pairs or all(_answers(pairs, poison, run, expected) for poison in POISONS):
        return pairs
    half = len(pairs) // 2
    return [*_unread(pairs[:half], run, expected), *_unread(pairs[half:], run, expected)] if half else []


def _answers(pairs: list[Pair], poison: float, run: Run, expected: list[Tensor]) -> bool:
    try:
        with _looking(pairs, poison):
            return same(run(), expected)
    except Exception:  # a value between the two is read
        return False


def _poisoned(parameters: Parameters, poison: float | None) -> Parameters:
    if poison is None:
        return parameters
    return map_tensors(lambda p: nn.Parameter(torch.full_like(p, poison), requires_grad=False), parameters)


def _close(found: Tensor, wanted: Tensor) -> bool:
    """Whether a layer answers the same but for rounding, which is relative to the largest of the numbers summed up."""
    if found.shape != wanted.shape or not wanted.numel():
        return found.shape == wanted.shape
    return torch.allclose(found, wanted, rtol=RTOL, atol=ATOL * max(1.0, float(wanted.abs().max())))


def _pass_on(x: Tensor) -> Tensor:
    return x
