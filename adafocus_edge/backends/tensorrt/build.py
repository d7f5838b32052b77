"""`adafocus-edge build`: TensorRT engines of a variant's graphs, each built only if it is missing or out of date."""

from __future__ import annotations

import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.backends.tensorrt.library import RTX_RUNS_ON, Library, find_library, pop_first_error, wrap_errors
from adafocus_edge.bundle.engines import (
    AMPERE,
    BUILT,
    MANIFEST,
    PIXELS_FILE,
    PIXELS_GRAPH,
    BuildOptions,
    BuiltFor,
    EngineInfo,
    Engines,
    engine_folder,
    graph_hash,
    read_engines,
    why_rebuild,
    write_engines,
)
from adafocus_edge.bundle.store import LOCK, bundle_lock, copied_bundle, sha256_of
from adafocus_edge.errors import BackendError, BuildError, BundleError, UsageError
from adafocus_edge.model.spec import GRAPHS, ModelSpec
from adafocus_edge.system.files import atomic_write, locked
from adafocus_edge.system.interrupts import note_interrupts

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle

Progress = Callable[[str, int, int], None]
"""Called with the name of the present task, the number of its steps that are done, and their total."""
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Join = Callable[[ModelSpec, Mapping[str, Path], Path], None]
"""Joins four graphs into the step: :func:`export.fuse.fuse`."""
MIN_SIDE, LARGEST_SIDE = 16, 4096
"""Range of a decoded frame's sides, in pixels, that the graph of pixels takes."""
USUAL_SIDES = (1080, 1920)
"""Height and width for which it is tuned."""
LEVELS = {"none": "NONE", "same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
"""TensorRT's names of the levels of hardware compatibility."""
POLL_S = 0.2
FIXES = {
    "UNSUPPORTED_NODE": "a newer TensorRT may support this operator; until then use --backend onnxruntime-cuda",
    "UNSUPPORTED_NODE_ATTR": "a newer TensorRT may support it; until then use --backend onnxruntime-cuda",
    "UNSUPPORTED_NODE_DATATYPE": "use another variant, such as fp16",
    "MODEL_DESERIALIZE_FAILED": "the file is not an ONNX graph: export it again",
    "MEM_ALLOC_FAILED": "free memory, or build with fewer --streams",
}
"""How to fix a parser's error, by its code."""


@dataclass(frozen=True)
class BuildRequest:
    """The options of ``adafocus-edge build``.

    Attributes:
        library: ``tensorrt``, ``tensorrt-rtx`` or ``auto``.
        variant: of the bundle, or ``auto``.
        targets: compute capabilities such as ``sm_89``; empty for the GPU of this machine. Only for TensorRT-RTX.
        options: see :class:`BuildOptions`.
        force: whether to rebuild engines that are up to date.
        output: where to copy the bundle first, to build in the copy; None to build in the bundle itself.
    """

    library: str = "auto"
    variant: str = "auto"
    targets: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    force: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class Row:
    """The engine of one graph, and whether it was built.

    Attributes:
        graph: its name.
        built: why it was built, or None if the existing engine was up to date.
        engine: the engine.
    """

    graph: str
    built: str | None
    engine: EngineInfo


@dataclass(frozen=True)
class Built:
    """The result of a build.

    Attributes:
        folder: of the engines.
        engines: its manifest.
        rows: one per graph.
    """

    folder: Path
    engines: Engines
    rows: tuple[Row, ...]


def build(bundle: Bundle, request: BuildRequest, join: Callable[[], Join], progress: Progress) -> Built:
    """Build the engines of a variant that are missing or out of date.

    Each engine is put in place when it is done, so an interrupted build resumes with the next one.

    Args:
        bundle: that holds the graphs.
        request: see :class:`BuildRequest`.
        join: returns the function that joins four graphs into a step; called only if a variant has no joined step.
        progress: see :data:`Progress`.

    Raises:
        UsageError: the options contradict each other or the library.
        BackendError: no library is installed, or it needs a GPU and there is none.
        BuildError: the library rejects a graph; engines that were built before stay.
    """
    library = find_library(request.library)
    variant = bundle.choose_variant(request.variant)
    built_for, device = find_target(library, request.targets)
    _check_options(library, request.options)
    if request.output is not None:
        bundle = copied_bundle(bundle, request.output)
    folder = engine_folder(bundle, built_for, device, variant)
    batches = tuple(sorted({1, bundle.spec.segments, request.options.streams}))
    wanted = Engines(built_for, variant, request.options, batches)
    rows: list[Row] = []
    with (
        _alone(folder),
        note_interrupts() as check,
        tempfile.TemporaryDirectory(prefix=".build.", dir=folder) as scratch,
    ):
        for left in folder.glob(".build.*"):  # of a build that was killed
            if left != Path(scratch):
                shutil.rmtree(left, ignore_errors=True)
        there = _present_engines(folder)
        hashes = {graph: graph_hash(bundle, variant, graph) for graph in BUILT}
        reasons = {
            graph: "forced" if request.force else why_rebuild(folder, there, wanted, graph, hashes[graph])
            for graph in BUILT
        }
        kept = {} if there is None else {g: info for g, info in there.engines.items() if reasons.get(g) is None}
        engines = replace(wanted, engines=kept)
        for graph, reason in reasons.items():
            check()
            if reason is not None:
                path = _graph_file(bundle, variant, graph, Path(scratch), join)
                started = time.monotonic()
                cache = folder.parent / f"timing-{library.name}-{library.version}-{device}.cache"
                plan = build_engine(library, path, graph, engines, bundle.spec.frame_size, cache, progress, check)
                with bundle_lock(bundle.path):  # otherwise a calibration that replaces the bundle could lose it
                    info = _keep(folder, graph, plan, hashes[graph], time.monotonic() - started)
                    engines = replace(engines, engines={**engines.engines, graph: info})
                    write_engines(folder, engines)
            rows.append(Row(graph, reason, engines.engines[graph]))
    return Built(folder, engines, tuple(rows))


def _check_options(library: Library, options: BuildOptions) -> None:
    """Raise ``UsageError`` for options that a library does not support."""
    if library.name == "tensorrt-rtx" and options.hardware_compatible != "none":
        raise UsageError("--hardware-compatible is for TensorRT; for TensorRT-RTX name the GPUs: --target sm_86,sm_89")
    if library.name == "tensorrt-rtx" and options.version_compatible:
        raise UsageError(
            "--version-compatible is for TensorRT; TensorRT-RTX engines run with the release that built them"
        )
    if not hasattr(library.module.HardwareCompatibilityLevel, LEVELS[options.hardware_compatible]):
        raise UsageError(f"--hardware-compatible {options.hardware_compatible}: {library.title} does not support it")


def find_target(library: Library, targets: tuple[str, ...]) -> tuple[BuiltFor, str]:
    """Return where the engines will run, and its name in the folder of engines.

    Raises ``UsageError`` or ``BackendError`` if the library cannot build for these compute capabilities, or for the GPU
    of this machine where there are none.
    """
    from adafocus_edge.backends.device.cuda import find_gpu

    gpu = find_gpu()
    if library.name == "tensorrt":
        if targets:
            raise UsageError("--target is for --library tensorrt-rtx: TensorRT builds for the GPU of this machine")
        if gpu is None:
            raise BackendError("TensorRT builds on the GPU that will run the engines, but this machine has none")
        return BuiltFor(library.name, library.version, gpu.name, (gpu.sm,)), gpu.slug
    known = _targets(library)
    for target in targets:
        if target not in known:
            raise UsageError(
                f"--target {target}: {library.title} supports {', '.join(known)}; for other GPUs use TensorRT, or "
                "--backend onnxruntime-cuda"
            )
    if targets:
        chosen = tuple(sorted(set(targets)))
        return BuiltFor(library.name, library.version, "", chosen), "-".join(chosen).replace("_", "")
    if gpu is not None:
        if (obstacle := library.gpu_obstacle(gpu)) is not None:
            raise BackendError(f"{obstacle} (--library tensorrt); --target builds for another GPU")
        if gpu.sm not in known:
            raise BackendError(
                f"{library.title} builds for {', '.join(known)}, but this GPU ({gpu.name}) is {gpu.sm}: "
                "install a newer release, or use --backend onnxruntime-cuda"
            )
        return BuiltFor(library.name, library.version, gpu.name, (gpu.sm,)), gpu.slug
    portable = tuple(target for target in known if int(target.removeprefix("sm_")) >= AMPERE * 10)
    return BuiltFor(library.name, library.version, "", portable), "portable"


def _targets(library: Library) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT-RTX both builds for and runs on, by our names."""
    members = library.module.ComputeCapability.__members__
    known = {f"sm_{name[2:]}": value for name, value in members.items() if name.startswith("SM")}
    return {name: value for name, value in known.items() if name in RTX_RUNS_ON}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder of engines and lock it against other builds. Raises ``BundleError``."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, folder)
            stack.enter_context(locked(folder / LOCK))
        except BlockingIOError:
            raise BundleError(f"{folder}: another build is writing to it") from None
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror})") from None
        yield


def _remove_if_empty(folder: Path) -> None:
    """Remove a build's folders if they are empty."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _present_engines(folder: Path) -> Engines | None:
    """Return a folder's manifest, or None if it is missing or damaged: all engines can be built again."""
    if not (folder / MANIFEST).exists():
        return None
    try:
        return read_engines(folder)
    except BundleError:
        return None


def _graph_file(bundle: Bundle, variant: str, graph: str, scratch: Path, join: Callable[[], Join]) -> Path:
    if graph == PIXELS_GRAPH:
        return PIXELS_FILE
    if graph in bundle.manifest.variants[variant]:
        return bundle.graph_path(variant, graph)
    path = scratch / f"{graph}.onnx"
    join()(bundle.spec, {part: bundle.graph_path(variant, part) for part in GRAPHS}, path)
    return path


def _keep(folder: Path, graph: str, plan: bytes, graph_sha256: str, seconds: float) -> EngineInfo:
    path = folder / f"{graph}.engine"
    with atomic_write(path) as file:
        file.write(plan)
    return EngineInfo(path.name, sha256_of(path), len(plan), graph_sha256, round(seconds, 2))


def build_engine(
    library: Library,
    path: Path,
    graph: str,
    wanted: Engines,
    frame_size: int,
    cache: Path,
    progress: Progress,
    check: Callable[[], None],
) -> bytes:
    """Build one engine.

    Args:
        library: that builds it.
        path: of the graph's file.
        graph: its name.
        wanted: the GPUs, the options and the batches that it is for.
        frame_size: of the model, in pixels; only the graph of pixels needs it.
        cache: file with the builder's timings.
        progress: see :data:`Progress`.
        check: raises if the build was interrupted.

    Raises ``BuildError``, or what interrupted it.
    """
    trt, logger = library.module, library.logger()
    with wrap_errors(logger, f"{path}: {library.title} failed"):
        builder = trt.Builder(logger)
        flags = trt.NetworkDefinitionCreationFlag
        # TensorRT 11 has no other networks, and may drop this flag.
        network = builder.create_network(1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0)
        parser = trt.OnnxParser(network, logger)
        if not parser.parse_from_file(str(path)):
            errors = [parser.get_error(number) for number in range(parser.num_errors)]
            raise BuildError(f"{path}: {in_words(library.title, errors)}")
        config = builder.create_builder_config()
        _configure(library, config, wanted)
        inputs = [network.get_input(number) for number in range(network.num_inputs)]
        for profile_shapes in _profiles(graph, inputs, wanted.batches, frame_size):
            profile = builder.create_optimization_profile()
            for name, shapes in profile_shapes.items():
                profile.set_shape(name, *shapes)
            config.add_optimization_profile(profile)
        timings = _timing_cache(library, config, cache)
        check()
        plan = _run(library, builder, network, config, graph, progress)
        if plan is None:
            raise BuildError(f"{path}: {library.title} cannot build it: {pop_first_error(logger)}")
        if timings and (measured := config.get_timing_cache()) is not None:
            with atomic_write(cache) as file:
                file.write(bytes(measured.serialize()))
        return bytes(plan)


def _configure(library: Library, config: Any, wanted: Engines) -> None:
    trt, options = library.module, wanted.options
    if hasattr(trt.BuilderFlag, "TF32"):
        config.clear_flag(trt.BuilderFlag.TF32)  # TF32 rounds FP32 to 10 bits; a reduced precision is a variant
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    level = LEVELS[options.hardware_compatible]
    config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, level)
    if library.name == "tensorrt-rtx":
        known = _targets(library)
        config.num_compute_capabilities = len(wanted.built_for.targets)
        for number, target in enumerate(wanted.built_for.targets):
            config.set_compute_capability(known[target], number)


