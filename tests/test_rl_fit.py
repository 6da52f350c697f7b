"""Fitting a policy: on a task with a known best plan, for a target, after an interruption, and on bad data."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate
from seenn_plugin.calibration.policy_fitting import FitSettings
from seenn_plugin.errors import CalibrationError, InputError, OptionalDependencyError, PolicyError
from seenn_plugin.policies import ConfidencePolicy, RLPolicy
from seenn_plugin.training_loop.run import Precision

from .rl_tasks import CLASSES, FEATURES, T, policy_net, readable, reader, wrapped

TRAIN, VALIDATION, TEST = readable(1024, 1), readable(256, 2), readable(512, 3)
QUICK = {"epochs": 2, "refinements": 1}


def fitted(snn=None, train=TRAIN, validation=VALIDATION, **options):
    options = {"beta": 1.0, **options} if not {"max_accuracy_drop", "average_timesteps"} & set(options) else options
    return (snn or wrapped()).fit_policy(train.batches(), validation.batches(), **options)


def weights(snn) -> torch.Tensor:
    return nn.utils.parameters_to_vector(snn.policy.network.parameters()).detach()


# -- learning ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("objective", "share"), [("exact", 0.98), ("reinforce", 0.95)])
def test_the_best_plan_is_recovered(objective, share):
    snn = fitted(objective=objective, epochs=40)
    plan = snn.plan(TEST.frames).timesteps
    assert TEST.reward(plan, beta=1.0) >= share * TEST.best_reward()
    result = snn.infer(TEST.frames)
    assert torch.equal(result.timesteps, plan)
    assert result.steps_executed == int(plan.sum())


@pytest.mark.parametrize("options", [{"reweight": True}, {"entropy_bonus": 0.01}, {"augmented": True}, {"amp": "bf16"}])
def test_every_option_learns_the_best_plan(options):
    snn = fitted(epochs=40, **options)
    assert TEST.reward(snn.plan(TEST.frames).timesteps, beta=1.0) >= 0.9 * TEST.best_reward()


def test_a_linear_cost_learns_the_best_plan():
    snn = wrapped().fit_policy(
        TRAIN.batches(), VALIDATION.batches(), cost="linear", step_cost=0.05, epochs=20, learning_rate=1e-2
    )
    plan = snn.plan(TEST.frames).timesteps
    assert float((plan == TEST.readable_from).double().mean()) > 0.95


def test_the_default_network_learns_the_best_plan():
    snn = fitted(wrapped("rl"), max_operations=1e6, epochs=20)
    assert TEST.reward(snn.plan(TEST.frames).timesteps, beta=1.0) >= 0.95 * TEST.best_reward()
    assert not any(module.training for module in snn.policy.network.modules())


def test_only_candidates_are_chosen():
    snn = fitted(wrapped(RLPolicy(policy_net(candidates=2), candidates=(2, 5))), epochs=20)
    plan = snn.plan(TEST.frames).timesteps
    best = torch.where(TEST.readable_from <= 2, 2, 5)
    assert float((plan == best).double().mean()) > 0.97
    assert set(plan.tolist()) == {2, 5}


# -- targets -----------------------------------------------------------------------------------------------------------


def test_the_fewest_timesteps_within_the_accuracy_drop_are_chosen():
    snn = fitted(max_accuracy_drop=0.05, epochs=10)
    fit = snn.policy_fit
    assert fit.chosen in fit.frontier
    assert snn.policy is fit.chosen.policy
    assert fit.chosen.accuracy >= fit.full_accuracy - 0.05
    meeting = [point for point in fit.frontier if point.accuracy >= fit.full_accuracy - 0.05]
    assert fit.chosen.mean_timesteps == min(point.mean_timesteps for point in meeting)
    means = [point.mean_timesteps for point in fit.frontier]
    assert means == sorted(means)
    assert len(fit.frontier) >= 6
    for point in fit.frontier:
        assert sum(point.histogram) == fit.samples == 256
    table = str(fit)
    assert table.count("chosen") == 1
    assert all(str(point.reward) in table for point in fit.frontier)


def test_the_highest_accuracy_within_the_mean_timesteps_is_chosen():
    snn = fitted(average_timesteps=2.5, epochs=10)
    assert snn.policy_fit.chosen.mean_timesteps <= 2.5
    found = evaluate(snn, VALIDATION.batches())
    assert found.mean_timesteps == pytest.approx(snn.policy_fit.chosen.mean_timesteps)
    assert found.accuracy == pytest.approx(snn.policy_fit.chosen.accuracy)
    assert found.agreement == 1


def test_a_target_that_no_setting_meets_lists_what_was_fitted():
    snn = wrapped(RLPolicy(candidates=(2, T)))
    with pytest.raises(CalibrationError, match=r"no policy meets the target, at most 1.5 mean timesteps.* % at "):
        fitted(snn, average_timesteps=1.5, max_operations=1.0, **QUICK)
    assert snn.policy_fit is None
    assert snn.policy.fitted_for is None


def test_evaluate_reports_the_cost_of_the_policy():
    snn = fitted(**QUICK)
    cost = evaluate(snn, TEST.batches()).policy_cost
    assert cost is not None
    assert cost.operations == snn.policy_fit.policy_operations == FEATURES * 32 + 32 * T
    assert cost.network_operations == snn.policy_fit.network_operations == T * FEATURES * CLASSES
    assert cost.share_of_operations == pytest.approx(cost.operations / cost.network_operations)
    assert cost.seconds > 0
    snn.policy = ConfidencePolicy()
    assert evaluate(snn, TEST.batches()).policy_cost is None


def test_accuracy_curve_evaluates_the_frontier_on_other_data():
    snn = fitted(average_timesteps=3.0, **QUICK)
    curve = accuracy_curve(snn, TEST.batches())
    assert len(curve.points) == len(snn.policy_fit.frontier)
    assert len(curve.static) == T
    for point in curve.points:
        snn.policy = point.policy
        found = evaluate(snn, TEST.batches())
        assert (found.accuracy, found.mean_timesteps) == pytest.approx((point.accuracy, point.mean_timesteps))


# -- reproducibility and checkpoints -----------------------------------------------------------------------------------


def test_equal_seeds_give_equal_policies_and_do_not_advance_the_global_generator():
    snns = [wrapped() for _ in range(3)]
    state = torch.get_rng_state()
    first, second, other = (
        fitted(snn, objective="reinforce", seed=seed, **QUICK) for snn, seed in zip(snns, (0, 0, 1), strict=True)
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(weights(first), weights(second))
    assert not torch.equal(weights(first), weights(other))


class Interrupting(list):
    """A loader that raises KeyboardInterrupt at its n-th pass."""

    passes = 0
    interrupted_pass = 0

    def __iter__(self):
        self.passes += 1
        if self.passes == self.interrupted_pass:
            raise KeyboardInterrupt
        yield from super().__iter__()


@pytest.mark.filterwarnings("ignore:after fine-tuning the target")
@pytest.mark.parametrize("interrupted_pass", [3, 5, 9, 15])
def test_an_interrupted_fit_continues_with_the_same_result(tmp_path, interrupted_pass):
    """Each pass over the training loader is an epoch: two for each of six settings, then three of fine-tuning."""
    options = {
        "average_timesteps": 3.0,
        "epochs": 2,
        "refinements": 0,
        "objective": "reinforce",
        "augmented": True,
        "finetune": True,
        "finetune_epochs": 3,
        "finetune_learning_rate": 1e-2,
    }
    train = Interrupting(TRAIN.batches()[:4])
    whole = wrapped().fit_policy(train, VALIDATION.batches(), **options)
    snn, file = wrapped(), tmp_path / "made" / "fit.pt"
    before = copy.deepcopy(snn.model.state_dict())
    train.passes, train.interrupted_pass = 0, interrupted_pass
    with pytest.raises(KeyboardInterrupt):
        snn.fit_policy(train, VALIDATION.batches(), checkpoint=file, **options)
    assert snn.policy_fit is None
    for name, value in snn.model.state_dict().items():
        assert torch.equal(value, before[name])
    train.interrupted_pass = 0
    train.passes = 0
    again = wrapped().fit_policy(train, VALIDATION.batches(), checkpoint=file, **options)
    assert train.passes < 1 + 6 * 2 + 3, "finished epochs are not repeated"
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(again.model[0].weight, whole.model[0].weight)
    for one, other in zip(again.policy_fit.frontier, whole.policy_fit.frontier, strict=True):
        assert (one.accuracy, one.mean_timesteps, one.reward) == (other.accuracy, other.mean_timesteps, other.reward)
    train.passes = 0
    done = wrapped().fit_policy(train, VALIDATION.batches(), checkpoint=file, **options)
    assert train.passes == 1, "for a finished fit only the traces are computed again"
    assert torch.equal(weights(done), weights(whole))


def test_a_checkpoint_of_another_fit_is_refused(tmp_path):
    fitted(checkpoint=tmp_path / "fit.pt", **QUICK)
    with pytest.raises(InputError, match=r"another training: epochs \(2 there, 3 here\), seed \(0 there, 4 here\)"):
        fitted(checkpoint=tmp_path / "fit.pt", epochs=3, seed=4)
    (tmp_path / "fit.pt").write_bytes(b"something else")
    with pytest.raises(InputError, match="no checkpoint of training"):
        fitted(checkpoint=tmp_path / "fit.pt", **QUICK)


def test_memory_mapped_recordings_equal_those_in_memory(monkeypatch):
    mapped = []
    original = torch.from_file
    monkeypatch.setattr(torch, "from_file", lambda *a, **k: mapped.append(a) or original(*a, **k))
    small = fitted(memory_limit=5000, **QUICK)
    assert len(mapped) == 2
    assert torch.equal(weights(small), weights(fitted(**QUICK)))
    assert len(mapped) == 2


def test_more_policy_epochs_do_not_run_the_spiking_network_more_often():
    snn = wrapped()
    calls = []
    snn.model[0].register_forward_pre_hook(lambda module, inputs: calls.append(inputs[0].shape[0]))
    fitted(snn, epochs=1)
    once = sum(calls)
    calls.clear()
    fitted(snn, epochs=9)
    assert sum(calls) <= once


@pytest.mark.filterwarnings("ignore:the policy has collapsed")
def test_fitting_again_starts_from_new_weights_and_may_use_another_number_of_timesteps():
    snn = wrapped("rl")
    first = weights(fitted(snn, max_operations=1e6, **QUICK))
    assert torch.equal(weights(fitted(snn, max_operations=1e6, **QUICK)), first)
    snn.timesteps = 4
    short = [replace(data, frames=data.frames[:4]) for data in (TRAIN, VALIDATION)]
    fitted(snn, *short, max_operations=1e6, **QUICK)
    assert snn.policy.fitted_for.timesteps == 4


def test_a_custom_policy_network_is_not_changed():
    custom = policy_net().train()
    before = copy.deepcopy(custom.state_dict())
    snn = fitted(wrapped(RLPolicy(custom)), **QUICK)
    assert all(torch.equal(value, before[name]) for name, value in custom.state_dict().items())
    assert custom.training
    assert snn.policy.network is not custom


# -- fine-tuning, logs, precision --------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["exact", "reinforce"])
def test_fine_tuning_trains_the_spiking_network_too(objective):
    """The weights of the network mix the labels, so that it is often wrong before fine-tuning."""
    snn = wrapped()
    with torch.no_grad():
        snn.model[0].weight[:, T:] = 0.3 + 0.3 * torch.eye(CLASSES).roll(1, 0)
        snn.model[0].weight[0, T] = 0.9
    before = snn.model[0].weight.detach().clone()
    fitted(snn, epochs=5, finetune=True, finetune_epochs=12, finetune_learning_rate=3e-2, objective=objective)
    fit = snn.policy_fit
    assert not torch.equal(snn.model[0].weight, before)
    assert fit.finetuned.accuracy > fit.chosen.accuracy + 0.2
    assert snn.policy is fit.finetuned.policy
    assert evaluate(snn, VALIDATION.batches()).accuracy == pytest.approx(fit.finetuned.accuracy)
    assert "fine-tuning" in str(fit)


def test_tensorboard_scalars_only_when_asked(tmp_path, capfd):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    fitted(log_dir=tmp_path / "logs", progress=True, **QUICK)
    assert "policy beta=1.0" in capfd.readouterr().err
    (run,) = (tmp_path / "logs").iterdir()
    events = EventAccumulator(str(run)).Reload()
    assert {"loss", "validation/accuracy", "validation/mean_timesteps"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2]


def test_missing_tensorboard_is_reported_before_any_computation(monkeypatch):
    import sys

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(OptionalDependencyError, match=r'pip install "seenn-plugin\[tensorboard\]"'):
        wrapped().fit_policy([], [], beta=1.0, log_dir="logs")


def test_auto_mixed_precision_is_off_on_a_cpu():
    cpu = torch.device("cpu")
    assert Precision.of("auto", cpu).dtype is None
    assert Precision.of("fp16", cpu).dtype is None
    assert Precision.of("bf16", cpu).dtype is torch.bfloat16
    assert not Precision.of("bf16", cpu).scaler().is_enabled()
    cuda = torch.device("cuda")
    assert Precision.of("fp16", cuda).dtype is torch.float16
    assert Precision.of("off", cuda).dtype is None


# -- errors and warnings -----------------------------------------------------------------------------------------------


def test_a_collapsed_policy_warns():
    always_last = replace(TRAIN, labels=TRAIN.labels, frames=TRAIN.frames.clone())
    always_last.frames[0, :, :T] = 0
    with pytest.warns(RuntimeWarning, match=r"collapsed: it plans 5 timesteps .* as FixedPolicy\(5\)"):
        fitted(train=always_last, validation=always_last, beta=100.0, epochs=10)


@pytest.mark.filterwarnings("ignore:the policy has collapsed")
def test_a_default_network_above_the_limit_warns():
    with pytest.warns(RuntimeWarning, match=r"more than the 1 % that max_operations allows"):
        fitted(wrapped("rl"), epochs=1)


def test_one_class_of_validation_samples_is_refused():
    kept = VALIDATION.labels == 1
    one = replace(VALIDATION, frames=VALIDATION.frames[:, kept], labels=VALIDATION.labels[kept])
    with pytest.raises(CalibrationError, match=r"all .* validation samples are of class 1"):
        fitted(validation=one)


@pytest.mark.parametrize("which", ["training", "validation"])
def test_a_network_that_is_always_wrong_is_refused(which):
    bad = {"train": TRAIN, "validation": VALIDATION}
    key = {"training": "train", "validation": "validation"}[which]
    data = bad[key]
    bad[key] = replace(data, labels=torch.where(data.readable_from < 0, 0, (data.labels + 2) % CLASSES))
    with pytest.raises(CalibrationError, match=f"wrong on all .* {which} samples at every candidate"):
        fitted(**bad)


@pytest.mark.parametrize("beta", [-1.0, float("nan"), float("inf")])
def test_a_beta_out_of_range_is_refused_before_any_computation(beta):
    with pytest.raises(PolicyError, match="beta must be a finite number of at least 0"):
        wrapped().fit_policy(None, None, beta=beta)


def test_a_reward_that_is_not_finite_is_refused():
    with pytest.raises(PolicyError, match="beta=1e\\+300 is NaN or infinite"):
        fitted(beta=1e300, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give exactly one target"),
        ({"beta": 1.0, "average_timesteps": 2.0}, "give exactly one target"),
        ({"step_cost": 1.0}, "cost='exponential' has the parameter beta, not step_cost"),
        ({"beta": 1.0, "cost": "linear"}, "cost='linear' has the parameter step_cost, not beta"),
        ({"beta": 1.0, "epoch": 3}, r"unknown option 'epoch'.*Did you mean 'epochs'\?"),
        ({"beta": 1.0, "objective": "exakt"}, r"unknown objective 'exakt'.*Did you mean 'exact'\?"),
        ({"beta": 1.0, "epochs": 0, "learning_rate": -1}, "epochs must be .* learning_rate must be"),
    ],
)
def test_wrong_options_are_refused_before_any_computation(options, message):
    with pytest.raises(PolicyError, match=message):
        wrapped().fit_policy(None, None, **options)


def test_a_wrapper_without_an_rl_policy_is_refused():
    with pytest.raises(PolicyError, match="policy='rl'"):
        fitted(wrapped("confidence"))
    with pytest.raises(PolicyError, match="has 2"):
        fitted(wrapped(RLPolicy(policy_net()) | RLPolicy(policy_net())))


def test_empty_or_inconsistent_data_are_refused():
    with pytest.raises(CalibrationError, match="no sample"):
        wrapped().fit_policy([], VALIDATION.batches(), beta=1.0)
    short = replace(VALIDATION, frames=VALIDATION.frames[:4])
    with pytest.raises(CalibrationError, match="differ in"):
        fitted(validation=short)
    with pytest.raises(CalibrationError, match="0 to 9"):
        wrapped().fit_policy([(TRAIN.frames[:, :10], torch.arange(10))], VALIDATION.batches(), beta=1.0)


class WrongOutput(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x: torch.zeros(len(x), T + 1), r"returned torch.float32 \(1, 6\).*\(1, 5\)"),
        (lambda x: torch.zeros(len(x), T, dtype=torch.long), r"returned torch.int64 \(1, 5\)"),
        (lambda x: [0] * len(x), "returned list"),
    ],
)
def test_a_bad_policy_network_is_refused(function, message):
    with pytest.raises(PolicyError, match=message):
        fitted(wrapped(RLPolicy(WrongOutput(function))))


def test_a_loader_that_can_be_iterated_only_once_is_refused():
    with pytest.raises(CalibrationError, match="yields nothing when it is iterated again"):
        wrapped().fit_policy(iter(TRAIN.batches()), VALIDATION.batches(), beta=1.0, augmented=True)


def test_the_time_axis_may_be_dimension_1():
    first = fitted(frames_policy(), **QUICK)
    second = EarlyExitWrapper(reader(), RLPolicy(policy_net()), input="sequence", time_dim=1, readout="last")
    turned = [[(x.transpose(0, 1), labels) for x, labels in data.batches()] for data in (TRAIN, VALIDATION)]
    second.fit_policy(*turned, beta=1.0, **QUICK)
    assert torch.equal(weights(first), weights(second))
    assert torch.equal(second.infer(TEST.frames.transpose(0, 1)).timesteps, first.infer(TEST.frames).timesteps)


def test_no_row_exits_before_the_frames_that_the_policy_receives():
    snn = fitted(frames_policy(2), epochs=15)
    assert snn.policy.fitted_for.row_shape == (2 * FEATURES,)
    assert int(snn.infer(TEST.frames).timesteps.min()) >= 2


def frames_policy(frames: int = 1) -> EarlyExitWrapper:
    return wrapped(RLPolicy(policy_net(frames * FEATURES, T + 1 - frames), frames=frames))


def test_settings_report_all_mistakes_at_once():
    with pytest.raises(PolicyError) as caught:
        FitSettings.of({"amp": "fp8", "seed": -1, "entropy_bonus": float("nan"), "nonsense": 1})
    for word in ("fp8", "seed", "entropy_bonus", "nonsense"):
        assert word in str(caught.value)


def test_a_policy_is_fitted_on_static_input():
    """The whole fit, with a default policy network."""
    from spikingjelly.activation_based import neuron

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 12), neuron.LIFNode(), nn.Linear(12, 4)).eval()
    x = 3 * torch.randn(200, 6)
    labels = EarlyExitWrapper(net, "fixed", timesteps=6).trace(x)[-1].argmax(1)
    loader = [(x[:100], labels[:100]), (x[100:], labels[100:])]
    snn = EarlyExitWrapper(net, "rl", timesteps=6)
    snn.fit_policy(loader[:1], loader[1:], average_timesteps=3.0, max_operations=1e6, **QUICK)
    found = evaluate(snn, loader[1:])
    assert found.mean_timesteps == pytest.approx(snn.policy_fit.chosen.mean_timesteps)
    assert snn.policy.fitted_for.row_shape == (6,)


def test_the_reader_solves_the_task_as_documented():
    """The prediction is correct exactly from the encoded timestep on."""
    snn = EarlyExitWrapper(reader(), "fixed", input="sequence", readout="last")
    correct = snn.trace(TEST.frames).argmax(2) == TEST.labels
    for t in range(1, T + 1):
        assert torch.equal(correct[t - 1], t >= TEST.readable_from)
