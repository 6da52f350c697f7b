"""A trained network on disk: half-precision weights, and a card that says what it is and how it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from .._arguments import check, integer_mistake
from .._files import checksum, write_files
from ..errors import InputError, OptionalDependencyError
from ..evaluation.provenance import commit, machine, versions
from ..training import Forward, accuracy
from .card import Card, page, read_card, to_text
from .packaged import find
from .trust import check_trusted, imported

__all__ = ["Card", "Pretrained"]

_CARD, _WEIGHTS, _PAGE = "card.json", "weights.safetensors", "README.md"


@dataclass(frozen=True)
class Pretrained:
    """A network with its card.

    Attributes:
        model: in evaluation mode.
        card: what it is.
        trust_code: whether the loader that the card names is imported and called, whoever has made it.
    """

    model: nn.Module
    card: Card
    trust_code: bool = True

    @classmethod
    def load(cls, folder: str | Path, device: str | torch.device = "cpu", trust_code: bool = False) -> Pretrained:
        """What :meth:`save` has written, or a packaged network. The factory that the card names is imported and called.

        Args:
            folder: a folder, or the name of a network that comes with this distribution (:func:`packaged`).
            device: where the model is put.
            trust_code: whether to import and call what the card names, whatever it is. By default only functions that
                an installed package registers in the entry-point group ``seenn_plugin.factories`` are.

        Raises:
            InputError: there is no such device, the folder holds no trained network, the card names functions that are
                not registered, its factory cannot be called, or the weights are damaged or do not fit.
            OptionalDependencyError: safetensors, or what the factory needs, is not installed.
        """
        device = _existing(device)
        folder, safetensors = find(folder), _safetensors()
        card, expected = read_card(folder / _CARD)
        if not trust_code:
            check_trusted(card.network, "network")
            check_trusted(card.loader, "loader")
        model = _built(card, folder / _CARD)
        try:
            weights = (folder / _WEIGHTS).read_bytes()
            if expected is not None and checksum(weights) != expected:
                raise ValueError("they are damaged, or not those that the card was saved with")
            model.load_state_dict(safetensors.load(weights))  # it converts to the model's dtypes
        except Exception as error:  # what the reader raises depends on what is there instead
            raise InputError(
                f"the weights in {folder / _WEIGHTS} do not fit {card.network}: {error!r}. Card and weights must be "
                "from one training; get both again."
            ) from error
        return cls(model.to(device).eval(), card, trust_code)

    def save(self, folder: str | Path) -> None:
        """Write ``card.json``, ``weights.safetensors`` in half precision, and ``README.md`` for people.

        A tensor with a value beyond half precision (65504) is kept in its own.

        Raises:
            InputError: the folder cannot be written to.
            OptionalDependencyError: safetensors is not installed.
        """
        folder, weights = Path(folder), _safetensors().save(_halved(self.model))
        card = to_text(self.card, checksum(weights))
        write_files({folder / _WEIGHTS: weights, folder / _CARD: card, folder / _PAGE: page(self.card)})

    def measured(
        self, forward: Forward, root: str | Path, splits: Sequence[str] = ("validation", "test")
    ) -> Pretrained:
        """The same with the card filled in: accuracies of the weights as they are saved, machine, commit, versions.

        The weights of :attr:`model` are rounded to half precision in place, and it is left in evaluation mode.

        Args:
            forward: the framework's own run from a fresh state, as for :func:`seenn_plugin.training.train`.
            root: folder of the data.
            splits: of it.
        """
        self.model.load_state_dict(_halved(self.model))
        self.model.eval()
        batches = {split: self.batches(root, split) for split in splits}
        device = next((parameter.device for parameter in self.model.parameters()), None)
        card = replace(
            self.card,
            accuracy={split: accuracy(self.model, forward, loader) for split, loader in batches.items()},
            samples={split: len(loader.dataset) for split, loader in batches.items()},  # pyright: ignore[reportArgumentType]
            trained_on=machine(device),
            commit=commit(),
            versions=versions(),
        )
        return replace(self, card=card)

    def data(self, root: str | Path, split: str = "test", **arguments: Any) -> Any:
        """Its data set, from a folder: the split ``"train"``, ``"validation"`` or ``"test"``.

        Args:
            arguments: of the loader, in addition to those of the card.
        """
        if not self.trust_code:
            check_trusted(self.card.loader, "loader")
        return imported(self.card.loader)(root, split, **{**self.card.loader_arguments, **arguments})

    def batches(self, root: str | Path, split: str = "test", batch_size: int = 64, workers: int = 0) -> DataLoader[Any]:
        """Its data, in batches, in order.

        Raises:
            InputError: there are no such batches.
        """
        check(InputError, integer_mistake("batch_size", batch_size, 1), integer_mistake("workers", workers, 0))
        return DataLoader(self.data(root, split), batch_size=batch_size, num_workers=workers)


def _existing(device: str | torch.device) -> torch.device:
    """The device of that name, which is tried with a single number."""
    try:
        return torch.zeros(1, device=device).device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"there is no device {str(device)!r}: {error}") from error


def _halved(model: nn.Module) -> dict[str, Tensor]:
    return {name: _half(value.detach().cpu()) for name, value in model.state_dict().items()}


def _half(value: Tensor) -> Tensor:
    """A copy, rounded to half precision unless a value is too large for it; whole numbers stay as they are."""
    rounded = value.half() if value.is_floating_point() else value
    kept = rounded if torch.equal(rounded.isfinite(), value.isfinite()) else value
    return kept.clone(memory_format=torch.contiguous_format)


def _built(card: Card, path: Path) -> nn.Module:
    factory = imported(card.network)
    try:
        model = factory(**card.arguments)
    except OptionalDependencyError:
        raise
    except Exception as error:  # what a factory raises is its own affair
        raise InputError(
            f"{card.network}, which {path} names, fails with the arguments {card.arguments}: {error!r}. Install the "
            "version of it that the card was written with."
        ) from error
    if not isinstance(model, nn.Module):
        raise InputError(f"{card.network}, which {path} names, returned {type(model).__name__}, not a torch.nn.Module.")
    return model


def _safetensors() -> ModuleType:
    try:
        import safetensors.torch
    except ImportError as error:
        raise OptionalDependencyError("safetensors", "train", "reading and writing trained networks") from error
    return safetensors.torch
