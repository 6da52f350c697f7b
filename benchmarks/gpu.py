"""Everything of throughput.py that needs a GPU, in one command of less than eight minutes.

    python benchmarks/gpu.py --out DIR                            # on a CUDA machine
    python benchmarks/gpu.py --out DIR --spikingjelly FOLDER      # and once more with the SpikingJelly in that folder
    python benchmarks/gpu.py --out DIR --device cpu --quick       # a rehearsal: shows that the script runs
    python benchmarks/gpu.py --table                              # the table once more, from the measurements

Correctness comes first: tests/test_cuda.py, on tiny networks, and its result is written before anything is timed. Then
every way to run a large network is compared with the CPU (the same weights, the plain wrapper); one whose answers are
not those is not timed. With ``--tf32``, as with bfloat16, how many agree is only written down: the weights are random,
so that answers depend on few spikes. Each scenario runs in a process of its own, and is written when it ends, so that a
failure costs that scenario alone. Without CUDA nothing is measured, and nothing written; a rehearsal is marked as one,
and never printed as a measurement.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import distributions
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, perf_counter
from typing import Any
from xml.etree import ElementTree

import torch
from measuring import (
    RESULTS,
    Results,
    Timing,
    Way,
    code,
    interleaved,
    machine,
    markdown,
    measured_on,
    percentile,
    run_once,
    spread,
    synchronise,
)
from networks import NETWORKS, Network
from ways import (
    Answers,
    DrawnExits,
    Work,
    answers,
    draw,
    halfway_policy,
    infer,
    marked,
    policy_of,
    stock,
    stock_answers,
    stream,
    wrapped,
)

HISTOGRAMS = {"mean 1.3 of 4": (8, 1, 1, 0), "mean 2.6 of 10": (4, 2, 2, 1, 0, 0, 0, 1, 0, 0)}
_REFERENCE_ROWS = 16
# A spike that rounding tips over changes a row; arithmetic that is wrong changes most of them.
_LEAST_AGREEMENT = 0.9
_NO_CUDA = "There is no CUDA device: nothing was measured. To see that the script runs: --device cpu --quick."

BF16 = {"autocast": torch.bfloat16}
DEFAULTS: dict[str, dict[str, Any]] = {"defaults": {}}
CHECKS = {"check_every=2": {"check_every": 2}}
GRAPHS = {"cuda_graphs": {"cuda_graphs": True}}
GRAPHS_CHECKS = {"cuda_graphs, check_every=2": {"cuda_graphs": True, "check_every": 2}}
CHUNKED = {"chunk='auto'": {"chunk": "auto"}}
_SLOTS = 256
_SECONDS = 110  # that one scenario may take


def compiled(rows: int) -> dict[str, dict[str, Any]]:
    """A compiled step for one batch size: each takes the compiler half a minute."""
    both = {"compile": (rows,), "cuda_graphs": True}
    return {"compile, cuda_graphs": both, "compile, cuda_graphs, bf16": {**both, **BF16}}


@dataclass(frozen=True)
class Scenario:
    """One group of rows: the stock run of all timesteps, at T = 1, and the wrapper with each set of options.

    Attributes:
        network: a key of ``NETWORKS``.
        kind: ``"stream"`` or ``"infer"``.
        batch: rows at a time, or slots.
        samples: answered in one round.
        exits: a key of ``HISTOGRAMS``.
        ways: options of the wrapper, by name.
        note: what sets it apart from another scenario of the same rows.
    """

    network: str
    kind: str
    batch: int
    samples: int
    exits: str = "mean 1.3 of 4"
    rounds: int = 7
    ways: dict[str, dict[str, Any]] = field(default_factory=dict)
    note: str = ""

    @property
    def name(self) -> str:
        rows = f"{self.batch} slots" if self.kind == "stream" else f"batch {self.batch}"
        return f"{self.network}, {self.kind}, {rows}, {self.exits}{self.note}"

    @property
    def timesteps(self) -> int:
        return len(HISTOGRAMS[self.exits])


def scenarios() -> list[Scenario]:
    """What is asked of the GPU first comes first."""
    few = {**DEFAULTS, **GRAPHS}
    streamed = Scenario("sew-resnet18", "stream", _SLOTS, 2048, rounds=5, ways={**few, **CHECKS})
    single = replace(streamed, kind="infer", batch=1, samples=50, ways={**few, **compiled(1)})
    ten = replace(streamed, kind="infer", batch=64, samples=64, exits="mean 2.6 of 10")
    return [
        streamed,
        single,
        replace(ten, ways={**few, **GRAPHS_CHECKS, **CHUNKED}),
        replace(streamed, network="snntorch-conv", ways=few),
        replace(single, network="snntorch-conv"),
        replace(streamed, network="resnet19", ways=few),
        replace(streamed, network="spikformer", ways=few),
        replace(streamed, ways=compiled(_SLOTS), note=", compiled"),
    ]


def rehearsals() -> list[Scenario]:
    ways = {**DEFAULTS, **CHECKS, **CHUNKED}
    one = Scenario("tiny", "stream", 8, 12, rounds=1, ways=ways)
    return [one, replace(one, kind="infer", batch=1, samples=10, ways={**DEFAULTS, **GRAPHS})]


# -- measuring ----------------------------------------------------------------------------------------------------


class Reference:
    """One network on the CPU: what it answers to a few rows, and the same network on the device."""

    def __init__(self, key: str, timesteps: int, device: torch.device) -> None:
        on_cpu = NETWORKS[key]()
        rows = on_cpu.inputs(_REFERENCE_ROWS)
        snn = wrapped(on_cpu, DrawnExits(), timesteps)
        self.policy = halfway_policy(snn, rows)
        cpu_work = Work(on_cpu, rows, len(rows), timesteps, self.policy)
        self.answers = answers("infer", cpu_work, snn)
        self.network: Network = NETWORKS[key]()
        self.network.model.to(device)
        self.backend = self.network.use_fastest_backend(device)
        self.work = replace(cpu_work, network=self.network, samples=rows.to(device))

    def compare(self, got: Answers) -> dict[str, float]:
        got = got.to(torch.device("cpu"))
        difference = (got.logits.double() - self.answers.logits.double()).abs().amax(1)
        same_exit = got.exits == self.answers.exits  # rows that left at another timestep have other logits
        return {
            **got.agreement(self.answers),
            "rows": len(got.exits),
            "largest_difference": float(difference[same_exit].max()) if same_exit.any() else float("nan"),
        }


def measure(scenario: Scenario, device: torch.device, deadline: float) -> dict[str, Any]:
    """One scenario: every way checked, then all that passed timed in turns."""
    reference = Reference(scenario.network, scenario.timesteps, device)
    network = reference.network
    samples = network.inputs(scenario.samples)
    exits = draw(HISTOGRAMS[scenario.exits], len(samples))
    samples = marked(samples, exits).to(device)
    work = Work(network, samples, scenario.batch, scenario.timesteps, DrawnExits())
    ideal = scenario.timesteps / float(exits.double().mean())
    ways = {"full": stock(work), "once": stock(work, 1)}
    rows: dict[str, dict[str, Any]] = {
        "full": {"against_cpu": reference.compare(stock_answers(reference.work))},
        "once": {},
    }
    for name, chosen in scenario.ways.items():
        row = rows[name] = {}
        if monotonic() > deadline:
            row["failed"] = "not measured: out of time"
            continue
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            try:
                snn = wrapped(network, DrawnExits(), scenario.timesteps, **chosen)
                got, row["first_use_seconds"] = _first_use(scenario.kind, work, snn, device)
                if not torch.equal(got.exits.cpu(), exits):
                    raise AssertionError(f"{int((got.exits.cpu() != exits).sum())} rows left at another timestep")
                assert got.row_steps is not None
                row["row_steps_of_sum"] = got.row_steps / int(exits.sum())
                with policy_of(snn, reference.policy):
                    row["against_cpu"] = reference.compare(answers(scenario.kind, reference.work, snn))
                exact = not (torch.backends.cudnn.allow_tf32 or "autocast" in chosen)
                if exact and row["against_cpu"]["answers"] < _LEAST_AGREEMENT:
                    raise AssertionError(f"answers differ from those of the CPU: {row['against_cpu']}")
                ways[name] = {"stream": stream, "infer": infer}[scenario.kind](work, snn)
            except Exception as error:
                row["failed"] = f"{type(error).__name__}: {error}".splitlines()[0]
        if said:
            row["warnings"] = sorted({str(warning.message) for warning in said})
    timings = interleaved(ways, scenario.rounds, device=device)
    for name, timing in timings.items():
        rows[name] |= _numbers(timing, timings["full"], ideal)
        if device.type == "cuda":
            rows[name]["peak_mib"] = _peak(ways[name], device)
    title = f"{network.name}: {scenario.name.split(', ', 1)[1]}"
    return {"title": title, "backend": reference.backend, "ideal": ideal, "ways": rows}


@torch.no_grad()
def _peak(way: Way, device: torch.device) -> float:
    """MiB that a run adds to the memory of the device that was allocated before it, at its peak."""
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run_once(way, device)
    return (torch.cuda.max_memory_allocated(device) - before) / 2**20


def _first_use(kind: str, work: Work, snn: Any, device: torch.device) -> tuple[Answers, float]:
    start = perf_counter()
    got = answers(kind, work, snn)
    synchronise(device)
    return got, perf_counter() - start


def _numbers(timing: Timing, full: Timing, ideal: float) -> dict[str, Any]:
    return {
        "milliseconds": 1e3 * spread(timing.seconds)["median"],
        "latency_milliseconds": {f"p{p}": 1e3 * percentile(timing.latencies, p) for p in (50, 99)},
        "over_full": spread(timing.over(full)),
        "of_ideal": spread([ratio / ideal for ratio in timing.over(full)]),
        "seconds_per_sample": timing.seconds,
    }


def measure_one(scenario: Scenario, results: Results, device: torch.device, quick: bool, deadline: float) -> None:
    """With the SpikingJelly that can be imported."""
    described = {**asdict(scenario), "ways": {name: _plain(chosen) for name, chosen in scenario.ways.items()}}
    of = {"scenario": described, "machine": machine(device), "code": code(), "rehearsal": quick}
    start = perf_counter()
    try:
        row = measure(scenario, device, deadline)
    except ImportError as error:  # this generation does not have the network
        print(f"{scenario.name}: not measured: {error}", flush=True)
        return
    results.add(scenario.name, of, row)
    print(f"{scenario.name}: {perf_counter() - start:.0f} s", flush=True)


def _plain(chosen: dict[str, Any]) -> dict[str, str]:
    return {name: str(value) for name, value in chosen.items()}


# -- correctness --------------------------------------------------------------------------------------------------


def prove(out: Path, device: torch.device, path: str | None) -> None:
    """Run tests/test_cuda.py, and write what passed and what failed."""
    out = out.resolve()
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "no:benchmark"]
        command += ["-W", "default", "-n", "8", "tests/test_cuda.py", f"--junitxml={report}"]
        environment = {**_environment(path), "SEENN_TEST_DEVICE": str(device)}
        done = subprocess.run(
            command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True
        )
        print(done.stdout[-3000:], done.stderr[-1000:], flush=True)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    found: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}
    for case in cases:
        bad = case.find("failure") is not None or case.find("error") is not None
        result = "failed" if bad else "passed" if case.find("skipped") is None else "skipped"
        found[result].append(case.get("name", ""))
    of = {"machine": {**machine(device), "spikingjelly": _version(path)}, "code": code()}
    Results(out / f"gpu-tests-{_version(path)}.json").add("tests", of, found)


def _proofs(results: Results) -> str:
    """What the tests said, in Markdown."""
    row = results.rows["tests"]
    counts = ", ".join(f"{len(row[result])} {result}" for result in ("passed", "failed", "skipped"))
    lines = [f"SpikingJelly {row['of']['machine']['spikingjelly']}: {counts}.", ""]
    return "\n".join(lines + [f"- failed: {name}" for name in row["failed"]] + [""] * bool(row["failed"]))


# -- the table ----------------------------------------------------------------------------------------------------


def table(folder: Path) -> str:
    """What was measured on a GPU, and what was not, in Markdown. Rehearsals are left out."""
    files = sorted(folder.glob("gpu-spikingjelly-*.json"))
    tests = [Results(file) for file in sorted(folder.glob("gpu-tests-*.json"))]
    proofs = [_proofs(results) for results in tests]
    rows = {
        f"{name} ({file.stem})": row
        for file in files
        for name, row in Results(file).rows.items()
        if not row["of"]["rehearsal"]
    }
    parts = ["## Correctness\n", *(proofs or ["Not tested on a GPU.\n"]), "## Speed\n"]
    for scenario in scenarios():
        found = [row for name, row in rows.items() if name.startswith(f"{scenario.name} (")]
        parts += [_table_of(row) for row in found] or [f"### {scenario.name}\n\nNot measured.\n"]
    tested = {f"tests, SpikingJelly {r.rows['tests']['of']['machine']['spikingjelly']}": r.rows["tests"] for r in tests}
    return "\n".join([*parts, measured_on({**tested, **rows})])


def _table_of(row: dict[str, Any]) -> str:
    names = {"full": f"stock, all timesteps ({row['backend']})", "once": "stock, T = 1"}
    lines = []
    for name, way in row["ways"].items():
        if "failed" in way:
            lines.append([name, way["failed"], *[""] * 7])
            continue
        latency, ideal, against = way["latency_milliseconds"], way["of_ideal"], way.get("against_cpu")
        steps, first = way.get("row_steps_of_sum"), way.get("first_use_seconds")
        lines.append(
            [
                names.get(name, f"wrapper, {name}"),
                f"{way['milliseconds']:.4f} ms",
                f"{latency['p50']:.2f} / {latency['p99']:.2f} ms",
                f"{way['over_full']['median']:.2f}",
                "" if name in names else f"**{ideal['median']:.2f}** ({ideal['lowest']:.2f} to {ideal['highest']:.2f})",
                "" if steps is None else f"{steps:.3f}",
                ""
                if against is None
                else f"{against['answers']:.1%} / {against['exits']:.1%}, {against['largest_difference']:.1e}",
                f"{way['peak_mib']:.0f} MiB" if "peak_mib" in way else "",
                "" if first is None else f"{first:.1f} s",
            ]
        )
    header = [
        "way",
        "per sample",
        "latency p50 / p99",
        "speed-up over full",
        "of the ideal",
        "row-steps / sum of t",
        "as on the CPU: answers / exits, largest difference",
        "peak memory",
        "first use",
    ]
    warned = sorted({text for way in row["ways"].values() for text in way.get("warnings", ())})
    place = row["of"]["machine"]
    rounding = "float32, convolutions in TF32" if place.get("tf32") else "float32"
    return (
        f"### {row['title']} (SpikingJelly {place['spikingjelly']}, {rounding})\n\nIdeal {row['ideal']:.2f}.\n\n"
        + markdown(header, lines)
        + "".join(f"\nWarned: {text}\n" for text in warned)
    )


# -- the command --------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true", help="a rehearsal on a tiny network")
    parser.add_argument("--spikingjelly", type=Path, help="a folder with another generation, measured after the first")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no further scenario is begun")
    parser.add_argument("--tf32", action="store_true", help="let convolutions round to TF32, stock runs' too")
    parser.add_argument("--match", default="", help="scenarios with this in their names only")
    parser.add_argument("--no-tests", action="store_true", help="leave out the tests of correctness")
    parser.add_argument("--only", help=argparse.SUPPRESS)  # the scenario that this process measures
    parser.add_argument("--table", action="store_true", help="write the table anew, and measure nothing")
    asked = parser.parse_args(arguments)
    device = torch.device(asked.device)
    if asked.only:
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = asked.tf32
        chosen = next(one for one in _chosen(asked) if one.name == asked.only)
        deadline = monotonic() + 60 * asked.minutes
        measure_one(
            chosen,
            Results(asked.out / f"gpu-spikingjelly-{_version()}{_suffix(asked)}.json"),
            device,
            asked.quick,
            deadline,
        )
        return 0
    if not asked.table:
        if device.type == "cuda" and not torch.cuda.is_available():
            print(_NO_CUDA, file=sys.stderr)
            return 2
        if device.type != "cuda" and not asked.quick:
            print(f"On {device.type} there is only the rehearsal: --quick.", file=sys.stderr)
            return 2
        asked.out.mkdir(parents=True, exist_ok=True)
        deadline = monotonic() + 60 * asked.minutes
        generations = [None, str(asked.spikingjelly.resolve())] if asked.spikingjelly else [None]
        if device.type == "cuda" and not asked.no_tests:
            with ThreadPoolExecutor() as pool:
                list(pool.map(lambda path: prove(asked.out, device, path), generations))
        for path in generations:
            _measure_each(asked, path, deadline)
    (asked.out / "gpu.md").write_text(table(asked.out))
    return 0


def _measure_each(asked: argparse.Namespace, path: str | None, deadline: float) -> None:
    """Every scenario in a process of its own."""
    for scenario in _chosen(asked):
        if path and NETWORKS[scenario.network].framework != "spikingjelly":
            continue
        left = min(_SECONDS, deadline - monotonic())
        if left < 10:
            print(f"{scenario.name}: not measured: out of time", flush=True)
            continue
        command = [sys.executable, __file__, "--out", str(asked.out), "--device", asked.device]
        command += ["--only", scenario.name, "--minutes", str(0.7 * left / 60)]
        command += ["--quick"] * asked.quick + ["--tf32"] * asked.tf32
        try:
            code = subprocess.run(command, env=_environment(path), timeout=left).returncode
        except subprocess.TimeoutExpired:
            code = f"more than {left:.0f} s"
        if code:
            print(f"{scenario.name}: not measured: ended with {code}", flush=True)


def _chosen(asked: argparse.Namespace) -> list[Scenario]:
    return [one for one in (rehearsals() if asked.quick else scenarios()) if asked.match in one.name]


def _environment(path: str | None) -> dict[str, str]:
    """For another process, with the SpikingJelly in this folder: one process imports one generation."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, [path, os.environ.get("PYTHONPATH")]))}


def _version(path: str | None = None) -> str:
    """Of the SpikingJelly in a folder; of the one that can be imported for ``None``."""
    return next(iter(distributions(name="spikingjelly", path=[path] if path else sys.path))).version


def _suffix(asked: argparse.Namespace) -> str:
    return "-tf32" * asked.tf32 + "-rehearsal" * asked.quick


if __name__ == "__main__":
    sys.exit(main())
