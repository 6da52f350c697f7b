"""What exists on a CUDA device alone: fused multi-step kernels, CUDA graphs, decisions without waiting.

    SEENN_TEST_DEVICE=cuda python -m pytest tests/test_cuda.py

The invariants themselves run on another device by the same variable. Answers are compared with those of the CPU, in
float64 wherever a kernel has it, so that rounding moves no spike.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from spikingjelly.activation_based import functional
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, evaluate, measure_energy
from seenn_plugin.adapter.conformance import Snapshot
from seenn_plugin.errors import InputError
from seenn_plugin.training import Recipe, train

from . import snntorch_nets, spikingjelly_nets
from .closeness import differing_rows
from .device import DEVICE
from .invariants import PrescribedPolicy, ReadOffPolicy, read_off
from .rl_tasks import readable
from .rl_tasks import wrapped as reader
from .test_compiled_step import Loop
from .test_training import T as STEPS
from .test_training import separable, snntorch_net, spikingjelly_net

pytestmark = [
    pytest.mark.skipif(DEVICE.type != "cuda", reason="SEENN_TEST_DEVICE does not name a CUDA device"),
    pytest.mark.filterwarnings("default"),  # libraries on a GPU machine have warnings of their own
]

OLD = hasattr(functional, "set_backend")  # SpikingJelly 0.0.0.0.14
T, N = 6, 24
EXITS = tuple((3 * row + row // 5) % T + 1 for row in range(N))


# -- networks ---------------------------------------------------------------------------------------------------------


def spikingjelly(kind: str, mode: str, dtype: torch.dtype, *nodes: str) -> tuple[nn.Module, Tensor]:
    spec = spikingjelly_nets.NetSpec(kind, nodes or ("LIF", "IF"), False, mode, 11, dtype)
    frames = torch.randn(T, N, *spec.row, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return spikingjelly_nets.build(spec, frames), frames


def snntorch(form: str, dtype: torch.dtype) -> tuple[nn.Module, Tensor]:
    spec = snntorch_nets.NetSpec("conv", "Synaptic", form, False, 11, dtype)
    frames = torch.randn(T, N, *spec.row, generator=torch.Generator().manual_seed(1), dtype=dtype)
    return snntorch_nets.build(spec, frames), frames


class LongLoop(Loop):
    """The loop of T timesteps."""

    def forward(self, x: Tensor) -> Tensor:
        mem1, mem2, rec = self.lif1.init_leaky(), self.lif2.init_leaky(), []
        for _ in range(6):
            spk, mem1 = self.lif1(self.fc1(x), mem1)
            spk, mem2 = self.lif2(self.fc2(spk), mem2)
            rec.append(mem2)
        return torch.stack(rec)


def loop(_: torch.dtype) -> tuple[nn.Module, Tensor]:
    x = 2 * torch.rand(N, 7, generator=torch.Generator().manual_seed(1))  # snnTorch's spikes are float32
    return LongLoop(), x.expand(T, N, 7).contiguous()


NETS: dict[str, Callable[[torch.dtype], tuple[nn.Module, Tensor]]] = {
    "spikingjelly s": lambda dtype: spikingjelly("conv", "s", dtype),
    "spikingjelly m": lambda dtype: spikingjelly("conv", "m", dtype),
    "spikingjelly recurrent": lambda dtype: spikingjelly("fc", "m", dtype, "PLIF", "recurrent"),
    "snntorch sequential": lambda dtype: snntorch("sequential", dtype),
    "snntorch states": lambda dtype: snntorch("required", dtype),
    "snntorch loop": loop,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "check_every": {"check_every": 3},
    "graphs": {"cuda_graphs": True},
    "graphs, check_every": {"cuda_graphs": True, "check_every": 2},
    "compiled": {"compile": (4, 8)},
    "compiled graphs": {"compile": (4, 8), "cuda_graphs": True},
    "fold": {"fold": True},
    "channels-last": {"channels_last": True},
}


def wrap(model: nn.Module, static: bool, policy: Any, **options: Any) -> EarlyExitWrapper:
    how = {"timesteps": T} if static else {"input": "sequence"}
    return EarlyExitWrapper(model, policy, **how, **{"readout": "mean", **options})


@contextmanager
def strict_float32() -> Iterator[None]:
    """No TF32, which has ten bits."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


