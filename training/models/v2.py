"""AdaFocus V2 in PyTorch, with the parameter names of the official code.

Paper: arXiv 2112.14238. The policy gives a patch's corner as two real numbers, patches are cut out bilinearly, so that
gradients reach the policy through the pixels, and the classifier keeps the running maximum of what was seen. Names
are those of the official state dict without ``module.``, except that MobileNetV2 has torchvision's
(:func:`torchvision_names`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adafocus_edge.bundle.manifest import MEAN, STD
from adafocus_edge.model.spec import ModelSpec
from training.backbones import backbone
from training.model import gru_step
from training.models.base import GlimpseModel

ENCODER_CHANNELS = 64
"""Channels of the policy encoder's 1 x 1 convolution."""
Value = TypeVar("Value")


def bilinear_crop(frames: Tensor, corner: Tensor, patch_size: int) -> Tensor:
    """Cut one patch out of each frame at a corner between pixels.

    Output pixel (i, j) is the frame at (y + i, x + j), from its four neighbours; the gradient of a corner is the slope
    between them. Made of gathers and weighted sums, which every runtime has.

    Args:
        frames: float [N, S, S, C], channels last.
        corner: float [N, 2], (y, x) in pixels, 0 to S - P.
        patch_size: P, pixels.

    Returns:
        float [N, P, P, C].
    """
    first = torch.floor(corner.detach())
    share = (corner - first)[:, :, None, None, None]
    offsets = torch.arange(patch_size + 1, device=frames.device)
    # At S - P exactly, the row and column beyond the frame have the weight 0: any pixel will do.
    taken = (first.to(torch.int64)[:, :, None] + offsets).clamp(max=frames.shape[1] - 1)
    sample = torch.arange(frames.shape[0], device=frames.device)[:, None, None]
    pixels = frames[sample, taken[:, 0, :, None], taken[:, 1, None, :]]
    pixels = torch.lerp(pixels[:, :-1], pixels[:, 1:], share[:, 0])
    return torch.lerp(pixels[:, :, :-1], pixels[:, :, 1:], share[:, 1])


