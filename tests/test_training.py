"""Training: the losses and every setting of a recipe against slow references, and interruptions."""

import contextlib
import copy
import math
import shutil
import sys

import pytest
import snntorch
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

from seenn_plugin.errors import CalibrationError, InputError, OptionalDependencyError, TrainingError
from seenn_plugin.training import Epoch, Recipe, accuracy, tet_loss, train
from seenn_plugin.training.average import MovingAverage
from seenn_plugin.training_loop.run import Precision

CLASSES, FEATURES, T = 3, 6, 4


# -- what is trained here ----------------------------------------------------------------------------------------------


def separable(n=96, seed=0):
    """Rows around one corner for each class."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % CLASSES
    inputs = 0.3 * torch.randn(n, FEATURES, generator=generator)
    inputs[torch.arange(n), labels] += 1
    return TensorDataset(inputs, labels)


class Leaking(nn.Module):
    """A network with a state: hidden units that integrate, normalisation, dropout; one timestep in each call."""

    def __init__(self, dropout=0.0):
        super().__init__()
        self.hidden = nn.Linear(FEATURES, 12)
        self.norm = nn.BatchNorm1d(12)
        self.drop = nn.Dropout(dropout)
        self.head = nn.Linear(12, CLASSES)
        self.v = None

    def forward(self, x):
        new = self.norm(self.hidden(x)).tanh()
        self.v = new if self.v is None else 0.5 * self.v + new
        return self.head(self.drop(self.v))


def leaking(**options):
    torch.manual_seed(7)
    return Leaking(**options)


def unrolled(model, x):
    model.v = None
    outputs = torch.stack([model(x) for _ in range(T)])
    model.v = None
    return outputs


def spikingjelly_net():
    pytest.importorskip("spikingjelly")
    from spikingjelly.activation_based import functional, layer, neuron

    from seenn_plugin.models.spikingjelly import run

    net = nn.Sequential(layer.Linear(FEATURES, 24), neuron.LIFNode(), layer.Linear(24, CLASSES))
    functional.set_step_mode(net, "m")

    def forward(model, x):
        return run(model, 4 * x, T)

    return net, forward


def snntorch_net():
    """Its membrane potentials are buffers, and hold the graph of the last batch."""
    snntorch = pytest.importorskip("snntorch")
    net = nn.Sequential(
        nn.Linear(FEATURES, 24), snntorch.Leaky(beta=0.9, init_hidden=True, learn_beta=True), nn.Linear(24, CLASSES)
    )

    def forward(model, x):
        model[1].reset_mem()  # snntorch.utils.reset would reset the neurons of every other network as well
        return torch.stack([model(4 * x) for _ in range(T)])

    return net, forward


def trained(model, recipe, data=None, forward=unrolled, **options):
    return train(model, forward, data or separable(), recipe, progress=False, **options)


def same_weights(first, second):
    own, other = first.state_dict(), second.state_dict()
    return own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)


QUICK = {"epochs": 3, "batch_size": 16, "learning_rate": 0.05}
COMPILED = pytest.param(
    {"compile": True},
    marks=[
        pytest.mark.skipif(
            shutil.which("g++") is None and shutil.which("clang++") is None, reason="there is no C++ compiler"
        ),
        # PyTorch's own look at a state that is kept between two compiled calls.
        pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
    ],
)


# -- the TET loss ------------------------------------------------------------------------------------------------------


def slow_tet_loss(outputs, labels, lamb=1e-3, target=1.0, smoothing=0.0):
    """The formula written out; labels are probabilities ``[N, C]``."""
    steps, n, classes = outputs.shape
    entropy = square = 0.0
    for t in range(steps):
        for i in range(n):
            row = outputs[t, i].tolist()
            whole = math.log(sum(math.exp(value) for value in row))
            for value, share in zip(row, labels[i].tolist(), strict=True):
                share = (1 - smoothing) * share + smoothing / classes
                entropy += share * (whole - value) / (steps * n)
            square += sum((value - target) ** 2 for value in row) / (steps * n * classes)
    return (1 - lamb) * entropy + lamb * square


@pytest.mark.parametrize(("lamb", "target"), [(1e-3, 1.0), (0.0, 1.0), (1.0, 0.5), (0.3, -2.0)])
@pytest.mark.parametrize("shape", [(1, 1, 2), (4, 3, 5), (8, 2, 10)])
@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_the_tet_loss_is_the_formula(shape, lamb, target, smoothing):
    outputs, labels = torch.randn(shape, dtype=torch.float64), torch.randint(shape[2], (shape[1],))
    hard = nn.functional.one_hot(labels, shape[2]).double()
    soft = torch.rand(shape[1:], dtype=torch.float64).softmax(1)
    for given, probabilities in ((labels, hard), (soft, soft)):
        expected = slow_tet_loss(outputs, probabilities, lamb, target, smoothing)
        assert float(tet_loss(outputs, given, lamb, target, smoothing)) == pytest.approx(expected)


def test_every_timestep_gets_a_gradient():
    outputs = torch.zeros(3, 2, 4, requires_grad=True)
    tet_loss(outputs, torch.tensor([0, 3])).backward()
    assert outputs.grad is not None
    assert outputs.grad.abs().sum((1, 2)).gt(0).all()


@pytest.mark.parametrize(
    ("shape", "labels"), [((2, 3), (2,)), ((4, 3, 5), (4,)), ((4, 3, 5, 1), (3,)), ((4, 3, 5), (3, 4))]
)
def test_wrong_shapes_are_named(shape, labels):
    with pytest.raises(InputError, match=r"\[T, N, C\]"):
        tet_loss(torch.zeros(shape), torch.zeros(labels, dtype=torch.long))


# -- it learns ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda: (leaking(), unrolled), spikingjelly_net, snntorch_net])
@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "learning_rate": 0.02, "ema": 0.9, "loss": "mean"}])
def test_a_separable_task_is_learnt(make, options):
    torch.manual_seed(0)
    model, forward = make()
    validation = separable(60, seed=1)
    epochs = trained(model, Recipe(**{**QUICK, "epochs": 12, **options}), forward=forward, validation=validation)
    assert len(epochs) == 12
    assert epochs[-1].loss < 0.5 * epochs[0].loss
    assert all(len(epoch.accuracy) == T for epoch in epochs)
    assert epochs[-1].accuracy[-1] > 0.95
    assert not any(module.training for module in model.modules())
    measured = accuracy(model, forward, [validation[:25], validation[25:]])
    assert tuple(measured) == epochs[-1].accuracy  # what is measured is what is left in the model


def test_a_network_is_trained_in_stages():
    for model, forward in (snntorch_net(), spikingjelly_net(), (leaking(), unrolled)):
        for ema in (None, 0.9):
            trained(model, Recipe(**QUICK, ema=ema), forward=forward)


def test_accuracy_is_of_the_mean_output_so_far():
    outputs = torch.tensor([[[3.0, 0.0], [0.0, 3.0]], [[0.0, 1.0], [5.0, 0.0]], [[0.0, 4.0], [0.0, 1.0]]])
    found = accuracy(nn.Identity(), lambda _, x: outputs[:, x], [(torch.tensor([0, 1]), torch.tensor([0, 1]))])
    assert found == [1.0, 0.5, 0.0]
    batches = [(torch.tensor([0]), torch.tensor([0])), (torch.tensor([1, 1]), torch.tensor([0, 0]))]
    assert accuracy(nn.Identity(), lambda _, x: outputs[:, x], batches) == pytest.approx([1 / 3, 1, 2 / 3])


# -- every setting, against training written out -----------------------------------------------------------------------


class Plain(nn.Module):
    """Logits that grow with time; no state, a learnable number as neurons have one."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(FEATURES, CLASSES))
        self.bias = nn.Parameter(torch.randn(CLASSES))
        self.leak = nn.Parameter(torch.tensor(0.7))

    def forward(self, x):
        return torch.stack([(x @ self.weight + self.bias) * self.leak**t for t in range(T)])


