"""Which policies are compared, and how each is set: on validation data alone."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset

from ..calibration import thresholds as calibration
from ..calibration import traces
from ..calibration.policy_fitting import PolicyFit
from ..errors import CalibrationError
from ..policies import Policy, RLPolicy, make_policy
from .study_data import RecordedLogits, StudyData, size, subset

POLICIES = ("confidence", "entropy", "margin", "patience", "rl")
TARGETS = ("accuracy", "timesteps")
MAX_ACCURACY_DROP = 0.001
"""Matched accuracy: at most a tenth of a point below full T."""
MEMORISED = 0.98
"""From this accuracy after one timestep on, training samples are memorised: a policy network learns nothing there."""
_PROBE = 1024


@dataclass(frozen=True)
class Choice:
    """A policy with its settings.

    Attributes:
        name: of the policy.
        target: one of :data:`TARGETS`.
        asked: the target in words.
        policy: with its settings; ``None`` if no setting meets the target.
        validation: its result on the data on which it was chosen.
        notes: warnings and errors of the choice.
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
        study_data: the network and its data.
        fits: a file from which an interrupted fit of an rl policy goes on.
    """

    def __init__(self, study_data: StudyData, fits: Path) -> None:
        self._data = study_data
        self._fits = fits
        self._fitting_data: tuple[Dataset[Any], Dataset[Any], str] | None = None
        found = calibration.calibrate(
            make_policy("confidence"), *_parts(study_data.validation), max_accuracy_drop=MAX_ACCURACY_DROP
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
            found = calibration.calibrate(make_policy(name), *_parts(self._data.validation), **asked)
        except CalibrationError as error:
            return Choice(name, target, words, None, notes=[str(error)])
        return Choice(name, target, words, found.policy, _evidence(found))

    def _fitted(self, target: str, words: str, asked: dict[str, Any]) -> Choice:
        study_data, budget = self._data, self._data.budget
        if self._fitting_data is None:
            self._fitting_data = self._data_to_fit_on()
        train, validation, source = self._fitting_data
        snn = study_data.snn
        snn.policy = RLPolicy()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            snn.fit_policy(
                study_data.batches(train),
                study_data.batches(validation),
                epochs=budget.policy_epochs,
                refinements=budget.policy_refinements,
                seed=study_data.seed,
                progress=study_data.progress,
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
        """Data to fit on, data to choose on, and the source of the former.

        Training samples without augmentation. For a network that has memorised them, half of the validation data
        instead; the choice is then made on the other half.
        """
        study_data = self._data
        train = study_data.training_data()
        probe = subset(train, study_data.draw(size(train), _PROBE))
        trace, labels = traces.record(study_data.snn, study_data.batches(probe), study_data.progress)
        if calibration.accuracy_per_timestep(trace, labels)[0] < MEMORISED:
            return train, study_data.validation_data, "training data"
        order = torch.randperm(len(study_data.validation), generator=torch.Generator().manual_seed(study_data.seed))
        first, second = (half.sort().values for half in order.tensor_split(2))
        data = study_data.validation_data
        return (
            subset(data, first[: study_data.budget.policy_samples]),
            subset(data, second),
            "half of the validation data",
        )


def settings_of(policy: Policy) -> dict[str, Any]:
    """The plain settings of a policy, for people and files."""
    return {name: value for name, value in policy.settings().items() if isinstance(value, int | float | str | list)}


def _parts(trace: RecordedLogits) -> tuple[torch.Tensor, torch.Tensor]:
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
