"""The snnTorch adapter against the conformance kit, with hidden and with explicit states."""

from __future__ import annotations

import torch
from seenn_snntorch import SnnTorchAdapter

from seenn_plugin.adapter.conformance import AdapterConformance

from ..device import DEVICE
from ..snntorch_nets import NetSpec, build


class TestSequential(AdapterConformance):
    adapter = SnnTorchAdapter
    spec = NetSpec("conv", "Leaky", "sequential", membrane=False, seed=1)

    def make_model(self):
        frames = torch.randn(8, 16, *self.spec.row, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return build(self.spec, frames).to(DEVICE)

    def make_inputs(self, n):
        shape = (self.timesteps, n, *self.spec.row) if self.sequence else (n, *self.spec.row)
        generator = torch.Generator().manual_seed(2)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)


class TestHiddenSequence(TestSequential):
    sequence = True
    spec = NetSpec("fc", "RLeaky", "hidden", membrane=True, seed=2)


class TestRequiredStates(TestSequential):
    spec = NetSpec("fc", "Synaptic", "required", membrane=False, seed=3)


class TestOptionalStates(TestSequential):
    sequence = True
    spec = NetSpec("fc", "RSynaptic", "optional", membrane=False, seed=4)
