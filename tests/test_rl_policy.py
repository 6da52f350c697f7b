"""Plans: how the engine follows them, combinations of policies, errors, and saving."""

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
from seenn_plugin.inputs import InputBatch
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
)
from seenn_plugin.policies.base import exit_timesteps
from seenn_plugin.policies.planned import first_frames
from seenn_plugin.policies.registry import make_policy

from .invariants import counting
from .rl_tasks import FEATURES, T, policy_net, readable, wrapped

X = readable(40, 5).frames


@dataclass(frozen=True)
class Prescribed(PlanPolicy):
    """Plans given timesteps, one for each row."""

    planned: tuple[int, ...] = ()

    def plan(self, frames: Tensor, timesteps: int) -> Tensor:
        return torch.tensor(self.planned)


class Bypass(nn.Module):
    """A spiking network with a path from input to output without neurons, so that NaN reaches the output."""

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


# -- running a plan ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("framework", ["spikingjelly", "snntorch"])
@pytest.mark.parametrize("chunk", [1, 2, 3, 6])
def test_rows_exit_as_planned_without_additional_steps(framework, chunk):
    """This includes chunks, which end at the next planned exit."""
    net, plan = static_net(framework), (3, 1, 6, 3, 2, 6, 1, 4)
    x = torch.randn(8, 6)
    snn = EarlyExitWrapper(net, Prescribed(planned=plan), timesteps=6, chunk=chunk)
    trace = snn.trace(x)
    snn.infer(x)  # the first call inspects the model
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


def test_a_plan_policy_does_not_decide_on_logits(monkeypatch):
    from seenn_plugin.engine import exit_decisions

    def forbidden(*arguments):
        raise AssertionError("a plan policy was consulted")

    monkeypatch.setattr(exit_decisions, "consult", forbidden)
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


def test_a_row_that_becomes_finite_after_its_planned_exit_exits_then():
    """As with a policy that decides after each timestep."""
    snn = EarlyExitWrapper(Bypass().eval(), FixedPolicy(2), input="sequence", readout="last")
    x = torch.rand(5, 3, 4)
    x[:3, 1] = float("nan")
    x[2, 1] = float("inf")
    fixed = snn.infer(x).timesteps
    snn.policy = Prescribed(planned=(2, 2, 2))
    assert snn.infer(x).timesteps.tolist() == fixed.tolist()


def test_the_policy_network_receives_the_first_frames_only():
    received = []

    class Spy(nn.Module):
        def forward(self, x):
            received.append(x)
            return torch.zeros(len(x), T - 1)

    snn = wrapped(RLPolicy(Spy(), frames=2))
    plan = snn.plan(X)
    assert torch.equal(received[-1], torch.cat([X[0], X[1]], 1))
    assert plan.timesteps.tolist() == [2] * 40, "no exit before the frames that the network received"
    torch.testing.assert_close(plan.score, torch.full((40,), 1 / (T - 1)))
    images = torch.rand(3, 2, 2, 8, 8)  # [T, N, C, H, W]
    assert torch.equal(first_frames(InputBatch(images, True), 2), torch.cat([images[0], images[1]], 1))
    assert torch.equal(first_frames(InputBatch(images[0]), 2), images[0])


def test_an_input_without_rows_has_no_plan():
    assert len(wrapped().infer(X[:, :0])) == 0


# -- the policy network as a module -----------------------------------------------------------------------------------


def test_plans_are_computed_in_evaluation_mode_without_gradients():
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
def test_a_copy_makes_equal_plans_and_is_independent(how, hybrid):
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


# -- errors -----------------------------------------------------------------------------------------------------------


def test_before_it_is_fitted_the_rl_policy_names_the_method_to_call():
    with pytest.raises(PolicyError, match=r"no network yet: call fit_policy"):
        wrapped("rl").infer(X)
    assert make_policy("rl") == RLPolicy()


