"""The card of a trained network: what it is, how it came about, and the same as a page for people."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, get_origin, get_type_hints

from .._markdown import cell, code, table
from .._naming import unknown_name
from ..errors import InputError

_FORMAT = 1
_CHECKSUM = "weights_sha256"
_MOST_BYTES = 1_000_000
_MOST_LEVELS = 8
_WRAPPER_OPTIONS = ("timesteps", "input", "time_dim", "readout")


@dataclass(frozen=True)
class Card:
    """What a trained network is, and how it came about.

    Attributes:
        title: for tables and pages.
        network: ``package.module:factory`` of the network.
        arguments: of the factory.
        wrapper: of :class:`~seenn_plugin.EarlyExitWrapper`: ``timesteps``, ``input``, ``time_dim``, ``readout``.
        loader: ``package.module:function`` of its data; called with a folder, a split and ``loader_arguments``, it
            returns a data set of pairs of an input and a class.
        loader_arguments: further arguments of the loader.
        data: what data the weights are from, for tables; the copy counts: ``"CIFAR-10, JPEG-recompressed"``.
        recipe: the stages of training, in order: settings of :class:`~seenn_plugin.training.Recipe`, and what else
            they were given.
        seed: of the first weights and of training.
        accuracy: by split, on it, after t = 1..T timesteps, of the weights as they are saved.
        samples: by split, how many.
        trained_on: the machine.
        commit: of the code that trained it.
        versions: of the packages.

    Raises:
        InputError: ``wrapper`` has an option that is none of the above.
    """

    title: str
    network: str
    arguments: dict[str, Any]
    wrapper: dict[str, Any]
    loader: str
    loader_arguments: dict[str, Any]
    data: str
    recipe: list[dict[str, Any]]
    seed: int
    accuracy: dict[str, list[float]] = field(default_factory=dict)
    samples: dict[str, int] = field(default_factory=dict)
    trained_on: dict[str, Any] = field(default_factory=dict)
    commit: str | None = None
    versions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.wrapper:
            if name not in _WRAPPER_OPTIONS:
                raise InputError(f"card: {unknown_name('wrapper option', name, _WRAPPER_OPTIONS)}")


def to_text(card: Card, weights: str) -> str:
    """A card as JSON, with the checksum of the weights that it describes."""
    return json.dumps({"format": _FORMAT, **asdict(card), _CHECKSUM: weights}, indent=2) + "\n"


def read_card(path: Path) -> tuple[Card, str | None]:
    """What :func:`to_text` made: the card, and the checksum of the weights, if it has one.

    Raises:
        InputError: it is no card, or one of another version.
    """
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ValueError(f"it is larger than {_MOST_BYTES} bytes")
        values = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
        version, weights = values.pop("format"), values.pop(_CHECKSUM, None)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(
            f"{path} is no card of a trained network: {error!r}. Name the folder that holds one."
        ) from error
    if version != _FORMAT:
        raise InputError(
            f"{path} is a card in format {version!r}, and this version of seenn-plugin reads format {_FORMAT}: install "
            "the version that wrote it."
        )
    mistakes = _mistakes(values)
    if mistakes:
        raise InputError(
            f"{path} is no card that this version of seenn-plugin reads: {' '.join(mistakes)} Install the version that "
            "wrote it, or get the card again."
        )
    return Card(**values), weights


def _mistakes(values: dict[str, Any]) -> list[str]:
    """What is wrong with the values of a card, a sentence for each."""
    hints, known = get_type_hints(Card), {own.name: own for own in fields(Card)}
    found = [unknown_name("field", name, known) for name in values if name not in known]
    for name, own in known.items():
        if name not in values:
            if own.default is MISSING and own.default_factory is MISSING:
                found.append(f"field {name!r} is missing.")
        elif not isinstance(values[name], _plain(hints[name])):
            found.append(f"field {name!r} must be of type {own.type}, not {values[name]!r}.")
        elif (depth := _depth(values[name])) > _MOST_LEVELS:
            found.append(f"field {name!r} is nested {depth} levels deep, more than {_MOST_LEVELS}.")
    accuracy, samples = values.get("accuracy", {}), values.get("samples", {})
    if not found and not all(isinstance(v, list) and all(map(_is_share, v)) for v in accuracy.values()):
        found.append("field 'accuracy' must hold lists of numbers from 0 to 1.")
    if not found and not (set(accuracy) <= set(samples) and all(map(_is_count, samples.values()))):
        found.append("field 'samples' must hold the number of samples of every split of 'accuracy'.")
    return found


def _is_share(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 1


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _depth(value: Any) -> int:
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(_depth, parts), default=0)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number")


def _plain(hint: Any) -> Any:
    """``dict`` of ``dict[str, int]``: what isinstance takes."""
    origin = get_origin(hint)
    return origin if origin in (dict, list) else hint


_MANY = 16
"""With more timesteps than this a page shows the powers of two, and the last."""


def page(card: Card) -> str:
    """A model card in Markdown."""
    parts = [
        f"# {cell(card.title)}",
        f"{code(card.network)} with {_list(card.arguments) or 'its defaults'}, wrapped with {_list(card.wrapper)}. "
        f"Trained on {cell(card.data)}, read by {code(card.loader)}{_given(card.loader_arguments)}; weights in half "
        "precision.",
        "## Accuracy of the static network",
        _accuracies(card) if card.accuracy else "Not measured.",
        "## Training",
        _stages(card.recipe) if card.recipe else "Not trained.",
        f"Seed {card.seed}.",
        "## Where it is from",
        _table(["", ""], [(cell(name), cell(value)) for name, value in _origin(card).items()]),
    ]
    return "\n\n".join(parts) + "\n"


def _accuracies(card: Card) -> str:
    header = ["timesteps", *(f"{cell(split)} ({card.samples[split]} samples)" for split in card.accuracy)]
    rows = list(zip(*card.accuracy.values(), strict=True))
    shown = [t for t in range(1, len(rows) + 1) if len(rows) <= _MANY or t & (t - 1) == 0 or t == len(rows)]
    return _table(header, [(str(t), *(f"{100 * value:.2f} %" for value in rows[t - 1])) for t in shown])


def _stages(stages: list[dict[str, Any]]) -> str:
    """A row for each setting, a column for each stage; the seed is that of all."""
    names = dict.fromkeys(name for stage in stages for name in stage if name != "seed")
    rows = [(cell(name), *(_cell(stage.get(name)) for stage in stages)) for name in names]
    return _table(["", *(f"stage {number}" for number in range(1, len(stages) + 1))], rows)


def _origin(card: Card) -> dict[str, Any]:
    return {**card.trained_on, "commit": card.commit or "unknown", **card.versions}


def _cell(value: Any) -> str:
    return "–" if value is None else cell(value)


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return table(header, rows).removesuffix("\n")


def _given(arguments: dict[str, Any]) -> str:
    return f" with {_list(arguments)}" if arguments else ""


def _list(values: dict[str, Any]) -> str:
    return cell(", ".join(f"{name} {value}" for name, value in values.items()))
