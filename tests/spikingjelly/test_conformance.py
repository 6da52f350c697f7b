"""The SpikingJelly adapter against the conformance kit, in both step modes."""

from __future__ import annotations

import torch
from seenn_spikingjelly import SpikingJellyAdapter
from spikingjelly.activation_based import functional

from seenn_plugin.adapter.conformance import AdapterConformance

from ..device import DEVICE
from ..spikingjelly_nets import NetSpec, build

# Nodes of 0.0.0.0.14 make spikes without a gradient in evaluation mode.
SPIKES_HAVE_GRADIENTS = not hasattr(functional, "set_backend")


class TestSingleStep(AdapterConformance):
    adapter = SpikingJellyAdapter
    spec = NetSpec("conv", ("LIF", "PLIF"), spiking_head=False, step_mode="s", seed=1)

    def make_model(self):
        frames = torch.randn(8, 16, *self.spec.row, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
        return build(self.spec, frames).to(DEVICE)

    def make_inputs(self, n):
        shape = (self.timesteps, n, *self.spec.row) if self.sequence else (n, *self.spec.row)
        generator = torch.Generator().manual_seed(2)
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(DEVICE)


class TestSingleStepSequence(TestSingleStep):
    sequence = True
    differentiable = SPIKES_HAVE_GRADIENTS
    spec = NetSpec("fc", ("IF", "LIF soft reset"), spiking_head=True, step_mode="s", seed=2)


class TestMultiStep(TestSingleStep):
    differentiable = SPIKES_HAVE_GRADIENTS
    spec = NetSpec("conv", ("IF", "LIF"), spiking_head=True, step_mode="m", seed=3)


class TestMultiStepSequence(TestSingleStep):
    sequence = True
    spec = NetSpec("fc", ("PLIF", "recurrent"), spiking_head=False, step_mode="m", seed=4)
