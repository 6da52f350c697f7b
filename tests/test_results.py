"""Studies of trained networks, and the page made of them: on a tiny network and data that are written here."""

from __future__ import annotations

import copy
import json
import re
import statistics
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset, TensorDataset

from seenn_plugin import EarlyExitWrapper, evaluate, measure_energy
from seenn_plugin.checkpoints.pretrained import Card, Pretrained
from seenn_plugin.errors import InputError
from seenn_plugin.policies import ALIASES
from seenn_plugin.study import policy_selection as choices
from seenn_plugin.study import run_study as studying
from seenn_plugin.study import study, write_results
from seenn_plugin.study.baseline import OWN, WRAPPED, Baseline
from seenn_plugin.study.budget import QUICK
from seenn_plugin.study.measurement import Meter
from seenn_plugin.study.run_file import read
from seenn_plugin.study.statistics import mean_and_deviation, wilson

pytest.importorskip("safetensors")
pytest.importorskip("spikingjelly")
snntorch = pytest.importorskip("snntorch")
from spikingjelly.activation_based import functional, layer, neuron  # noqa: E402

from .rl_tasks import readable, reader  # noqa: E402

T = 4
SIZES = {"train": 160, "validation": 140, "test": 150}
EFFORT = replace(QUICK, infer_samples=1000, energy_samples=20, policy_epochs=2)
PERMUTED, LEARNT = "permuted", "learnt"
ROWS = [(policy, target) for target in choices.TARGETS for policy in choices.POLICIES]
loads: list[str] = []


# -- what a card names: called by name, with a folder in which a file says what is different ---------------------------


def tiny_net() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        net = nn.Sequential(layer.Linear(8, 24), neuron.LIFNode(), layer.Linear(24, 4))
    with torch.no_grad():
        net[0].weight.mul_(3)
    functional.set_step_mode(net, "m")
    return net.eval()


def tiny_data(root: Path, split: str) -> Dataset:
    """Rows with the answer of the network itself after T timesteps, mostly."""
    loads.append(split)
    generator = torch.Generator().manual_seed(list(SIZES).index(split))
    x = torch.randn(SIZES[split], 8, generator=generator)
    trace = tiny_snn().trace(x).detach()
    labels = trace[0 if split == "train" and (root / LEARNT).exists() else -1].argmax(1)
    if split != "train":
        drawn = torch.rand(len(x), generator=generator) < 0.1
        labels = torch.where(drawn, torch.randint(4, labels.shape, generator=generator), labels)
    if split == "test" and (root / PERMUTED).exists():
        labels = labels[torch.randperm(len(labels), generator=generator)]
    return TensorDataset(x, labels)


def readable_data(root: Path, split: str) -> Dataset:
    data = readable(SIZES[split], list(SIZES).index(split))
    return TensorDataset(data.frames.transpose(0, 1), data.labels)


CARD = Card(
    title="Tiny network",
    network="tests.test_results:tiny_net",
    arguments={},
    wrapper={"timesteps": T},
    loader="tests.test_results:tiny_data",
    loader_arguments={},
    data="CIFAR-10, drawn by a test",
    recipe=[{"name": "first", "epochs": 2}, {"name": "second", "epochs": 3}],
    seed=5,
    accuracy={"test": [0.1] * T},
    samples={"test": SIZES["test"]},
)


@pytest.fixture(autouse=True)
def _quick(monkeypatch):
    monkeypatch.setattr(studying, "QUICK", EFFORT)


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> Path:
    """Folders of trained networks, and of data."""
    folder = tmp_path_factory.mktemp("results")
    Pretrained(tiny_net(), CARD).save(folder / "net")
    sequence = {"input": "sequence", "time_dim": 1, "readout": "last"}
    card = replace(CARD, network="tests.rl_tasks:reader", loader="tests.test_results:readable_data", wrapper=sequence)
    Pretrained(reader(), card).save(folder / "reader")
    for flag in (PERMUTED, LEARNT, "data"):
        (folder / flag).mkdir()
        (folder / flag / flag).touch()
    return folder


