"""Training the policy: rewards, returns, and the losses of PPO (official ``models/ppo.py``) and of expected reward."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model import ActorCritic

CLIP = 0.2
"""How far the new policy's probability of an action may leave the old one's, as a share."""
VALUE_WEIGHT = 0.5
ENTROPY_WEIGHT = 0.01
BETAS = (0.9, 0.999)
"""Of Adam."""


@dataclass(frozen=True)
class Rollout:
    """What the old policy did in a batch of clips.

    Attributes:
        feature_maps: what it saw, float32 [T, N, dim, h, w].
        actions: the cells it drew, int64 [T, N].
        log_probs: of them, float32 [T, N].
        every_log_prob: of every cell, float32 [T, N, cells]; None where nobody asks for it.
    """

    feature_maps: Tensor
    actions: Tensor
    log_probs: Tensor
    every_log_prob: Tensor | None = None


@torch.no_grad()
def act(policy: ActorCritic, feature_maps: Tensor, draws: Tensor | None) -> Rollout:
    """Run the policy over whole clips.

    Args:
        policy: the one that acts.
        feature_maps: float32 [T, N, dim, h, w].
        draws: float32 [T, N], uniform 0..1: the cell is where the cumulative probability passes it. None for the best
            cell, as in evaluation.
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
    """Return what each glimpse was worth, [T, N].

    Args:
        kind: ``random``: the confidence beyond that with one random patch from the same recurrent state; ``prev``:
            beyond that one step before, 0 at first; ``conf``: the confidence itself.
        confidence: probability of the right class after each step, [T, N].
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
    """Bring returns to mean 0 and deviation 1 over batch and time.

    Args:
        returns: [T, N].
        everything: the returns of all processes, whose mean and deviation count; None for these alone.
    """
    over = returns if everything is None else everything
    return (returns - over.mean()) / (over.std() + 1e-5)


@dataclass(frozen=True)
class PolicyLoss:
    """The loss of one update and what it is made of, each a mean over clips and time.

    Attributes:
        total: what is minimised.
        entropy: of the policy, in nats; ln(cells) where it looks anywhere, 0 where it always looks at one cell.
        value_loss: squared error of the critic; None for the expected reward, which has no critic.
        advantage: mean size of the advantage, how much the actions differ from what was expected of them.
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
        judged: what the new policy's ``evaluate`` says of the rollout.
        rollout: of the old policy.
        returns: normalised, [T, N].
        entropy_weight: how much an even policy is worth beside the reward.
    """
    return ppo_parts(judged, rollout, returns, entropy_weight).total


def ppo_parts(
    judged: tuple[Tensor, Tensor, Tensor], rollout: Rollout, returns: Tensor, entropy_weight: float = ENTROPY_WEIGHT
) -> PolicyLoss:
    """Return the same as :func:`ppo_loss` with its parts."""
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
    """Return minus the expected advantage of the policy, with the weight of its entropy.

    Where every cell's reward is known, the expectation over the policy's choice is a sum, and its gradient has none of
    the noise that a drawn cell brings (the "all actions" policy gradient, Sutton et al. 2000; Ciosek and Whiteson
    2018, arXiv 1706.05374).

    Args:
        probabilities: of the policy that learns, [T, N, cells].
        entropy: of it, [T, N].
        advantage: of each cell, normalised, [T, N, cells].
        entropy_weight: see :func:`ppo_loss`.
    """
    gained = (probabilities * advantage).sum(dim=-1)
    total = (-gained - entropy_weight * entropy).mean()
    return PolicyLoss(total, entropy.mean(), None, advantage.abs().mean())


def divergence(before: Tensor, after: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence from one policy to the next; log probabilities [T, N, cells]."""
    return (before.exp() * (before - after)).sum(dim=-1).mean()