@pytest.mark.parametrize("candidates", [(), (0, 1), (2, 2), (3, 1), (1.5,), (True,), ("1",)])
def test_bad_candidates_are_refused(candidates):
    with pytest.raises(PolicyError, match="candidates must be increasing integers"):
        RLPolicy(candidates=candidates)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: RLPolicy(candidates=(1, 9)), r"candidates \(1, 9\) lie beyond T=5"),
        (lambda: RLPolicy(frames=6), "from the first 6 frames, and the sequence has 5"),
    ],
)
def test_candidates_that_do_not_fit_the_network_are_refused(make, message):
    with pytest.raises(PolicyError, match=message):
        wrapped(replace(make(), network=policy_net())).infer(X)


def test_bad_settings_are_refused():
    with pytest.raises(PolicyError, match="earlier than the 3 frames"):
        RLPolicy(candidates=(2, 4), frames=3)
    with pytest.raises(PolicyError, match="frames must be"):
        RLPolicy(frames=0)
    with pytest.raises(PolicyError, match=r"must be a torch\.nn\.Module, not function"):
        RLPolicy(lambda x: x)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (torch.full((40,), T + 1), "from 6 to 6; they must lie between 1 and 5"),
        (torch.zeros(40, dtype=torch.long), "from 0 to 0"),
        (torch.ones(40), r"torch.float32 \(40,\); they must be a long tensor of shape \(40,\)"),
        (torch.ones(39, dtype=torch.long), r"torch.int64 \(39,\)"),
        (torch.ones(40, 1, dtype=torch.long), r"\(40, 1\)"),
        (Plan(torch.ones(40, dtype=torch.long), torch.ones(40, dtype=torch.long)), "score as torch.int64"),
        ([1] * 40, "must return a Plan or a long tensor, not list"),
    ],
)
def test_bad_plans_are_refused(plan, message):
    class Bad(PlanPolicy):
        def plan(self, frames: Tensor, timesteps: int):
            return plan

    with pytest.raises(PolicyError, match=message):
        wrapped(Bad()).infer(X)


def test_a_plan_earlier_than_its_frames_is_refused():
    class Hasty(PlanPolicy):
        frames = 3

        def plan(self, frames: Tensor, timesteps: int) -> Tensor:
            return torch.full((len(frames),), 2)

    with pytest.raises(PolicyError, match="between 3 and 5"):
        wrapped(Hasty()).infer(X)


def test_policy_state_that_is_not_by_row_is_refused():
    class Odd(ConfidencePolicy):
        def start(self, *arguments):
            return torch.zeros(3)

    with pytest.raises(PolicyError, match=r"Odd.start returned a policy state of shape \(3,\)"):
        wrapped(Odd()).infer(X)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (nn.Linear(FEATURES, T + 2), r"Linear returned torch.float32 \(40, 7\); .* \(40, 5\)"),
        (nn.Flatten(0), r"Flatten returned torch.float32 \(320,\)"),
    ],
)
def test_a_policy_network_of_the_wrong_shape_is_refused(wrong, message):
    with pytest.raises(PolicyError, match=message):
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


def test_deciding_without_a_plan_is_refused():
    with pytest.raises(PolicyError, match="plans from the input: call start"):
        exit_timesteps(RLPolicy(policy_net()), torch.randn(4, 2, 3))


def test_the_rl_policy_is_fitted_not_calibrated():
    data = readable(40, 5)
    with pytest.raises(CalibrationError, match="fitted, not calibrated"):
        wrapped().calibrate(data.batches(), average_timesteps=2.0)
    with pytest.raises(CalibrationError, match="setting for each of its members"):
        wrapped(ConfidencePolicy() | PatiencePolicy()).calibrate(data.batches(), average_timesteps=2.0)


# -- combinations -----------------------------------------------------------------------------------------------------

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
    """The decisions of a policy at every timestep, bool ``[T, N]``."""
    state, decisions = policy.start(InputBatch(torch.zeros(trace.shape[1], 1)), len(trace), trace.shape[2]), []
    for t, logits in enumerate(trace, start=1):
        decision = policy.decide(logits, torch.full((len(logits),), t), state)
        state = decision.policy_state
        decisions.append(decision.stop)
    return torch.stack(decisions)


def first(decisions: Tensor) -> list[int]:
    """The first timestep at which each row stops, T if none."""
    return [next((t for t, stop in enumerate(row, start=1) if stop), len(row)) for row in decisions.T.tolist()]