@pytest.fixture(scope="module")
def run(places) -> dict:
    """The content of a run file, as it lies on disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(studying, "QUICK", EFFORT)
        study(places / "net", places / "data", places / "run.json", quick=True, trust_code=True, progress=False)
    return read(places / "run.json")


def rows(content: dict, target: str | None = None) -> list[dict]:
    """Those that have numbers."""
    return [row for row in content["rows"] if "test" in row and target in (None, row["target"])]


def at(content: dict, policy: str, target: str) -> dict:
    return next(row for row in content["rows"] if (row["policy"], row["target"]) == (policy, target))


@cache
def tiny_snn() -> EarlyExitWrapper:
    return EarlyExitWrapper(tiny_net(), timesteps=T)


def wrapped(row: dict) -> EarlyExitWrapper:
    snn = tiny_snn()
    snn.policy = ALIASES[row["policy"]](**row["settings"])
    return snn


def batches(places: Path, split: str) -> list[tuple[Tensor, Tensor]]:
    data = tiny_data(places / "data", split)
    return [data[: len(data)]]


# -- the numbers -------------------------------------------------------------------------------------------------------


def test_all_is_there(run):
    assert [(row["policy"], row["target"]) for row in run["rows"]] == ROWS
    assert len(rows(run)) >= 9  # so short a fit may miss a target
    means = {row["test"]["mean_timesteps"] for row in rows(run)}
    assert min(means) > 1 or max(means) > min(means)  # or the network would be no test
    assert run["samples"] == {"validation": SIZES["validation"], "test": SIZES["test"]}


def test_numbers_are_those_of_evaluate(run, places):
    static = None
    for row in rows(run):
        assert row["infer"]["samples"] == row["test"]["samples"] == SIZES["test"]
        assert row["infer"]["agreement"] == 1
        for fact in ("accuracy", "mean_timesteps", "histogram"):
            assert row["test"][fact] == pytest.approx(row["infer"][fact]), row["policy"]
        if row["policy"] == "rl":
            continue
        found = evaluate(wrapped(row), batches(places, "test"))
        for fact in ("accuracy", "mean_timesteps", "histogram"):
            assert row["test"][fact] == pytest.approx(getattr(found, fact))
        nearest = max(1, round(found.mean_timesteps))
        assert row["test"]["static_timesteps"] == nearest
        assert row["test"]["static_accuracy"] == pytest.approx(found.accuracy_per_timestep[nearest - 1])
        static = found
    assert static is not None
    assert run["static"]["test"] == pytest.approx(static.accuracy_per_timestep)
    assert run["static"]["average_exit_time"] == pytest.approx(static.average_exit_time)
    assert run["static"]["empirical_average_exit_time"] == pytest.approx(static.empirical_average_exit_time)


def test_energy_is_that_of_measure_energy(run, places):
    data = tiny_data(places / "data", "test")
    drawn = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))[: EFFORT.energy_samples].sort().values
    x, labels = data[drawn]
    for row in rows(run):
        if row["policy"] != "rl":
            found = measure_energy(wrapped(row), [(x, labels)]).to_dict()
            assert row["energy"]["mean"] == pytest.approx(found["mean"])
            assert row["energy"]["saving"] == pytest.approx(found["saving"])
            assert run["static"]["energy"]["static_picojoules"] == pytest.approx(found["static_picojoules"])
        else:
            assert row["energy"]["mean"]["policy_picojoules"] > 0
            assert row["energy"]["samples"] == EFFORT.energy_samples


def test_wall_clock(run):
    for row in rows(run):
        clock = row["wall_clock"]
        assert clock["full_run"] == OWN
        for size in ("1", "64"):
            assert {"full", "early_exit"} <= set(clock[size])
            assert ("static" in clock[size]) == (row["test"]["static_timesteps"] < T)
            assert all(timing["median_seconds_per_sample"] > 0 for timing in clock[size].values())
            assert clock[size]["full"]["speedup"] == 1


# -- the choices -------------------------------------------------------------------------------------------------------


def test_targets_are_met_on_validation_data(run, places):
    for row in rows(run):
        if row["policy"] != "rl":
            found = evaluate(wrapped(row), batches(places, "validation"))
            assert row["validation"]["accuracy"] == pytest.approx(found.accuracy)
            assert row["validation"]["mean_timesteps"] == pytest.approx(found.mean_timesteps)
            assert row["validation"]["full_accuracy"] == pytest.approx(found.full_accuracy)
    for row in rows(run, "accuracy"):
        assert row["validation"]["accuracy"] >= row["validation"]["full_accuracy"] - 0.001 - 1e-9
    most = at(run, "confidence", "accuracy")["validation"]["mean_timesteps"]
    for row in rows(run, "timesteps"):
        assert row["validation"]["mean_timesteps"] <= most + 1e-9


def test_choices_depend_on_validation_data_alone(run, places):
    other = study(
        places / "net", places / PERMUTED, places / "permuted.json", quick=True, trust_code=True, progress=False
    )
    assert other["static"]["test"] != run["static"]["test"]
    assert other["static"]["validation"] == run["static"]["validation"]
    for ours, theirs in zip(run["rows"], other["rows"], strict=True):
        for fact in ("asked", "settings", "validation", "notes"):
            assert ours.get(fact) == theirs.get(fact)
        if "test" in ours:
            assert ours["test"]["histogram"] == theirs["test"]["histogram"]


def test_the_test_data_is_read_when_all_is_chosen(places, monkeypatch):
    loads.clear()
    monkeypatch.setattr(Meter, "static", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        study(places / "net", places / "data", places / "unread.json", quick=True, trust_code=True, progress=False)
    assert set(loads) == {"train", "validation"}


def test_what_is_learnt_by_heart_is_fitted_on_validation_data(run, places):
    known = {
        (row["validation"]["fitted_on"], row["validation"]["samples"]) for row in rows(run) if row["policy"] == "rl"
    }
    assert known == {("training data", SIZES["validation"])}
    other = study(places / "net", places / LEARNT, places / "learnt.json", quick=True, trust_code=True, progress=False)
    for row in rows(other):
        if row["policy"] == "rl":
            assert row["validation"]["fitted_on"] == "half of the validation data"
            assert row["validation"]["samples"] == row["validation"]["fitting_samples"] == SIZES["validation"] // 2


def test_a_target_that_is_not_met_is_no_error(places, tmp_path, monkeypatch):
    monkeypatch.setattr(choices, "POLICIES", ("confidence", "patience"))
    monkeypatch.setattr(studying, "POLICIES", ("confidence", "patience"))
    monkeypatch.setattr(choices.Chooser, "choose", unmet(choices.Chooser.choose))
    content = study(places / "net", places / "data", tmp_path / "run.json", quick=True, trust_code=True, progress=False)
    assert [bool(row["notes"]) for row in content["rows"]] == [False, True, False, True]
    write_results([tmp_path / "run.json"], tmp_path / "page.md")
    page = (tmp_path / "page.md").read_text()
    assert page.count("target not met") == 2
    assert "no setting of PatiencePolicy meets the target" in page


def unmet(choose):
    """Patience is asked for one timestep, and always takes two or more."""

    def choose_or_fail(self, name, target):
        if name != "patience":
            return choose(self, name, target)
        before, self.mean_timesteps = self.mean_timesteps, 1.0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(ALIASES["patience"], "candidate_settings", lambda policy, timesteps: [type(policy)(2)])
            choice = choose(self, name, "timesteps")
        self.mean_timesteps = before
        return replace(choice, target=target)

    return choose_or_fail


def test_sequences(places, tmp_path):
    content = study(
        places / "reader", places / "data", tmp_path / "run.json", quick=True, trust_code=True, progress=False
    )
    assert content["static"]["test"][-1] == 1
    assert all(row["infer"]["agreement"] == 1 for row in rows(content))
    assert all(row["wall_clock"]["full_run"] == OWN for row in rows(content))
    assert "64" in rows(content)[0]["wall_clock"]


# -- interrupted -------------------------------------------------------------------------------------------------------


def test_an_interrupted_study_goes_on(run, places, tmp_path, monkeypatch):
    measure, calls = Meter.measure, []

    def interrupted(self, policy):
        if len(calls) == 3:
            raise KeyboardInterrupt
        calls.append(policy)
        return measure(self, policy)

    out = tmp_path / "deep" / "run.json"
    with monkeypatch.context() as patch:
        patch.setattr(Meter, "measure", interrupted)
        with pytest.raises(KeyboardInterrupt):
            study(places / "net", places / "data", out, quick=True, trust_code=True, progress=False)
    first = read(out)["rows"]
    assert len(first) == 3
    write_results([out], tmp_path / "page.md")  # what there is of it
    assert "not measured" in (tmp_path / "page.md").read_text()

    monkeypatch.setattr(Meter, "measure", lambda self, policy: calls.append(policy) or measure(self, policy))
    content = study(places / "net", places / "data", out, quick=True, trust_code=True, progress=False)
    assert content == read(out)
    assert content["rows"][:3] == first
    assert len(calls) == len(rows(run))
    for ours, theirs in zip(run["rows"], content["rows"], strict=True):
        for fact in ("policy", "target", "settings", "validation", "test"):
            assert ours.get(fact) == theirs.get(fact)
    assert [path.name for path in out.parent.iterdir()] == ["run.json"]

    loads.clear()
    assert study(places / "net", places / "data", out, quick=True, trust_code=True, progress=False) == content
    assert not loads


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "settings"), ({"picojoules_per_mac": 3.0}, "settings")])
def test_other_settings_are_another_study(run, places, change, named):
    with pytest.raises(InputError, match=rf"run\.json is the run file of another study: {named} differ"):
        study(
            places / "net", places / "data", places / "run.json", quick=True, trust_code=True, progress=False, **change
        )


def test_other_weights_are_another_study(run, places, tmp_path):
    net = tiny_net()
    with torch.no_grad():
        net[0].weight.mul_(2)
    Pretrained(net, CARD).save(tmp_path / "net")
    with pytest.raises(InputError, match="another study: weights differ"):
        study(tmp_path / "net", places / "data", places / "run.json", quick=True, trust_code=True, progress=False)


@pytest.mark.parametrize("damage", ["", "[]", '{"format": 1}', "half", "format", "row"])
def test_a_damaged_run_file_is_named(run, places, tmp_path, damage):
    content = copy.deepcopy(run)
    if damage == "format":
        content["format"] = 99
    elif damage == "row":
        del content["rows"][0]["policy"]
    text = json.dumps(content)
    text = text[: len(text) // 2] if damage == "half" else text if damage in ("format", "row") else damage
    path = tmp_path / "damaged.json"
    path.write_text(text)
    with pytest.raises(InputError, match=r"damaged\.json"):
        write_results([path], tmp_path / "page.md")
    with pytest.raises(InputError, match=r"damaged\.json"):
        study(places / "net", places / "data", path, quick=True, trust_code=True, progress=False)
    assert not (tmp_path / "page.md").exists()


def test_where_it_cannot_be_written(places, tmp_path, run):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        study(
            places / "net", places / "data", tmp_path / "file" / "run.json", quick=True, trust_code=True, progress=False
        )
    with pytest.raises(InputError, match="cannot write"):
        write_results([places / "run.json"], tmp_path / "file" / "page.md")


# -- the full run ------------------------------------------------------------------------------------------------------


class Loop(nn.Module):
    def __init__(self):
        super().__init__()
        self.num_steps = T
        self.fc, self.lif, self.head = nn.Linear(8, 6), snntorch.Leaky(beta=0.8), nn.Linear(6, 3)
        self.calls = 0

    def forward(self, x):
        mem, answers = self.lif.init_leaky(), []
        for _ in range(self.num_steps):
            spikes, mem = self.lif(self.fc(x), mem)
            answers.append(self.head(spikes))
        return torch.stack(answers)


def one_step() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 6), snntorch.Leaky(beta=0.8, init_hidden=True), nn.Linear(6, 3))


class Drawing(nn.Module):
    """Draws in every timestep: two runs cannot be compared."""

    def __init__(self):
        super().__init__()
        self.net = one_step()

    def forward(self, x):
        return self.net(x + torch.rand_like(x))


@pytest.mark.parametrize(
    ("make", "full", "static"),
    [(tiny_net, OWN, OWN), (one_step, OWN, OWN), (Loop, OWN, WRAPPED), (Drawing, WRAPPED, WRAPPED)],
)
def test_the_full_run_is_the_frameworks_own(make, full, static):
    net, x = make().eval(), torch.randn(5, 8)
    snn = EarlyExitWrapper(net, timesteps=T, readout="mean", check=make is not Drawing)
    runs = Baseline(snn, {"timesteps": T, "readout": "mean", "check": make is not Drawing}, x)
    lengths = []
    first = next(module for module in net.modules() if isinstance(module, nn.Linear))
    hook = first.register_forward_hook(
        lambda module, args, output: lengths.append(output.numel() // (5 * output.shape[-1]))
    )
    for timesteps, kind in ((T, full), (T - 1, static)):
        run, found = runs.run(timesteps)
        assert found == kind
        if kind == OWN:
            lengths.clear()
            answer = run(x)
            assert sum(lengths) == timesteps
            outputs = answer[0] if isinstance(answer, tuple) else answer
            assert isinstance(outputs, Tensor)
            torch.testing.assert_close(outputs.mean(0), snn.trace(x)[timesteps - 1])
    hook.remove()
    if make is not Drawing:
        before = snn.infer(x)
        runs.run(T)[0](x)
        assert torch.equal(snn.infer(x).logits, before.logits)  # it leaves nothing behind


# -- the page ----------------------------------------------------------------------------------------------------------


def written(folder: Path, contents: dict[str, dict]) -> str:
    for name, content in contents.items():
        (folder / f"{name}.json").write_text(json.dumps(content))
    files = [folder / f"{name}.json" for name in contents]
    write_results(files, folder / "page.md")
    page = (folder / "page.md").read_text()
    write_results(files[::-1], folder / "again" / "page.md")
    assert (folder / "again" / "page.md").read_text() == page
    return page


def changed(content: dict, seed: int = 5, quick: bool = False, **accuracies: float) -> dict:
    """Another run of the network: other weights, and other accuracies and mean timesteps of confidence."""
    content = copy.deepcopy(content)
    content["card"]["seed"], content["weights"] = seed, f"weights {seed} {accuracies}"
    content["settings"]["quick"] = quick
    test = at(content, "confidence", "accuracy")["test"]
    test["accuracy"] = accuracies.get("accuracy", test["accuracy"])
    test["mean_timesteps"] = accuracies.get("mean", test["mean_timesteps"])
    content["static"]["test"][-1] = accuracies.get("full", content["static"]["test"][-1])
    return content


def line(page: str, start: str) -> str:
    return next(line for line in page.splitlines() if line.startswith(start))


def test_one_run(run, tmp_path):
    page = written(tmp_path, {"run": run})
    row = at(run, "confidence", "accuracy")["test"]
    low, high = wilson(row["accuracy"], SIZES["test"])
    shown = f"| confidence | {100 * row['accuracy']:.2f} % ({100 * low:.1f} to {100 * high:.1f}) | "
    assert line(page, "| confidence").startswith(f"{shown}{row['mean_timesteps']:.3f} | ")
    assert "a quick run" in page
    assert "5 epochs" in page
    assert "±" not in page
    assert str(tmp_path) not in page
    assert run["static"]["provenance"]["versions"]["torch"] in page


def test_runs_of_one_network_are_put_together(run, tmp_path):
    shares, means = (0.81, 0.84, 0.9), (1.25, 1.5, 2.5)
    contents = {
        f"run{seed}": changed(run, seed, accuracy=share, mean=value)
        for seed, (share, value) in enumerate(zip(shares, means, strict=True))
    }
    page = written(tmp_path, contents)
    assert page.count("## Tiny network") == 1
    accuracy = f"{statistics.mean(shares) * 100:.2f} ± {statistics.stdev(shares) * 100:.2f} (n = 3) %"
    mean = f"{statistics.mean(means):.3f} ± {statistics.stdev(means):.3f} (n = 3)"
    assert line(page, "| confidence").startswith(f"| confidence | {accuracy} | {mean} | ")
    for seed, (share, value) in enumerate(zip(shares, means, strict=True)):
        assert f"{100 * share:.2f} % at {value:.3f}" in line(page, f"| seed {seed} |")
    other = changed(run, 9)
    other["card"]["data"] = "MNIST"
    assert written(tmp_path, {**contents, "other": other}).count("## Tiny network") == 2
    quick = changed(run, 9, quick=True)
    assert written(tmp_path, {**contents, "quick": quick}).count("## Tiny network") == 2


def test_the_same_run_twice_is_refused(run, tmp_path):
    with pytest.raises(InputError, match=r"a\.json and .*b\.json are runs of the same weights"):
        written(tmp_path, {"a": run, "b": run})


def test_what_was_wanted(run, tmp_path):
    def verdict(**numbers: float) -> str:
        content = changed(run, full=0.9, **numbers)
        content["rows"] = [at(content, "confidence", "accuracy")]
        return line(written(tmp_path, {"run": content}), "- Tiny network (CIFAR-10, drawn by a test): ")

    assert "): reached by confidence at matched accuracy (mean T 1.300, 0.20 point below" in verdict(
        accuracy=0.898, mean=1.3
    )
    assert "): not reached; the earliest within 0.2 point: confidence" in verdict(accuracy=0.898, mean=1.31)
    assert "): not reached; the most accurate: confidence" in verdict(accuracy=0.897, mean=1.2)
    assert "- not measured." in written(tmp_path, {"quick": changed(run, quick=True)}).split("## Wanted")[1]


def test_published_numbers_stand_beside_ours(run, tmp_path):
    page = written(tmp_path, {"run": changed(run, accuracy=0.8765, mean=1.234)}).split("## Beside")[1]
    seenn = line(page, "| SEENN-I, arXiv 2304.01230 | CIFAR-10 | ResNet-19 | 96.07 % | 1.09 | secondary |")
    assert "Tiny network, confidence: 87.65 % at 1.234 of 4" in seenn
    assert "data: CIFAR-10, drawn by a test, 5 epochs, T = 4 |" in seenn
    assert "| not measured |" in line(page, "| SEENN, arXiv 2304.01230 | CIFAR10-DVS")
    assert "| not measured |" in line(page, "| Dynamic Confidence")
    assert "verified" in line(page, "| SEENN-II, arXiv 2304.01230 | CIFAR-10 | ResNet-19 | 96.1 % | 1.08 |")


def test_a_target_that_was_not_met_is_not_called_unmeasured(run, tmp_path):
    contents = [changed(run), changed(run)]
    contents[1]["card"]["seed"] += 1
    contents[1]["weights"] = "others"
    for content in contents:
        at(content, "rl", "accuracy").pop("test", None)
    page = written(tmp_path, {f"run{seed}": content for seed, content in enumerate(contents)})
    runs, theirs = page.split("Each run")[1].split("## Beside")
    assert runs.count("| target not met |") == 2
    assert "not measured" not in runs
    assert "Tiny network, rl: target not met |" in line(theirs, "| SEENN-II, arXiv 2304.01230 | CIFAR-10")


def test_the_summary_shows_the_policy_that_validation_data_choose(run, tmp_path):
    contents = [changed(run, seed, accuracy=share, mean=1.5) for seed, share in enumerate((0.8, 0.9))]
    for content in contents:
        for policy in choices.POLICIES:
            row = at(content, policy, "accuracy")
            row["validation"] = row.get("validation", {}) | {"mean_timesteps": 3.0}
        at(content, "confidence", "accuracy")["validation"]["mean_timesteps"] = 2.0
        # Test data do not choose.
        at(content, "patience", "accuracy")["test"] |= {"mean_timesteps": 1.0, "accuracy": 1.0}
    page = written(tmp_path, {f"run{seed}": content for seed, content in enumerate(contents)})
    cells = line(page.split("## How it was measured")[0], "| Tiny network ").split(" | ")
    tests = [at(content, "confidence", "accuracy")["test"] for content in contents]
    static = [100 * test["static_accuracy"] for test in tests]
    full = [100 * content["static"]["test"][-1] for content in contents]
    assert cells[2:8] == [
        "2",
        str(T),
        f"{statistics.mean(full):.2f} ± 0.00 %",
        "confidence",
        "85.00 ± 7.07 %",
        "1.50 ± 0.00",
    ]
    assert cells[8].endswith(f": {statistics.mean(static):.2f} ± 0.00 %")
    speedups = [
        [at(content, "confidence", "accuracy")["wall_clock"][size]["early_exit"]["speedup"] for content in contents]
        for size in ("1", "64")
    ]
    assert [cell.split()[0] for cell in cells[9:11]] == [f"{statistics.mean(found):.2f}" for found in speedups]
    for content in contents:
        del at(content, "confidence", "accuracy")["test"]  # it missed the target, and may not be chosen
    page = written(tmp_path, {f"run{seed}": content for seed, content in enumerate(contents)})
    assert " | confidence | " not in line(page.split("## How it was measured")[0], "| Tiny network ")


def test_a_figure_stands_beside_the_page(run, tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = written(tmp_path, {"run": changed(run)})
    assert "](page.png)" in page
    picture = (tmp_path / "page.png").read_bytes()
    assert picture.startswith(b"\x89PNG")
    assert len(picture) > 5000
    assert (tmp_path / "again" / "page.png").read_bytes() == picture
    assert write_results([], tmp_path / "empty.md") is None
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_results([tmp_path / "run.json"], tmp_path / "without.md") is None
    assert "without.png" not in (tmp_path / "without.md").read_text()
    assert not (tmp_path / "without.png").exists()


def test_names_are_no_markup(run, tmp_path):
    content = changed(run)
    content["card"]["title"], content["card"]["data"] = "a | <script>b</script>", "c\n## d | e"
    content["card"]["network"] = "my:`net`<script>|x"
    for row in content["rows"]:
        row["notes"] = ["a <script> | [link](there)"]
        row["provenance"]["machine"] = {"processor": "<script>", "name": "`x` *y*"}
    page = written(tmp_path, {"run <script> [x](y)": content})
    assert "<script>" not in page
    assert "](there)" not in page
    assert "](y)" not in page
    assert "*y*" not in page
    assert "\n## d" not in page
    tables = [part for part in page.split("\n\n") if part.startswith("| ")]
    assert tables
    for rows_of_table in tables:
        lines = rows_of_table.strip().splitlines()
        assert len({len(re.findall(r"(?<!\\)\|", row)) for row in lines}) == 1


def test_nothing_is_measured(tmp_path):
    page = written(tmp_path, {})
    assert "No network was measured." in page
    assert page.count("not measured") > 5


def test_many_timesteps_are_abridged(run, tmp_path):
    content, long = changed(run), 40
    row = at(content, "confidence", "accuracy")
    content["rows"] = [row]
    static = content["static"]
    static["test"] = [t / 50 for t in range(1, long + 1)]
    for name in ("static_picojoules", "static_acs", "static_macs"):
        static["energy"][name] = [float(t) for t in range(1, long + 1)]
    row["test"] |= {"histogram": [1, 2, *[0] * 36, 6, 1], "mean_timesteps": 27.4, "static_timesteps": 27}
    page = written(tmp_path, {"run": content})
    assert [int(t) for t in re.findall(r"^\| (?:static|full) T = (\d+) ", page, re.M)] == [1, 2, 4, 8, 16, 32, 40]
    assert "| T = 27: " in line(page, "| confidence")
    assert "10 % by 1, 50 % by 39, 90 % by 39" in line(page, "| confidence")


# -- statistics --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("share", "samples", "interval"),
    [
        (0.8, 10, (0.4901625, 0.9433178)),
        (0.0, 10, (0.0, 0.2775328)),
        (1.0, 10, (0.7224672, 1.0)),
        (0.5, 4, (0.15, 0.85)),
    ],
)
def test_wilson(share, samples, interval):
    assert wilson(share, samples) == pytest.approx(interval, abs=1e-4)


@pytest.mark.parametrize(("right", "samples"), [(1, 7), (50, 100), (97, 100), (9321, 10_000)])
def test_wilson_is_where_the_score_test_just_holds(right, samples):
    share = right / samples
    for bound in wilson(share, samples):
        assert abs(share - bound) == pytest.approx(1.959964 * (bound * (1 - bound) / samples) ** 0.5, rel=1e-6)


def test_mean_and_deviation():
    assert mean_and_deviation([3.0]) == (3.0, None)
    assert mean_and_deviation([1.0, 2.0, 6.0]) == (3.0, pytest.approx(7**0.5))


def test_parts_are_drawn_by_seed(places):
    net = Pretrained.load(places / "net", trust_code=True)
    made = [studying.StudyData(net, places / "data", EFFORT, seed, False).draw(100, 30).tolist() for seed in (0, 0, 1)]
    assert made[0] == made[1] != made[2]
    assert made[0] == sorted(set(made[0]))
    assert isinstance(studying.StudyData(net, places / "data", replace(EFFORT, samples=9), 0, False).test_data, Subset)
