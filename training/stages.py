"""The four training stages: the parameters that each one trains, and its loss on a batch. Paper, section 3.3."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.checkpoint import official_layout
from training.datasets import Batch
from training.distributed import gather
from training.model import AdaFocus
from training.options import TrainOptions
from training.patch_features import KeptBatch, KeptFeatures, LiveFeatures, PatchFeatures
from training.policy_watch import PolicyWatch
from training.ppo import (
    BETAS,
    PolicyLoss,
    Rollout,
    act,
    discounted_returns,
    divergence,
    expected_parts,
    normalise,
    ppo_parts,
    rewards,
)

CHUNK = 64
"""Max frames in one call of a backbone where no gradient is needed."""


class Stage(nn.Module):
    """Base of the stages. ``forward`` returns a batch's loss, and the logits after each step, float32 [B, T, C].

    Attributes:
        passes: gradient steps per batch.
        averages: whether ``ema`` applies.
        mixes: whether ``mixup`` applies.
    """

    passes = 1
    averages = True
    mixes = False

    def __init__(self, model: AdaFocus, options: TrainOptions) -> None:
        super().__init__()
        self.model = model
        self.options = options
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        for module, _ in self.trained():
            for parameter in module.parameters():
                parameter.requires_grad_(True)

    @property
    def title(self) -> str:
        """What is trained, for a run's first line."""
        return f"stage {self.options.stage}"

    def layout(self) -> dict[str, Any]:
        """Return the model's weights in the official layout, with the policy from stage 2 on."""
        return official_layout(self.model, with_policy=self.options.stage >= 2)

    def trained(self) -> list[tuple[nn.Module, float]]:
        """Return the modules that this stage trains, each with its learning rate."""
        raise NotImplementedError

    def forward(self, batch: Batch | KeptBatch) -> tuple[Tensor, Tensor]:
        """Return the loss, a number, and the logits after each step, float32 [B, T, C]."""
        if self.options.mixup and self.mixes and isinstance(batch, Batch):
            mixed, other, share = mix(batch)
            logits = self.logits(mixed)
            return share * self.loss(logits, batch.target) + (1 - share) * self.loss(logits, other), logits
        logits = self.logits(batch)
        return self.loss(logits, batch.target), logits

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the logits after each step, float32 [B, T, C]; validation calls this, too."""
        raise NotImplementedError

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy over all steps; for ``consensus=fc`` over the last one's log-probabilities."""
        if self.options.consensus == "fc":
            return F.nll_loss(logits[:, -1], target)
        return F.cross_entropy(logits.flatten(0, 1), target.repeat_interleave(logits.shape[1]))

    def optimizer(self) -> torch.optim.Optimizer:
        """Return the optimiser of the trained modules; each group's ``base_lr`` is its schedule's initial rate."""
        options = self.options
        groups = [{"params": list(m.parameters()), "lr": lr, "base_lr": lr} for m, lr in self.trained()]
        if options.optimizer == "adamw":
            return torch.optim.AdamW(groups, weight_decay=options.weight_decay)
        return torch.optim.SGD(groups, lr=0.0, momentum=options.momentum, weight_decay=options.weight_decay)

    def train(self, mode: bool = True) -> Stage:
        """Set trained modules to training mode, and all others, with frozen batch norms, to evaluation mode."""
        super().train(False)
        if mode:
            self.training = True
            for module, _ in self.trained():
                module.train()
                if self.options.freeze_bn:
                    for part in module.modules():
                        if isinstance(part, nn.modules.batchnorm._BatchNorm):
                            part.eval()
        return self

    def after_update(self, clips: int | None = None) -> None:
        """Called after the optimiser's step; ``clips`` is how many of the batch count, None for all."""

    def report(self) -> dict[str, Any]:
        """Return figures that only this stage has, since the last report; every process must call this."""
        return {}


