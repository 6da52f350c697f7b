"""What dropping finished rows saves: wall clock of early exit against the stock network's full run.

    python benchmarks/compaction.py                 # all rows, table and raw measurements into benchmarks/results/
    python benchmarks/compaction.py --pairs 3       # a quick look

Exit timesteps are drawn, not decided, so that the mean is known; the cost of deciding is paid all the same. Early
exit and the stock runs alternate in one process, and every figure is a median over pairs. The ideal ratio is
T / mean T: what would be gained if a timestep of a smaller batch cost as much per row, and deciding nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from networks import NETWORKS
from torch import Tensor

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.policies import ConfidencePolicy, Decision

TIMESTEPS = 4
# Of ten rows, how many exit at t = 1, 2, 3, 4.
DRAWS = {1.3: (8, 1, 1, 0), 2.0: (5, 2, 1, 2)}
BATCHES = (64, 1)
SINGLE_ROWS = 10  # at batch 1, one measurement is ten inputs, so that the mean exit is the drawn one
RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class DrawnExits(ConfidencePolicy):
    """Scores the logits as the confidence policy does, then stops each row where it was drawn to stop."""

    exits: tuple[int, ...] = ()

    def decide(self, logits: Tensor, timestep: Tensor, memory: Any) -> Decision:
        score = super().decide(logits, timestep, None).score
        exits = torch.tensor(self.exits) if memory is None else memory
        return Decision(timestep >= exits, score, exits)


def draw(mean: float, rows: int) -> tuple[int, ...]:
    """Exit timesteps of ``rows`` rows with the drawn shares, in random order."""
    ten = [t for t, count in enumerate(DRAWS[mean], start=1) for _ in range(count)]
    exits = torch.tensor([ten[i * len(ten) // rows] if rows >= len(ten) else ten[i] for i in range(rows)])
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(2))
    return tuple(exits[order].tolist())


def measure(framework: str, mean: float, batch: int, pairs: int) -> dict[str, Any]:
    """One row of the table: alternating measurements of early exit, the stock full run and the stock stepped run."""
    network = NETWORKS[framework]()
    x = network.inputs(batch if batch > 1 else SINGLE_ROWS)
    exits = draw(mean, len(x))
    samples = [(x, exits)] if batch > 1 else [(x[i : i + 1], exits[i : i + 1]) for i in range(len(x))]
    snn = EarlyExitWrapper(network.model, timesteps=TIMESTEPS)
    policies = [DrawnExits(temperature=1.0, exits=part) for _, part in samples]

    def early() -> list[int]:
        steps = []
        for (rows, _), policy in zip(samples, policies, strict=True):
            snn.policy = policy
            steps.append(snn.infer(rows).steps_executed)
        return steps

    def full() -> None:
        for rows, _ in samples:
            network.full(rows, TIMESTEPS)

    def stepped() -> None:
        for rows, _ in samples:
            network.stepped(rows, TIMESTEPS)

    seconds: dict[str, list[float]] = {"early": [], "full": [], "stepped": []}
    with torch.no_grad():
        row_steps = sum(early())
        for measured in range(-1, pairs):  # the first round warms up
            for name, run in (("early", early), ("full", full), ("stepped", stepped)):
                network.set_stepped(name == "stepped")
                elapsed = timed(run)
                network.set_stepped(False)
                if measured >= 0:
                    seconds[name].append(elapsed)
    mean_timesteps = sum(exits) / len(exits)
    assert row_steps == sum(exits), "row-steps executed must be the sum of the exits"
    ideal = TIMESTEPS / mean_timesteps
    over_full = [full / early for early, full in zip(seconds["early"], seconds["full"], strict=True)]
    over_stepped = [full / early for early, full in zip(seconds["early"], seconds["stepped"], strict=True)]
    return {
        "network": network.name,
        "batch": batch,
        "mean_timesteps": mean_timesteps,
        "ideal": ideal,
        "milliseconds_per_row": {k: 1e3 * statistics.median(v) / len(x) for k, v in seconds.items()},
        "speed_up_over_full": statistics.median(over_full),
        "speed_up_over_stepped": statistics.median(over_stepped),
        "of_ideal_over_full": statistics.median(over_full) / ideal,
        "of_ideal_over_stepped": statistics.median(over_stepped) / ideal,
        "spread_of_ideal_over_full": [min(over_full) / ideal, max(over_full) / ideal],
        "spread_of_ideal_over_stepped": [min(over_stepped) / ideal, max(over_stepped) / ideal],
        "seconds": seconds,
    }


def timed(run: Callable[[], Any]) -> float:
    start = perf_counter()
    run()
    return perf_counter() - start


def peak_memory(framework: str, way: str, mean: float, batch: int) -> float:
    """Growth of the peak resident memory, in MiB, by one run; to be asked in a process of its own (Linux)."""
    network = NETWORKS[framework]()
    x = network.inputs(batch)
    with torch.no_grad():
        snn = EarlyExitWrapper(network.model, DrawnExits(temperature=1.0, exits=draw(mean, batch)), timesteps=TIMESTEPS)
        network.full(x[:1], 1)
        before = high_water_mark(reset=True)
        if way == "early":
            snn.infer(x)
        else:
            network.full(x, TIMESTEPS)
    return high_water_mark() - before


def high_water_mark(reset: bool = False) -> float:
    """Peak resident memory of this process in MiB; with ``reset``, from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def ask_peak_memory(framework: str, way: str, mean: float, batch: int) -> float:
    command = [sys.executable, __file__, "--peak", framework, way, str(mean), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def machine() -> dict[str, Any]:
    model = next((line.split(":")[1].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "")
    packages = ("torch", "spikingjelly", "snntorch")
    return {
        "processor": model or platform.processor(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{package: version(package) for package in packages},
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def table(rows: list[dict[str, Any]], memory: list[dict[str, Any]]) -> str:
    lines = [
        "| network | batch | mean T of 4 | early exit | stock, full | stock, stepped "
        "| speed-up over full | of the ideal | speed-up over stepped | of the ideal |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        ms, ideal = row["milliseconds_per_row"], row["ideal"]
        low, high = row["spread_of_ideal_over_full"]
        low_s, high_s = row["spread_of_ideal_over_stepped"]
        cells = [
            row["network"],
            row["batch"],
            f"{row['mean_timesteps']:.2f}",
            *(f"{ms[way]:.2f} ms" for way in ("early", "full", "stepped")),
            f"{row['speed_up_over_full']:.2f} of {ideal:.2f}",
            f"**{row['of_ideal_over_full']:.2f}** ({low:.2f} to {high:.2f})",
            f"{row['speed_up_over_stepped']:.2f}",
            f"**{row['of_ideal_over_stepped']:.2f}** ({low_s:.2f} to {high_s:.2f})",
        ]
        lines.append("| " + " | ".join(map(str, cells)) + " |")
    lines += [
        "",
        "| network | batch | mean T of 4 | peak memory, early exit | peak memory, stock full run |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {m['network']} | {m['batch']} | {m['mean']:.1f} | {m['early']:.0f} MiB | {m['full']:.0f} MiB |"
        for m in memory
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=9, help="measured pairs for each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--peak", nargs=4, metavar=("FRAMEWORK", "WAY", "MEAN", "BATCH"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak:
        framework, way, mean, batch = options.peak
        print(peak_memory(framework, way, float(mean), int(batch)))
        return
    rows, memory = [], []
    for framework, network in NETWORKS.items():
        for batch in BATCHES:
            for mean in DRAWS:
                rows.append(measure(framework, mean, batch, options.pairs))
                print(
                    f"{rows[-1]['network']}, batch {batch}, mean T {mean}: "
                    f"{rows[-1]['of_ideal_over_full']:.2f} of the ideal over full, "
                    f"{rows[-1]['of_ideal_over_stepped']:.2f} over stepped",
                    flush=True,
                )
        for mean in DRAWS:
            ways = {way: ask_peak_memory(framework, way, mean, BATCHES[0]) for way in ("early", "full")}
            memory.append({"network": network.name, "batch": BATCHES[0], "mean": mean, **ways})
    options.out.mkdir(parents=True, exist_ok=True)
    text = table(rows, memory)
    (options.out / "compaction.md").write_text(text)
    raw = {"machine": machine(), "pairs": options.pairs, "rows": rows, "peak_memory_mib": memory}
    (options.out / "compaction.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(text)


if __name__ == "__main__":
    main()
