"""The options of fitting a policy network."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ..._arguments import MOST_SEED, flag_mistake, integer_mistake, number_mistake
from ..._naming import unknown_name
from ...errors import PolicyError
from .objectives import OBJECTIVES
from .rewards import REWARDS

_AMP = ("auto", "off", "bf16", "fp16")


@dataclass(frozen=True)
class FitSettings:
    """The options of ``fit_policy``.

    Attributes:
        objective: ``"exact"``: the expected reward over all candidates; ``"reinforce"``: the reward of one sampled
            choice per row, with a self-critical baseline.
        cost: ``"exponential"``: reward ``2 ** -t``, with the parameter ``beta``; ``"linear"``: with ``step_cost``.
        epochs: epochs of each run over the training data. There is one run for each setting of the reward.
        batch_size: rows per optimizer step. With ``augmented`` or ``finetune`` the batches are those of the loader.
        learning_rate: initial learning rate of AdamW; it follows a cosine down to 0.
        weight_decay: weight decay of AdamW.
        exploration: initial weight of the mean entropy of the choices, in standard deviations of the reward. It
            decreases linearly to 0 at 70 % of the epochs, so the final objective does not contain it. Without it, the
            network rules out candidates that are bad for most rows before it can tell the rows apart.
        entropy_bonus: constant weight of the mean entropy of the choices.
        reweight: weight samples that are wrong at the first candidate by rate / (1 - rate), where rate is the accuracy
            there, as the authors of SEENN do.
        augmented: set this if the training loader yields different inputs in every epoch. The traces are then computed
            in every epoch.
        finetune: afterwards train the spiking network and the policy network together. This changes the weights of the
            spiking network in place.
        finetune_epochs: epochs of fine-tuning.
        finetune_learning_rate: learning rate of the spiking network.
        refinements: the largest number of further settings of the reward that are fitted to approach the target.
        max_operations: the largest number of operations of the default policy network, as a fraction of those of the
            spiking network at full T.
        memory_limit: bytes of recorded inputs; above this they are kept in a memory-mapped file.
        amp: ``"auto"``: on a GPU bf16, or fp16 with a gradient scaler if bf16 is not supported; ``"off"``, ``"bf16"``,
            or ``"fp16"`` (GPU only).
        seed: seed of all random numbers.
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
        """Return settings from keyword arguments.

        Raises:
            PolicyError: a name is unknown or a value is invalid; the message lists all such mistakes.

        Example:
            >>> FitSettings.of({"epochs": 5}).epochs
            5
        """
        known = [field.name for field in fields(cls)]
        unknown = [unknown_name("option", name, known) for name in options if name not in known]
        settings = cls(**{name: value for name, value in options.items() if name in known})
        mistakes = [*unknown, *settings.mistakes()]
        if mistakes:
            raise PolicyError(f"fit_policy: {' '.join(mistakes)}")
        return settings

    def mistakes(self) -> list[str]:
        """Return a message for each invalid value."""
        found: list[str | None] = []
        for name, valid in (("objective", OBJECTIVES), ("cost", REWARDS), ("amp", _AMP)):
            if getattr(self, name) not in list(valid):  # an unhashable value is not in it, either
                found.append(unknown_name(name, getattr(self, name), valid))
        for name, least in (("epochs", 1), ("batch_size", 2), ("finetune_epochs", 1), ("refinements", 0)):
            found.append(integer_mistake(name, getattr(self, name), least))
        found.append(integer_mistake("seed", self.seed, 0, MOST_SEED))
        for name in ("learning_rate", "finetune_learning_rate", "max_operations"):
            if not _is_number(getattr(self, name)) or not 0 < getattr(self, name) < float("inf"):
                found.append(f"{name} must be a positive finite number, not {getattr(self, name)!r}.")
        for name in ("weight_decay", "exploration", "entropy_bonus"):
            found.append(number_mistake(name, getattr(self, name), 0))
        if not _is_number(self.memory_limit) or not self.memory_limit >= 0:  # there may be no limit
            found.append(f"memory_limit must be a number of at least 0, not {self.memory_limit!r}.")
        for name in ("reweight", "augmented", "finetune"):
            found.append(flag_mistake(name, getattr(self, name)))
        return [mistake for mistake in found if mistake is not None]

    def check(self) -> None:
        """Raise a PolicyError that lists all invalid values, if there are any."""
        mistakes = self.mistakes()
        if mistakes:
            raise PolicyError(f"fit_policy: {' '.join(mistakes)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