# -- every way to run gives the answers of the CPU ---------------------------------------------------------------------


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("net", NETS)
def test_rows_that_leave_and_join_answer_as_on_the_cpu(net, options):
    model, frames = NETS[net](torch.float64)
    static = net in ("spikingjelly s", "snntorch loop", "snntorch states")
    x = frames[0] if static else frames
    on_cpu = wrap(model, static, PrescribedPolicy(EXITS))
    with torch.inference_mode():
        wanted = on_cpu.infer(x)
        trace = on_cpu.trace(x)
    assert trace[-1].std(0).max() > 0, "the rows are alike"

    on_gpu = copy.deepcopy(model).to(DEVICE)
    before = Snapshot(on_gpu)
    snn = wrap(on_gpu, static, PrescribedPolicy(EXITS), **options)
    with torch.inference_mode():
        found = snn.infer(x.to(DEVICE))
        again = snn.infer(x.to(DEVICE))
    assert found.logits.device.type == "cuda"
    for result in (found, again):
        assert result.timesteps.tolist() == list(EXITS)
        assert not differing_rows(result.logits, wanted.logits)
    assert not differing_rows(snn.trace(x.to(DEVICE)), trace, 1)

    exits = [read_off(row, T) for row in x.transpose(0, 0 if static else 1)]
    snn.policy, snn.slots = ReadOffPolicy(), 5
    with torch.no_grad():
        items = list(snn.stream(x.to(DEVICE).unbind(0 if static else 1)))
    assert [item.timesteps for item in items] == exits
    rows = torch.stack([trace[t - 1, row] for row, t in enumerate(exits)])
    assert not differing_rows(torch.stack([item.logits for item in items]), rows)
    before.assert_unchanged("all calls")
    if "compile" in options or "cuda_graphs" in options:
        steps = snn.explain(x.to(DEVICE)).facts["compiled steps"]
        assert "rows equal to the model's own step" in steps, steps
        assert "none, though asked for" not in steps


@pytest.mark.parametrize("chunk", [1, 2, 3, T])
@pytest.mark.parametrize("node", ["IF", "LIF", "LIF soft reset", "PLIF"])
def test_fused_multi_step_kernels_go_on_from_the_rows_states(node, chunk):
    """CuPy (0.0.0.0.14) or Triton (2.0): float32, each chunk from where the last one stopped."""
    model, frames = spikingjelly("conv", "m", torch.float32, node, node)
    on_cpu = wrap(model, False, PrescribedPolicy(EXITS))
    on_gpu = copy.deepcopy(model).to(DEVICE)
    if OLD:
        functional.set_backend(on_gpu, "cupy")
        used = "cupy"
        try:
            with torch.inference_mode():
                on_gpu(frames.to(DEVICE))
        except AttributeError as error:
            pytest.skip(f"this generation's own run fails: {error}".splitlines()[0])  # PLIF: numpy.int
    else:
        kind = {"PLIF": "plif", "IF": "if"}.get(node, "lif")
        used = functional.neuron_implementation(kind, DEVICE)["implementation"]
    assert used in ("cupy", "triton", "cuda"), used
    with strict_float32(), torch.inference_mode():
        wanted, trace = on_cpu.infer(frames), on_cpu.trace(frames)
        snn = wrap(on_gpu, False, PrescribedPolicy(EXITS), chunk=chunk)
        found, own = snn.infer(frames.to(DEVICE)), snn.trace(frames.to(DEVICE))
        functional.reset_net(on_gpu)
        stock = on_gpu(frames.to(DEVICE)).cumsum(0) / torch.arange(1, T + 1, device=DEVICE).view(-1, 1, 1)
        functional.reset_net(on_gpu)
    assert found.timesteps.tolist() == list(EXITS)
    assert len(differing_rows(own, stock, 1)) <= 1
    # A spike at its threshold may be rounded away in one of many rows.
    assert len(differing_rows(own, trace, 1)) <= 2
    assert len(differing_rows(found.logits, wanted.logits)) <= 2