def by_calling(model, x):
    return model(x)


def slow_rate(step, steps, recipe):
    warmup, total = recipe.warmup * steps, recipe.epochs * steps
    if step < warmup:
        return recipe.learning_rate * (step + 1) / (warmup + 1)
    return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))


def slow_training(model, data, recipe):
    """Full batches; PyTorch does nothing but the gradients of a network's outputs."""
    inputs, labels = data[:]
    wanted = nn.functional.one_hot(labels, CLASSES).float()
    wanted = (1 - recipe.label_smoothing) * wanted + recipe.label_smoothing / CLASSES
    weights, memory, average, losses = dict(model.named_parameters()), {}, {}, []
    for step in range(recipe.epochs):
        outputs = model(inputs)
        if recipe.loss == "mean":
            outputs = outputs.mean(0, keepdim=True)
        loss = -(outputs.log_softmax(2) * wanted).sum(2).mean()
        if recipe.loss == "tet":
            loss = (1 - recipe.tet_lambda) * loss + recipe.tet_lambda * ((outputs - 1) ** 2).mean()
        losses.append(loss.item())
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(float((g**2).sum()) for g in gradients.values()))
        rate = slow_rate(step, 1, recipe)
        for name, weight in weights.items():
            g, decay = gradients[name], recipe.weight_decay if name == "weight" else 0.0
            if recipe.clip is not None and norm > recipe.clip:
                g = g * recipe.clip / norm
            with torch.no_grad():
                if recipe.optimizer == "sgd":
                    g = g + decay * weight
                    memory[name] = 0.9 * memory[name] + g if step else g
                    weight -= rate * (g + 0.9 * memory[name])
                else:
                    first, second = memory.get(name, (torch.zeros_like(g), torch.zeros_like(g)))
                    first, second = 0.9 * first + 0.1 * g, 0.999 * second + 0.001 * g**2
                    memory[name] = first, second
                    weight *= 1 - rate * decay
                    scale = (second / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8
                    weight -= rate * (first / (1 - 0.9 ** (step + 1))) / scale
                ema = recipe.ema if recipe.ema is not None and step else 0.0
                average[name] = ema * average.get(name, 0.0) + (1 - ema) * weight
    return average, losses


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"optimizer": "adamw", "learning_rate": 0.01},
        {"warmup": 3},
        {"warmup": 2.5, "optimizer": "adamw"},
        {"warmup": 8},
        {"weight_decay": 0.3},
        {"weight_decay": 0.3, "optimizer": "adamw"},
        {"weight_decay": 0},
        {"loss": "mean"},
        {"loss": "mean", "label_smoothing": 0.3},
        {"tet_lambda": 0.4},
        {"label_smoothing": 0.3},
        {"ema": 0.8},
        {"clip": 0.05},
        {"clip": 1e6},
        {"clip": 0.05, "ema": 0.6, "warmup": 1, "optimizer": "adamw", "label_smoothing": 0.1},
        COMPILED,
    ],
)
def test_training_is_what_the_recipe_says(options):
    data, recipe = separable(24), Recipe(epochs=8, batch_size=24, **options)
    model, slow = Plain(), Plain()
    slow.load_state_dict(model.state_dict())
    epochs = trained(model, recipe, data, by_calling)
    expected, losses = slow_training(slow, data, recipe)
    assert [epoch.loss for epoch in epochs] == pytest.approx(losses, rel=1e-4)
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), expected[name].detach(), rtol=1e-3, atol=1e-4)