class BackboneStage(Stage):
    """Stage 0: one backbone alone on whole frames; its prediction is the mean of the frames' logits."""

    mixes = True

    def trained(self) -> list[tuple[nn.Module, float]]:
        """See :meth:`Stage.trained`."""
        part = self.model.glancer if self.options.pretrain_glancer else self.model.focuser
        return [(part.net, self.options.backbone_lr)]

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the mean of the logits up to each step, float32 [B, T, C]."""
        assert isinstance(batch, Batch)
        return self.running_means(batch.frames)

    def running_means(self, clips_frames: Tensor) -> Tensor:
        """Return the mean of the logits up to each step, [B, T, C], of frames, uint8 [B, T, S, S, 3]."""
        clips, steps = clips_frames.shape[:2]
        frames = clips_frames.flatten(0, 1).float()
        if self.options.pretrain_glancer:
            each = self.model.glancer.predict(self.model.normalise(self.model.shrink(frames)))
        else:
            each = self.model.focuser.predict(self.model.normalise(frames))
        counts = torch.arange(1, steps + 1, device=each.device).view(1, -1, 1)
        return each.view(clips, steps, -1).cumsum(dim=1) / counts

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the cross entropy of the mean over all frames."""
        return F.cross_entropy(logits[:, -1], target)


