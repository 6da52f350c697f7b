"""Which policies are compared, and how each is set: on validation data alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from .. import calibration
from ..errors import CalibrationError
from ..policies import Policy, RLPolicy, make_policy
from ..policy_training import PolicyFit
from .material import Material, Trace, size, subset

POLICIES = ("confidence", "entropy", "margin", "patience", "rl")
TARGETS = ("accuracy", "timesteps")
MAX_ACCURACY_DROP = 0.001
"""Matched accuracy: at most a tenth of a point below full T."""
LEARNT_BY_HEART = 0.98
"""With this accuracy after one timestep, training samples leave a policy network nothing to learn."""
_PROBE = 1024


@dataclass(frozen=True)
class Choice:
    """A policy with its settings.

    Attributes:
        name: of the policy.
        target: one of :data:`TARGETS`.
        asked: the target in words.
        policy: as it was set; ``None`` if no setting meets the target.
        validation: what it does on the data on which it was chosen.
        notes: what there was to say about it.
    """

    name: str
    target: str
    asked: str
    policy: Policy | None
    validation: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


class Chooser:
    """Sets policies on the validation data of a network.

    Args:
        material: the network and its data.
        fits: a file from which an interrupted fit of an rl policy goes on.
    """

    def __init__(self, material: Material, fits: Path) -> None:
        self._material = material
        self._fits = fits
        self._fitting_data: tuple[Dataset[Any], Dataset[Any], str] | None = None
        found = calibration.calibrate(
            make_policy("confidence"), *_parts(material.validation), max_accuracy_drop=MAX_ACCURACY_DROP
        )
        self.mean_timesteps = found.chosen.mean_timesteps

    def choose(self, name: str, target: str) -> Choice:
        """The policy ``name``, set for ``target``."""
        asked: dict[str, Any] = (
            {"max_accuracy_drop": MAX_ACCURACY_DROP}
            if target == "accuracy"
            else {"average_timesteps": self.mean_timesteps}
        )
        words = (
            f"at most {100 * MAX_ACCURACY_DROP:g} point below full T"
            if target == "accuracy"
            else f"at most {self.mean_timesteps:.4f} mean timesteps"
        )
        try:
            if name == "rl":
                return self._fitted(target, words, asked)
            found = calibration.calibrate(make_policy(name), *_parts(self._material.validation), **asked)
        except CalibrationError as error:
            return Choice(name, target, words, None, notes=[str(error)])
        return Choice(name, target, words, found.policy, _evidence(found))

    def _fitted(self, target: str, words: str, asked: dict[str, Any]) -> Choice:
        material, effort = self._material, self._material.effort
        if self._fitting_data is None:
            self._fitting_data = self._data_to_fit_on()
        train, validation, source = self._fitting_data
        snn = material.snn
        snn.policy = RLPolicy()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            snn.fit_policy(
                material.batches(train),
                material.batches(validation),
                epochs=effort.policy_epochs,
                refinements=effort.policy_refinements,
                seed=material.seed,
                progress=material.progress,
                checkpoint=self._fits,
                **asked,
            )
        fit = snn.policy_fit
        assert fit is not None
        evidence = {**_evidence(fit), "fitted_on": source, "fitting_samples": size(train)}
        return Choice(
            "rl", target, words, fit.policy, evidence, list(dict.fromkeys(str(warning.message) for warning in caught))
        )

    def _data_to_fit_on(self) -> tuple[Dataset[Any], Dataset[Any], str]:
        """Data to fit on, data to choose on, and where the former is from.

        Training samples without augmentation; of a network that has learnt them by heart a half of the validation data
        instead, and the choice is then made on the other half.
        """
        material = self._material
        train = material.training_data()
        probe = subset(train, material.draw(size(train), _PROBE))
        trace, labels = calibration.record(material.snn, material.batches(probe), material.progress)
        if calibration.accuracy_per_timestep(trace, labels)[0] < LEARNT_BY_HEART:
            return train, material.validation_data, "training data"
        order = torch.randperm(len(material.validation), generator=torch.Generator().manual_seed(material.seed))
        first, second = (half.sort().values for half in order.tensor_split(2))
        data = material.validation_data
        return (
            subset(data, first[: material.effort.policy_samples]),
            subset(data, second),
            "half of the validation data",
        )


def settings_of(policy: Policy) -> dict[str, Any]:
    """The plain settings of a policy, for people and files."""
    return {name: value for name, value in policy.settings().items() if isinstance(value, int | float | str | list)}


def _parts(trace: Trace) -> tuple[torch.Tensor, torch.Tensor]:
    return trace.logits, trace.labels


def _evidence(found: calibration.Calibration | PolicyFit) -> dict[str, Any]:
    evidence: dict[str, Any] = {
        "samples": found.samples,
        "full_accuracy": found.full_accuracy,
        "accuracy": found.chosen.accuracy,
        "mean_timesteps": found.chosen.mean_timesteps,
    }
    if isinstance(found, PolicyFit):
        evidence |= {
            "reward": str(found.chosen.reward),
            "policy_operations": found.policy_operations,
            "network_operations": found.network_operations,
        }
    return evidence
