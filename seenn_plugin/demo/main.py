"""The demo from beginning to end."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm

from .._arguments import check, flag_mistake, integer_mistake
from ..errors import InputError, OptionalDependencyError
from ..models.digits import conv_net, sew_resnet
from ..policies import make_policy
from .data import load
from .experiment import QUICK, Budget, conduct
from .report import save_figure, save_report, table

_NEEDS = (
    ("sklearn", "scikit-learn", "cli"),
    ("matplotlib", "matplotlib", "plot"),
    ("spikingjelly.activation_based", "spikingjelly", "spikingjelly"),
    ("snntorch", "snntorch", "snntorch"),
)
_MOST_SEED = 2**32 - 1
"""The largest seed that scikit-learn takes."""
_THREADS = 1
"""One thread: the same numbers on any number of cores, and times that a busy second core does not spoil."""


def run(
    out: str | Path = "seenn-demo",
    seed: int = 0,
    quick: bool = False,
    say: Callable[[str], object] = tqdm.write,
    policy: str = "confidence",
) -> dict[str, Any]:
    """Train, calibrate and measure both networks; write ``report.json`` and ``figure.png``.

    Args:
        out: folder to write to; it is made if it is missing.
        seed: draws the splits, the first weights and the order of training. The accuracies depend on nothing else.
        quick: train for a few epochs and time a few samples, to see that all works.
        say: called with the table and the closing line.
        policy: when a digit stops: the name of a policy.

    Returns:
        The content of ``report.json``.

    Raises:
        OptionalDependencyError: a package that the demo needs is not installed.
        InputError: ``out`` cannot be made, or ``seed`` is no integer from 0 to 2**32 - 1.
        PolicyError: there is no such policy.
    """
    check(InputError, integer_mistake("seed", seed, 0, _MOST_SEED), flag_mistake("quick", quick))
    make_policy(policy)  # before the work, like the folder
    _require_packages()
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)  # before the work, so that nothing is lost
    except OSError as error:
        raise InputError(f"cannot write to {folder}: {error.strerror}.") from error
    budget = QUICK if quick else Budget()
    with _one_thread(), torch.random.fork_rng(devices=[]):
        digits = load(seed)
        outcomes = []
        for make in (sew_resnet, conv_net):
            torch.manual_seed(seed)  # for each, so that no network depends on the one before it
            outcomes.append(conduct(make(), digits, seed, budget, policy))
        report = save_report(outcomes, digits, seed, quick, policy, folder / "report.json")
        save_figure(outcomes, folder / "figure.png")
        say(table(outcomes, digits))
    say(f"\nreport.json and figure.png are in {folder.resolve()}")
    return report


def _require_packages() -> None:
    for module, package, extra in _NEEDS:
        try:
            importlib.import_module(module)
        except ImportError as error:
            raise OptionalDependencyError(package, extra, "the demo") from error


@contextmanager
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(_THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(before)
