"""Adapters of third parties: installed as distributions of their own, found, checked; broken and rival ones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent
SOURCE = HERE / "third_party"


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A folder into which the third party's distribution is installed."""
    folder = tmp_path_factory.mktemp("site")
    source = tmp_path_factory.mktemp("source") / "toy"
    shutil.copytree(SOURCE, source, ignore=shutil.ignore_patterns("__pycache__"))  # a build leaves files behind
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--no-build-isolation"]
    command += ["--disable-pip-version-check", "--target", str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:  # no pip, or no setuptools: a distribution is a package and a folder of metadata
        shutil.copytree(source / "toy_rnn_adapter", folder / "toy_rnn_adapter", dirs_exist_ok=True)
        distribute(folder, "toy_rnn_adapter", "toy_rnn = toy_rnn_adapter:ToyRnnAdapter")
    return folder


def distribute(folder: Path, name: str, entry_point: str) -> None:
    """Write the metadata that makes a package in ``folder`` an installed distribution."""
    metadata = folder / f"{name}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[seenn_plugin.adapters]\n{entry_point}\n")


def python(code: str, *folders: Path) -> str:
    """What a fresh interpreter prints that has these distributions installed."""
    path = os.pathsep.join(map(str, [*folders, ROOT, ROOT / "adapters"]))
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
        cwd=folders[0],
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


WRAP = """
import torch
from seenn_plugin import EarlyExitWrapper
from toy_rnn_adapter import make_model
model = make_model()
x = torch.randn(5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
"""


def test_is_found_and_used(installed):
    code = (
        WRAP
        + """
snn = EarlyExitWrapper(model, "margin", timesteps=6)
result = snn.infer(x)
trace = snn.trace(x)
at_exit = trace[result.timesteps - 1, torch.arange(5)]
assert torch.allclose(result.logits, at_exit)
assert result.steps_executed == int(result.timesteps.sum()) < 30, result.timesteps
assert model.hidden is None
print(snn.adapter.name, type(snn.adapter).__module__)
"""
    )
    assert python(code, installed) == "toy_rnn toy_rnn_adapter"


def test_passes_the_conformance_kit(installed, tmp_path):
    test = tmp_path / "test_toy.py"
    test.write_text(
        """
import torch
from seenn_plugin.testing import AdapterConformance
from toy_rnn_adapter import ToyRnnAdapter, make_model

class TestToy(AdapterConformance):
    adapter = ToyRnnAdapter
    def make_model(self):
        return make_model()
    def make_inputs(self, n):
        shape = (self.timesteps, n, 6) if self.sequence else (n, 6)
        return torch.randn(shape, generator=torch.Generator().manual_seed(n), dtype=torch.float64)

class TestToySequence(TestToy):
    sequence = True
"""
    )
    code = f"import pytest, sys; sys.exit(pytest.main(['-q', '-W', 'error', '-p', 'no:cacheprovider', {str(test)!r}]))"
    report = python(code, tmp_path, installed)
    assert " passed" in report
    assert "failed" not in report
    assert "skipped" not in report


def test_a_broken_adapter_warns_and_is_skipped(installed, tmp_path):
    (tmp_path / "broken_adapter.py").write_text("raise ImportError('libbroken.so is missing')\n")
    distribute(tmp_path, "broken_adapter", "broken = broken_adapter:BrokenAdapter")
    code = (
        WRAP
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    snn = EarlyExitWrapper(model, timesteps=4)
    snn(x)
mine = [w for w in caught if "broken" in str(w.message)]
assert mine and issubclass(mine[0].category, RuntimeWarning)
print(snn.adapter.name, "|", mine[0].message)
"""
    )
    found = python(code, tmp_path, installed)
    assert found.startswith("toy_rnn | adapter 'broken' (broken_adapter:BrokenAdapter) is broken and was skipped")
    assert "libbroken.so is missing" in found


def test_what_is_no_adapter_warns_and_is_skipped(installed, tmp_path):
    (tmp_path / "no_adapter.py").write_text("class NoAdapter: pass\n")
    distribute(tmp_path, "no_adapter", "none = no_adapter:NoAdapter")
    code = (
        WRAP
        + """
import warnings
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    print(EarlyExitWrapper(model, timesteps=4).adapter.name, "|", *[w.message for w in caught])
"""
    )
    assert "toy_rnn | adapter 'none' (no_adapter:NoAdapter) is broken" in python(code, tmp_path, installed)


def test_two_adapters_that_claim_one_model(installed, tmp_path):
    (tmp_path / "rival_adapter.py").write_text(
        "from toy_rnn_adapter import ToyRnnAdapter\n\n\nclass RivalAdapter(ToyRnnAdapter):\n    name = 'rival'\n"
    )
    distribute(tmp_path, "rival_adapter", "rival = rival_adapter:RivalAdapter")
    code = (
        WRAP
        + """
from seenn_plugin.errors import AdapterError
try:
    EarlyExitWrapper(model, timesteps=4)
except AdapterError as error:
    print(error)
for name in ("rival", "toy_rnn"):
    snn = EarlyExitWrapper(model, timesteps=4, adapter=name)
    snn(x)
    print(snn.adapter.name)
"""
    )
    error, *chosen = python(code, tmp_path, installed).splitlines()
    assert "ToyRnn is claimed by several adapters ('rival', 'toy_rnn')" in error
    assert "adapter='rival'" in error
    assert chosen == ["rival", "toy_rnn"]


def test_an_adapter_is_used_without_being_installed(monkeypatch):
    import torch

    from seenn_plugin import EarlyExitWrapper
    from seenn_plugin.errors import AdapterError

    monkeypatch.syspath_prepend(SOURCE)
    from toy_rnn_adapter import ToyRnnAdapter, make_model

    model, x = make_model(), torch.randn(3, 6, dtype=torch.float64)
    with pytest.raises(AdapterError, match="no adapter claims ToyRnn"):
        EarlyExitWrapper(model, timesteps=4)
    by_class = EarlyExitWrapper(model, "fixed", timesteps=4, adapter=ToyRnnAdapter)
    by_instance = EarlyExitWrapper(model, "fixed", timesteps=4, adapter=ToyRnnAdapter(model))
    assert torch.equal(by_class(x), by_instance(x))
