"""The benchmark scripts run, and say no more than they measured. Times are never judged."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seenn_plugin.inputs import InputBatch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
_OWN = ("measuring", "networks", "ways", "loop_inside", "throughput", "gpu", "gpu_agreement")


@pytest.fixture(scope="module")
def scripts():
    """The modules of the benchmarks, whose names are theirs only while this file runs."""
    sys.path.insert(0, str(BENCHMARKS))
    try:
        yield {name: importlib.import_module(name) for name in _OWN}
    finally:
        sys.path.remove(str(BENCHMARKS))
        for name in _OWN:
            sys.modules.pop(name, None)


def run(script, *arguments):
    command = [sys.executable, str(BENCHMARKS / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    out = tmp_path_factory.mktemp("throughput")
    asked = ("--rows", "tiny, infer, batch 1,*", "tiny, stream*", "--rounds", 1, "--threads", 1, "--out", out)
    done = run("throughput.py", *asked)
    assert done.returncode == 0, done.stderr
    return asked, json.loads((out / "throughput.json").read_text())["rows"], (out / "throughput.md").read_text()


def test_every_way_of_a_tiny_row_is_measured(tiny):
    _, rows, _ = tiny
    assert [list(row["ways"]) for row in rows.values()] == [
        ["full", "once", "stepped", "peer", "loop", "defaults"],
        ["full", "once", "defaults"],
    ]
    for row in rows.values():
        assert row["histogram"] == [8, 1, 1, 0]
        assert row["ideal"] == pytest.approx(4 / 1.3)
        for way in row["ways"].values():
            assert "failed" not in way
            assert way["milliseconds"] > 0
            assert 0 < way["latency_milliseconds"]["p50"] <= way["latency_milliseconds"]["p99"]
        wrapper = row["ways"]["defaults"]
        assert wrapper["row_steps_of_sum"] == 1
        assert wrapper["agreement"]["answers"] == wrapper["agreement"]["exits"] == 1
        assert wrapper["of_ideal"]["median"] == pytest.approx(wrapper["over_full"]["median"] / row["ideal"])


def test_the_table_shows_what_was_measured_and_names_what_was_not(tiny, scripts):
    _, rows, table = tiny
    assert all(row["title"] in table for row in rows.values())
    assert table.count("Not measured.") == len(scripts["throughput"].scenarios())


def test_a_measured_row_is_not_measured_again_unless_asked(tiny):
    asked, _, _ = tiny
    assert run("throughput.py", *asked).stdout.count("measured before") == 2


def test_a_way_that_fails_says_so_and_spoils_no_other(scripts, monkeypatch):
    throughput = scripts["throughput"]
    monkeypatch.setattr(throughput, "options", lambda name, _: {} if name == "defaults" else {"no_such_option": True})
    scenario = throughput.Scenario("tiny", "infer", 4, "mean 1.3 of 4", 10, 1, ("full", "defaults", "exact"))
    ways = throughput.measure(scenario, throughput.Bench())["ways"]
    assert "no_such_option" in ways["exact"]["failed"]
    assert ways["defaults"]["milliseconds"] > 0


def test_rows_that_leave_at_another_timestep_than_drawn_are_not_timed(scripts, monkeypatch):
    throughput, ways = scripts["throughput"], scripts["ways"]
    monkeypatch.setattr(ways.DrawnExits, "start", lambda self, inputs, *_: torch.full((len(inputs),), 4))
    scenario = throughput.Scenario("tiny", "infer", 4, "mean 1.3 of 4", 10, 1, ("full", "defaults"))
    row = throughput.measure(scenario, throughput.Bench())["ways"]["defaults"]
    assert "another timestep" in row["failed"]
    assert "milliseconds" not in row


def test_drawn_exits_are_written_in_the_rows(scripts):
    ways = scripts["ways"]
    for name, histogram in scripts["throughput"].HISTOGRAMS.items():
        mean, _, timesteps = name.split(", ")[0].removeprefix("mean ").partition(" of ")
        exits = ways.draw(histogram, sum(histogram) * 4)
        assert float(exits.double().mean()) == pytest.approx(float(mean))
        assert len(histogram) == int(timesteps)
        rows = ways.marked(torch.randn(len(exits), 3, 4, 4), exits)
        assert torch.equal(ways.DrawnExits().start(InputBatch(rows), len(histogram), 10), exits)
        assert torch.equal(ways.DrawnExits().start(InputBatch(rows[None], True), len(histogram), 10), exits)


def test_the_loop_inside_is_measured(scripts):
    row = scripts["loop_inside"].measure(timesteps=4, batch=1, pairs=2)
    assert set(row["milliseconds"]) == {"stepped", "own"}


def test_percentiles_are_measured_values(scripts):
    percentile = scripts["measuring"].percentile
    values = [float(v) for v in range(100, 0, -1)]
    assert [percentile(values, p) for p in (1, 50, 99, 100)] == [1, 50, 99, 100]
    assert percentile([3.0], 99) == 3


def test_the_gpu_script_rehearses_and_never_calls_that_a_measurement(tmp_path, scripts):
    done = run("gpu.py", "--out", tmp_path, "--device", "cpu", "--quick")
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("*.json")
    rows = json.loads(file.read_text())["rows"]
    assert len(rows) == len(scripts["gpu"].rehearsals())
    for row in rows.values():
        assert row["of"]["rehearsal"] is True
        assert row["ways"]["full"]["against_cpu"]["answers"] == 1
        assert row["ways"]["defaults"]["milliseconds"] > 0
    table = (tmp_path / "gpu.md").read_text()
    assert table.count("Not measured.") == len(scripts["gpu"].scenarios())
    assert "Nothing was measured." in table
    assert "tiny" not in table


@pytest.mark.parametrize("arguments", [[], ["--device", "cpu"]])
def test_without_a_gpu_nothing_is_measured_and_nothing_written(arguments, tmp_path, scripts, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert scripts["gpu"].main([*arguments, "--out", str(tmp_path / "out")]) == 2
    assert "--quick" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_committed_tables_are_the_generated_ones(scripts):
    results = scripts["measuring"].RESULTS
    rows = scripts["measuring"].Results(results / "throughput.json").rows
    assert (results / "throughput.md").read_text() == scripts["throughput"].table(rows)
    assert (results / "gpu.md").read_text() == scripts["gpu"].table(results)
    agreement = scripts["measuring"].Results(results / "gpu-agreement.json")
    assert (results / "gpu-agreement.md").read_text() == scripts["gpu_agreement"].table(agreement)
