"""The rl policy on the command line: the demo, and a saved policy with a custom model."""

from __future__ import annotations

import json
import sys

import pytest
import torch

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.cli import commands as cli
from seenn_plugin.demo import main
from seenn_plugin.models import digits as networks

MODULE = """
import snntorch
import torch
from torch import nn


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), snntorch.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 3))


def loader():
    torch.manual_seed(1)
    return [(3 * torch.randn(20, 6), torch.randint(3, (20,))) for _ in range(3)]
"""


@pytest.fixture
def here(tmp_path, monkeypatch):
    (tmp_path / "my_rl_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("my_rl_nets", None)


def seenn(capfd, command, *options):
    model = ["--model", "my_rl_nets:net", "--data", "my_rl_nets:loader", "--timesteps", "5", "--policy", "rl"]
    return cli.main([command, *model, *map(str, options)]), *capfd.readouterr()


def fitted(here, monkeypatch) -> EarlyExitWrapper:
    monkeypatch.syspath_prepend(str(here))
    import my_rl_nets  # pyright: ignore[reportMissingImports]

    snn = EarlyExitWrapper(my_rl_nets.net(), "rl", timesteps=5).eval()
    snn.fit_policy(my_rl_nets.loader(), my_rl_nets.loader(), beta=0.1, epochs=30, max_operations=1e6)
    snn.policy.save(here / "policy")
    return snn


def test_a_saved_policy_is_evaluated(here, capfd, monkeypatch):
    snn = fitted(here, monkeypatch)
    code, out, _ = seenn(capfd, "evaluate", "--json", "--policy_folder", "policy")
    assert code == 0
    found = json.loads(out)
    assert found["mean_timesteps"] == pytest.approx(snn.policy_fit.chosen.mean_timesteps)
    assert found["accuracy"] == pytest.approx(snn.policy_fit.chosen.accuracy)
    assert found["settings"] == {"policy": "rl", "policy_folder": "policy"}
    assert found["policy_cost"]["operations"] == snn.policy_fit.policy_operations
    (here / "chosen.json").write_text(json.dumps(found["settings"]))
    code, out, _ = seenn(capfd, "evaluate", "--config", "chosen.json")
    assert code == 0
    assert "planning" in out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "needs --policy_folder"),
        (["--policy_folder", "nowhere"], "nowhere contains no saved policy"),
        (["--threshold", 0.5], "--policy_folder"),
    ],
)
def test_a_policy_that_is_not_there_is_refused_in_one_line(here, capfd, options, message):
    code, out, err = seenn(capfd, "evaluate", *options)
    assert (code, out) == (1, "")
    assert message in err.splitlines()[-1]


def test_a_fitted_policy_is_not_calibrated(here, capfd, monkeypatch):
    fitted(here, monkeypatch)
    code, _, err = seenn(capfd, "calibrate", "--policy_folder", "policy", "--average_timesteps", 2)
    assert code == 1
    assert "fitted, not calibrated" in err


@pytest.mark.filterwarnings("ignore:the policy has collapsed")
def test_the_demo_with_the_rl_policy(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(main, "sew_resnet", lambda: networks.conv_net(channels=6))
    monkeypatch.setattr(main, "conv_net", lambda: networks.conv_net(channels=8))
    state = torch.get_rng_state()
    assert cli.main(["demo", "--quick", "--policy", "rl", "--out", str(tmp_path)]) == 0
    assert torch.equal(torch.get_rng_state(), state)
    printed = capsys.readouterr().out
    assert printed.count("Planning takes") == 2
    assert max(map(len, printed.splitlines()[:-1])) <= 100
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["policy"] == "rl"
    for network in report["networks"]:
        assert network["calibration"]["policy"] == "rl"
        assert network["evaluation"]["policy_cost"]["operations"] > 0
        assert network["calibration"]["accuracy"] >= network["calibration"]["full_accuracy"] - 0.005 - 1e-9
        assert len(network["curve"]["early_exit"]) >= 1
    assert (tmp_path / "figure.png").exists()


def test_the_demo_refuses_an_unknown_policy_before_any_work(tmp_path, capsys):
    assert cli.main(["demo", "--quick", "--policy", "rll", "--out", str(tmp_path / "out")]) == 1
    assert "Did you mean 'rl'?" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
