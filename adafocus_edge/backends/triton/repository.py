"""A model repository for Triton: written whole or not at all from a bundle, and checked against its manifest."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import msgspec

from adafocus_edge.backends.triton.config import LABELS, MODEL_FILES, config_of, model_name
from adafocus_edge.backends.triton.served import Served
from adafocus_edge.bundle.engines import variant_hash
from adafocus_edge.bundle.store import check_graph_files, check_unchanged, new_bundle, sha256_of
from adafocus_edge.bundle.variants import BUILT_FROM, EXACT_INT8, ONE_SCALE
from adafocus_edge.errors import BundleError, UsageError
from adafocus_edge.model.spec import CLIP_GRAPH, GRAPHS, STEP_GRAPH, ModelSpec
from adafocus_edge.system.files import read_own, writable
from adafocus_edge.system.timestamps import iso_now

if TYPE_CHECKING:
    from adafocus_edge.backends.triton.settings import RepositoryOptions
    from adafocus_edge.bundle.manifest import Bundle

MANIFEST = "adafocus-edge.json"
"""The repository's manifest, beside the folders of its models: Triton ignores files there."""
KIND = "model repository of `adafocus-edge export-triton`"
FORMAT_VERSION = 1
MAX_UNROLLED = 128
"""Maximum number of frames of a clip's graph: it holds the recurrent graphs once for each."""
Join = Callable[[ModelSpec, Mapping[str, Path], Path], None]
"""Joins four graphs into one: :func:`export.fuse.fuse`, :func:`export.unroll.unroll`."""


@dataclass(frozen=True)
class Builder:
    """What builds TensorRT engines.

    Attributes:
        build: returns the engine of a graph's file, by the file, the graph's name, and the largest batch; raises
            ``AdaFocusError``.
        tools: names and versions of what builds.
    """

    build: Callable[[Path, str, int], bytes]
    tools: dict[str, str]


