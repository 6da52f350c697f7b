"""Trained networks that the distribution brings along, by name."""

from __future__ import annotations

import pytest

from seenn_plugin.checkpoints import Pretrained, packaged
from seenn_plugin.checkpoints.packaged import find
from seenn_plugin.errors import InputError


def test_the_names_of_the_clone_resolve():
    names = packaged()
    assert {"cifar10-small-sew-resnet", "mnist-snntorch"} <= set(names)
    assert all((folder / "weights.safetensors").is_file() for folder in names.values())


def test_a_name_loads_from_any_folder(tmp_path, monkeypatch):
    pytest.importorskip("safetensors")
    pytest.importorskip("snntorch")
    monkeypatch.chdir(tmp_path)
    net = Pretrained.load("mnist-snntorch")
    assert net.card.title == Pretrained.load(packaged()["mnist-snntorch"]).card.title


def test_a_folder_goes_before_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mnist-snntorch").mkdir()
    assert find("mnist-snntorch").resolve() == tmp_path / "mnist-snntorch"
    assert find("braille-snntorch") == packaged()["braille-snntorch"]


def test_another_name_is_refused_with_the_closest():
    with pytest.raises(InputError, match=r"no folder mnist-snntorc; .*Did you mean 'mnist-snntorch'\?"):
        find("mnist-snntorc")
