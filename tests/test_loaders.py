"""What a loader may yield: pairs, dictionaries with the field's keys, and anything else with ``Pairs``."""

from __future__ import annotations

from typing import Any

import pytest
import snntorch
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from seenn_plugin import EarlyExitWrapper, accuracy_curve, evaluate, measure_energy
from seenn_plugin.data import Pairs
from seenn_plugin.errors import CalibrationError

T, N = 4, 48


def network() -> EarlyExitWrapper:
    torch.manual_seed(0)
    fire = snntorch.Leaky(0.8, threshold=0.4, init_hidden=True)
    return EarlyExitWrapper(nn.Sequential(nn.Linear(7, 24), fire, nn.Linear(24, 3)).eval(), timesteps=T, readout="mean")


def samples() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(N, 7, generator=generator), torch.randint(3, (N,), generator=generator)


def everything(loader: Any) -> list[Any]:
    """The results of all functions that take a loader."""
    snn = network().calibrate(loader, average_timesteps=2)
    with torch.no_grad():
        return [
            snn.policy,
            evaluate(snn, loader).accuracy,
            accuracy_curve(snn, loader).points,
            measure_energy(snn, loader).acs.tolist(),
        ]


@pytest.mark.parametrize(
    "keys", [("image", "label"), ("pixel_values", "labels"), ("inputs", "targets"), ("x", "y"), ("img", "label")]
)
def test_dictionaries_with_the_fields_keys(keys):
    x, y = samples()
    data = [{keys[0]: x[i], keys[1]: int(y[i]), "index": i, "path": f"{i}.png"} for i in range(N)]
    assert everything(DataLoader(data, batch_size=16)) == everything([(x, y)])  # pyright: ignore[reportArgumentType]


def test_anything_else_with_pairs():
    x, y = samples()
    triples = DataLoader([(x[i], int(y[i]), i) for i in range(N)], batch_size=16)  # pyright: ignore[reportArgumentType]
    pairs = Pairs(triples, lambda batch: batch[:2])
    assert len(pairs) == 3
    assert everything(pairs) == everything([(x, y)])


@pytest.mark.parametrize(
    ("item", "message"),
    [
        (
            lambda x, y: {"image": x, "frames": x, "label": y},
            r"dict with the keys .*batch\['image'\], batch\['label'\]",
        ),
        (lambda x, y: {"image": x}, "dict with the keys"),
        (
            lambda x, y: (x, y, y),
            r"tuple of 3\. Say which parts .*Pairs\(loader, lambda batch: \(batch\[0\], batch\[1\]\)",
        ),
        (lambda x, y: x, "not a Tensor"),
    ],
)
def test_what_is_not_clear_is_asked_for(item, message):
    with pytest.raises(CalibrationError, match=message):
        network().calibrate([item(*samples())], average_timesteps=2)
