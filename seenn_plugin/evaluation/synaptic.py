"""Synaptic operations row by row, seen where PyTorch dispatches them.

Below the modules, because a hook on a module sees neither a functional call, nor a product of two activations
(``q @ k`` in a spiking transformer), nor how often a loop inside ``forward`` runs a layer. Here everything is counted
that is executed, when it is executed, and nothing else.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from functools import lru_cache
from typing import Any, Final

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

PICOJOULES_PER_AC: Final = 0.9
PICOJOULES_PER_MAC: Final = 4.6
"""32-bit floating point at 45 nm: Horowitz, "Computing's energy problem", ISSCC 2014, as the SNN field uses it."""
_MOST_LEVELS: Final = 255
_aten = torch.ops.aten


class SynapticCounter(TorchDispatchMode):
    """Counts the convolutions and matrix products that run under it, for each of some rows.

    The price of an input value: nothing for 0. A row of the input that is made of integers (spikes, or sums of spikes)
    costs ``|k|`` accumulates (ACs) for each connection of a value ``k``, the borders of a convolution seen exactly; any
    other row costs the multiply-accumulates (MACs) of a dense layer, as does an integer row for which these are cheaper
    (pixels from 0 to 255; a MAC is worth about five ACs). Where two activations meet, one of them in integers plays the
    spikes, and the other the weights; of two integers ``a`` and ``b``, the smaller is the number of accumulates.

    Args:
        rows: number of rows in the batch that is run. Dimension 0 of an operand holds them as ``[rows * m, ...]``;
            where it does not, :attr:`attributable` turns false, and the counts mean nothing.
        weights: the parameters: their values play no part.
        heights: for the storage of a weight, the height of the spikes that reach it, if it is not 1.

    Attributes:
        acs, macs: float64 ``[rows]``.
        calls: the operations counted.
        uncounted: operations that may do synaptic work in a way that is not known here, by name, with their calls.
    """

    def __init__(self, rows: int, weights: Iterable[Tensor], heights: dict[int, float] | None = None) -> None:
        super().__init__()
        self.rows = rows
        self.attributable = True
        self.acs: Tensor = torch.zeros(rows, dtype=torch.float64)
        self.macs: Tensor = torch.zeros(rows, dtype=torch.float64)
        self.calls = 0
        self.uncounted: Counter[str] = Counter()
        self._weights = {_storage(weight) for weight in weights}
        self._heights = heights or {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        operation = func._overloadpacket
        rule = _RULES.get(operation)
        if rule is None and func is not torch.ops.prim.device.default:
            with self:  # in inference mode a composite operation arrives whole
                made = func.decompose(*args, **kwargs)
            if made is not NotImplemented:
                return made
        out = func(*args, **kwargs)
        if rule is None:
            if _may_be_a_product(func):
                self.uncounted[str(operation)] += 1
        elif any(isinstance(operand, Tensor) and operand.layout != torch.strided for operand in args):
            self.uncounted[f"{operation} of sparse tensors"] += 1
        else:
            self.calls += 1
            rule(self, out, *args, **kwargs)
        return out

    # -- the operations -------------------------------------------------------------------------------------------

    def convolution(
        self,
        out: Tensor,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        stride: list[int],
        padding: list[int],
        dilation: list[int],
        transposed: bool,
        output_padding: list[int],
        groups: int,
        *flags: Any,
    ) -> None:
        x = self._split(input)
        if x is None:
            return
        sizes_in, sizes_out, kernel = input.shape[2:], out.shape[2:], weight.shape[2:]
        spread = torch.ones((), device=x.device)
        for i, (size_in, size_out) in enumerate(zip(sizes_in, sizes_out, strict=True)):
            # A list of one stands for all dimensions.
            steps = tuple(values[i % len(values)] for values in (stride, padding, dilation))
            reached = fan_out(size_in, size_out, kernel[i], *steps, transposed)
            spread = spread.unsqueeze(-1) * torch.tensor(reached, dtype=spread.dtype, device=x.device)
        values, whole = self._events(x, weight)
        channels = weight.shape[1] if transposed else weight.shape[0] // groups
        acs = (values * spread).flatten(1).sum(1, dtype=torch.float64) * channels
        positions = x[0].numel() if transposed else out.numel() // max(input.shape[0], 1) * x.shape[1]
        self._charge(acs, whole, positions * weight[0].numel())

    def mm(self, out: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
        if self._is_weight(x) and not self._is_weight(y):  # the rows are on the other side
            x, y = y.t(), x.t()
        rows = self._split(x)
        if rows is not None:
            self._product(rows.unsqueeze(1), y[None, None])

    def bmm(self, out: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
        left, right = self._split(x), self._split(y)
        if left is not None and right is not None:
            self._product(left, right)

    def _product(self, x: Tensor, y: Tensor) -> None:
        """``[n, h, m, k] @ [n, h, k, p]``, with ``n = 1`` for what is the same for all rows."""
        (h, m, k), p = x.shape[1:], y.shape[-1]
        macs = h * m * k * p
        of_x, x_whole = self._events(x, y)
        of_x_alone = of_x.flatten(1).sum(1, dtype=torch.float64) * p
        if self._is_weight(y):
            self._charge(of_x_alone, x_whole, macs)
            return
        of_y, y_whole = self._events(y, x)
        of_y_alone = of_y.flatten(1).sum(1, dtype=torch.float64) * m
        acs = torch.where(x_whole, of_x_alone, of_y_alone)
        both = x_whole & y_whole
        if bool(both.any()):
            acs = torch.where(both, _meetings(of_x, of_y, both).minimum(of_x_alone).minimum(of_y_alone), acs)
        self._charge(acs, x_whole | y_whole, macs)

    # -- rows and values ------------------------------------------------------------------------------------------

    def _split(self, x: Tensor) -> Tensor | None:
        """``[rows, m, ...]`` of ``[rows * m, ...]``; ``[1, 1, ...]`` where dimension 0 has one entry for all rows."""
        size = x.shape[0]
        if size == 1:
            return x.unsqueeze(0)
        if size % self.rows:
            self.attributable = False
            return None
        return x.reshape(self.rows, size // self.rows, *x.shape[1:])

    def _events(self, x: Tensor, partner: Tensor) -> tuple[Tensor, Tensor]:
        """Accumulates for one connection of each value, and for which rows that is a meaningful number: bool ``[n]``.

        Args:
            partner: what ``x`` is multiplied with.
        """
        if self._is_weight(x):
            return torch.zeros(x.shape, device=x.device), torch.zeros(x.shape[0], dtype=torch.bool, device=x.device)
        values = x.to(torch.promote_types(x.dtype, torch.float32)).abs()
        self._meet(values, partner)
        height = self._heights.get(_storage(partner))
        if height is not None:
            values = torch.where(values == height, 1.0, values)
        whole = (values.frac() == 0).flatten(1).all(1)  # not so for NaN and infinities
        return torch.where(whole.view(-1, *[1] * (values.ndim - 1)), values, 0), whole

    def _meet(self, values: Tensor, partner: Tensor) -> None:
        """Called with the absolute values of an operand and what it is multiplied with."""

    def _is_weight(self, operand: Tensor) -> bool:
        return _storage(operand) in self._weights

    def _charge(self, acs: Tensor, whole: Tensor, macs: int) -> None:
        cheaper = whole & (acs * PICOJOULES_PER_AC <= macs * PICOJOULES_PER_MAC)
        self.acs = self.acs.to(acs.device) + torch.where(cheaper, acs, 0)
        self.macs = self.macs.to(acs.device) + torch.where(cheaper, 0, macs)


class HeightFinder(SynapticCounter):
    """Finds, for each weight, the one height of all spikes that reach it, where that is not 1.

    Converted networks scale their spikes by a number that hardware folds into the weights. Analog values are not all of
    one height: the rows that are run must differ.
    """

    def __init__(self, weights: Iterable[Tensor]) -> None:
        super().__init__(1, weights)
        self._lowest: dict[int, float] = {}
        self._highest: dict[int, float] = {}

    def _meet(self, values: Tensor, partner: Tensor) -> None:
        positive = values[values > 0]
        if positive.numel() and self._is_weight(partner):
            weight = _storage(partner)
            self._lowest[weight] = min(self._lowest.get(weight, float("inf")), float(positive.min()))
            self._highest[weight] = max(self._highest.get(weight, 0.0), float(positive.max()))

    @property
    def heights(self) -> dict[int, float]:
        """By the storage of the weight."""
        return {
            weight: highest
            for weight, highest in self._highest.items()
            if highest == self._lowest[weight] and not highest.is_integer()
        }


@lru_cache(maxsize=4096)
def fan_out(
    size_in: int, size_out: int, kernel: int, stride: int, padding: int, dilation: int, transposed: bool
) -> tuple[int, ...]:
    """How many (output, tap) pairs each position of one dimension of a convolution's input takes part in."""
    counts = [0] * size_in
    if transposed:
        for i in range(size_in):
            counts[i] = sum(0 <= i * stride - padding + tap * dilation < size_out for tap in range(kernel))
        return tuple(counts)
    for position in range(size_out):
        for tap in range(kernel):
            i = position * stride - padding + tap * dilation
            if 0 <= i < size_in:
                counts[i] += 1
    return tuple(counts)


