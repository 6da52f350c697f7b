"""What the benchmarks share: interleaved timing, memory, the machine, the code, and results kept row by row."""

from __future__ import annotations

import ctypes
import gc
import hashlib
import json
import subprocess
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from math import ceil
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import torch

from seenn_plugin._files import from_json, write_files
from seenn_plugin.errors import InputError
from seenn_plugin.evaluation import provenance

RESULTS = Path(__file__).parent / "results"
_ROOT = Path(__file__).parent.parent
# What a measurement is of. The scripts that choose and print rows are left out: a result knows what was asked.
_MEASURED_CODE = ("seenn_plugin", "adapters", "benchmarks/measuring.py", "benchmarks/networks.py", "benchmarks/ways.py")


@dataclass(frozen=True)
class Way:
    """One way to do a piece of work.

    Attributes:
        run: does it once; returns the latencies in seconds that a user sees, one or more, or ``None``.
        around: entered around a run, outside of what is timed.
        samples: how many samples a run answers.
    """

    run: Callable[[], Sequence[float] | None]
    around: Callable[[], AbstractContextManager[Any]] = nullcontext
    samples: int = 1


@dataclass
class Timing:
    """Wall clock of one way.

    Attributes:
        seconds: per sample, one value for each round.
        latencies: in seconds, of all rounds together.
        warm_up: seconds of the first run, which looks at the network, compiles, and allocates.
    """

    seconds: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)
    warm_up: float = 0.0

    def over(self, reference: Timing) -> list[float]:
        """How many times as fast as ``reference``, round by round."""
        return [theirs / own for theirs, own in zip(reference.seconds, self.seconds, strict=True)]


def run_once(way: Way, device: torch.device | None = None) -> tuple[float, Sequence[float]]:
    """Seconds of one run, and the latencies that it reports."""
    with way.around():
        synchronise(device)
        start = perf_counter()
        latencies = way.run()
        synchronise(device)
        return perf_counter() - start, latencies or ()


@torch.no_grad()
def interleaved(
    ways: Mapping[str, Way], rounds: int, warm_up: int = 1, device: torch.device | None = None
) -> dict[str, Timing]:
    """Time all ways in turns, so that a busy moment of the machine meets all alike.

    Args:
        warm_up: rounds before those that count.
        device: what has to be waited for before the clock is read.
    """
    timings = {name: Timing() for name in ways}
    names = list(ways)
    for measured in range(-warm_up, rounds):
        turn = measured % len(names)
        for name in names[turn:] + names[:turn]:  # none always runs first
            elapsed, latencies = run_once(ways[name], device)
            timing = timings[name]
            if measured < 0:
                timing.warm_up = timing.warm_up or elapsed
                continue
            timing.seconds.append(elapsed / ways[name].samples)
            timing.latencies += latencies
    return timings


def synchronise(device: torch.device | None) -> None:
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def spread(values: Sequence[float]) -> dict[str, float]:
    return {"median": median(values), "lowest": min(values), "highest": max(values)}


# -- memory -------------------------------------------------------------------------------------------------------


def peak_growth(run: Callable[[], Any]) -> float:
    """Growth of the peak resident memory by ``run``, in MiB; to be asked in a process of its own (Linux)."""
    before = high_water_mark(reset=True)
    run()
    return high_water_mark() - before


def high_water_mark(reset: bool = False) -> float:
    """Peak resident memory of this process in MiB; with ``reset``, from now on."""
    if reset:
        Path("/proc/self/clear_refs").write_text("5")
    line = next(line for line in _lines("/proc/self/status") if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def give_back_free_memory() -> None:
    """Hand freed memory back to the system (glibc), so that it does not hide what a later run takes."""
    gc.collect()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


# -- where, and with what -----------------------------------------------------------------------------------------


def machine(device: torch.device | None = None) -> dict[str, Any]:
    """Processor, threads and versions; with a CUDA device all of it that speed depends on."""
    found = {**provenance.machine(device), **provenance.versions()}
    return found | (_gpu(device) if device is not None and device.type == "cuda" else {})


def _gpu(device: torch.device) -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(device)
    try:
        command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
        driver = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        driver = "unknown"
    return {
        "gpu_memory_gib": round(properties.total_memory / 2**30, 1),
        "driver": driver,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "tf32": torch.backends.cudnn.allow_tf32,
    }


def code() -> str:
    """Names the code that is measured: equal for equal files."""
    digest = hashlib.sha256()
    for place in _MEASURED_CODE:
        path = _ROOT / place
        for file in [path] if path.is_file() else sorted(path.rglob("*.py")):
            digest.update(str(file.relative_to(_ROOT)).encode() + file.read_bytes())
    return digest.hexdigest()[:12]


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


# -- results ------------------------------------------------------------------------------------------------------


class Results:
    """Measured rows in a JSON file, written after each of them, so that an interrupted run can go on."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.rows: dict[str, dict[str, Any]] = from_json(path)["rows"] if path.exists() else {}
        except (OSError, ValueError, KeyError) as error:
            raise InputError(f"{path} holds no measured rows: {error}. Delete it to measure anew.") from error

    def has(self, name: str, of: Mapping[str, Any]) -> bool:
        """Whether the row was measured, and all that it was measured ``of`` is as it is now."""
        # What was written is compared, not what was meant: JSON has no tuples.
        return name in self.rows and self.rows[name]["of"] == json.loads(json.dumps(of))

    def add(self, name: str, of: Mapping[str, Any], row: Mapping[str, Any]) -> None:
        self.rows[name] = {"of": dict(of), "commit": provenance.commit() or "unknown", **row}
        write_files({self.path: json.dumps({"rows": self.rows}, indent=1) + "\n"})


def markdown(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(map(str, cells)) + " |" for cells in lines) + "\n"


def measured_on(rows: Mapping[str, Mapping[str, Any]]) -> str:
    """The end of a page: on which machine the rows were measured, with which code; by row if there are several."""
    places: dict[str, list[str]] = {}
    for name, row in rows.items():
        facts = {"commit": row["commit"], "code": row["of"]["code"], **row["of"]["machine"]}
        place = ", ".join(f"{fact} {value}" for fact, value in facts.items())
        places.setdefault(place, []).append(name)
    lines = [f"- {place}" + (f": {'; '.join(names)}" if len(places) > 1 else "") for place, names in places.items()]
    return "## Measured on\n\n" + ("\n".join(lines) or "Nothing was measured.") + "\n"
