"""snnTorch networks: ``nn.Sequential`` or one-step modules, with hidden or explicit neuron states.

Finds what it needs in ``sys.modules`` and imports no framework: a model of a framework that is not imported does
not exist.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import torch
from torch import nn

from seenn_plugin.adapter import REQUIRED, Cell, ModuleAdapter

_NEVER = 1e3


def _neuron_class() -> type | None:
    module = sys.modules.get("snntorch._neurons.neurons")
    return getattr(module, "SpikingNeuron", None)


class SnnTorchAdapter(ModuleAdapter):
    """Steps snnTorch 1.x networks.

    Neuron states are the non-persistent buffers of the neurons. ``utils.reset`` is never called: it resets
    same-class neurons of the whole process.
    """

    name = "snntorch"
    framework = "snntorch"
    extra = "snntorch"

    def modules_changed(self, modules: tuple[nn.Module, ...]) -> None:
        neuron = _neuron_class()
        self.neurons = {module for module in modules if neuron is not None and isinstance(module, neuron)}
        for module in self.neurons:
            if type(module).__name__ == "SLSTM" and module.input_size != module.hidden_size:
                warnings.warn(
                    f"SLSTM({module.input_size}, {module.hidden_size}) forgets its state at every timestep, because "
                    "snnTorch compares the state with the input's shape; its answers are reproduced as they are. "
                    "Use input_size == hidden_size.",
                    UserWarning,
                    stacklevel=7,
                )

    @classmethod
    def claims(cls, model: nn.Module) -> bool:
        neuron = _neuron_class()
        return neuron is not None and any(isinstance(module, neuron) for module in model.modules())

    def reset(self) -> None:
        # An empty state: at its next timestep every neuron creates its state for the rows of that call.
        for neuron in self.neurons:
            for key in neuron._non_persistent_buffers_set:
                buffer = neuron._buffers[key]
                if buffer is not None:
                    neuron._buffers[key] = buffer.new_zeros(0)

    def own_reset(self) -> None:
        # utils.reset(), which the model may call, resets all neurons of the process that are registered in this list.
        registered: list[Any] = getattr(_neuron_class(), "instances", [])
        everybody = list(registered)
        registered[:] = self.neurons
        try:
            super().own_reset()
        finally:
            registered[:] = everybody

    def owns(self, cell: Cell) -> bool:
        return (
            cell.module in self.neurons
            and cell.path == ("_buffers",)
            and cell.key in cell.module._non_persistent_buffers_set
        )

    def is_scratch(self, cell: Cell) -> bool:
        # Neurons store their last reset signal, and some their last spikes, in attributes that nothing reads.
        return cell.module in self.neurons and cell.path == () and cell.key in ("reset", "spk")

    def can_fire(self, neuron: nn.Module) -> bool:
        # An enormous threshold makes a neuron that only integrates.
        return not isinstance(neuron.threshold, torch.Tensor) or float(neuron.threshold.min()) < _NEVER

    def fresh_argument(self, default: Any) -> Any:
        return torch.zeros(0, device=self._device()) if default is REQUIRED else default

    def _device(self) -> torch.device | None:
        return next((tensor.device for tensor in [*self.model.parameters(), *self.model.buffers()]), None)
