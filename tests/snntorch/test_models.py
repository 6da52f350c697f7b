"""Every snnTorch neuron, in each of the forms in which one-step networks are written, through every invariant."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper

from ..invariants import (
    Case,
    Rule,
    check_alone,
    check_guest,
    check_prefix,
    check_saved,
    check_slots,
    check_whole,
    prescribed,
)
from ..reference import run_snntorch
from ..snntorch_nets import FORMS, NEURONS, STATES, NetSpec, build, layers_of

T, N = 5, 4
EXITS = prescribed(2, 5, 1, 2)
# These two make their states in float32 whatever the weights are: rows are then equal up to rounding alone.
FLOAT32 = ("SLSTM", "SConv2dLSTM")

SETTINGS = [
    pytest.param(name, form, chunk, id=f"{name} {form} chunk {chunk}")
    for name in NEURONS
    for form in FORMS
    for chunk in (1, 2)
    if name in STATES or form in ("sequential", "hidden")
]
each_model = pytest.mark.parametrize(("name", "form", "chunk"), SETTINGS)


@cache
def _case(name: str, form: str, chunk: int) -> Case:
    dtype = torch.float32 if name in FLOAT32 else torch.float64
    kind = "conv" if name == "SConv2dLSTM" else "fc"
    spec = NetSpec(kind, name, form, membrane=chunk == 1, seed=7, dtype=dtype)
    generator = torch.Generator().manual_seed(7)
    frames = torch.randn(8, 16, *spec.row, generator=generator, dtype=dtype)
    model = build(spec, frames)
    sequence = form in ("hidden", "optional")
    case = Case(
        model=model,
        run=run_snntorch,
        inputs=frames[:T, :N].clone() if sequence else frames[0, :N].clone(),
        timesteps=T,
        layers=layers_of(model),
        sequence=sequence,
        chunk=chunk,
        readout="membrane" if chunk == 1 else "sum",
    )
    case.wrapper = case.wrap(EXITS)
    return case


@pytest.fixture
def case(name, form, chunk) -> Case:
    return _case(name, form, chunk)


def _margin_rule(case: Case) -> Rule:
    """A margin rule under which some rows leave early and some do not, with no score near its threshold."""
    top = case.trace.softmax(-1).topk(2, -1).values
    margin = (top[..., 0] - top[..., 1])[:-1].flatten().sort().values
    inner = margin[margin.numel() // 4 :]
    gap = int(inner.diff().argmax())
    return Rule("margin", {"threshold": float(inner[gap : gap + 2].mean()), "temperature": 1.0})


@each_model
def test_whole(case):
    check_whole(case)


@each_model
def test_prefix(case):
    rule = _margin_rule(case)
    assert min(case.exits(rule)) < T, "no row leaves early"
    check_prefix(case, rule)


@each_model
def test_alone(case):
    check_alone(case, EXITS, [3, 0, 1])


@each_model
def test_alone_in_places_that_others_had(case):
    check_slots(case, EXITS, slots=2)


@each_model
def test_guest(case):
    other = _case("Leaky", "sequential", 1)
    with torch.no_grad():
        run_snntorch(other.model, torch.stack([other.inputs] * 2))
    others = [other.model] if case is not other else []
    check_guest(replace(case, wrapper=None), EXITS, failing_call=2, others=others)


@each_model
def test_saved(case):
    check_saved(case, EXITS)


def test_an_lstm_that_forgets_is_reproduced_with_a_warning():
    """snnTorch's SLSTM compares its state with the input's shape: with another hidden size it starts anew each step."""
    import snntorch

    torch.manual_seed(3)
    lstm = snntorch.SLSTM(6, 4, init_hidden=True, threshold=0.05)
    model = nn.Sequential(lstm, nn.Linear(4, 3), snntorch.Leaky(beta=0.9, init_hidden=True, output=True)).eval()
    inputs = torch.randn(3, 6)
    with pytest.warns(UserWarning, match="forgets its state"):
        snn = EarlyExitWrapper(model, "fixed", timesteps=T, readout="membrane")
    case = Case(model, run_snntorch, inputs, T, [], readout="membrane", wrapper=snn)
    check_whole(case)
