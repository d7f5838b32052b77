"""Parameters of a checkpoint under their plain names, without the wrappers of model and file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adafocus_edge.errors import CheckpointError

WRAPPERS = frozenset(
    (
        "module",  # DataParallel, DistributedDataParallel, AveragedModel
        "_orig_mod",  # torch.compile
        "_forward_module",  # Lightning Fabric
        "_fsdp_wrapped_module",
        "_checkpoint_wrapped_module",
    )
)
"""Components that wrappers add to parameters' names, anywhere and repeatedly; no module of a model has these names."""
HOLDERS = ("model_state_dict", "state_dict", "model", "net", "network", "module", "weights", "params")
"""Keys under which training scripts store a state dict; the first one with weights is used."""
AVERAGES = ("ema", "ema_state_dict", "state_dict_ema", "model_ema", "ema_model", "averaged_model")
"""Keys of weights averaged over time, which are used if there are no others."""
SECTIONS = {
    "glancer": "glancer.",
    "focuser": "focuser.",
    "fc": "classifier.",
    "policy": "focuser.policy.policy.",
}
"""The official checkpoint's sections, and the prefix that each drops from its parameters' names."""
POLICIES = ("focuser.policy.policy.", "focuser.policy.policy_old.")
"""Prefixes of the two copies of the policy: the one that learns, and the one that acts."""
MAX_DEPTH = 3
"""Max depth of nested holders; a crafted file may nest them without end."""


def gather(content: Mapping[Any, Any], path: Path | str, depth: int = 0) -> dict[str, Tensor]:
    """Return a checkpoint's parameters under their full plain names.

    Args:
        content: the checkpoint: sections, a state dict under one of the usual keys, or a bare state dict.
        path: its file, for messages.
        depth: number of holders opened so far.

    Batch norms saved before PyTorch 0.4.1 have no ``num_batches_tracked``: it becomes 0, as in PyTorch itself. Raises
    ``CheckpointError`` if two parameters have the same plain name.
    """
    weights: dict[str, Tensor] = {}
    for key in (*HOLDERS, *AVERAGES) if depth < MAX_DEPTH else ():
        if isinstance(content.get(key), Mapping) and (weights := gather(content[key], path, depth + 1)):
            break
    sections = {section: content[section] for section in SECTIONS if isinstance(content.get(section), Mapping)}
    if not weights and not sections:
        weights = plain_weights(content, path)
    for section, own in sections.items():
        for name, value in plain_weights(own, path).items():
            weights[SECTIONS[section] + name] = value
            if section == "policy":
                weights[POLICIES[1] + name] = value
    # One copy of the policy may stand for both: after an update they are equal.
    for one, other in (POLICIES, POLICIES[::-1]):
        for name in [name for name in weights if name.startswith(one)]:
            weights.setdefault(other + name.removeprefix(one), weights[name])
    for name in [name for name in weights if name.endswith(".running_mean")]:
        counter = f"{name.removesuffix('running_mean')}num_batches_tracked"
        weights.setdefault(counter, torch.zeros((), dtype=torch.int64))
    return weights


def unused_averages(content: Mapping[Any, Any]) -> str | None:
    """Return the key of averaged weights that a checkpoint holds beside the weights in use, or None."""
    others = (*HOLDERS, *SECTIONS)
    if not any(isinstance(content.get(key), Mapping) for key in others):
        return None
    return next((key for key in AVERAGES if isinstance(content.get(key), Mapping)), None)


def plain_weights(state: Mapping[Any, Any], path: Path | str) -> dict[str, Tensor]:
    """Return a state dict's tensors without wrappers' prefixes and counters.

    Raises ``CheckpointError`` that names two parameters with the same plain name.
    """
    found: dict[str, Tensor] = {}
    given: dict[str, str] = {}
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    for name, value in tensors.items():
        plain = plain_name(name)
        if "." not in plain and value.ndim == 0:
            continue  # AveragedModel's n_averaged, an epoch: no parameter of a model lies at its top
        if plain in found:
            raise CheckpointError(
                f"{path}: {given[plain]!r} and {name!r} both stand for {plain!r}: save one model's state dict only"
            )
        found[plain], given[plain] = value, name
    if found and all(name.startswith("model.") for name in found):  # Lightning: the module's own attribute
        return {name.removeprefix("model."): value for name, value in found.items()}
    return found


def plain_name(name: str) -> str:
    """Return a parameter's name without the components that wrappers add."""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)
