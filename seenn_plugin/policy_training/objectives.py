"""Objectives of a policy network: the expected reward of its choices, exactly or from draws."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""From policy logits ``[N, K]``, rewards ``[N, K]`` and the weights of the rows ``[N]``, a scalar loss."""


def exact_loss(policy_logits: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """``-mean_i w_i sum_k v_ik R_ik`` with v the softmax of the policy logits.

    One trace of the spiking network tells the reward of every candidate, so that the expectation over choices, and its
    gradient, are exact: nothing is drawn, no baseline is needed (SEENN-II, arXiv 2304.01230).

    Args:
        policy_logits: ``[N, K]``.
        rewards: R, ``[N, K]``.
        weights: w, ``[N]``.
    """
    return -(weights * (policy_logits.softmax(1) * rewards).sum(1)).mean()


def reinforce_loss(policy_logits: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """REINFORCE with a self-critical baseline: one choice is drawn for each row, from torch's global generator.

    ``-mean_i w_i (R_iz - R_ig) log v_iz`` with z drawn from v and g its largest entry (Rennie et al., "Self-critical
    Sequence Training for Image Captioning", CVPR 2017, arXiv 1612.00563). The average of its gradient over draws is
    that of :func:`exact_loss`.
    """
    log_v = policy_logits.log_softmax(1)
    drawn = torch.multinomial(log_v.detach().exp(), 1)
    greedy = policy_logits.detach().argmax(1, keepdim=True)
    advantage = rewards.gather(1, drawn) - rewards.gather(1, greedy)
    return -(weights * (advantage.detach() * log_v.gather(1, drawn)).squeeze(1)).mean()


OBJECTIVES: dict[str, Objective] = {"exact": exact_loss, "reinforce": reinforce_loss}


def mean_entropy(policy_logits: Tensor) -> Tensor:
    """Mean entropy, in nats, of the choices."""
    return torch.special.entr(policy_logits.softmax(1)).sum(1).mean()


def joint_loss(
    objective: Objective, policy_logits: Tensor, rewards: Tensor, weights: Tensor, cross_entropy: Tensor
) -> Tensor:
    """``E_z[-R(z) + CE(a_z, y)]``, by which policy and spiking network are fine-tuned together (arXiv 2304.01230).

    Args:
        cross_entropy: of the decision logits at every candidate, ``[N, K]``, differentiable in the spiking network.
    """
    choice = objective(policy_logits, rewards - cross_entropy.detach(), weights)
    v = policy_logits.detach().softmax(1)
    return choice + (weights * (v * cross_entropy).sum(1)).mean()


def first_step_weights(right_at_first: Tensor) -> Tensor:
    """The authors' re-weighting of samples that are wrong at the first candidate: ``rate / (1 - rate)``, the others 1.

    Args:
        right_at_first: bool ``[N]``; ``rate`` is its mean, the accuracy at the first candidate.
    """
    rate = float(right_at_first.double().mean())
    weight = rate / (1 - rate) if 0 < rate < 1 else 1.0
    return torch.where(right_at_first, 1.0, weight)
