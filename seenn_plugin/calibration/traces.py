"""Recording decision logits of a labelled data set, from anything that can compute traces."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final, Protocol

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, IterableDataset
from tqdm import tqdm  # tqdm.auto calls iter() twice, and a DataLoader then starts its workers twice

from .._arguments import check, loader_mistake
from ..errors import CalibrationError

_INPUT_KEYS: Final = frozenset(
    ("data", "events", "frames", "image", "images", "img", "imgs", "input", "inputs", "pixel_values", "spikes", "x")
)
_LABEL_KEYS: Final = frozenset(("class", "label", "labels", "target", "targets", "y"))


class TraceSource(Protocol):
    """What calibration and policy fitting use of a wrapped network; an ``EarlyExitWrapper`` satisfies it.

    Attributes:
        model: the spiking network. Inputs are moved to the device of its parameters.
        input: ``"static"`` for inputs ``[N, ...]``, ``"sequence"`` for inputs with a time axis.
        time_dim: the time axis of a sequence: 0 for ``[T, N, ...]``, 1 for ``[N, T, ...]``.
        readout_changes: how often the readout has been chosen again. Traces before and after do not go together.
    """

    @property
    def model(self) -> nn.Module: ...

    @property
    def input(self) -> str: ...

    @property
    def time_dim(self) -> int: ...

    @property
    def readout_changes(self) -> int: ...

    def trace(self, x: Tensor, /) -> Tensor:
        """Decision logits ``[T, N, C]`` after every timestep; differentiable where gradients are enabled."""
        ...


def row_dim(source: TraceSource) -> int:
    """The dimension of an input of ``source`` that counts rows: 0, or 1 for sequences ``[T, N, ...]``."""
    return 1 - source.time_dim if source.input == "sequence" else 0


def device_of(source: TraceSource) -> torch.device:
    """The device of the model's first parameter; the CPU for a model without parameters."""
    return next((parameter.device for parameter in source.model.parameters()), torch.device("cpu"))


def batches(source: TraceSource, loader: Iterable[Any], progress: bool, title: str) -> Iterator[tuple[Tensor, Tensor]]:
    """The pairs ``(x, labels)`` of a loader, on the device of the model, with labels as long ``[N]``.

    Args:
        source: supplies the device and the layout of the inputs.
        loader: yields pairs ``(x, labels)``, or dictionaries that name the two as is customary.
        progress: whether to show a progress bar.
        title: the description of the progress bar.

    Raises:
        CalibrationError: an item is no such pair, its labels are not integers ``[N]``, or the readout was chosen again
            after the first batch, so that earlier ones were read otherwise.
    """
    if isinstance(loader, Dataset) and not isinstance(loader, IterableDataset):
        raise CalibrationError(
            f"a {type(loader).__name__} yields single samples, and batches are needed: DataLoader(data, batch_size=64)."
        )
    check(CalibrationError, loader_mistake("the loader", loader))
    weight = next(iter(source.model.parameters()), None)
    rows, changes = row_dim(source), None
    for item in tqdm(loader, desc=title, disable=not progress, leave=False):
        x, labels = _pair(item)
        labels = torch.as_tensor(labels)
        if labels.is_floating_point() or labels.shape != (x.shape[rows],):
            raise CalibrationError(
                f"labels must be class indices of shape ({x.shape[rows]},), not {labels.dtype} {tuple(labels.shape)}."
            )
        yield (x, labels.long()) if weight is None else (x.to(weight.device), labels.long().to(weight.device))
        if changes not in (None, source.readout_changes):
            raise CalibrationError(
                "the output neurons spiked for the first time in this pass over the data; earlier batches were read "
                "from their membrane potential. Call it again (the spike count is read from now on), or pass readout=."
            )
        changes = source.readout_changes


def _pair(item: Any) -> tuple[Any, Any]:
    """Input and labels in what a loader yields.

    Raises:
        CalibrationError: it is no pair, and no dictionary in which exactly one key customarily names each.
    """
    if isinstance(item, Mapping):
        inputs, labels = ([key for key in item if key in names] for names in (_INPUT_KEYS, _LABEL_KEYS))
        if len(inputs) == len(labels) == 1:
            return item[inputs[0]], item[labels[0]]
    elif isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    parts = f" of {len(item)}" if isinstance(item, tuple | list) else ""
    keys = f" with the keys {list(item)}" if isinstance(item, Mapping) else ""
    example = "batch['image'], batch['label']" if keys else "batch[0], batch[1]"
    raise CalibrationError(
        f"the loader must yield pairs (x, labels), not a {type(item).__name__}{parts}{keys}. Say which parts these "
        f"are: seenn_plugin.data.Pairs(loader, lambda batch: ({example}))."
    )


@torch.no_grad()
def record(source: TraceSource, loader: Iterable[Any], progress: bool = False) -> tuple[Tensor, Tensor]:
    """Compute the traces of all samples of a loader, in one pass over it.

    Args:
        source: computes the traces.
        loader: yields pairs ``(x, labels)`` with labels ``[N]``; sequences must all have the same length.
        progress: whether to show a progress bar.

    Returns:
        Traces ``[T, M, C]`` and labels, long ``[M]``, of all ``M`` samples, on the CPU.

    Raises:
        CalibrationError: the loader yields no sample, an item that is no pair, labels that are no class indices, or
            sequences of different lengths.
    """
    traces, all_labels = [], []
    for x, labels in batches(source, loader, progress, "traces"):
        if labels.numel():
            traces.append(source.trace(x).cpu())
            all_labels.append(labels.cpu())
    check_lengths({trace.shape[0] for trace in traces})
    trace, labels = torch.cat(traces, 1), torch.cat(all_labels)
    check_labels(labels, class_count(trace))
    return trace, labels


def class_count(trace: Tensor) -> int:
    """C of a trace ``[T, N, C]``.

    Raises:
        CalibrationError: the model answers at several positions, so that a row has no one class.
    """
    if trace.ndim > 3:
        shape = ", ".join(map(str, trace.shape[2:]))
        raise CalibrationError(
            f"the model answers with [N, {shape}], and accuracy is of one class for each row: choose the settings of "
            "the policy on snn.trace(x), with a measure of your own."
        )
    return trace.shape[2]


def check_labels(labels: Tensor, classes: int) -> None:
    """Check that labels are class indices.

    Args:
        labels: long ``[N]``, with N of at least 1.
        classes: C, the number of decision logits.

    Raises:
        CalibrationError: a label lies outside 0 to C - 1.
    """
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise CalibrationError(
            f"labels range from {int(labels.min())} to {int(labels.max())}, but the model has {classes} classes "
            f"(0 to {classes - 1})."
        )


def check_lengths(lengths: set[int]) -> None:
    """Check that the recorded batches have one number of timesteps.

    Raises:
        CalibrationError: there is no batch, or two batches differ.
    """
    if not lengths:
        raise CalibrationError("the loader yielded no sample.")
    if len(lengths) > 1:
        raise CalibrationError(
            f"the batches have sequences of different lengths ({sorted(lengths)}); pad them to one length."
        )
