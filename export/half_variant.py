"""Add an `fp16` variant to a bundle: rewrite its graphs in half precision without data, and compare both on frames."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.manifest import Bundle, GraphInfo
from adafocus_edge.bundle.store import sha256_of
from adafocus_edge.errors import ExportError
from adafocus_edge.evaluation.evidence import CONVERTED
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, ModelSpec
from adafocus_edge.runtime.glimpse import see_clip
from export.fuse import fuse

Halve = Callable[[Path, Path], None]
"""Function that reads a float graph and writes its half-precision twin: :func:`calibration.fp16.halve`."""


@dataclass(frozen=True)
class HalfParity:
    """How half precision differs from FP32 on real frames.

    Attributes:
        largest_error: largest absolute difference of a logit from FP32, over all steps of the clip.
        largest_value: largest absolute logit in FP32.
        label_agreement: share of steps with the same top class, in percent.
        same_patches: whether the policy chose the same patch at every step.
    """

    largest_error: float
    largest_value: float
    label_agreement: float
    same_patches: bool

    @property
    def note(self) -> str:
        """A note for the user."""
        patches = "the same patches" if self.same_patches else "some other patches"
        return (
            f"fp16 changes logits by up to {self.largest_error:.2g} of {self.largest_value:.2g} on these frames "
            f"({self.label_agreement:.0f} % of the steps have the same label, {patches}); "
            "`calibrate --variants fp16` measures it on your own clips"
        )


def write_half(folder: Path, spec: ModelSpec, graphs: dict[str, GraphInfo], halve: Halve) -> dict[str, GraphInfo]:
    """Write the variant's graphs into a bundle's folder and return their descriptions.

    Args:
        folder: the bundle's folder, with the FP32 graphs.
        spec: the model's shapes and names.
        graphs: the FP32 graphs; if a joined step is among them, the halved graphs are joined, too.
        halve: see :data:`Halve`.
    """
    target = folder / CONVERTED
    target.mkdir()
    for graph in GRAPHS:
        halve(folder / graphs[graph].file, target / f"{graph}.onnx")
    if STEP_GRAPH in graphs:
        fuse(spec, {graph: target / f"{graph}.onnx" for graph in GRAPHS}, target / f"{STEP_GRAPH}.onnx")
    return {graph: _described(info, target / f"{graph}.onnx") for graph, info in graphs.items()}


def _described(single: GraphInfo, path: Path) -> GraphInfo:
    return replace(
        single,
        file=f"{CONVERTED}/{path.name}",
        sha256=sha256_of(path),
        size_bytes=os.path.getsize(path),
        precision=CONVERTED,
    )


def compare_half(bundle: Bundle, reference: str, frames: NDArray[np.uint8]) -> HalfParity:
    """Run a clip in both precisions on the CPU and return the differences.

    The weights are in half precision, but ONNX Runtime's CPU provider computes layers without a half-precision kernel
    in FP32: a GPU rounds more.

    Args:
        bundle: bundle with both variants.
        reference: name of the FP32 variant.
        frames: model frames, uint8 [T, S, S, 3].

    Raises ``ExportError`` if half precision overflows.
    """
    clip = frames[: bundle.spec.segments]
    logits, origins = [], []
    for variant in (reference, CONVERTED):
        with load_model(bundle, variant, "onnxruntime-cpu") as model:
            glimpses = list(see_clip(model, clip))
        logits.append(np.concatenate([glimpse.logits for glimpse in glimpses]))
        origins.append(np.concatenate([glimpse.origins for glimpse in glimpses]))
    single, half = logits
    if not np.isfinite(half).all():
        raise ExportError(
            "--half: values of this model overflow half precision: export without --half, then run "
            "`calibrate --variants fp16 --data CLIPS`, which keeps such layers in FP32"
        )
    return HalfParity(
        largest_error=float(np.abs(single - half).max()),
        largest_value=float(np.abs(single).max()),
        label_agreement=round(float((single.argmax(1) == half.argmax(1)).mean() * 100), 4),
        same_patches=bool(np.array_equal(origins[0], origins[1])),
    )


def half_report(parity: HalfParity, frames: str) -> dict[str, float | bool | str]:
    """Return the entry for the bundle's reports, with the name of the frames that were compared."""
    return {"frames": frames, **asdict(parity)}
