"""Splitting ``forward`` at its time loop: syntax that the zoo does not reach, and what people do with wrappers."""

from __future__ import annotations

import copy
import pickle
import threading
from functools import wraps
from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import InputError, ModelRefused, ReadoutError
from seenn_plugin.inputs import InputBatch
from seenn_plugin.policies import ConfidencePolicy, FixedPolicy
from seenn_plugin.stepping.time_loop import read_source

from .invariants import PrescribedPolicy

FEATURES, CLASSES, STEPS, ROWS = 9, 3, 5, 4


def fire(distance: Tensor) -> Tensor:
    """A spike function that can be pickled; snnTorch's own cannot."""
    return (distance > 0).to(distance)


class Net(nn.Module):
    """Layers, for the loops below."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(5)
            self.fc1, self.fc2 = nn.Linear(FEATURES, 12), nn.Linear(12, CLASSES)
        self.lif1 = snntorch.Leaky(beta=0.9, threshold=0.2, spike_grad=fire)
        self.lif2 = snntorch.Leaky(beta=0.8, threshold=0.1, spike_grad=fire)
        self.eval()

    def start(self) -> tuple[Tensor, Tensor]:
        return self.lif1.init_leaky(), self.lif2.init_leaky()

    def one(self, x: Tensor, mem1: Tensor, mem2: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        spk1, mem1 = self.lif1(self.fc1(x), mem1)
        spk2, mem2 = self.lif2(self.fc2(spk1), mem2)
        return spk2, mem1, mem2


class Plain(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for _ in range(STEPS):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            rec.append(spk)
        return torch.stack(rec)


def scaled(forward: Any) -> Any:
    @wraps(forward)
    def inner(self: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            return forward(self, x)

    return inner


def make_odd_classes(gain: float) -> list[type[Net]]:
    """Classes with a variable of this function around them."""

    class WithClosure(Net):
        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.start()
            rec = []
            for _ in range(STEPS):
                spk, mem1, mem2 = self.one(gain * x, mem1, mem2)
                rec.append(spk)
            return torch.stack(rec)

    class WithSuper(Net):
        def start(self) -> tuple[Tensor, Tensor]:
            return super().start()

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = super().start()
            rec = []
            for _ in range(STEPS):
                spk, mem1, mem2 = super().one(x, mem1, mem2)
                rec.append(spk)
            return torch.stack(rec)

    class WithPrivateNames(Net):
        def __init__(self) -> None:
            super().__init__()
            self.__gain = 1.1

        def forward(self, x: Tensor) -> Tensor:
            __mems = self.start()
            rec = []
            for _ in range(STEPS):
                spk, *__mems = self.one(self.__gain * x, *__mems)
                rec.append(spk)
            return torch.stack(rec)

    class InABranch(Net):
        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.start()
            rec: list[Tensor] = []
            if x.ndim == 2:
                x = x * 1.0
                for _ in range(STEPS):
                    spk, mem1, mem2 = self.one(x, mem1, mem2)
                    rec.append(spk)
                out = torch.stack(rec)
            else:
                out = x
            return out + 0.0

    class SkipsSteps(Net):
        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.start()
            out = torch.zeros(len(x), CLASSES)
            for t in range(STEPS):
                spk, mem1, mem2 = self.one(x, mem1, mem2)
                if t % 2:
                    continue
                out = out + spk
            return out

    class Decorated(Net):
        @scaled
        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.start()
            rec = []
            for _ in range(STEPS):
                spk, mem1, mem2 = self.one(x, mem1, mem2)
                rec.append(spk)
            return torch.stack(rec)

    class DividesInPlace(Net):
        """The statements behind the loop change the very tensor that the loop goes on with."""

        def forward(self, x: Tensor) -> Tensor:
            mem1, mem2 = self.start()
            total = torch.zeros(len(x), CLASSES)
            for _ in range(STEPS):
                spk, mem1, mem2 = self.one(x, mem1, mem2)
                total += spk
            total /= STEPS
            return total

    class ForgetsBehind(Net):
        """The statements behind the loop throw the state in the modules away."""

        def __init__(self) -> None:
            super().__init__()
            self.lif1 = snntorch.Leaky(beta=0.9, threshold=0.2, init_hidden=True)

        def forward(self, x: Tensor) -> Tensor:
            mem2 = self.lif2.init_leaky()
            rec = []
            for _ in range(STEPS):
                spk, mem2 = self.lif2(self.fc2(self.lif1(self.fc1(x))), mem2)
                rec.append(spk)
            self.lif1.reset_mem()
            return torch.stack(rec)

    return [
        WithClosure,
        WithSuper,
        WithPrivateNames,
        InABranch,
        SkipsSteps,
        Decorated,
        DividesInPlace,
        ForgetsBehind,
    ]


def rows(n: int = ROWS) -> Tensor:
    return torch.rand(n, FEATURES, generator=torch.Generator().manual_seed(2))


def never(n: int = ROWS) -> PrescribedPolicy:
    return PrescribedPolicy((STEPS,) * n)


def counted(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        own = model(x)
    return own.sum(0) if own.ndim == 3 else own


@pytest.mark.parametrize("kind", make_odd_classes(1.3), ids=lambda kind: kind.__name__)
def test_odd_syntax_is_split_into_the_same_computation(kind):
    model, x = kind(), rows()
    wanted = counted(model, x)
    assert wanted.any(), "a silent network shows nothing"
    snn = EarlyExitWrapper(model, never())
    before = Snapshot(model)
    assert torch.equal(snn(x), wanted)
    before.assert_unchanged("a run")
    exits = (2, STEPS, 1, 3)
    snn.policy = PrescribedPolicy(exits)
    result = snn.infer(x)
    assert result.steps_executed == sum(exits)
    trace = snn.trace(x)
    for row, t in enumerate(exits):
        assert torch.equal(result.logits[row], trace[t - 1, row])
        alone = EarlyExitWrapper(kind(), PrescribedPolicy((t,)))
        assert torch.allclose(alone(x[row : row + 1])[0], result.logits[row], atol=1e-6)


def test_the_number_of_timesteps_is_that_of_the_loop_and_no_more_can_be_asked_for():
    snn = EarlyExitWrapper(Plain(), "fixed")
    assert snn.trace(rows()).shape == (STEPS, ROWS, CLASSES)
    assert EarlyExitWrapper(Plain(), "fixed", timesteps=2).trace(rows()).shape == (2, ROWS, CLASSES)
    with pytest.raises(InputError, match=f"timesteps={STEPS + 1}.*Plain makes {STEPS}"):
        EarlyExitWrapper(Plain(), "fixed", timesteps=STEPS + 1).infer(rows())


def test_chunks_are_made_of_single_passes():
    x = rows()
    whole, chunked = (EarlyExitWrapper(Plain(), PrescribedPolicy((1, 3, 5, 2)), chunk=chunk) for chunk in (1, 2))
    assert torch.equal(whole.infer(x).logits, chunked.infer(x).logits)
    assert chunked.infer(x).steps_executed == 2 + 4 + 5 + 2


def test_one_answer_cannot_be_read_as_outputs_of_single_timesteps():
    kind = next(kind for kind in make_odd_classes(1.0) if kind.__name__ == "DividesInPlace")
    with pytest.raises(ReadoutError, match="one prediction for all timesteps"):
        EarlyExitWrapper(kind(), never(), readout="sum").infer(rows())


def test_explain_says_where_the_loop_is_and_what_was_checked():
    page = str(EarlyExitWrapper(Plain(), never()).explain(rows()))
    line = read_source(Plain()).tree.body[2].lineno
    for said in (f"for _ in range(STEPS) ({__file__}:{line})", "5 timesteps", "records rec", "mem1 (rows on dim 0)"):
        assert said in page
    for check, rows_compared in {
        "repeatable": 6,
        "whole": 3,
        "alone": 6,
        "whole, driven": 1,
        "alone, driven": 6,
    }.items():
        assert f"{check}: {rows_compared} of {rows_compared} rows equal" in page


def test_a_copy_and_a_pickle_of_the_wrapper_look_again():
    x = rows()
    snn = EarlyExitWrapper(Plain(), PrescribedPolicy((1, 2, 3, 4)))
    wanted = snn.infer(x)
    for other in (copy.deepcopy(snn), pickle.loads(pickle.dumps(snn))):
        assert other.model is not snn.model
        assert torch.equal(other.infer(x).logits, wanted.logits)
        with torch.no_grad():
            other.model.fc2.weight.zero_()
            other.model.fc2.bias.zero_()
        assert not other.infer(x).logits.any()
    assert torch.equal(snn.infer(x).logits, wanted.logits)


def test_two_threads_with_two_models_do_not_meet():
    x, found, errors = rows(), {}, []
    models = {gain: make_odd_classes(gain)[0]() for gain in (0.5, 1.5)}
    wanted = {gain: counted(model, x) for gain, model in models.items()}
    assert not torch.equal(wanted[0.5], wanted[1.5])
    wrappers = {gain: EarlyExitWrapper(model, never()) for gain, model in models.items()}
    for snn in wrappers.values():  # a first look seeds the generator of the whole process
        snn.infer(x)

    def work(gain: float) -> None:
        try:
            found[gain] = [wrappers[gain](x) for _ in range(30)]
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(gain,)) for gain in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for gain, answers in found.items():
        assert all(torch.equal(answer, wanted[gain]) for answer in answers)


def test_a_pass_that_raises_leaves_rows_and_model_whole():
    model, x = Plain(), rows()
    snn = EarlyExitWrapper(model, never())
    wanted = snn.infer(x).logits
    rows_in_flight = snn.adapter.begin(InputBatch(x))
    snn.adapter.advance(rows_in_flight, 2)
    before = Snapshot(model)
    handle = model.fc2.register_forward_pre_hook(lambda *_: 1 / 0)
    inside = Snapshot(model)
    with pytest.raises(ZeroDivisionError):
        snn.adapter.advance(rows_in_flight, 2)
    inside.assert_unchanged("a pass that raised")
    handle.remove()
    before.assert_unchanged("a pass that raised")
    snn.adapter.advance(rows_in_flight, STEPS - 2)
    assert rows_in_flight.clock.tolist() == [STEPS] * ROWS
    assert torch.equal(snn.infer(x).logits, wanted)


def test_a_source_that_was_edited_after_it_was_loaded_is_refused(tmp_path, monkeypatch):
    text = """
