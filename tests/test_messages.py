"""What is refused says what to do, and that works: networks and arguments of other people's code."""

from __future__ import annotations

import copy
import json
import warnings

import pytest
import snntorch
import torch
from spikingjelly.activation_based import layer, neuron
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from seenn_plugin import EarlyExitWrapper
from seenn_plugin.cli.loading import load_model
from seenn_plugin.errors import CalibrationError, InputError, ModelRefused, PolicyError, ReadoutError

FEATURES, CLASSES, T = 6, 3, 5
X = 4 * torch.rand(8, FEATURES, generator=torch.Generator().manual_seed(0))


class Inner(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.fc, self.lif, self.head = nn.Linear(FEATURES, 20), snntorch.Leaky(0.9), nn.Linear(20, CLASSES)

    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(T):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out)


class Module(nn.Module):
    """As Lightning modules are written."""

    def __init__(self):
        super().__init__()
        self.net = Inner()

    def forward(self, x):
        return self.net(x.flatten(1))


class Predicting(Inner):
    def forward(self, x):
        mem, out = self.lif.init_leaky(), []
        for _ in range(T):
            spk, mem = self.lif(self.fc(x), mem)
            out.append(self.head(spk))
        return torch.stack(out).sum(0).argmax(1)


def one_step():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(FEATURES, 20), snntorch.Leaky(0.9, init_hidden=True), nn.Linear(20, CLASSES)).eval()


@pytest.mark.parametrize(
    ("make", "inner"),
    [(Module, "net"), (lambda: nn.DataParallel(Inner()), "module"), (lambda: nn.Sequential(Inner()), "0")],
)
def test_a_loop_in_a_module_that_is_called_names_the_module_to_wrap(make, inner):
    model = make()
    with pytest.raises(ModelRefused, match=rf"Wrap the module that runs the loop: model\.{inner}\."):
        EarlyExitWrapper(model).infer(X)
    result = EarlyExitWrapper(model.get_submodule(inner)).infer(X)
    assert result.timesteps.shape == (8,)


def test_a_prediction_instead_of_logits_is_refused():
    with pytest.raises(ModelRefused, match=r"whole numbers \(torch.int64\)"):
        EarlyExitWrapper(Predicting()).infer(X)


def test_a_function_and_a_wrapper_are_no_model():
    with pytest.raises(InputError, match=r"not function. Wrap the module that it calls"):
        EarlyExitWrapper(lambda x: x, timesteps=T)  # pyright: ignore[reportArgumentType]
    snn = EarlyExitWrapper(one_step(), timesteps=T)
    with pytest.raises(InputError, match=r"an EarlyExitWrapper already; wrap its model"):
        EarlyExitWrapper(snn, timesteps=T)


def test_numpy_arrays_are_taken():
    snn = EarlyExitWrapper(one_step(), timesteps=T)
    assert torch.equal(snn.infer(X.numpy()).logits, snn.infer(X).logits)
    with pytest.raises(InputError, match=r"not tuple. A network with several inputs is not taken"):
        snn.infer((X, X))


def test_token_ids_and_series_are_sequences():
    torch.manual_seed(0)
    tokens = torch.randint(0, 10, (8, 12))
    model = nn.Sequential(nn.Embedding(10, FEATURES), *one_step())
    snn = EarlyExitWrapper(model, "fixed", input="sequence", time_dim=1)
    model[2].reset_mem()
    own = torch.stack([model(frame).clone() for frame in tokens.T]).mean(0)
    torch.testing.assert_close(snn.infer(tokens).logits, own)
    assert len(own.unique(dim=0)) == 8


