"""Training the policy: rewards, returns, and the losses of PPO (official ``models/ppo.py``) and of expected reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import ActorCritic

CLIP = 0.2
"""Max relative change of an action's probability from the old policy to the new one."""
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01
BETAS = (0.9, 0.999)
"""Betas of Adam."""


@dataclass(frozen=True)
class Rollout:
    """The old policy's actions in a batch of clips.

    Attributes:
        feature_maps: the policy's input, float32 [T, N, dim, h, w].
        actions: cells that it drew, int64 [T, N].
        log_probs: log probabilities of the actions, float32 [T, N].
        every_log_prob: log probabilities of all cells, float32 [T, N, cells]; None where they are not needed.
    """

    feature_maps: Tensor
    actions: Tensor
    log_probs: Tensor
    every_log_prob: Tensor | None = None


@torch.no_grad()
def act(policy: ActorCritic, feature_maps: Tensor, draws: Tensor | None) -> Rollout:
    """Run the policy over whole clips.

    Args:
        policy: policy that acts.
        feature_maps: float32 [T, N, dim, h, w].
        draws: float32 [T, N], uniform 0..1: the drawn cell is where the cumulative probability exceeds it. None for the
            best cell, as in evaluation.
    """
    state = feature_maps.new_zeros(feature_maps.shape[1], policy.gru.hidden_size)
    actions, log_probs, every = [], [], []
    for step, feature_map in enumerate(feature_maps):
        scores, state = policy.step(feature_map, state)
        log_prob = F.log_softmax(scores, dim=1)
        if draws is None:
            action = scores.argmax(dim=1)
        else:
            passed = log_prob.exp().cumsum(dim=1) <= draws[step, :, None]
            action = passed.sum(dim=1).clamp(max=scores.shape[1] - 1)
        actions.append(action)
        log_probs.append(log_prob.gather(1, action[:, None])[:, 0])
        every.append(log_prob)
    return Rollout(feature_maps, torch.stack(actions), torch.stack(log_probs), torch.stack(every))


def rewards(kind: str, confidence: Tensor, random_confidence: Tensor) -> Tensor:
    """Return the reward of each glimpse, [T, N].

    Args:
        kind: ``random``: confidence minus that with one random patch from the same recurrent state; ``prev``: minus
            that of the step before, 0 at first; ``conf``: the confidence itself.
        confidence: probability of the true class after each step, [T, N].
        random_confidence: the same with a random patch in that step.
    """
    if kind == "random":
        return confidence - random_confidence
    if kind == "prev":
        return confidence - torch.cat([torch.zeros_like(confidence[:1]), confidence[:-1]])
    return confidence


def discounted_returns(reward: Tensor, gamma: float) -> Tensor:
    """Return the sum of each step's reward and the later ones, each step discounted by gamma; [T, N]."""
    returns = torch.empty_like(reward)
    later = torch.zeros_like(reward[0])
    for step in range(len(reward) - 1, -1, -1):
        later = reward[step] + gamma * later
        returns[step] = later
    return returns


def normalise(returns: Tensor, everything: Tensor | None = None) -> Tensor:
    """Return returns with mean 0 and deviation 1 over batch and time.

    Args:
        returns: [T, N].
        everything: returns of all processes, which give mean and deviation; None for these alone.
    """
    over = returns if everything is None else everything
    return (returns - over.mean()) / (over.std() + 1e-5)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of one update and its parts, each a mean over clips and time.

    Attributes:
        total: loss to minimise.
        entropy: entropy of the policy, in nats: ln(cells) for a uniform policy, 0 for one that always picks one cell.
        value_loss: squared error of the critic; None for the expected reward, which has no critic.
        advantage: mean absolute advantage.
    """

    total: Tensor
    entropy: Tensor
    value_loss: Tensor | None
    advantage: Tensor


def ppo_loss(
    judged: tuple[Tensor, Tensor, Tensor], rollout: Rollout, returns: Tensor, entropy_weight: float = ENTROPY_WEIGHT
) -> Tensor:
    """Return the loss of one update.

    Args:
        judged: result of the new policy's ``evaluate`` on the rollout.
        rollout: rollout of the old policy.
        returns: normalised returns, [T, N].
        entropy_weight: weight of the entropy beside the reward.
    """
    return ppo_parts(judged, rollout, returns, entropy_weight).total


def ppo_parts(
    judged: tuple[Tensor, Tensor, Tensor], rollout: Rollout, returns: Tensor, entropy_weight: float = ENTROPY_WEIGHT
) -> PolicyLoss:
    """Return the loss of :func:`ppo_loss` with its parts."""
    log_probs, values, entropy = judged
    ratio = torch.exp(log_probs - rollout.log_probs)
    advantage = returns - values.detach()
    surrogate = torch.min(ratio * advantage, ratio.clamp(1 - CLIP, 1 + CLIP) * advantage)
    value_loss = F.mse_loss(values, returns)
    total = (-surrogate + VALUE_WEIGHT * value_loss - entropy_weight * entropy).mean()
    return PolicyLoss(total, entropy.mean(), value_loss, advantage.abs().mean())


def expected_parts(
    probabilities: Tensor, entropy: Tensor, advantage: Tensor, entropy_weight: float = ENTROPY_WEIGHT
) -> PolicyLoss:
    """Return minus the expected advantage of the policy, minus its weighted entropy.

    With the reward of every cell known, the expectation over the policy's choice is a sum, and its gradient has none of
    the noise of a drawn cell (the "all actions" policy gradient, Sutton et al. 2000; Ciosek and Whiteson
    2018, arXiv 1706.05374).

    Args:
        probabilities: probabilities of the learning policy, [T, N, cells].
        entropy: entropy of that policy, [T, N].
        advantage: normalised advantage of each cell, [T, N, cells].
        entropy_weight: see :func:`ppo_loss`.
    """
    gained = (probabilities * advantage).sum(dim=-1)
    total = (-gained - entropy_weight * entropy).mean()
    return PolicyLoss(total, entropy.mean(), None, advantage.abs().mean())


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence from one policy to the next; log probabilities [T, N, cells]."""
    return (before.exp() * (before - after)).sum(dim=-1).mean()
