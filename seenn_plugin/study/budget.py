"""The budget of a study: how much is measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How much is measured.

    Attributes:
        samples: of validation and test data at most, drawn by seed; ``None``: all.
        batch_size: rows of a batch.
        infer_samples: test samples that are run with early exit, drawn by seed.
        energy_samples: test samples whose operations are counted, drawn by seed.
        policy_samples: samples on which an rl policy is fitted, drawn by seed.
        policy_epochs: of each of its fits.
        policy_refinements: values of its reward's parameter tried beyond the first six.
        rounds: of timing, at each batch size; each takes one batch.
        singles: samples of a round at batch 1.
    """

    samples: int | None = None
    batch_size: int = 64
    infer_samples: int = 512
    energy_samples: int = 512
    policy_samples: int = 5000
    policy_epochs: int = 10
    policy_refinements: int = 2
    rounds: int = 9
    singles: int = 6


QUICK = Budget(
    samples=256,
    infer_samples=64,
    energy_samples=16,
    policy_samples=256,
    policy_epochs=1,
    policy_refinements=0,
    rounds=2,
    singles=2,
)
