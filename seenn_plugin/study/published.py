"""Numbers of the field, to stand beside ours."""

from __future__ import annotations

from dataclasses import dataclass

LONG = 16
"""From this T on a network is of the kind that converted ones are."""


@dataclass(frozen=True)
class Published:
    """A published number.

    Attributes:
        who: the method, and its source.
        data: the data set.
        network: the network.
        policy: the policy of ours that decides in the same way.
        accuracy: in words.
        mean_timesteps: in words.
        standing: ``"verified"``: read in the abstract or the code; ``"secondary"``: quoted by others; ``"recalled"``:
            from memory, not confirmed.
        long: whether it is of a network with a long T.
    """

    who: str
    data: str
    network: str
    policy: str
    accuracy: str
    mean_timesteps: str
    standing: str
    long: bool = False


_SEENN = "arXiv 2304.01230"
_DT_SNN = "DT-SNN, arXiv 2305.17346"

PUBLISHED = (
    Published(f"SEENN-II, {_SEENN}", "CIFAR-10", "ResNet-19", "rl", "96.1 %", "1.08", "verified"),
    Published(f"SEENN-I, {_SEENN}", "CIFAR-10", "ResNet-19", "confidence", "96.07 %", "1.09", "secondary"),
    Published(f"SEENN-I, {_SEENN}", "CIFAR-10", "ResNet-19", "confidence", "96.38 %", "1.20", "secondary"),
    Published(
        f"SEENN-I, weights trained with MTT, {_SEENN}", "CIFAR-10", "", "confidence", "96.58 %", "1.20", "secondary"
    ),
    Published(_DT_SNN, "CIFAR-10", "VGG-16", "entropy", "that of T = 4", "1.46 of 4", "verified"),
    Published(_DT_SNN, "CIFAR-10", "ResNet-19", "entropy", "that of T = 4", "1.27 of 4", "verified"),
    Published(
        "Dynamic Confidence (wall clock of 10,000 images at batch 1: 1027 to 451 s)",
        "CIFAR-10",
        "ResNet-18, QCFS, converted",
        "confidence",
        "94.27 %",
        "11.51 of 27",
        "verified",
        long=True,
    ),
    Published(f"SEENN, {_SEENN}", "CIFAR10-DVS", "VGG", "confidence", "about 82.6 %", "4.5 to 5 of 10", "recalled"),
)
