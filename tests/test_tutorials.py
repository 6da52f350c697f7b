"""The notebooks of ``docs/tutorials``: committed without outputs, and run from top to bottom in a real kernel."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import nbformat
import pytest

from . import kernel

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"

# What must hold when a notebook has run, in terms of its own variables.
SPIKES = """
from spikingjelly.activation_based import functional, neuron

def spike_rates(model, x):
    rates = []
    note = lambda module, inputs, output: rates.append(output.float().mean().item())
    handles = [m.register_forward_hook(note) for m in model.modules() if isinstance(m, neuron.BaseNode)]
    with torch.no_grad():
        outputs = model(x)
    functional.reset_net(model)
    for handle in handles:
        handle.remove()
    assert rates and all(0.01 < rate < 0.99 for rate in rates), rates
    return outputs

def assert_own_answers(snn, x, frames, means):
    outputs = spike_rates(snn.model, frames)
    steps = torch.arange(1, len(outputs) + 1)[:, None, None]
    own = outputs.cumsum(0) / steps if means else outputs.cumsum(0)
    with torch.no_grad():
        result, trace = snn.infer(x), snn.trace(x)
    torch.testing.assert_close(trace, own, rtol=1e-4, atol=1e-5)
    rows = torch.arange(len(result.logits))
    torch.testing.assert_close(result.logits, own[result.timesteps - 1, rows], rtol=1e-4, atol=1e-5)
    assert len(torch.unique(own[-1], dim=0)) == len(rows)
"""
CHECKS = {
    "spikingjelly_images": SPIKES
    + """
x = images[test][:32]
assert_own_answers(snn, x, x.repeat(T, 1, 1, 1, 1), means=True)
assert report.accuracy > 0.9 and report.accuracy > report.full_accuracy - 0.03
assert 1 < report.mean_timesteps < T / 2 and report.row_steps == sum(t * n for t, n in enumerate(report.histogram, 1))
assert report.agreement > 0.99
""",
    "snntorch_loop": """
with torch.no_grad():
    spikes, _ = model(x)
    assert torch.equal(snn.trace(x), spikes.cumsum(0))
assert 0.01 < spikes.mean() < 0.99
assert torch.equal(result.logits, spikes.cumsum(0)[result.timesteps - 1, torch.arange(len(x))])
assert len(torch.unique(result.logits, dim=0)) > 30 and len(result.timesteps.unique()) > 4
assert report.accuracy > 0.88 and report.accuracy > report.full_accuracy - 0.04
assert 1 < report.mean_timesteps < model.num_steps / 2
""",
    "event_stream": SPIKES
    + """
x = test[0][:32].transpose(0, 1)
assert_own_answers(snn, x, x, means=False)
assert report.accuracy > 0.85 and report.accuracy > report.full_accuracy - 0.04
assert 1 < report.mean_timesteps < T * 0.7
assert stream.steps_executed == sum(item.timesteps for item in items)
assert [item.key for item in items] == [f"sequence {i}" for i in range(500)]
assert exits[group == 4].mean() < exits[group == 0].mean() - 1
""",
    "learned_policy": SPIKES
    + """
x, _ = next(iter(loader("test")))
for snn in (threshold, planned):
    assert_own_answers(snn, x[:32], x[:32].repeat(T, 1, 1, 1, 1), means=True)
assert planned.policy_fit.chosen.mean_timesteps <= BUDGET and threshold.calibration.chosen.mean_timesteps <= BUDGET
assert torch.equal(planned.infer(x).timesteps, plan.timesteps) and len(plan.timesteps.unique()) > 1
assert by_plan.policy_cost.share_of_operations <= 0.01
# What the text says of them.
for report in (by_threshold, by_plan):
    static = report.accuracy_per_timestep
    assert report.mean_timesteps < 2
    assert report.accuracy > static[0] + (report.mean_timesteps - 1) * (static[1] - static[0]) + 0.01
assert abs(by_threshold.accuracy - by_plan.accuracy) < 0.03
""",
}


def read(name: str) -> Any:
    return nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)


def test_every_tutorial_is_run():
    assert {path.stem for path in FOLDER.glob("*.ipynb")} == set(CHECKS)


@pytest.mark.parametrize("name", CHECKS)
def test_a_tutorial_is_committed_clean(name):
    notebook = read(name)
    nbformat.validate(notebook)
    assert all(not cell.outputs and cell.execution_count is None for cell in notebook.cells if cell.cell_type == "code")
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    title = notebook.cells[0].source
    assert title.startswith("# ")
    assert "This tutorial" in title
    assert "Where to go from here" in notebook.cells[-1].source
    others = {f"`{path.name}`" for path in FOLDER.glob("*.ipynb")}
    named = {word for cell in notebook.cells for word in cell.source.replace("(", " ").replace(")", " ").split()}
    assert {word for word in named if word.endswith(".ipynb`")} <= others


@pytest.mark.parametrize("name", CHECKS)
def test_a_tutorial_runs(name, tmp_path, monkeypatch):
    notebook = read(name)
    check = nbformat.v4.new_code_cell(CHECKS[name])
    notebook.cells.append(check)
    kernel.run(notebook, tmp_path, monkeypatch)
    outputs = list(itertools.chain.from_iterable(cell.outputs for cell in notebook.cells if cell.cell_type == "code"))
    shown = [output for output in outputs if output.output_type == "display_data"]
    assert any("image/png" in output.data for output in shown)
    assert not [output.text for output in outputs if output.get("name") == "stderr"]
    assert not [output for output in outputs if output.output_type == "execute_result"]
