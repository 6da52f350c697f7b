"""From what a network is shown to small pictures for people."""

from __future__ import annotations

from io import BytesIO

import torch
from torch import Tensor
from torch.nn import functional as F

_IMAGE_CHANNELS = (1, 3)
_LARGEST = 192
"""Pixels of the longer side above which a picture is shrunk."""
_POLARITIES = torch.tensor([[0.0, 0.447, 0.698], [0.835, 0.369, 0.0]])
"""Blue and vermillion of Okabe and Ito, which colour-blind readers tell apart."""


def pictures(x: Tensor, sequence: bool, time_dim: int) -> Tensor | None:
    """Pictures ``[N, C, H, W]`` of a batch as the wrapper takes it; ``None`` if it is no picture.

    Images ``[N, C, H, W]`` of one or three channels are as they are. Frames ``[T, N, C, H, W]``, or ``[N, T, ...]``
    with ``time_dim`` 1, are summed over time, and where they have more than three channels, over these.
    """
    if sequence and x.ndim == 5:
        summed = x.sum(time_dim)
        return summed.float() if summed.shape[1] <= 3 else summed.sum(1, keepdim=True).float()
    return x.float() if not sequence and x.ndim == 4 and x.shape[1] in _IMAGE_CHANNELS else None


class Scale:
    """The range of each channel over all pictures seen.

    Attributes:
        low: the least finite value of each channel, ``[C]``; ``None`` before the first pictures.
        high: the greatest.
    """

    def __init__(self) -> None:
        self.low: Tensor | None = None
        self.high: Tensor | None = None

    def see(self, batch: Tensor) -> None:
        """Widen the range by pictures ``[N, C, H, W]``."""
        finite, inf = batch.isfinite(), float("inf")
        low = batch.where(finite, inf).amin((0, 2, 3)).cpu()
        high = batch.where(finite, -inf).amax((0, 2, 3)).cpu()
        self.low = low if self.low is None else self.low.minimum(low)
        self.high = high if self.high is None else self.high.maximum(high)

    def paint(self, picture: Tensor) -> Tensor:
        """A picture ``[C, H, W]`` in colours: uint8 ``[H, W, 3]``.

        The range of each channel goes from nothing to full: from black to white or to a full red, green and blue; with
        two channels, the polarities of events, from white to blue and to vermillion.
        """
        assert self.low is not None
        assert self.high is not None
        low, high = self.low.view(-1, 1, 1), self.high.view(-1, 1, 1)
        # A channel that never changes, or is never finite, has no range: it is left at nothing.
        values = ((picture - low) / (high - low)).nan_to_num(0.0, 1.0, 0.0).clamp(0, 1)
        values = _shrunk(values)
        if len(values) == 2:
            values = (1 - torch.einsum("phw,pc->chw", values, 1 - _POLARITIES)).clamp(0, 1)
        return (255 * values.expand(3, -1, -1)).round().byte().movedim(0, -1)

    def png(self, picture: Tensor) -> bytes:
        """:meth:`paint` as a file."""
        from matplotlib.image import imsave

        file = BytesIO()
        imsave(file, self.paint(picture).numpy(), format="png")
        return file.getvalue()


def _shrunk(picture: Tensor) -> Tensor:
    factor = _LARGEST / max(picture.shape[1:])
    if factor >= 1:
        return picture
    height, width = (max(1, round(side * factor)) for side in picture.shape[1:])
    return F.adaptive_avg_pool2d(picture.unsqueeze(0), (height, width))[0]