import torch, snntorch
from torch import nn


class Edited(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lif = nn.Linear(9, 3), snntorch.Leaky(beta=0.9)

    def forward(self, x):
        mem = self.lif.init_leaky()
        rec = []
        for _ in range(4):
            spk, mem = self.lif(self.fc(x), mem)
            rec.append(spk)
        return torch.stack(rec)
"""
    file = tmp_path / "edited_model.py"
    file.write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    from edited_model import Edited  # pyright: ignore[reportMissingImports]

    assert EarlyExitWrapper(Edited().eval(), "fixed").trace(rows()).shape == (4, ROWS, 3)
    file.write_text(text.replace("self.lif(self.fc(x), mem)", "self.lif(2 * self.fc(x), mem)"))
    with pytest.raises(ModelRefused, match="edited after it was loaded"):
        EarlyExitWrapper(Edited().eval(), "fixed", timesteps=4).infer(rows())


# -- habits of published networks -----------------------------------------------------------------------------------


class TwiceInAHelper(Net):
    """A method calls one neuron twice, as a recurrent block that is evaluated twice in a timestep does."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(6)
            self.mix = nn.Linear(12, 12)

    def hidden(self, x: Tensor, mem: Tensor) -> tuple[Tensor, Tensor]:
        spk, mem = self.lif1(self.fc1(x), mem)
        return self.lif1(self.mix(spk), mem)

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for _ in range(STEPS):
            spk, mem1 = self.hidden(x, mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(spk)
        return torch.stack(rec)


class CountsAndLogs(Net):
    """Keeps a count that sums over rows, and a log that grows with every call; neither has a part in the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[float] = []
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        self.count = 0.0
        for _ in range(STEPS):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            self.count += spk.sum()
            rec.append(spk)
        out = torch.stack(rec)
        self.log.append(out.mean().item())
        self.calls += 1
        return out


class ToldTheDevice(Net):
    def forward(self, frames: Tensor, device: torch.device) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for t in range(frames.size(0)):
            spk, mem1, mem2 = self.one(frames[t].to(device), mem1, mem2)
            rec.append(spk)
        return torch.stack(rec)


class ToldTheTime(Net):
    def forward(self, x: Tensor, time: int) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for _ in range(time):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            rec.append(spk)
        return torch.stack(rec)


class Maps(nn.Module):
    """Answers with a map of classes: ``[N, C, H, W]``."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(7)
            self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.lif = snntorch.Leaky(beta=0.9, threshold=0.2, spike_grad=fire)
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        mem = self.lif.init_leaky()
        rec = []
        for _ in range(STEPS):
            spk, mem = self.lif(self.conv(x), mem)
            rec.append(spk)
        return torch.stack(rec).mean(0)


class SwapsWeights(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for t in range(STEPS):
            if t == 2:
                self.fc1.weight = nn.Parameter(2 * self.fc1.weight.detach())
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            rec.append(spk)
        return torch.stack(rec)


class SideBySide(Net):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for _ in range(STEPS):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            rec.append(spk)
        return torch.cat(rec, 1)


@pytest.mark.parametrize("kind", [TwiceInAHelper, CountsAndLogs])
def test_habits_that_have_no_part_in_the_answer_are_taken(kind):
    model, x = kind(), rows()
    before = Snapshot(model)
    snn = EarlyExitWrapper(model, PrescribedPolicy((2, STEPS, 1, 3)))
    for _ in range(2):
        result = snn.infer(x)
        before.assert_unchanged("a run")
    own = kind()(x).cumsum(0)
    for row, t in enumerate((2, STEPS, 1, 3)):
        assert torch.equal(result.logits[row], own[t - 1, row])


def test_arguments_of_forward_that_say_where_and_how_long():
    x = rows()
    with torch.no_grad():
        wanted = ToldTheTime()(x, STEPS).cumsum(0)
    told = EarlyExitWrapper(ToldTheTime(), "fixed", timesteps=STEPS)
    assert torch.equal(told.trace(x), wanted)
    placed = EarlyExitWrapper(ToldTheDevice(), "fixed", input="sequence")
    assert torch.equal(placed.trace(torch.stack([x] * STEPS)), wanted)


def test_an_answer_of_a_higher_rank_is_read_by_the_callers_function():
    model, x = Maps(), torch.rand(ROWS, 1, 4, 4, generator=torch.Generator().manual_seed(3))
    snn = EarlyExitWrapper(model, never(), readout=lambda outputs: outputs.mean(0).mean((2, 3)))
    with torch.no_grad():
        assert torch.allclose(snn(x), model(x).mean((2, 3)), atol=1e-6)
    with pytest.raises(ReadoutError, match="readout=function"):
        EarlyExitWrapper(Maps(), never()).infer(x)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [(SwapsWeights, "assigns its parameter weight in forward"), (SideBySide, "of the same shape for any number")],
)
def test_habits_that_rows_cannot_leave_are_refused_with_the_reason(kind, reason):
    model = kind()
    before = Snapshot(model)
    with pytest.raises(ModelRefused, match=reason):
        EarlyExitWrapper(model, never()).infer(rows())
    before.assert_unchanged("a refusal")


class DividesByT(Net):
    def __init__(self, steps: int = STEPS) -> None:
        super().__init__()
        self.num_steps = steps

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        total = 0
        for _ in range(self.num_steps):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            total = total + spk
        return total / self.num_steps


class DividesByLength(Net):
    def forward(self, x: Tensor) -> Tensor:
        steps = x.size(1)
        mem1, mem2 = self.start()
        rec = []
        for t in range(steps):
            spk, mem1, mem2 = self.one(x[:, t], mem1, mem2)
            rec.append(spk)
        return sum(rec) / x.shape[1]


def test_an_answer_divided_by_the_timesteps_is_that_of_the_network_run_for_t():
    x = rows()
    with torch.no_grad():
        trace = EarlyExitWrapper(DividesByT(), never()).trace(x)
        for t in range(1, STEPS + 1):
            assert torch.allclose(trace[t - 1], DividesByT(t)(x), atol=1e-6)
        frames = torch.stack([x * (1 + t) for t in range(STEPS)], 1)
        trace = EarlyExitWrapper(DividesByLength(), never(), input="sequence", time_dim=1).trace(frames)
        for t in range(1, STEPS + 1):
            assert torch.allclose(trace[t - 1], DividesByLength()(frames[:, :t]), atol=1e-6)


class CountsInALocal(Net):
    """Counts spikes over all rows beside its answer, and returns the count."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        mem1, mem2 = self.start()
        rec, count = [], 0.0
        for _ in range(STEPS):
            spk, mem1, mem2 = self.one(x, mem1, mem2)
            count = count + spk.sum()
            rec.append(spk)
        return torch.stack(rec), count / x.size(0)


class NeedsTheCount(CountsInALocal):
    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec, count = [], 0.0
        for _ in range(STEPS):
            spk, mem1, mem2 = self.one(x - 0.01 * count, mem1, mem2)
            count = count + spk.sum()
            rec.append(spk)
        return torch.stack(rec)


def test_a_count_over_all_rows_is_left_out_where_the_answer_does_not_need_it():
    x = rows()
    model = CountsInALocal()
    snn = EarlyExitWrapper(model, PrescribedPolicy((2, STEPS, 1, 3)))
    result = snn.infer(x)
    with torch.no_grad():
        own = model(x)[0].cumsum(0)
    for row, t in enumerate((2, STEPS, 1, 3)):
        assert torch.equal(result.logits[row], own[t - 1, row])
    with pytest.raises(ModelRefused, match=r"count cannot be split into rows|other rows share its batch"):
        EarlyExitWrapper(NeedsTheCount(), never()).infer(x)


class AsManyRowsAsTimesteps(Net):
    """Runs over dimension 1; behind the loop dimension 0, the rows, is used, and is no number of timesteps."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2 = self.start()
        rec = []
        for frame in x.unbind(1):
            spk, mem1, mem2 = self.one(frame, mem1, mem2)
            rec.append(spk)
        return torch.stack(rec).sum(0).view(x.shape[0], -1)


def test_the_number_of_rows_is_not_taken_for_that_of_the_passes():
    frames = torch.stack([rows(6) * (1 + t) for t in range(6)], 1)  # the checks run six rows
    snn = EarlyExitWrapper(AsManyRowsAsTimesteps(), PrescribedPolicy((6, 2, 6)), input="sequence", time_dim=1)
    with torch.no_grad():
        assert torch.equal(snn.trace(frames)[-1], AsManyRowsAsTimesteps()(frames))
        result = snn.infer(frames[:3])
        assert torch.equal(result.logits[1], AsManyRowsAsTimesteps()(frames[1:2, :2])[0])


def test_sequences_of_other_lengths_are_looked_at_once_each(monkeypatch):
    from seenn_plugin.adapter import module_adapter

    looks = []
    discover = module_adapter.discover
    monkeypatch.setattr(module_adapter, "discover", lambda *a: looks.append(a) or discover(*a))
    snn = EarlyExitWrapper(DividesByLength(), "fixed", input="sequence", time_dim=1)
    frames = torch.stack([rows() * (1 + t) for t in range(STEPS)], 1)
    with torch.no_grad():
        for length in (STEPS, 3, STEPS, 3):
            answer = snn.trace(frames[:, :length])
            assert answer.shape[0] == length
            assert torch.allclose(answer[-1], DividesByLength()(frames[:, :length]), atol=1e-6)
    assert len(looks) == 2


# -- a warm-up ------------------------------------------------------------------------------------------------------


class WarmUp(nn.Module):
    """The first timesteps are not counted."""

    first = 4

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.fc1, self.lif1 = nn.Linear(7, 12), snntorch.Leaky(0.8, threshold=0.4)
        self.fc2, self.lif2 = nn.Linear(12, 3), snntorch.Leaky(0.9, threshold=0.3)

    def forward(self, x):
        mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for t in range(8):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            if t >= 3:
                rec.append(spk)
        return torch.stack(rec).sum(0)


class WarmUpFromZeros(WarmUp):
    """As the refusal advises."""

    def forward(self, x):
        mem1, mem2, out = self.lif1.init_leaky(), self.lif2.init_leaky(), torch.zeros(x.shape[0], 3)
        for t in range(8):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            if t >= 3:
                out = out + spk
        return out


@torch.no_grad()
def test_a_warm_up_is_refused_with_advice_that_works():
    x = 3 * torch.rand(6, 7)
    with pytest.raises(
        ModelRefused, match=r"after timestep 1: .* warm-up.*FixedPolicy\(first\) & ConfidencePolicy\(\)"
    ):
        EarlyExitWrapper(WarmUp().eval()).infer(x)
    own = WarmUp().eval()(x)
    assert own.std(0).max() > 0, "the rows are alike"
    model = WarmUpFromZeros().eval()
    snn = EarlyExitWrapper(model, FixedPolicy(model.first) & ConfidencePolicy(0.5, temperature=1.0))
    assert torch.equal(snn.trace(x)[-1], own)
    exits = snn.infer(x).timesteps
    assert int(exits.min()) >= model.first
    assert int(exits.min()) < 8
