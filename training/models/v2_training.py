"""Trains AdaFocus V2: its one stage, what a run starts from, and checkpoints in the official layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from adafocus_edge.errors import UsageError
from adafocus_edge.model.published import published_order
from adafocus_edge.model.spec import Choice, ModelSpec
from training.checkpoint import Checkpoint, ModelOptions, backbone_weights, read_checkpoint
from training.datasets import Batch
from training.distributed import gather
from training.eager_v2 import OfficialV2Way
from training.lineage import changed_options, check_same_classes
from training.models.v2 import AdaFocusV2, official_names
from training.models.v2_checkpoint import is_v2, load_v2
from training.models.v2_loss import joint_loss
from training.options import TrainOptions, family_spec
from training.patch_features import KeptBatch
from training.stages import Stage, in_chunks, mix

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from training.compose import Composed

FIGURES = (
    *(f"{part}_loss_{patches}" for patches in ("policy", "random") for part in ("logits", "glance", "focus")),
    "origin_spread",
)
"""Names of the figures of an update, in their order."""


def v2_spec(options: TrainOptions, classes: int) -> ModelSpec:
    """Return the shapes of a V2 model. Raises ``UsageError`` if the options' sizes do not fit together."""
    return family_spec(
        options,
        classes,
        grid=0,
        policy_state=options.stn_hidden_dim,
        classifier_state=options.classifier_dim + 1,
        consensus="max",
        choice="point",
        order="frameexit" if options.sample else "time",
    )


class JointStage(Stage):
    """The one stage of V2: all parts together, on the policy's patches and on random ones."""

    model: AdaFocusV2  # type: ignore[assignment]

    def __init__(self, model: AdaFocusV2, options: TrainOptions) -> None:
        super().__init__(model, options)  # type: ignore[arg-type]
        steps = model.spec.segments
        self.order = torch.tensor(published_order(steps) if model.spec.order == "frameexit" else range(steps))
        self._seen, self._sums = 0, torch.zeros(len(FIGURES))

    def trained(self) -> list[tuple[nn.Module, float]]:
        """See :meth:`Stage.trained`; the same groups as the official code's."""
        model, options = self.model, self.options
        return [
            (model.policy_stn, options.lr * options.stn_lr_ratio),
            (nn.ModuleList([model.global_CNN, model.global_CNN_fc]), options.lr * options.global_lr_ratio),
            (nn.ModuleList([model.local_CNN, model.local_CNN_fc]), options.lr),
            (model.classifier, options.lr * options.classifier_lr_ratio),
        ]

    @property
    def title(self) -> str:
        """See :attr:`Stage.title`."""
        return "AdaFocus V2"

    def layout(self) -> dict[str, Any]:
        """Return the weights in the official layout: ``module.`` before each name."""
        weights = {name: value.detach().cpu().contiguous() for name, value in self.model.state_dict().items()}
        return {"state_dict": {f"module.{name}": value for name, value in official_names(weights).items()}}

    def frames(self, batch: Batch) -> Tensor:
        """Return a batch's frames in viewing order, uint8 [B, T, S, S, 3]."""
        return batch.frames[:, self.order.to(batch.frames.device)]

    def forward(self, batch: Batch | KeptBatch) -> tuple[Tensor, Tensor]:
        """Return the joint loss, and the logits on the policy's patches after each step, float32 [B, T, C]."""
        assert isinstance(batch, Batch)
        target = batch.target
        if self.options.mixup:
            batch, other, share = mix(batch)
            own, others = (F.one_hot(classes, self.model.spec.classes).float() for classes in (target, other))
            target = torch.lerp(others, own, share)
        frames = self.model.normalise(self.frames(batch).float())
        found = joint_loss(self.model, frames, target, batch.origins.flatten(0, 1))
        spread = found.origins.detach().float().std(dim=0).mean()
        figures = torch.stack([*(part.detach().float() for own in found.parts for part in own), spread])
        # They stay on the device until they are reported.
        self._sums = self._sums.to(figures.device) + len(batch.target) * figures
        self._seen += len(batch.target)
        return found.loss, found.logits[0]

    def logits(self, batch: Batch | KeptBatch) -> Tensor:
        """Return the logits on the policy's patches after each step, float32 [B, T, C]."""
        assert isinstance(batch, Batch)
        model, frames = self.model, self.frames(batch).flatten(0, 1)
        feature_maps, glances = in_chunks(model.glance, frames)
        origins = model.policy_stn(feature_maps, self.model.spec.segments)
        focuses = in_chunks(lambda f, o: (model.focus(f, o),), frames, origins)[0]
        logits: Tensor = model.classifier(torch.cat([glances, focuses], dim=1))
        return logits

    def loss(self, logits: Tensor, target: Tensor) -> Tensor:
        """Return the mean cross entropy over all steps."""
        return F.cross_entropy(logits.flatten(0, 1), target.repeat_interleave(logits.shape[1]))

    def report(self) -> dict[str, Any]:
        """Return means over all processes since the last report; every process must call this.

        The cross entropies of both sets of patches, and the spread of the policy's places (0 to 0.5).
        """
        parts = gather((self._seen, self._sums.tolist()))
        self._seen, self._sums = 0, torch.zeros(len(FIGURES))
        seen = sum(count for count, _ in parts)
        if not seen:
            return {}
        return {name: sum(sums[place] for _, sums in parts) / seen for place, name in enumerate(FIGURES)}