def _profiles(graph: str, inputs: list[Any], batches: tuple[int, ...], frame_size: int) -> list[dict[str, Shapes]]:
    """Return the optimization profiles of a graph: minimum, optimum and maximum shape of each dynamic input."""
    if graph == PIXELS_GRAPH:  # decoded frames of any usual size
        high, wide = USUAL_SIDES
        return [
            {  # a model that sees motion takes one channel of each of three frames
                "luma": ((1, MIN_SIDE, MIN_SIDE), (1, high, wide), (3, LARGEST_SIDE, LARGEST_SIDE)),
                "chroma": (
                    (1, MIN_SIDE // 2, MIN_SIDE),
                    (1, high // 2, wide),
                    (3, LARGEST_SIDE // 2, LARGEST_SIDE),
                ),
                "mix": ((1, 3, 1, 1), (3, 3, 1, 1), (3, 3, 1, 1)),
                "rows": ((frame_size, MIN_SIDE), (frame_size, high), (frame_size, LARGEST_SIDE)),
                "columns": ((MIN_SIDE, frame_size), (wide, frame_size), (LARGEST_SIDE, frame_size)),
            }
        ]
    sides = {tensor.name: tuple(tensor.shape)[1:] for tensor in inputs}
    return [{name: ((1, *rest), (batch, *rest), (batch, *rest)) for name, rest in sides.items()} for batch in batches]


def _timing_cache(library: Library, config: Any, file: Path) -> bool:
    """Load earlier timings into the builder; return whether it uses timings. TensorRT-RTX does not."""
    if library.name == "tensorrt-rtx":
        return False
    try:
        known = file.read_bytes()
    except OSError:
        known = b""
    # A cache that is damaged, or from another GPU or release, is rejected: then start with an empty one.
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def _run(library: Library, builder: Any, network: Any, config: Any, graph: str, progress: Progress) -> Any:
    """Build in a thread, so that an interruption is handled at once and stops the builder at its next step."""
    stop = threading.Event()
    monitor = _monitor(library, graph, progress, stop)
    config.progress_monitor = monitor
    with ThreadPoolExecutor(1, thread_name_prefix="build") as pool:
        building = pool.submit(builder.build_serialized_network, network, config)
        try:
            while not wait([building], POLL_S).done:
                pass
        except BaseException:
            stop.set()
            raise
    return building.result()


def _monitor(library: Library, graph: str, progress: Progress, stop: threading.Event) -> Any:
    trt = library.module

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
        """Reports the phase that began last, and stops the builder on request."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, name: str, parent: str | None, steps: int) -> None:
            del parent
            self._steps[name] = steps
            progress(f"{graph}: {name}", 0, steps)

        def step_complete(self, name: str, step: int) -> bool:
            progress(f"{graph}: {name}", step + 1, self._steps.get(name, 0))
            return not stop.is_set()

        def phase_finish(self, name: str) -> None:
            self._steps.pop(name, None)

    return Monitor()


def in_words(title: str, errors: list[Any]) -> str:
    """Describe a parser's first error: the node, the reason, and the fix.

    Args:
        title: the library's name and version.
        errors: of the parser.
    """
    if not errors:
        return f"{title} cannot read it"
    error = errors[0]
    code = str(error.code()).rpartition(".")[2]
    reason = " ".join(error.desc().split())
    operator, node = error.node_operator(), error.node_name()
    where = f"node {node or error.node()}{f' ({operator})' if operator else ''}: " if operator or node else ""
    more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
    fix = FIXES.get(code, "")
    return f"{title} cannot parse {where}{reason}{more}{f'; {fix}' if fix else ''}"
