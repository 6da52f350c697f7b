"""From names on a command line to a model, its weights and its data."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor, nn

from .._arguments import check, integer_mistake
from ..checkpoints.packaged import find
from ..checkpoints.pretrained import Pretrained
from ..errors import InputError, OptionalDependencyError


class UsageError(Exception):
    """The command line names something that is not there."""


def load_model(name: str, weights: str | None, device: str) -> nn.Module:
    """The model that the factory ``package.module:factory`` returns, in evaluation mode, with weights from a file.

    Raises:
        UsageError: there is no such factory or file, or the factory returns no module.
        InputError: the weights do not fit.
    """
    model = _call(name, "--model")
    if not isinstance(model, nn.Module):
        raise UsageError(f"--model {name} returned {type(model).__name__}, not a torch.nn.Module.")
    if weights is not None:
        _load_weights(model, Path(weights))
    return model.to(device).eval()


def load_checkpoint(folder: Path, device: str, trust_code: bool) -> Pretrained:
    """The trained network that :meth:`Pretrained.save` has written to a folder.

    Raises:
        InputError: the folder holds something else.
    """
    return Pretrained.load(folder, device, trust_code)


def load_data(name: str, batch_size: int, rows_dim: int) -> Iterable[Any]:
    """What the factory ``package.module:factory`` returns, or the batches ``(x, labels)`` of an ``.npz`` file.

    Args:
        batch_size: for a file.
        rows_dim: the dimension of the samples in the file's ``x``.

    Raises:
        UsageError: there is no such factory.
        InputError: the file does not hold what it should.
    """
    if not name.endswith(".npz"):
        return _call(name, "--data")
    path = Path(name)
    x, y = _read_arrays(path)
    if x.ndim <= rows_dim or y.shape != (x.shape[rows_dim],):
        raise InputError(f"{path.name}: y must hold one label per sample of x {tuple(x.shape)}, not {tuple(y.shape)}.")
    return list(zip(x.float().split(batch_size, rows_dim), y.split(batch_size), strict=True))


def existing_folder(name: str, option: str) -> Path:
    """The folder that an option names.

    Raises:
        UsageError: there is none.
    """
    folder = Path(name)
    if not folder.is_dir():
        raise UsageError(f"{option}: there is no folder {folder}.")
    return folder


def checkpoint_folder(name: str) -> Path:
    """The folder of a trained network: a folder, or the name of a packaged network.

    Raises:
        UsageError: there is neither.
    """
    try:
        return find(name)
    except InputError as error:
        raise UsageError(f"--checkpoint: {error}") from error


def check_batch_size(batch_size: int) -> None:
    """Raise a UsageError if there are no such batches."""
    if batch_size < 1:
        raise UsageError(f"--batch_size must be at least 1, not {batch_size}.")


def check_device(device: str) -> None:
    """Raise a UsageError if PyTorch knows no such device, or this machine has none."""
    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"--device {device}: {error}") from error


def check_counts(options: Any) -> None:
    """Raise an InputError that names the options that must be integers of at least 1, and are not."""
    names = ("timesteps", "slots", "check_every", "chunk")
    given = {name: options[name] for name in names if options[name] not in (None, "auto")}
    check(InputError, *(integer_mistake(name, value, 1) for name, value in given.items()))


def check_data(name: str) -> None:
    """Raise a UsageError if ``--data`` names neither a factory nor an existing ``.npz`` file."""
    if not name.endswith(".npz"):
        _factory(name, "--data")
    elif not Path(name).is_file():
        raise UsageError(f"--data: there is no file {name}.")


def class_names(loader: Any) -> list[str] | None:
    """The names of the classes, if the data set of a loader has them, as torchvision's do."""
    while hasattr(loader, "dataset"):  # a loader's, a part's
        loader = loader.dataset
    names = getattr(loader, "classes", None)
    return None if names is None else [str(name) for name in names]


def _read_arrays(path: Path) -> tuple[Tensor, Tensor]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            if not {"x", "y"} <= set(arrays):
                raise InputError(f"{path.name} must hold the arrays x and y, not {', '.join(arrays) or 'none'}.")
            return torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["y"])
    except (BadZipFile, ValueError, TypeError, AttributeError, EOFError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path.name} is no .npz file of numbers: {error}") from error


def _call(name: str, option: str) -> Any:
    """Call ``package.module:factory`` without arguments."""
    return _factory(name, option)()


def _factory(name: str, option: str) -> Callable[[], Any]:
    module_name, _, factory_name = name.partition(":")
    if not module_name or not factory_name:
        raise UsageError(f"{option} must be package.module:factory, not {name!r}.")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module exists, and imports one that does not: the traceback says where
        raise UsageError(f"{option}: there is no module {module_name!r}, here or installed.") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UsageError(f"{option}: {module_name!r} has no function {factory_name!r}.")
    return factory


def _load_weights(model: nn.Module, path: Path) -> None:
    if not path.is_file():
        raise UsageError(f"--weights: there is no file {path}.")
    if path.suffix == ".safetensors":
        _require_safetensors()
    try:
        weights = _read_weights(path)
        differing = sorted(set(weights) ^ set(model.state_dict()))
        if not differing:
            model.load_state_dict(weights)
    except Exception as error:  # what the readers raise depends on what the file holds instead of a state_dict
        raise InputError(f"the weights in {path.name} do not fit {type(model).__name__}: {error!r}") from error
    if differing:
        some = ", ".join(
            f"{name!r} is {'only in the file' if name in weights else 'missing'}" for name in differing[:_NAMED]
        )
        more = f", and {len(differing) - _NAMED} more" if len(differing) > _NAMED else ""
        raise InputError(f"the weights in {path.name} do not fit {type(model).__name__}: {some}{more}.")


def _read_weights(path: Path) -> dict[str, Tensor]:
    """The state_dict in a file, as training scripts save it: inside a dictionary, of a wrapped model."""
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return _without_prefix(load_file(path))
    content = torch.load(path, map_location="cpu", weights_only=True)
    for key in _HOLDERS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    return _without_prefix(content)


def _without_prefix(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The weights without what DataParallel, torch.compile or Lightning put before all names."""
    for prefix in _PREFIXES * 2:  # in any order
        if weights and all(name.startswith(prefix) for name in weights):
            weights = {name.removeprefix(prefix): value for name, value in weights.items()}
    return weights


_HOLDERS = ("state_dict", "model_state_dict", "net", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.", "net.")
_NAMED = 3


def _require_safetensors() -> None:
    try:
        import safetensors  # noqa: F401
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "cli", "reading .safetensors") from error