def _meetings(x: Tensor, y: Tensor, both: Tensor) -> Tensor:
    """The sum over all products of ``min(a, b)``, for rows of integers; ``[n]``, infinite where that takes too long."""
    of_both = both.view(-1, 1, 1, 1)
    x, y = torch.where(of_both, x, 0), torch.where(of_both, y, 0)
    highest = int(min(x.max(), y.max())) if x.numel() and y.numel() else 0
    total = torch.zeros(both.shape[0], dtype=torch.float64, device=x.device)
    if highest > _MOST_LEVELS:
        return torch.full_like(total, float("inf"))
    for level in range(1, highest + 1):  # min(a, b) is the number of levels that both reach
        meeting = (x >= level).sum(-2, dtype=torch.float64) * (y >= level).sum(-1, dtype=torch.float64)
        total += meeting.flatten(1).sum(1)
    return total


def _may_be_a_product(operation: Any) -> bool:
    """Whether an operation without a rule may do synaptic work; kernels of other libraries may do anything."""
    name = operation._opname
    if operation.namespace not in ("aten", "prim", "prims"):
        return True
    return bool(_NAMES_OF_PRODUCTS.search(name)) and not _NAMES_OF_OTHERS.search(name)


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def _addmm(self: SynapticCounter, out: Tensor, added: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
    self.mm(out, x, y)


def _baddbmm(self: SynapticCounter, out: Tensor, added: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
    self.bmm(out, x, y)


def _addmv(self: SynapticCounter, out: Tensor, added: Tensor, x: Tensor, y: Tensor, **kwargs: Any) -> None:
    self.mm(out, x, y.unsqueeze(1))


_RULES: Final[dict[Any, Callable[..., None]]] = {
    _aten.convolution: SynapticCounter.convolution,
    _aten.mm: SynapticCounter.mm,
    _aten.bmm: SynapticCounter.bmm,
    _aten.addmm: _addmm,
    _aten.addmm_: _addmm,
    _aten.baddbmm: _baddbmm,
    _aten.baddbmm_: _baddbmm,
    _aten.mv: lambda self, out, x, y, **kwargs: self.mm(out, x, y.unsqueeze(1)),
    _aten.addmv: _addmv,
    _aten.addmv_: _addmv,
    _aten.dot: lambda self, out, x, y, **kwargs: self.mm(out, x.unsqueeze(0), y.unsqueeze(1)),
}
# Names, because lists of the operations of one release miss those of the next.
_NAMES_OF_PRODUCTS: Final = re.compile(r"conv(?!ert)|linear|attention|matmul|rnn|lstm|gru|dot|addr|cdist|m[mv](_|$)")
_NAMES_OF_OTHERS: Final = re.compile(r"upsample|fused_(lstm|gru)_cell")
