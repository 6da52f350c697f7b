"""A fitted policy on disk: settings in JSON, weights in safetensors, and nothing that could run code."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, TypeVar

from ..errors import OptionalDependencyError, PolicyError

if TYPE_CHECKING:
    from .rl import RLPolicy

_FORMAT = 1
_SETTINGS, _WEIGHTS = "policy.json", "policy.safetensors"

P = TypeVar("P", bound="RLPolicy")


def save(policy: RLPolicy, folder: Path) -> None:
    """Write a policy; see :meth:`RLPolicy.save`."""
    safetensors = _safetensors()
    if policy.network is None:
        raise PolicyError("there is nothing to save: the policy has no network; call fit_policy first.")
    folder.mkdir(parents=True, exist_ok=True)
    safetensors.save_model(policy.network, str(folder / _WEIGHTS))
    page = {"format": _FORMAT, "policy": type(policy).__name__, "settings": policy.settings()}
    (folder / _SETTINGS).write_text(json.dumps(page, indent=2) + "\n", encoding="utf-8")


def load(policy: P, folder: Path) -> P:
    """A policy with what is on disk; see :meth:`RLPolicy.load`."""
    safetensors = _safetensors()
    try:
        page = json.loads((folder / _SETTINGS).read_text(encoding="utf-8"))
        name, version, settings = page["policy"], page["format"], page["settings"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PolicyError(f"{folder} holds no saved policy: {error!r}") from error
    if (name, version) != (type(policy).__name__, _FORMAT):
        raise PolicyError(
            f"{folder} holds a {name} in format {version}, not a {type(policy).__name__} in format {_FORMAT}."
        )
    try:
        loaded = policy.with_settings(settings)
    except (KeyError, TypeError, AttributeError) as error:
        raise PolicyError(f"{folder / _SETTINGS} is damaged: {error!r}") from error
    assert loaded.network is not None
    try:
        safetensors.load_model(loaded.network, str(folder / _WEIGHTS))
    except Exception as error:  # what the reader raises depends on what is there instead
        raise PolicyError(
            f"the weights in {folder / _WEIGHTS} do not fit {type(loaded.network).__name__}: {error!r}"
        ) from error
    return loaded


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "rl", "saving and loading a fitted policy") from error
    return safetensors.torch
