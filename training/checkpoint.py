"""Checkpoints in the official layout: reading them (what model, with what weights), and writing them."""

from __future__ import annotations

import math
import pickle
import re
import shlex
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torchvision
from torch import Tensor

from adafocus_edge.errors import CheckpointError, UsageError
from adafocus_edge.model.spec import ModelSpec, class_name
from adafocus_edge.system.files import atomic_write
from training.backbones import BACKBONES, HEAD_PREFIXES, recognised_backbone
from training.lineage import possible_stages
from training.model import AdaFocus
from training.weights import HOLDERS, POLICIES, SECTIONS, gather, unused_averages

HEADS = re.compile(r"^glancer\.net\.classifier\.|^focuser\.net\.fc\.|^focuser\.net\.classifier\.|\.critic\.")
"""Names of parameters that only training uses; a checkpoint may lack them, or have them for other classes."""
SAFE_GLOBALS: list[Any] = [
    np.dtype,
    np.float64(0).__reduce__()[0],  # the function with which NumPy pickles its scalars
    *(getattr(np.dtypes, name) for name in ("Float64DType", "Float32DType", "Int64DType", "Int32DType")),
]
"""NumPy scalars, which training scripts store as accuracies; beyond PyTorch's own types, nothing else is allowed."""


@dataclass(frozen=True)
class ModelOptions:
    """Settings that a checkpoint's weights do not determine, under the official option names; None if not given.

    Attributes:
        patch_size: side of the focuser's patch in pixels.
        glance_size: side of the glancer's frame in pixels.
        input_size: side of the preprocessed frame in pixels.
        sample: of V2: whether it was trained with ``--sample`` (as all official models were; the default).
        num_segments: frames per clip.
    """

    patch_size: int | None = None
    glance_size: int | None = None
    input_size: int | None = None
    num_segments: int | None = None
    sample: bool | None = None


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint's contents.

    Attributes:
        path: file of the checkpoint.
        weights: parameters under their full official names.
        config: options stored by ``adafocus-edge train``; empty for official checkpoints.
        classes: class names stored by ``adafocus-edge train``, or None.
        state: all other entries: ``epoch``, ``best_acc``, ``optimizer``, ``scaler``, ``rng`` ...
        notes: notes for the user on how it was read.
    """

    path: Path
    weights: dict[str, Tensor]
    config: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    state: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @property
    def stage(self) -> int | None:
        """Return the training stage that wrote the checkpoint, or None if ``adafocus-edge train`` did not."""
        stage = self.config.get("train_stage")
        return stage if isinstance(stage, int) else None


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint without executing anything from it.

    The official layout has sections (``glancer``, ``focuser``, ``fc``, ``policy``) and the whole ``model_state_dict``;
    a bare state dict and names with wrappers' prefixes are accepted, too; see :func:`training.weights.gather`.

    Raises ``CheckpointError``: missing, not a checkpoint, or one whose loading would run code.
    """
    path = Path(path)
    content = _load(path)
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a checkpoint's dictionary")
    weights = gather(content, path)
    if not weights:
        raise CheckpointError(f"{path}: holds no model weights (found: {_some(content)})")
    for name, value in weights.items():
        if not _is_plain(value):
            raise CheckpointError(f"{path}: {name!r} is not a plain dense tensor with its own data")
    config = content.get("config")
    classes = content.get("class_names")
    averages = unused_averages(content)
    return Checkpoint(
        path,
        weights,
        dict(config) if isinstance(config, Mapping) else {},
        tuple(class_name(str(name)) for name in classes) if isinstance(classes, (list, tuple)) else None,
        {str(name): value for name, value in content.items() if name not in (*SECTIONS, *HOLDERS)},
        () if averages is None else (f"{path}: its averaged weights ({averages!r}) are not used, only the others",),
    )


def load_model(checkpoint: Checkpoint, options: ModelOptions, *, without_policy: bool = False) -> AdaFocus:
    """Build the model that a checkpoint holds, in evaluation mode.

    Args:
        checkpoint: of stage 2 or 3.
        options: settings that its weights do not determine.
        without_policy: accept a checkpoint of stage 1, too; its policy is then random.

    Raises:
        UsageError: a setting must be given by an option, or an option contradicts the weights.
        CheckpointError: the weights belong to another model, or to a stage before the policy.
    """
    has_policy = any(".policy." in name for name in checkpoint.weights)
    spec = infer_spec(checkpoint, options, without_policy=without_policy and not has_policy)
    model = AdaFocus(spec)
    expected = model.state_dict()
    given = dict(checkpoint.weights)
    if without_policy and not has_policy:
        given |= {name: value for name, value in expected.items() if ".policy." in name}
    for name, value in expected.items():
        if HEADS.search(name) and (name not in given or given[name].shape != value.shape):
            given[name] = value
        elif name not in given:
            raise CheckpointError(
                f"{checkpoint.path}: lacks {name!r} of a model with {spec.glancer} and {spec.focuser}"
            )
        elif given[name].shape != value.shape:
            raise CheckpointError(
                f"{checkpoint.path}: {name!r} has shape {list(given[name].shape)}, but a model with {spec.glancer} and "
                f"{spec.focuser} needs {list(value.shape)}"
            )
    unknown = [name for name in given if name not in expected and not HEADS.search(name)]
    if unknown:
        raise CheckpointError(f"{checkpoint.path}: holds {unknown[0]!r}, which is not part of an AdaFocus model")
    model.load_state_dict({name: given[name] for name in expected})
    return model.eval()


