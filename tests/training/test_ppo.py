"""Training the policy, against one official update and the formulas."""

import numpy as np
import pytest
import torch

from tests.conftest import GOLDEN, official_spec
from training.model import ActorCritic
from training.ppo import BETAS, Rollout, act, discounted_returns, normalise, ppo_loss, rewards


@pytest.fixture(scope="module")
def golden_update() -> dict[str, torch.Tensor]:
    with np.load(GOLDEN / "golden_ppo.npz") as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays}


def small_policy() -> ActorCritic:
    """The policy of the golden update: 8 channels on 7 x 7, 9 cells, hidden 16."""
    return ActorCritic(official_spec(glance_dim=8, grid=3, policy_state=16))


def test_one_update_equals_the_official_one(golden_update: dict[str, torch.Tensor]) -> None:
    policy = small_policy()
    policy.load_state_dict({n.removeprefix("before."): v for n, v in golden_update.items() if n.startswith("before.")})
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-4, betas=BETAS)
    rollout = Rollout(golden_update["states"], golden_update["actions"], golden_update["old_log_probs"])

    judged = policy.evaluate(rollout.feature_maps, rollout.actions)
    for found, name in zip(judged, ("log_probs", "values", "entropy"), strict=True):
        torch.testing.assert_close(found, golden_update[name], atol=1e-6, rtol=1e-6)

    returns = normalise(discounted_returns(golden_update["rewards"], 0.7))
    ppo_loss(judged, rollout, returns).backward()
    optimizer.step()
    parameters = dict(policy.named_parameters())
    assert {f"grad.{name}" for name in parameters} == {n for n in golden_update if n.startswith("grad.")}
    for name, parameter in parameters.items():
        torch.testing.assert_close(parameter.grad, golden_update[f"grad.{name}"], atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(parameter.detach(), golden_update[f"after.{name}"], atol=1e-6, rtol=1e-6)


def test_rewards_follow_their_formulas() -> None:
    confidence = torch.tensor([[0.2, 0.5], [0.6, 0.4], [0.7, 0.9]])
    random = torch.tensor([[0.1, 0.6], [0.6, 0.1], [0.9, 0.5]])
    expected = {
        "random": [[0.1, -0.1], [0.0, 0.3], [-0.2, 0.4]],
        "prev": [[0.2, 0.5], [0.4, -0.1], [0.1, 0.5]],
        "conf": confidence.tolist(),
    }
    for kind, values in expected.items():
        torch.testing.assert_close(rewards(kind, confidence, random), torch.tensor(values))


def test_returns_are_discounted_from_the_end_and_normalised_over_batch_and_time() -> None:
    returns = discounted_returns(torch.tensor([[1.0, 0.0], [2.0, 1.0], [4.0, 0.0]]), 0.5)
    # 4; 2 + 0.5 * 4; 1 + 0.5 * 4 ...
    torch.testing.assert_close(returns, torch.tensor([[3.0, 0.5], [4.0, 1.0], [4.0, 0.0]]))
    values = np.array([3, 0.5, 4, 1, 4, 0])
    expected = (values - values.mean()) / (values.std(ddof=1) + 1e-5)
    torch.testing.assert_close(normalise(returns).flatten(), torch.tensor(expected, dtype=torch.float32))
    # Half the batch with the whole batch's mean and deviation: what two processes do.
    torch.testing.assert_close(normalise(returns[:, :1], returns), normalise(returns)[:, :1])


def test_actions_are_drawn_as_often_as_the_policy_says() -> None:
    torch.manual_seed(0)
    policy = small_policy()
    clips = 4000
    maps = torch.rand(1, 1, 8, 7, 7).expand(3, clips, 8, 7, 7)
    draws = torch.rand(3, clips)
    rollout = act(policy, maps, draws)
    state = torch.zeros(1, 16)
    for step in range(3):
        scores, state = policy.step(maps[step, :1], state)
        probabilities = scores.softmax(dim=1)[0]
        shares = torch.bincount(rollout.actions[step], minlength=9) / clips
        torch.testing.assert_close(shares, probabilities, atol=0.03, rtol=0)
        torch.testing.assert_close(rollout.log_probs[step].exp(), probabilities[rollout.actions[step]])
    # The judge, which runs whole clips at once, says the same of what the actor did step by step.
    log_probs, _, _ = policy.evaluate(maps, rollout.actions)
    torch.testing.assert_close(log_probs, rollout.log_probs, atol=1e-5, rtol=0)
    assert torch.equal(act(policy, maps, None).actions[:, 0], act(policy, maps, None).actions[:, 1])