@contextlib.contextmanager
def steps_seen():
    """The learning rates, and the norm of the gradient, of every step of an optimizer."""
    seen = []

    def look(optimizer, *_):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        rates = [group["lr"] for group in optimizer.param_groups]
        seen.append((rates, float(torch.cat([g.flatten() for g in gradients]).norm())))

    handle = register_optimizer_step_pre_hook(look)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("warmup", [0, 1, 0.5, 1.3, 3])
def test_the_learning_rate_of_every_step_is_the_formula(warmup):
    recipe = Recipe(**QUICK, warmup=warmup, clip=0.01)
    with steps_seen() as seen:
        trained(leaking(), recipe)
    assert len(seen) == 3 * 6
    for step, (rates, norm) in enumerate(seen):
        assert rates == pytest.approx([slow_rate(step, 6, recipe)] * 2)
        assert norm == pytest.approx(0.01, rel=1e-3)
    highest = max(rates[0] for rates, _ in seen)
    assert highest <= recipe.learning_rate
    assert highest == recipe.learning_rate or warmup not in (0, 1, 0.5)


def test_a_last_smaller_batch_is_left_out_unless_it_is_the_only_one():
    def sizes(n):
        seen = []

        def forward(model, x):
            if model.training:
                seen.append(len(x))
            return unrolled(model, x)

        trained(leaking(), Recipe(epochs=1, batch_size=16), separable(n), forward)
        return seen

    assert sizes(33) == [16, 16]  # batch normalisation would fail on one row
    assert sizes(16) == [16]
    assert sizes(9) == [9]