def infer_spec(checkpoint: Checkpoint, options: ModelOptions, *, without_policy: bool = False) -> ModelSpec:
    """Infer the model's shapes from its weights; the options give the settings that these do not determine."""
    path, weights = checkpoint.path, checkpoint.weights
    _check_stage(checkpoint, options, without_policy)
    glancer = _backbone(path, weights, "glancer.net.")
    focuser = _backbone(path, weights, "focuser.net.")
    glance_dim, focus_dim = BACKBONES[glancer].dim, BACKBONES[focuser].dim

    policy = _NO_POLICY if without_policy else _policy_shape(path, weights, glance_dim)

    classes, features = _matrix(path, weights, "classifier.fc.weight")
    gru = "classifier.gru.weight_ih_l0" in weights
    seen = _matrix(path, weights, "classifier.gru.weight_ih_l0")[1] if gru else features
    if seen not in (focus_dim, glance_dim + focus_dim):
        raise CheckpointError(
            f"{path}: its classifier takes {seen} features, but {glancer} gives {glance_dim} and {focuser} {focus_dim}"
        )

    def option(name: Literal["patch_size", "glance_size", "input_size", "num_segments"], default: int | None) -> int:
        value = getattr(options, name)
        stored = checkpoint.config.get(name)
        if value is None:
            value = stored if isinstance(stored, int) else default
        if value is None:
            raise UsageError(
                f"{path}: the weights do not determine the patch size: give --patch-size "
                "(the official models have 96, 128, 160 or 192)"
            )
        return int(value)

    input_size = option("input_size", 224)
    # The official glance has the size of the frame; any other size follows from the feature map.
    side = policy.side or math.ceil(input_size / 32)
    glance_size = option("glance_size", input_size if math.ceil(input_size / 32) == side else 32 * side)
    if policy.side and math.ceil(glance_size / 32) != side:
        raise UsageError(
            f"{path}: its policy expects a {side} x {side} feature map, so --glance-size must be "
            f"{32 * (side - 1) + 1} to {32 * side}, not {glance_size}"
        )
    try:
        return ModelSpec(
            glancer=glancer,
            focuser=focuser,
            glance_dim=glance_dim,
            focus_dim=focus_dim,
            frame_size=input_size,
            glance_size=glance_size,
            patch_size=option("patch_size", None),
            grid=policy.grid,
            segments=option("num_segments", 16),
            policy_state=policy.state,
            classifier_state=features if gru else classes + 1,
            classes=classes,
            consensus="gru" if gru else "fc",
            with_glancer=seen != focus_dim,
            policy_conv=policy.conv,
            fit=checkpoint.config.get("fit", "crop"),
            motion_gap_s=float(checkpoint.config.get("motion_gap_s", 0.0)),
        )
    except (TypeError, ValueError) as error:
        raise UsageError(f"{path}: {error}") from None


@dataclass(frozen=True)
class _PolicyShape:
    """Sizes of a policy: n of its n x n cells, side of the feature map (0 for any), state, first layer."""

    grid: int
    side: int
    state: int
    conv: bool


_NO_POLICY = _PolicyShape(grid=2, side=0, state=1, conv=True)
"""Smallest possible policy, for models whose policy is not used."""


def _policy_shape(path: Path, weights: dict[str, Tensor], glance_dim: int) -> _PolicyShape:
    policy = POLICIES[1]
    actions, state = _matrix(path, weights, policy + "actor.0.weight")
    grid = math.isqrt(actions)
    if grid < 2 or grid * grid != actions:
        raise CheckpointError(
            f"{path}: its policy has {actions} actions, not an n x n grid of cells; only discrete policies "
            "(continuous=false) are supported"
        )
    encoder = weights.get(policy + "state_encoder.0.weight")
    conv = encoder is not None and encoder.ndim == 4
    _, inputs = _matrix(path, weights, policy + f"state_encoder.{3 if conv else 0}.weight")
    cells = inputs // (encoder.shape[0] if encoder is not None and conv else glance_dim)
    side = math.isqrt(cells)
    if side * side != cells:
        raise CheckpointError(f"{path}: its policy expects a feature map of {cells} cells, which is not square")
    return _PolicyShape(grid, side, state, conv)


