"""Arguments are checked before any data is read, any network runs, or any file is written."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate, measure_energy
from seenn_plugin.cli import commands as cli
from seenn_plugin.errors import SeennError
from seenn_plugin.policies import RLPolicy
from seenn_plugin.report import write_report
from seenn_plugin.study import study, write_results
from seenn_plugin.training import Recipe, train

NAN, INF = float("nan"), float("inf")
T = 4


class Seen:
    """Counts what must not happen."""

    def __init__(self) -> None:
        self.runs = 0
        self.reads = 0
        torch.manual_seed(0)
        leaky = snntorch.Leaky(beta=0.9, init_hidden=True)
        self.net = nn.Sequential(nn.Linear(6, 12), leaky, nn.Linear(12, 3)).eval()
        self.net[0].register_forward_pre_hook(self._run)

    def _run(self, *_: object) -> None:
        self.runs += 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        self.reads += 1
        yield torch.rand(8, 6), torch.arange(8) % 3

    def __len__(self) -> int:
        return 8

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.reads += 1
        return torch.rand(6), index % 3

    def wrapped(self, policy: Any = "confidence") -> EarlyExitWrapper:
        return EarlyExitWrapper(self.net, policy, timesteps=T)


Call = Callable[[Seen], object]


def calibrate(policy: Any = "confidence", **target: Any) -> Call:
    return lambda seen: seen.wrapped(policy).calibrate(seen, **target)


def fit(policy: Any = None, **options: Any) -> Call:
    return lambda seen: seen.wrapped(policy or RLPolicy()).fit_policy(seen, seen, **options)


def report(**options: Any) -> Call:
    return lambda seen: write_report(seen.wrapped(), seen, "report", **options)


def energy(**options: Any) -> Call:
    return lambda seen: measure_energy(seen.wrapped(), seen, **options)


def stream(**options: Any) -> Call:
    return lambda seen: seen.wrapped().stream(seen, **options)


def wrap(**options: Any) -> Call:
    return lambda seen: EarlyExitWrapper(seen.net, **{"timesteps": T, **options})


def training(**options: Any) -> Call:
    def call(seen: Seen) -> object:
        known = {"model": seen.net, "forward": lambda model, x: model(x), "data": seen, "recipe": Recipe(epochs=1)}
        return train(**{**known, **options})

    return call


def studying(**options: Any) -> Call:
    return lambda seen: study(Path("net"), Path(), Path("made/run.json"), **options)


BAD: list[tuple[Call, str]] = [
    *((calibrate(max_accuracy_drop=bad), "max_accuracy_drop") for bad in (-1, -0.01, 1.5, NAN, INF, "0.1", True)),
    *((calibrate(average_timesteps=bad), "average_timesteps") for bad in (0, 0.5, -2, NAN, INF, "2", True)),
    (calibrate(), "exactly one target"),
    (calibrate(max_accuracy_drop=0.1, average_timesteps=2), "exactly one target"),
    (calibrate(RLPolicy(), max_accuracy_drop=0.1), "fitted, not calibrated"),
    (lambda seen: seen.wrapped().calibrate(None, max_accuracy_drop=0.1), "must yield batches"),
    *((fit(max_accuracy_drop=bad), "max_accuracy_drop") for bad in (-1, 2, NAN, "0.1")),
    *((fit(average_timesteps=bad), "average_timesteps") for bad in (0.5, NAN, INF, "2")),
    *((fit(beta=bad), "beta") for bad in (-1, NAN, INF, "1", True)),
    *((fit(step_cost=bad, cost="linear"), "step_cost") for bad in (-1, NAN, INF, "1")),
    (fit(), "exactly one target"),
    (fit(beta=1.0, average_timesteps=2.0), "exactly one target"),
    (fit(RLPolicy(candidates=(1, 9)), beta=1.0), "beyond T=4"),
    *((fit(beta=1.0, **{name: bad}), name) for name in ("epochs", "batch_size") for bad in (0, 1.5, NAN, "3", True)),
    *((fit(beta=1.0, seed=bad), "seed") for bad in (-1, 2**63, 1.0, None)),
    *((fit(beta=1.0, weight_decay=bad), "weight_decay") for bad in (-1, NAN, INF, "0")),
    *((fit(beta=1.0, learning_rate=bad), "learning_rate") for bad in (0, -1, NAN, INF, "0")),
    *((fit(beta=1.0, **{name: 1}), name) for name in ("reweight", "augmented", "finetune")),
    *((fit(beta=1.0, **{name: ["x"]}), name) for name in ("objective", "cost", "amp")),
    (lambda seen: seen.wrapped(RLPolicy()).fit_policy(seen, 3, beta=1.0), "val_loader must yield"),
    (lambda seen: seen.wrapped(RLPolicy()).fit_policy(iter(seen), seen, beta=1.0, finetune=True), "more than once"),
    *((energy(picojoules_per_ac=bad), "picojoules_per_ac") for bad in (-1, NAN, INF, "1", True, None)),
    *((report(picojoules_per_mac=bad), "picojoules_per_mac") for bad in (-1, NAN, INF, "1")),
    (report(class_names="abc"), "class_names"),
    *((lambda seen, f=f: f(seen.net, seen), "must be a wrapped network") for f in (evaluate, measure_energy)),
    (lambda seen: accuracy_curve(seen.wrapped(), seen, "margin"), "policy must be a Policy"),
    (lambda seen: accuracy_curve(seen.wrapped(RLPolicy()), seen), "fitted, not calibrated"),
    (lambda seen: evaluate(seen.wrapped(), 3), "must yield batches"),
    *((stream(slots=bad), "slots") for bad in (0, -1, 1.5, NAN, "4", True)),
    (stream(ordered="no"), "ordered"),
    *(
        (wrap(**{name: bad}), name)
        for name in ("timesteps", "slots", "check_every", "chunk")
        for bad in (0, -1, 1.5, NAN, "four", True)
    ),
    *((wrap(time_dim=bad), "time_dim") for bad in (2, -1, 1.0, True, None)),
    *((wrap(**{name: "yes"}), name) for name in ("check", "cuda_graphs", "full_run", "fold", "channels_last")),
    (wrap(policy="fixed", timesteps="four"), "timesteps"),
    *((training(workers=bad), "workers") for bad in (-1, 1.5, "2")),
    (training(model=3), "model"),
    (training(forward=None), "forward"),
    (training(recipe={"epochs": 1}), "recipe"),
    (training(name=""), "name"),
    *((lambda seen, bad=bad: Recipe(epochs=1, seed=bad), "seed") for bad in (-1, 2**63, 0.5)),
    *((studying(seed=bad), "seed") for bad in (-1, 2**63, 0.5)),
    *((studying(picojoules_per_ac=bad), "picojoules_per_ac") for bad in (-1, NAN, "1")),
    (lambda seen: study(Path("net"), Path("nowhere"), Path("made/run.json")), "nowhere"),
    (lambda seen: write_results([Path("run.json")], Path("run.json")), "would replace"),
    (lambda seen: write_results([Path("run.json")], Path("page.png")), "the name of the figure"),
]


@pytest.mark.parametrize(("call", "named"), BAD)
def test_a_bad_argument_is_named_before_any_work(call, named, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    seen = Seen()
    with pytest.raises(SeennError, match=named):
        call(seen)
    assert (seen.runs, seen.reads) == (0, 0)
    assert not list(tmp_path.iterdir())


MODULE = """
from pathlib import Path
def net():
    Path("made").touch()
    import snntorch
    from torch import nn
    return nn.Sequential(nn.Linear(6, 12), snntorch.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 3))
