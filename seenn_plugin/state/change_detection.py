"""Has a model changed since something was found out about it, or made of it? Asked at every call, so it must be cheap.

:class:`StructureVersion` sees exchanged modules and other ways to run them. What was found by running a few timesteps
(state, stem, readout) holds for one version. :class:`ModelFingerprint` also sees weights, buffers and settings. A copy
of the model, or a compiled step, holds for one fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from operator import ne
from typing import Any, Final

import torch
from torch import Tensor, nn

from .cells import MODULE_INTERNALS, OCCUPIED, every_module, modules_of, objects_of, stores
from .layout import Place
from .memory_format import is_dense
from .values import map_tensors, same, tensors

_SAMPLE: Final = 64


class StructureVersion:
    """Counts the changes of a model's modules, and of the settings that decide how they run.

    Attributes:
        modules: all modules of the model at the last :meth:`update`.
    """

    def __init__(self) -> None:
        self.modules: tuple[nn.Module, ...] = ()
        self._settings: Any = None
        self._version = 0

    def update(self, model: nn.Module, run_settings: Callable[[tuple[nn.Module, ...]], Any]) -> int:
        """The version of the model as it is now.

        Args:
            run_settings: what decides how the model runs, from its modules; compared by equality.
        """
        modules = modules_of(model)
        settings = run_settings(modules)
        if modules != self.modules or settings != self._settings:
            self.modules, self._settings = modules, settings
            self._version += 1
        return self._version

    def accept(self, run_settings: Callable[[tuple[nn.Module, ...]], Any]) -> None:
        """Take the settings as they are now: what is counted among them has changed, and not the model."""
        self._settings = run_settings(self.modules)

    def bump(self) -> None:
        """Count a change that cannot be seen."""
        self._version += 1


class ModelFingerprint:
    """Everything in a model that is not its state: weights, buffers, settings, modules.

    A tensor is identified by the object, its address and its version counter, which every optimiser, ``.to()`` and
    ``load_state_dict`` increases. A write through ``tensor.data`` changes none of these: it is seen if it changes one
    of a few numbers, spread over the tensor, that are kept and compared.

    Args:
        model: the model. Its hooks are not part of the fingerprint.
        state: places that hold state, and may change.
    """

    def __init__(self, model: nn.Module, state: Sequence[Place]) -> None:
        self._skipped: dict[int, set[Any]] = {}
        for store, key in (*state, (vars(model), OCCUPIED)):
            self._skipped.setdefault(id(store), set()).add(key)
        contents: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        held: dict[int, Tensor] = {}
        modules = [module for _, module in every_module(model)]
        stores_of: list[Any] = [store for module in modules for store in _stores(module)]
        stores_of += map(vars, objects_of(modules))
        for store in stores_of:
            content = {}
            for key, value in self._content(store).items():
                # The dictionaries of a module are stores of their own: here it is enough that they are the same.
                own = key in MODULE_INTERNALS or type(value) is dict
                content[key] = value if own else map_tensors(_itself, value)
                held |= {} if own else {id(tensor): tensor for tensor in tensors(value)}
            contents.append((store, content))
        skipping = [id(store) in self._skipped for store, _ in contents]
        self._some = [pair for pair, skips in zip(contents, skipping, strict=True) if skips]
        whole = [pair for pair, skips in zip(contents, skipping, strict=True) if not skips]
        self._whole = [store for store, _ in whole], [content for _, content in whole]
        self._tensors = list(held.values())
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._marks = self._read_marks()
        self._samples = _samples([tensor for tensor in held.values() if not tensor.is_meta and is_dense(tensor)])
        self._values = [torch.cat(sample) for sample in self._samples]

    def changed(self) -> bool:
        """Whether anything is not as it was."""
        try:
            if any(map(ne, *self._whole)):
                return True
            if any(self._content(store) != content for store, content in self._some):
                return True
        except Exception:  # two different tensors do not compare to a bool
            return True
        if self._read_marks() != self._marks:
            return True
        samples = [torch.cat(sample) for sample in self._samples]
        return not all(map(torch.equal, samples, self._values)) and not same(samples, self._values)  # NaN is itself

    def _read_marks(self) -> list[int]:
        return [*(tensor._version for tensor in self._counted), *(tensor.data_ptr() for tensor in self._tensors)]

    def _content(self, store: dict[Any, Any]) -> dict[Any, Any]:
        skipped = self._skipped.get(id(store))
        return store if skipped is None else {key: value for key, value in store.items() if key not in skipped}


def _stores(module: nn.Module) -> Iterator[dict[Any, Any]]:
    yield from stores(module)
    yield from (module._parameters, module._modules)


def _samples(held: Sequence[Tensor]) -> list[list[Tensor]]:
    """Views of a few numbers of each tensor, spread over it; one list for each device and dtype."""
    groups: dict[Any, list[Tensor]] = {}
    for tensor in held:
        n = min(tensor.numel(), _SAMPLE)
        view = tensor.detach().as_strided((n,), (max(1, tensor.numel() // _SAMPLE),))
        groups.setdefault((tensor.device, tensor.dtype), []).append(view)
    return list(groups.values())


def _itself(value: Any) -> Any:
    return value
