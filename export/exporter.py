"""`adafocus-edge export`: turn a checkpoint into a bundle, or leave nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import torch
from numpy.typing import NDArray

from adafocus_edge import __version__
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.classes import (
    check_class_order,
    check_classes,
    check_distinct,
    first_difference,
    read_classes,
    same_classes,
)
from adafocus_edge.bundle.manifest import (
    CLASSES,
    MANIFEST,
    Bundle,
    GraphInfo,
    Manifest,
    Preprocessing,
    Provenance,
    Setting,
    encode_manifest,
)
from adafocus_edge.bundle.store import new_bundle, read_bundle, sha256_of
from adafocus_edge.errors import BundleError, SourceError, UsageError
from adafocus_edge.evaluation.evidence import CONVERTED
from adafocus_edge.media.clip import Clip
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.media.preprocess import model_frames, sample_indices
from adafocus_edge.media.sources import Source
from adafocus_edge.model.published import published_order
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, ModelSpec, contract
from adafocus_edge.runtime.glimpse import see_clip
from adafocus_edge.system.timestamps import iso_now
from export.fuse import fuse
from export.graphs import OPSET, export_graph
from export.half import rounded, store_half
from export.half_variant import Halve, compare_half, half_report, write_half
from export.parity import BATCHES, TOLERANCE, Comparison, compare, same_origins
from training.checkpoint import Checkpoint, ModelOptions, read_checkpoint
from training.graphs import count_gflops, torch_model
from training.lineage import untrained_notes
from training.models.base import GlimpseModel
from training.models.registry import load_model as load_checkpoint_model
from training.settings import setting_warnings, settings_of

VARIANT = "fp32"
FINISHED = 3
"""The last training stage."""
SAMPLE_FRAMES = Path(__file__).with_name("frames")
"""16 frames of one Kinetics-400 clip, the default frames to compare the graphs on."""


@dataclass(frozen=True)
class ExportOptions:
    """A request to ``adafocus-edge export``.

    Attributes:
        model: settings that the checkpoint does not hold.
        classes: file of class names, or None to take them from the checkpoint or number them.
        fused: whether to add ``step.onnx``.
        frames: video or folder of frames to compare on, or None for the built-in ones.
        replace: whether an existing bundle may be replaced.
        half_weights: whether to store the FP32 graphs' weights in half precision.
        class_bias: number to add to a class's logit, by the class's name.
    """

    model: ModelOptions
    classes: Path | None = None
    fused: bool = False
    frames: str | None = None
    replace: bool = False
    half_weights: bool = False
    class_bias: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    Attributes:
        bundle: the new bundle, read back.
        notes: notes for the user, a line each.
        warnings: possible errors in the model or its settings, a line each.
    """

    bundle: Bundle
    notes: list[str]
    warnings: list[str]


@dataclass(frozen=True)
class Rounding:
    """How much rounding the weights to half precision changes, on real frames.

    Attributes:
        largest_error: largest absolute difference of a logit.
        largest_value: largest absolute logit before rounding.
        same_patches: whether the policy chose the same patch at every step.
    """

    largest_error: float
    largest_value: float
    same_patches: bool

    @property
    def note(self) -> str:
        """A note for the user."""
        return (
            f"half-precision weights change logits by up to {self.largest_error:.2g} of {self.largest_value:.2g} on "
            "these frames" + ("" if self.same_patches else ", and some of the policy's patches")
        )


