"""What a captured step has baked in: noticed as soon as it is no longer so.

A compiled step holds copies of the weights, and numbers that Python code read once. The model is the caller's: he may
train it, load other weights, move it, set a threshold or attach a hook at any time. What is compared here is cheap
enough to be compared before every timestep.
"""

from __future__ import annotations

from collections.abc import Collection
from operator import is_, itemgetter
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _module

from .module_state import cells, is_plain, map_tensors, tensors
from .state_map import Place


class Baked:
    """The parameters, buffers and plain attributes of a model as they are now, but for its state.

    Args:
        model: the model.
        registers: names of the dictionary attributes whose entries are looked at one by one.
        state: the places that a timestep writes.

    Raises:
        RuntimeError: changes of some tensor cannot be noticed (one that was made in inference mode).
    """

    def __init__(self, model: nn.Module, registers: Collection[str], state: Collection[Place]) -> None:
        written = {(id(store), key) for store, key in state}
        places: list[tuple[dict[Any, Any], Any]] = [
            (cell.store, cell.key)
            for cell in cells(model, tuple(registers))
            if (id(cell.store), cell.key) not in written
        ]
        places += [(vars(m), "training") for m in model.modules()]
        places += [(m._parameters, name) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        identical: dict[int, tuple[dict[Any, Any], list[Any]]] = {}
        equal: dict[int, tuple[dict[Any, Any], list[Any]]] = {}
        self._tensors: list[Tensor] = []
        for store, key in places:
            value = store[key]
            if not is_plain(value):  # a cache, a compiled kernel
                continue
            held = tensors(value)
            self._tensors += held
            (identical if held else equal).setdefault(id(store), (store, []))[1].append(key)
        self._identical = [_Entries(store, keys) for store, keys in identical.values()]
        self._equal = [_Entries(store, keys) for store, keys in equal.values()]
        self._attributes = [vars(module) for module in model.modules()]
        self._forwards = self._read_forwards()
        self._versions = self._read_versions()
        # Views, so that memory that is let go is not given to other weights, at the same address.
        probes = [t.detach()[tuple(size // 2 for size in t.shape)] for t in self._tensors if t.numel()]
        self._probes: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
        for probe in probes:
            self._probes.setdefault((probe.dtype, probe.device), []).append(probe)
        self._samples = self._read_samples()

    def is_stale(self, at_start: bool) -> bool:
        """Whether something has changed.

        Args:
            at_start: look at the numbers too: one of each tensor. A change through ``.data`` is counted nowhere.
        """
        try:
            return not (
                all(entries.are_identical() for entries in self._identical)
                and all(entries.are_equal() for entries in self._equal)
                and self._read_versions() == self._versions
                and self._read_forwards() == self._forwards
                and not (at_start and any(map(_differ, self._read_samples(), self._samples)))
            )
        except KeyError:  # an attribute is gone
            return True

    def _read_versions(self) -> list[tuple[int, int]]:
        return [(tensor._version, tensor.data_ptr()) for tensor in self._tensors]

    def _read_forwards(self) -> list[Any]:
        """Those that lie in a module itself and not in its class: somebody put them there."""
        return [attributes.get("forward") for attributes in self._attributes]

    def _read_samples(self) -> list[Tensor]:
        return [torch.stack(probes) for probes in self._probes.values()]


class _Entries:
    """Some entries of one dictionary."""

    def __init__(self, store: dict[Any, Any], keys: list[Any]) -> None:
        self._store = store
        self._get = itemgetter(*keys) if len(keys) > 1 else lambda store, key=keys[0]: (store[key],)
        self._objects = self._get(store)
        # A list may be changed in place: keep its content.
        self._values = tuple(map_tensors(lambda tensor: tensor, value) for value in self._objects)

    def are_identical(self) -> bool:
        return all(map(is_, self._get(self._store), self._objects))

    def are_equal(self) -> bool:
        return self._get(self._store) == self._values


def _differ(left: Tensor, right: Tensor) -> bool:
    return not bool(((left == right) | ((left != left) & (right != right))).all())


def is_watched(modules: Collection[nn.Module]) -> bool:
    """Whether a forward hook, of one module or of all, wants to be called in every timestep."""
    if _module._global_forward_hooks or _module._global_forward_pre_hooks:
        return True
    return any(module._forward_hooks or module._forward_pre_hooks for module in modules)
