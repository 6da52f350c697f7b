"""Every example runs as it stands: those on real data on a little data of the same form, from any directory."""

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parent.parent / "examples"
# Their recipes are run on narrow networks in tests/spikingjelly/test_cifar10_examples.py.
LARGE = {"cifar10_resnet19.py", "cifar10_spikformer.py"}
NAMES = sorted({path.name for path in FOLDER.glob("*.py")} - {"common.py", *LARGE})


def image_folder(root: Path, size: int = 32, classes: int = 2) -> None:
    """``train/<class>/`` and ``test/<class>/`` of images: as few as can be split."""
    from torchvision.io import write_png

    generator = torch.Generator().manual_seed(0)
    for split, each in (("train", 12), ("test", 3)):
        for label in range(classes):
            folder = root / split / f"class {label}"
            folder.mkdir(parents=True)
            for index in range(each):
                image = torch.randint(256, (3, size, size), dtype=torch.uint8, generator=generator)
                write_png(image, str(folder / f"{index}.png"))


def events(root: Path) -> None:
    """``events_np/{train,test}/<digit>/*.npz`` of N-MNIST: of every digit as few as can be split."""
    generator = np.random.default_rng(0)
    for split, each in (("train", 12), ("test", 3)):
        for digit in range(10):
            folder = root / "events_np" / split / str(digit)
            folder.mkdir(parents=True)
            for index in range(each):
                places = {axis: generator.integers(0, 34, 50) for axis in "xy"}
                times = np.linspace(0, 300_000, 50, dtype=np.int64)  # no bin of time is empty
                np.savez(folder / f"{index}.npz", t=times, p=generator.integers(0, 2, 50), **places)


def digits(root: Path) -> None:
    """``mnist.npz``."""
    generator = np.random.default_rng(0)
    arrays = {}
    for split, each in (("train", 12), ("test", 3)):
        arrays[f"x_{split}"] = generator.integers(0, 256, (2 * each, 28, 28), dtype=np.uint8)
        arrays[f"y_{split}"] = np.arange(2 * each, dtype=np.uint8) % 2
    root.mkdir()
    np.savez(root / "mnist.npz", **arrays)


def letters(root: Path) -> None:
    """``braille7.npz``."""
    generator = np.random.default_rng(0)
    spikes = generator.random((30, 256, 12)) < 0.05
    split = np.arange(30) >= 24
    root.mkdir()
    np.savez(root / "braille7.npz", spikes=spikes.astype(np.uint8), label=np.arange(30) % 2, split=split, classes=["A"])


# For every example on real data: what writes a little data of its form.
SMALL_DATA = {
    "braille_snntorch.py": letters,
    "cifar10_converted.py": image_folder,
    "cifar10_sew_resnet.py": image_folder,
    "event_vgg.py": events,
    "mnist_snntorch.py": digits,
}


@cache
def run(name, *arguments):
    """As a user does, from another directory; what it prints."""
    command = [sys.executable, str(FOLDER / name), *map(str, arguments)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tempfile.gettempdir(), env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SMALL_DATA])
def test_an_example_without_data_runs_as_it_stands(name):
    assert run(name)


def imported(name, monkeypatch):
    """The module of an example, and what it imports from ``common``."""
    monkeypatch.syspath_prepend(FOLDER)
    spec = importlib.util.spec_from_file_location(Path(name).stem, FOLDER / name)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    import common  # pyright: ignore[reportMissingImports]

    monkeypatch.delitem(sys.modules, "common")
    return module, common


@pytest.mark.parametrize("name", SMALL_DATA)
def test_an_example_on_data_is_trained_and_then_taken_as_it_was_saved(name, tmp_path, monkeypatch, capsys):
    pytest.importorskip("spikingjelly")
    pytest.importorskip("torchvision")
    data, out = tmp_path / "data", tmp_path / "out"
    SMALL_DATA[name](data)
    told = run(name, "--data", data, "--out", out, "--epochs", 1, "--seed", 3, "--data-name", "noise", "--no-compile")
    assert told.startswith(f"{out}: ")
    assert "test samples of noise" in told

    module, common = imported(name, monkeypatch)
    card = json.loads((out / "card.json").read_text())
    assert (card["seed"], card["data"]) == (3, "noise")
    trained = card["recipe"][: len(module.EXAMPLE.stages)]  # what comes after, as conversion does, is no training
    assert [stage["name"] for stage in trained] == [stage.name for stage in module.EXAMPLE.stages]
    assert all((stage["epochs"], stage["seed"]) == (1, 3) for stage in trained)
    assert set(card["accuracy"]) == set(card["samples"]) == {"validation", "test"}
    for argument, value in module.EXAMPLE.card.arguments.items():
        assert card["arguments"][argument] == json.loads(json.dumps(value))

    capsys.readouterr()
    common.main(module.EXAMPLE, ["--data", str(data), "--pretrained", str(out)])
    assert capsys.readouterr().out.splitlines() == told.splitlines()[1:]


def test_policies_of_ones_own_exit_early_and_mostly_answer_as_after_all_timesteps():
    lines = run("custom_policy.py").splitlines()
    assert [line.split(":")[0] for line in lines] == ["LeadPolicy", "ConfidencePolicy", "SettledPolicy"]
    for line in lines[:2]:
        timesteps, agreement = float(line.split()[1]), float(line.split(", ")[1].split(" %")[0])
        assert 1 < timesteps < 8
        assert agreement > 85
