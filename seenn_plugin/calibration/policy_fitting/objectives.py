"""Objectives of a policy network: the expected reward of its choices, computed exactly or by sampling."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Objective = Callable[[Tensor, Tensor, Tensor], Tensor]
"""Maps policy logits ``[N, K]``, rewards ``[N, K]`` and weights of the rows ``[N]`` to a scalar loss."""


def exact_loss(policy_logits: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """Return ``-mean_i w_i sum_k v_ik R_ik``, where v is the softmax of the policy logits.

    A trace of the spiking network contains the reward of every candidate. The expectation over choices and its gradient
    are therefore exact, without sampling and without a baseline (SEENN-II, arXiv 2304.01230).

    Args:
        policy_logits: ``[N, K]``.
        rewards: R, ``[N, K]``.
        weights: w, ``[N]``.

    Example:
        >>> exact_loss(torch.zeros(1, 2), torch.tensor([[1.0, 0.0]]), torch.ones(1))
        tensor(-0.5000)
    """
    return -(weights * (policy_logits.softmax(1) * rewards).sum(1)).mean()


def reinforce_loss(policy_logits: Tensor, rewards: Tensor, weights: Tensor) -> Tensor:
    """Return the loss of REINFORCE with a self-critical baseline.

    ``-mean_i w_i (R_iz - R_ig) log v_iz``, with one choice z per row sampled from v, and g the most probable choice
    (Rennie et al., "Self-critical Sequence Training for Image Captioning", CVPR 2017, arXiv 1612.00563). The expected
    gradient is the gradient of :func:`exact_loss`. Samples are drawn from the global random generator of torch.

    Args:
        policy_logits: ``[N, K]``.
        rewards: R, ``[N, K]``.
        weights: w, ``[N]``.
    """
    log_v = policy_logits.log_softmax(1)
    sampled = torch.multinomial(log_v.detach().exp(), 1)
    greedy = policy_logits.detach().argmax(1, keepdim=True)
    advantage = rewards.gather(1, sampled) - rewards.gather(1, greedy)
    return -(weights * (advantage.detach() * log_v.gather(1, sampled)).squeeze(1)).mean()


OBJECTIVES: dict[str, Objective] = {"exact": exact_loss, "reinforce": reinforce_loss}
"""The loss for each value of ``fit_policy(..., objective=...)``."""


def mean_entropy(policy_logits: Tensor) -> Tensor:
    """Return the mean entropy, in nats, of the softmax of policy logits ``[N, K]``."""
    return torch.special.entr(policy_logits.softmax(1)).sum(1).mean()


def joint_loss(
    objective: Objective, policy_logits: Tensor, rewards: Tensor, weights: Tensor, cross_entropy: Tensor
) -> Tensor:
    """Return ``E_z[-R(z) + CE(a_z, y)]``, the loss that trains policy and spiking network together (arXiv 2304.01230).

    Args:
        objective: the loss of the policy network.
        policy_logits: ``[N, K]``.
        rewards: R, ``[N, K]``.
        weights: w, ``[N]``.
        cross_entropy: CE of the decision logits at each candidate, ``[N, K]``; differentiable with respect to the
            spiking network.
    """
    choice = objective(policy_logits, rewards - cross_entropy.detach(), weights)
    v = policy_logits.detach().softmax(1)
    return choice + (weights * (v * cross_entropy).sum(1)).mean()


def first_step_weights(correct_at_first: Tensor) -> Tensor:
    """Return the weights of rows, ``rate / (1 - rate)`` for rows that are wrong at the first candidate, 1 for others.

    The authors of SEENN weight their samples in this way.

    Args:
        correct_at_first: bool ``[N]``. Its mean is ``rate``, the accuracy at the first candidate. If that is 0 or 1,
            all weights are 1.

    Returns:
        Float ``[N]``.
    """
    rate = float(correct_at_first.double().mean())
    weight = rate / (1 - rate) if 0 < rate < 1 else 1.0
    return torch.where(correct_at_first, 1.0, weight)
