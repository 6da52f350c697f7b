"""One timestep as a function of tensors, without Python: captured as a graph, and compiled."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

Function = Callable[..., Sequence[Tensor]]
"""From tensors to tensors, changing none."""


def capture(function: Function, tensors: Sequence[Tensor]) -> torch.fx.GraphModule:
    """The operations of ``function`` on ``tensors`` as a graph. Its Python code runs once, now.

    Raises:
        RuntimeError: it reads a number from a tensor and decides in Python what to do.
    """
    with _pytorch_warning_of_itself():
        from torch.fx.experimental.proxy_tensor import make_fx

        return make_fx(function)(*tensors)


def compile_graph(graph: torch.fx.GraphModule, tensors: Sequence[Tensor]) -> Function:
    """``graph``, compiled for tensors of the sizes, strides and types of ``tensors``, with its weights baked in.

    The dozen small operations of a neuron become one kernel. With frozen weights, convolution and normalisation become
    one operation. There are no guards, and therefore no recompilation in the middle of a run: the caller must make sure
    that nothing has changed.

    Raises:
        Exception: any error of the compiler (there is no C++ compiler, an operation is unknown, ...).
    """
    with _pytorch_warning_of_itself():
        from torch._inductor import compile, config  # takes seconds to import

        no_autocast = torch.autocast(tensors[0].device.type, enabled=False)  # what it casts is in the graph
        with config.patch(freezing=True), no_autocast:
            return compile(graph, list(tensors))  # pyright: ignore[reportReturnType]


@contextmanager
def _pytorch_warning_of_itself() -> Iterator[None]:
    """The compiler's own modules use what PyTorch has deprecated."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"torch\.")
        yield
