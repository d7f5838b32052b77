"""The four stages: what each trains and leaves alone, and its loss against the formula."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.conftest import official_spec
from training.datasets import Batch
from training.geometry import crop, patch_corner
from training.model import AdaFocus
from training.options import TrainOptions
from training.stages import STAGES, PolicyStage, RandomPatchStage, Stage

SPEC = official_spec(
    focuser="resnet18", focus_dim=512, frame_size=64, glance_size=64, patch_size=32, grid=3, segments=3,
    policy_state=16, classifier_state=24, classes=5,
)  # fmt: skip


def options(stage: int, **changes: Any) -> TrainOptions:
    return TrainOptions(train_stage=stage, dropout=0.0, backbone_lr=0.01, fc_lr=0.02, **changes)


def model_of(seed: int = 0, **changes: Any) -> AdaFocus:
    torch.manual_seed(seed)
    return AdaFocus(official_spec(**{**{f: getattr(SPEC, f) for f in SPEC.__dataclass_fields__}, **changes}), 0.0)


def batch_of(clips: int = 4, seed: int = 0) -> Batch:
    random = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (clips, 3, 64, 64, 3), generator=random, dtype=torch.uint8)
    target = torch.randint(0, 5, (clips,), generator=random)
    origins, draws = torch.rand(clips, 3, 2, generator=random), torch.rand(clips, 3, generator=random)
    return Batch(frames, target, torch.arange(clips), origins, draws, [])


def step(stage: Stage, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    """Take one update; return the loss and the parameters that it changed, with their gradients."""
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    optimizer = stage.optimizer()
    stage.train()
    loss, logits = stage(batch)
    assert logits.shape == (len(batch.target), 3, 5)
    loss.backward()
    optimizer.step()
    after = stage.model.state_dict()
    return loss.item(), {name: after[name] for name in after if not torch.equal(before[name], after[name])}


def parts(names: Any) -> set[str]:
    return {".".join(name.split(".")[: 3 if ".policy." in name else 2]) for name in names}


def test_each_stage_changes_what_it_trains_and_nothing_else() -> None:
    for glancer, part in ((True, "glancer.net"), (False, "focuser.net")):
        _, changed = step(STAGES[0](model_of(), options(0, pretrain_glancer=glancer)), batch_of())
        assert parts(changed) == {part}
    _, changed = step(STAGES[1](model_of(), options(1)), batch_of())
    assert parts(changed) == {"focuser.net", "classifier.gru", "classifier.fc"}
    assert any("running_mean" in name for name in changed)
    _, changed = step(STAGES[2](model_of(), options(2)), batch_of())
    assert parts(changed) == {"focuser.policy.policy"}
    _, changed = step(STAGES[3](model_of(), options(3)), batch_of())
    assert parts(changed) == {"classifier.gru", "classifier.fc"}


def test_batch_norms_can_be_frozen() -> None:
    _, changed = step(STAGES[1](model_of(), options(1, freeze_bn=True)), batch_of())
    assert not any("running" in name for name in changed)
    assert any(name.endswith("bn1.weight") for name in changed)  # its scale still learns


def test_stage_0_is_the_cross_entropy_of_the_mean_over_frames() -> None:
    stage, batch = STAGES[0](model_of(), options(0, pretrain_glancer=False)), batch_of()
    stage.train(False)
    loss, _ = stage(batch)
    net = stage.model.focuser.net
    logits = torch.stack([net(stage.model.normalise(clip.float())).mean(dim=0) for clip in batch.frames])
    logs = logits - logits.exp().sum(dim=1, keepdim=True).log()
    expected = -logs[range(4), batch.target].mean()
    torch.testing.assert_close(loss, expected)


def by_steps(model: AdaFocus, batch: Batch, origins: torch.Tensor) -> torch.Tensor:
    """Logits of a batch, one step of one clip at a time, as the device takes them."""
    every = []
    for clip, places in zip(batch.frames, origins, strict=True):
        state, logits = torch.zeros(1, SPEC.classifier_state), []
        for number in range(3):
            frame = clip[number : number + 1]
            _, glance = model.glance(frame)
            patch = crop(frame.float(), patch_corner(places[number : number + 1], 64, 32), 32)
            found, state = model.classifier.step(
                torch.cat([glance, model.focuser(model.normalise(patch))], dim=1), state
            )
            logits.append(found)
        every.append(torch.cat(logits))
    return torch.stack(every)


@torch.no_grad()
def test_stage_1_is_the_mean_over_steps_on_the_random_patches() -> None:
    stage, batch = RandomPatchStage(model_of(), options(1)), batch_of()
    stage.train(False)
    loss, logits = stage(batch)
    expected = by_steps(stage.model, batch, batch.origins)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-4)
    probabilities = expected.softmax(dim=2)
    terms = [-probabilities[c, t, batch.target[c]].log() for c in range(4) for t in range(3)]
    torch.testing.assert_close(loss, torch.stack(terms).mean())


@torch.no_grad()
def test_stage_3_sees_the_patches_that_the_acting_policy_scores_best() -> None:
    model = model_of()
    for parameter in model.focuser.policy.policy.parameters():
        parameter.fill_(0.0)  # not the one that acts
    stage, batch = STAGES[3](model, options(3)), batch_of()
    stage.train(False)
    origins = torch.empty(4, 3, 2)
    for number, clip in enumerate(batch.frames):
        state = torch.zeros(1, SPEC.policy_state)
        for t in range(3):
            feature_map, _ = model.glance(clip[t : t + 1])
            origins[number, t : t + 1], _, state = model.choose(feature_map, state)
    torch.testing.assert_close(stage.logits(batch), by_steps(model, batch, origins), atol=1e-5, rtol=1e-4)


def test_stage_2_rewards_what_a_random_patch_from_the_same_state_would_not_have_given() -> None:
    model, batch = model_of(), batch_of()
    stage = PolicyStage(model, options(2, reward="random"))
    stage.train()
    drawn: list[Any] = []
    before = model.focuser.policy.policy.evaluate
    model.focuser.policy.policy.evaluate = lambda m, a: drawn.append(a) or before(m, a)  # type: ignore[method-assign]
    stage(batch)
    with torch.no_grad():
        total = 0.0
        for number, clip in enumerate(batch.frames):
            state = torch.zeros(1, SPEC.classifier_state)
            for t in range(3):
                frame = clip[t : t + 1]
                _, glance = model.glance(frame)

                def confidence(origin: torch.Tensor, state=state, frame=frame, glance=glance, number=number) -> Any:
                    focus = model.focus(frame, origin)
                    logits, new = model.classifier.step(torch.cat([glance, focus], dim=1), state)
                    return F.softmax(logits, dim=1)[0, batch.target[number]], new

                compared, _ = confidence(batch.origins[number, t : t + 1])
                chosen, state = confidence(model.grid[drawn[0][t, number]][None])
                total += float(chosen - compared)
    assert float(stage.reward) == pytest.approx(total / 12, abs=1e-5)


def test_after_an_update_the_new_policy_acts() -> None:
    stage, batch = PolicyStage(model_of(), options(2)), batch_of()
    _, changed = step(stage, batch)
    assert changed
    stage.after_update()
    pair = stage.model.focuser.policy
    for one, two in zip(pair.policy.parameters(), pair.policy_old.parameters(), strict=True):
        assert torch.equal(one, two)


@torch.no_grad()
def test_consensus_fc_is_the_likelihood_of_the_mean_probability() -> None:
    model = model_of(consensus="fc", classifier_state=6)
    stage, batch = STAGES[1](model, options(1, consensus="fc")), batch_of()
    stage.train(False)
    loss, logits = stage(batch)
    _, glance = model.glance(batch.frames.flatten(0, 1))
    focus = model.focus(batch.frames.flatten(0, 1), batch.origins.flatten(0, 1))
    each = model.classifier.fc(torch.cat([glance, focus], dim=1)).softmax(dim=1).view(4, 3, 5)
    expected = -each.mean(dim=1)[range(4), batch.target].log().mean()
    torch.testing.assert_close(loss, expected)
    state = torch.zeros(4, 6)
    for t in range(3):  # and step by step
        found, state = model.classifier.step(torch.cat([glance, focus], dim=1).view(4, 3, -1)[:, t], state)
        torch.testing.assert_close(found, logits[:, t])


def test_optimisers_are_the_official_ones() -> None:
    groups = STAGES[1](model_of(), options(1)).optimizer().param_groups
    assert [(g["lr"], g["momentum"], g["weight_decay"]) for g in groups] == [(0.01, 0.9, 1e-4), (0.02, 0.9, 1e-4)]
    adam = STAGES[2](model_of(), options(2)).optimizer()
    assert isinstance(adam, torch.optim.Adam)
    assert adam.param_groups[0]["betas"] == (0.9, 0.999)
    assert adam.param_groups[0]["lr"] == 3e-4


def test_large_batches_go_through_frozen_backbones_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    stage, batch = STAGES[3](model_of(), options(3)), batch_of()
    stage.train(False)
    whole = stage.logits(batch)
    monkeypatch.setattr("training.stages.CHUNK", 5)
    np.testing.assert_allclose(stage.logits(batch).detach(), whole.detach(), atol=1e-5)
