"""Run a model in isolation: whatever happens to its state is undone afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from .cells import MODULE_INTERNALS, OCCUPIED, every_module, objects_of, stores
from .hooks import observers_off
from .values import ABSENT, hides_tensors, is_plain, map_tensors


def undo(store: dict[Any, Any], saved: dict[Any, Any]) -> list[Any]:
    """Restore the saved content of ``store``. Returns the keys under which something that may be state was written.

    A compiled kernel that a framework caches in an attribute is not state, and stays.
    """
    try:
        if store == saved:  # identical objects are equal without a comparison: the fast, usual case
            return []
    except Exception:  # two different tensors do not compare to a bool
        pass
    changed = [key for key in {**saved, **store} if store.get(key, ABSENT) is not saved.get(key, ABSENT)]
    strays = [key for key in changed if is_plain(store.get(key, ABSENT)) or hides_tensors(store[key])]
    for key in strays:
        if key in saved:
            store[key] = saved[key]
        else:
            del store[key]
    return strays


@contextmanager
def occupied(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` for this thread while its state is not the caller's own.

    The mark is on the model, not on the adapter, because two wrappers may share one model.

    Raises:
        RuntimeError: another thread holds the model. Each would run on the state of the other's rows.
    """
    attributes, mark = vars(model), (get_ident(),)
    holder = attributes.setdefault(OCCUPIED, mark)  # atomic
    if holder != mark:
        raise RuntimeError(
            f"this {type(model).__name__} is being advanced by another thread; give each thread a copy of the model, "
            "or let them take turns."
        )
    try:
        yield
    finally:
        if holder is mark:  # the outermost of this thread's holds
            del attributes[OCCUPIED]


def is_occupied(model: nn.Module) -> bool:
    """Whether ``model`` is held: its values may be copies, or the state of other rows."""
    return OCCUPIED in vars(model)


@contextmanager
def isolated(model: nn.Module, observed: bool = False) -> Iterator[None]:
    """Undo afterwards every change of the state of ``model`` and of the random number generators.

    Inside, every value is a copy of the caller's, so that in-place changes are undone too. Gradients are off: this is
    for inspection, not for answers. Hooks of the caller that only observe are off, unless the run is ``observed``.
    """
    with occupied(model), nullcontext() if observed else observers_off(model):
        modules = [module for _, module in every_module(model)]
        saved = [(store, dict(store)) for module in modules for store in stores(module)]
        parameters = [(module._parameters, dict(module._parameters)) for module in modules]
        objects = [(vars(held), dict(vars(held))) for held in objects_of(modules)]
        copies: dict[int, Tensor] = {}

        def copy(tensor: Tensor) -> Tensor:  # tensors that two cells share stay shared
            if isinstance(tensor, nn.Parameter):
                return tensor
            return copies.setdefault(id(tensor), tensor.detach().clone())

        devices = {p.device for p in chain(model.parameters(), model.buffers()) if p.device.type == "cuda"}
        try:
            with torch.random.fork_rng(list(devices)), torch.inference_mode(False), torch.no_grad():
                for store, content in saved:
                    for key, value in content.items():
                        if key not in MODULE_INTERNALS and type(value) is not dict:
                            store[key] = map_tensors(copy, value)
                yield
        finally:
            for store, content in (*saved, *parameters):
                store.clear()
                store.update(content)
            for attributes, content in objects:
                undo(attributes, content)
