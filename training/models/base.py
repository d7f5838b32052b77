"""What the models of every AdaFocus family have in common: steps of one frame per clip, of which graphs are made."""

from __future__ import annotations

from abc import ABC, abstractmethod

from torch import Tensor, nn

from adafocus_edge.model.spec import ModelSpec


class GlimpseModel(nn.Module, ABC):
    """A model of any family."""

    spec: ModelSpec
    mean: Tensor
    """Mean colour; it lies where the model computes."""

    @abstractmethod
    def glance(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Look at whole frames, uint8 [N, S, S, 3]; return ``feature_map`` and ``glance``."""

    @abstractmethod
    def choose(self, feature_map: Tensor, policy_state: Tensor) -> tuple[Tensor, ...]:
        """Pick a patch per frame; return ``origin``, with a grid also ``action``, and ``policy_state_out``."""

    @abstractmethod
    def focus(self, frames: Tensor, origin: Tensor) -> Tensor:
        """Look at one patch per frame, uint8 [N, S, S, 3]; return ``focus``."""

    @abstractmethod
    def classify(self, glance: Tensor | None, focus: Tensor, state: Tensor) -> tuple[Tensor, Tensor]:
        """Add one frame's features to those before; return ``logits`` and ``state_out``."""

    @abstractmethod
    def compile_backbones(self, backend: str = "inductor") -> None:
        """Compile the backbones with PyTorch at their first run; the names of their parameters do not change."""

    @abstractmethod
    def add_to_logits(self, biases: Tensor) -> None:
        """Add a number per class to the classifier's logits, float [C]."""
