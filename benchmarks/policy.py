"""Measure what the policy gains, and how many updates it needs, on features of every patch of the grid.

    python -m benchmarks.policy CHECKPOINT --train train.csv --val val.csv

The focuser runs once on every cell of every frame of every clip. These features make it a matter of seconds to compare
the centre cell, random cells, the checkpoint's policy, policies that stage 2 trains from scratch for some number of
updates, and a greedy oracle that knows the label (the possible gain). Frames are sampled as in evaluation, without
augmentation. CHECKPOINT is one of stage 2 or 3.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
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
from training.options import TrainOptions
from training.patch_features import KeptBatch
from training.ppo import act
from training.stages import PolicyStage

DRAWS = 10
"""Draws of random cells, over which their row is the mean."""
ESTIMATORS: dict[str, dict[str, Any]] = {
    "PPO as in preset=official": {},
    "PPO with 64 clips, gamma 0, entropy 0.03": {"policy_lr": 1e-3, "gamma": 0.0, "entropy_weight": 0.03},
    "expected reward as in preset=edge": {
        "policy_estimator": "expected", "policy_lr": 1e-3, "gamma": 0.0, "entropy_weight": 0.03, "policy_batch": 32,
    },
}  # fmt: skip
"""Options of stage 2 by name; the official defaults where nothing is said."""
UPDATES = (50, 200, 800)


class Seen:
    """Every cell of every frame of a split: feature maps [N, T, ...], features [N, T, cells, dim], labels [N]."""

    def __init__(self, model: AdaFocus, data: Path) -> None:
        maps, cells, glances, labels = [], [], [], []
        for example in read_data(data).examples:
            sampled = sampled_frames(example.open_clip(), model.spec)
            frames = torch.from_numpy(np.stack([pixels for _, pixels in sampled]))
            with torch.no_grad():
                feature_map, glance = model.glance(frames)
                seen = [model.focus(frame.expand(len(model.grid), -1, -1, -1), model.grid) for frame in frames]
            maps.append(feature_map)
            glances.append(glance)
            cells.append(torch.stack(seen))
            labels.append(example.labels[0])
        self.maps, self.cells, self.labels = torch.stack(maps), torch.stack(cells), torch.tensor(labels)
        self.features = self.cells
        if model.spec.with_glancer:
            glance = torch.stack(glances)[:, :, None].expand(-1, -1, len(model.grid), -1)
            self.features = torch.cat([glance, self.cells], dim=3)

    def at(self, actions: Tensor) -> Tensor:
        """Return the features of the chosen cells, [N, T, dim]; actions int64 [N, T]."""
        index = actions[:, :, None, None].expand(-1, -1, 1, self.features.shape[-1])
        return self.features.gather(2, index)[:, :, 0]

    def batch(self, clips: int) -> KeptBatch:
        """Draw clips for one update of stage 2, with its random numbers."""
        chosen, steps = torch.randperm(len(self.labels))[:clips], self.maps.shape[1]
        origins, draws = torch.rand(len(chosen), steps, 2), torch.rand(len(chosen), steps)
        return KeptBatch(self.maps[chosen], self.cells[chosen], self.labels[chosen], chosen, origins, draws, [])


@torch.no_grad()
def judge(model: AdaFocus, seen: Seen, actions: Tensor) -> dict[str, float]:
    """Return top-1, the mean probability of the correct class after the last step, and the most-used cell's share."""
    probabilities = model.classifier(seen.at(actions))[:, -1].softmax(dim=1)
    right = (probabilities.argmax(dim=1) == seen.labels).float().mean()
    uses = torch.bincount(actions.flatten(), minlength=len(model.grid))
    return {
        "top1": round(float(right) * 100, 1),
        "confidence": round(float(probabilities.gather(1, seen.labels[:, None]).mean()), 3),
        "most_used_cell": round(float(uses.max() / uses.sum()) * 100, 1),
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


def policy_cells(policy: ActorCritic, seen: Seen) -> Tensor:
    """Return the cells that a policy scores best, int64 [N, T]."""
    return act(policy, seen.maps.transpose(0, 1), None).actions.T


def train(model: AdaFocus, seen: Seen, options: TrainOptions, updates: int) -> ActorCritic:
    """Train a policy from scratch by stage 2 on the stored features."""
    torch.manual_seed(0)
    pair = model.focuser.policy
    for policy in (pair.policy, pair.policy_old):
        policy.load_state_dict(ActorCritic(model.spec).state_dict())
    pair.policy_old.load_state_dict(pair.policy.state_dict())
    stage = PolicyStage(model, options)
    stage.train()
    optimizer = stage.optimizer()
    for _ in range(updates):
        loss, _ = stage(seen.batch(options.policy_batch or options.batch_size))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        stage.after_update()
    model.eval()
    return pair.policy


def main() -> None:
    """Compare, print and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--val", type=Path, required=True)
    parser.add_argument("--name", default="policy", help="name of the report in benchmarks/results")
    options = parser.parse_args()
    model = load_model(read_checkpoint(options.checkpoint), ModelOptions())
    splits = {"train": Seen(model, options.train), "val": Seen(model, options.val)}
    rows: list[dict[str, Any]] = []

    def add(name: str, choose: Callable[[Seen], Tensor], draws: int = 1) -> None:
        found = {part: [judge(model, seen, choose(seen)) for _ in range(draws)] for part, seen in splits.items()}
        means = {
            part: {key: round(float(np.mean([one[key] for one in several])), 3) for key in several[0]}
            for part, several in found.items()
        }
        rows.append({"patches": name, **means})
        print(rows[-1], flush=True)

    cells = len(model.grid)
    torch.manual_seed(0)
    add("centre cell", lambda seen: torch.full(seen.features.shape[:2], cells // 2))
    add("random cells", lambda seen: torch.randint(cells, seen.features.shape[:2]), DRAWS)
    add("the checkpoint's policy", lambda seen: policy_cells(model.policy, seen))
    add("oracle that knows the label", lambda seen: oracle(model, seen))
    for name, given in ESTIMATORS.items():
        for updates in UPDATES:
            policy = train(model, splits["train"], TrainOptions(train_stage=2, **given), updates)
            add(f"{name}, {updates} updates", lambda seen, policy=policy: policy_cells(policy, seen))  # type: ignore[misc]
    clips = {part: len(seen.labels) for part, seen in splits.items()}
    save(options.name, {"rows": rows, "clips": clips, "train": options.train.name, "val": options.val.name})


if __name__ == "__main__":
    main()
