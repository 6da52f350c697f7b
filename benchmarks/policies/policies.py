"""SEENN-II (rl) against SEENN-I (confidence) at equal accuracy, on handwritten digits.

    python benchmarks/policies/policies.py               # three seeds, a quarter of an hour on an idle core
    python benchmarks/policies/policies.py --seeds 1     # a quick look

Both networks of the demo are trained anew for every seed. Every policy is set on the validation split for one and the
same target, and then run once on the test split, on which nothing is chosen.
"""

from __future__ import annotations

import argparse
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from statistics import mean
from typing import Any

import torch

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate
from seenn_plugin.demo.data import Digits, load
from seenn_plugin.demo.experiment import MAX_ACCURACY_DROP, NOISE, NOISY_COPIES, TIMESTEPS, train
from seenn_plugin.errors import CalibrationError
from seenn_plugin.evaluation.metrics import AccuracyCurve
from seenn_plugin.evaluation.provenance import machine, versions
from seenn_plugin.models.digits import Network, conv_net, sew_resnet
from seenn_plugin.policies import FixedPolicy, RLPolicy

BATCH = 64
EPOCHS = {"train": 40, "noisy": 15}
RESULTS = Path(__file__).parent / "results"
Row = dict[str, Any]


def conduct(make: Callable[[], Network], seed: int) -> list[Row]:
    """All policies on one network that was trained with one seed."""
    digits = load(seed)
    torch.manual_seed(seed)
    network = make()
    train(network, digits.train, network.epochs, seed)
    network.model.eval()
    common = {"network": network.name, "seed": seed}

    rows = [run(EarlyExitWrapper(network.model, FixedPolicy(TIMESTEPS), timesteps=TIMESTEPS), digits, "full T")]
    confident = EarlyExitWrapper(network.model, "confidence", timesteps=TIMESTEPS)
    confident.calibrate(digits.validation.batches(BATCH), max_accuracy_drop=MAX_ACCURACY_DROP)
    rows.append(run(confident, digits, "confidence"))
    curve = accuracy_curve(confident, digits.test.batches(BATCH))

    for data, epochs in EPOCHS.items():
        planned = EarlyExitWrapper(network.model, "rl", timesteps=TIMESTEPS)
        split = digits.train
        if data == "noisy":
            split = split.noisy(NOISY_COPIES, NOISE, torch.Generator().manual_seed(seed))
        try:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                planned.fit_policy(
                    split.batches(BATCH),
                    digits.validation.batches(BATCH),
                    max_accuracy_drop=MAX_ACCURACY_DROP,
                    epochs=epochs,
                    seed=seed,
                    progress=True,
                )
        except CalibrationError as error:
            rows.append({"policy": f"rl, {data}", "failed": str(error)})
            continue
        fit = planned.policy_fit
        assert fit is not None
        row = run(planned, digits, f"rl, {data}")
        row["warnings"] = [str(warning.message) for warning in caught]
        row["frontier"] = [
            {"dial": str(point.reward), "accuracy": point.accuracy, "mean_timesteps": point.mean_timesteps}
            for point in fit.frontier
        ]
        rows.append(row)
        assert isinstance(planned.policy, RLPolicy)
        planned.policy = planned.policy | confident.policy
        rows.append(run(planned, digits, f"rl, {data} | confidence"))

    for row in rows:
        if "accuracy" in row:
            row["confidence_at_equal_accuracy"] = at_equal_accuracy(curve, row["accuracy"])
    return [common | row for row in rows]


def run(snn: EarlyExitWrapper, digits: Digits, name: str) -> Row:
    """One policy on the test split; wall clock is the median of three runs."""
    found = sorted((evaluate(snn, digits.test.batches(BATCH)) for _ in range(3)), key=lambda found: found.seconds)[1]
    cost = found.policy_cost
    return {
        "policy": name,
        "accuracy": found.accuracy,
        "mean_timesteps": found.mean_timesteps,
        "histogram": found.histogram,
        "milliseconds_per_sample": 1e3 * found.seconds / found.samples,
        "policy_share_of_operations": cost.share_of_operations if cost else 0.0,
        "policy_share_of_seconds": cost.share_of_seconds if cost else 0.0,
        "static_accuracy": found.accuracy_per_timestep,
    }


def at_equal_accuracy(curve: AccuracyCurve, accuracy: float) -> float | None:
    """The fewest mean timesteps at which confidence is as accurate on the test split: an oracle, to compare with."""
    enough = [point.mean_timesteps for point in curve.points if point.accuracy >= accuracy - 1e-9]
    return min(enough, default=None)


def table(rows: list[Row]) -> str:
    """Means over the seeds, and every seed below."""
    lines = [
        "| network | policy | accuracy % | mean T | mean T of confidence at that accuracy | "
        "planning: % of operations at full T | planning: % of the time of early exit |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row["network"], row["policy"]), []).append(row)
    for (network, policy), group in groups.items():
        policy = policy.replace("|", "\\|")
        good = [row for row in group if "accuracy" in row]
        note = f" ({len(group) - len(good)} of {len(group)} missed the target on validation)" if good != group else ""
        if not good:
            lines.append(f"| {network} | {policy}{note} | | | | | |")
            continue
        lines.append(
            f"| {network} | {policy}{note} | {_spread(good, 'accuracy', 100, 2)} | {_spread(good, 'mean_timesteps')} | "
            f"{_spread(good, 'confidence_at_equal_accuracy')} | "
            f"{100 * mean(row['policy_share_of_operations'] for row in good):.2f} | "
            f"{100 * mean(row['policy_share_of_seconds'] for row in good):.1f} |"
        )
    return "\n".join(lines)


def _spread(rows: list[Row], key: str, scale: float = 1, digits: int = 2) -> str:
    """Mean, and the values of the seeds in brackets."""
    values = [scale * row[key] for row in rows if row[key] is not None]
    if not values:
        return "never"
    each = ", ".join("never" if row[key] is None else f"{scale * row[key]:.{digits}f}" for row in rows)
    return f"{mean(values):.{digits}f} ({each})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = [
        row for seed in range(1, 1 + options.seeds) for make in (sew_resnet, conv_net) for row in conduct(make, seed)
    ]
    options.out.mkdir(parents=True, exist_ok=True)
    facts = {"machine": machine(), "versions": versions(), "max_accuracy_drop": MAX_ACCURACY_DROP, "rows": rows}
    (options.out / "policies.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    (options.out / "policies.md").write_text(table(rows) + "\n", encoding="utf-8")
    print(table(rows))


if __name__ == "__main__":
    main()