def test_every_epoch_is_a_new_order_of_all_samples_drawn_from_the_seed():
    def orders(seed):
        seen = []

        def forward(model, x):
            if model.training:
                seen.append(x[:, 0])
            return model(x)

        trained(Plain(), Recipe(epochs=2, batch_size=16, seed=seed), separable(32), forward)
        return torch.cat(seen[:2]), torch.cat(seen[2:])

    first, second = orders(0)
    assert not torch.equal(first, second)
    assert torch.equal(first.sort().values, second.sort().values)
    assert torch.equal(first, orders(0)[0])
    assert not torch.equal(first, orders(1)[0])


def test_the_moving_average_is_the_formula_for_all_that_is_saved():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))
    model.register_buffer("state", torch.zeros(0), persistent=False)
    average, expected = MovingAverage(0.9), {}
    for step in range(4):
        model(torch.randn(5, 2))
        model.state = torch.zeros(step + 1)
        with torch.no_grad():
            model[0].weight.normal_()
        average.update(model)
        for name, value in model.state_dict().items():
            new = value.clone()
            expected[name] = 0.9 * expected[name] + 0.1 * new if step and new.is_floating_point() else new
    assert expected["1.num_batches_tracked"] == 4
    own = copy.deepcopy(model)
    with contextlib.suppress(ZeroDivisionError), average.applied_to(model):
        for name, value in model.state_dict().items():
            torch.testing.assert_close(value, expected[name])
        raise ZeroDivisionError
    assert same_weights(model, own)


def test_mixed_precision_on_the_cpu():
    dtypes, results = {}, {}
    for amp in ("off", "auto", "fp16", "bf16"):

        def forward(model, x, amp=amp):
            outputs = unrolled(model, x)
            dtypes.setdefault((amp, model.training), set()).add(outputs.dtype)
            return outputs

        model = leaking()
        results[amp] = trained(model, Recipe(**QUICK, amp=amp), forward=forward, validation=separable(30, seed=1))
        assert all(weight.dtype == torch.float32 for weight in model.parameters())
    assert dtypes["bf16", True] == {torch.bfloat16}
    assert dtypes["bf16", False] == {torch.float32}  # validation is of the network as it is used
    assert results["off"] == results["auto"] == results["fp16"] != results["bf16"]
    assert results["bf16"][-1].loss == pytest.approx(results["off"][-1].loss, rel=0.05)


def test_a_step_that_the_gradient_scaler_leaves_out_moves_neither_schedule_nor_average(monkeypatch):
    """Its first scales are too large for these gradients; the loss of an epoch is that of the steps taken."""
    monkeypatch.setattr(Precision, "scaler", lambda _: torch.amp.GradScaler("cpu", init_scale=3e38, growth_interval=99))
    recipe, moved = Recipe(**QUICK, warmup=1, ema=0.9), []
    update = MovingAverage.update
    monkeypatch.setattr(MovingAverage, "update", lambda self, model: (moved.append(1), update(self, model)))
    with steps_seen() as seen:
        epochs = trained(leaking(), recipe, forward=lambda model, x: 100 * unrolled(model, x))
    assert 0 < len(seen) == len(moved) < 3 * 6
    for step, (rates, _) in enumerate(seen):
        assert rates == pytest.approx([recipe.learning_rate * recipe.rate(step, 6)] * 2)
    assert all(math.isfinite(epoch.loss) for epoch in epochs)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_training_that_diverges_is_stopped_and_what_was_good_is_kept(bad, tmp_path):
    data = separable()

    def forward(model, x):
        outputs = unrolled(model, x)
        return outputs * bad if ill and model.training else outputs

    recipe, model, ill = Recipe(**QUICK), leaking(), False
    whole = trained(leaking(), recipe, data, forward)
    with pytest.raises(KeyboardInterrupt):
        trained(model, recipe, Interrupted(data, 1 + 96 + 40), folder=tmp_path)
    ill = True
    with pytest.raises(TrainingError, match=r"loss of epoch 2 of 'network' is (nan|inf): lower the learning rate"):
        trained(leaking(), recipe, data, forward, folder=tmp_path)
    ill = False
    again = trained(leaking(), recipe, data, forward, folder=tmp_path)
    assert len(again) == len(whole) == 3
    assert all(math.isfinite(epoch.loss) for epoch in again)


