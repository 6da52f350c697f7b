"""Trained networks on disk: what is saved is what was measured, and what is damaged is named."""

import importlib.metadata
import json
import re
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from seenn_plugin.checkpoints import packaged
from seenn_plugin.checkpoints.card import page, read_card
from seenn_plugin.checkpoints.pretrained import Card, Pretrained
from seenn_plugin.checkpoints.trust import imported as imported_function
from seenn_plugin.checkpoints.trust import registered_functions
from seenn_plugin.errors import InputError, OptionalDependencyError
from seenn_plugin.evaluation import provenance
from seenn_plugin.training import Recipe, accuracy, train

pytest.importorskip("safetensors")

FEATURES, CLASSES, T = 6, 3, 4
HERE = __name__


def network(hidden=5, large=False):
    net = nn.Sequential(nn.Linear(FEATURES, hidden), nn.BatchNorm1d(hidden), nn.Tanh(), nn.Linear(hidden, CLASSES))
    net.register_buffer("scale", torch.tensor(1e6 if large else 1.0, dtype=torch.float64))
    return net


def no_network():
    return 3


def data(root, split, samples=64):
    generator = torch.Generator().manual_seed(("train", "validation", "test").index(split))
    return TensorDataset(torch.randn(samples, FEATURES, generator=generator), torch.arange(samples) % CLASSES)


def forward(model, x):
    return model(x) * torch.arange(1, T + 1).view(T, 1, 1) + torch.linspace(0, 1, T).view(T, 1, 1) * x[:, :CLASSES]


def card(**changes):
    known = {
        "title": "A network",
        "network": f"{HERE}:network",
        "arguments": {"hidden": 7},
        "wrapper": {"timesteps": T},
        "loader": f"{HERE}:data",
        "loader_arguments": {"samples": 50},
        "data": "noise",
        "recipe": [],
        "seed": 0,
    }
    return Card(**{**known, **changes})


@pytest.fixture
def net():
    model = network(7)
    train(model, forward, data("", "train"), Recipe(epochs=2, batch_size=20), progress=False)
    return Pretrained(model, card())


# -- round trip --------------------------------------------------------------------------------------------------------


def test_what_is_loaded_is_what_was_saved_rounded_to_half(net, tmp_path):
    weights = {name: value.clone() for name, value in net.model.state_dict().items()}
    net.save(tmp_path / "new" / "folder")
    assert all(torch.equal(value, weights[name]) for name, value in net.model.state_dict().items())  # saving rounds not
    found = Pretrained.load(tmp_path / "new" / "folder", trust_code=True)
    assert found.card == net.card
    assert not any(module.training for module in found.model.modules())
    assert found.model.state_dict().keys() == weights.keys()
    for name, value in found.model.state_dict().items():
        expected = weights[name].half().to(weights[name]) if weights[name].is_floating_point() else weights[name]
        assert value.dtype == weights[name].dtype
        assert torch.equal(value, expected)
    assert found.model[1].num_batches_tracked == 6
    assert any(not torch.equal(value, weights[name]) for name, value in found.model.state_dict().items())


def test_what_half_precision_cannot_hold_is_kept(tmp_path):
    net = Pretrained(network(large=True), card(arguments={"large": True}))
    with torch.no_grad():
        net.model[1].running_var[2] = 70000.0
        net.model[3].bias[:] = torch.tensor([1e-3, torch.inf, 2.0])
    net.save(tmp_path)
    found = Pretrained.load(tmp_path, trust_code=True).model
    assert found.scale == 1e6
    assert torch.equal(found[1].running_var, net.model[1].running_var)
    assert torch.equal(found[3].bias, net.model[3].bias.half().float())


