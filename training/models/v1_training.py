"""Trains AdaFocus V1: its four stages, what a run starts from, and checkpoints in the official layout."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from torch import Tensor

from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import Choice, ModelSpec
from training.checkpoint import Checkpoint
from training.eager import OfficialWay
from training.model import AdaFocus
from training.options import TrainOptions, model_spec
from training.resume import Start
from training.stages import STAGES, Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.compose import Composed


class V1:
    """How ``adafocus-edge train`` trains AdaFocus V1; see :class:`training.models.registry.Family`."""

    name = "v1"
    choice: Choice = "grid"

    def spec(self, options: TrainOptions, classes: int) -> ModelSpec:
        """Return the shapes of the model that options describe."""
        return model_spec(options, classes)

    def build(self, spec: ModelSpec, options: TrainOptions) -> AdaFocus:
        """Build the model with random weights."""
        return AdaFocus(spec, options.dropout)

    def official_way(self, spec: ModelSpec, weights: dict[str, Tensor]) -> OfficialWay:
        """Return the official way to run a model, in eager PyTorch. Raises ``BackendError`` without a GRU."""
        if spec.consensus != "gru":
            raise BackendError("pytorch-eager supports only the GRU classifier")
        return OfficialWay(weights, spec.focuser, spec.patch_size, spec.glance_size)

    def stage(self, model: Any, options: TrainOptions) -> Stage:
        """Return the stage that ``train_stage`` names."""
        return STAGES[options.stage](model, options)

    def load_start(
        self, model: Any, composed: Composed, classes: Sequence[str], log: Callable[[str], None]
    ) -> Checkpoint | None:
        """Load the weights that a run starts from; return the checkpoint if the run resumes it."""
        return Start(model, composed, classes, log).load()