@given(st.integers(0, 10**6), st.lists(st.sampled_from(MEMBERS), min_size=2, max_size=4))
def test_any_is_the_earliest_and_all_is_the_first_agreement(seed, members):
    trace = torch.randn(6, 6, 3, generator=torch.Generator().manual_seed(seed)).cumsum(0)
    inputs = torch.zeros(6, 1)
    either, every = members[0], members[0]
    for member in members[1:]:
        either, every = either | member, every & member
    exits = {
        policy: exit_timesteps(policy, trace, policy.start(InputBatch(inputs), 6, 3)).tolist()
        for policy in {either, every, *members}
    }
    decisions = [stops(member, trace) for member in members]
    assert exits[either] == [min(each) for each in zip(*(exits[member] for member in members), strict=True)]
    assert exits[either] == first(torch.stack(decisions).any(0))
    assert exits[every] == first(torch.stack(decisions).all(0))
    assert all(a >= max(e) for a, e in zip(exits[every], zip(*(exits[m] for m in members), strict=True), strict=True))


def test_combinations_are_flat_and_hashable():
    a, b, c = ConfidencePolicy(0.6), PatiencePolicy(2), FixedPolicy(3)
    assert (a | b) | c == a | (b | c) == AnyPolicy((a, b, c))
    assert (a & b) & c == a & (b & c) == AllPolicy((a, b, c))
    mixed = a | (b & c)
    assert mixed.members == (a, AllPolicy((b, c)))
    assert len({a | b, a | b, b | a}) == 2
    with pytest.raises(TypeError):
        _ = a | 3
    with pytest.raises(PolicyError, match="combines policies, not str"):
        AnyPolicy((a, "confidence"))
    with pytest.raises(PolicyError, match="at least one"):
        AllPolicy(())