# -- CutMix ------------------------------------------------------------------------------------------------------------


class Images(Dataset):
    """Images of one colour, which is their class."""

    def __len__(self):
        return 40

    def __getitem__(self, index):
        return torch.full((1, 8, 8), float(index % 2)), index % 2


def pooled(model, images):
    return model(images.flatten(1).mean(1, keepdim=True)).expand(T, -1, -1)


@pytest.mark.parametrize("loss", ["tet", "mean"])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_cutmix_mixes_the_labels_as_it_mixes_the_pixels(share, loss, monkeypatch):
    pytest.importorskip("torchvision")
    seen, images = [], []
    name = {"tet": "tet_loss", "mean": "cross_entropy"}[loss]
    module = sys.modules["seenn_plugin.training.supervised"]
    original = getattr(module, name)

    def watched(outputs, labels, *rest, **options):
        seen.append(labels)
        return original(outputs, labels, *rest, **options)

    def forward(model, x):
        if model.training:
            images.append(x)
        return pooled(model, x)

    monkeypatch.setattr(module, name, watched)
    trained(nn.Linear(1, 2), Recipe(epochs=20, batch_size=10, cutmix=share, loss=loss), Images(), forward)
    mixed = [labels.ndim == 2 for labels in seen]
    assert len(mixed) == 80
    assert sum(mixed) / len(mixed) == pytest.approx(share, abs=0.15)
    for x, labels in zip(images, seen, strict=True):
        white = x.mean((1, 2, 3))
        if labels.ndim == 2:
            torch.testing.assert_close(labels, torch.stack([1 - white, white], 1))
        else:
            assert torch.equal(labels.float(), white)
    assert share == 0 or any(0 < float(labels[0, 0]) < 1 for labels in seen if labels.ndim == 2)


def test_cutmix_of_what_is_no_image_is_refused():
    pytest.importorskip("torchvision")
    with pytest.raises(InputError, match=r"\[N, C, H, W\], not \(1, 6\).*cutmix=0"):
        trained(leaking(), Recipe(**QUICK, cutmix=0.5))


# -- interrupted -------------------------------------------------------------------------------------------------------


class Interrupted(Dataset):
    """Data with noise of its own that fails after so many samples were read."""

    def __init__(self, data, fatal):
        self.data, self.left = data, fatal

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        self.left -= 1
        if self.left == 0:
            raise KeyboardInterrupt
        inputs, label = self.data[index]
        return inputs + 0.1 * torch.randn(FEATURES), label


@pytest.mark.parametrize(
    "options", [{}, {"ema": 0.9, "optimizer": "adamw", "amp": "bf16"}, {"ema": 0.5, "clip": 0.1}, COMPILED]
)
def test_interrupted_training_goes_on_with_the_same_result(tmp_path, options):
    recipe, endless = Recipe(**QUICK, warmup=1, **options), -1
    arguments = {"validation": separable(30, seed=1)}
    whole = leaking(dropout=0.3)
    expected = trained(whole, recipe, Interrupted(separable(), endless), **arguments)
    for done, fatal in ((1, 1 + 96 + 40), (2, 1 + 2 * 96 + 1)):  # in the middle of epoch 2, at the beginning of 3
        folder = tmp_path / str(fatal)
        with pytest.raises(KeyboardInterrupt):
            trained(leaking(dropout=0.3), recipe, Interrupted(separable(), fatal), folder=folder, **arguments)
        torch.manual_seed(fatal)  # whatever the caller has drawn in the meantime
        again = Leaking(dropout=0.3)
        data = Interrupted(separable(), endless)
        found = trained(again, recipe, data, folder=folder, **arguments)
        assert found == expected
        assert same_weights(again, whole)
        assert endless - data.left == 1 + (3 - done) * 96  # only what was left


def test_what_is_finished_is_not_trained_again(tmp_path):
    recipe = Recipe(**QUICK, ema=0.9)
    first, again = leaking(), Leaking()
    expected = trained(first, recipe, folder=tmp_path)
    with steps_seen() as seen:
        assert trained(again.train(), recipe, folder=tmp_path) == expected
    assert not seen
    assert same_weights(first, again)
    assert not again.training


