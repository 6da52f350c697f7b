"""A recurrent snnTorch network that reads Braille letters by touch, and stops as soon as it knows the letter.

    python examples/braille_snntorch.py --data DIR --pretrained   # numbers in a minute
    python examples/braille_snntorch.py --data DIR                # train it, a few minutes on one core

DIR holds ``braille7.npz``, events of 12 taxels in 256 bins of 5 ms (see :func:`seenn_plugin.data.braille`).
"""

from __future__ import annotations

from common import Example, Stage, main
from torch import Tensor, nn

from seenn_plugin.checkpoints.pretrained import Card
from seenn_plugin.models.snntorch import RecurrentNet, run_sequence
from seenn_plugin.training import Recipe

NETWORK = {"hidden": 128, "beta": 0.9, "beta_out": 0.95}


def build() -> nn.Module:
    return RecurrentNet(**NETWORK)


def forward(model: nn.Module, recordings: Tensor) -> Tensor:
    return run_sequence(model, recordings.transpose(0, 1))  # a loader's batches are [N, T, 12]


EXAMPLE = Example(
    name="braille-snntorch",
    card=Card(
        title="Recurrent snnTorch network on Braille letters",
        network="seenn_plugin.models.snntorch:RecurrentNet",
        arguments=NETWORK,
        # The sum of the membrane potentials of the output neurons over the time so far.
        wrapper={"input": "sequence", "time_dim": 1, "readout": "sum"},
        loader="seenn_plugin.data:braille",
        loader_arguments={"timesteps": 256},
        data="Braille letters, 7 classes, 256 x 5 ms",
        recipe=[],
        seed=0,
    ),
    build=build,
    stages=[
        # Every timestep answers for itself: what is known after half a letter is worth something.
        Stage(
            "train",
            Recipe(epochs=30, batch_size=64, optimizer="adamw", learning_rate=2e-3, tet_lambda=0.0, clip=1.0),
            forward,
        )
    ],
)

if __name__ == "__main__":
    main(EXAMPLE)
