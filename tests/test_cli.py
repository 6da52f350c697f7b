"""``seenn evaluate``, ``calibrate`` and ``explain`` on models of one's own and on trained networks."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from seenn_plugin.cli import commands as cli

pytest.importorskip("spikingjelly")
pytest.importorskip("snntorch")

MODULE = """
import snntorch
import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import nn


def spikingjelly_net():
    torch.manual_seed(0)
    print("a factory that prints")
    net = nn.Sequential(layer.Linear(6, 12), neuron.LIFNode(), layer.Linear(12, 3))
    functional.set_step_mode(net, "m")
    return net


def snntorch_net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 12), snntorch.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 3))


class Mixing(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = snntorch_net()

    def forward(self, x):
        return self.net(x - x.mean(0))


def plain_net():
    return nn.Linear(6, 3)


def not_a_net():
    return 3


def image_net(classes):
    pool = layer.AdaptiveAvgPool2d(2)
    return nn.Sequential(pool, layer.Flatten(), neuron.LIFNode(v_threshold=0.5), layer.Linear(12, classes))


def frames(root, split, length):
    from torch.utils.data import TensorDataset

    torch.manual_seed(("validation", "test").index(split))
    return TensorDataset(3 * torch.randn(10, length, 6), torch.arange(10) % 3)


def loader():
    torch.manual_seed(1)
    return [(3 * torch.randn(8, 6), torch.randint(3, (8,))) for _ in range(3)]


def no_samples():
    return []
"""
NETS = ("spikingjelly_net", "snntorch_net")


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    (tmp_path / "my_nets.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)  # the command itself makes the modules here importable
    monkeypatch.delitem(sys.modules, "my_nets", raising=False)
    yield tmp_path
    sys.modules.pop("my_nets", None)


@pytest.fixture
def seenn(capfd):
    """Run a command: exit code, stdout, stderr."""

    def run(*arguments, net="snntorch_net", data="my_nets:loader", timesteps="5"):
        command, *options = arguments
        try:
            code = cli.main(
                [command, "--model", f"my_nets:{net}", "--data", data, "--timesteps", timesteps, *map(str, options)]
            )
        except SystemExit as exit_:  # how argparse ends
            code = exit_.code
        return code, *capfd.readouterr()

    return run


# -- what works -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", NETS)
def test_evaluate(seenn, net):
    code, out, _ = seenn("evaluate", "--json", "--threshold", "0.5", net=net)
    assert code == 0
    found = json.loads(out)
    assert (found["samples"], sum(found["histogram"]), len(found["histogram"])) == (24, 24, 5)
    assert found["agreement"] == 1
    assert found["settings"].items() >= {"policy": "confidence", "threshold": 0.5}.items()
    code, out, _ = seenn("evaluate", "--threshold", "0.5", net=net)
    assert code == 0
    assert f"{100 * found['accuracy']:.2f} %" in out


@pytest.mark.parametrize("net", NETS)
def test_evaluate_energy(seenn, net):
    code, out, _ = seenn("evaluate", "--json", "--threshold", "0.5", "--energy", net=net)
    assert code == 0
    energy = json.loads(out)["energy"]
    assert (energy["samples"], energy["total"]["macs"], energy["picojoules_per_mac"]) == (24, 24 * 6 * 12, 4.6)
    mean = energy["mean"]
    assert 0 < mean["picojoules"] < mean["full_picojoules"]
    assert mean["picojoules"] == pytest.approx(0.9 * mean["acs"] + 4.6 * mean["macs"])
    prices = ("--picojoules_per_ac", "2", "--picojoules_per_mac", "3")
    code, out, _ = seenn("evaluate", "--threshold", "0.5", "--energy", *prices, net=net)
    assert code == 0
    assert f"energy          {(2 * mean['acs'] + 3 * mean['macs']) / 1000:.3f} nJ per sample" in out
    assert "at 2 pJ per AC and 3 pJ per MAC" in out
    code, out, _ = seenn("evaluate", "--json", "--threshold", "0.5", net=net)
    assert "energy" not in json.loads(out)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("target", [("--max_accuracy_drop", 0.1), ("--average_timesteps", 2.5)])
def test_what_calibrate_chooses_evaluate_takes(seenn, here, net, target):
    code, out, _ = seenn("calibrate", "--json", *target, net=net)
    assert code == 0
    found = json.loads(out)
    assert len(found["curve"]) > 1
    (here / "chosen.json").write_text(json.dumps(found["settings"]))
    code, out, _ = seenn("evaluate", "--json", "--config", "chosen.json", net=net)
    assert code == 0
    result = json.loads(out)
    assert result["settings"] == found["settings"]
    assert result["accuracy"] == pytest.approx(found["accuracy"])
    assert result["mean_timesteps"] == pytest.approx(found["mean_timesteps"])

    code, out, _ = seenn("calibrate", *target, net=net)
    assert code == 0
    use = next(line for line in out.splitlines() if line.startswith("use")).split()[1:]
    code, out, _ = seenn("evaluate", "--json", *use, net=net)
    assert json.loads(out)["settings"] == found["settings"]


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--chunk", "auto"], "as the fastest on the first batch"),
        (["--slots", 4], "4 active rows"),
        (["--fold", "--channels_last", "--autocast", "bfloat16"], "fold (0 pairs), channels-last, autocast bfloat16"),
    ],
)
def test_options_for_speed(seenn, net, options, says):
    code, out, _ = seenn("explain", *options, net=net)
    assert code == 0
    assert says in out
    code, out, _ = seenn("evaluate", "--json", "--check_every", 2, *options, net=net)
    assert code == 0
    assert json.loads(out)["samples"] == 24


@pytest.mark.parametrize("net", NETS)
def test_explain(seenn, net):
    code, out, _ = seenn("explain", net=net)
    assert code == 0
    assert "exits early, row by row" in out
    code, out, _ = seenn("explain", "--json", net=net)
    page = json.loads(out)
    assert page["refused"] is None
    assert page["adapter"] == net.removesuffix("_net")
    assert page["checks"]


@pytest.mark.parametrize(
    ("options", "settings"),
    [
        (["--policy", "entropy", "--temperature", 2], {"policy": "entropy", "threshold": 0.75, "temperature": 2.0}),
        (["--policy", "margin"], {"policy": "margin", "threshold": 0.8}),
        (["--policy", "patience", "--patience", 3], {"policy": "patience", "patience": 3}),
        (["--policy", "fixed", "--fixed_timesteps", 2], {"policy": "fixed", "fixed_timesteps": 2}),
    ],
)
def test_policies(seenn, options, settings):
    code, out, _ = seenn("evaluate", "--json", *options)
    assert code == 0
    assert json.loads(out)["settings"].items() >= settings.items()


@pytest.mark.parametrize("time_dim", [0, 1])
def test_sequences_from_npz(seenn, here, time_dim):
    x = np.random.default_rng(0).normal(size=(5, 7, 6)).astype(np.float32)
    np.savez(here / "events.npz", x=x.swapaxes(0, time_dim), y=np.arange(7) % 3)
    code, out, _ = seenn(
        "evaluate", "--json", "--input", "sequence", "--time_dim", time_dim, "--batch_size", 3, data="events.npz"
    )
    assert code == 0
    found = json.loads(out)
    assert (found["samples"], len(found["histogram"])) == (7, 5)


@pytest.mark.parametrize("kind", ["pt", "safetensors"])
def test_weights(seenn, here, kind):
    import snntorch

    leaky = snntorch.Leaky(beta=0.9, init_hidden=True)
    net = torch.nn.Sequential(torch.nn.Linear(6, 12), leaky, torch.nn.Linear(12, 3))
    with torch.no_grad():
        net[2].weight.zero_()
        net[2].bias.copy_(torch.tensor([0.0, 9.0, 0.0]))  # it now answers class 1, whatever it sees
    if kind == "pt":
        torch.save(net.state_dict(), here / "weights.pt")
    else:
        from safetensors.torch import save_file

        save_file(net.state_dict(), here / "weights.safetensors")
    np.savez(here / "ones.npz", x=np.ones((4, 6), np.float32), y=np.ones(4, np.int64))
    code, out, _ = seenn("evaluate", "--json", "--weights", f"weights.{kind}", data="ones.npz")
    assert code == 0
    assert json.loads(out)["accuracy"] == 1


# -- trained networks --------------------------------------------------------------------------------------------------


CLASSES = ("cat", "dog", "eel")


def write_images(root):
    from torchvision.io import write_png

    for split, each in (("train", 40), ("test", 7)):
        for label, name in enumerate(CLASSES):
            (root / split / name).mkdir(parents=True)
            for index in range(each):
                image = torch.randint(100 + 50 * label, (3, 32, 32), dtype=torch.uint8)
                write_png(image, str(root / split / name / f"{index}.png"))


def write_checkpoint(folder, **changes):
    import my_nets

    from seenn_plugin.checkpoints.pretrained import Card, Pretrained

    known = {
        "title": "A network on images",
        "network": "my_nets:image_net",
        "arguments": {"classes": 3},
        "wrapper": {"timesteps": 4, "readout": "sum"},
        "loader": "seenn_plugin.data:cifar10",
        "loader_arguments": {},
        "data": "images",
        "recipe": [],
        "seed": 0,
    }
    card = Card(**{**known, **changes})
    module, _, factory = card.network.partition(":")
    assert module == "my_nets"
    net = Pretrained(getattr(my_nets, factory)(**card.arguments), card)
    net.save(folder)
    return net


@pytest.fixture
def checkpoint(here, monkeypatch):
    """A trained network in ``net``, its data in ``images``."""
    pytest.importorskip("torchvision")
    monkeypatch.syspath_prepend(here)
    write_images(here / "images")
    return write_checkpoint(here / "net")


@pytest.fixture
def on_checkpoint(capfd):
    """Run a command on it: exit code, stdout, stderr."""

    def run(command, *options, data="images"):
        try:
            code = cli.main([command, "--checkpoint", "net", "--trust_code", "--data", data, *map(str, options)])
        except SystemExit as exit_:
            code = exit_.code
        return code, *capfd.readouterr()

    return run


def told(on_checkpoint, command, *options, **arguments):
    code, out, err = on_checkpoint(command, "--json", *options, **arguments)
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize(("split", "samples"), [(None, 21), ("test", 21), ("validation", 12)])
def test_evaluate_a_checkpoint(checkpoint, on_checkpoint, split, samples):
    from seenn_plugin import EarlyExitWrapper, evaluate
    from seenn_plugin.checkpoints.pretrained import Pretrained

    options = () if split is None else ("--split", split)
    found = told(on_checkpoint, "evaluate", "--threshold", 0.4, "--batch_size", 5, *options)
    snn = EarlyExitWrapper(
        Pretrained.load("net", trust_code=True).model, timesteps=4, readout="sum", policy="confidence"
    )
    expected = evaluate(snn, checkpoint.batches("images", split or "test"))
    assert found["samples"] == samples
    assert found["full_accuracy"] == expected.full_accuracy
    assert sum(found["histogram"][:3]) > 0


def test_calibrate_a_checkpoint_on_its_validation_data(checkpoint, on_checkpoint, here):
    found = told(on_checkpoint, "calibrate", "--max_accuracy_drop", 0.2)
    assert found["samples"] == 12
    assert told(on_checkpoint, "calibrate", "--max_accuracy_drop", 0.2, "--split", "test")["samples"] == 21
    (here / "chosen.json").write_text(json.dumps(found["settings"]))
    again = told(on_checkpoint, "evaluate", "--config", "chosen.json", "--split", "validation")
    assert (again["accuracy"], again["settings"]) == (found["accuracy"], found["settings"])


def test_what_is_given_goes_before_the_card(checkpoint, on_checkpoint):
    for options, timesteps, readout in (((), 4, "sum"), (("--timesteps", 3, "--readout", "mean"), 3, "mean")):
        assert len(told(on_checkpoint, "evaluate", *options)["histogram"]) == timesteps
        assert told(on_checkpoint, "explain", *options)["facts"]["readout"].startswith(readout)


def test_a_checkpoint_on_sequences(here, on_checkpoint, monkeypatch):
    monkeypatch.syspath_prepend(here)
    changes = {"loader": "my_nets:frames", "loader_arguments": {"length": 5}, "arguments": {}}
    write_checkpoint(
        here / "net", network="my_nets:snntorch_net", wrapper={"input": "sequence", "time_dim": 1}, **changes
    )
    (here / "events").mkdir()
    found = told(on_checkpoint, "evaluate", data="events")
    assert (found["samples"], len(found["histogram"])) == (10, 5)
    code, _, err = on_checkpoint("evaluate", "--time_dim", 0, data="events")  # which takes samples for timesteps
    assert code == 1
    assert err


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--checkpoint", "net", "--model", "my_nets:snntorch_net", "--data", "images"], "give one network"),
        (["--data", "images"], "give one network"),
        (["--checkpoint", "nowhere", "--data", "images"], "--checkpoint: there is no folder nowhere"),
        (["--checkpoint", "net", "--data", "nowhere"], "--data: there is no folder nowhere"),
        (["--checkpoint", "net", "--data", "images", "--weights", "w.pt"], "--weights is for --model"),
        (["--checkpoint", "net", "--data", "images", "--batch_size", "0"], "at least 1, not 0"),
        (["--checkpoint", "net", "--data", "images", "--split", "train"], "split"),
        (["--checkpoint", "net", "--data", "images", "--device", "abacus", "--trust_code"], "abacus"),
        (["--model", "my_nets:snntorch_net", "--data", "my_nets:loader", "--split", "test"], "--split is for"),
    ],
)
def test_wrong_usage_of_a_checkpoint_exits_with_2(checkpoint, capfd, options, says):
    try:
        code = cli.main(["evaluate", *options])
    except SystemExit as exit_:
        code = exit_.code
    out, err = capfd.readouterr()
    assert (code, out) == (2, "")
    assert says in err


def test_a_damaged_checkpoint_is_refused_in_one_line(checkpoint, on_checkpoint, here):
    (here / "net" / "card.json").write_text("{}")
    code, out, err = on_checkpoint("evaluate")
    assert (code, out) == (1, "")
    assert "no card of a trained network" in err.splitlines()[-1]


# -- commands whose work is elsewhere ----------------------------------------------------------------------------------


def stand_in(monkeypatch, module, name, answer=None):
    """Replace a module by one whose function notes how it is called."""
    calls = []

    def function(*arguments, **options):
        calls.append((arguments, options))
        return answer

    monkeypatch.setitem(sys.modules, f"seenn_plugin.{module}", SimpleNamespace(**{name: function}))
    return calls


@pytest.mark.parametrize(("source", "names"), [("checkpoint", list(CLASSES)), ("model", None)])
def test_evaluate_says_where_the_report_is(checkpoint, on_checkpoint, seenn, monkeypatch, source, names):
    calls = stand_in(monkeypatch, "report", "write_report", answer=Path("pages/index.html"))
    sys.modules["seenn_plugin.report"].check_folder = lambda folder: None
    options = ("--report", "pages", "--picojoules_per_ac", 2)
    code, out, err = on_checkpoint("evaluate", *options) if source == "checkpoint" else seenn("evaluate", *options)
    assert code == 0, err
    assert "report          pages/index.html" in out.splitlines()
    (((snn, loader, folder), known),) = calls
    assert (folder, snn.timesteps) == (Path("pages"), 4 if names else 5)
    assert len(list(loader)) > 0
    title = "A network on images" if names else "my_nets:snntorch_net"
    prices = {"picojoules_per_ac": 2, "picojoules_per_mac": 4.6}
    assert known == {"title": title, "class_names": names, **prices, "progress": True}


def test_the_names_of_classes_are_found_behind_parts_and_loaders(checkpoint):
    from seenn_plugin.cli.loading import class_names

    for split in ("validation", "test"):
        assert class_names(checkpoint.batches("images", split)) == list(CLASSES)
    assert class_names([(torch.zeros(1), torch.zeros(1))]) is None


def test_study(here, on_checkpoint, monkeypatch):
    calls = stand_in(monkeypatch, "study", "study")
    for folder in ("net", "images"):
        (here / folder).mkdir()
    code, out, _ = on_checkpoint("study", "--out", "net.json")
    assert code == 0
    assert out.startswith("net.json: ")
    code, _, _ = on_checkpoint("study", "--out", "net.json", "--seed", 3, "--quick", "--device", "cuda")
    paths = (Path("net"), Path("images"), Path("net.json"))
    assert calls == [
        (paths, {"seed": 0, "quick": False, "device": "cpu", "trust_code": True, "progress": True}),
        (paths, {"seed": 3, "quick": True, "device": "cuda", "trust_code": True, "progress": True}),
    ]
    code, _, err = on_checkpoint("study", "--out", "net.json", data="nowhere")
    assert code == 2
    assert "--data: there is no folder nowhere" in err


def test_results(here, capfd, monkeypatch):
    calls = stand_in(monkeypatch, "study", "write_results")
    for name in ("a.json", "b.json"):
        (here / name).touch()
    assert cli.main(["results", "a.json", "b.json", "--out", "docs/results.md"]) == 0
    assert capfd.readouterr().out.startswith("docs/results.md: ")
    assert calls == [(([Path("a.json"), Path("b.json")], Path("docs/results.md")), {})]
    assert cli.main(["results", "a.json", "c.json", "--out", "docs/results.md"]) == 2
    assert "there is no file c.json" in capfd.readouterr().err


# -- what does not ----------------------------------------------------------------------------------------------------


def test_a_refused_model_prints_the_page(seenn):
    code, out, _ = seenn("explain", net="Mixing")
    assert code == 1
    assert "Mixing: REFUSED" in out
    code, out, _ = seenn("explain", "--json", net="Mixing")
    assert code == 1
    assert "other rows share its batch" in json.loads(out)["refused"]


@pytest.mark.parametrize(
    ("options", "net", "data", "says"),
    [
        (["--policy", "confidense"], "snntorch_net", "my_nets:loader", "Did you mean 'confidence'?"),
        (["--policy", "patience", "--threshold", 0.3], "snntorch_net", "my_nets:loader", "--patience"),
        (["--policy", "fixed"], "snntorch_net", "my_nets:loader", "--fixed_timesteps"),
        (["--temperature", 0], "snntorch_net", "my_nets:loader", "temperature must be a positive"),
        (["--readout", "sun"], "snntorch_net", "my_nets:loader", "Did you mean 'sum'?"),
        (["--adapter", "spikingjely"], "snntorch_net", "my_nets:loader", "Did you mean 'spikingjelly'?"),
        (["--input", "movie"], "snntorch_net", "my_nets:loader", "'static' or 'sequence'"),
        (["--chunk", 0], "snntorch_net", "my_nets:loader", "chunk must be"),
        ([], "plain_net", "my_nets:loader", "no adapter claims Linear"),
        ([], "Mixing", "my_nets:loader", "other rows share its batch"),
        ([], "snntorch_net", "my_nets:no_samples", "no sample"),
    ],
)
def test_the_library_refuses_in_one_line(seenn, options, net, data, says):
    code, out, err = seenn("evaluate", *options, net=net, data=data)
    assert (code, out) == (1, "")
    assert says in err.splitlines()[-1]
    assert err.splitlines()[-1].startswith("seenn: ")


@pytest.mark.parametrize("target", [[], ["--max_accuracy_drop", 0.1, "--average_timesteps", 2]])
def test_calibrate_wants_one_target(seenn, target):
    code, _, err = seenn("calibrate", *target)
    assert code == 1
    assert "one target" in err


@pytest.mark.parametrize(
    ("options", "net", "data", "says"),
    [
        (["--batch_size", "many"], "snntorch_net", "my_nets:loader", "batch_size"),
        (["--tresholt", 1], "snntorch_net", "my_nets:loader", "tresholt"),
        ([], "no_such_net", "my_nets:loader", "no function 'no_such_net'"),
        ([], "not_a_net", "my_nets:loader", "returned int"),
        ([], "snntorch_net", "my_data:loader", "no module 'my_data'"),
        ([], "snntorch_net", "my_nets", "package.module:factory"),
        ([], "snntorch_net", "none.npz", "no file none.npz"),
        (["--weights", "none.pt"], "snntorch_net", "my_nets:loader", "no file none.pt"),
        (["--device", "abacus"], "snntorch_net", "my_nets:loader", "abacus"),
    ],
)
def test_wrong_usage_exits_with_2(seenn, options, net, data, says):
    code, out, err = seenn("evaluate", *options, net=net, data=data)
    assert (code, out) == (2, "")
    assert says in err


@pytest.mark.parametrize("kind", ["other net", "no state_dict", "garbage.pt", "garbage.safetensors"])
def test_bad_weights(seenn, here, kind):
    path = here / (kind if kind.startswith("garbage") else "weights.pt")
    if kind == "other net":
        torch.save(torch.nn.Linear(2, 2).state_dict(), path)
    elif kind == "no state_dict":
        torch.save([1, 2], path)
    else:
        path.write_bytes(b"these are no weights")
    code, out, err = seenn("evaluate", "--weights", path)
    assert (code, out) == (1, "")
    assert "do not fit Sequential" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("arrays", "says"),
    [
        ({"x": np.ones((4, 6), np.float32)}, "arrays x and y"),
        ({"x": np.ones((4, 6), np.float32), "y": np.ones(5, np.int64)}, "one label per sample"),
        ({"x": np.ones((4, 6), np.float32), "y": np.ones(4)}, "class indices"),
        ({"x": np.array(["a"] * 4), "y": np.ones(4, np.int64)}, "no .npz file of numbers"),
    ],
)
def test_bad_npz(seenn, here, arrays, says):
    np.savez(here / "data.npz", **arrays)
    code, _, err = seenn("evaluate", data="data.npz")
    assert code == 1
    assert says in err.splitlines()[-1]


def test_without_a_command_the_commands_are_listed(capsys):
    with pytest.raises(SystemExit) as exit_:
        cli.main([])
    assert exit_.value.code == 2
    assert "evaluate" in capsys.readouterr().err


@pytest.mark.parametrize("module", ["jsonargparse", "safetensors"])
def test_a_missing_extra_is_named(seenn, here, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    (here / "weights.safetensors").touch()
    code, _, err = seenn("evaluate", "--weights", "weights.safetensors")
    assert code == 2
    assert f'{module}: pip install "seenn-plugin[cli]"' in err


def test_the_installed_command_runs():
    found = subprocess.run(
        [sys.executable, "-c", "import sys; from seenn_plugin.cli import main; sys.exit(main())", "evaluate", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "--max_accuracy_drop" not in found.stdout
    assert "--threshold" in found.stdout


def test_importing_the_cli_imports_no_framework():
    code = "import sys, seenn_plugin.cli, seenn_plugin.demo; print([m for m in {!r} if m in sys.modules])"
    names = ("spikingjelly", "snntorch", "matplotlib", "jsonargparse", "sklearn")
    found = subprocess.run([sys.executable, "-c", code.format(names)], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
