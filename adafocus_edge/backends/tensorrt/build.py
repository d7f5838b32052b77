"""`adafocus-edge build`: TensorRT engines of a variant's graphs, each built only if something that matters changed."""

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
"""Told what is being done, how many of its steps are done, and how many there are."""
Shapes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
Join = Callable[[ModelSpec, Mapping[str, Path], Path], None]
"""Joins four graphs into the step: :func:`export.fuse.fuse`."""
MIN_SIDE, LARGEST_SIDE = 16, 4096
"""Of a decoded frame, in pixels, that the graph of pixels takes."""
USUAL_SIDES = (1080, 1920)
"""Height and width that it is tuned for."""
LEVELS = {"none": "NONE", "same": "SAME_COMPUTE_CAPABILITY", "ampere+": "AMPERE_PLUS"}
"""TensorRT's names of how far engines are hardware-compatible."""
POLL_S = 0.2
FIXES = {
    "UNSUPPORTED_NODE": "a newer TensorRT may know this operator; --backend onnxruntime-cuda runs the bundle meanwhile",
    "UNSUPPORTED_NODE_ATTR": "a newer TensorRT may; --backend onnxruntime-cuda runs the bundle meanwhile",
    "UNSUPPORTED_NODE_DATATYPE": "use another variant, such as fp16",
    "MODEL_DESERIALIZE_FAILED": "the file is no ONNX graph: export it again",
    "MEM_ALLOC_FAILED": "free memory, or build with fewer --streams",
}
"""What to do about a parser's error, by its code."""


@dataclass(frozen=True)
class BuildRequest:
    """What ``adafocus-edge build`` was asked for.

    Attributes:
        library: ``tensorrt``, ``tensorrt-rtx`` or ``auto``.
        variant: of the bundle, or ``auto``.
        targets: compute capabilities such as ``sm_89``; empty for the GPU at hand (TensorRT-RTX only).
        options: see :class:`BuildOptions`.
        force: whether to build what is there already.
        output: where to copy the bundle first, and build in the copy; None for in the bundle itself.
    """

    library: str = "auto"
    variant: str = "auto"
    targets: tuple[str, ...] = ()
    options: BuildOptions = field(default_factory=BuildOptions)
    force: bool = False
    output: Path | None = None


@dataclass(frozen=True)
class Row:
    """What became of one graph.

    Attributes:
        graph: its name.
        built: why it was built, or None if the engine that was there does.
        engine: the engine.
    """

    graph: str
    built: str | None
    engine: EngineInfo


@dataclass(frozen=True)
class Built:
    """What came of it.

    Attributes:
        folder: of the engines.
        engines: what it holds.
        rows: one per graph.
    """

    folder: Path
    engines: Engines
    rows: tuple[Row, ...]