def test_stages_of_one_folder_are_told_apart_by_name(tmp_path):
    for name in ("one", "two"):
        with steps_seen() as seen:
            trained(leaking(), Recipe(**QUICK), folder=tmp_path, name=name)
        assert len(seen) == 18


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"recipe": Recipe(**{**QUICK, "epochs": 5}, clip=2.0)}, r"clip \(None there, 2.0 here\), epochs \(3 there, 5"),
        ({"data": separable(64)}, r"samples \(96 there, 64 here\)"),
        ({"model": Plain()}, r"network \('Leaking' there, 'Plain' here\), weights"),
        ({"forward": lambda model, x: unrolled(model, x)[:2]}, r"timesteps \(4 there, 2 here\)"),
    ],
)
def test_another_training_in_the_folder_is_refused_by_name(tmp_path, change, says):
    trained(leaking(), Recipe(**QUICK), folder=tmp_path)
    forward = {"forward": by_calling} if "model" in change else {}
    with pytest.raises(InputError, match=says):
        trained(**{"model": leaking(), "recipe": Recipe(**QUICK), **forward, **change, "folder": tmp_path})


def test_a_damaged_checkpoint_is_named(tmp_path):
    (tmp_path / "training.pt").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"training.pt is no checkpoint of training"):
        trained(leaking(), Recipe(**QUICK), folder=tmp_path)


# -- guest -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("grad", [True, False])
def test_the_callers_random_numbers_and_grad_mode_are_left_alone(grad):
    results = []
    for seed in (1, 2):
        model = leaking(dropout=0.5)
        torch.manual_seed(seed)
        before = torch.get_rng_state()
        with torch.set_grad_enabled(grad):
            results.append((trained(model, Recipe(**QUICK)), model))
            assert torch.is_grad_enabled() is grad
        assert torch.equal(torch.get_rng_state(), before)
    assert results[0][0] == results[1][0]
    assert same_weights(results[0][1], results[1][1])


