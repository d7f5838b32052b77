"""The official way to run AdaFocus V2, in eager PyTorch: the reference for measurements and tests of our runtime.

It shares no code with the other modules: torchvision's networks, PyTorch's ``grid_sample`` for the patches, all frames
of a clip at once. Its input is a flat dictionary of weights under the official names (torchvision's for MobileNetV2).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
import torchvision
from torch import Tensor, nn


class OfficialV2Way:
    """An AdaFocus V2 model in evaluation mode.

    Args:
        weights: parameters under the official names.
        glancer: torchvision's name of the glancer.
        focuser: torchvision's name of the focuser.
        patch_size: side of the patch in pixels.
        glance_size: side of the glance in pixels.
    """

    def __init__(
        self, weights: dict[str, Tensor], glancer: str, focuser: str, patch_size: int = 128, glance_size: int = 224
    ) -> None:
        self.patch_size, self.glance_size = patch_size, glance_size

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in weights.items() if k.startswith(prefix)}

        def features(name: str, prefix: str) -> nn.Module:
            net = getattr(torchvision.models, name)()
            net.load_state_dict(part(prefix))
            found: nn.Module = net.features if name == "mobilenet_v2" else nn.Sequential(*list(net.children())[:-2])
            return found.eval()

        self.glancer, self.focuser = features(glancer, "global_CNN."), features(focuser, "local_CNN.")
        policy = part("policy_stn.")
        channels, dim = policy["encoder.0.weight"].shape[:2]
        hidden, inputs = policy["encoder.4.weight"].shape
        self.policy = nn.ModuleDict(
            {
                "encoder": nn.Sequential(
                    nn.Conv2d(dim, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.Tanh(), nn.Flatten(),
                    nn.Linear(inputs, hidden), nn.BatchNorm1d(hidden), nn.Tanh(),
                ),
                "gru": nn.GRU(hidden, hidden, batch_first=True),
                "fc": nn.Sequential(nn.Linear(hidden, 2), nn.Sigmoid()),
            }
        ).eval()  # fmt: skip
        self.policy.load_state_dict(policy)
        width, inputs = weights["classifier.mlp.layers.0.weight"].shape
        self.mlp = nn.Sequential(nn.Linear(inputs, width), nn.BatchNorm1d(width), nn.ReLU()).eval()
        self.mlp.load_state_dict(part("classifier.mlp.layers."))
        heads = part("classifier.classifiers.")
        steps = len({name.split(".")[0] for name in heads})
        self.heads = nn.ModuleList(nn.Linear(width, heads["0.1.weight"].shape[0]) for _ in range(steps))
        self.heads.load_state_dict({name.replace(".1.", "."): value for name, value in heads.items()})
        self.reset()

    def reset(self) -> None:
        """Reset the state for a new clip."""
        self.policy_state: Tensor | None = None
        self.largest: Tensor | None = None
        self.seen = 0

    @torch.inference_mode()
    def clip(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Run one clip, uint8 [T, S, S, 3] in viewing order; return the patches' origins [T, 2] and logits [T, C]."""
        self.reset()
        return self.frame(frames)

    @torch.inference_mode()
    def frame(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Run one or more frames that follow those before; arguments and results as :meth:`clip`."""
        mean = torch.tensor([0.485, 0.456, 0.406], device=frames.device).view(1, 3, 1, 1)
        std = torch.tensor([0.229, 0.224, 0.225], device=frames.device).view(1, 3, 1, 1)
        images = (frames.permute(0, 3, 1, 2).float() / 255 - mean) / std
        glance = images
        if images.shape[-1] != self.glance_size:
            glance = F.interpolate(images, self.glance_size, mode="bilinear", align_corners=True)
        maps = self.glancer(glance)
        out, self.policy_state = self.policy["gru"](self.policy["encoder"](maps)[None], self.policy_state)
        origins = self.policy["fc"](out[0])
        focus = self.focuser(self.patches(images, origins))
        pooled = [F.adaptive_avg_pool2d(found, 1).flatten(1) for found in (maps, focus)]
        features = self.mlp(torch.cat(pooled, dim=1))
        if self.largest is not None:
            features[0] = torch.maximum(features[0], self.largest)
        largest = features.cummax(dim=0).values
        self.largest = largest[-1]
        places = [min(self.seen + step, len(self.heads) - 1) for step in range(len(frames))]
        self.seen += len(frames)
        return origins, torch.stack([self.heads[place](row) for place, row in zip(places, largest, strict=True)])

    def patches(self, images: Tensor, origins: Tensor) -> Tensor:
        """Cut one patch out of each image, [N, 3, P, P]; origins [N, 2], (y, x) as shares of the free range."""
        side, patch = images.shape[-1], self.patch_size
        shift = (2 * origins * (side - patch) + patch) / side - 1
        theta = torch.zeros(len(images), 2, 3, device=images.device)
        theta[:, 0, 0] = theta[:, 1, 1] = patch / side
        theta[:, 0, 2], theta[:, 1, 2] = shift[:, 1], shift[:, 0]
        grid = F.affine_grid(theta, [len(images), 3, patch, patch], align_corners=False)
        return F.grid_sample(images, grid, align_corners=False)