def export(
    checkpoint_path: Path,
    output: Path,
    options: ExportOptions,
    progress: Callable[[str], None] = lambda _: None,
    halve: Halve | None = None,
) -> Exported:
    """Export a checkpoint.

    Args:
        checkpoint_path: official checkpoint, or one written by ``adafocus-edge train``.
        output: folder of the bundle to write.
        options: see :class:`ExportOptions`.
        progress: called with the current activity, once per stage.
        halve: adds the ``fp16`` variant, see :data:`Halve`; None to export FP32 only.

    Raises:
        AdaFocusError: a subclass that fits the cause; nothing is left at ``output`` then.
    """
    with new_bundle(output, replace=options.replace) as draft:
        progress("reading the checkpoint")
        checkpoint = read_checkpoint(checkpoint_path)
        model = load_checkpoint_model(checkpoint, options.model)
        settings = settings_of(checkpoint, options.model, model.spec)
        warnings = [*setting_warnings(settings, model.spec), *untrained_notes(checkpoint)]
        classes = _class_names(checkpoint, options.classes, model.spec.classes)
        warnings += _class_warnings(checkpoint, options.classes, classes)
        notes = [*checkpoint.notes, *_stage_notes(checkpoint)]
        if not classes:
            classes = tuple(f"class {number}" for number in range(model.spec.classes))
            notes.append("no class names: labels are 'class 0', 'class 1', ...; give them with --classes FILE")
        notes += _glance_notes(checkpoint, options, model.spec)
        if options.class_bias:
            _add_class_bias(model, classes, options.class_bias)
            settings["class_bias"] = Setting(" ".join(f"{n}={b:+g}" for n, b in options.class_bias.items()), "option")
        frames = _real_frames(options.frames, model.spec)
        rounding = None
        if options.half_weights:
            half = rounded(model)
            rounding = _rounding(model, half, frames)
            notes.append(rounding.note)
            model = half

        graphs = _write_graphs(model, draft / VARIANT, options, progress)
        progress("describing the graphs")
        (draft / CLASSES).write_text("\n".join(classes) + "\n", encoding="utf-8")
        manifest = Manifest(
            model=model.spec,
            preprocessing=Preprocessing.of(model.spec),
            classes_sha256=sha256_of(draft / CLASSES),
            variants={VARIANT: _describe(model, draft, graphs, options.half_weights)},
            provenance=_provenance(checkpoint_path, settings),
        )
        progress("comparing with PyTorch")
        parity = _compare(model, Bundle(draft, manifest, classes), frames, fused=options.fused)
        manifest = replace(manifest, reports={"parity": _parity_report(parity, options, rounding)})
        if halve is not None:
            progress("making the fp16 variant")
            manifest, note = _with_half(Bundle(draft, manifest, classes), halve, frames)
            notes.append(note)
        (draft / MANIFEST).write_bytes(encode_manifest(manifest))
        bundle = read_bundle(draft)
    return Exported(replace(bundle, path=output), notes, warnings)


def _stage_notes(checkpoint: Checkpoint) -> list[str]:
    if checkpoint.stage is None or checkpoint.stage >= FINISHED:
        return []
    return [
        f"a stage-{checkpoint.stage} checkpoint: its classifier was trained on random patches; stage {FINISHED} trains "
        f"it on the policy's (train_stage={FINISHED} resume=...)"
    ]


def _write_graphs(
    model: GlimpseModel, folder: Path, options: ExportOptions, progress: Callable[[str], None]
) -> tuple[str, ...]:
    """Write the graphs into a new folder and return their names."""
    folder.mkdir()
    for graph in GRAPHS:
        progress(f"exporting the {graph}")
        export_graph(model, graph, folder / f"{graph}.onnx")
        if options.half_weights:
            store_half(folder / f"{graph}.onnx")
    if not options.fused:
        return GRAPHS
    progress("joining the step")
    fuse(model.spec, {graph: folder / f"{graph}.onnx" for graph in GRAPHS}, folder / f"{STEP_GRAPH}.onnx")
    return (*GRAPHS, STEP_GRAPH)


def _provenance(checkpoint: Path, settings: dict[str, Setting]) -> Provenance:
    return Provenance(
        checkpoint=checkpoint.name,
        checkpoint_sha256=sha256_of(checkpoint),
        created=iso_now(),
        tools={
            "adafocus-edge": __version__,
            **{name: version(name) for name in ("torch", "torchvision", "onnx", "onnxscript")},
            "onnxruntime": onnxruntime.__version__,
        },
        settings=settings,
    )


def _parity_report(parity: list[Comparison], options: ExportOptions, rounding: Rounding | None) -> dict[str, Any]:
    """Return the entry ``parity`` of the bundle's reports."""
    report: dict[str, Any] = {
        "frames": options.frames or "16 frames of a Kinetics-400 clip",
        "tolerance": TOLERANCE,
        "rows": [asdict(row) for row in parity],
    }
    return report if rounding is None else {**report, "half_weights": asdict(rounding)}


def _glance_notes(checkpoint: Checkpoint, options: ExportOptions, spec: ModelSpec) -> list[str]:
    given = options.model.glance_size or checkpoint.config.get("glance_size")
    if given or spec.glance_size == spec.frame_size:
        return []
    side = spec.feature_map_size
    return [
        f"the glance size is assumed to be {spec.glance_size}: set it with --glance-size N, from {32 * side - 31} to "
        f"{32 * side}, which fit the weights"
    ]


def _add_class_bias(model: GlimpseModel, classes: Sequence[str], class_bias: Mapping[str, float]) -> None:
    """Add numbers to the logits of classes, by their names. Raises ``UsageError`` for a name that there is not."""
    biases = torch.zeros(len(classes))
    for name, bias in class_bias.items():
        if name not in classes:
            raise UsageError(f"--class-bias {name}={bias:g}: no such class: the model has {', '.join(classes[:10])}")
        biases[classes.index(name)] = bias
    model.add_to_logits(biases)


def _class_names(checkpoint: Checkpoint, file: Path | None, count: int) -> tuple[str, ...]:
    """Return the class names of a file or else of the checkpoint; an empty tuple if neither has any."""
    names = _without_numbers(read_classes(file), file) if file is not None else checkpoint.classes or ()
    if names:
        check_classes(names, count, str(file or checkpoint.path))
        check_distinct(names, str(file or checkpoint.path))
    return names


