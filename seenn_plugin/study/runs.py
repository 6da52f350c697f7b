"""Run files for the page: the runs of one network on one data set, and the numbers of each row."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from ..errors import InputError
from .measurement import BATCH_SIZES, EARLY, FULL, STATIC
from .run_file import read


@dataclass(frozen=True)
class Numbers:
    """The numbers of one row, on the test data of one run.

    Attributes:
        accuracy: a fraction.
        mean_timesteps: mean exit.
        histogram: samples that exit at t = 1..T.
        static: for a policy: T nearest to its mean timesteps, and the accuracy of the static network there.
        operations: accumulates and multiply-accumulates of a sample; ``None`` if they could not be counted.
        picojoules: of a sample.
        saving: of the energy at full T, a fraction.
        seconds: per sample, by batch size, where measured.
        speedup: over the full run, likewise.
    """

    accuracy: float
    mean_timesteps: float
    histogram: tuple[int, ...]
    static: tuple[int, float] | None
    operations: tuple[float, float] | None
    picojoules: float | None
    saving: float | None
    seconds: dict[int, float]
    speedup: dict[int, float]


@dataclass(frozen=True)
class Run:
    """One run file."""

    name: str
    content: dict[str, Any]

    @property
    def card(self) -> dict[str, Any]:
        return self.content["card"]

    @property
    def settings(self) -> dict[str, Any]:
        return self.content["settings"]

    @property
    def timesteps(self) -> int:
        """T; 0 if nothing is measured yet."""
        return len(self.content["static"].get("test", ()))

    @property
    def full_accuracy(self) -> float:
        return self.content["static"]["test"][-1]

    @property
    def label(self) -> str:
        """The difference from the other runs of the same network and data."""
        arguments = "".join(f", {name} {value}" for name, value in self.card["loader_arguments"].items())
        return f"seed {self.card['seed']}{arguments}"

    def row(self, policy: str, target: str) -> dict[str, Any] | None:
        """The row of a policy for a target, if there is one with numbers."""
        rows = (row for row in self.content["rows"] if (row["policy"], row["target"]) == (policy, target))
        return next((row for row in rows if "test" in row), None)

    def failed(self, policy: str, target: str) -> bool:
        """Whether no setting of a policy meets a target."""
        return any(
            (row["policy"], row["target"]) == (policy, target) and "test" not in row for row in self.content["rows"]
        )

    def policy(self, policy: str, target: str) -> Numbers | None:
        """The numbers of a policy, if they were measured."""
        row = self.row(policy, target)
        if row is None:
            return None
        test, energy = row["test"], row["energy"]
        mean = energy.get("mean")
        timings = {size: row["wall_clock"][str(size)] for size in BATCH_SIZES if str(size) in row["wall_clock"]}
        return Numbers(
            accuracy=test["accuracy"],
            mean_timesteps=test["mean_timesteps"],
            histogram=tuple(test["histogram"]),
            static=(test["static_timesteps"], test["static_accuracy"]),
            operations=mean and (mean["acs"], mean["macs"]),
            picojoules=mean and mean["picojoules"],
            saving=energy.get("saving"),
            seconds={size: timing[EARLY]["median_seconds_per_sample"] for size, timing in timings.items()},
            speedup={size: timing[EARLY]["speedup"] for size, timing in timings.items()},
        )

    def static(self, timesteps: int) -> Numbers:
        """The numbers of the static network with so many timesteps."""
        found, place = self.content["static"], timesteps - 1
        energy = found["energy"]
        counted = "static_picojoules" in energy
        full = timesteps == self.timesteps
        timings = [
            (size, row["wall_clock"][str(size)][FULL if full else STATIC])
            for row in self.content["rows"]
            if "test" in row and (full or row["test"]["static_timesteps"] == timesteps)
            for size in BATCH_SIZES
            if str(size) in row["wall_clock"]
        ]

        def by_size(fact: str) -> dict[int, float]:
            return {
                size: median(timing[fact] for other, timing in timings if other == size)
                for size in dict.fromkeys(size for size, _ in timings)
            }

        return Numbers(
            accuracy=found["test"][place],
            mean_timesteps=timesteps,
            histogram=(),
            static=None,
            operations=(energy["static_acs"][place], energy["static_macs"][place]) if counted else None,
            picojoules=energy["static_picojoules"][place] if counted else None,
            saving=1 - energy["static_picojoules"][place] / energy["static_picojoules"][-1] if counted else None,
            seconds=by_size("median_seconds_per_sample"),
            speedup=by_size("speedup"),
        )


@dataclass(frozen=True)
class Group:
    """Runs of one network on one data set, with other seeds or folds."""

    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        return self.runs[0]

    @property
    def measured(self) -> tuple[Run, ...]:
        """The runs whose static network is measured."""
        return tuple(run for run in self.runs if run.timesteps)

    @property
    def title(self) -> str:
        return self.first.card["title"]

    @property
    def data(self) -> str:
        return self.first.card["data"]

    @property
    def data_set(self) -> str:
        """The data set without the version of it: the text before the first comma."""
        return self.data.split(",")[0]

    @property
    def quick(self) -> bool:
        return self.first.settings["quick"]

    @property
    def timesteps(self) -> int:
        return max(run.timesteps for run in self.runs)

    def numbers(self, of: Callable[[Run], Numbers | None]) -> list[Numbers]:
        return [found for run in self.measured if (found := of(run)) is not None]


def load(files: Sequence[Path]) -> list[Group]:
    """Run files, grouped, in a fixed order.

    Raises:
        InputError: a file is damaged, or two are of the same network on the same data.
    """
    groups: dict[str, list[Run]] = {}
    seen: dict[str, Path] = {}
    for path in sorted(map(Path, files)):
        run = Run(path.stem, read(path))
        card, settings = run.card, {name: value for name, value in run.settings.items() if name != "seed"}
        same = [card[name] for name in ("title", "network", "arguments", "wrapper", "data")] + [settings]
        one = json.dumps([same, card["loader_arguments"], run.content["weights"]], sort_keys=True)
        if one in seen:
            raise InputError(f"{seen[one]} and {path} are runs of the same weights on the same data; leave one out.")
        seen[one] = path
        groups.setdefault(json.dumps(same, sort_keys=True), []).append(run)
    made = [
        Group(tuple(sorted(runs, key=lambda run: (run.card["seed"], run.label, run.name)))) for runs in groups.values()
    ]
    # Short runs first: a network of many timesteps has the longest table.
    return sorted(
        made,
        key=lambda group: (group.quick, group.timesteps, group.data, group.title, group.first.label, group.first.name),
    )
