"""Where a network keeps its state: the places in its modules that a timestep may write.

A *cell* is one such place: a buffer, an attribute, or an entry of a dictionary attribute (SpikingJelly keeps
membrane potentials in ``module._memories``). Values may be tensors, numbers, ``None`` or containers of those.
This module knows nothing of time or rows; :mod:`seenn_plugin.module_adapter` does.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import reduce
from itertools import chain
from operator import getitem
from threading import get_ident
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


class _Absent:
    """The value of a cell that does not exist (yet)."""

    def __repr__(self) -> str:
        return "absent"

    def __reduce__(self) -> str:
        return "ABSENT"

    def __deepcopy__(self, memo: dict[int, Any]) -> _Absent:
        return self


ABSENT: Final = _Absent()
_PLAIN = (Tensor, int, float, bool, str, type(None), _Absent, range, slice, torch.dtype, torch.device)
OCCUPIED: Final = "_seenn_occupied_by"
OWN_HOOK: Final = -1
"""The key of a hook of this library's own; those of callers count from 0."""
MODULE_INTERNALS = (frozenset(vars(nn.Module())) - {"_buffers"}) | {OCCUPIED}


@dataclass(frozen=True)
class Cell:
    """One place in the model where a timestep may write.

    Attributes:
        label: qualified name for people, ``"layer1.0.sn1.v"``.
        module: the module that owns it.
        path: the dictionaries to follow from ``vars(module)``: ``()`` for an attribute, ``("_buffers",)``, ...
        key: the key in the last dictionary.
    """

    label: str
    module: nn.Module
    path: tuple[str, ...]
    key: Any

    @property
    def store(self) -> dict[Any, Any]:
        return reduce(getitem, self.path, vars(self.module))

    def read(self) -> Any:
        return self.store.get(self.key, ABSENT)

    def write(self, value: Any) -> None:
        write(self.store, self.key, value)


def write(store: dict[Any, Any], key: Any, value: Any) -> None:
    """Put a value under a key; :data:`ABSENT` removes it."""
    if value is ABSENT:
        store.pop(key, None)
    else:
        store[key] = value


def modules_of(model: nn.Module) -> tuple[nn.Module, ...]:
    """The modules of ``model``, as ``model.modules()`` has them in another order, at a quarter of the time."""
    met: dict[nn.Module, None] = {}
    waiting: list[nn.Module | None] = [model]
    while waiting:
        module = waiting.pop()
        if module is not None and module not in met:
            met[module] = None
            waiting.extend(module._modules.values())
    return tuple(met)


def every_module(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """All modules of ``model`` by name, those in plain lists and dictionaries too, where ``modules()`` misses them."""
    met: set[int] = set()
    waiting = list(model.named_modules())
    while waiting:
        name, module = waiting.pop(0)
        if id(module) in met:
            continue
        met.add(id(module))
        yield name, module
        for key, value in vars(module).items():
            if key not in MODULE_INTERNALS and key != "_buffers" and isinstance(value, list | tuple | dict):
                waiting += [(f"{name}.{key}", leaf) for leaf in leaves(value) if isinstance(leaf, nn.Module)]


def stores(module: nn.Module) -> Iterator[dict[Any, Any]]:
    """The dictionaries of one module that may hold state: its attributes, its buffers, dictionary attributes."""
    attributes = vars(module)
    yield attributes
    yield from (value for key, value in attributes.items() if key not in MODULE_INTERNALS and type(value) is dict)


def cells(model: nn.Module, registers: Sequence[str]) -> list[Cell]:
    """Every cell of every module of ``model``: the candidates for state.

    Args:
        registers: names of the dictionary attributes whose entries are cells of their own. Any other dictionary is one
            value.
    """
    found = []
    for prefix, module in every_module(model):
        attributes = vars(module)
        paths = [((), attributes), *(((name,), attributes[name]) for name in registers if name in attributes)]
        for path, store in paths:
            for key, value in store.items():
                internal = path == () and (key in MODULE_INTERNALS or key in registers)
                if not internal and not any(isinstance(leaf, nn.Parameter | nn.Module) for leaf in leaves(value)):
                    found.append(Cell(f"{prefix}.{key}" if prefix else str(key), module, path, key))
    return found


def leaves(value: Any) -> list[Any]:
    """The leaves of a value: tensors, numbers and whatever is no container."""
    if isinstance(value, _PLAIN):
        return [value]
    return pytree.tree_leaves(value)


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in leaves(value) if isinstance(leaf, Tensor)]