class V2:
    """How ``adafocus-edge train`` trains AdaFocus V2; see :class:`training.models.registry.Family`."""

    name = "v2"
    choice: Choice = "point"

    def spec(self, options: TrainOptions, classes: int) -> ModelSpec:
        """Return the shapes of the model that options describe."""
        return v2_spec(options, classes)

    def build(self, spec: ModelSpec, options: TrainOptions) -> AdaFocusV2:
        """Build the model with random weights."""
        return AdaFocusV2(spec, options.dropout, options.fc_dropout)

    def official_way(self, spec: ModelSpec, weights: dict[str, Tensor]) -> OfficialV2Way:
        """Return the official way to run a model, in eager PyTorch."""
        return OfficialV2Way(weights, spec.glancer, spec.focuser, spec.patch_size, spec.glance_size)

    def stage(self, model: Any, options: TrainOptions) -> Stage:
        """Return the one stage."""
        return JointStage(model, options)

    def load_start(
        self, model: Any, composed: Composed, classes: Sequence[str], log: Callable[[str], None]
    ) -> Checkpoint | None:
        """Load the weights that a run starts from; return the checkpoint if the run resumes it.

        Raises ``UsageError`` or ``CheckpointError`` that names the option.
        """
        options = composed.options
        if not options.resume:
            for part, net in (("glancer", model.global_CNN), ("focuser", model.local_CNN)):
                option = f"{part}_weights"
                backbone_weights(net, getattr(options, part), getattr(options, option), option)
            return None
        checkpoint = read_checkpoint(options.resume)
        if not is_v2(checkpoint.weights):
            raise UsageError(f"resume={checkpoint.path}: not a checkpoint of AdaFocus V2 (family=v2)")
        check_same_classes(checkpoint, classes)
        _check_shapes(checkpoint, model.spec)
        given = load_v2(
            checkpoint,
            ModelOptions(options.patch_size, options.glance_size, options.input_size, None, options.sample),
        )
        model.load_state_dict(given.state_dict())
        for note in checkpoint.notes:
            log(f"note: {note}")
        resumes = "rng" in checkpoint.state and not options.evaluate
        if not resumes and (changed := changed_options(checkpoint, options)):
            log(f"note: resume={checkpoint.path}: trained with other options: {', '.join(changed)}")
        return checkpoint if resumes else None


def _check_shapes(checkpoint: Checkpoint, spec: ModelSpec) -> None:
    """Compare what a checkpoint's weights say with the options. Raises ``UsageError`` that names the option."""
    weights: Mapping[str, Tensor] = checkpoint.weights
    steps = sum(name.startswith("classifier.classifiers.") and name.endswith(".1.weight") for name in weights)
    classes, width = weights["classifier.classifiers.0.1.weight"].shape
    state = weights["policy_stn.encoder.4.weight"].shape[0]
    for name, found, asked in (
        ("num_segments", steps, spec.segments),
        ("classes", classes, spec.classes),
        ("classifier_dim", width, spec.classifier_state - 1),
        ("stn_hidden_dim", state, spec.policy_state),
    ):
        if found != asked:
            raise UsageError(
                f"resume={checkpoint.path}: has {name}={found}, the options say {asked}: give {name}={found}"
            )
