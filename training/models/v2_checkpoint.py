"""Checkpoints of AdaFocus V2: the model that they hold."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.model.spec import ModelSpec
from training.backbones import BACKBONES, recognised_backbone
from training.checkpoint import Checkpoint, ModelOptions
from training.models.v2 import ENCODER_CHANNELS, AdaFocusV2, v2_weights

MARKS = ("policy_stn.gru.weight_ih_l0", "classifier.mlp.layers.0.weight", "classifier.classifiers.0.1.weight")
"""Parameters that a checkpoint of V2 has, and none of another family has all."""
UNUSED = re.compile(r"^(global|local)_CNN\.(classifier|fc)\.|^(global|local)_CNN_fc\.")
"""Heads that only training uses; a checkpoint may lack them or have them for other classes."""


def is_v2(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights are of AdaFocus V2 (not of its TSM variant)."""
    return all(mark in weights for mark in MARKS)


def load_v2(checkpoint: Checkpoint, options: ModelOptions) -> AdaFocusV2:
    """Build the model that a checkpoint of V2 holds, in evaluation mode.

    Raises:
        UsageError: a setting must be given by an option, or an option contradicts the weights.
        CheckpointError: the weights do not fit together.
    """
    weights = v2_weights(checkpoint.weights)
    model = AdaFocusV2(infer_v2(checkpoint, weights, options))
    expected = model.state_dict()
    for name, value in expected.items():
        given = weights.get(name)
        if UNUSED.search(name) and (given is None or given.shape != value.shape):
            weights[name] = value
        elif given is None or given.shape != value.shape:
            found = "lacks it" if given is None else f"has {list(given.shape)}"
            raise CheckpointError(f"{checkpoint.path}: {name!r} must be {list(value.shape)}, and the file {found}")
    if unknown := [name for name in weights if name not in expected and not UNUSED.search(name)]:
        raise CheckpointError(f"{checkpoint.path}: holds {unknown[0]!r}, which is not part of an AdaFocus V2 model")
    model.load_state_dict({name: weights[name] for name in expected})
    return model.eval()


def infer_v2(checkpoint: Checkpoint, weights: Mapping[str, Tensor], options: ModelOptions) -> ModelSpec:
    """Infer the model's shapes from its weights; the options give the settings that these do not determine."""
    path = checkpoint.path
    glancer, focuser = (_backbone(path, weights, prefix) for prefix in ("global_CNN.", "local_CNN."))
    steps = sum(re.fullmatch(r"classifier\.classifiers\.\d+\.1\.weight", name) is not None for name in weights)
    classes, width = weights["classifier.classifiers.0.1.weight"].shape
    state, columns = weights["policy_stn.encoder.4.weight"].shape
    side = math.isqrt(columns // ENCODER_CHANNELS)
    if side * side * ENCODER_CHANNELS != columns:
        raise CheckpointError(f"{path}: its policy expects {columns} features, which are not a square feature map")
    if options.num_segments not in (None, steps):
        raise UsageError(f"{path}: --segments {options.num_segments}: its classifier has layers for {steps} steps")
    config = checkpoint.config
    patch_size = options.patch_size or config.get("patch_size")
    if not isinstance(patch_size, int):
        raise UsageError(
            f"{path}: the weights do not determine the patch size: give --patch-size (the official models have 96, "
            "128 or 160)"
        )
    frame_size = options.input_size or config.get("input_size") or 224
    sample = config.get("sample", True) if options.sample is None else options.sample
    glance_size = (
        options.glance_size
        or config.get("glance_size")
        or (frame_size if math.ceil(frame_size / 32) == side else 32 * side)
    )
    if math.ceil(glance_size / 32) != side:
        raise UsageError(
            f"{path}: its policy expects a {side} x {side} feature map, so --glance-size must be "
            f"{32 * (side - 1) + 1} to {32 * side}, not {glance_size}"
        )
    try:
        return ModelSpec(
            glancer=glancer,
            focuser=focuser,
            glance_dim=BACKBONES[glancer].dim,
            focus_dim=BACKBONES[focuser].dim,
            frame_size=frame_size,
            glance_size=glance_size,
            patch_size=patch_size,
            grid=0,
            segments=steps,
            policy_state=int(state),
            classifier_state=int(width) + 1,
            classes=int(classes),
            consensus="max",
            choice="point",
            order="frameexit" if sample else "time",
            fit=config.get("fit", "crop"),
            motion_gap_s=config.get("motion_gap_s", 0.0),
        )
    except ValueError as error:
        raise UsageError(f"{path}: {error}") from None


def _backbone(path: Path, weights: Mapping[str, Tensor], prefix: str) -> str:
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if name := recognised_backbone(inside):
        return name
    raise CheckpointError(f"{path}: its {prefix.rstrip('.')} is not a known backbone ({', '.join(BACKBONES)})")