def test_tied_and_channels_last_weights(tmp_path, monkeypatch):
    def tied():
        net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.Conv2d(3, 3, 3)).half().to(memory_format=torch.channels_last)
        net[1].weight = net[0].weight
        return net

    monkeypatch.setattr(sys.modules[HERE], "tied", tied, raising=False)
    net = Pretrained(tied(), card(network=f"{HERE}:tied", arguments={}))
    net.save(tmp_path)
    found = Pretrained.load(tmp_path, trust_code=True).model
    assert all(torch.equal(value, net.model.state_dict()[name]) for name, value in found.state_dict().items())


def test_what_is_measured_is_what_is_saved(net, tmp_path):
    net.model.train()
    measured = net.measured(forward, "root")
    measured.save(tmp_path)
    found = Pretrained.load(tmp_path, trust_code=True)
    assert found.card == measured.card
    assert found.card.samples == {"validation": 50, "test": 50}
    for split in ("validation", "test"):
        assert accuracy(found.model, forward, found.batches("root", split)) == found.card.accuracy[split]
        assert len(found.card.accuracy[split]) == T
    for name, value in found.model.state_dict().items():
        assert torch.equal(value, net.model.state_dict()[name])  # rounded in place
    assert found.card.trained_on == provenance.machine()
    assert found.card.versions["torch"] == importlib.metadata.version("torch")
    assert found.card.commit == provenance.commit()


def test_the_data_are_those_of_the_card(net):
    assert len(net.data("root", "test")) == 50
    assert len(net.data("root", "test", samples=9)) == 9
    batches = list(net.batches("root", "validation", batch_size=20))
    assert [len(labels) for _, labels in batches] == [20, 20, 10]
    assert torch.equal(torch.cat([inputs for inputs, _ in batches]), data("", "validation", 50).tensors[0])


# -- the page ----------------------------------------------------------------------------------------------------------


def test_the_page_says_what_the_card_says(net, tmp_path):
    stages = [
        {"name": "first", "epochs": 20, "augment": "crop", "clip": None, "seed": 5},
        {"name": "second", "epochs": 10, "ema": 0.999, "clip": 1.0, "seed": 5},
    ]
    known = replace(net.card, recipe=stages, seed=5, accuracy={"test": [0.5, 0.91234]}, samples={"test": 1000})
    known = replace(known, trained_on={"processor": "an abacus"}, commit="abc-dirty", versions={"torch": "9.9"})
    Pretrained(net.model, known).save(tmp_path)
    lines = (tmp_path / "README.md").read_text().splitlines()
    assert "\n".join(lines) + "\n" == page(known)
    for line in (
        "# A network",
        "| timesteps | test (1000 samples) |",
        "| 2 | 91.23 % |",
        "|  | stage 1 | stage 2 |",
        "| name | first | second |",
        "| epochs | 20 | 10 |",
        "| augment | crop | – |",
        "| clip | – | 1.0 |",
        "| ema | – | 0.999 |",
        "Seed 5.",
        "| processor | an abacus |",
        "| commit | abc-dirty |",
        "| torch | 9.9 |",
    ):
        assert line in lines
    tables = [line for line in lines if line.startswith("|")]
    assert all(line.endswith(" |") for line in tables)
    assert max(map(len, lines)) < 200


def test_names_on_the_page_are_no_markup():
    bad = "a | <script>b</script>\n## c [d](e) `f` *g*"
    stages = [{bad: bad}]
    texts = {"title": bad, "network": bad, "loader": bad, "data": bad, "commit": bad}
    maps = {name: {bad: bad} for name in ("arguments", "loader_arguments", "trained_on", "versions")}
    shown = page(replace(card(), **texts, **maps, recipe=stages, accuracy={bad: [0.5]}, samples={bad: 3}))
    for markup in ("<script>", "\n## c", "](e)", "`f`", "*g*"):
        assert markup not in shown
    for line in shown.splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) <= 3


def test_the_page_of_what_is_not_measured_says_so():
    assert "Not measured." in page(card())
    assert "Not trained." in page(card())


# -- damaged -----------------------------------------------------------------------------------------------------------