def _class_warnings(checkpoint: Checkpoint, file: Path | None, names: tuple[str, ...]) -> list[str]:
    """Warn if the class names differ from the checkpoint's. Raises ``UsageError`` if only their order differs."""
    check_class_order(checkpoint.classes, names, str(file))
    if not checkpoint.classes or same_classes(checkpoint.classes, names):
        return []
    return [f"{file}: its class names differ from the checkpoint's ({first_difference(checkpoint.classes, names)})"]


def _without_numbers(names: tuple[str, ...], file: Path) -> tuple[str, ...]:
    """Strip the numbers of a numbered list (UCF101: ``1 ApplyEyeMakeup``), if they count from 0 or 1.

    Raises ``BundleError`` if they count, but not in order: lines and numbers would name different classes.
    """
    parts = [name.split(maxsplit=1) for name in names]
    numbers = [int(part[0]) for part in parts if part[0].isascii() and part[0].isdecimal()]
    if not all(len(part) == 2 for part in parts) or [part[0] for part in parts] != [str(one) for one in numbers]:
        return names
    first = min(numbers)
    if first > 1 or sorted(numbers) != list(range(first, first + len(numbers))):
        return names
    for line, (expected, number) in enumerate(zip(sorted(numbers), numbers, strict=True), start=1):
        if number != expected:
            raise BundleError(f"{file}: line {line} is number {number}: sort the lines by their numbers")
    return tuple(rest for _, rest in parts)


def _describe(model: GlimpseModel, draft: Path, graphs: tuple[str, ...], half_weights: bool) -> dict[str, GraphInfo]:
    gflops = {graph: count_gflops(model, graph) for graph in GRAPHS}
    gflops[STEP_GRAPH] = sum(gflops.values())
    described = {}
    for graph in graphs:
        path = draft / VARIANT / f"{graph}.onnx"
        inputs, outputs = contract(model.spec, graph)
        described[graph] = GraphInfo(
            file=f"{VARIANT}/{path.name}",
            sha256=sha256_of(path),
            size_bytes=os.path.getsize(path),
            precision=f"{VARIANT}, weights stored as fp16" if half_weights else VARIANT,
            opset=OPSET,
            inputs=inputs,
            outputs=outputs,
            gflops=round(gflops[graph], 6),
        )
    return described


def _compare(model: GlimpseModel, bundle: Bundle, frames: NDArray[np.uint8], *, fused: bool) -> list[Comparison]:
    step = OrtSession(bundle.graph_path(VARIANT, STEP_GRAPH)) if fused else None
    with load_model(bundle, VARIANT, "onnxruntime-cpu") as exported:
        return compare(model, exported, step, frames)


def _with_half(bundle: Bundle, halve: Halve, frames: NDArray[np.uint8]) -> tuple[Manifest, str]:
    """Write the fp16 variant; return the manifest that lists it, and a note for the user."""
    manifest = bundle.manifest
    graphs = write_half(bundle.path, bundle.spec, manifest.variants[VARIANT], halve)
    manifest = replace(manifest, variants={**manifest.variants, CONVERTED: graphs})
    parity = compare_half(replace(bundle, manifest=manifest), VARIANT, frames)
    report = half_report(parity, manifest.reports["parity"]["frames"])
    return replace(manifest, reports={**manifest.reports, CONVERTED: report}), parity.note


def _rounding(model: GlimpseModel, half: GlimpseModel, frames: NDArray[np.uint8]) -> Rounding:
    """Return how much rounding the weights changes, as the graphs are compared with the rounded model only."""
    clip = frames[: model.spec.segments]
    before, after = (list(see_clip(torch_model(m)[0], clip)) for m in (model, half))
    logits = [np.concatenate([glimpse.logits for glimpse in glimpses]) for glimpses in (before, after)]
    origins = [np.concatenate([glimpse.origins for glimpse in glimpses]) for glimpses in (before, after)]
    return Rounding(
        largest_error=float(np.abs(logits[0] - logits[1]).max()),
        largest_value=float(np.abs(logits[0]).max()),
        same_patches=same_origins(model.spec, origins[0], origins[1]),
    )


def _real_frames(source: str | None, spec: ModelSpec) -> ModelFrame:
    clip: Clip = FrameFolder(str(SAMPLE_FRAMES)) if source is None else Source(source, source).open_clip()
    # At least as many as the largest batch that is compared.
    indices = sample_indices(clip.frame_count, max(spec.segments, *BATCHES))
    pixels = [pixels for _, pixels in model_frames(clip, indices, spec)]
    if not pixels:
        raise SourceError(f"{source}: has no frames")
    if spec.order != "time":
        pixels = [pixels[position] for position in published_order(len(pixels))]
    return ModelFrame.of(np.stack(pixels), spec)