def test_the_score_is_that_of_the_first_member_that_stops_the_row():
    class Constant(Policy):
        def __init__(self, stop, score):
            self.decision = Decision(torch.tensor(stop), torch.tensor(score))

        def decide(self, logits, timestep, policy_state):
            return self.decision

    one = Constant([True, False, False, True], [1.0, 2.0, 3.0, 4.0])
    other = Constant([True, True, False, False], [5.0] * 4)
    logits, timestep = torch.zeros(4, 2), torch.ones(4, dtype=torch.long)
    decision = (one | other).decide(logits, timestep, None)
    assert decision.stop.tolist() == [True, True, False, True]
    assert decision.score.tolist() == [1.0, 5.0, 3.0, 4.0]
    decision = (one & other).decide(logits, timestep, None)
    assert decision.stop.tolist() == [True, False, False, False]
    assert decision.score.tolist() == [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize("chunk", [1, 2])
def test_a_plan_or_confidence_exits_no_later_than_planned(chunk):
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


def test_open_settings_of_members_are_settled():
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


def test_the_rl_policy_in_a_combination_is_fitted_and_evaluated():
    data = readable(256, 1)
    snn = wrapped(ConfidencePolicy(0.9999, 1.0) & FixedPolicy(1) | RLPolicy(policy_net()))
    snn.fit_policy(data.batches(), data.batches(), beta=0.3, epochs=2)
    fitted = snn.policy.members[1]
    assert fitted is snn.policy_fit.policy
    assert fitted.fitted_for.timesteps == T
    found = evaluate(snn, data.batches())
    assert found.agreement == 1
    assert found.policy_cost.operations == snn.policy_fit.policy_operations


# -- saving -----------------------------------------------------------------------------------------------------------


def fitted_wrapper(policy: Policy | str = "rl") -> EarlyExitWrapper:
    data = readable(128, 1)
    return wrapped(policy).fit_policy(data.batches(), data.batches(), beta=0.3, epochs=2, max_operations=1e6)


@pytest.mark.parametrize("custom", [False, True])
def test_a_saved_policy_makes_equal_plans(tmp_path, custom):
    snn = fitted_wrapper(RLPolicy(policy_net()) if custom else "rl")
    snn.policy.save(tmp_path / "new" / "policy")
    assert {path.name for path in (tmp_path / "new" / "policy").iterdir()} == {"policy.json", "policy.safetensors"}
    loaded = RLPolicy.load(tmp_path / "new" / "policy", policy_net(seed=9) if custom else None)
    assert replace(loaded, network=None) == replace(snn.policy, network=None)
    plan, expected = wrapped(loaded).plan(X), snn.plan(X)
    assert torch.equal(plan.timesteps, expected.timesteps)
    assert torch.equal(plan.score, expected.score)


def test_a_fitted_policy_is_refused_for_another_task(tmp_path):
    fitted_wrapper().policy.save(tmp_path)
    loaded = RLPolicy.load(tmp_path)
    with pytest.raises(PolicyError, match=r"fitted for T=5, and this network has T=4"):
        wrapped(loaded).infer(X[:4])
    net = nn.Sequential(nn.Linear(FEATURES, 12), neuron.IFNode()).eval()
    with pytest.raises(PolicyError, match=r"fitted for 3 classes, and this network has 12 classes"):
        EarlyExitWrapper(net, loaded, input="sequence").infer(X)
    with pytest.raises(PolicyError, match=r"inputs of shape \(8,\), not \(6,\)"):
        EarlyExitWrapper(static_net("spikingjelly"), loaded, timesteps=5).infer(torch.rand(2, 6))


def test_a_folder_without_a_valid_policy_is_refused(tmp_path):
    with pytest.raises(PolicyError, match="contains no saved policy"):
        RLPolicy.load(tmp_path / "nowhere")
    snn = fitted_wrapper()
    snn.policy.save(tmp_path)
    content = json.loads((tmp_path / "policy.json").read_text())
    del content["sha256"]  # for what others have written

    def write(changed):
        (tmp_path / "policy.json").write_text(json.dumps({**content, **changed}))

    write({"format": 7})
    with pytest.raises(PolicyError, match="in format 7, not a RLPolicy in format 1"):
        RLPolicy.load(tmp_path)
    write({"settings": {**content["settings"], "architecture": {"kind": "Transformer"}}})
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
    with pytest.raises(PolicyError, match=r"custom network; pass an instance of it: RLPolicy\(network"):
        RLPolicy.load(tmp_path)


def test_missing_safetensors_is_reported_with_its_extra(tmp_path, monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[rl\]"'):
        RLPolicy(policy_net()).save(tmp_path)


@pytest.mark.parametrize("hybrid", [False, True])
def test_a_state_dict_restores_a_fitted_policy(tmp_path, hybrid):
    confidence = ConfidencePolicy(0.9, 1.0)
    snn = fitted_wrapper(RLPolicy() | confidence if hybrid else "rl")
    torch.save(snn.state_dict(), tmp_path / "snn.pt")
    saved = torch.load(tmp_path / "snn.pt", weights_only=True)
    other = wrapped(RLPolicy() | ConfidencePolicy(0.1) if hybrid else "rl")
    other.load_state_dict(saved)
    assert torch.equal(other.infer(X).timesteps, snn.infer(X).timesteps)
    if hybrid:
        assert other.policy.members[1] == confidence
        with pytest.raises((PolicyError, RuntimeError), match="combines RLPolicy, ConfidencePolicy, this one"):
            wrapped(RLPolicy() | PatiencePolicy()).load_state_dict(saved)


def test_a_state_dict_with_a_custom_network_needs_that_network():
    snn = fitted_wrapper(RLPolicy(policy_net()))
    other = wrapped(RLPolicy(policy_net(seed=9)))
    other.load_state_dict(snn.state_dict())
    assert torch.equal(other.plan(X).timesteps, snn.plan(X).timesteps)
    with pytest.raises((PolicyError, RuntimeError), match="custom network"):
        wrapped("rl").load_state_dict(snn.state_dict())
    with pytest.raises((PolicyError, RuntimeError), match="saved before fit_policy"):
        other.load_state_dict(wrapped("rl").state_dict())
    unfitted = wrapped("rl")
    unfitted.load_state_dict(wrapped("rl").state_dict())
    assert unfitted.policy == RLPolicy()
