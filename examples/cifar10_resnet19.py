"""SEENN's ResNet-19 (SpikingJelly) on CIFAR-10, trained as its authors do, that stops as soon as it knows the answer.

    python examples/cifar10_resnet19.py --data DIR                       # train it: needs a GPU
    python examples/cifar10_resnet19.py --data DIR --pretrained FOLDER   # numbers of what was trained there

Interrupted training continues after the last complete epoch. DIR holds CIFAR-10 as torchvision downloads it (if DIR
is empty, it does), or image files in ``train/<class>/`` and ``test/<class>/``.
"""

from __future__ import annotations

from functools import partial

from common import Example, Stage, cifar10_card, main

from seenn_plugin.models.spikingjelly import resnet19, run
from seenn_plugin.training import Recipe

TIMESTEPS = 4

EXAMPLE = Example(
    name="cifar10-resnet19",
    card=cifar10_card("ResNet-19 on CIFAR-10", "seenn_plugin.models.spikingjelly:resnet19", TIMESTEPS),
    build=resnet19,
    stages=[
        # arXiv 2304.01230: TET, SGD, a learning rate of 0.05 for 256 images, AutoAugment and CutMix.
        Stage(
            "all-timesteps",
            Recipe(epochs=300, batch_size=256, learning_rate=0.05, weight_decay=5e-4, cutmix=0.5),
            partial(run, timesteps=TIMESTEPS),
            {"augment": "auto"},
        )
    ],
)

if __name__ == "__main__":
    main(EXAMPLE)
