"""What an import and an install pull in: torch, and little else."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys

import pytest

DISTRIBUTION = "seenn-plugin"


def imported(code: str) -> set[str]:
    """The top-level packages in ``sys.modules`` after some code has run in a fresh interpreter."""
    program = f"{code}\nimport sys, json\nprint(json.dumps(sorted({{name.split('.')[0] for name in sys.modules}})))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=120)
    return set(json.loads(done.stdout.splitlines()[-1]))


@pytest.mark.parametrize(
    "code",
    [
        "import seenn_plugin",
        "import seenn_plugin.adapter; seenn_plugin.adapter.installed_adapters()",
        "import seenn_spikingjelly, seenn_snntorch",
        "import seenn_plugin.training, seenn_plugin.pretrained, seenn_plugin.data, seenn_plugin.cli",
    ],
)
def test_the_import_pulls_in_no_framework_and_no_optional_package(code):
    unwanted = {"spikingjelly", "snntorch", "matplotlib", "sklearn", "scipy", "pandas", "jsonargparse", "cupy"}
    unwanted |= {"torchvision", "safetensors", "tensorboard"}
    found = imported(code)
    assert "torch" in found
    assert not found & unwanted


def test_looking_for_an_adapter_imports_no_framework():
    code = (
        "import torch, seenn_plugin\n"
        "try:\n    seenn_plugin.EarlyExitWrapper(torch.nn.Linear(2, 2), timesteps=2)\n"
        "except LookupError as error:\n    assert 'no adapter claims' in str(error), error\n"
        "else:\n    raise SystemExit('claimed')"
    )
    assert not imported(code) & {"spikingjelly", "snntorch"}


def requirements() -> dict[str, set[str]]:
    """Names of the required distributions by extra; the extra ``""`` is the plain install."""
    found: dict[str, set[str]] = {"": set()}
    for line in importlib.metadata.requires(DISTRIBUTION) or []:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)", line)
        assert name
        found.setdefault(extra[1] if extra else "", set()).add(name[0].lower())
    return found


def test_a_plain_install_needs_torch_numpy_and_tqdm_only():
    assert requirements()[""] == {"torch", "numpy", "tqdm"}


def test_the_extras_exist_and_name_what_they_install():
    extras = set(importlib.metadata.metadata(DISTRIBUTION).get_all("Provides-Extra") or [])
    assert {"spikingjelly", "snntorch", "cupy", "plot", "cli", "train", "tensorboard", "all"} <= extras
    needed = requirements()
    assert "spikingjelly" in needed["spikingjelly"]
    assert "snntorch" in needed["snntorch"]
    assert any(name.startswith("cupy") for name in needed["cupy"])
    assert "matplotlib" in needed["plot"]
    assert "jsonargparse" in needed["cli"]
    assert {"torchvision", "scikit-learn", "safetensors"} <= needed["train"]
    assert "tensorboard" in needed["tensorboard"]


def test_our_adapters_are_found_by_the_road_that_third_parties_take():
    points = {point.name: point.value for point in importlib.metadata.entry_points(group="seenn_plugin.adapters")}
    assert points["spikingjelly"] == "seenn_spikingjelly:SpikingJellyAdapter"
    assert points["snntorch"] == "seenn_snntorch:SnnTorchAdapter"