class PointPolicy(nn.Module):
    """Where to look: a point, given the glancer's feature maps so far (official ``policy_stn``)."""

    def __init__(self, spec: ModelSpec) -> None:
        super().__init__()
        state = spec.policy_state
        self.encoder = nn.Sequential(
            nn.Conv2d(spec.glance_dim, ENCODER_CHANNELS, 1, bias=False),
            nn.BatchNorm2d(ENCODER_CHANNELS),
            nn.Tanh(),
            nn.Flatten(),
            nn.Linear(ENCODER_CHANNELS * spec.feature_map_size**2, state),
            nn.BatchNorm1d(state),
            nn.Tanh(),
        )
        self.gru = nn.GRU(state, state, batch_first=True)
        self.fc = nn.Sequential(nn.Linear(state, 2), nn.Sigmoid())

    def forward(self, feature_maps: Tensor, steps: int) -> Tensor:
        """Choose for whole clips.

        Args:
            feature_maps: float [B * T, dim, h, w], clip by clip in viewing order.
            steps: T.

        Returns:
            float [B * T, 2], the origins (y, x) as fractions of the free range, 0..1.
        """
        encoded = self.encoder(feature_maps)
        states, _ = self.gru(encoded.view(-1, steps, encoded.shape[1]))
        origins: Tensor = self.fc(states.flatten(0, 1))
        return origins

    def step(self, feature_map: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Choose for one frame, float [N, dim, h, w], and a state [N, H]; return origin [N, 2] and new state."""
        state = gru_step(self.gru, self.encoder(feature_map), state)
        return self.fc(state), state


class _Layers(nn.Module):
    """Holds ``layers``, for the official name."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.layers = nn.Sequential(*layers)


class MaxClassifier(nn.Module):
    """Keeps the running maximum of what was seen, and has a linear layer for each step."""

    def __init__(self, spec: ModelSpec, dropout: float) -> None:
        super().__init__()
        inputs, width = spec.glance_dim + spec.focus_dim, spec.classifier_state - 1
        self.mlp = _Layers(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU())
        self.classifiers = nn.ModuleList(
            nn.Sequential(nn.Dropout(dropout), nn.Linear(width, spec.classes)) for _ in range(spec.segments)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Take in whole clips' features, float [B * T, inputs]; return the logits after each step, [B, T, C]."""
        steps = len(self.classifiers)
        seen = self.mlp.layers(features)
        seen = seen.view(-1, steps, seen.shape[1]).cummax(dim=1).values
        return torch.stack([head(seen[:, step]) for step, head in enumerate(self.classifiers)], dim=1)

    def step(self, feature: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Take in one frame's feature.

        Args:
            feature: float [N, inputs].
            state: float [N, width + 1]: the maximum so far, and how many frames it is of; zeros at a clip's start.

        Returns:
            logits [N, C], by the layer of this step or, after the last, by the last one; and the new state.
        """
        seen = torch.maximum(state[:, :-1], self.mlp.layers(feature))
        step = state[:, -1].to(torch.int64).clamp(max=len(self.classifiers) - 1)
        weights = torch.stack([head[1].weight for head in self.classifiers])  # type: ignore[index]
        biases = torch.stack([head[1].bias for head in self.classifiers])  # type: ignore[index]
        logits = torch.bmm(weights[step], seen[:, :, None])[:, :, 0] + biases[step]
        return logits, torch.cat([seen, state[:, -1:] + 1.0], dim=1)


class AdaFocusV2(GlimpseModel):
    """Glancer, policy, focuser, classifier, and the two heads that only training uses."""

    std: Tensor

    def __init__(self, spec: ModelSpec, dropout: float = 0.2, head_dropout: float = 0.2) -> None:
        super().__init__()
        self.spec = spec
        self._glancer, self._focuser = backbone(spec.glancer), backbone(spec.focuser)
        self.global_CNN = self._glancer.build(1000)
        self.global_CNN_fc = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(spec.glance_dim, spec.classes))
        self.local_CNN = self._focuser.build(1000)
        self.local_CNN_fc = nn.Sequential(nn.Dropout(head_dropout), nn.Linear(spec.focus_dim, spec.classes))
        self.policy_stn = PointPolicy(spec)
        self.classifier = MaxClassifier(spec, dropout)
        # Not persistent: a checkpoint has the official names and no others.
        self.register_buffer("mean", torch.tensor(MEAN), persistent=False)
        self.register_buffer("std", torch.tensor(STD), persistent=False)

    def compile_backbones(self, backend: str = "inductor") -> None:
        """Compile the backbones with PyTorch at their first run; the names of their parameters do not change."""
        for net in (self.global_CNN, self.local_CNN):
            net.compile(backend=backend)

    @torch.no_grad()
    def add_to_logits(self, biases: Tensor) -> None:
        """Add a number per class to the logits of every step, float [C]."""
        for head in self.classifier.classifiers:
            head[1].bias.add_(biases)  # type: ignore[index]

    def normalise(self, pixels: Tensor) -> Tensor:
        """Normalise RGB pixels 0..255, float [N, H, W, 3]; channels stay last."""
        return (pixels / 255.0 - self.mean) / self.std

    def glance_normalised(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Look at whole normalised frames, float [N, S, S, 3]; return ``feature_map`` and ``glance``."""
        images = frames.permute(0, 3, 1, 2)
        if self.spec.glance_size != self.spec.frame_size:
            images = F.interpolate(images, self.spec.glance_size, mode="bilinear", align_corners=True)
        feature_map = self._glancer.features(self.global_CNN, images)
        return feature_map, feature_map.mean(dim=(2, 3))

    def focus_normalised(self, frames: Tensor, origin: Tensor) -> Tensor:
        """Look at one patch per normalised frame, float [N, S, S, 3]; return ``focus``."""
        patches = bilinear_crop(frames, self.corner(origin), self.spec.patch_size)
        return self._focuser.features(self.local_CNN, patches.permute(0, 3, 1, 2)).mean(dim=(2, 3))

    def corner(self, origin: Tensor) -> Tensor:
        """Return the patches' corners in pixels, [N, 2], of origins 0..1."""
        return origin * float(self.spec.frame_size - self.spec.patch_size)

    def glance(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Look at whole frames, uint8 [N, S, S, 3]; return ``feature_map`` and ``glance``."""
        return self.glance_normalised(self.normalise(frames.float()))

    def choose(self, feature_map: Tensor, policy_state: Tensor) -> tuple[Tensor, Tensor]:
        """Pick a patch per frame; return ``origin`` and ``policy_state_out``."""
        return self.policy_stn.step(feature_map, policy_state)

    def focus(self, frames: Tensor, origin: Tensor) -> Tensor:
        """Look at one patch per frame, uint8 [N, S, S, 3]; return ``focus``."""
        return self.focus_normalised(self.normalise(frames.float()), origin)

    def classify(self, glance: Tensor | None, focus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Add one frame's features to what was seen before; return ``logits`` and ``state_out``."""
        assert glance is not None  # V2 always sees it
        return self.classifier.step(torch.cat([glance, focus], dim=1), state)


_EXPANDED = {"0": "0.0", "1": "0.1", "3": "1.0", "4": "1.1", "6": "2", "7": "3"}
_PLAIN = {"0": "0.0", "1": "0.1", "3": "1", "4": "2"}
_BLOCK = re.compile(r"features\.(\d+)\.conv\.(\d)\.(\w+)$")


def torchvision_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return a MobileNetV2's entries under torchvision's names: the official ones are of an older implementation.

    Names that are torchvision's already, or another network's, stay.
    """
    if "classifier.weight" not in weights or "features.0.0.weight" not in weights:
        return dict(weights)

    def renamed(name: str) -> str:
        if name.startswith("classifier."):
            return name.replace("classifier.", "classifier.1.")
        if found := _BLOCK.match(name):
            block, place, rest = found.groups()
            return f"features.{block}.conv.{(_PLAIN if block == '1' else _EXPANDED)[place]}.{rest}"
        return name

    return {renamed(name): value for name, value in weights.items()}


def v2_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an official state dict's entries under this module's names: no ``module.``, torchvision's MobileNetV2."""
    bare = {name.removeprefix("module."): value for name, value in state_dict.items()}
    named = {name: value for name, value in bare.items() if not name.startswith(("global_CNN.", "local_CNN."))}
    for prefix in ("global_CNN.", "local_CNN."):
        part = {name.removeprefix(prefix): value for name, value in bare.items() if name.startswith(prefix)}
        named |= {prefix + name: value for name, value in torchvision_names(part).items()}
    return named


def official_names(weights: Mapping[str, Value]) -> dict[str, Value]:
    """Return a model's entries under the official names; the inverse of :func:`v2_weights`, without ``module.``."""
    found: dict[str, Value] = {}
    for prefix in ("global_CNN.", "local_CNN."):
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        mobile = "classifier.1.weight" in part and "features.0.0.weight" in part
        found |= {prefix + (_older(name) if mobile else name): value for name, value in part.items()}
    others = {name: value for name, value in weights.items() if not name.startswith(("global_CNN.", "local_CNN."))}
    return {**found, **others}


_NEWER = re.compile(r"features\.(\d+)\.conv\.([\d.]+)\.(\w+)$")


def _older(name: str) -> str:
    """Return the official name of torchvision's entry of a MobileNetV2."""
    if name.startswith("classifier.1."):
        return name.replace("classifier.1.", "classifier.")
    if found := _NEWER.match(name):
        block, place, rest = found.groups()
        table = _PLAIN if block == "1" else _EXPANDED
        return f"features.{block}.conv.{next(old for old, new in table.items() if new == place)}.{rest}"
    return name
