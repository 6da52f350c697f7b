"""What it costs to step a network that runs its time loop inside ``forward``: against its own ``forward``, at full T.

    python benchmarks/loop_inside.py                # table and raw measurements into benchmarks/results/

No row leaves early, so that both do the same work: what is left is the price of running the loop one pass at a time,
lending the state, and deciding after every timestep. Both alternate in one process; figures are medians over pairs.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from measuring import RESULTS, Way, interleaved, machine
from networks import LoopInside

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.policies import ConfidencePolicy

BATCHES = (64, 1)
TIMESTEPS = (4, 10)
NEVER = 2.0  # no confidence is above it


def measure(timesteps: int, batch: int, pairs: int) -> dict[str, Any]:
    """One row of the table."""
    model = LoopInside(timesteps).eval()
    x = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    snn = EarlyExitWrapper(model, ConfidencePolicy(NEVER))
    with torch.no_grad():
        result = snn.infer(x)
        assert result.steps_executed == batch * timesteps
        assert torch.equal(result.logits, model(x).sum(0)), "at a fixed batch size answers are bit-exact"

    def stepped() -> None:
        snn.infer(x)

    def own() -> None:
        model(x)

    timings = interleaved({"stepped": Way(stepped), "own": Way(own)}, pairs, warm_up=2)
    overhead = [1 / ratio - 1 for ratio in timings["stepped"].over(timings["own"])]
    return {
        "timesteps": timesteps,
        "batch": batch,
        "milliseconds": {name: 1e3 * statistics.median(timing.seconds) for name, timing in timings.items()},
        "overhead": statistics.median(overhead),
        "quartiles": statistics.quantiles(overhead, n=4)[::2],
        "seconds": {name: timing.seconds for name, timing in timings.items()},
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = ["| T | batch | stepped | own `forward` | overhead (middle half of the pairs) |", "|---|---|---|---|---|"]
    for row in rows:
        ms, (low, high) = row["milliseconds"], row["quartiles"]
        lines.append(
            f"| {row['timesteps']} | {row['batch']} | {ms['stepped']:.2f} ms | {ms['own']:.2f} ms "
            f"| **{row['overhead']:+.1%}** ({low:+.1%} to {high:+.1%}) |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--pairs", type=int, default=25, help="measured pairs for each row")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = [measure(timesteps, batch, options.pairs) for timesteps in TIMESTEPS for batch in BATCHES]
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "loop_inside.md").write_text(table(rows))
    raw = {"machine": machine(), "pairs": options.pairs, "rows": rows}
    (options.out / "loop_inside.json").write_text(json.dumps(raw, indent=1) + "\n")
    print(table(rows))


if __name__ == "__main__":
    main()
