"""Choosing a backend by name and loading a bundle with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.backends.base import CONV_SEARCH, ConvSearch, Program, Session
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.names import BACKENDS
from adafocus_edge.bundle.engines import ENGINES, PIXELS_FILE, PIXELS_GRAPH, find_engines, variant_hash
from adafocus_edge.bundle.store import check_graph_files, check_unchanged, describe_tensors
from adafocus_edge.bundle.variants import EXACT_INT8
from adafocus_edge.errors import BackendError, BundleError, UsageError
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, ModelSpec, contract

if TYPE_CHECKING:
    from adafocus_edge.backends.probe import Obstacle
    from adafocus_edge.backends.tensors import Device
    from adafocus_edge.bundle.manifest import Bundle

ON_GPU = ("tensorrt", "onnxruntime-cuda")
"""What ``auto`` tries before the CPU, best first."""
CPU_BATCH = 4
"""Frames per call on a CPU: as fast as the whole clip at once (measured), and its activations stay in the caches."""
RUNTIME_CACHE = "runtime.cache"
"""Beside engines: kernels that TensorRT-RTX compiled on this device."""


def load_model(
    bundle: Bundle,
    variant: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    *,
    conv_search: ConvSearch = CONV_SEARCH,
) -> LoadedModel:
    """Load a bundle's variant on a backend.

    Args:
        bundle: from :func:`adafocus_edge.bundle.store.read_bundle`.
        variant: its name, or ``auto`` for FP32, or the first one where there is none.
        backend: one of :data:`BACKENDS`, or ``auto``: on a usable NVIDIA GPU TensorRT if engines of the variant were
            built for it, else ONNX Runtime; without one, the CPU.
        threads: for computing on the CPU; None for as many as there are usable cores.
        conv_search: how ONNX Runtime on a GPU picks convolution algorithms: ``heuristic`` starts fast, ``exhaustive``
            times every algorithm first.

    Raises:
        UsageError: an unknown variant or backend.
        BackendError: the backend cannot run here, with the reason and what to install.
    """
    from adafocus_edge.backends import probe

    variant = bundle.choose_variant(variant)
    if backend == "auto":
        if probe.gpu_obstacle() is None:
            for name in ON_GPU:
                # A GPU that looks usable may still refuse, with a driver older than the CUDA libraries, say.
                with suppress(BackendError, BundleError):
                    return load_model(bundle, variant, name, threads, conv_search=conv_search)
        backend = "onnxruntime-cpu"
    elif backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    elif (found := obstacle(backend)) is not None:
        fix = f"{found.fix}, or " if found.fix else ""
        raise BackendError(f"{backend} cannot run here: {found.why}; {fix}use --backend onnxruntime-cpu")
    if backend == "tensorrt":
        return _with_engines(bundle, variant)
    kept = None
    if backend == "onnxruntime-tensorrt":  # it tells engines apart by the names in a graph, not by its weights
        kept = bundle.path / ENGINES / f"onnxruntime-tensorrt-{variant}-{variant_hash(bundle, variant)[:12]}"
    graphs = bundle.manifest.variants[variant]
    with ExitStack() as opened:
        model = opened.enter_context(
            open_graphs(
                bundle.spec, lambda graph: bundle.graph_path(variant, graph), variant, backend, threads,
                step=STEP_GRAPH in graphs, kept=kept, conv_search=conv_search,
            )
        )  # fmt: skip
        check_graph_files(bundle, variant)  # what was loaded is what was hashed
        opened.pop_all()
    return model


def obstacle(backend: str) -> Obstacle | None:
    """Say why a backend of :data:`BACKENDS` cannot run on this machine, or return None if it should."""
    from adafocus_edge.backends import onnxruntime as ort
    from adafocus_edge.backends import probe

    if backend == "onnxruntime-cpu":
        return None
    found = probe.gpu_obstacle() if backend == "tensorrt" else ort.cuda_obstacle()
    if found is None and backend == "onnxruntime-tensorrt":
        found = ort.tensorrt_obstacle()
    return found


def open_graphs(
    spec: ModelSpec,
    path_of: Callable[[str], Path],
    variant: str,
    backend: str,
    threads: int | None = None,
    *,
    step: bool = False,
    kept: Path | None = None,
    conv_search: ConvSearch = CONV_SEARCH,
) -> LoadedModel:
    """Open graph files with ONNX Runtime on a backend that can run here, and check them against the contract.

    Args:
        spec: the model's shapes and names.
        path_of: gives each graph's file.
        variant: what to call it.
        backend: one of :data:`BACKENDS`, but not ``tensorrt``.
        threads: see :func:`load_model`.
        step: whether there is a joined step, which a GPU then runs.
        kept: folder for what ONNX Runtime's TensorRT provider builds.
        conv_search: see :func:`load_model`.

    Raises ``BackendError``.
    """
    from adafocus_edge.backends import onnxruntime as ort

    if backend == "onnxruntime-cpu":
        with ExitStack() as opened:
            sessions: dict[str, Session] = {}
            for graph in GRAPHS:
                session = ort.OrtSession(path_of(graph), threads, exact_int8=variant in EXACT_INT8)
                opened.callback(session.close)
                _check_contract(session, spec, graph, path_of(graph))
                sessions[graph] = session
            opened.pop_all()
        return LoadedModel.of(spec, sessions, backend, variant, CPU_BATCH)

    from adafocus_edge.backends.device.cuda import CudaDevice

    if kept is not None:
        kept = _writable(kept)
    device = CudaDevice()

    def opener(graph: str) -> Program:
        if graph == PIXELS_GRAPH:
            return ort.OrtProgram(PIXELS_FILE, device, threads, any_shape=True)
        return ort.OrtProgram(
            path_of(graph), device, threads, kept if graph in GRAPHS else None, conv_search=conv_search
        )

    graphs = (*GRAPHS, STEP_GRAPH) if step and kept is None else GRAPHS
    return open_programs(spec, (*graphs, PIXELS_GRAPH), opener, path_of, device, backend=backend, variant=variant)


def open_programs(
    spec: ModelSpec,
    graphs: tuple[str, ...],
    opener: Callable[[str], Program],
    path_of: Callable[[str], Path],
    device: Device,
    *,
    backend: str,
    variant: str,
) -> LoadedModel:
    """Open programs on a device and make a model of them; if one of them fails, all are closed, the device too.

    Args:
        spec: the model's shapes and names.
        graphs: which to open: the four, and others that the loops make use of.
        opener: opens one.
        path_of: names a graph's file in errors.
        device: where they run.
        backend: what the model calls it.
        variant: what the model calls it.

    Raises ``BackendError``.
    """
    from adafocus_edge.backends.loaded import on_device

    with ExitStack() as opened:
        opened.callback(device.close)
        programs: dict[str, Program] = {}
        for graph in graphs:
            with device.use():
                program = opener(graph)
            opened.callback(program.close)
            if graph != PIXELS_GRAPH:
                _check_contract(program, spec, graph, path_of(graph))
            programs[graph] = program
        opened.pop_all()
    return on_device(spec, programs, device, backend=backend, variant=variant)


def _with_engines(bundle: Bundle, variant: str) -> LoadedModel:
    """Load TensorRT engines that were built for this GPU."""
    from adafocus_edge.backends.device.cuda import CudaDevice, this_gpu
    from adafocus_edge.backends.tensorrt.library import MODULES, find_library
    from adafocus_edge.backends.tensorrt.program import TrtProgram, TrtRuntime

    gpu = this_gpu()
    found = None
    refused: BackendError | None = None
    for name in MODULES:
        try:
            library = find_library(name)
        except BackendError as error:
            refused = refused or error
            continue
        if (obstacle := library.gpu_obstacle(gpu)) is not None:
            refused = BackendError(obstacle)
            continue
        try:
            found = find_engines(bundle, variant, library.name, library.version, gpu)
            break
        except BackendError as error:
            refused = error
    if found is None:
        raise refused or BackendError("TensorRT is not installed")
    folder, engines = found
    runtime = TrtRuntime(library, folder / RUNTIME_CACHE, host_code=engines.options.version_compatible)
    device = CudaDevice()

    def path_of(graph: str) -> Path:
        return folder / engines.engines[graph].file

    graphs = (*GRAPHS, *(graph for graph in (STEP_GRAPH, PIXELS_GRAPH) if graph in engines.engines))
    model = open_programs(
        bundle.spec, graphs, lambda graph: TrtProgram(path_of(graph), runtime, device), path_of, device,
        backend="tensorrt", variant=variant,
    )  # fmt: skip
    assert model.resident is not None
    model.resident.on_close(runtime.close)
    with ExitStack() as opened:
        opened.enter_context(model)
        for graph in graphs:
            check_unchanged(path_of(graph), engines.engines[graph].sha256)
        opened.pop_all()
    return model


def _check_contract(graph_runner: Session | Program, spec: ModelSpec, graph: str, path: Path) -> None:
    sides = (graph_runner.inputs, graph_runner.outputs)
    for found, expected in zip(sides, contract(spec, graph), strict=True):
        if sorted(found, key=str) != sorted(expected, key=str):
            raise BackendError(
                f"{path}: takes or gives {describe_tensors(found)} instead of {describe_tensors(expected)}"
            )


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder
