"""TensorRT engines beside a bundle's graphs: what each was built from and for, and whether it is up to date."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from adafocus_edge.bundle.store import sha256_of
from adafocus_edge.errors import BackendError, BundleError
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, HardwareCompatibility
from adafocus_edge.system.files import atomic_write, read_own

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.model.spec import Gpu

ENGINES = "engines"
"""The folder of a bundle that holds engines."""
MANIFEST = "engines.json"
PIXELS_GRAPH = "pixels"
"""The graph that makes model frames from decoded ones; the same for every model of a frame size."""
PIXELS_FILE = Path(__file__).parents[1] / "pixels.onnx"
BUILT = (*GRAPHS, STEP_GRAPH, PIXELS_GRAPH)
"""Every graph that engines are built from."""
FORMAT_VERSION = 1
AMPERE = 8.0
"""Compute capability of the first GPUs of that family."""


@dataclass(frozen=True)
class BuildOptions:
    """Options that decide, with the graph, what an engine is.

    Attributes:
        streams: the largest batch that steps together.
        version_compatible: whether newer releases of the library can load it.
        hardware_compatible: ``none`` for this model of GPU, ``same`` for all GPUs of its compute capability,
            ``ampere+`` for all from Ampere on.
    """

    streams: int = 1
    version_compatible: bool = False
    hardware_compatible: HardwareCompatibility = "none"


@dataclass(frozen=True)
class BuiltFor:
    """The library and the GPUs that engines are for.

    Attributes:
        library: name of the library.
        version: release of the library.
        device: name of the GPU on which they were built, or empty if they were built without one.
        targets: compute capabilities such as ``sm_89``.
    """

    library: str
    version: str
    device: str
    targets: tuple[str, ...]


@dataclass(frozen=True)
class EngineInfo:
    """One engine.

    Attributes:
        file: within its folder.
        sha256: of the file, in hex.
        size_bytes: of the file.
        graph_sha256: of the ONNX graph that it was built from.
        build_s: build time in seconds.
    """

    file: str
    sha256: str
    size_bytes: int
    graph_sha256: str
    build_s: float


@dataclass(frozen=True)
class Engines:
    """The content of ``engines.json``: the engines of one variant.

    Attributes:
        built_for: the library and the GPUs.
        variant: the variant from whose graphs they were built.
        options: see :class:`BuildOptions`.
        batches: the batch sizes for which they are tuned; the largest is also the maximum.
        engines: by graph.
        format_version: of this manifest.
    """

    built_for: BuiltFor
    variant: str
    options: BuildOptions
    batches: tuple[int, ...]
    engines: dict[str, EngineInfo] = field(default_factory=dict)
    format_version: int = FORMAT_VERSION


def engine_folder(bundle: Bundle, built_for: BuiltFor, device: str, variant: str) -> Path:
    """Return the folder of a bundle for engines of a variant on a device, named after all that they depend on."""
    return bundle.path / ENGINES / f"{built_for.library}-{built_for.version}-{device}-{variant}"


def read_engines(folder: Path) -> Engines:
    """Read a folder's manifest. Raises ``BundleError`` that names the file."""
    path = folder / MANIFEST
    try:
        found = msgspec.json.decode(read_own(path), type=Engines)
    except OSError:
        raise BundleError(f"{path}: missing or unreadable: {folder} holds no engines") from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BundleError(f"{path}: damaged or not a manifest of engines ({error})") from None
    if found.format_version != FORMAT_VERSION:
        raise BundleError(f"{path}: format version {found.format_version}, expected {FORMAT_VERSION}: build again")
    if any(info.file != f"{graph}.engine" for graph, info in found.engines.items()):
        raise BundleError(f"{path}: lists a file that is not an engine")
    return found


def write_engines(folder: Path, engines: Engines) -> None:
    """Write a folder's manifest, whole or not at all. Raises ``OSError``."""
    with atomic_write(folder / MANIFEST) as file:
        file.write(msgspec.json.format(msgspec.json.encode(engines), indent=2) + b"\n")


def graph_hash(bundle: Bundle, variant: str, graph: str) -> str:
    """Return the SHA-256 of the graph that an engine is built from; for a step yet to be joined, of its parts."""
    if graph == PIXELS_GRAPH:
        # The frame size is in the profile, not in the graph.
        return _joint([sha256_of(PIXELS_FILE), str(bundle.spec.frame_size)])
    graphs = bundle.manifest.variants[variant]
    if graph in graphs:
        return graphs[graph].sha256
    return variant_hash(bundle, variant)