def test_single_precision_of_every_net_is_that_of_the_cpu_but_for_single_rows():
    with strict_float32(), torch.inference_mode():
        for net in NETS:
            model, frames = NETS[net](torch.float32)
            static = net == "snntorch loop"
            wanted = wrap(model, static, PrescribedPolicy(EXITS)).infer(frames[0] if static else frames)
            snn = wrap(copy.deepcopy(model).to(DEVICE), static, PrescribedPolicy(EXITS))
            found = snn.infer((frames[0] if static else frames).to(DEVICE))
            assert len(differing_rows(found.logits, wanted.logits)) <= 2, net


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}, {"compile": (8,), "cuda_graphs": True}])
def test_bfloat16_states_stay_with_their_rows(options):
    model, frames = spikingjelly("conv", "m", torch.float32)
    model.to(DEVICE)
    x = frames.to(DEVICE)
    with torch.inference_mode():
        snn = wrap(model, False, PrescribedPolicy(EXITS), autocast=torch.bfloat16, **options)
        trace = snn.trace(x)
        found = snn.infer(x)
        rows = torch.stack([trace[t - 1, row] for row, t in enumerate(EXITS)])
        near = (found.logits.float() - rows.float()).abs().amax(1) < 0.1
    assert found.timesteps.tolist() == list(EXITS)
    assert int(near.sum()) >= N - 4


# -- CUDA graphs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["spikingjelly", "snntorch"])
def test_autocast_of_the_caller_ends_and_begins_again(kind):
    """What autocast has cast lies in a cache that ends with it; a graph must not read it afterwards."""
    model, frames = (
        spikingjelly("conv", "m", torch.float32) if kind == "spikingjelly" else snntorch("sequential", torch.float32)
    )
    model.to(DEVICE)
    x = frames.to(DEVICE)
    snn = wrap(model, False, PrescribedPolicy(EXITS), cuda_graphs=True)
    plain = wrap(model, False, PrescribedPolicy(EXITS))
    with torch.no_grad():
        for _ in range(3):
            with torch.autocast("cuda", torch.bfloat16):
                found, wanted = snn.infer(x), plain.infer(x)
            junk = [torch.full((n,), float("nan"), device=DEVICE) for n in (16, 64, 256, 1024, 4096) for _ in range(50)]
            assert len(differing_rows(found.logits, wanted.logits)) <= 4
            del junk
    steps = snn.explain(x).facts["compiled steps"]
    # What TorchScript makes of several operations in bfloat16 is not recorded as it runs; the check sees it.
    assert ("differs from the model's own step" if OLD and kind == "spikingjelly" else "rows equal") in steps, steps


def test_a_graph_is_replayed_and_its_model_may_change():
    model, frames = spikingjelly("conv", "m", torch.float64)
    model.to(DEVICE)
    x = frames.to(DEVICE)
    snn = wrap(model, False, "fixed", cuda_graphs=True)
    with torch.inference_mode():
        first = snn.infer(x).logits
        assert torch.equal(snn.infer(x).logits, first)
        model[0].weight.data.mul_(1.5)
        changed = snn.infer(x).logits
        assert not differing_rows(changed, wrap(model, False, "fixed").infer(x).logits)
    assert differing_rows(changed, first)


def test_two_runs_interleave_on_one_graph():
    model, frames = spikingjelly("conv", "m", torch.float64)
    model.to(DEVICE)
    x = frames.to(DEVICE)
    snn = wrap(model, False, ReadOffPolicy(), cuda_graphs=True, slots=8)
    plain = wrap(model, False, ReadOffPolicy(), slots=8)
    with torch.no_grad():
        wanted = [item.logits for item in plain.stream(x.unbind(1))]
        one, other = snn.stream(x.unbind(1)), snn.stream(x.flip(1).unbind(1))
        pairs = [(next(one), next(other)) for _ in range(N)]
    assert not differing_rows(torch.stack([a.logits for a, _ in pairs]), torch.stack(wanted))
    assert not differing_rows(torch.stack([b.logits for _, b in pairs][::-1]), torch.stack(wanted))


def test_graphs_on_another_stream():
    model, frames = spikingjelly("conv", "m", torch.float64)
    model.to(DEVICE)
    x = frames.to(DEVICE)
    snn = wrap(model, False, PrescribedPolicy(EXITS), cuda_graphs=True)
    with torch.inference_mode():
        wanted = snn.infer(x).logits
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            found = snn.infer(x).logits
        torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(found, wanted)


# -- the host ----------------------------------------------------------------------------------------------------------


def synchronisations(call: Callable[[], Any]) -> int:
    """How often the host waits for the device during a call."""
    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            call()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return sum("synchroniz" in str(warning.message) for warning in said)


