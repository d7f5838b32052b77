"""Stages of checkpoints: which one wrote a checkpoint, which one can start from it, and what the options change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from adafocus_edge.bundle.classes import first_difference, same_classes
from adafocus_edge.errors import CheckpointError, UsageError
from training.backbones import BACKBONES, recognised_backbone
from training.weights import POLICIES

if TYPE_CHECKING:
    from training.checkpoint import Checkpoint
    from training.options import TrainOptions

STARTS = {
    0: "stage 0 starts from glancer_weights= or focuser_weights=, and resume= continues a stage-0 run only",
    1: "stage 1 starts from two stage-0 checkpoints, pretrained_glancer=CKPT pretrained_focuser=CKPT, and resume= "
    "continues a stage-1 run only",
    2: "stage 2 needs the checkpoint of stage 1, with a trained glancer, focuser and classifier",
    3: "stage 3 needs the checkpoint of stage 2, with a trained policy",
}
"""The start of each training stage, for messages."""
EVALUATES = {
    0: "train_stage=0 evaluates a stage-0 checkpoint",
    1: "train_stage=1 evaluates a stage-1 checkpoint (random patches)",
    2: "train_stage=2 evaluates a stage-2 checkpoint, with a trained policy",
    3: "train_stage=3 evaluates a stage-3 checkpoint, with a trained policy",
}
HOLDS = {
    0: "one backbone alone, its classifier untrained",
    1: "glancer, focuser and classifier, no policy",
    2: "a policy, its classifier trained on random patches",
    3: "the finished model",
}
"""The content of each stage's checkpoint, for messages."""
INPUT_OPTIONS = ("fit", "motion_gap_s", "input_size", "glance_size")
"""Options of a backbone's input, which its weights do not record."""
UNRECORDED_OPTIONS = ("patch_size", "num_segments", *INPUT_OPTIONS)
"""Options that affect a model's accuracy and that its weights do not record."""
WITHOUT_EFFECT = ("resume", "workers", "prefetch_factor", "cache_dir", "policy_cache_dir")
"""Options that change no sample and no weight."""
CACHES = ("cache", "policy_cache")
"""Options that change samples by being ``off`` or not, but not by their other values."""
PART_OPTIONS = {
    "glancer.": ("glancer",),
    "focuser.net.": ("focuser",),
    "classifier.": ("consensus", "hidden_dim", "with_glancer"),
    "focuser.policy.": ("action_dim", "hidden_state_dim", "policy_conv"),
}
"""The options that describe each part's shapes."""


def possible_stages(checkpoint: Checkpoint) -> tuple[int, ...]:
    """Return the stages that a checkpoint may come from: the one it records, or those that fit what it contains."""
    if checkpoint.stage in HOLDS:
        return (checkpoint.stage,)
    weights = checkpoint.weights
    if not all(_holds(weights, prefix) for prefix in ("glancer.net.", "focuser.net.", "classifier.")):
        return (0,)
    if _holds(weights, "focuser.policy."):
        return (2, 3)
    # The official code stores all parts at every stage; at stage 0 one backbone and the classifier are as they began.
    seen = [_batches_seen(weights, part) for part in ("glancer", "focuser")]
    return (0,) if "classifier" in untrained(weights) and min(seen) == 0 < max(seen) else (1,)