def variant_hash(bundle: Bundle, variant: str) -> str:
    """Return one SHA-256 of a variant's four graphs."""
    return _joint([bundle.manifest.variants[variant][graph].sha256 for graph in GRAPHS])


def _joint(parts: list[str]) -> str:
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()


def why_rebuild(folder: Path, there: Engines | None, wanted: Engines, graph: str, sha256: str) -> str | None:
    """Return why a graph's engine must be built, or None if the existing one is up to date.

    Args:
        folder: of the engines.
        there: its manifest, or None if it has none.
        wanted: the library, GPU and options to build for.
        graph: name of the graph.
        sha256: of the graph's present content.
    """
    info = None if there is None else there.engines.get(graph)
    if there is None or info is None:
        return "not built yet"
    if info.graph_sha256 != sha256:
        return "the graph changed"
    if there.built_for != wanted.built_for:
        return "built for another device or with another version"
    if (there.options, there.batches) != (wanted.options, wanted.batches):
        return "the options changed"
    file = folder / info.file
    if not file.is_file():
        return "its file is missing"
    if sha256_of(file) != info.sha256:
        return "its file is damaged"
    return None


def refusal(engines: Engines, library: str, version: str, gpu: Gpu) -> str | None:
    """Return why engines cannot run with a library on a GPU, or None if they can."""
    built, options = engines.built_for, engines.options
    if built.library != library:
        return f"built with {built.library}, but {library} is installed"
    if built.version != version:
        mine, theirs = _numbers(version), _numbers(built.version)
        if not (options.version_compatible and theirs < mine and theirs[0] == mine[0]):
            return f"built with {built.library} {built.version}, but {version} is installed"
    if options.hardware_compatible == "ampere+":
        if float(gpu.compute_capability) < AMPERE:
            return f"built for GPUs from Ampere on, but this one is {gpu.sm}"
    elif gpu.sm not in built.targets:
        return f"built for {', '.join(built.targets)}{f' ({built.device})' if built.device else ''}, not for {gpu.sm}"
    # TensorRT picks kernels by timing them on one model of GPU; TensorRT-RTX times them on the GPU that runs them.
    if library == "tensorrt" and options.hardware_compatible == "none" and built.device != gpu.name:
        return f"built on {built.device or 'another GPU'}"
    return None


def engine_folders(bundle: Bundle) -> list[tuple[Path, Engines]]:
    """Return the folders of engines in a bundle with their manifests. Raises ``BundleError`` for a damaged manifest."""
    folders = sorted((bundle.path / ENGINES).glob("*/"))
    return [(folder, read_engines(folder)) for folder in folders if (folder / MANIFEST).is_file()]


def find_engines(bundle: Bundle, variant: str, library: str, version: str, gpu: Gpu) -> tuple[Path, Engines]:
    """Find the engines of a variant for a library and a GPU, and check that every file and graph is unchanged.

    If only the joined step or the graph of pixels is out of date, the other engines are returned without it.

    Raises ``BackendError`` that names the obstacle of each folder of engines, and the command that builds them.
    """
    fix = f"run: adafocus-edge build {bundle.path} --variant {variant}"
    refused: list[str] = []
    for folder, engines in engine_folders(bundle):
        if engines.variant != variant:
            continue
        obstacle = refusal(engines, library, version, gpu)
        if obstacle is None:
            unfit = _unfit(bundle, folder, engines)
            obstacle = next((f"{graph}: {unfit[graph]}" for graph in GRAPHS if graph in unfit), None)
            if obstacle is None:  # the step and the pixels are optional
                fit = {graph: info for graph, info in engines.engines.items() if graph not in unfit}
                return folder, replace(engines, engines=fit)
        refused.append(f"{folder.name}: {obstacle}")
    if refused:
        raise BackendError(f"{bundle.path}: no engines of {variant} for {gpu.name} ({'; '.join(refused)}); {fix}")
    raise BackendError(f"{bundle.path}: no engines of {variant} have been built; {fix}")


def _unfit(bundle: Bundle, folder: Path, engines: Engines) -> dict[str, str]:
    """Return the engines that must not be loaded, each with the reason."""
    checked = {
        graph: why_rebuild(folder, engines, engines, graph, graph_hash(bundle, engines.variant, graph))
        for graph in {*GRAPHS, *engines.engines}
    }
    return {graph: why for graph, why in checked.items() if why is not None}


def _numbers(version: str) -> list[int]:
    return [int(part) for part in version.split(".") if part.isdigit()]