@pytest.mark.parametrize("options", [{}, {"cuda_graphs": True}])
def test_nobody_waits_between_two_decisions(options):
    """With nobody leaving before the end, a run waits where it asks who leaves, and nowhere else."""
    model, frames = spikingjelly("conv", "m", torch.float32)
    model.to(DEVICE)
    x = frames.to(DEVICE)
    waits = {}
    with torch.inference_mode():
        for every in (1, 2, 6):
            snn = wrap(model, False, "confidence", check_every=every, **options)
            snn.policy = type(snn.policy)(threshold=2.0, temperature=1.0)
            snn.infer(x)
            waits[every] = synchronisations(lambda snn=snn: snn.infer(x))
    assert waits[1] - waits[6] <= 5, waits
    assert waits[6] <= 6, waits


def test_input_on_the_cpu_is_refused_by_name():
    model, frames = spikingjelly("conv", "m", torch.float32)
    snn = wrap(model.to(DEVICE), False, "confidence")
    with pytest.raises(InputError, match=r"the input is on cpu and the model on cuda:0; move one"):
        snn.infer(frames)


# -- everything around it ----------------------------------------------------------------------------------------------


def test_calibration_evaluation_and_energy():
    model, frames = spikingjelly("conv", "m", torch.float32)
    labels = torch.arange(N) % 5
    on_cpu = wrap(copy.deepcopy(model), False, "confidence").calibrate([(frames, labels)], average_timesteps=3)
    x, y = frames.to(DEVICE), labels.to(DEVICE)
    snn = wrap(model.to(DEVICE), False, "confidence").calibrate([(x, y)], average_timesteps=3)
    assert abs(snn.policy.threshold - on_cpu.policy.threshold) < 0.05
    with torch.no_grad():
        metrics = evaluate(snn, [(x, y)])
        energy = measure_energy(snn, [(x, y)])
    assert 1 <= metrics.mean_timesteps <= 3.5
    assert energy is not None
    assert str(snn.explain(x))


def test_saved_on_one_device_and_loaded_on_another(tmp_path):
    model, frames = spikingjelly("conv", "m", torch.float64)
    snn = wrap(model, False, "confidence")
    torch.save(snn.state_dict(), tmp_path / "snn.pt")
    other = wrap(copy.deepcopy(model).to(DEVICE), False, "confidence")
    other.load_state_dict(torch.load(tmp_path / "snn.pt", map_location=DEVICE))
    moved = wrap(copy.deepcopy(model), False, "confidence")
    with torch.no_grad():
        wanted = snn.infer(frames)
        moved.infer(frames)
        moved.to(DEVICE)  # after its first look
        for one in (other, moved):
            found = one.infer(frames.to(DEVICE))
            assert torch.equal(found.timesteps.cpu(), wanted.timesteps)
            assert not differing_rows(found.logits, wanted.logits)


@pytest.mark.parametrize("amp", ["off", "bf16"])
def test_a_plan_is_fitted(amp):
    train_data, validation, test = readable(1024, 1), readable(256, 2), readable(512, 3)
    snn = reader().to(DEVICE)

    def on_gpu(data: Any) -> list[tuple[Tensor, Tensor]]:
        return [(x.to(DEVICE), y.to(DEVICE)) for x, y in data.batches()]

    snn.fit_policy(on_gpu(train_data), on_gpu(validation), beta=1.0, epochs=40, amp=amp)
    frames = test.frames.to(DEVICE)
    plan = snn.plan(frames).timesteps
    assert test.reward(plan.cpu(), beta=1.0) >= 0.9 * test.best_reward()
    result = snn.infer(frames)
    assert torch.equal(result.timesteps, plan)
    assert result.steps_executed == int(plan.sum())


@pytest.mark.parametrize("make", [spikingjelly_net, snntorch_net])
@pytest.mark.parametrize("options", [{}, {"ema": 0.9}])
def test_a_network_is_trained(make, options):
    torch.manual_seed(0)
    model, forward = make()
    validation = separable(60, seed=1)
    recipe = Recipe(epochs=12, batch_size=16, learning_rate=0.05, **options)
    model.to(DEVICE)
    epochs = train(model, forward, separable(), recipe, progress=False, validation=validation)
    assert len(epochs[-1].accuracy) == STEPS
    assert epochs[-1].accuracy[-1] > 0.9