def data():
    Path("read").touch()
    return []
"""
OPTIONS: list[tuple[str, str, str]] = [
    *(("calibrate", f"--max_accuracy_drop={bad}", "max_accuracy_drop") for bad in ("-1", "2", "nan", "inf", "x")),
    *(("calibrate", f"--average_timesteps={bad}", "average_timesteps") for bad in ("0", "-1", "nan", "inf", "x")),
    ("calibrate", "", "exactly one target"),
    *(("evaluate", f"--{name}={bad}", name) for name in ("picojoules_per_ac",) for bad in ("-1", "nan", "inf", "x")),
    *(
        (command, f"--{name}={bad}", name)
        for command in ("evaluate", "explain")
        for name in ("timesteps", "slots", "check_every", "chunk", "batch_size")
        for bad in ("0", "-1", "1.5", "nan", "x")
    ),
    *(("evaluate", f"--threshold={bad}", "threshold") for bad in ("nan", "x")),
    *(("evaluate", f"--temperature={bad}", "temperature") for bad in ("0", "-1", "nan", "inf")),
    ("evaluate", "--policy=patience --patience=0", "patience"),
    ("evaluate", "--policy=fixed --fixed_timesteps=0", "timesteps"),
    ("evaluate", "--device=abacus", "abacus"),
    ("evaluate", "--data=none.npz", "none.npz"),
    ("evaluate", "--report=file/page", "cannot write a report"),
]


@pytest.mark.parametrize(("command", "options", "named"), OPTIONS)
def test_a_bad_option_is_named_before_any_work(command, options, named, tmp_path, monkeypatch, capfd):
    pytest.importorskip("jsonargparse")
    (tmp_path / "bad_options.py").write_text(MODULE)
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    target = ["--max_accuracy_drop=0.1"] if command == "calibrate" and options.startswith("--time") else []
    known = ["--model=bad_options:net", "--data=bad_options:data", "--timesteps=4"]
    assert failed([command, *known, *target, *options.split()]) in (1, 2)
    out, err = capfd.readouterr()
    assert out == ""
    assert named in err
    assert "Traceback" not in err
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "read").exists()


@pytest.mark.parametrize("option", ["--seed=-1", f"--seed={2**63}", "--seed=x", "--device=abacus"])
def test_a_bad_option_of_a_study_is_named(option, tmp_path, monkeypatch, capfd):
    pytest.importorskip("jsonargparse")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "net").mkdir()
    (tmp_path / "data").mkdir()
    assert failed(["study", "--checkpoint=net", "--data=data", "--out=run.json", option]) in (1, 2)
    assert option.split("=")[0].lstrip("-") in capfd.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "net"]


def test_a_page_never_replaces_a_run_file(tmp_path):
    path = tmp_path / "run.json"
    path.write_text(json.dumps({"precious": 1}))
    with pytest.raises(SeennError, match="would replace"):
        write_results([path], path)
    assert json.loads(path.read_text()) == {"precious": 1}


def failed(arguments: list[str]) -> Any:
    """The exit code."""
    try:
        return cli.main(arguments)
    except SystemExit as exit_:
        return exit_.code
