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
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from measuring import RESULTS, Way, interleaved, machine, peak_growth
from networks import Network, SEWResNet18, SnnTorchConvNet
from ways import DrawnExits, Work, draw, infer, marked, stepped, stock, wrapped

TIMESTEPS = 4
# Of ten rows, how many exit at t = 1, 2, 3, 4.
DRAWS = {1.3: (8, 1, 1, 0), 2.0: (5, 2, 1, 2)}
BATCHES = (64, 1)
SINGLE_ROWS = 10  # at batch 1, one measurement is ten inputs, so that the mean exit is the drawn one
NETWORKS = {network.framework: network for network in (SEWResNet18, SnnTorchConvNet)}


def work_of(network: Network, mean: float, batch: int) -> Work:
    inputs = network.inputs(batch if batch > 1 else SINGLE_ROWS)
    samples = marked(inputs, draw(DRAWS[mean], len(inputs)))
    return Work(network, samples, batch, TIMESTEPS, DrawnExits())


def measure(framework: str, mean: float, batch: int, pairs: int) -> dict[str, Any]:
    """One row of the table: alternating measurements of early exit, the stock full run and the stock stepped run."""
    network = NETWORKS[framework]()
    work = work_of(network, mean, batch)
    snn = wrapped(network, work.policy, TIMESTEPS)
    with torch.no_grad():
        results = [snn.infer(x) for x in work.batches]
    row_steps, exits = sum(r.steps_executed for r in results), sum(int(r.timesteps.sum()) for r in results)
    assert row_steps == exits, "row-steps executed must be the sum of the exits"
    ways: dict[str, Way] = {"early": infer(work, snn), "full": stock(work), "stepped": stepped(work)}
    timings = interleaved(ways, pairs)
    mean_timesteps = exits / len(work.samples)
    ideal = TIMESTEPS / mean_timesteps
    over_full = timings["early"].over(timings["full"])
    over_stepped = timings["early"].over(timings["stepped"])
    return {
        "network": network.name,
        "batch": batch,
        "mean_timesteps": mean_timesteps,
        "ideal": ideal,
        "milliseconds_per_row": {way: 1e3 * median(timing.seconds) for way, timing in timings.items()},
        "speed_up_over_full": median(over_full),
        "speed_up_over_stepped": median(over_stepped),
        "of_ideal_over_full": median(over_full) / ideal,
        "of_ideal_over_stepped": median(over_stepped) / ideal,
        "spread_of_ideal_over_full": [min(over_full) / ideal, max(over_full) / ideal],
        "spread_of_ideal_over_stepped": [min(over_stepped) / ideal, max(over_stepped) / ideal],
        "seconds_per_row": {way: timing.seconds for way, timing in timings.items()},
    }


@torch.no_grad()
def peak_memory(framework: str, way: str, mean: float, batch: int) -> float:
    """Growth of the peak resident memory, in MiB, by one run; to be asked in a process of its own (Linux)."""
    network = NETWORKS[framework]()
    work = work_of(network, mean, batch)
    snn = wrapped(network, work.policy, TIMESTEPS)
    network.full(work.samples[:1], 1)
    return peak_growth((infer(work, snn) if way == "early" else stock(work)).run)


def ask_peak_memory(framework: str, way: str, mean: float, batch: int) -> float:
    command = [sys.executable, __file__, "--peak", framework, way, str(mean), str(batch)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


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