def _load(path: Path) -> Any:
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise CheckpointError(f"{path}: damaged: the checksum of its entry {damaged!r} is wrong")
        with torch.serialization.safe_globals(SAFE_GLOBALS), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about formats that are refused below
            return torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such checkpoint") from None
    except IsADirectoryError:
        raise CheckpointError(f"{path}: is a folder, not a checkpoint file") from None
    except pickle.UnpicklingError as error:
        asked = re.search(r"(?:GLOBAL|global|type|class|Unsupported)\W+([\w.]+\.[\w.]+)", str(error))
        if asked is None:
            raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged") from None
        raise CheckpointError(
            f"{path}: refused: loading it would run {asked.group(1)!r}, and a checkpoint may hold plain weights only "
            "(nothing was run)"
        ) from None
    except MemoryError:
        raise
    except Exception as error:  # a damaged zip or pickle raises almost any exception
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or damaged ({first[:120]})") from None


def _is_plain(value: Tensor) -> bool:
    """Whether a tensor is dense, real, not quantized, on the CPU, and not larger than its storage."""
    if value.layout is not torch.strided or value.is_quantized or value.is_complex() or value.device.type != "cpu":
        return False
    return value.numel() * value.element_size() <= value.untyped_storage().nbytes()


def _check_stage(checkpoint: Checkpoint, options: ModelOptions, without_policy: bool) -> None:
    """Refuse checkpoints of the stages before the policy is trained. Raises ``CheckpointError``."""

    def has(prefix: str) -> bool:
        return any(name.startswith(prefix) for name in checkpoint.weights)

    stages = possible_stages(checkpoint)
    parts = {"glancer": "glancer.net.", "focuser": "focuser.net.", "classifier": "classifier."}
    missing = [part for part, prefix in parts.items() if not has(prefix)]
    if stages == (0,) and (checkpoint.stage == 0 or not missing):
        raise CheckpointError(
            f"{checkpoint.path}: a stage-0 checkpoint{'' if checkpoint.stage == 0 else ' by what it contains'}: one "
            "backbone alone; train stages 1 to 3 from it (pretrained_glancer=... pretrained_focuser=...)"
        )
    if missing:
        raise CheckpointError(
            f"{checkpoint.path}: holds no {missing[0]}, so it is not a stage-3 checkpoint of AdaFocus "
            f"(found: {_some(checkpoint.weights)})"
        )
    if not has("focuser.policy.policy") and not without_policy:
        raise CheckpointError(
            f"{checkpoint.path}: a stage-1 checkpoint: glancer, focuser and classifier, but no policy yet; "
            f"`{_evaluate_command(checkpoint, options)}` evaluates it as it was trained, and a bundle needs stages 2 "
            "and 3 (train_stage=2 resume=...)"
        )


def _evaluate_command(checkpoint: Checkpoint, options: ModelOptions) -> str:
    """Return the command that evaluates a checkpoint without a policy."""
    size = "" if isinstance(checkpoint.config.get("patch_size"), int) else f" --patch-size {options.patch_size or 'N'}"
    return f"adafocus-edge evaluate {shlex.quote(str(checkpoint.path))} --data DATA --patches random{size}"


def _backbone(path: Path, weights: Mapping[str, Tensor], prefix: str) -> str:
    """Return the name of the backbone under a prefix. Raises ``CheckpointError`` for an unknown backbone."""
    inside = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
    if name := recognised_backbone(inside):
        return name
    raise CheckpointError(
        f"{path}: its {prefix.split('.', maxsplit=1)[0]} is not a known backbone ({', '.join(BACKBONES)}); "
        f"found: {_some(inside)}"
    )


def _matrix(path: Path, weights: dict[str, Tensor], name: str) -> tuple[int, int]:
    if name not in weights:
        raise CheckpointError(f"{path}: lacks {name!r}, so it is not a stage-3 checkpoint of AdaFocus")
    if weights[name].ndim != 2:
        raise CheckpointError(f"{path}: {name!r} must be a matrix, not of shape {list(weights[name].shape)}")
    rows, columns = weights[name].shape
    return int(rows), int(columns)


def _some(names: Any) -> str:
    shown = sorted(map(str, names))
    return ", ".join(shown[:4]) + (", ..." if len(shown) > 4 else "") or "nothing"


