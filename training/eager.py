"""The official way to run AdaFocus, in eager PyTorch: the reference for measurements and tests of our runtime.

It shares no code with the other modules: torchvision's networks, ``nn.GRU`` one step at a time, patches cropped by
slicing with indices copied to the host. Its input is a flat dictionary of weights under the official names.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class OfficialWay:
    """An AdaFocus model (MobileNetV2 and a ResNet or MobileNetV2 focuser, GRU classifier) in evaluation mode.

    Args:
        weights: parameters under the official names.
        focuser: torchvision's name of the focuser.
        patch_size: side of the patch in pixels.
        glance_size: side of the glance in pixels.
    """

    def __init__(
        self, weights: dict[str, Tensor], focuser: str = "resnet50", patch_size: int = 128, glance_size: int = 224
    ) -> None:
        self.patch_size, self.glance_size = patch_size, glance_size

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

        classes = weights["classifier.fc.weight"].shape[0]
        self.glancer = torchvision.models.mobilenet_v2(num_classes=classes).eval()
        self.glancer.load_state_dict(part("glancer.net."))
        focus = getattr(torchvision.models, focuser)(num_classes=classes)
        focus.load_state_dict(part("focuser.net."))
        if focuser == "mobilenet_v2":
            self.focuser = nn.Sequential(focus.features, nn.AdaptiveAvgPool2d(1)).eval()
        else:
            self.focuser = nn.Sequential(*list(focus.children())[:-1]).eval()

        policy = part("focuser.policy.policy.")
        encoder = [policy[key] for key in policy if key.startswith("state_encoder.")]
        if encoder[0].ndim == 4:
            channels, hidden = encoder[0].shape[0], encoder[1].shape[0]
            self.encoder = nn.Sequential(
                nn.Conv2d(encoder[0].shape[1], channels, 1, bias=False), nn.ReLU(), nn.Flatten(),
                nn.Linear(encoder[1].shape[1], hidden), nn.ReLU(),
            )  # fmt: skip
        else:
            hidden = encoder[2].shape[0]
            self.encoder = nn.Sequential(
                nn.Flatten(), nn.Linear(encoder[0].shape[1], encoder[0].shape[0]), nn.ReLU(),
                nn.Linear(encoder[0].shape[0], hidden), nn.ReLU(),
            )  # fmt: skip
        self.encoder.load_state_dict(dict(zip(self.encoder.state_dict(), encoder, strict=True)))
        self.policy_gru = nn.GRU(hidden, hidden)
        self.policy_gru.load_state_dict({k.removeprefix("gru."): v for k, v in policy.items() if k.startswith("gru.")})
        self.actor = nn.Linear(hidden, policy["actor.0.weight"].shape[0])
        self.actor.load_state_dict({"weight": policy["actor.0.weight"], "bias": policy["actor.0.bias"]})
        self.side = math.isqrt(self.actor.out_features)

        classifier = part("classifier.")
        size, features = classifier["gru.weight_hh_l0"].shape[1], classifier["gru.weight_ih_l0"].shape[1]
        self.gru = nn.GRU(features, size, batch_first=True)
        self.gru.load_state_dict({k.removeprefix("gru."): v for k, v in classifier.items() if k.startswith("gru.")})
        self.fc = nn.Linear(size, classes)
        self.fc.load_state_dict({"weight": classifier["fc.weight"], "bias": classifier["fc.bias"]})
        self.with_glancer = features != (1280 if focuser == "mobilenet_v2" else focus.fc.in_features)
        self.reset()

    def reset(self) -> None:
        """Reset the state for a new clip."""
        self.policy_state: Tensor | None = None
        self.state: Tensor | None = None

    @torch.inference_mode()
    def prepare(self, frames: Tensor) -> Tensor:
        """Normalise uint8 [T, S, S, 3] to float32 [T, 3, S, S]."""
        mean = torch.tensor([0.485, 0.456, 0.406], device=frames.device).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], device=frames.device).view(1, 3, 1, 1)
        return (frames.permute(0, 3, 1, 2).float() / 255 - mean) / std

    @torch.inference_mode()
    def clip(self, frames: Tensor) -> tuple[list[int], Tensor]:
        """Run one clip: glance at all frames in one batch, then step by step; return actions and logits [T, C]."""
        self.reset()
        images = self.prepare(frames)
        maps, vectors = self.glance(images)
        steps = [self.step(images[t : t + 1], maps[t : t + 1], vectors[t : t + 1]) for t in range(len(images))]
        return [action for action, _ in steps], torch.cat([logits for _, logits in steps])

    @torch.inference_mode()
    def frame(self, frame: Tensor) -> tuple[int, Tensor]:
        """Run one frame of a stream, uint8 [1, S, S, 3]."""
        image = self.prepare(frame)
        return self.step(image, *self.glance(image))

    def glance(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the glancer's feature maps and pooled features."""
        if images.shape[-1] != self.glance_size:
            images = F.interpolate(images, (self.glance_size, self.glance_size))
        maps = self.glancer.features(images)
        return maps, F.adaptive_avg_pool2d(maps, 1).flatten(1)

    def step(self, image: Tensor, feature_map: Tensor, vector: Tensor) -> tuple[int, Tensor]:
        """Choose a patch, focus on it, and classify; return action and logits."""
        encoded = self.encoder(feature_map)
        out, self.policy_state = self.policy_gru(encoded.view(1, 1, -1), self.policy_state)
        action = int(torch.softmax(self.actor(out[0]), dim=-1).max(1)[1].item())
        cell = torch.tensor([action // self.side / (self.side - 1), action % self.side / (self.side - 1)])
        corner = torch.floor(cell * (image.shape[-1] - self.patch_size)).int()
        y, x = int(corner[0].item()), int(corner[1].item())
        patch = image[:, :, y : y + self.patch_size, x : x + self.patch_size]
        focus = self.focuser(patch).flatten(1)
        feature = torch.cat([vector, focus], dim=1) if self.with_glancer else focus
        out, self.state = self.gru(feature.unsqueeze(1), self.state)
        return action, self.fc(out[:, -1])
