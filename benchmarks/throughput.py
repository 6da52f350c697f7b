"""How much of the ideal the wrapper keeps: against stock runs, peers, and at best.

    python benchmarks/throughput.py                       # all rows: about half an hour on two cores
    python benchmarks/throughput.py --rows 'sew*stream*'  # some of them
    python benchmarks/throughput.py --list                # their names
    python benchmarks/throughput.py --table               # the table once more, from the measurements

Results are written after every row. A row that was measured with this code, on this machine, is not measured again
(``--again`` does). The ideal is T / mean T: what would be gained if deciding were free, and a row-step as cheap in a
small batch as in the stock run.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from fnmatch import fnmatch
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from measuring import (
    RESULTS,
    Results,
    Timing,
    Way,
    code,
    give_back_free_memory,
    interleaved,
    machine,
    markdown,
    measured_on,
    peak_growth,
    percentile,
    spread,
)
from networks import NETWORKS, SEED, Network, OnDigits
from ways import (
    DrawnExits,
    Work,
    answers,
    draw,
    exits_of,
    halfway_policy,
    infer,
    loop_with_break,
    marked,
    options,
    picked_afterwards,
    stepped,
    stock,
    stock_answers,
    stream,
    wrapped,
)

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.policies import ConfidencePolicy

# How many of their sum exit at t = 1, 2, ...
HISTOGRAMS: dict[str, tuple[int, ...]] = {
    "mean 1.1 of 4": (9, 1, 0, 0),
    "mean 1.3 of 4": (8, 1, 1, 0),
    "mean 1.3 of 4, 1 or 4": (9, 0, 0, 1),
    "mean 1.3 of 4, 1 or 2": (7, 3, 0, 0),
    "mean 2.0 of 4": (5, 2, 1, 2),
    "mean 2.5 of 10": (4, 2, 2, 1, 0, 0, 1, 0, 0, 0),
    "mean 2.6 of 10": (4, 2, 2, 1, 0, 0, 0, 1, 0, 0),
}
REAL = "real exits"
_DEMO_TIMESTEPS = 8
_AGREEMENT_ROWS = 64

STOCK = {
    "full": "stock, all timesteps",
    "once": "stock, T = 1",
    "stepped": "stock, stepped",
    "peer": "all timesteps, exit picked afterwards",
    "loop": "batch-1 loop with a break",
}
OURS = {"defaults": "wrapper, defaults", "exact": "wrapper, exact options", "bf16": "wrapper, options and bf16"}


@dataclass(frozen=True)
class Scenario:
    """One row of the issue's table, with all ways that are compared in it.

    Attributes:
        network: a key of ``NETWORKS``.
        kind: ``"infer"``, ``"stream"``, or ``"memory"`` (of ``infer``).
        batch: rows at a time, or slots.
        exits: a key of ``HISTOGRAMS``, or ``REAL``.
        samples: answered in one round.
        rounds: that are measured.
        ways: keys of ``STOCK`` and ``OURS``.
        stock_samples: how many of the samples the stock ways answer in a round; they take all alike.
        wanted: of the ideal over the stock run of all timesteps; for memory, the most of it.
        wanted_over_stepped: of the ideal over the stock network stepped singly.
    """

    network: str
    kind: str
    batch: int
    exits: str
    samples: int
    rounds: int
    ways: tuple[str, ...] = (*STOCK, *OURS)
    stock_samples: int | None = None
    wanted: dict[str, float] = field(default_factory=dict)
    wanted_over_stepped: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        what = f"{self.samples} samples, {self.batch} slots" if self.kind == "stream" else f"batch {self.batch}"
        return f"{self.network}, {self.kind}, {what}, {self.exits}"

    @property
    def timesteps(self) -> int:
        return _DEMO_TIMESTEPS if self.exits == REAL else len(HISTOGRAMS[self.exits])


BATCHED = ("full", "once", "stepped", "peer", *OURS)
FEW = ("full", "once", "defaults", "exact")


def scenarios() -> dict[str, Scenario]:
    """By name: all that are measured unless others are asked for."""
    infer_64 = Scenario("sew-resnet18", "infer", 64, "mean 1.3 of 4", 64, rounds=5, ways=BATCHED)
    target = {"defaults": 1.25, "exact": 1.7, "bf16": 2.8}
    streamed = replace(infer_64, kind="stream", samples=1024, rounds=3, ways=("full", "once", *OURS), stock_samples=256)
    streamed = replace(streamed, wanted={"defaults": 1.3, "exact": 1.8, "bf16": 3.3})
    single = replace(infer_64, batch=1, samples=20, rounds=7, ways=(*STOCK, *OURS))
    long = replace(infer_64, exits="mean 2.6 of 10", rounds=3, ways=("full", "once", "peer", *OURS))
    found = [
        replace(infer_64, wanted=target, wanted_over_stepped={"defaults": 1.0}),
        replace(infer_64, exits="mean 1.1 of 4", rounds=3),
        replace(infer_64, exits="mean 2.0 of 4", rounds=3),
        streamed,
        replace(streamed, exits="mean 1.3 of 4, 1 or 4"),
        replace(streamed, exits="mean 1.3 of 4, 1 or 2"),
        replace(single, wanted={"defaults": 0.9, "exact": 1.3, "bf16": 2.3}),
        replace(long, wanted={"defaults": 1.5, "exact": 1.9, "bf16": 3.2}),
        replace(long, exits="mean 2.5 of 10", ways=("full", "defaults", "exact")),
        replace(infer_64, kind="memory", rounds=1, ways=("full", "defaults", "exact"), wanted={"defaults": 1.0}),
    ]
    for network in ("resnet19", "spikformer", "snntorch-conv", "snntorch-loop"):
        heavy = network in ("resnet19", "spikformer")
        found.append(replace(infer_64, network=network, rounds=3 if heavy else 9, ways=FEW))
        alone = replace(single, network=network, ways=(*FEW, "loop"))
        found.append(replace(alone, rounds=3, samples=10) if heavy else replace(alone, rounds=9))
    for network in ("demo-spikingjelly", "demo-snntorch"):
        trained = Scenario(
            network, "infer", 64, REAL, 448, rounds=9, ways=("full", "once", "peer", "defaults", "exact")
        )
        found += [trained, replace(trained, batch=1, samples=100, ways=(*trained.ways, "loop"))]
    return {scenario.name: scenario for scenario in found}


def rehearsals() -> dict[str, Scenario]:
    """By name: rows on a network so small that they show nothing but that all runs."""
    one = Scenario("tiny", "infer", 8, "mean 1.3 of 4", 10, rounds=1, ways=BATCHED)
    found = [
        one,
        replace(one, batch=1, ways=(*STOCK, "defaults")),
        replace(one, kind="stream", ways=("full", "once", "defaults"), stock_samples=8),
        replace(one, kind="memory", ways=("full", "defaults")),
    ]
    return {scenario.name: scenario for scenario in found}


# -- measuring ----------------------------------------------------------------------------------------------------


class Bench:
    """One network at a time, with the wrappers around it: what is compiled for one row serves the next."""

    def __init__(self) -> None:
        self._key = ""
        self._network: Network | None = None
        self._policy: ConfidencePolicy | None = None
        self._wrappers: dict[tuple[int, str, bool], EarlyExitWrapper] = {}

    def network(self, key: str) -> Network:
        if key != self._key or self._network is None:
            self._key, self._network, self._policy, self._wrappers = key, NETWORKS[key](), None, {}
        return self._network

    def work(self, scenario: Scenario) -> Work:
        network = self.network(scenario.network)
        samples = network.inputs(scenario.samples)
        policy = self._calibrated(network) if scenario.exits == REAL else DrawnExits()
        if isinstance(policy, DrawnExits):
            samples = marked(samples, draw(HISTOGRAMS[scenario.exits], len(samples)))
        return Work(network, samples, scenario.batch, scenario.timesteps, policy)

    def wrapper(self, work: Work, option: str) -> EarlyExitWrapper:
        key = work.timesteps, option, work.batch == 1
        if key not in self._wrappers:
            self._wrappers[key] = wrapped(work.network, work.policy, work.timesteps, **options(option, work.batch))
        return self._wrappers[key]

    def _calibrated(self, network: Network) -> ConfidencePolicy:
        """As ``seenn demo`` sets it."""
        from seenn_plugin.demo.data import load
        from seenn_plugin.demo.experiment import MAX_ACCURACY_DROP

        if self._policy is None:
            assert isinstance(network, OnDigits)
            snn = EarlyExitWrapper(network.model, "confidence", timesteps=_DEMO_TIMESTEPS)
            snn.calibrate(load(SEED).validation.batches(64), max_accuracy_drop=MAX_ACCURACY_DROP)
            assert isinstance(snn.policy, ConfidencePolicy)
            self._policy = snn.policy
        return self._policy


def measure(scenario: Scenario, bench: Bench) -> dict[str, Any]:
    """One row: all of its ways, interleaved."""
    work = bench.work(scenario)
    fewer = work.first(scenario.stock_samples or scenario.samples)
    make = {
        "full": stock,
        "once": lambda work: stock(work, 1),
        "stepped": stepped,
        "peer": picked_afterwards,
        "loop": loop_with_break,
    }
    ways = {name: make[name](fewer) for name in scenario.ways if name in STOCK}
    drawn = isinstance(work.policy, DrawnExits)
    exits = exits_of(work.samples) if drawn else stock_answers(work).exits
    rows: dict[str, dict[str, Any]] = {name: {} for name in ways}
    for option in scenario.ways:
        if option in OURS:
            way, rows[option] = prepare(scenario, bench, work, option, exits)
            if way is not None:
                ways[option] = way
    timings = interleaved(ways, scenario.rounds)
    mean = float(exits.double().mean())
    ideal = work.timesteps / mean
    for name, timing in timings.items():
        rows[name] |= _numbers(timing, timings, ideal)
    histogram = torch.bincount(exits - 1, minlength=work.timesteps).tolist()
    title = f"{work.network.name}: {scenario.name.split(', ', 1)[1]}"
    return {"title": title, "mean_timesteps": mean, "ideal": ideal, "histogram": histogram, "ways": rows}


def prepare(
    scenario: Scenario, bench: Bench, work: Work, option: str, exits: torch.Tensor
) -> tuple[Way | None, dict[str, Any]]:
    """A wrapper that has been used once on the work; the way to time it, and what is known of it but its time.

    A wrapper that is refused, or answers at another timestep than was drawn, is no reason to lose the other ways: the
    row then says what happened.
    """
    row: dict[str, Any] = {"options": {name: str(value) for name, value in options(option, work.batch).items()}}
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        try:
            snn = bench.wrapper(work, option)
            start = perf_counter()
            got = answers(scenario.kind, work, snn)
            row["first_use_seconds"] = perf_counter() - start
            if isinstance(work.policy, DrawnExits) and not torch.equal(got.exits, exits):
                raise AssertionError(f"{int((got.exits != exits).sum())} rows left at another timestep than was drawn")
            row["row_steps_of_sum"] = None if got.row_steps is None else got.row_steps / int(got.exits.sum())
            row["agreement"] = agreement(scenario, bench, work, option)
        except Exception as error:
            row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
    if said:
        row["warnings"] = sorted({str(warning.message) for warning in said})
    if "failed" in row:
        return None, row
    return {"infer": infer, "stream": stream}[scenario.kind](work, snn), row


def agreement(scenario: Scenario, bench: Bench, work: Work, option: str) -> dict[str, Any]:
    """Equal answers and exits: of the options with the plain wrapper, and of that with the stock network.

    Drawn exits agree whatever is computed. Rows are therefore asked to leave at a threshold that about half of the
    scores reach; where the exits are real, at the real one.
    """
    plain = bench.wrapper(work, "defaults")
    same = replace(work, samples=work.samples[:_AGREEMENT_ROWS], batch=min(work.batch, _AGREEMENT_ROWS))
    if isinstance(work.policy, DrawnExits):
        same = replace(same, policy=halfway_policy(plain, same.samples))
    got = answers(scenario.kind, same, bench.wrapper(work, option))
    with_stock = option == "defaults"
    reference = stock_answers(same) if with_stock else answers("infer", same, plain)
    return {"with": "stock" if with_stock else "defaults", "rows": len(same.samples), **got.agreement(reference)}


def _numbers(timing: Timing, timings: dict[str, Timing], ideal: float) -> dict[str, Any]:
    over_full = timing.over(timings["full"])
    numbers = {
        "milliseconds": 1e3 * spread(timing.seconds)["median"],
        "latency_milliseconds": {f"p{p}": 1e3 * percentile(timing.latencies, p) for p in (50, 99)},
        "over_full": spread(over_full),
        "of_ideal": spread([ratio / ideal for ratio in over_full]),
        "warm_up_seconds": timing.warm_up,
        "seconds_per_sample": timing.seconds,
    }
    if "stepped" in timings:
        numbers["of_ideal_over_stepped"] = spread([ratio / ideal for ratio in timing.over(timings["stepped"])])
    return numbers


def measure_memory(scenario: Scenario, bench: Bench, threads: int) -> dict[str, Any]:
    """One row: growth of the peak by one run that is not the first, each way in a process of its own."""
    rows: dict[str, dict[str, Any]] = {}
    for way in scenario.ways:
        command = [sys.executable, __file__, "--peak", scenario.name, way, "--threads", str(threads)]
        done = subprocess.run(command, capture_output=True, text=True)
        lines = (done.stderr if done.returncode else done.stdout).strip().splitlines()
        rows[way] = {"failed": lines[-1]} if done.returncode else {"mebibytes": float(lines[-1])}
    for row in rows.values():
        if "mebibytes" in row and "mebibytes" in rows["full"]:
            row["of_full"] = row["mebibytes"] / rows["full"]["mebibytes"]
    return {"title": f"{bench.network(scenario.network).name}: {scenario.name.split(', ', 1)[1]}", "ways": rows}


@torch.no_grad()
def peak(scenario: Scenario, way: str) -> float:
    """In this process, which has done nothing else: MiB by which one run makes the peak grow."""
    bench = Bench()
    work = bench.work(scenario)
    run = (infer(work, bench.wrapper(work, way)) if way in OURS else stock(work)).run
    run()
    give_back_free_memory()
    return peak_growth(run)


# -- tables -------------------------------------------------------------------------------------------------------


def table(rows: dict[str, dict[str, Any]]) -> str:
    """What was measured, and what was not, in Markdown."""
    shown = scenarios() | {name: row for name, row in rehearsals().items() if name in rows}
    parts = ["## Wanted and reached\n\n" + _targets(shown, rows), "## Every row"]
    for name, scenario in shown.items():
        row = rows.get(name)
        if row is None:
            parts.append(f"### {name}\n\nNot measured.")
        elif scenario.kind == "memory":
            parts.append(f"### {row['title']}\n\n" + _memory_table(row))
        else:
            parts.append(f"### {row['title']}\n\n" + _table_of(row))
    return "\n".join(part.rstrip() + "\n" for part in [*parts, measured_on(rows)])


def _targets(shown: dict[str, Scenario], rows: dict[str, dict[str, Any]]) -> str:
    over_full, over_stepped = "of the ideal over stock, all timesteps", "of the ideal over stock, stepped"
    lines = []
    for name, scenario in shown.items():
        found = rows[name]["ways"] if name in rows else {}
        for way, wanted in scenario.wanted.items():
            if scenario.kind == "memory":
                value = found.get(way, {}).get("of_full")
                lines.append(_target(name, way, "of the peak of stock, all timesteps", f"<= {wanted:.2f}", value))
                lines[-1].append("" if value is None else "yes" if value <= wanted else "**no**")
                continue
            for unit, key, least in (
                (over_full, "of_ideal", wanted),
                (over_stepped, "of_ideal_over_stepped", scenario.wanted_over_stepped.get(way)),
            ):
                if least is None:
                    continue
                value = found.get(way, {}).get(key, {}).get("median")
                lines.append(_target(name, way, unit, f">= {least:.2f}", value))
                lines[-1].append("" if value is None else "yes" if value >= least else "**no**")
    return markdown(["row", "way", "unit", "wanted", "measured", "reached"], lines)


def _target(row: str, way: str, unit: str, wanted: str, value: float | None) -> list[str]:
    return [row, OURS[way], unit, wanted, "not measured" if value is None else f"{value:.2f}"]


def _table_of(row: dict[str, Any]) -> str:
    lines = []
    for name, way in row["ways"].items():
        label = (STOCK | OURS)[name]
        if "failed" in way:
            lines.append([label, way["failed"], *[""] * 7])
            continue
        latency, over, ideal = way["latency_milliseconds"], way["over_full"], way["of_ideal"]
        steps, agreed = way.get("row_steps_of_sum"), way.get("agreement")
        lines.append(
            [
                label,
                f"{way['milliseconds']:.2f} ms",
                f"{latency['p50']:.1f} / {latency['p99']:.1f} ms",
                f"{over['median']:.2f}",
                f"**{ideal['median']:.2f}** ({ideal['lowest']:.2f} to {ideal['highest']:.2f})" if name in OURS else "",
                f"{way['of_ideal_over_stepped']['median']:.2f}"
                if name in OURS and "of_ideal_over_stepped" in way
                else "",
                "" if steps is None else f"{steps:.3f}",
                "" if agreed is None else f"{agreed['answers']:.1%} / {agreed['exits']:.1%} ({agreed['with']})",
                f"{way['first_use_seconds']:.1f} s" if name in OURS else "",
            ]
        )
    header = [
        "way",
        "per sample",
        "latency p50 / p99",
        "speed-up over full",
        "of the ideal",
        "of the ideal over stepped",
        "row-steps / sum of t",
        "equal answers / exits (with)",
        "first use",
    ]
    ideal = f"Mean T {row['mean_timesteps']:.3f}, exits {row['histogram']}, ideal {row['ideal']:.2f}.\n\n"
    warned = {text for way in row["ways"].values() for text in way.get("warnings", ())}
    return ideal + markdown(header, lines) + "".join(f"\nWarned: {text}\n" for text in sorted(warned))


def _memory_table(row: dict[str, Any]) -> str:
    lines = []
    for name, way in row["ways"].items():
        ratio = f"**{way['of_full']:.2f}**" if "of_full" in way else ""
        grown = way.get("failed") or f"{way['mebibytes']:.0f} MiB"
        lines.append([(STOCK | OURS)[name], grown, ratio])
    return markdown(["way", "growth of the peak by one run", "of stock, all timesteps"], lines)


# -- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rows", nargs="+", default=["*"], help="names of rows, or patterns such as 'sew*stream*'")
    parser.add_argument("--rounds", type=int, help="measured rounds of each row, instead of its own number")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--again", action="store_true", help="measure rows that were measured before")
    parser.add_argument("--list", action="store_true", help="print the names of the rows")
    parser.add_argument("--table", action="store_true", help="write the table anew, and measure nothing")
    parser.add_argument("--peak", nargs=2, metavar=("ROW", "WAY"), help=argparse.SUPPRESS)
    asked = parser.parse_args(arguments)
    torch.set_num_threads(asked.threads)
    known = scenarios() | rehearsals()
    if asked.peak:
        print(peak(known[asked.peak[0]], asked.peak[1]))
        return 0
    chosen = [name for name in scenarios() if any(fnmatch(name, pattern) for pattern in asked.rows)]
    # The small ones are run for their own sake only.
    chosen += [name for name in rehearsals() if any(fnmatch(name, p) for p in asked.rows if p.startswith("tiny"))]
    if not chosen:
        parser.error(f"no row is called {' or '.join(asked.rows)}; --list names them")
    if asked.list:
        print("\n".join(chosen))
        return 0
    results = Results(asked.out / "throughput.json")
    if not asked.table:
        run([known[name] for name in chosen], results, asked.rounds, asked.again, asked.threads)
    asked.out.mkdir(parents=True, exist_ok=True)
    (asked.out / "throughput.md").write_text(table(results.rows))
    return 0


def run(chosen: Iterable[Scenario], results: Results, rounds: int | None, again: bool, threads: int) -> None:
    bench, where, digest = Bench(), machine(), code()
    for scenario in chosen:
        if rounds is not None:
            scenario = replace(scenario, rounds=rounds)
        of = {"scenario": asdict(scenario), "machine": where, "code": digest}
        if not again and results.has(scenario.name, of):
            print(f"{scenario.name}: measured before", flush=True)
            continue
        start = perf_counter()
        is_memory = scenario.kind == "memory"
        row = measure_memory(scenario, bench, threads) if is_memory else measure(scenario, bench)
        results.add(scenario.name, of, row)
        took = perf_counter() - start
        print(f"{scenario.name}: {took:.0f} s; " + "; ".join(_short(n, w) for n, w in row["ways"].items()), flush=True)


def _short(name: str, way: dict[str, Any]) -> str:
    if "failed" in way:
        return f"{name} FAILED ({way['failed']})"
    if "mebibytes" in way:
        return f"{name} {way['mebibytes']:.0f} MiB"
    return f"{name} {way['milliseconds']:.2f} ms" + (f" = {way['of_ideal']['median']:.2f}" if name in OURS else "")


if __name__ == "__main__":
    sys.exit(main())
