"""An exit policy of your own, in ten lines: wrapped, calibrated, and compared with the confidence policy.

    python examples/custom_policy.py

The network is untrained and its labels are its own answers after all timesteps, so that accuracy is agreement with
those: this shows how, not how well. `seenn demo` shows how well.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from spikingjelly.activation_based import functional, layer, neuron
from torch import Tensor, nn

from seenn_plugin import EarlyExitWrapper, evaluate
from seenn_plugin.policies import Decision, Policy, ThresholdPolicy


@dataclass(frozen=True)
class LeadPolicy(ThresholdPolicy):
    """Stop when the best class leads the second by more than the threshold, in logits."""

    threshold: float = 2.0

    def score(self, logits: Tensor) -> Tensor:
        best, second = logits.topk(2, dim=-1).values.unbind(-1)
        return best - second


class SettledPolicy(Policy):
    """Stop when no logit has moved by more than a tenth since the timestep before.

    What it has to remember of a row is returned as policy state. The engine keeps it with the active rows.
    """

    def decide(self, logits: Tensor, timestep: Tensor, policy_state: Any) -> Decision:
        if policy_state is None:
            return Decision(torch.zeros_like(timestep, dtype=torch.bool), torch.zeros_like(logits[:, 0]), logits)
        moved = (logits - policy_state).abs().amax(1)
        return Decision(moved < 0.1, -moved, logits)


def main() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        *(layer.Linear(64, 128), layer.BatchNorm1d(128), neuron.LIFNode(tau=4.0)),
        *(layer.Linear(128, 128), layer.BatchNorm1d(128), neuron.LIFNode(tau=4.0, v_threshold=0.1)),
        layer.Linear(128, 10),
    )
    functional.set_step_mode(model, "m")
    model.eval()
    held_out, test = (batches(model, 8) for _ in range(2))

    for policy in (LeadPolicy(), "confidence"):
        snn = EarlyExitWrapper(model, policy=policy, timesteps=8).calibrate(held_out, max_accuracy_drop=0.05)
        report(snn, test)
    report(EarlyExitWrapper(model, policy=SettledPolicy(), timesteps=8), test)


def batches(model: nn.Module, number: int) -> list[tuple[Tensor, Tensor]]:
    """Noise ``[32, 64]``, labelled with what the network answers after 8 timesteps."""
    made = []
    for _ in range(number):
        x = 4 * torch.randn(32, 64)
        with torch.no_grad():
            made.append((x, model(x.expand(8, *x.shape)).mean(0).argmax(1)))
        functional.reset_net(model)
    return made


def report(snn: EarlyExitWrapper, test: list[tuple[Tensor, Tensor]]) -> None:
    result = evaluate(snn, test)
    print(
        f"{type(snn.policy).__name__}: {result.mean_timesteps:.2f} of 8 timesteps, "
        f"{100 * result.accuracy:.1f} % as after 8"
    )


if __name__ == "__main__":
    main()