def changed(folder, **changes):
    path = folder / "card.json"
    values = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in values.items() if value is not ...}))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"format": 2}, "format 2, and this version of seenn-plugin reads format 1: install the version"),
        ({"format": ...}, "no card of a trained network: KeyError"),
        ({"licence": "MIT"}, "unknown field 'licence'; valid: .*Install the version that wrote it"),
        ({"titel": "x", "title": ..., "seed": ...}, "Did you mean 'title'.*'title' is missing.*'seed' is missing"),
        ({"arguments": [1]}, r"field 'arguments' must be of type dict\[str, Any\], not \[1\]"),
        ({"commit": 3, "seed": "0"}, "'seed' must be of type int, not '0'.*'commit' must be of type str | None"),
        ({"wrapper": {"timestep": 4}}, "wrapper option 'timestep'.*Did you mean 'timesteps'"),
        ({"network": "no_such_package:network"}, "'no_such_package:network', which cannot be imported.*Install"),
        ({"network": f"{HERE}:no_such_network"}, "no_such_network.*cannot be imported"),
        ({"network": "network"}, "cannot be imported"),
        ({"network": ""}, "cannot be imported"),
        ({"network": f"{HERE}:no_network", "arguments": {}}, "returned int, not a torch.nn.Module"),
        ({"arguments": {"width": 7}}, r"fails with the arguments \{'width': 7\}: TypeError"),
        ({"arguments": {"hidden": 8}}, "do not fit .*size mismatch.*from one training"),
    ],
)
def test_a_card_that_does_not_fit_is_named(net, tmp_path, changes, says):
    net.save(tmp_path)
    changed(tmp_path, **changes)
    with pytest.raises(InputError, match=f"(?s){says}"):
        Pretrained.load(tmp_path, trust_code=True)


def test_what_a_card_may_leave_out(net, tmp_path):
    net.save(tmp_path)
    changed(tmp_path, **dict.fromkeys(("accuracy", "samples", "trained_on", "commit", "versions"), ...))
    assert Pretrained.load(tmp_path, trust_code=True).card == net.card


@pytest.mark.parametrize("content", [None, "", "{", "[]", "3", '"card"', "null"])
def test_a_damaged_card_is_named(net, tmp_path, content):
    net.save(tmp_path)
    if content is None:
        (tmp_path / "card.json").unlink()
    else:
        (tmp_path / "card.json").write_text(content)
    with pytest.raises(InputError, match=r"card.json is no card of a trained network.*Name the folder"):
        Pretrained.load(tmp_path, trust_code=True)


@pytest.mark.parametrize("damage", ["missing", "garbage", "truncated", "other names"])
def test_damaged_weights_are_named(net, tmp_path, damage):
    from safetensors.torch import save_file

    net.save(tmp_path)
    path = tmp_path / "weights.safetensors"
    if damage == "missing":
        path.unlink()
    elif damage == "other names":
        save_file({"w": torch.zeros(2)}, str(path))
    else:
        path.write_bytes(b"no weights" if damage == "garbage" else path.read_bytes()[:-4])
    with pytest.raises(InputError, match=r"(?s)the weights in .*weights.safetensors do not fit .*get both again"):
        Pretrained.load(tmp_path, trust_code=True)


def test_a_loader_that_is_not_there_is_named(net):
    with pytest.raises(InputError, match="'nowhere:data', which cannot be imported"):
        Pretrained(net.model, replace(net.card, loader="nowhere:data")).data("root")


def test_a_missing_package_is_named(net, tmp_path, monkeypatch):
    net.save(tmp_path)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    for work in (lambda: Pretrained.load(tmp_path, trust_code=True), lambda: net.save(tmp_path)):
        with pytest.raises(OptionalDependencyError, match=r'safetensors: pip install "seenn-plugin\[train\]"'):
            work()


