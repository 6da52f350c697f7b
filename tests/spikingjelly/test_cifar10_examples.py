"""The recipes of the CIFAR-10 examples run: one epoch of every stage, of narrow networks, on a few made-up images."""

import importlib
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from seenn_plugin.checkpoints.pretrained import Pretrained
from seenn_plugin.models.converted import small_quantised_resnet

from .test_networks import HAS_SPIKFORMER

EXAMPLES = Path(__file__).parents[2] / "examples"
# Module, its example, arguments of a narrow network, and timesteps.
NARROW = {
    "small SEW-ResNet": ("cifar10_sew_resnet", "EXAMPLE", {"channels": 4}, 2),
    "ResNet-19": ("cifar10_resnet19", "EXAMPLE", {"widths": [4, 4], "blocks": [1, 1], "hidden": 8}, 4),
    "Spikformer": ("cifar10_spikformer", "EXAMPLE", {"width": 32, "depth": 1, "heads": 2}, 4),
    "converted": ("cifar10_converted", "EXAMPLE", {"channels": 4}, 3),
}


@pytest.fixture(scope="module")
def modules():
    """The examples, whose names are theirs only while this file runs."""
    sys.path.insert(0, str(EXAMPLES))
    names = ["common", *(module for module, *_ in NARROW.values())]
    try:
        yield {name: importlib.import_module(name) for name in names}
    finally:
        sys.path.remove(str(EXAMPLES))
        for name in names:
            sys.modules.pop(name, None)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A folder as ``ImageFolder`` reads: noise in two classes."""
    image = pytest.importorskip("PIL.Image")
    root = tmp_path_factory.mktemp("images")
    generator = torch.Generator().manual_seed(0)
    for split, number in (("train", 10), ("test", 2)):
        for name in ("bird", "ship"):
            (root / split / name).mkdir(parents=True)
            for position in range(number):
                pixels = torch.randint(256, (32, 32, 3), generator=generator, dtype=torch.uint8)
                image.fromarray(pixels.numpy()).save(root / split / name / f"{position}.png")
    return root


def narrowed(module, name, arguments, timesteps):
    """The example with a narrow network."""
    example = getattr(module, name)
    package, _, factory = example.card.network.partition(":")
    build = getattr(importlib.import_module(package), factory)
    if factory == "small_converted_resnet":
        build = small_quantised_resnet
    card = replace(example.card, arguments=arguments, wrapper={**example.card.wrapper, "timesteps": timesteps})
    return replace(example, card=card, build=lambda: build(**arguments))


@pytest.mark.parametrize("name", NARROW)
def test_it_trains_saves_and_exits_early(name, modules, images, tmp_path, capsys):
    if name == "Spikformer" and not HAS_SPIKFORMER:
        pytest.skip("not in this version")
    module, *rest = NARROW[name]
    example = narrowed(modules[module], *rest)
    arguments = ["--data", str(images), "--out", str(tmp_path), "--epochs", "1", "--no-compile", "--workers", "0"]
    modules["common"].main(example, [*arguments, "--data-name", "noise"])
    assert "on 4 test samples of noise" in capsys.readouterr().out
    card = Pretrained.load(tmp_path).card
    assert card.samples == {"validation": 2, "test": 4}
    assert [stage.get("epochs") for stage in card.recipe[: len(example.stages)]] == [1] * len(example.stages)


def test_a_folder_that_is_named_is_taken_and_no_other(modules, monkeypatch, tmp_path):
    """Also that of here; without a name, what is shipped."""
    common, example = modules["common"], modules["cifar10_sew_resnet"].EXAMPLE
    monkeypatch.chdir(tmp_path)
    taken = []
    monkeypatch.setattr(common.Pretrained, "load", lambda folder, device: taken.append(folder) or 1 / 0)
    for named in (["."], ["there"], []):
        with pytest.raises(ZeroDivisionError):
            common.main(example, ["--data", "data", "--pretrained", *named])
    assert taken == [Path(), Path("there"), common.CHECKPOINTS / example.name]


def test_the_card_of_a_converted_network_says_what_the_conventional_one_answered(modules, images, tmp_path):
    module, *rest = NARROW["converted"]
    trained = narrowed(modules[module], *rest).trained(images, tmp_path, "cpu", 0, epochs=1)
    assert {split: len(values) for split, values in trained.card.accuracy.items()} == {"validation": 3, "test": 3}
    *_, conversion = trained.card.recipe
    assert {split: len(values) for split, values in conversion["accuracy before"].items()} == {
        "validation": 1,
        "test": 1,
    }


def test_every_example_names_the_network_that_it_builds(modules):
    """The wide ones are built without memory: nothing is run."""
    module = modules["cifar10_sew_resnet"]
    examples = [*module.EXAMPLES.values(), modules["cifar10_resnet19"].EXAMPLE]
    if HAS_SPIKFORMER:
        examples += modules["cifar10_spikformer"].EXAMPLES.values()
    for example in examples:
        package, _, factory = example.card.network.partition(":")
        with torch.device("meta"):
            named = getattr(importlib.import_module(package), factory)(**example.card.arguments)
            built = example.build()
        shapes = [{key: value.shape for key, value in model.state_dict().items()} for model in (named, built)]
        assert shapes[0] == shapes[1]
