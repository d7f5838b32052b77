"""Settings that weights do not record: where their values come from, and warnings about unusual ones."""

from __future__ import annotations

import math
from dataclasses import dataclass

from adafocus_edge.bundle.manifest import Setting
from adafocus_edge.model.spec import ModelSpec
from training.checkpoint import Checkpoint, ModelOptions


@dataclass(frozen=True)
class _Source:
    """Possible sources of a model's field.

    Attributes:
        option: official name of the option, in checkpoints of ``adafocus-edge train`` and in :class:`ModelOptions`.
        flag: command-line option, or empty if there is none.
        usual: values of the official models.
    """

    option: str
    flag: str = ""
    usual: tuple[int, ...] = ()


SOURCES = {
    "patch_size": _Source("patch_size", "--patch-size", (96, 128, 160, 192)),
    "frame_size": _Source("input_size", "--input-size", (224,)),
    "glance_size": _Source("glance_size", "--glance-size"),
    "segments": _Source("num_segments", "--segments", (16,)),
    "fit": _Source("fit"),
    "motion_gap_s": _Source("motion_gap_s"),
}
"""Sources by the model's field."""
CELL = 32
"""Side of a feature map's cell, in pixels; glance sizes that differ by less fit the same weights."""


def settings_of(checkpoint: Checkpoint, options: ModelOptions, spec: ModelSpec) -> dict[str, Setting]:
    """Return the settings that a checkpoint's weights do not record, each with its value and its source."""
    found = {}
    for name, source in SOURCES.items():
        value, recorded = getattr(spec, name), checkpoint.config.get(source.option)
        recorded = recorded if isinstance(recorded, (int, float, str)) else None
        if recorded == value:
            found[name] = Setting(value, "checkpoint")
        elif getattr(options, source.option, None) is not None:
            found[name] = Setting(value, "option", recorded)
        elif name == "glance_size" and value != spec.frame_size:
            found[name] = Setting(value, "weights")
        else:
            found[name] = Setting(value, "default")
    return found


def setting_warnings(settings: dict[str, Setting], spec: ModelSpec) -> list[str]:
    """Return a warning for each option that contradicts a checkpoint, or that no usual model has.

    The graphs agree with PyTorch at any size, so parity does not show a loss of accuracy.
    """
    lines = []
    for name, setting in settings.items():
        source = SOURCES[name]
        asked = f"{source.flag} {setting.value}"
        if setting.origin != "option":
            continue
        if setting.trained is not None:
            lines.append(
                f"{asked}: the checkpoint was trained with {source.option}={setting.trained}: this is not "
                "the model that was trained, and its accuracy is unknown (parity with PyTorch does not show it)"
            )
        elif source.usual and setting.value not in source.usual:
            usual = ", ".join(map(str, source.usual))
            lines.append(
                f"{asked}: not one of the usual values ({usual}), and the checkpoint does not record the value of its "
                "training: if that was another, accuracy is lost, and parity with PyTorch does not show it"
            )
        elif name == "glance_size" and setting.value not in (spec.frame_size, _largest(spec)):
            side = math.ceil(spec.glance_size / CELL)
            lines.append(
                f"{asked}: not a multiple of {CELL}, and all of {CELL * side - CELL + 1} to {CELL * side} fit the "
                "weights: if it was trained with another, accuracy is lost, and parity with PyTorch does not show it"
            )
    return lines


def _largest(spec: ModelSpec) -> int:
    """Return the largest glance size that gives the same feature map."""
    return CELL * math.ceil(spec.glance_size / CELL)