def test_a_package_that_the_factory_misses_is_named_by_it(net, tmp_path, monkeypatch):
    def needy(**_):
        raise OptionalDependencyError("abacus", "abacus", "counting")

    monkeypatch.setattr(sys.modules[HERE], "needy", needy, raising=False)
    Pretrained(net.model, card(network=f"{HERE}:needy")).save(tmp_path)
    with pytest.raises(OptionalDependencyError, match="counting needs abacus"):
        Pretrained.load(tmp_path, trust_code=True)


# -- provenance --------------------------------------------------------------------------------------------------------


def git(folder, *arguments):
    identity = ("-c", "user.name=test", "-c", "user.email=test")
    subprocess.run(["git", "-C", str(folder), *identity, *arguments], check=True, capture_output=True)


def test_the_commit_is_that_of_the_packages_own_checkout(tmp_path, monkeypatch):
    file = tmp_path / "package" / "provenance.py"
    file.parent.mkdir()
    file.write_text("first")
    (tmp_path / "other.txt").write_text("first")
    monkeypatch.setattr(provenance, "__file__", str(file))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert provenance.commit() is None  # no checkout
    git(tmp_path, "init")
    git(tmp_path, "add", "other.txt")
    git(tmp_path, "commit", "-m", "a user's own")
    assert provenance.commit() is None  # installed into somebody's checkout
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-m", "ours")
    clean = provenance.commit()
    assert clean is not None
    assert len(clean) >= 12
    file.write_text("second")
    assert provenance.commit() == f"{clean}-dirty"
    monkeypatch.setenv("PATH", "")
    assert provenance.commit() is None  # no git


def test_machine_and_versions():
    machine = provenance.machine()
    assert machine["threads"] == torch.get_num_threads()
    assert machine["processor"]
    found = provenance.versions()
    assert found["torch"] == importlib.metadata.version("torch")
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))


# -- trust -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("field", ["network", "loader"])
def test_nothing_that_a_card_names_is_imported_unless_it_is_registered_or_trusted(net, tmp_path, monkeypatch, field):
    imported = []
    monkeypatch.setattr("seenn_plugin.checkpoints.trust.importlib.import_module", imported.append)
    registered = {"network": "seenn_plugin.models.snntorch:ConvNet", "loader": "seenn_plugin.data:mnist"}
    harmful = {**registered, field: "os:system"}
    Pretrained(net.model, card(**harmful, arguments={"command": "touch harm"})).save(tmp_path)
    with pytest.raises(InputError, match=rf"'os:system' as its {field}, which no installed package .* trust_code=True"):
        Pretrained.load(tmp_path)
    assert not imported


def test_a_loader_is_not_called_either_unless_trusted(net, tmp_path):
    untrusted = replace(net, trust_code=False)
    with pytest.raises(InputError, match="as its loader"):
        untrusted.data(tmp_path)
    assert len(net.data(tmp_path, "test"))


def test_what_the_packaged_cards_name_is_registered():
    names = registered_functions()
    for folder in packaged().values():
        own = read_card(folder / "card.json")[0]
        assert {own.network, own.loader} <= names
    for name in names:
        assert callable(imported_function(name))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('"seed": 0', '"seed": Infinity'),
        ('"arguments": {}', '"arguments": ' + "[" * 5000 + "]" * 5000),
        ('"arguments": {}', '"arguments": {"a": ' + "[" * 9 + "]" * 9 + "}"),
        ('"accuracy": {}', '"accuracy": {"test": [2.0]}'),
        ('"accuracy": {}', '"accuracy": {"test": ["<script>"]}'),
        ('"samples": {}', '"samples": {"test": -1}'),
        ('"title": "', '"title": "' + "x" * 1_000_001),
    ],
)
def test_a_card_beyond_all_bounds_is_refused(net, tmp_path, text, says):
    Pretrained(net.model, card(arguments={})).save(tmp_path)
    path = tmp_path / "card.json"
    changed = path.read_text().replace(text, says)
    assert changed != path.read_text()
    path.write_text(changed)
    with pytest.raises(InputError, match="is no card"):
        Pretrained.load(tmp_path, trust_code=True)
