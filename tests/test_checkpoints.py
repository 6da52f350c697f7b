"""What is trained and shipped: every network loads, is taken as it is, and its page is that of its card."""

import json
from pathlib import Path

import pytest
import torch

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.checkpoints.card import page, read_card
from seenn_plugin.checkpoints.pretrained import Pretrained
from seenn_plugin.study import write_results

ROOT = Path(__file__).parent.parent
FOLDERS = sorted(path.parent for path in (ROOT / "checkpoints").glob("*/card.json"))
RUNS = sorted((ROOT / "results").glob("*.json"))
# The shape of one input of each data set.
INPUTS = {
    "seenn_plugin.data:cifar10": (3, 32, 32),
    "seenn_plugin.data:mnist": (1, 28, 28),
    "seenn_plugin.data:braille": (256, 12),
    "seenn_spikingjelly.data:nmnist": (10, 2, 34, 34),
}
MOST_BYTES = 12 * 2**20


def test_there_are_some():
    assert FOLDERS
    assert RUNS


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_checkpoint_loads_and_exits_early(folder):
    assert (folder / "weights.safetensors").stat().st_size <= MOST_BYTES
    net = Pretrained.load(folder)
    snn = EarlyExitWrapper(net.model, **net.card.wrapper)
    x = torch.rand(5, *INPUTS[net.card.loader])
    assert snn.explain(x).refused is None
    trace = snn.trace(x)
    assert len(trace) == len(net.card.accuracy["test"]) == len(net.card.accuracy["validation"])
    result = snn.infer(x)
    expected = trace[result.timesteps - 1, torch.arange(5)]
    torch.testing.assert_close(result.logits, expected)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_page_of_a_checkpoint_is_that_of_its_card(folder):
    assert (folder / "README.md").read_text() == page(read_card(folder / "card.json")[0])


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_a_checkpoint_is_among_the_results(folder):
    card = json.loads((folder / "card.json").read_text())
    del card["format"]
    assert card in [json.loads(run.read_text())["card"] for run in RUNS]


def test_the_page_of_results_is_the_generated_one(tmp_path):
    write_results(RUNS, tmp_path / "results.md")
    assert (tmp_path / "results.md").read_text() == (ROOT / "docs" / "results.md").read_text()