class GlimpseStage(Stage):
    """Base of stages 1 to 3: glance at all frames, focus on one patch of each, classify."""

    def glances(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return feature maps [B * T, dim, h, w] and their means [B * T, dim], without gradient."""
        with torch.no_grad():
            feature_maps, glance = in_chunks(self.model.glance, batch.frames.flatten(0, 1))
        return feature_maps, glance

    def focuses(self, batch: Batch, origins: Tensor) -> Tensor:
        """Return the focuser's features [B * T, dim] of one patch per frame; origins float32 [B, T, 2]."""
        frames, corners = batch.frames.flatten(0, 1), origins.flatten(0, 1)
        if any(p.requires_grad for p in self.model.focuser.net.parameters()) and self.training:
            return self.model.focus(frames, corners)
        with torch.no_grad():
            return in_chunks(lambda f, o: (self.model.focus(f, o),), frames, corners)[0]

    def features(self, batch: Batch, glance: Tensor | None, focus: Tensor) -> Tensor:
        """Return the classifier's input, float32 [B, T, inputs]."""
        patches = torch.cat([glance, focus], dim=1) if self.model.spec.with_glancer and glance is not None else focus
        return patches.view(*batch.frames.shape[:2], -1)

    def patch_features(self, batch: Batch | KeptBatch) -> PatchFeatures:
        """Return the features of a batch's patches: computed on demand, or kept by a cache."""
        if isinstance(batch, KeptBatch):
            return KeptFeatures(batch, with_glancer=self.model.spec.with_glancer)
        feature_maps, glance = self.glances(batch)

        def features(origins: Tensor) -> Tensor:
            return self.features(batch, glance, self.focuses(batch, origins))

        return LiveFeatures(self.model, batch, feature_maps, features)

    @torch.no_grad()
    def features_of_every_cell(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return feature maps [B, T, dim, h, w] and the focuser's features of every cell, [B, T, cells, dim]."""
        clips = batch.frames.shape[:2]
        feature_maps, _ = self.glances(batch)
        cells = [self.focuses(batch, origin.expand_as(batch.origins)) for origin in self.model.grid]
        return feature_maps.view(*clips, *feature_maps.shape[1:]), torch.stack(cells, dim=1).view(
            *clips, len(cells), -1
        )


class RandomPatchStage(GlimpseStage):
    """Stage 1: focuser and classifier on random patches, the glancer frozen; with frozen backbones the classifier."""

    mixes = True

    def trained(self) -> list[tuple[nn.Module, float]]:
        """See :meth:`Stage.trained`."""
        focuser = [] if self.options.freeze_backbones else [(self.model.focuser.net, self.options.backbone_lr)]
        return [*focuser, (self.model.classifier, self.options.fc_lr)]

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the classifier's logits on random patches, float32 [B, T, C]."""
        if isinstance(batch, KeptBatch):
            features = self.patch_features(batch).at_random()
        else:
            # Feature maps are for a policy; the glances' means may be part of the classifier's input.
            glance = self.glances(batch)[1] if self.model.spec.with_glancer else None
            features = self.features(batch, glance, self.focuses(batch, batch.origins))
        logits: Tensor = self.model.classifier(features)
        return logits


class ChosenPatchStage(GlimpseStage):
    """Base of stages 2 and 3: the classifier on the policy's best-scoring patches."""

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the classifier's logits on the best-scoring patches, float32 [B, T, C]."""
        patches = self.patch_features(batch)
        actions = act(self.model.policy, patches.feature_maps, None).actions
        logits: Tensor = self.model.classifier(patches.at(actions))
        return logits


class PolicyStage(ChosenPatchStage):
    """Stage 2: train the policy alone to choose patches that make the classifier more confident than random ones.

    Trained by PPO, or by the expected reward over all cells (``policy_estimator``). Batches hold clips, or features of
    clips that a cache keeps (:mod:`training.policy_cache`).
    """

    averages = False  # the copy of the policy that acts is the latest one

    def __init__(self, model: AdaFocus, options: TrainOptions) -> None:
        super().__init__(model, options)
        self.passes = options.ppo_epochs
        self.watch = PolicyWatch(model.spec.actions)
        self.update: _Update | None = None

    def trained(self) -> list[tuple[nn.Module, float]]:
        """See :meth:`Stage.trained`."""
        return [(self.model.focuser.policy.policy, self.options.policy_lr)]

    def optimizer(self) -> torch.optim.Optimizer:
        """Return Adam with a constant learning rate, as in the official PPO."""
        parameters = list(self.model.focuser.policy.policy.parameters())
        return torch.optim.Adam(parameters, lr=self.options.policy_lr, betas=BETAS)

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the logits on the best-scoring patches; in validation, compare them with those on random ones."""
        patches = self.patch_features(batch)
        actions = act(self.model.policy, patches.feature_maps, None).actions
        logits: Tensor = self.model.classifier(patches.at(actions))
        if not self.training:
            random = self.model.classifier(patches.at_random())[:, -1]
            self.watch.add(
                len(batch.target),
                actions,
                confidence=_confidence(logits[:, -1], batch.target).mean(),
                random_confidence=_confidence(random, batch.target).mean(),
                random_top1=(random.argmax(dim=1) == batch.target).float().mean() * 100,
            )
        return logits

    def forward(self, batch: Batch | KeptBatch) -> tuple[Tensor, Tensor]:
        """Let the old policy act, reward its actions, and evaluate them by the new policy; later passes keep them."""
        if self.update is None:
            patches = self.patch_features(batch)
            rollout = act(self.model.policy, patches.feature_maps, batch.draws.T)
            by_sampling = self.options.policy_estimator == "ppo"
            with torch.no_grad():
                self.update = (self._sampled if by_sampling else self._expected)(patches, rollout, batch.target)
        update, policy = self.update, self.model.focuser.policy.policy
        weight, maps = self.options.entropy_weight, update.rollout.feature_maps
        if update.advantage is None:
            update.parts = ppo_parts(
                policy.evaluate(maps, update.rollout.actions), update.rollout, update.returns, weight
            )
        else:
            choice, _ = policy.choices(maps)
            entropy: Tensor = choice.entropy()  # type: ignore[no-untyped-call]
            update.parts = expected_parts(choice.probs, entropy, update.advantage, weight)
        self.reward = update.reward
        return update.parts.total, update.logits

    def _sampled(self, patches: PatchFeatures, rollout: Rollout, target: Tensor) -> _Update:
        """Compute the rewards of the patches that the old policy drew."""
        chosen, random = patches.at(rollout.actions), patches.at_random()
        state = chosen.new_zeros(len(chosen), self.model.spec.classifier_state)
        confidence, random_confidence, logits = [], [], []
        for step in range(chosen.shape[1]):
            # The random patch is classified from the same recurrent state, and does not change it.
            compared, _ = self.model.classifier.step(random[:, step], state)
            found, state = self.model.classifier.step(chosen[:, step], state)
            confidence.append(_confidence(found, target))
            random_confidence.append(_confidence(compared, target))
            logits.append(found)
        reward = rewards(self.options.reward, torch.stack(confidence), torch.stack(random_confidence))
        returns = discounted_returns(reward, self.options.gamma)
        # Normalised together with those of all other processes, [T, all clips].
        everything = torch.cat([part.to(returns.device) for part in gather(returns.cpu())], dim=1)
        returns = normalise(returns, everything)
        return _Update(rollout, torch.stack(logits, dim=1), reward.mean(), returns, None)

    def _expected(self, patches: PatchFeatures, rollout: Rollout, target: Tensor) -> _Update:
        """Compute the reward of every cell, from the recurrent state after the old policy's patches."""
        clips, cells = len(target), self.model.spec.actions
        rows = torch.arange(clips, device=target.device)
        state = rollout.feature_maps.new_zeros(clips, self.model.spec.classifier_state)
        everywhere, confidence, logits = [], [], []
        for step, action in enumerate(rollout.actions):
            cells_seen = patches.everywhere(step)
            found, states = self.model.classifier.step(cells_seen.flatten(0, 1), state.repeat_interleave(cells, dim=0))
            state = states.view(clips, cells, -1)[rows, action]
            sure = _confidence(found, target.repeat_interleave(cells)).view(clips, cells).float()
            everywhere.append(sure)
            confidence.append(sure[rows, action])
            logits.append(found.view(clips, cells, -1)[rows, action])
        known = torch.stack(everywhere)
        # A reward's baseline is the same for all cells, so only the differences between cells count.
        advantage = known - known.mean(dim=2, keepdim=True)
        spread = torch.cat([part.to(known.device).flatten() for part in gather(advantage.cpu())]).std()
        reward = rewards(self.options.reward, torch.stack(confidence), known.mean(dim=2))
        return _Update(rollout, torch.stack(logits, dim=1), reward.mean(), reward, advantage / (spread + 1e-5))

    def after_update(self, clips: int | None = None) -> None:
        """After the last pass over a batch, copy the new policy to the old one, and count what it did."""
        update, pair = self.update, self.model.focuser.policy
        assert update is not None
        assert update.parts is not None
        update.passes += 1
        if update.passes < self.passes:
            return
        with torch.no_grad():
            choice, _ = pair.policy.choices(update.rollout.feature_maps)
            assert update.rollout.every_log_prob is not None
            moved = divergence(update.rollout.every_log_prob.float(), choice.logits.float())
        parts = update.parts
        figures = {"entropy": parts.entropy, "reward": update.reward, "advantage": parts.advantage, "kl": moved}
        if parts.value_loss is not None:
            figures["value_loss"] = parts.value_loss
        clips = update.rollout.actions.shape[1] if clips is None else clips
        self.watch.add(clips, update.rollout.actions, **{name: value.detach() for name, value in figures.items()})
        pair.policy_old.load_state_dict(pair.policy.state_dict())
        self.update = None

    def report(self) -> dict[str, Any]:
        """Return figures of the policy since the last report, see :class:`PolicyWatch`."""
        return self.watch.report()


@dataclass
class _Update:
    """The targets of one batch, for one or more gradient steps.

    Attributes:
        rollout: the old policy's actions.
        logits: the classifier's logits on their patches, [B, T, C].
        reward: mean reward of these patches.
        returns: normalised returns, [T, B].
        advantage: normalised advantage of every cell, [T, B, cells]; None where one cell was sampled.
        parts: parts of the latest loss.
        passes: gradient steps taken.
    """

    rollout: Rollout
    logits: Tensor
    reward: Tensor
    returns: Tensor
    advantage: Tensor | None
    parts: PolicyLoss | None = None
    passes: int = 0


class ClassifierStage(ChosenPatchStage):
    """Stage 3: the classifier alone, on the policy's best-scoring patches."""

    def trained(self) -> list[tuple[nn.Module, float]]:
        """See :meth:`Stage.trained`."""
        return [(self.model.classifier, self.options.fc_lr)]


STAGES: tuple[type[Stage], ...] = (BackboneStage, RandomPatchStage, PolicyStage, ClassifierStage)


def mix(batch: Batch) -> tuple[Batch, Tensor, float]:
    """Mix each clip of a batch with another one, pixel by pixel (mixup; Zhang et al. 2018, arXiv 1710.09412).

    Returns:
        The mixed batch, the other clips' classes, and the share of the clips themselves: sin(pi u / 2) ** 2 for the
        batch's first uniform draw u, which is Beta(1/2, 1/2).
    """
    share = math.sin(math.pi / 2 * float(batch.draws[0, 0])) ** 2
    mixed = torch.lerp(batch.frames.roll(1, dims=0).float(), batch.frames.float(), share).round_().to(torch.uint8)
    return replace(batch, frames=mixed), batch.target.roll(1), share


def in_chunks(run: Callable[..., tuple[Tensor, ...]], *tensors: Tensor) -> tuple[Tensor, ...]:
    """Call ``run`` on batches in pieces of :data:`CHUNK`; return its outputs, joined."""
    pieces = [run(*parts) for parts in zip(*(torch.split(t, CHUNK) for t in tensors), strict=True)]
    return tuple(torch.cat(parts) for parts in zip(*pieces, strict=True))


def _confidence(logits: Tensor, target: Tensor) -> Tensor:
    return logits.softmax(dim=1).gather(1, target[:, None])[:, 0]