def backbone_weights(net: torch.nn.Module, name: str, source: str, option: str) -> None:
    """Load pretrained weights into a backbone, except its head, which is for other classes.

    Args:
        net: torchvision network.
        name: name of the backbone.
        source: ``imagenet`` for torchvision's own weights, ``random`` for none, or a file: with torchvision's parameter
            names, or a stage-0 checkpoint of the same backbone, whichever part it served.
        option: option that named the source, for messages.

    Raises ``CheckpointError``: cannot be downloaded, or belongs to another network.
    """
    if source == "random":
        return
    if source == "imagenet":
        weights = torchvision.models.get_model_weights(name)["IMAGENET1K_V1"]
        try:
            given = dict(weights.get_state_dict(progress=False, check_hash=True))
        except (OSError, RuntimeError) as error:
            raise CheckpointError(
                f"torchvision's {name} weights cannot be downloaded ({error}): give {option}=FILE, or {option}=random"
            ) from None
    else:
        given = _backbone_in(Path(source), option)
    if (known := recognised_backbone(given)) not in (None, name):
        raise CheckpointError(f"{option}={source}: holds a {known}, the options name {name}")
    own = net.state_dict()
    heads = [key for key in own if key.startswith(HEAD_PREFIXES)]
    for key, value in own.items():
        if key in heads or (key.endswith("num_batches_tracked") and key not in given):
            given[key] = value
        elif key not in given or given[key].shape != value.shape:
            raise CheckpointError(f"{option}={source}: lacks {key!r} of a {name}, or has it in another shape")
    net.load_state_dict({key: given[key] for key in own})


def _backbone_in(path: Path, option: str) -> dict[str, Tensor]:
    """Return the weights of the backbone in a file, under torchvision's names.

    A checkpoint of AdaFocus gives the part that our stage 0 trained, or else the part that the option names.
    """
    content = _load(path)
    content = content if isinstance(content, Mapping) else {}
    weights = gather(content, path)
    config = content.get("config")
    part = option.removesuffix("_weights")
    if isinstance(config, Mapping) and config.get("train_stage") == 0:
        part = "glancer" if config.get("pretrain_glancer") else "focuser"
    other = "focuser" if part == "glancer" else "glancer"
    for prefix in (f"{part}.net.", f"{other}.net.", "net."):
        inside = {name.removeprefix(prefix): v for name, v in weights.items() if name.startswith(prefix)}
        if inside:
            return inside
    return weights


def load_part(model: torch.nn.Module, checkpoint: Checkpoint, prefix: str, option: str) -> None:
    """Load the parameters under a prefix, except heads of backbones that are for other classes.

    Raises ``CheckpointError`` that names the option if a parameter is missing or has another shape.
    """
    own = model.state_dict()
    wanted = [name for name in own if name.startswith(prefix)]
    if not any(name in checkpoint.weights for name in wanted):
        raise CheckpointError(
            f"{option}={checkpoint.path}: holds no {prefix.rstrip('.')} (found: {_some(checkpoint.weights)})"
        )
    for name in checkpoint.weights:
        if name.startswith(prefix) and name not in own and not HEADS.search(name):
            raise CheckpointError(
                f"{option}={checkpoint.path}: holds {name!r}, which the model of these options does not have "
                "(another backbone or classifier)"
            )
    for name in wanted:
        given = checkpoint.weights.get(name)
        if HEADS.search(name) and (given is None or given.shape != own[name].shape):
            continue
        if given is None or given.shape != own[name].shape:
            found = "lacks it" if given is None else f"has {list(given.shape)}"
            raise CheckpointError(
                f"{option}={checkpoint.path}: {name!r} must be {list(own[name].shape)}, the file {found}: the "
                "options describe another model (backbones, hidden sizes, patch grid, classes)"
            )
        own[name] = given
    model.load_state_dict(own)


def official_layout(model: AdaFocus, *, with_policy: bool) -> dict[str, Any]:
    """Return a model's weights under the official sections, with the policy only if ``with_policy``."""
    weights = {
        name: value.detach().cpu().contiguous()
        for name, value in model.state_dict().items()
        if with_policy or ".policy." not in name
    }
    sections: dict[str, Any] = {"model_state_dict": weights, "policy": None}
    for section, prefix in SECTIONS.items():
        part = {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
        if part:
            sections[section] = part
    return sections


def save_checkpoint(content: Mapping[str, Any], path: Path) -> None:
    """Write a checkpoint whole or not at all. Raises ``CheckpointError`` with the reason."""
    try:
        with atomic_write(path) as file:
            torch.save(dict(content), file)
    except (OSError, RuntimeError) as error:  # PyTorch's writer turns a full disk into a RuntimeError
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written ({reason}); an existing file is unchanged") from None