def test_hints_name_the_option_to_change():
    convolution = nn.Sequential(
        nn.Conv2d(3, 4, 3), snntorch.Leaky(0.9, init_hidden=True), nn.Flatten(), nn.Linear(144, 3)
    )
    with pytest.raises(InputError, match=r"if the batch dimension is missing, pass x\[None\]"):
        EarlyExitWrapper(convolution, timesteps=T).infer(torch.rand(3, 8, 8))
    assert EarlyExitWrapper(convolution, timesteps=T).infer(torch.rand(3, 8, 8)[None]).logits.shape == (1, 3)
    with pytest.raises((InputError, ModelRefused), match="shown at every timestep, leave input= and time_dim= out"):
        EarlyExitWrapper(one_step(), input="sequence").infer(X)
    with pytest.raises(ReadoutError, match="If the first dimension of the input is time, pass input='sequence'"):
        EarlyExitWrapper(one_step(), timesteps=T).infer(torch.rand(T, 8, FEATURES))
    multi_step = nn.Sequential(
        nn.Conv2d(3, 4, 3), neuron.LIFNode(step_mode="m"), nn.Flatten(2), layer.Linear(144, 3, step_mode="m")
    )
    with pytest.raises(InputError, match=r"0 is a torch.nn.Conv2d, .*layer.Conv2d\(..., step_mode='m'\)"):
        EarlyExitWrapper(multi_step, timesteps=T).infer(torch.rand(2, 3, 8, 8))


@pytest.mark.parametrize("policy", ["confidence", "patience"])
def test_a_single_output_has_no_prediction_to_be_sure_of(policy):
    model = nn.Sequential(*one_step()[:2], nn.Linear(20, 1))
    with pytest.raises(PolicyError, match="at least 2 classes"):
        EarlyExitWrapper(model, policy, timesteps=T).infer(X)
    assert EarlyExitWrapper(model, "fixed", timesteps=T).infer(X).logits.shape == (8, 1)


def test_what_calibration_is_given():
    snn = EarlyExitWrapper(one_step(), timesteps=T)
    data = TensorDataset(X, torch.arange(8) % CLASSES)
    with pytest.raises(CalibrationError, match=r"a TensorDataset yields single samples, .* DataLoader"):
        snn.calibrate(data, average_timesteps=3)
    with pytest.raises(CalibrationError, match=r"not a tuple of 3. Say which parts"):
        snn.calibrate([(X, torch.zeros(8, dtype=torch.long), X)], average_timesteps=3)
    with pytest.raises(CalibrationError, match=r"not a dict with the keys \['image'\]"):
        snn.calibrate([{"image": X}], average_timesteps=3)
    snn.calibrate(DataLoader(data, batch_size=4), average_timesteps=3)


def test_a_scripted_layer_is_refused_and_the_model_is_as_it_was():
    model = one_step()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        model[0] = torch.jit.trace(model[0], X)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(ModelRefused, match="is a scripted module"):
        EarlyExitWrapper(model, timesteps=T).infer(X)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    model(X)


def test_the_state_dict_holds_tensors_only(tmp_path):
    from safetensors.torch import load_file, save_file

    snn = EarlyExitWrapper(one_step(), timesteps=T).calibrate([(X, torch.arange(8) % CLASSES)], average_timesteps=3)
    state = snn.state_dict()
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    save_file(state, str(tmp_path / "snn.safetensors"))
    other = EarlyExitWrapper(copy.deepcopy(one_step()), timesteps=T)
    assert other.policy != snn.policy
    other.load_state_dict(load_file(str(tmp_path / "snn.safetensors")))
    assert other.policy == snn.policy
    assert json.loads(bytes(state["_extra_state"].tolist()))["policy"] == "ConfidencePolicy"


def network():
    return one_step()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module."])
@pytest.mark.parametrize("holder", [None, "state_dict", "net", "model_state_dict"])
def test_weights_as_training_scripts_save_them(tmp_path, prefix, holder):
    weights = {f"{prefix}{name}": value + 1 for name, value in one_step().state_dict().items()}
    torch.save(weights if holder is None else {holder: weights, "epoch": 3}, tmp_path / "weights.pt")
    model = load_model(f"{__name__}:network", str(tmp_path / "weights.pt"), "cpu")
    torch.testing.assert_close(model[0].weight, one_step()[0].weight + 1)


def test_weights_that_do_not_fit_say_which_keys_differ(tmp_path):
    weights = one_step().state_dict()
    weights["0.wait"] = weights.pop("0.weight")
    torch.save(weights, tmp_path / "weights.pt")
    with pytest.raises(InputError, match=r"'0.wait' is only in the file, '0.weight' is missing"):
        load_model(f"{__name__}:network", str(tmp_path / "weights.pt"), "cpu")
