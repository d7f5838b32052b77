"""The one training stage of AdaFocus V2: all parts together, without reinforcement learning. Paper: arXiv 2112.14238.

All randomness comes in from outside, as origins, so that a step can be repeated exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.models.v2 import AdaFocusV2


@dataclass(frozen=True)
class Rates:
    """Learning rates of the parts, as multiples of the base rate, under the official option names.

    Attributes:
        stn_lr_ratio: of the policy.
        global_lr_ratio: of the glancer and its auxiliary head.
        classifier_lr_ratio: of the classifier. The focuser and its auxiliary head have 1.
    """

    stn_lr_ratio: float = 0.01
    global_lr_ratio: float = 1.0
    classifier_lr_ratio: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """What one pass over a batch of B clips of T frames gives.

    Attributes:
        loss: the mean of both sets' losses.
        logits: of each set, [B, T, C] after each step: the policy's patches, then random ones.
        parts: of each set, the cross entropies of the logits, the glancer's head and the focuser's head.
        origins: [B * T, 2], the policy's, clip by clip.
    """

    loss: Tensor
    logits: tuple[Tensor, Tensor]
    parts: tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
    origins: Tensor


def joint_loss(model: AdaFocusV2, frames: Tensor, target: Tensor, random_origins: Tensor) -> Outcome:
    """Return the loss of a batch.

    The policy's patches train the policy through the pixels; random patches, fresh for every frame, keep the focuser
    and the classifier from seeing only what the policy likes. The policy's input is detached; the classifier's is not.

    Args:
        model: in training mode.
        frames: normalised float [B, T, S, S, 3], in viewing order.
        target: int64 [B], the clips' classes; or float [B, C], the share of each class in mixed clips.
        random_origins: float [B * T, 2], 0..1, clip by clip.
    """
    steps = frames.shape[1]
    flat = frames.flatten(0, 1)
    feature_maps, glances = model.glance_normalised(flat)
    origins = model.policy_stn(feature_maps.detach(), steps)
    glance_logits = model.global_CNN_fc(glances)
    each_frame = target.repeat_interleave(steps, dim=0)
    glance_loss = F.cross_entropy(glance_logits, each_frame)

    logits, parts = [], []
    for chosen in (origins, random_origins):
        focuses = model.focus_normalised(flat, chosen)
        seen = model.classifier(torch.cat([glances, focuses], dim=1))
        logits.append(seen)
        parts.append(
            (
                F.cross_entropy(seen.flatten(0, 1), each_frame),
                glance_loss,
                F.cross_entropy(model.local_CNN_fc(focuses), each_frame),
            )
        )
    loss = torch.stack([torch.stack(part).sum() for part in parts]).mean()
    return Outcome(loss, (logits[0], logits[1]), (parts[0], parts[1]), origins)


def optimizer(
    model: AdaFocusV2, rates: Rates, lr: float, *, momentum: float = 0.9, weight_decay: float = 1e-4
) -> torch.optim.SGD:
    """Return the official optimiser; each group's ``base_lr`` is what its schedule starts from."""
    parts: list[tuple[list[nn.Module], float]] = [
        ([model.policy_stn], rates.stn_lr_ratio),
        ([model.global_CNN, model.global_CNN_fc], rates.global_lr_ratio),
        ([model.local_CNN, model.local_CNN_fc], 1.0),
        ([model.classifier], rates.classifier_lr_ratio),
    ]
    groups = [
        {"params": [p for module in modules for p in module.parameters()], "lr": lr * ratio, "base_lr": lr * ratio}
        for modules, ratio in parts
    ]
    return torch.optim.SGD(groups, lr=lr, momentum=momentum, weight_decay=weight_decay)
