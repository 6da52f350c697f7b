"""What a spiking network is asked for, so that its early answers are good ones."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional

from ..errors import InputError


def tet_loss(
    outputs: Tensor, labels: Tensor, lamb: float = 1e-3, target: float = 1.0, label_smoothing: float = 0.0
) -> Tensor:
    """Temporal efficient training: every timestep is asked for the right answer, not their mean alone.

    ``(1 - lamb) * mean_t CE(o_t, y) + lamb * MSE(o, target)`` (Deng et al., "Temporal Efficient Training of Spiking
    Neural Network via Gradient Re-weighting", ICLR 2022, arXiv 2202.11946). The second term keeps outputs of single
    timesteps from growing far apart.

    Args:
        outputs: o, the network's outputs at every timestep (not their running sum), float ``[T, N, C]``.
        labels: y, class indices, long ``[N]``, or probabilities of the classes, float ``[N, C]``.
        lamb: weight of the second term, 0 to 1.
        target: where the second term pulls all outputs; the authors use the firing threshold.
        label_smoothing: of the cross entropy.

    Returns:
        A scalar tensor, differentiable in ``outputs``.

    Raises:
        InputError: the shapes do not fit.
    """
    if outputs.ndim != 3 or labels.shape not in (outputs.shape[1:2], outputs.shape[1:]):
        raise InputError(
            f"outputs must be [T, N, C] and labels [N] or [N, C], not {tuple(outputs.shape)} and "
            f"{tuple(labels.shape)}; stack the outputs of all timesteps on dimension 0."
        )
    every_label = labels.repeat(outputs.shape[0], *[1] * (labels.ndim - 1))
    every_answer = functional.cross_entropy(outputs.flatten(0, 1), every_label, label_smoothing=label_smoothing)
    return (1 - lamb) * every_answer + lamb * (outputs - target).square().mean()
