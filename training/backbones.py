"""Backbones by name, from torchvision, and how to compute the last feature map of each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from torch import Tensor, nn


@dataclass(frozen=True)
class Backbone:
    """One backbone.

    Attributes:
        build: creates the torchvision network without weights, with a given number of outputs.
        features: runs the network up to its last feature map, float32 [N, dim, ceil(H / 32), ceil(W / 32)].
        dim: channels of that feature map.
    """

    build: Callable[[int], nn.Module]
    features: Callable[[nn.Module, Tensor], Tensor]
    dim: int


def _mobilenet_v2(classes: int) -> nn.Module:
    import torchvision  # not at the top: options are checked before PyTorch is loaded, which takes seconds

    # The head's dropout is 0.2, as in the official glancer.
    return cast("nn.Module", torchvision.models.mobilenet_v2(weights=None, num_classes=classes, dropout=0.2))


def _mobilenet_features(net: nn.Module, image: Tensor) -> Tensor:
    return cast("Tensor", net.features(image))  # type: ignore[operator]


def _resnet(name: str) -> Callable[[int], nn.Module]:
    def build(classes: int) -> nn.Module:
        import torchvision

        return cast("nn.Module", getattr(torchvision.models, name)(weights=None, num_classes=classes))

    return build


def _resnet_features(net: nn.Module, image: Tensor) -> Tensor:
    for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
        image = net.get_submodule(name)(image)
    return image


BACKBONES: dict[str, Backbone] = {
    "mobilenet_v2": Backbone(_mobilenet_v2, _mobilenet_features, 1280),
    "resnet18": Backbone(_resnet("resnet18"), _resnet_features, 512),
    "resnet34": Backbone(_resnet("resnet34"), _resnet_features, 512),
    "resnet50": Backbone(_resnet("resnet50"), _resnet_features, 2048),
    "resnet101": Backbone(_resnet("resnet101"), _resnet_features, 2048),
}


HEAD_PREFIXES = ("classifier.", "fc.")
"""Prefixes of the parameters of a torchvision network's head, which no feature comes from."""


def backbone(name: str) -> Backbone:
    """Return a backbone. Raises ``ValueError`` that lists the known names."""
    if name not in BACKBONES:
        raise ValueError(f"unknown backbone {name!r}; known: {', '.join(BACKBONES)}")
    return BACKBONES[name]


def recognised_backbone(names: Collection[str]) -> str | None:
    """Return the backbone that has these parameter names of torchvision, or None."""
    if "features.0.0.weight" in names:
        return "mobilenet_v2"
    blocks = [len({n.split(".")[1] for n in names if n.startswith(f"layer{k}.")}) for k in (1, 2, 3, 4)]
    bottleneck = "layer1.0.conv3.weight" in names
    known: dict[tuple[int | bool, ...], str] = {(2, 2, 2, 2, False): "resnet18", (3, 4, 6, 3, False): "resnet34"}
    known |= {(3, 4, 6, 3, True): "resnet50", (3, 4, 23, 3, True): "resnet101"}
    return known.get((*blocks, bottleneck)) if "layer1.0.conv1.weight" in names else None