def untrained(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """Return which of classifier and policy seem untrained: all weights within 1 / sqrt(width), as PyTorch draws them.

    Training moves some of the many thousand weights beyond that immediately.
    """
    found = []
    for part, prefix in (("classifier", "classifier."), ("policy", POLICIES[1])):
        state = weights.get(f"{prefix}gru.weight_hh_l0")
        if state is not None:
            layers = [value for name, value in weights.items() if name.startswith(f"{prefix}gru.")]
        else:
            state = weights.get(f"{prefix}fc.weight")
            layers = [] if state is None else [state]
        if state is not None and state.ndim == 2 and state.numel():
            bound = 1 / math.sqrt(state.shape[1])
            if all(float(layer.float().abs().max()) <= bound for layer in layers if layer.numel()):
                found.append(part)
    return tuple(found)


def untrained_notes(checkpoint: Checkpoint) -> list[str]:
    """Return a note for each part that seems untrained, so that its output is chance."""
    return [
        f"{checkpoint.path}: its {part} looks untrained (all weights within their initial range): expect chance"
        for part in untrained(checkpoint.weights)
    ]


def check_stage(checkpoint: Checkpoint, stage: int, *, evaluate: bool, glancer: bool) -> list[str]:
    """Check that a training stage can start from, continue or evaluate the checkpoint given as ``resume``.

    Args:
        checkpoint: checkpoint given as ``resume``.
        stage: stage to run.
        evaluate: whether the checkpoint is only evaluated.
        glancer: whether stage 0 trains the glancer, else the focuser.

    Returns:
        Notes for the user. Raises ``UsageError`` that names the required checkpoint.
    """
    stages = possible_stages(checkpoint)
    least = {0: 0, 1: 1, 2: 2 if evaluate else 1, 3: 2}[stage]
    needs = EVALUATES[stage] if evaluate else STARTS[stage]
    if max(stages) < least:
        raise UsageError(f"resume={checkpoint.path}: {_described(checkpoint)}, but {needs}")
    if stage == 0 and checkpoint.stage == 0 and checkpoint.config.get("pretrain_glancer") is not glancer:
        part, other = ("glancer", "focuser") if glancer else ("focuser", "glancer")
        raise UsageError(
            f"resume={checkpoint.path}: holds a stage-0 {other}, but pretrain_glancer={str(glancer).lower()} trains "
            f"the {part}: pass the {part}'s checkpoint to resume="
        )
    notes = []
    if min(stages) > stage:
        unused = ": its policy is not used" if stage < 2 else ": its policy is not used, a new one is trained"
        kept = "" if evaluate or min(stages) < 2 else unused
        notes.append(f"resume={checkpoint.path}: {_described(checkpoint)}{kept}; {needs}")
    if stage >= 2 or (evaluate and stage == 1):
        used = ("classifier", "policy") if stage == 3 or evaluate else ("classifier",)
        notes += [note for note in untrained_notes(checkpoint) if any(f"its {part} " in note for part in used)]
    return notes


def check_pretrained(checkpoint: Checkpoint, part: str) -> list[str]:
    """Check that a checkpoint given as ``pretrained_glancer`` or ``pretrained_focuser`` trained that part.

    Returns notes for the user. Raises ``UsageError``.
    """
    option = f"pretrained_{part}={checkpoint.path}"
    other = "focuser" if part == "glancer" else "glancer"
    if checkpoint.stage == 0 and checkpoint.config.get("pretrain_glancer") is not (part == "glancer"):
        raise UsageError(
            f"{option}: holds a stage-0 {other}, not a {part}; with the same backbone, use "
            f"{part}_weights={checkpoint.path} to start from it"
        )
    if checkpoint.stage is None and _batches_seen(checkpoint.weights, part) == 0 < _batches_seen(
        checkpoint.weights, other
    ):
        return [f"{option}: its {part} saw no training batch, its {other} did: is it the {other}'s checkpoint?"]
    return []


def check_shapes(checkpoint: Checkpoint, options: TrainOptions, classes: int, prefixes: Sequence[str]) -> None:
    """Refuse a checkpoint whose parts have other shapes than the options describe, and name these options.

    Args:
        checkpoint: checkpoint to load.
        options: options of the model.
        classes: number of classes in the data set.
        prefixes: prefixes of the parts to load, keys of :data:`PART_OPTIONS`.

    Raises ``CheckpointError``.
    """
    found = shape_options(checkpoint.weights)
    wrong = [
        f"{name}={_text(found[name])}, now {name}={_text(getattr(options, name))}"
        for prefix in prefixes
        for name in PART_OPTIONS[prefix]
        if name in found and found[name] != getattr(options, name)
    ]
    if wrong:
        raise CheckpointError(
            f"resume={checkpoint.path}: its model does not match the options: trained with " + "; with ".join(wrong)
        )
    known = found.get("classes", classes)
    if "classifier." in prefixes and known != classes:
        raise CheckpointError(
            f"resume={checkpoint.path}: its classifier knows {known} classes, the data set has {classes}: give the "
            "data set that it was trained on"
        )


def shape_options(weights: Mapping[str, Tensor]) -> dict[str, Any]:
    """Return the options that a model's weights determine, and ``classes``; those of missing parts are omitted."""
    found: dict[str, Any] = {}
    for part in ("glancer", "focuser"):
        prefix = f"{part}.net."
        names = {name.removeprefix(prefix) for name in weights if name.startswith(prefix)}
        if backbone := recognised_backbone(names):
            found[part] = backbone

    def matrix(name: str) -> tuple[int, int] | None:
        value = weights.get(name)
        return (int(value.shape[0]), int(value.shape[1])) if value is not None and value.ndim == 2 else None

    head, state = matrix("classifier.fc.weight"), matrix("classifier.gru.weight_hh_l0")
    seen = matrix("classifier.gru.weight_ih_l0") or head
    if head is not None:
        found["classes"], found["consensus"] = head[0], "fc" if state is None else "gru"
    if state is not None:
        found["hidden_dim"] = state[1]
    if seen is not None and "glancer" in found and "focuser" in found:
        dims = [BACKBONES[found[part]].dim for part in ("glancer", "focuser")]
        if seen[1] in (dims[1], sum(dims)):
            found["with_glancer"] = seen[1] == sum(dims)
    if (actor := matrix(f"{POLICIES[1]}actor.0.weight")) is not None:
        found["action_dim"], found["hidden_state_dim"] = actor
        first = weights.get(f"{POLICIES[1]}state_encoder.0.weight")
        found["policy_conv"] = first is not None and first.ndim == 4
    return found


def differences(checkpoint: Checkpoint, options: TrainOptions, names: Sequence[str]) -> list[str]:
    """Return ``NAME=BEFORE, now NAME=NOW`` for each of these options that a checkpoint records with another value."""
    return [
        f"{name}={_text(checkpoint.config[name])}, now {name}={_text(getattr(options, name))}"
        for name in names
        if isinstance(checkpoint.config.get(name), (int, float, str))
        and checkpoint.config[name] != getattr(options, name)
    ]


def check_same_classes(checkpoint: Checkpoint, classes: Sequence[str]) -> None:
    """Refuse a checkpoint given as ``resume`` that was trained on other classes. Raises ``UsageError``."""
    trained = checkpoint.classes
    if trained is not None and not same_classes(trained, classes):
        raise UsageError(
            f"resume={checkpoint.path}: trained on other classes ({first_difference(trained, classes)}): give the "
            "class names of that training, in their order"
        )


def changed_options(checkpoint: Checkpoint, options: TrainOptions) -> list[str]:
    """Return ``NAME BEFORE -> NOW`` for each option that differs from the checkpoint's and may change its weights."""
    return [
        f"{name} {checkpoint.config[name]} -> {value}"
        for name, value in asdict(options).items()
        if name in checkpoint.config
        and checkpoint.config[name] != value
        and name not in WITHOUT_EFFECT
        and not (name in CACHES and "off" not in (checkpoint.config[name], value))
    ]


def _described(checkpoint: Checkpoint) -> str:
    stages = possible_stages(checkpoint)
    if checkpoint.stage is not None or len(stages) == 1:
        recorded = "" if checkpoint.stage is not None else " by what it contains"
        return f"a stage-{stages[0]} checkpoint{recorded} ({HOLDS[stages[0]]})"
    return "a checkpoint of stage 2 or 3"


def _holds(weights: Mapping[str, Tensor], prefix: str) -> bool:
    return any(name.startswith(prefix) for name in weights)


def _batches_seen(weights: Mapping[str, Tensor], part: str) -> float:
    """Return the max number of training batches that a backbone's batch norms have counted."""
    counters = [
        value
        for name, value in weights.items()
        if name.startswith(f"{part}.net.") and name.endswith("num_batches_tracked")
    ]
    return max((float(value.float().max()) for value in counters if value.numel()), default=0.0)


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
