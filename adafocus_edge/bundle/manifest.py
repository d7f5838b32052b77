"""The content of ``bundle.json``, and a bundle as it was read."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import msgspec

from adafocus_edge.bundle.variants import VARIANT_PREFERENCE
from adafocus_edge.errors import UsageError
from adafocus_edge.model.exits import ExitThresholds
from adafocus_edge.model.spec import GRAPHS, INTERPOLATION, MAX_SEGMENTS, Fit, ModelSpec, TensorSpec, short_side

FORMAT_VERSION = 2
"""Newest format: 2 adds the choice of points, the running maximum and the order of frames (AdaFocus V2)."""
READABLE = (1, 2)
"""Formats that can be read. A model that needs nothing of format 2 is written in format 1, for older releases."""
MEAN = (0.485, 0.456, 0.406)
"""ImageNet's, per RGB channel of pixels / 255."""
STD = (0.229, 0.224, 0.225)
MANIFEST = "bundle.json"
CLASSES = "classes.txt"


@dataclass(frozen=True)
class GraphInfo:
    """One graph of one variant.

    Attributes:
        file: path within the bundle, with forward slashes.
        sha256: of the file, in hex.
        size_bytes: of the file.
        precision: of its arithmetic, such as ``fp32``.
        opset: ONNX operator set version.
        inputs: its input tensors.
        outputs: its output tensors.
        gflops: multiply-adds per frame in units of 1e9, as the paper counts.
    """

    file: str
    sha256: str
    size_bytes: int
    precision: str
    opset: int
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    gflops: float


@dataclass(frozen=True)
class Preprocessing:
    """How frames are prepared for a graph, and what the graphs then do to them.

    Attributes:
        short_side: pixels to which the short side is resized; both sides where ``fit`` is ``squash``.
        crop: S, side of the centre crop in pixels.
        interpolation: of that resize.
        mean: subtracted inside the graphs, per RGB channel of pixels / 255.
        std: divided by inside the graphs.
        fit: see :class:`ModelSpec`.
        motion_gap_s: see :class:`ModelSpec`.
    """

    short_side: int
    crop: int
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    fit: Fit = "crop"
    motion_gap_s: float = 0.0

    @classmethod
    def of(cls, spec: ModelSpec) -> Preprocessing:
        """Return a model's preprocessing: that of the official evaluation, unless ``spec`` differs."""
        short = short_side(spec.frame_size) if spec.fit == "crop" else spec.frame_size
        return cls(short, spec.frame_size, INTERPOLATION, MEAN, STD, spec.fit, spec.motion_gap_s)


@dataclass(frozen=True)
class Setting:
    """A setting that cannot be derived from the weights, and where its value comes from.

    Attributes:
        value: the bundle's value.
        origin: ``checkpoint``: recorded there; ``weights``: derived from them; ``option``: given by the user and
            recorded nowhere; ``default``: the official models' value, assumed.
        trained: the value in the checkpoint, if an option contradicts it.
    """

    value: int | float | str
    origin: Literal["checkpoint", "weights", "option", "default"]
    trained: int | float | str | None = None


@dataclass(frozen=True)
class Provenance:
    """Where a bundle comes from.

    Attributes:
        checkpoint: file name of the checkpoint.
        checkpoint_sha256: of that file.
        created: UTC time, ISO 8601.
        tools: versions of the tools that made it.
        settings: those that cannot be derived from the weights, by the model's field; empty in bundles from before 0.2.
    """

    checkpoint: str
    checkpoint_sha256: str
    created: str
    tools: dict[str, str]
    settings: dict[str, Setting] = field(default_factory=dict)


