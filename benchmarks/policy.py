"""Measure what the policy gains, and how many updates it needs, on features of every patch of the grid.

    python -m benchmarks.policy CHECKPOINT --train train.csv --val val.csv

The focuser runs once on every cell of every frame of every clip. These features make it a matter of seconds to compare
fixed cells, random cells, the checkpoint's policy, policies that PPO trains from scratch for some number of updates,
and a greedy oracle that knows the label (the possible gain). Frames are sampled as in evaluation, without augmentation.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.media.preprocess import sampled_frames
from benchmarks.machine import save
from training.checkpoint import ModelOptions, load_model, read_checkpoint
from training.model import ActorCritic, AdaFocus
from training.ppo import BETAS, act, discounted_returns, normalise, ppo_loss, rewards

BATCH = 16
GAMMA = 0.7


class Seen:
    """Every cell of every frame of a split: feature maps [N, T, ...], features [N, T, cells, dim], labels [N]."""

    def __init__(self, model: AdaFocus, data: Path) -> None:
        maps, features, labels = [], [], []
        for example in read_data(data).examples:
            sampled = sampled_frames(example.open_clip(), model.spec)
            frames = torch.from_numpy(np.stack([pixels for _, pixels in sampled]))
            with torch.no_grad():
                feature_map, glance = model.glance(frames)
                cells = [model.focus(frame.expand(len(model.grid), -1, -1, -1), model.grid) for frame in frames]
            seen = torch.stack(cells)
            if model.spec.with_glancer:
                seen = torch.cat([glance[:, None].expand(-1, len(model.grid), -1), seen], dim=2)
            maps.append(feature_map)
            features.append(seen)
            labels.append(example.labels[0])
        self.maps, self.features, self.labels = torch.stack(maps), torch.stack(features), torch.tensor(labels)

    def at(self, actions: Tensor) -> Tensor:
        """Return the features of the chosen cells, [N, T, dim]; actions int64 [N, T]."""
        index = actions[:, :, None, None].expand(-1, -1, 1, self.features.shape[-1])
        return self.features.gather(2, index)[:, :, 0]


@torch.no_grad()
def judge(model: AdaFocus, seen: Seen, actions: Tensor) -> dict[str, float]:
    """Return top-1 in percent and the mean probability of the correct class after the last step."""
    probabilities = model.classifier(seen.at(actions))[:, -1].softmax(dim=1)
    right = (probabilities.argmax(dim=1) == seen.labels).float().mean()
    return {
        "top1": round(float(right) * 100, 1),
        "confidence": round(float(probabilities.gather(1, seen.labels[:, None]).mean()), 3),
    }


@torch.no_grad()
def oracle(model: AdaFocus, seen: Seen) -> Tensor:
    """Return, step by step, the cell that gives the correct class the highest probability, int64 [N, T]."""
    clips, steps, cells = seen.features.shape[:3]
    state, rows, actions = torch.zeros(clips, model.spec.classifier_state), torch.arange(clips), []
    for step in range(steps):
        tried = [model.classifier.step(seen.features[:, step, cell], state) for cell in range(cells)]
        sure = torch.stack([logits.softmax(dim=1)[rows, seen.labels] for logits, _ in tried], dim=1)
        best = sure.argmax(dim=1)
        state = torch.stack([new for _, new in tried], dim=1)[rows, best]
        actions.append(best)
    return torch.stack(actions, dim=1)


def train(model: AdaFocus, seen: Seen, lr: float, updates: int) -> ActorCritic:
    """Train a policy from scratch by PPO, as stage 2 does, on the stored features."""
    torch.manual_seed(0)
    new, old = ActorCritic(model.spec), ActorCritic(model.spec)
    old.load_state_dict(new.state_dict())
    optimizer = torch.optim.Adam(new.parameters(), lr=lr, betas=BETAS)
    clips, steps, cells = seen.features.shape[:3]
    rows = torch.arange(BATCH)
    for _ in range(updates):
        chosen = torch.randint(clips, (BATCH,))
        rollout = act(old, seen.maps[chosen].transpose(0, 1), torch.rand(steps, BATCH))
        state, sure, compared = torch.zeros(BATCH, model.spec.classifier_state), [], []
        with torch.no_grad():
            for step in range(steps):
                random = seen.features[chosen, step, torch.randint(cells, (BATCH,))]
                other, _ = model.classifier.step(random, state)
                found, state = model.classifier.step(seen.features[chosen, step, rollout.actions[step]], state)
                sure.append(found.softmax(dim=1)[rows, seen.labels[chosen]])
                compared.append(other.softmax(dim=1)[rows, seen.labels[chosen]])
        returns = normalise(discounted_returns(rewards("random", torch.stack(sure), torch.stack(compared)), GAMMA))
        optimizer.zero_grad()
        ppo_loss(new.evaluate(rollout.feature_maps, rollout.actions), rollout, returns).backward()
        optimizer.step()
        old.load_state_dict(new.state_dict())
    return new


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    options = parser.parse_args()
    model = load_model(read_checkpoint(options.checkpoint), ModelOptions())
    splits = {"train": Seen(model, options.train), "val": Seen(model, options.val)}
    rows: list[dict[str, Any]] = []

    def add(name: str, choose: Any) -> None:
        row = {"patches": name, **{part: judge(model, seen, choose(seen)) for part, seen in splits.items()}}
        print(row, flush=True)
        rows.append(row)

    def best_of(policy: ActorCritic) -> Any:
        return lambda seen: act(policy, seen.maps.transpose(0, 1), None).actions.T

    centre = len(model.grid) // 2
    add("centre cell", lambda seen: torch.full(seen.features.shape[:2], centre))
    torch.manual_seed(0)
    add("random cells", lambda seen: torch.randint(len(model.grid), seen.features.shape[:2]))
    add("the checkpoint's policy", best_of(model.policy))
    for lr, updates in ((3e-4, 100), (3e-4, 1500), (3e-3, 300)):
        add(f"PPO, {updates} updates at {lr:g}", best_of(train(model, splits["train"], lr, updates)))
    add("oracle that knows the label", lambda seen: oracle(model, seen))
    save("policy", {"rows": rows, "train": str(options.train), "val": str(options.val)})


if __name__ == "__main__":
    main()
