"""How a policy network is fitted."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..errors import PolicyError
from ..naming import unknown_name
from .objectives import OBJECTIVES
from .rewards import REWARDS

_AMP = ("auto", "off", "bf16", "fp16")


@dataclass(frozen=True)
class FitSettings:
    """Options of :meth:`EarlyExitWrapper.fit_policy`.

    Attributes:
        objective: ``"exact"``: the expected reward over all candidates; ``"reinforce"``: of one drawn choice, with a
            self-critical baseline.
        cost: ``"exponential"``: reward ``2 ** -t``, the dial is ``beta``; ``"linear"``: the dial is ``step_cost``.
        epochs: of each run over the training data; there is one run for each setting of the dial.
        batch_size: rows of a step; traces of a live loader (``augmented``, ``finetune``) keep the loader's batches.
        learning_rate: of AdamW, falling to 0 along a cosine.
        weight_decay: of AdamW.
        exploration: weight of the mean entropy of the choices in the first epoch, in standard deviations of the reward,
            from where it falls to 0 at 70 % of the epochs: what is learnt in the end is the bare objective. Without it
            candidates that are bad for most rows are given up before the network can tell for which rows they are good.
        entropy_bonus: weight of the mean entropy of the choices, to the end.
        reweight: weigh the samples that are wrong at the first candidate with rate / (1 - rate), as the authors do.
        augmented: the training loader draws its inputs anew in every epoch: traces are recomputed in every epoch, too.
        finetune: afterwards train spiking network and policy together, with its weights changed in place.
        finetune_epochs: over the training data.
        finetune_learning_rate: of the spiking network.
        refinements: settings of the dial tried at most between two neighbours that enclose the target.
        max_operations: of the default policy network, as a share of the spiking network's at full T.
        memory_limit: bytes of recorded inputs above which they are kept in a file, mapped into memory.
        amp: ``"auto"``: on a GPU bf16, or fp16 with a gradient scaler where it has no bf16; ``"off"``, ``"bf16"``,
            ``"fp16"`` (GPU only).
        seed: of everything that is drawn.
    """

    objective: str = "exact"
    cost: str = "exponential"
    epochs: int = 30
    batch_size: int = 128
    learning_rate: float = 5e-3
    weight_decay: float = 5e-4
    exploration: float = 0.5
    entropy_bonus: float = 0.0
    reweight: bool = False
    augmented: bool = False
    finetune: bool = False
    finetune_epochs: int = 10
    finetune_learning_rate: float = 1e-4
    refinements: int = 6
    max_operations: float = 0.01
    memory_limit: float = 2**30
    amp: str = "auto"
    seed: int = 0

    @classmethod
    def of(cls, options: dict[str, Any]) -> FitSettings:
        """Settings from keyword arguments.

        Raises:
            PolicyError: with all mistakes at once.
        """
        known = [field.name for field in fields(cls)]
        unknown = [unknown_name("option", name, known) for name in options if name not in known]
        settings = cls(**{name: value for name, value in options.items() if name in known})
        mistakes = [*unknown, *settings.mistakes()]
        if mistakes:
            raise PolicyError(f"fit_policy: {' '.join(mistakes)}")
        return settings

    def mistakes(self) -> list[str]:
        """What is wrong, a sentence for each."""
        found = []
        for name, valid in (("objective", OBJECTIVES), ("cost", REWARDS), ("amp", _AMP)):
            if getattr(self, name) not in valid:
                found.append(unknown_name(name, getattr(self, name), valid))
        for name, least in (("epochs", 1), ("batch_size", 2), ("finetune_epochs", 1), ("refinements", 0), ("seed", 0)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                found.append(f"{name} must be an integer of at least {least}, not {value!r}.")
        for name in ("learning_rate", "finetune_learning_rate", "max_operations"):
            if not _is_number(getattr(self, name)) or not 0 < getattr(self, name) < float("inf"):
                found.append(f"{name} must be a positive finite number, not {getattr(self, name)!r}.")
        for name in ("weight_decay", "exploration", "entropy_bonus", "memory_limit"):
            if not _is_number(getattr(self, name)) or not getattr(self, name) >= 0:
                found.append(f"{name} must be a number of at least 0, not {getattr(self, name)!r}.")
        return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