def build(bundle: Bundle, request: BuildRequest, join: Callable[[], Join], progress: Progress) -> Built:
    """Build the engines of a variant that are not there, or no longer fit.

    Each engine takes its place when it is done, so a run that was broken off goes on with the next one.

    Args:
        bundle: whose graphs.
        request: see :class:`BuildRequest`.
        join: gives what joins four graphs into a step; asked only where a variant has no joined step yet.
        progress: told what is being done.

    Raises:
        UsageError: what was asked for contradicts itself.
        BackendError: no library, or no GPU where it needs one.
        BuildError: the library refuses a graph; engines that were built before stay.
    """
    library = find_library(request.library)
    variant = bundle.choose_variant(request.variant)
    built_for, device = _built_for(library, request.targets)
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
        there = _what_is_there(folder)
        hashes = {graph: graph_hash(bundle, variant, graph) for graph in BUILT}
        reasons = {
            graph: "as asked" if request.force else why_rebuild(folder, there, wanted, graph, hashes[graph])
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
                plan = _build_one(library, path, graph, engines, bundle.spec.frame_size, cache, progress, check)
                with bundle_lock(bundle.path):  # or what a calibration puts in the bundle's place would lack it
                    info = _keep(folder, graph, plan, hashes[graph], time.monotonic() - started)
                    engines = replace(engines, engines={**engines.engines, graph: info})
                    write_engines(folder, engines)
            rows.append(Row(graph, reason, engines.engines[graph]))
    return Built(folder, engines, tuple(rows))


def _check_options(library: Library, options: BuildOptions) -> None:
    """Refuse what a library does not know. Raises ``UsageError``."""
    if library.name == "tensorrt-rtx" and options.hardware_compatible != "none":
        raise UsageError("--hardware-compatible is TensorRT's; for TensorRT-RTX name the GPUs: --target sm_86,sm_89")
    if library.name == "tensorrt-rtx" and options.version_compatible:
        raise UsageError(
            "--version-compatible is TensorRT's; TensorRT-RTX engines run with the release that built them"
        )
    if not hasattr(library.module.HardwareCompatibilityLevel, LEVELS[options.hardware_compatible]):
        raise UsageError(f"--hardware-compatible {options.hardware_compatible}: {library.title} knows no such thing")


def _built_for(library: Library, targets: tuple[str, ...]) -> tuple[BuiltFor, str]:
    """Say where the engines will run, and how that is called in the folder's name."""
    from adafocus_edge.backends.device.cuda import find_gpu

    gpu = find_gpu()
    if library.name == "tensorrt":
        if targets:
            raise UsageError("--target is TensorRT-RTX's (--library tensorrt-rtx): TensorRT builds for the GPU at hand")
        if gpu is None:
            raise BackendError("TensorRT builds on the GPU that will run the engines, and there is none here")
        return BuiltFor(library.name, library.version, gpu.name, (gpu.sm,)), gpu.slug
    known = _targets(library)
    for target in targets:
        if target not in known:
            raise UsageError(
                f"--target {target}: {library.title} knows {', '.join(known)}; other GPUs take --backend "
                "onnxruntime-cuda, or TensorRT"
            )
    if targets:
        chosen = tuple(sorted(set(targets)))
        return BuiltFor(library.name, library.version, "", chosen), "-".join(chosen).replace("_", "")
    if gpu is not None:
        if (obstacle := library.gpu_obstacle(gpu)) is not None:
            raise BackendError(f"{obstacle} (--library tensorrt); --target builds for another GPU")
        if gpu.sm not in known:
            raise BackendError(
                f"{library.title} builds for {', '.join(known)}, and this GPU ({gpu.name}) is {gpu.sm}: "
                "install a newer one, or use --backend onnxruntime-cuda"
            )
        return BuiltFor(library.name, library.version, gpu.name, (gpu.sm,)), gpu.slug
    portable = tuple(target for target in known if int(target.removeprefix("sm_")) >= AMPERE * 10)
    return BuiltFor(library.name, library.version, "", portable), "portable"


def _targets(library: Library) -> dict[str, Any]:
    """Return the compute capabilities that TensorRT-RTX builds for and runs on, by our names."""
    members = library.module.ComputeCapability.__members__
    known = {f"sm_{name[2:]}": value for name, value in members.items() if name.startswith("SM")}
    return {name: value for name, value in known.items() if name in RTX_RUNS_ON}


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Make a folder of engines and keep other builds out of it. Raises ``BundleError``."""
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.callback(_remove_if_empty, folder)
            stack.enter_context(locked(folder / LOCK))
        except BlockingIOError:
            raise BundleError(f"{folder}: another build is at work in it") from None
        except OSError as error:
            raise BundleError(f"{folder}: cannot be written ({error.strerror})") from None
        yield


def _remove_if_empty(folder: Path) -> None:
    """Leave no empty folders where nothing came of a build."""
    with suppress(OSError):
        folder.rmdir()
        folder.parent.rmdir()


def _what_is_there(folder: Path) -> Engines | None:
    """Return what a folder of engines holds; a damaged manifest counts for nothing, since all can be built again."""
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


def _build_one(
    library: Library,
    path: Path,
    graph: str,
    wanted: Engines,
    frame_size: int,
    cache: Path,
    progress: Progress,
    check: Callable[[], None],
) -> bytes:
    """Build one engine. Raises ``BuildError``, or what interrupted it."""
    trt, logger = library.module, library.logger()
    with wrap_errors(logger, f"{path}: {library.title} failed"):
        builder = trt.Builder(logger)
        flags = trt.NetworkDefinitionCreationFlag
        # TensorRT 11 knows no other networks, and may drop the flag that asks for them.
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
        config.clear_flag(trt.BuilderFlag.TF32)  # rounds FP32 to 10 bits; a reduced precision is a variant
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
    """Return the optimization profiles of a graph: least, best and largest shape of each dynamic input."""
    if graph == PIXELS_GRAPH:  # decoded frames of any usual size
        high, wide = USUAL_SIDES
        return [
            {  # a model that sees motion takes three frames, and one channel of each
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
    """Give the builder what it measured before, if it measures; say whether it does. TensorRT-RTX does not."""
    if library.name == "tensorrt-rtx":
        return False
    try:
        known = file.read_bytes()
    except OSError:
        known = b""
    # A cache of another GPU or release, or a damaged one, is refused: then it begins anew.
    for content in (known, b""):
        cache = config.create_timing_cache(content)
        if cache is not None and config.set_timing_cache(cache, False):
            return True
    return False


def _run(library: Library, builder: Any, network: Any, config: Any, graph: str, progress: Progress) -> Any:
    """Build in a thread, so that an interruption arrives at once and stops the builder at its next step."""
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
        """Passes on the phase that began last, and asks the builder to stop."""

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
    """Tell what a parser refused: which node, why, and what to do about it.

    Args:
        title: the library's name and version.
        errors: of the parser, the first of which is told.
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
    return f"{title} cannot take {where}{reason}{more}{f'; {fix}' if fix else ''}"
