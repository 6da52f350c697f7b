"""A fitted policy on disk: settings as JSON, weights as safetensors. Reading them executes no code."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TypeVar

from torch import nn

from ..errors import OptionalDependencyError, PolicyError
from .base import Policy, networks

_FORMAT = 1
_SETTINGS, _WEIGHTS = "policy.json", "policy.safetensors"

P = TypeVar("P", bound=Policy)


def save(policy: Policy, network: nn.Module | None, folder: Path) -> None:
    """Write a policy with its network; see :meth:`RLPolicy.save`."""
    safetensors = _safetensors()
    if network is None:
        raise PolicyError("there is nothing to save, because the policy has no network; call fit_policy first.")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_model(network, str(folder / _WEIGHTS))
    content = {"format": _FORMAT, "policy": type(policy).__name__, "settings": policy.settings()}
    (folder / _SETTINGS).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def load(policy: P, folder: Path) -> P:
    """Return a copy of ``policy`` with the saved settings and weights; see :meth:`RLPolicy.load`."""
    safetensors = _safetensors()
    try:
        content = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        name, version, settings = content["policy"], content["format"], content["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{folder} contains no saved policy: {error!r}") from error
    if (name, version) != (type(policy).__name__, _FORMAT):
        raise PolicyError(
            f"{folder} contains a {name} in format {version}, not a {type(policy).__name__} in format {_FORMAT}."
        )
    try:
        loaded = policy.with_settings(settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{folder / _SETTINGS} is damaged ({error!r}); save the policy again.") from error
    (network,) = networks(loaded)
    try:
        safetensors.load_model(network, str(folder / _WEIGHTS))
    except Exception as error:  # the exception depends on how the file is damaged
        raise PolicyError(
            f"the weights in {folder / _WEIGHTS} do not fit {type(network).__name__}: {error!r}"
        ) from error
    return loaded


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "rl", "saving and loading a fitted policy") from error
    return safetensors.torch
