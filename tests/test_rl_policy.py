"""Plans: what the engine does with them, how policies combine, what is refused, and what is kept on disk."""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import dataclass, replace

import pytest
import snntorch
import torch
from hypothesis import given
from hypothesis import strategies as st
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.errors import CalibrationError, OptionalDependencyError, PolicyError
from seenn_plugin.policies import (
    AllPolicy,
    AnyPolicy,
    ConfidencePolicy,
    Decision,
    EntropyPolicy,
    FixedPolicy,
    MarginPolicy,
    PatiencePolicy,
    Plan,
    PlanPolicy,
    Policy,
    RLPolicy,
    exit_timesteps,
    make_policy,
)
from seenn_plugin.policies.planned import first_frames

from .invariants import counting
from .rl_tasks import FEATURES, T, policy_net, readable, wrapped

X = readable(40, 5).frames


@dataclass(frozen=True)
class Prescribed(PlanPolicy):
    """Plans what is written down, row by row."""

    planned: tuple[int, ...] = ()

    def plan(self, frames: Tensor, timesteps: int) -> Tensor:
        return torch.tensor(self.planned)


class Bypass(nn.Module):
    """A spiking network whose input reaches its output, so that NaN does, too."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.spikes = nn.Linear(4, 3), neuron.IFNode()

    def forward(self, x: Tensor) -> Tensor:
        y = self.fc(x)
        return self.spikes(y) + y


def static_net(framework: str) -> nn.Module:
    torch.manual_seed(0)
    if framework == "spikingjelly":
        net = nn.Sequential(layer.Linear(6, 12), neuron.LIFNode(), layer.Linear(12, 3))
        functional.set_step_mode(net, "m")
    else:
        net = nn.Sequential(nn.Linear(6, 12), snntorch.Leaky(beta=0.9, init_hidden=True), nn.Linear(12, 3))
    return net.eval()


# -- the engine follows plans -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_rows_leave_as_their_plan_ends_and_nothing_is_computed_in_vain(framework, chunk):
    """With chunks too: they are cut where a plan ends."""
    net, plan = static_net(framework), (3, 1, 6, 3, 2, 6, 1, 4)
    x = torch.randn(8, 6)
    snn = EarlyExitWrapper(net, Prescribed(planned=plan), timesteps=6, chunk=chunk)
    trace = snn.trace(x)
    snn.infer(x)  # the first look is over
    with torch.no_grad(), counting([net[0]]) as rows:
        result = snn.infer(x)
    assert rows == [sum(plan)]
    assert result.steps_executed == sum(plan)
    assert result.timesteps.tolist() == list(plan)
    torch.testing.assert_close(result.logits, trace[result.timesteps - 1, torch.arange(8)])
    assert result.score.tolist() == [1.0] * 8
    found = evaluate(snn, [(x, torch.zeros(8, dtype=torch.long))])
    assert found.agreement == 1


@given(st.lists(st.integers(1, T), min_size=1, max_size=12), st.integers(1, T))
def test_any_plan_is_followed(plan, chunk):
    snn = wrapped(Prescribed(planned=tuple(plan)))
    snn.chunk = chunk
    x = readable(len(plan), 1).frames
    result = snn.infer(x)
    assert result.timesteps.tolist() == plan
    assert result.steps_executed == sum(plan)
    assert torch.equal(result.logits, snn.trace(x)[result.timesteps - 1, torch.arange(len(plan))])


def test_a_plan_looks_at_no_logits(monkeypatch):
    from seenn_plugin.engine import leaving

    def forbidden(*arguments):
        raise AssertionError("a plan was asked about logits")

    monkeypatch.setattr(leaving, "consult", forbidden)
    wrapped().infer(X)


@pytest.mark.parametrize("chunk", [1, 3])
@pytest.mark.parametrize("combined", [False, True])
def test_rows_that_are_not_finite_run_to_the_end_and_warn(chunk, combined):
    plan = Prescribed(planned=(1, 2, 3, 4))
    policy = plan | Prescribed(planned=(5, 5, 5, 5)) if combined else plan
    snn = EarlyExitWrapper(Bypass().eval(), policy, timesteps=5, chunk=chunk, readout="sum")
    x = torch.rand(4, 4)
    snn.infer(x)
    x[1, 0] = float("nan")
    with pytest.warns(RuntimeWarning, match="1 of 4 rows had NaN"):
        result = snn.infer(x)
    assert result.timesteps.tolist() == [1, 5, 3, 4]
    assert exit_timesteps(policy, snn.trace(x), snn.plan(x)).tolist() == [1, 5, 3, 4]


def test_a_row_that_becomes_finite_after_its_plan_leaves_then():
    """As under every policy that decides after each timestep."""
    snn = EarlyExitWrapper(Bypass().eval(), FixedPolicy(2), input="sequence", readout="last")
    x = torch.rand(5, 3, 4)
    x[:3, 1] = float("nan")
    x[2, 1] = float("inf")
    fixed = snn.infer(x).timesteps
    snn.policy = Prescribed(planned=(2, 2, 2))
    assert snn.infer(x).timesteps.tolist() == fixed.tolist()


def test_the_plan_sees_the_first_frames_only():
    seen = []

    class Spy(nn.Module):
        def forward(self, x):
            seen.append(x)
            return torch.zeros(len(x), T - 1)

    snn = wrapped(RLPolicy(Spy(), frames=2))
    plan = snn.plan(X)
    assert torch.equal(seen[-1], torch.cat([X[0], X[1]], 1))
    assert plan.timesteps.tolist() == [2] * 40, "no exit before the frames that were looked at"
    torch.testing.assert_close(plan.score, torch.full((40,), 1 / (T - 1)))
    images = torch.rand(3, 2, 2, 8, 8)  # [T, N, C, H, W]
    assert torch.equal(first_frames(images, True, 2), torch.cat([images[0], images[1]], 1))
    assert torch.equal(first_frames(images[0], False, 2), images[0])


def test_no_rows_make_no_plan():
    assert len(wrapped().infer(X[:, :0])) == 0


# -- the network is a guest -------------------------------------------------------------------------------------------


def test_plans_are_made_in_evaluation_mode_without_gradients():
    net = nn.Sequential(nn.Linear(FEATURES, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, T))
    net[1].eval()
    snn = wrapped(RLPolicy(net))
    snn.model.eval()
    modes = [module.training for module in net.modules()]
    first, second = snn.infer(X), snn.infer(X)
    assert torch.equal(first.timesteps, second.timesteps)
    assert [module.training for module in net.modules()] == modes == [True, True, False, True, True]
    assert not first.score.requires_grad
    assert int(net[1].num_batches_tracked) == 0


def test_the_network_is_a_submodule_of_the_wrapper():
    snn = wrapped()
    names = [name for name in snn.state_dict() if "policy" in name]
    assert len(names) == 4
    policy = snn.policy
    assert policy.network is snn.policy_networks[0]
    snn.to(torch.float64)
    assert policy.network[0].weight.dtype == torch.float64
    result = snn.infer(X.double())
    assert result.score.dtype == torch.float64
    snn.policy = ConfidencePolicy()
    assert not [name for name in snn.state_dict() if "policy" in name]
    snn.policy = policy & ConfidencePolicy(0.1) | FixedPolicy(4)
    assert snn.policy_networks[0] is policy.network


@pytest.mark.parametrize("how", ["deepcopy", "pickle"])
@pytest.mark.parametrize("hybrid", [False, True])
def test_a_copy_plans_the_same_and_is_independent(how, hybrid):
    policy = RLPolicy(policy_net())
    snn = wrapped(policy | ConfidencePolicy(0.99, 1.0) if hybrid else policy)
    expected = snn.infer(X)
    twin = copy.deepcopy(snn) if how == "deepcopy" else pickle.loads(pickle.dumps(snn))
    held = twin.policy.members[0].network if hybrid else twin.policy.network
    assert held is twin.policy_networks[0]
    assert held is not policy.network
    assert torch.equal(twin.infer(X).timesteps, expected.timesteps)
    with torch.no_grad():
        for parameter in twin.policy_networks.parameters():
            parameter.zero_()
        held[2].bias[0] = 1.0
    assert set(twin.infer(X).timesteps.tolist()) == {1}
    assert torch.equal(snn.infer(X).timesteps, expected.timesteps)


# -- refused ----------------------------------------------------------------------------------------------------------


def test_before_it_is_fitted_the_rl_policy_says_what_to_call():
    with pytest.raises(PolicyError, match=r"no network yet: call fit_policy"):
        wrapped("rl").infer(X)
    assert make_policy("rl") == RLPolicy()


@pytest.mark.parametrize("candidates", [(), (0, 1), (2, 2), (3, 1), (1.5,), (True,), ("1",)])
def test_bad_candidates_are_refused(candidates):
    with pytest.raises(PolicyError, match="candidates must be rising integers"):
        RLPolicy(candidates=candidates)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: RLPolicy(candidates=(1, 9)), r"candidates \(1, 9\) lie beyond T=5"),
        (lambda: RLPolicy(frames=6), "first 6 frames, and the sequence has 5"),
    ],
)
def test_candidates_that_do_not_fit_the_network_are_refused(make, says):
    with pytest.raises(PolicyError, match=says):
        wrapped(replace(make(), network=policy_net())).infer(X)


def test_bad_settings_are_refused():
    with pytest.raises(PolicyError, match="earlier than the 3 frames"):
        RLPolicy(candidates=(2, 4), frames=3)
    with pytest.raises(PolicyError, match="frames must be"):
        RLPolicy(frames=0)
    with pytest.raises(PolicyError, match=r"must be a torch\.nn\.Module, not function"):
        RLPolicy(lambda x: x)


@pytest.mark.parametrize(
    ("plan", "says"),
    [
        (torch.full((40,), T + 1), "from 6 to 6; they must lie between 1 and 5"),
        (torch.zeros(40, dtype=torch.long), "from 0 to 0"),
        (torch.ones(40), r"torch.float32 \(40,\); they must be a long tensor of shape \(40,\)"),
        (torch.ones(39, dtype=torch.long), r"torch.int64 \(39,\)"),
        (torch.ones(40, 1, dtype=torch.long), r"\(40, 1\)"),
        (Plan(torch.ones(40, dtype=torch.long), torch.ones(40, dtype=torch.long)), "score as torch.int64"),
        ([1] * 40, "must return a Plan or long timesteps, not list"),
    ],
)
def test_bad_plans_are_refused(plan, says):
    class Bad(PlanPolicy):
        def plan(self, frames: Tensor, timesteps: int):
            return plan

    with pytest.raises(PolicyError, match=says):
        wrapped(Bad()).infer(X)


def test_a_plan_earlier_than_its_frames_is_refused():
    class Hasty(PlanPolicy):
        frames = 3

        def plan(self, frames: Tensor, timesteps: int) -> Tensor:
            return torch.full((len(frames),), 2)

    with pytest.raises(PolicyError, match="between 3 and 5"):
        wrapped(Hasty()).infer(X)


def test_memory_that_is_not_by_row_is_refused():
    class Odd(ConfidencePolicy):
        def start(self, *arguments):
            return torch.zeros(3)

    with pytest.raises(PolicyError, match=r"Odd.start keeps memory of shape \(3,\)"):
        wrapped(Odd()).infer(X)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (nn.Linear(FEATURES, T + 2), r"Linear gave torch.float32 \(40, 7\); .* \(40, 5\)"),
        (nn.Flatten(0), r"Flatten gave torch.float32 \(320,\)"),
    ],
)
def test_a_policy_network_of_the_wrong_shape_is_refused(wrong, says):
    with pytest.raises(PolicyError, match=says):
        wrapped(RLPolicy(wrong)).infer(X)


def test_rows_with_policy_logits_that_are_not_finite_take_all_timesteps():
    x = X.clone()
    x[0, 3] = float("nan")
    snn = wrapped()
    with pytest.warns(RuntimeWarning, match="1 of 40 rows had NaN or infinite policy logits"):
        plan = snn.plan(x)
    assert int(plan.timesteps[3]) == T
    assert float(plan.score[3]) == 0
    others = torch.arange(40) != 3
    assert torch.equal(plan.timesteps[others], snn.plan(X).timesteps[others])


def test_asked_without_a_plan_the_policy_says_so():
    with pytest.raises(PolicyError, match="plans from the input"):
        exit_timesteps(RLPolicy(policy_net()), torch.randn(4, 2, 3))


def test_the_rl_policy_is_fitted_not_calibrated():
    data = readable(40, 5)
    with pytest.raises(CalibrationError, match="fitted, not calibrated"):
        wrapped().calibrate(data.batches(), average_timesteps=2.0)
    with pytest.raises(CalibrationError, match="dial for each of its members"):
        wrapped(ConfidencePolicy() | PatiencePolicy()).calibrate(data.batches(), average_timesteps=2.0)


# -- policies combine -------------------------------------------------------------------------------------------------

MEMBERS = [
    ConfidencePolicy(0.6, 1.0),
    EntropyPolicy(0.4, 0.5),
    MarginPolicy(0.3, 1.0),
    PatiencePolicy(2),
    PatiencePolicy(3),
    FixedPolicy(3),
    Prescribed(planned=(1, 2, 3, 4, 5, 6)),
]


def stops(policy: Policy, trace: Tensor) -> Tensor:
    """What a policy says after every timestep, ``[T, N]``, leave or not."""
    memory, said = policy.start(torch.zeros(trace.shape[1], 1), False, len(trace), trace.shape[2]), []
    for t, logits in enumerate(trace, start=1):
        decision = policy.decide(logits, torch.full((len(logits),), t), memory)
        memory = decision.memory
        said.append(decision.stop)
    return torch.stack(said)


def first(said: Tensor) -> list[int]:
    timesteps = len(said)
    return [next((t for t in range(1, timesteps + 1) if said[t - 1, row]), timesteps) for row in range(said.shape[1])]


@given(st.integers(0, 10**6), st.lists(st.sampled_from(MEMBERS), min_size=2, max_size=4))
def test_any_is_the_earliest_and_all_is_the_first_agreement(seed, members):
    trace = torch.randn(6, 6, 3, generator=torch.Generator().manual_seed(seed)).cumsum(0)
    inputs = torch.zeros(6, 1)
    either, every = members[0], members[0]
    for member in members[1:]:
        either, every = either | member, every & member
    exits = {
        policy: exit_timesteps(policy, trace, policy.start(inputs, False, 6, 3)).tolist()
        for policy in {either, every, *members}
    }
    said = [stops(member, trace) for member in members]
    assert exits[either] == [min(each) for each in zip(*(exits[member] for member in members), strict=True)]
    assert exits[either] == first(torch.stack(said).any(0))
    assert exits[every] == first(torch.stack(said).all(0))
    assert all(a >= max(e) for a, e in zip(exits[every], zip(*(exits[m] for m in members), strict=True), strict=True))


def test_combinations_are_flat_values():
    a, b, c = ConfidencePolicy(0.6), PatiencePolicy(2), FixedPolicy(3)
    assert (a | b) | c == a | (b | c) == AnyPolicy((a, b, c))
    assert (a & b) & c == a & (b & c) == AllPolicy((a, b, c))
    mixed = a | (b & c)
    assert mixed.members == (a, AllPolicy((b, c)))
    assert len({a | b, a | b, b | a}) == 2
    with pytest.raises(TypeError):
        _ = a | 3
    with pytest.raises(PolicyError, match="made of policies, not of str"):
        AnyPolicy((a, "confidence"))
    with pytest.raises(PolicyError, match="at least one"):
        AllPolicy(())


def test_scores_are_those_of_the_first_that_stops_the_row():
    class Say(Policy):
        def __init__(self, stop, score):
            self.said = Decision(torch.tensor(stop), torch.tensor(score))

        def decide(self, logits, timestep, memory):
            return self.said

    one, other = Say([True, False, False, True], [1.0, 2.0, 3.0, 4.0]), Say([True, True, False, False], [5.0] * 4)
    logits, timestep = torch.zeros(4, 2), torch.ones(4, dtype=torch.long)
    decision = (one | other).decide(logits, timestep, None)
    assert decision.stop.tolist() == [True, True, False, True]
    assert decision.score.tolist() == [1.0, 5.0, 3.0, 4.0]
    decision = (one & other).decide(logits, timestep, None)
    assert decision.stop.tolist() == [True, False, False, False]
    assert decision.score.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("chunk", [1, 2])
def test_the_plan_of_a_hybrid_is_an_upper_bound(chunk):
    net = static_net("spikingjelly")
    x = 3 * torch.randn(30, 6)
    planned = tuple(torch.randint(1, 7, (30,)).tolist())
    confidence = ConfidencePolicy(0.55, 0.3)
    snn = EarlyExitWrapper(net, Prescribed(planned=planned) | confidence, timesteps=6, chunk=chunk)
    hybrid = snn.infer(x).timesteps
    snn.policy = confidence
    alone = snn.infer(x).timesteps
    assert torch.equal(hybrid, torch.minimum(torch.tensor(planned), alone))
    assert int((hybrid < torch.tensor(planned)).sum()) > 0
    assert int((hybrid < alone).sum()) > 0
    snn.policy = Prescribed(planned=planned) & confidence
    assert bool((snn.infer(x).timesteps >= torch.maximum(torch.tensor(planned), alone)).all())


def test_what_members_leave_open_is_settled():
    net = nn.Sequential(nn.Linear(6, 12), neuron.LIFNode(), nn.Linear(12, 3), neuron.LIFNode()).eval()
    snn = EarlyExitWrapper(net, FixedPolicy(6) | (ConfidencePolicy() & PatiencePolicy()), timesteps=6)
    alone = EarlyExitWrapper(net, ConfidencePolicy(), timesteps=6)
    x = torch.rand(4, 6)
    snn.infer(x)
    alone.infer(x)
    assert snn.policy.members[1].members[0] == alone.policy
    settled = snn.policy
    snn.infer(x)
    assert snn.policy is settled


def test_a_hybrid_is_fitted_and_reported():
    data = readable(256, 1)
    snn = wrapped(ConfidencePolicy(0.9999, 1.0) & FixedPolicy(1) | RLPolicy(policy_net()))
    snn.fit_policy(data.batches(), data.batches(), beta=0.3, epochs=2)
    fitted = snn.policy.members[1]
    assert fitted is snn.policy_fit.policy
    assert fitted.fitted_for.timesteps == T
    found = evaluate(snn, data.batches())
    assert found.agreement == 1
    assert found.policy_cost.operations == snn.policy_fit.policy_operations


# -- kept -------------------------------------------------------------------------------------------------------------


def fitted_wrapper(policy: Policy | str = "rl") -> EarlyExitWrapper:
    data = readable(128, 1)
    return wrapped(policy).fit_policy(data.batches(), data.batches(), beta=0.3, epochs=2, max_operations=1e6)


@pytest.mark.parametrize("own", [False, True])
def test_a_saved_policy_gives_the_same_plans(tmp_path, own):
    snn = fitted_wrapper(RLPolicy(policy_net()) if own else "rl")
    snn.policy.save(tmp_path / "made" / "policy")
    assert {path.name for path in (tmp_path / "made" / "policy").iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = RLPolicy.load(tmp_path / "made" / "policy", policy_net(seed=9) if own else None)
    assert replace(loaded, network=None) == replace(snn.policy, network=None)
    plan, expected = wrapped(loaded).plan(X), snn.plan(X)
    assert torch.equal(plan.timesteps, expected.timesteps)
    assert torch.equal(plan.score, expected.score)


def test_a_saved_policy_is_refused_where_it_does_not_fit(tmp_path):
    fitted_wrapper().policy.save(tmp_path)
    loaded = RLPolicy.load(tmp_path)
    with pytest.raises(PolicyError, match=r"fitted for T=5, and the network here has T=4"):
        wrapped(loaded).infer(X[:4])
    net = nn.Sequential(nn.Linear(FEATURES, 12), neuron.IFNode()).eval()
    with pytest.raises(PolicyError, match=r"fitted for 3 classes, and the network here has 12 classes"):
        EarlyExitWrapper(net, loaded, input="sequence").infer(X)
    with pytest.raises(PolicyError, match=r"inputs of shape \(8,\), not \(6,\)"):
        EarlyExitWrapper(static_net("spikingjelly"), loaded, timesteps=5).infer(torch.rand(2, 6))


def test_what_is_no_saved_policy_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="holds no saved policy"):
        RLPolicy.load(tmp_path / "nowhere")
    snn = fitted_wrapper()
    snn.policy.save(tmp_path)
    page = json.loads((tmp_path / "policy.json").read_text())

    def write(changed):
        (tmp_path / "policy.json").write_text(json.dumps({**page, **changed}))

    write({"format": 7})
    with pytest.raises(PolicyError, match="in format 7, not a RLPolicy in format 1"):
        RLPolicy.load(tmp_path)
    write({"settings": {**page["settings"], "architecture": {"kind": "Transformer"}}})
    with pytest.raises(PolicyError, match="unknown policy network 'Transformer'; known: ResNet8, MLP"):
        RLPolicy.load(tmp_path)
    write({"settings": {}})
    with pytest.raises(PolicyError, match="is damaged"):
        RLPolicy.load(tmp_path)
    write({})
    with pytest.raises(PolicyError, match="do not fit Linear"):
        RLPolicy.load(tmp_path, nn.Linear(2, 2))
    (tmp_path / "policy.safetensors").write_bytes(b"not weights")
    with pytest.raises(PolicyError, match="do not fit MLP"):
        RLPolicy.load(tmp_path)
    with pytest.raises(PolicyError, match="nothing to save"):
        RLPolicy().save(tmp_path)
    fitted_wrapper(RLPolicy(policy_net())).policy.save(tmp_path)
    with pytest.raises(PolicyError, match=r"network of your own: give it, RLPolicy\(network"):
        RLPolicy.load(tmp_path)


def test_missing_safetensors_is_named(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[rl\]"'):
        RLPolicy(policy_net()).save(tmp_path)


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_state_dict_brings_a_fitted_policy_back(tmp_path, hybrid):
    confident = ConfidencePolicy(0.9, 1.0)
    snn = fitted_wrapper(RLPolicy() | confident if hybrid else "rl")
    torch.save(snn.state_dict(), tmp_path / "snn.pt")
    saved = torch.load(tmp_path / "snn.pt", weights_only=True)
    other = wrapped(RLPolicy() | ConfidencePolicy(0.1) if hybrid else "rl")
    other.load_state_dict(saved)
    assert torch.equal(other.infer(X).timesteps, snn.infer(X).timesteps)
    if hybrid:
        assert other.policy.members[1] == confident
        with pytest.raises((PolicyError, RuntimeError), match="combines RLPolicy, ConfidencePolicy, this one"):
            wrapped(RLPolicy() | PatiencePolicy()).load_state_dict(saved)


def test_a_state_dict_with_a_network_of_ones_own_wants_that_network():
    snn = fitted_wrapper(RLPolicy(policy_net()))
    other = wrapped(RLPolicy(policy_net(seed=9)))
    other.load_state_dict(snn.state_dict())
    assert torch.equal(other.plan(X).timesteps, snn.plan(X).timesteps)
    with pytest.raises((PolicyError, RuntimeError), match="network of your own"):
        wrapped("rl").load_state_dict(snn.state_dict())
    with pytest.raises((PolicyError, RuntimeError), match="saved before fit_policy"):
        other.load_state_dict(wrapped("rl").state_dict())
    unfitted = wrapped("rl")
    unfitted.load_state_dict(wrapped("rl").state_dict())
    assert unfitted.policy == RLPolicy()