def test_scalars_are_written_for_tensorboard(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    recipe, validation = Recipe(**QUICK), separable(30, seed=1)
    epochs = trained(leaking(), recipe, validation=validation, log_dir=tmp_path, name="stage")
    events = EventAccumulator(str(tmp_path / "stage"))
    events.Reload()
    for tag, values in {
        "loss": [epoch.loss for epoch in epochs],
        **{f"accuracy/{t}": [epoch.accuracy[t - 1] for epoch in epochs] for t in range(1, T + 1)},
    }.items():
        found = events.Scalars(tag)
        assert [scalar.step for scalar in found] == [1, 2, 3]
        assert [scalar.value for scalar in found] == pytest.approx(values)


def test_progress_is_shown_on_request_only(capsys):
    trained(leaking(), Recipe(**QUICK))
    assert capsys.readouterr() == ("", "")
    train(leaking(), unrolled, separable(), Recipe(**QUICK), name="mine")
    assert "train mine" in capsys.readouterr().err


# -- mistakes ----------------------------------------------------------------------------------------------------------


def test_all_mistakes_of_a_recipe_are_reported_at_once():
    with pytest.raises(InputError) as caught:
        Recipe(
            epochs=0,
            batch_size=2.5,  # pyright: ignore
            optimizer="adam",
            learning_rate=0,
            weight_decay=-1,
            warmup=math.inf,
            loss="tett",
            tet_lambda=2,
            label_smoothing=math.nan,
            cutmix="all",  # pyright: ignore
            ema=1,
            amp="half",
            clip=0,
            compile="yes",  # pyright: ignore
            seed=-1,
        )
    message = str(caught.value)
    assert "Did you mean 'adamw'?" in message
    assert "Did you mean 'tet'?" in message
    for name in Recipe.__dataclass_fields__:
        assert name in message


def test_a_warmup_longer_than_training_is_a_mistake():
    with pytest.raises(InputError, match="warmup must be at most epochs=2, not 3"):
        Recipe(epochs=2, warmup=3)


@pytest.mark.parametrize(
    ("forward", "seen"),
    [
        (lambda model, x: model(x)[0], r"\(1, 3\)"),
        (lambda model, x: model(x).transpose(0, 1), r"\(1, 4, 3\)"),
        (lambda model, x: list(model(x)), "list"),
    ],
)
def test_a_forward_of_another_shape_is_named_before_training(forward, seen):
    with steps_seen() as steps, pytest.raises(InputError, match=rf"\[T, N, C\], of N = 1 rows here, not {seen}"):
        trained(Plain(), Recipe(**QUICK), forward=forward)
    assert not steps
    with pytest.raises(InputError, match=r"\[T, N, C\]"):
        accuracy(Plain(), forward, [separable(1)[:]])


class Stream(IterableDataset):
    def __iter__(self):
        return iter([separable(1)[0]])


@pytest.mark.parametrize("data", [separable(0), Stream(), []])
def test_data_without_samples_or_length_is_refused(data):
    with pytest.raises(CalibrationError, match="data has no length, or holds no sample"):
        train(Plain(), by_calling, data, Recipe(**QUICK), progress=False)


def test_validation_data_without_samples_is_refused():
    with pytest.raises(CalibrationError, match="validation has no length, or holds no sample"):
        trained(Plain(), Recipe(**QUICK), forward=by_calling, validation=separable(0))


@pytest.mark.parametrize(
    ("module", "options", "arguments"),
    [
        ("torch.utils.tensorboard", {}, {"log_dir": "log"}),
        ("torchvision.transforms.v2", {"cutmix": 0.5}, {}),
    ],
)
def test_a_missing_package_is_named_before_training(module, options, arguments, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, module, None)
    with steps_seen() as steps, pytest.raises(OptionalDependencyError, match="pip install"):
        trained(leaking(), Recipe(**QUICK, **options), **arguments)
    assert not steps


def test_without_validation_an_epoch_is_its_loss():
    (epoch,) = trained(Plain(), Recipe(epochs=1), forward=by_calling)
    assert epoch == Epoch(epoch.loss, ())


def _class_index_data(inputs=None, labels=None):
    inputs = torch.rand(8, 4) if inputs is None else inputs
    return TensorDataset(inputs, torch.arange(8) % 2 if labels is None else labels)


class _Triples(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, i):
        return torch.rand(4), i % 2, i


class _Dictionaries(_Triples):
    def __getitem__(self, i):
        return {"image": torch.rand(4), "label": i % 2}


BAD_DATA = {
    "one-hot": (lambda: _class_index_data(labels=torch.eye(2).repeat(4, 1)), r"one-hot labels take .argmax\(1\)"),
    "one-hot, as many classes as rows": (
        lambda: _class_index_data(labels=torch.eye(2).repeat(4, 1).long()), r"one-hot labels take .argmax\(1\)"
    ),
    "a label that is no class": (lambda: _class_index_data(labels=torch.full((8,), 2)), "has 2 classes"),
    "triples": (_Triples, r"pairs of an input and a class index, not 3 values, \(Tensor, Tensor, Tensor\)"),
    "dictionaries": (_Dictionaries, r"not dictionaries with the keys \['image', 'label'\]"),
    "a loader": (lambda: DataLoader(_class_index_data()), "pass loader.dataset"),
    "uint8": (lambda: _class_index_data((255 * torch.rand(8, 4)).to(torch.uint8)), "torch.uint8; convert"),
}  # fmt: skip


@pytest.mark.parametrize("which", ["data", "validation"])
@pytest.mark.parametrize("case", BAD_DATA)
def test_data_of_another_form_is_refused_by_name(case, which):
    make, message = BAD_DATA[case]
    good = {"data": _class_index_data(), "validation": _class_index_data()}
    arguments = {**good, which: make()}
    model = nn.Sequential(nn.Linear(4, 2))
    with pytest.raises((InputError, CalibrationError), match=message):
        train(
            model, lambda model, x: torch.stack([model(x)] * 2), arguments["data"],
            Recipe(epochs=1, batch_size=2), validation=arguments["validation"], progress=False,
        )  # fmt: skip


def test_a_forward_that_forgets_the_reset_is_refused():
    leaky = snntorch.Leaky(0.9, init_hidden=True)
    model = nn.Sequential(nn.Linear(4, 2), leaky)

    def forward(model, x):
        return torch.stack([model(x) for _ in range(3)])

    data = _class_index_data(9 * torch.rand(8, 4))
    assert not torch.equal(forward(model, data[:][0]), forward(model, data[:][0]))
    with pytest.raises(InputError, match="reset the network in it, before its first timestep"):
        train(model, forward, data, Recipe(epochs=1, batch_size=2), progress=False)
