"""The quick demo, end to end. Times are reported, never judged."""

import io
import json
import sys
from contextlib import redirect_stdout
from itertools import pairwise

import pytest
import torch

from seenn_plugin.cli import commands as cli
from seenn_plugin.demo import data, run
from seenn_plugin.evaluation import timing

SEED = 3


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("demo") / "made" / "here"
    printed = io.StringIO()
    random_state, threads = torch.get_rng_state(), torch.get_num_threads()
    with redirect_stdout(printed):
        code = cli.main(["demo", "--quick", "--seed", str(SEED), "--out", str(folder)])
    assert code == 0
    assert torch.equal(torch.get_rng_state(), random_state)
    assert torch.get_num_threads() == threads
    return folder, printed.getvalue(), json.loads((folder / "report.json").read_text())


def test_the_table_has_three_rows_per_network_in_100_columns(demo):
    folder, printed, _ = demo
    lines = printed.splitlines()
    for way in ("full T", "early exit", "static T = "):
        assert sum(line.startswith(f"  {way}") for line in lines) == 2
    assert str(folder.resolve()) in lines[-1]
    assert max(map(len, lines[:-1])) <= 100


def test_the_report_says_what_was_measured(demo):
    report = demo[2]
    assert (report["seed"], report["quick"]) == (SEED, True)
    assert sum(report["split"].values()) == 1797
    assert report["machine"]["threads"] >= 1
    assert {"python", "torch", "spikingjelly", "snntorch"} <= set(report["versions"])
    assert len(report["networks"]) == 2
    for network in report["networks"]:
        full, early, static = network["rows"]
        assert full["mean_timesteps"] == 8
        assert static["mean_timesteps"] == max(1, round(early["mean_timesteps"]))
        assert sum(network["histogram"]) == report["split"]["test"]
        mean = sum(t * count for t, count in enumerate(network["histogram"], start=1)) / sum(network["histogram"])
        assert early["mean_timesteps"] == pytest.approx(mean)
        assert early["ideal_speedup"] == pytest.approx(8 / mean)
        assert network["calibration"]["policy"] == "confidence"
        assert network["calibration"]["accuracy"] >= network["calibration"]["full_accuracy"] - 0.005 - 1e-9
        assert network["calibration"]["samples"] == report["split"]["validation"]
        assert len(network["curve"]["static"]) == 8
        # The framework's own run and the wrapper's trace are the same network.
        assert network["curve"]["static"][-1] == pytest.approx(full["accuracy"], abs=0.005)
        for row in network["rows"]:
            assert 0 <= row["accuracy"] <= 1
            assert set(row["batch"]) == {"1", "64"}
            for batch in row["batch"].values():
                assert batch["median_seconds_per_sample"] > 0
                assert batch["speedup"] > 0
                low, middle, high = batch["quartiles_seconds_per_sample"]
                assert low <= middle <= high
            assert all(full["batch"][size]["speedup"] == 1 for size in full["batch"])


def test_the_figure_shows_something(demo):
    from matplotlib.image import imread

    pixels = imread(demo[0] / "figure.png")
    assert pixels.shape[0] > 400
    assert pixels.shape[1] > 1000
    assert pixels.std() > 0.05


def test_the_same_seed_gives_the_same_accuracies(demo, tmp_path):
    said = []
    again = run(tmp_path, seed=SEED, quick=True, say=said.append)
    for before, now in zip(demo[2]["networks"], again["networks"], strict=True):
        for key in ("histogram", "curve", "calibration"):
            assert now[key] == before[key]
        assert [row["accuracy"] for row in now["rows"]] == [row["accuracy"] for row in before["rows"]]
    assert len(said) == 2


def test_splits_are_disjoint_stratified_and_drawn_by_the_seed():
    first, same, other = data.load(0), data.load(0), data.load(1)
    assert torch.equal(first.test.images, same.test.images)
    assert not torch.equal(first.test.labels, other.test.labels)
    for split in (first.train, first.validation, first.test):
        share = torch.bincount(split.labels, minlength=10) / len(split)
        assert share.min() > 0.09
        assert split.images.shape[1:] == (1, 8, 8)
        assert 0 <= split.images.min() < split.images.max() <= 1


def test_timing_calls_every_way_on_every_batch_in_turns():
    calls = []
    ways = {name: lambda x, name=name: calls.append((name, len(x))) for name in "abc"}
    rounds = [[torch.zeros(2, 1), torch.zeros(1, 1)], [torch.zeros(4, 1)]]
    found = timing.interleaved(ways, rounds)
    timed = calls[3:]  # after one call each to warm up
    assert [size for _, size in timed] == [2] * 3 + [1] * 3 + [4] * 3
    starts = [timed[i][0] for i in (0, 3, 6)]
    assert all(a != b for a, b in pairwise(starts))
    assert all(len(found[name].rounds) == 2 for name in "abc")
    assert found["a"].speedup == 1


@pytest.mark.parametrize(
    ("module", "extra"),
    [("matplotlib", "plot"), ("snntorch", "snntorch"), ("spikingjelly.activation_based", "spikingjelly")],
)
def test_a_missing_extra_is_named_before_any_work(module, extra, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", "--quick", "--out", str(tmp_path / "out")]) == 2
    assert f'pip install "seenn-plugin[{extra}]"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_named_before_any_work(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert cli.main(["demo", "--quick", "--out", str(tmp_path / "file")]) == 1
    assert "cannot write" in capsys.readouterr().err