@dataclass(frozen=True)
class Profile:
    """A configuration that `adafocus-edge tune` found for a requirement on a device.

    Attributes:
        backend: its backend.
        variant: its variant.
        schedule: ``clip`` or ``stream``.
        segments: frames of a clip.
        threads: for computing on the CPU.
        exit: ``SET/ORDER`` of exit thresholds, or empty.
        device: the device on which it was measured.
        demand: the requirement that it meets, in words.
        latency_ms: measured, of the kind that the requirement names.
        top1: in percent, on the clips that were measured.
        clips: number of those clips.
        created: UTC time, ISO 8601.
        notes: how reliable that accuracy is, a line each.
    """

    backend: str
    variant: str
    schedule: Literal["clip", "stream"]
    segments: int
    threads: int
    exit: str
    device: str
    demand: str
    latency_ms: float
    top1: float
    clips: int
    created: str
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Manifest:
    """The content of ``bundle.json``.

    Attributes:
        model: shapes and names of the model.
        preprocessing: of frames.
        classes_sha256: of ``classes.txt``.
        variants: graphs by variant and graph name.
        provenance: its origin.
        thresholds: named sets of exit thresholds, each for one or more orders of frames.
        profiles: configurations that `adafocus-edge tune` found, by name.
        reports: free-form reports: the export's parity, the calibration's accuracy.
        format_version: of this manifest.
    """

    model: ModelSpec
    preprocessing: Preprocessing
    classes_sha256: str
    variants: dict[str, dict[str, GraphInfo]]
    provenance: Provenance
    thresholds: dict[str, tuple[ExitThresholds, ...]] = field(default_factory=dict)
    profiles: dict[str, Profile] = field(default_factory=dict)
    reports: dict[str, Any] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


@dataclass(frozen=True)
class Bundle:
    """A bundle that was read and passed all checks.

    Attributes:
        path: its folder.
        manifest: the content of its ``bundle.json``.
        classes: the class names, in the order of the logits.
    """

    path: Path
    manifest: Manifest
    classes: tuple[str, ...]

    @property
    def name(self) -> str:
        """Its folder, for messages."""
        return str(self.path)

    @property
    def spec(self) -> ModelSpec:
        """The model's shapes and names."""
        return self.manifest.model

    @property
    def model(self) -> ModelSpec:
        """Old name of :attr:`spec`, kept for scripts written for 0.1.0."""
        return self.spec

    def choose_variant(self, name: str = "auto") -> str:
        """Return the variant to use. Raises ``UsageError`` that lists the bundle's variants."""
        variants = self.manifest.variants
        if name == "auto":
            return next((best for best in VARIANT_PREFERENCE if best in variants), next(iter(variants)))
        if name not in variants:
            raise UsageError(f"{self.name}: no variant {name!r}; its variants are: {', '.join(variants)}")
        return name

    def profile(self, name: str) -> Profile:
        """Return a named profile. Raises ``UsageError`` if there is none, or if it no longer fits the bundle."""
        profiles = self.manifest.profiles
        if name not in profiles:
            known = ", ".join(profiles) or "none (`adafocus-edge tune` makes them)"
            raise UsageError(f"{self.name}: no profile {name!r}; its profiles are: {known}")
        found = profiles[name]
        kind, _, order = found.exit.partition("/")
        orders = [one.order for one in self.manifest.thresholds.get(kind, ())]
        if found.variant not in self.manifest.variants or (found.exit and order not in orders):
            raise UsageError(
                f"{self.name}: profile {name!r} needs a variant or thresholds that are missing: tune again"
            )
        if found.threads < 1 or not 1 <= found.segments <= MAX_SEGMENTS:
            raise UsageError(f"{self.name}: profile {name!r} has invalid threads or segments: tune again")
        return found

    def graph_path(self, variant: str, graph: str) -> Path:
        """Return the file of one graph."""
        return self.path / self.manifest.variants[variant][graph].file

    def costs(self, variant: str) -> dict[str, float]:
        """Return the multiply-adds per frame of each graph of a variant in units of 1e9."""
        return {name: graph.gflops for name, graph in self.manifest.variants[variant].items()}

    def totals(self, variant: str) -> tuple[float, float]:
        """Return the megabytes and the GFLOPs per step of a variant's four graphs."""
        graphs = [self.manifest.variants[variant][name] for name in GRAPHS]
        return sum(graph.size_bytes for graph in graphs) / 1e6, sum(graph.gflops for graph in graphs)


def encode_manifest(manifest: Manifest) -> bytes:
    """Return the bytes of ``bundle.json``, indented for readers."""
    entry = msgspec.to_builtins(manifest)
    if manifest.model.is_first_generation:
        entry["format_version"] = 1
        for name in ("choice", "order"):
            entry["model"].pop(name, None)  # one that was read from format 1 has none
    return msgspec.json.format(msgspec.json.encode(entry), indent=2) + b"\n"