@dataclass(frozen=True)
class File:
    """One file of a repository: its SHA-256 in hex, and its size in bytes."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Repository:
    """The content of a repository's manifest.

    Attributes:
        name: with which the names of its models begin.
        served: the description that its models carry.
        files: by their paths within the repository, with forward slashes.
        created: UTC time, ISO 8601.
        tools: versions of the tools that made it.
        format_version: of this manifest.
    """

    name: str
    served: Served
    files: dict[str, File]
    created: str
    tools: dict[str, str]
    format_version: int = FORMAT_VERSION

    @property
    def models(self) -> tuple[str, ...]:
        """Names of its models."""
        return tuple(model_name(self.name, graph) for graph in graphs_of(self.served))


def graphs_of(served: Served) -> tuple[str, ...]:
    """Return the graphs that are served."""
    return (STEP_GRAPH, CLIP_GRAPH) if served.clips else (STEP_GRAPH,)


def write_repository(
    bundle: Bundle, path: Path, options: RepositoryOptions, joins: Mapping[str, Join], builder: Builder | None = None,
    tools: Mapping[str, str] | None = None,
) -> Repository:  # fmt: skip
    """Write a bundle's variant as a model repository; it appears whole or not at all.

    Args:
        bundle: whose graphs are checked already.
        path: of the repository.
        options: see :class:`RepositoryOptions`.
        joins: by ``step`` and ``clip``, what joins the four graphs into one.
        builder: builds engines; needed for the backend ``tensorrt``.
        tools: names and versions of what makes the repository, for its manifest.

    Raises:
        UsageError: an option does not suit the bundle, or ``path`` exists.
        BundleError: the disk refuses a write.
        AdaFocusError: an engine cannot be built.
    """
    served = describe(bundle, options)
    with new_bundle(path, replace=options.force, manifest=MANIFEST, kind=KIND) as draft:
        for graph in graphs_of(served):
            _write_model(draft, bundle, graph, served, options, joins[graph], builder)
        check_graph_files(bundle, served.variant)  # the files that were read are those that were hashed
        versions = {**(tools or {}), **({} if builder is None else builder.tools)}
        made = Repository(options.name, served, _files(draft), iso_now(), versions)
        (draft / MANIFEST).write_bytes(msgspec.json.format(msgspec.json.encode(made), indent=2) + b"\n")
    return made


def describe(bundle: Bundle, options: RepositoryOptions) -> Served:
    """Return the description that a repository's models carry.

    Raises ``UsageError`` for options that do not suit the bundle.
    """
    variant = bundle.choose_variant(options.variant)
    spec = bundle.spec
    if variant in EXACT_INT8 and options.backend == "onnxruntime":
        raise UsageError(f"--variant {variant}: is for --backend tensorrt; ONNX Runtime serves fp32, fp16 and int8-cpu")
    if variant in ONE_SCALE and (options.streams > 1 or options.clips > 1):
        raise UsageError(
            f"--variant {variant}: its results depend on what else is in a batch: use --streams 1 --clips 1, or fp32"
        )
    if options.backend == "tensorrt" and variant not in BUILT_FROM:
        raise UsageError(f"--variant {variant}: --backend tensorrt takes {', '.join(BUILT_FROM)}")
    if options.backend == "tensorrt" and options.device == "cpu":
        raise UsageError("--device cpu: TensorRT computes on GPUs only: use --backend onnxruntime")
    if options.clips and spec.segments > MAX_UNROLLED:
        raise UsageError(
            f"--clips {options.clips}: whole clips are served up to {MAX_UNROLLED} frames, and this model sees "
            f"{spec.segments}: use --clips 0; clients then send one frame after another, with the same results"
        )
    return Served(
        model=spec, preprocessing=bundle.manifest.preprocessing, classes=bundle.classes, variant=variant,
        graphs_sha256=variant_hash(bundle, variant), backend=options.backend, version=options.version,
        streams=options.streams, clips=options.clips, idle_s=options.idle_s,
        gflops=bundle.costs(variant), thresholds=bundle.manifest.thresholds,
    )  # fmt: skip


def _write_model(
    draft: Path, bundle: Bundle, graph: str, served: Served, options: RepositoryOptions, join: Join,
    builder: Builder | None,
) -> None:  # fmt: skip
    """Write the folder of one model: its configuration, the class names, and its graph or engine."""
    folder = draft / model_name(options.name, graph)
    target = folder / str(served.version) / MODEL_FILES[served.backend]
    target.parent.mkdir(parents=True)
    onnx = target.with_name(MODEL_FILES["onnxruntime"])
    variant = served.variant
    if graph in bundle.manifest.variants[variant]:
        shutil.copyfile(bundle.graph_path(variant, graph), onnx)
    else:
        join(bundle.spec, {part: bundle.graph_path(variant, part) for part in GRAPHS}, onnx)
    if served.backend == "tensorrt":
        assert builder is not None
        target.write_bytes(builder.build(onnx, graph, served.streams if graph == STEP_GRAPH else served.clips))
        onnx.unlink()
    (folder / LABELS).write_text("".join(f"{name}\n" for name in bundle.classes), encoding="utf-8")
    (folder / "config.pbtxt").write_text(config_of(graph, served, options), encoding="ascii")


def _files(folder: Path) -> dict[str, File]:
    return {
        path.relative_to(folder).as_posix(): File(sha256_of(path), path.stat().st_size)
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def check_repository(path: Path, bundle: Bundle | None = None) -> Repository:
    """Check that a repository is what was written: every file by its SHA-256, and none beside them in its models.

    Args:
        path: of the repository.
        bundle: that it must be of; None for any.

    Raises:
        BundleError: a file is missing, changed or unknown; names it.
        UsageError: the repository is of another bundle.
    """
    found = _read_manifest(path)
    for name, file in found.files.items():
        if PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
            raise BundleError(f"{path / MANIFEST}: {name!r} is not a file of the repository")
        check_unchanged(path / name, file.sha256)
    for model in found.models:
        for folder, _, names in os.walk(path / model):
            for name in names:
                other = (Path(folder) / name).relative_to(path).as_posix()
                if other not in found.files:
                    raise BundleError(f"{path / other}: not written by `adafocus-edge export-triton`: remove it")
    if bundle is not None:
        variant = found.served.variant
        if variant not in bundle.manifest.variants or variant_hash(bundle, variant) != found.served.graphs_sha256:
            raise UsageError(f"{path}: was written from another bundle than {bundle.path}: export it again")
    return found


def _read_manifest(path: Path) -> Repository:
    file = path / MANIFEST
    try:
        found = msgspec.json.decode(read_own(file), type=Repository)
    except OSError:
        raise BundleError(f"{file}: missing or unreadable: {path} is not a {KIND}") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{file}: damaged or not a manifest ({error})") from None
    if found.format_version != FORMAT_VERSION:
        raise BundleError(f"{file}: format version {found.format_version}, expected {FORMAT_VERSION}: export it again")
    return found


def engine_builder(progress: Callable[[str, int, int], None]) -> Builder:
    """Return what builds engines for this machine's GPU. Raises ``BackendError`` if it cannot."""
    import tempfile

    from adafocus_edge.backends.tensorrt.build import build_engine, find_target
    from adafocus_edge.backends.tensorrt.library import find_library
    from adafocus_edge.bundle.engines import BuildOptions, Engines
    from adafocus_edge.system.interrupts import note_interrupts

    library = find_library("tensorrt")  # Triton loads no engines of TensorRT-RTX
    built_for, _ = find_target(library, ())

    def build(path: Path, graph: str, batch: int) -> bytes:
        wanted = Engines(built_for, "", BuildOptions(streams=batch), (batch,))
        with tempfile.TemporaryDirectory() as scratch, writable(path, BundleError), note_interrupts() as check:
            return build_engine(library, path, graph, wanted, 0, Path(scratch) / "timings", progress, check)

    return Builder(build, {library.name: library.version, "gpu": built_for.device})
