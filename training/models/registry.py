"""The AdaFocus families: which one a checkpoint is of, by its parameters' names, and how its model is built.

V1 is arXiv 2105.03245; V2 arXiv 2112.14238; Uni-AdaFocus arXiv 2412.11228.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from adafocus_edge.errors import CheckpointError
from training import checkpoint as v1
from training.checkpoint import Checkpoint, ModelOptions
from training.models.base import GlimpseModel
from training.models.v1_training import V1
from training.models.v2_checkpoint import is_v2, load_v2
from training.models.v2_training import V2
from training.stages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

    from adafocus_edge.model.spec import Choice, ModelSpec
    from training.compose import Composed
    from training.eager import OfficialWay
    from training.eager_v2 import OfficialV2Way
    from training.options import TrainOptions


class Family(Protocol):
    """How ``adafocus-edge train`` trains one family.

    Attributes:
        name: value of the option ``family``.
        choice: what its policy chooses.
    """

    name: str
    choice: Choice

    def spec(self, options: TrainOptions, classes: int) -> ModelSpec:
        """Return the shapes of the model that options describe. Raises ``UsageError`` if they do not fit together."""

    def build(self, spec: ModelSpec, options: TrainOptions) -> GlimpseModel:
        """Build the model with random weights."""

    def official_way(self, spec: ModelSpec, weights: dict[str, Tensor]) -> OfficialWay | OfficialV2Way:
        """Return the official way to run a model, in eager PyTorch; weights as the model's ``state_dict``.

        Raises ``BackendError`` for a model that the official code does not have.
        """

    def stage(self, model: Any, options: TrainOptions) -> Stage:
        """Return the stage that the options name."""

    def load_start(
        self, model: Any, composed: Composed, classes: Sequence[str], log: Callable[[str], None]
    ) -> Checkpoint | None:
        """Load the weights that a run starts from; return the checkpoint if the run resumes it.

        Raises ``UsageError`` or ``CheckpointError`` that names the option.
        """


FAMILIES: dict[str, Family] = {family.name: family for family in (V1(), V2())}
"""The families that can be trained, by name."""

NOT_SUPPORTED = {
    "Uni-AdaFocus": ("classifier.global_mlp.layers.0.weight",),
    "Uni-AdaFocus-TSM": ("global_CNN.new_fc.weight", "spatial_policy.encoder.0.weight"),
    "AdaFocus V2-TSM": ("global_CNN.new_fc.weight", "policy_stn.0.weight"),
}
"""Families whose checkpoints are named and refused, each with parameters that no other one has."""


def family_of(spec: ModelSpec) -> Family:
    """Return the family of a model by its shapes."""
    return next(family for family in FAMILIES.values() if family.choice == spec.choice)


def load_model(checkpoint: Checkpoint, options: ModelOptions, *, without_policy: bool = False) -> GlimpseModel:
    """Build the model that a checkpoint of any supported family holds, in evaluation mode.

    Args:
        checkpoint: a finished model; of V1: of stage 2 or 3.
        options: settings that its weights do not determine.
        without_policy: of V1: accept a checkpoint of stage 1, too; its policy is then random.

    Raises:
        UsageError: a setting must be given by an option, or an option contradicts the weights.
        CheckpointError: the weights are of a family that is not supported, or do not fit together.
    """
    for name, marks in NOT_SUPPORTED.items():
        if all(mark in checkpoint.weights for mark in marks):
            raise CheckpointError(
                f"{checkpoint.path}: a checkpoint of {name}, which is not supported yet; AdaFocus V1 and V2 are"
            )
    if is_v2(checkpoint.weights):
        return load_v2(checkpoint, options)
    return v1.load_model(checkpoint, options, without_policy=without_policy)
