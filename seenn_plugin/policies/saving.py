"""A fitted policy on disk: settings as JSON, weights as safetensors. Reading them executes no code."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import nn

from .._files import checksum, from_json, to_json, write_files
from ..errors import OptionalDependencyError, PolicyError
from .base import Policy, networks

_FORMAT = 1
_SETTINGS, _WEIGHTS = "policy.json", "policy.safetensors"
_CHECKSUM = "weights_sha256"

P = TypeVar("P", bound=Policy)


def save(policy: Policy, network: nn.Module | None, folder: Path) -> None:
    """Write a policy with its network; see :meth:`RLPolicy.save`."""
    safetensors = _safetensors()
    if network is None:
        raise PolicyError("there is nothing to save, because the policy has no network; call fit_policy first.")
    content = {"format": _FORMAT, "policy": type(policy).__name__, "settings": policy.settings()}

    def write_weights(path: Path) -> None:
        safetensors.save_model(network, str(path))
        content[_CHECKSUM] = checksum(path.read_bytes())

    def write_settings(path: Path) -> None:  # after the weights, whose checksum they hold
        path.write_text(to_json(content, indent=2), encoding="utf-8")

    write_files({folder / _WEIGHTS: write_weights, folder / _SETTINGS: write_settings})


def load(policy: P, folder: Path) -> P:
    """Return a copy of ``policy`` with the saved settings and weights; see :meth:`RLPolicy.load`."""
    safetensors = _safetensors()
    try:
        content = from_json(folder / _SETTINGS)
        name, version, settings = content["policy"], content["format"], content["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(
            f"{folder} contains no saved policy in {_SETTINGS}: {error!r}. Name the folder that RLPolicy.save has "
            "written, or save the policy again."
        ) from error
    if (name, version) != (type(policy).__name__, _FORMAT):
        raise PolicyError(
            f"{folder} contains a {name} in format {version}, not a {type(policy).__name__} in format {_FORMAT}."
        )
    try:
        loaded = policy.with_settings(settings)
    except PolicyError:
        raise
    except Exception as error:  # what is raised depends on the value that is damaged
        raise PolicyError(f"{folder / _SETTINGS} is damaged ({error!r}); save the policy again.") from error
    (network,) = networks(loaded)
    try:
        if _CHECKSUM in content and checksum((folder / _WEIGHTS).read_bytes()) != content[_CHECKSUM]:
            raise ValueError(f"they are damaged, or not those that {_SETTINGS} was saved with")
        safetensors.load_model(network, str(folder / _WEIGHTS))
    except Exception as error:  # the exception depends on how the file is damaged
        raise PolicyError(
            f"the weights in {folder / _WEIGHTS} do not fit {type(network).__name__}: {error!r}. Save the policy again."
        ) from error
    return loaded


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "rl", "saving and loading a fitted policy") from error
    return safetensors.torch