def row_misfit(memory: Any, n: int) -> str | None:
    """What in ``memory`` is no tensor with ``n`` rows on dimension 0, in words; ``None`` if all is."""
    for leaf in leaves(memory):
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0 or leaf.shape[0] != n:
                return f"shape {tuple(leaf.shape)}"
        elif leaf is not None:
            return f"type {type(leaf).__name__}"
    return None


def map_tensors(function: Any, value: Any) -> Any:
    """``value`` with ``function`` applied to its tensors; its containers are new objects."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, _PLAIN):
        return value
    return pytree.tree_map_only(Tensor, function, value)


def random_state(inputs: Tensor) -> Tensor:
    """The state of the random generators that a model draws from on ``inputs``."""
    state = torch.get_rng_state()
    return torch.cat([state, torch.cuda.get_rng_state(inputs.device)]) if inputs.is_cuda else state


def to_float64(_: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A pre-hook for every module of a model that is to compute in float64 all over."""
    return map_tensors(lambda x: x.double() if x.is_floating_point() else x, inputs)


def is_plain(value: Any) -> bool:
    """Whether a value is made of tensors, numbers, strings and containers alone."""
    return all(isinstance(leaf, _PLAIN) for leaf in leaves(value))


def hides_tensors(value: Any) -> bool:
    """Whether a value that is not plain carries tensors in the attributes of some object."""
    objects = [leaf for leaf in leaves(value) if not isinstance(leaf, _PLAIN)]
    return any(tensors(vars(leaf)) for leaf in objects if hasattr(leaf, "__dict__"))


def same(left: Any, right: Any) -> bool:
    """Whether two values are equal, bit by bit; NaN equals NaN."""
    left_leaves, left_spec = pytree.tree_flatten(left)
    right_leaves, right_spec = pytree.tree_flatten(right)
    return left_spec == right_spec and all(map(_same_leaf, left_leaves, right_leaves))


def _same_leaf(left: Any, right: Any) -> bool:
    if isinstance(left, Tensor) and isinstance(right, Tensor):
        if left.shape != right.shape or left.dtype != right.dtype or left.device != right.device:
            return False
        return torch.equal(left, right) or bool(((left == right) | ((left != left) & (right != right))).all())
    return left is right or (isinstance(left, _PLAIN) and type(left) is type(right) and left == right)


def undo(store: dict[Any, Any], saved: dict[Any, Any]) -> list[Any]:
    """Give ``store`` its saved content back; the keys under which something that may be state had been written.

    What a framework caches in an attribute (a compiled kernel) is no state and stays.
    """
    try:
        if store == saved:  # identical values are equal without a look at them: this is the fast, usual case
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


POISONS: Final = (float("nan"), 1e6, -1e6)


def poisoned(value: Any, poison: float = POISONS[0]) -> Any:
    """``value`` with an absurd number for every number in it, so that whoever reads it shows it."""

    def replace(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            number = poison if leaf.is_floating_point() else (0 if poison != poison else poison > 0)
            return torch.full_like(leaf, number)
        return poison if isinstance(leaf, int | float) else leaf

    return pytree.tree_map(replace, value)


@contextmanager
def occupied(model: nn.Module) -> Iterator[None]:
    """Hold ``model`` for this thread while its state is not the caller's own.

    The mark lies on the model, not on the adapter, because two wrappers may share one model.

    Raises:
        RuntimeError: another thread holds the model; each would run on the state of the other's rows.
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
    """Whether somebody holds ``model``: what lies in it may be copies, or state of other rows."""
    return OCCUPIED in vars(model)


@contextmanager
def isolated(model: nn.Module) -> Iterator[None]:
    """Let anything happen to the state of ``model`` and to the random generators, and undo it afterwards.

    Inside, every value is a copy of the caller's, so that in-place changes are undone too. Gradients are off: this is
    for looking, not for answering.
    """
    with occupied(model):
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


def objects_of(modules: Sequence[nn.Module]) -> Iterator[Any]:
    """Instances of other classes that modules hold in their attributes, and that may hold state themselves."""
    for module in modules:
        for key, value in vars(module).items():
            if key not in MODULE_INTERNALS and not isinstance(value, _PLAIN):
                for leaf in leaves(value):
                    if not isinstance(leaf, (*_PLAIN, nn.Module, type)) and hasattr(leaf, "__dict__"):
                        yield leaf
