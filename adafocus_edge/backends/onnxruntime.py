"""ONNX Runtime on the CPU, and on a GPU with tensors that stay in its memory."""

from __future__ import annotations

import contextlib
import ctypes
import io
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnxruntime as ort

from adafocus_edge.backends.ahead import Split, SplitGraph, split_of
from adafocus_edge.backends.base import CONV_SEARCH, CPU_BACKEND, ORT_TENSORRT_BACKEND
from adafocus_edge.backends.device import cuda
from adafocus_edge.backends.device.memory import check_alignment
from adafocus_edge.backends.loaded import CPU_BATCH, LoadedModel, check_contract, open_programs
from adafocus_edge.backends.probe import Obstacle, gpu_obstacle
from adafocus_edge.backends.tensorrt.library import find_library
from adafocus_edge.bundle.engines import ENGINES, PIXELS_FILE, PIXELS_GRAPH, variant_hash
from adafocus_edge.bundle.store import check_graph_files
from adafocus_edge.bundle.variants import EXACT_INT8
from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import GRAPHS, STATES, STEP_GRAPH, ModelSpec, TensorSpec
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from adafocus_edge.backends.base import ConvSearch, LoadRequest, Program, Session
    from adafocus_edge.backends.tensors import Buffer, Work

CUDA_PROVIDER = "CUDAExecutionProvider"
TENSORRT_PROVIDER = "TensorrtExecutionProvider"
Shapes = tuple[tuple[int, ...], ...]
"""Shapes of a graph's inputs, in their order."""
NUMPY_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
"""ONNX Runtime's names for the types of the contract."""
SPIN_US = "1000"
"""How long a session's threads wait for their next part of a run before they sleep, in microseconds."""
FATAL = 4
"""Severity from which ONNX Runtime itself writes to stderr: lesser errors are raised too, and we report them."""
CAPTURE_SAFE = (1, 31)
"""First release of ONNX Runtime whose CUDA kernels keep the memory that a captured graph reads: before that, replays
of Concat, Split and GatherND read host memory that was freed (microsoft/onnxruntime pull requests 32120 and 32121)."""
_PRINTING = threading.Lock()


class OrtSession:
    """One graph on the CPU; tensors are NumPy arrays.

    Args:
        path: of the graph.
        threads: for computing; None for as many as there are usable cores.
        exact_int8: compute quantized layers in floats of the same values. Without VNNI the CPU's kernels add products
            of two signed bytes in 16 bits, which may overflow; a TensorRT device does not.
        content: of the graph's file, if it is not that of the file.
    """

    capturable = True
    largest_batch = None

    def __init__(
        self, path: Path, threads: int | None = None, *, exact_int8: bool = False, content: bytes | None = None
    ) -> None:
        self._session = make_session(path, ["CPUExecutionProvider"], threads, exact_int8=exact_int8, content=content)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self._names = [output.name for output in self.outputs]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once."""
        try:
            made = self._session.run(self._names, feeds)
        except Exception as error:  # ONNX Runtime's exception types have no useful common base
            raise failed(error) from None
        return dict(zip(self._names, made, strict=True))

    def bind(self, tensors: Mapping[str, Buffer], *, fixed: bool) -> Work:
        """Return a callable that runs the graph on tensors of a :class:`HostDevice`; see :class:`Program`."""
        del fixed
        return bound(self._session, self.inputs, tensors, ort.RunOptions())

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees it with its last reference."""
        del self._session


class OrtSplitSession(SplitGraph):
    """A recurrent graph on the CPU in two parts.

    Args:
        opener: opens the graph, or another content in its place.
        split: its parts.
        state: name of the state that it reads.
    """

    capturable = True
    largest_batch = None

    def __init__(self, opener: Callable[..., OrtSession], split: Split, state: str) -> None:
        super().__init__(opener(content=split.ahead), opener(content=split.rest), state)
        self._open = opener
        self._whole: OrtSession | None = None

    def bind(self, tensors: Mapping[str, Buffer], *, fixed: bool) -> Work:
        """Return a callable that runs the graph, opened whole, on tensors; see :class:`Program`."""
        self._whole = self._whole or self._open()
        return self._whole.bind(tensors, fixed=fixed)

    def close(self) -> None:
        """Drop the sessions; ONNX Runtime frees them with their last references."""
        super().close()
        if self._whole is not None:
            self._whole.close()


def open_on_cpu(
    path: Path, graph: str, threads: int | None = None, *, exact_int8: bool = False
) -> OrtSession | OrtSplitSession:
    """Open one of the four graphs on the CPU, a recurrent one in two parts if that pays. Raises ``BackendError``."""
    opener = partial(OrtSession, path, threads, exact_int8=exact_int8)
    split = split_of(path, graph)
    return OrtSplitSession(opener, split, STATES[graph]) if split is not None else opener()


class OrtProgram:
    """One graph on an NVIDIA GPU, on tensors in its memory and in the order of the device's queue.

    Each input shape has an ONNX Runtime session of its own. The provider's convolutions keep one cuDNN plan per node:
    in a shared session a second shape replaces the plan of the first, so that algorithms are searched again at every
    change of shape, and a captured CUDA graph launches kernels of a plan that was freed. The price is one copy of the
    weights per shape.

    Args:
        path: of the graph.
        device: whose stream it computes on.
        threads: for nodes that run on the CPU.
        tensorrt: folder for the engines that ONNX Runtime's TensorRT provider builds; None for its CUDA provider.
        conv_search: how convolution algorithms are chosen.
        any_shape: run every shape in one session and capture nothing: for a graph without convolutions and with many
            shapes.
    """

    capturable = False  # not by us: ONNX Runtime captures its own CUDA graphs
    largest_batch = None

    def __init__(
        self,
        path: Path,
        device: cuda.CudaDevice,
        threads: int | None = None,
        tensorrt: Path | None = None,
        *,
        conv_search: ConvSearch = CONV_SEARCH,
        any_shape: bool = False,
    ) -> None:
        captures = tensorrt is None and not any_shape and release() >= CAPTURE_SAFE
        providers = _providers(device, tensorrt, conv_search, captures=captures)
        self._open = partial(_on_gpu, path, providers, threads)
        self._any_shape = any_shape
        first = self._open()
        self._unused: tuple[ort.InferenceSession, bool] | None = first
        self._sessions: dict[Shapes, tuple[ort.InferenceSession, bool]] = {}
        self.inputs = tensor_specs(first[0].get_inputs())
        self.outputs = tensor_specs(first[0].get_outputs())
        self._fixed = 0

    def bind(self, tensors: Mapping[str, Buffer], *, fixed: bool) -> Work:
        """Return a callable that queues the graph on tensors; see :class:`Program`."""
        session, captures = self._session(tensors)
        options = ort.RunOptions()
        # The queue keeps the order, so there is no need to wait before results are fetched.
        options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        if captures:
            # Fixed tensors get a CUDA graph of their own; tensors of one run get none.
            self._fixed += fixed
            options.add_run_config_entry("gpu_graph_id", str(self._fixed) if fixed else "-1")
        return bound(session, self.inputs, tensors, options)

    def _session(self, tensors: Mapping[str, Buffer]) -> tuple[ort.InferenceSession, bool]:
        """Return the session of these tensors' shapes, and whether it captures CUDA graphs."""
        shapes: Shapes = () if self._any_shape else tuple(tensors[spec.name].shape for spec in self.inputs)
        if shapes not in self._sessions:
            self._sessions[shapes] = self._unused or self._open()
            self._unused = None
        return self._sessions[shapes]

    def close(self) -> None:
        """Drop the sessions; ONNX Runtime frees each with its last reference."""
        self._unused = None
        self._sessions.clear()


def release() -> tuple[int, int]:
    """Return ONNX Runtime's release as (major, minor)."""
    major, minor = ort.__version__.split(".")[:2]
    return int(major), int(minor)


def bound(
    session: ort.InferenceSession, inputs: Sequence[TensorSpec], tensors: Mapping[str, Buffer], options: ort.RunOptions
) -> Work:
    """Bind a session's inputs and outputs to memory, and return a callable that runs it.

    Raises ``BackendError`` for an address that is not aligned.
    """
    check_alignment(tensors)
    binding = session.io_binding()
    names = {tensor.name for tensor in inputs}
    for name, tensor in tensors.items():
        bind = binding.bind_input if name in names else binding.bind_output
        bind(name, tensor.device.kind, 0, tensor.dtype, tensor.shape, tensor.address)

    def run() -> None:
        try:
            session.run_with_iobinding(binding, options)
        except Exception as error:
            raise failed(error) from None

    device = next(iter(tensors.values())).device
    return lambda: device.launch(run)


def failed(error: Exception) -> BackendError:
    """Return ONNX Runtime's error while it ran a graph as a ``BackendError``."""
    return BackendError(f"ONNX Runtime failed while it ran a graph: {first_line(error)}")


def _providers(
    device: cuda.CudaDevice, tensorrt: Path | None, conv_search: ConvSearch, *, captures: bool
) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers of a session on a GPU, with their options."""
    common = {"device_id": "0", "user_compute_stream": str(device.stream)}
    options = {
        **common,
        # TF32 would round FP32 convolutions to 10 bits; a reduced precision is a variant, never a surprise.
        "use_tf32": "0",
        "cudnn_conv_algo_search": conv_search.upper(),
        # There are many sessions: growing by powers of two would double the memory of each.
        "arena_extend_strategy": "kSameAsRequested",
    }
    if tensorrt is None:
        return [(CUDA_PROVIDER, {**options, "enable_cuda_graph": "1"} if captures else options)]
    # TensorRT's builder rounds FP32 to TF32 unless this is set for the whole process.
    os.environ.setdefault("NVIDIA_TF32_OVERRIDE", "0")
    return [(TENSORRT_PROVIDER, {**common, **_kept_in(tensorrt)}), (CUDA_PROVIDER, options)]


def _kept_in(folder: Path) -> dict[str, str]:
    """Return the TensorRT provider's options that cache its engines, so that only the first start is slow."""
    return {
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(folder),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(folder),
    }


def _on_gpu(path: Path, providers: list[Any], threads: int | None) -> tuple[ort.InferenceSession, bool]:
    """Make a session on a GPU; return it, and whether it captures CUDA graphs: not if a node runs on the CPU."""
    wanted = providers[0][0]
    ort.set_default_logger_severity(FATAL)  # otherwise every session warns that CUDA is not a plugin
    library_obstacle()  # loads CUDA from the pip packages
    if "enable_cuda_graph" in providers[0][1]:
        # ONNX Runtime refuses to capture a graph with nodes on the CPU: such a graph runs without being captured.
        with contextlib.suppress(BackendError):
            session = make_session(path, providers, threads)
            if session.get_providers()[0] == wanted:
                return session, True
        name, given = providers[0]
        providers = [(name, {key: value for key, value in given.items() if key != "enable_cuda_graph"})]
    session = make_session(path, [*providers, "CPUExecutionProvider"], threads)
    if session.get_providers()[0] != wanted:
        raise BackendError(
            f"{wanted} cannot run here: ONNX Runtime could not load its libraries; "
            + (
                "install TensorRT 10"
                if wanted == TENSORRT_PROVIDER
                else "install them: pip install 'adafocus-edge[gpu]'"
            )
        )
    return session, False


def make_session(
    path: Path, providers: list[Any], threads: int | None, *, exact_int8: bool = False, content: bytes | None = None
) -> ort.InferenceSession:
    """Make a session, with options for sessions that run alternately, of a file or of a content in its place.

    Raises ``BackendError``.
    """
    options = session_options(threads)
    if exact_int8:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        session = ort.InferenceSession(content or str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # ONNX Runtime's exception types have no useful common base
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)})") from None
    if content is not None:
        session._model_bytes = b""  # it keeps them to change its providers later, which is never done
    return session


def session_options(threads: int | None) -> ort.SessionOptions:
    """Return the options of all our sessions; with None, one thread per usable core."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = FATAL
    # Each session has threads of its own. If they kept spinning after a run, they would slow the next session down.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    # While a session is opened, too: without a limit its threads spin from the first to the last optimisation.
    options.add_session_config_entry("session.intra_op.spin_duration_us", SPIN_US)
    return options


def tensor_specs(arguments: list[Any]) -> tuple[TensorSpec, ...]:
    """Convert ONNX Runtime's description of inputs or outputs to ours; a dynamic batch is ``"N"``."""
    return tuple(
        TensorSpec(a.name, NUMPY_TYPES.get(a.type, a.type), tuple(d if isinstance(d, int) else "N" for d in a.shape))
        for a in arguments
    )


def first_line(error: BaseException) -> str:
    """Return an exception's first line of text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@lru_cache(maxsize=1)
def cuda_obstacle() -> Obstacle | None:
    """Return why ONNX Runtime cannot use an NVIDIA GPU here (driver, GPU, libraries), or None if it should."""
    if CUDA_PROVIDER not in ort.get_available_providers():
        return Obstacle(
            "this build of ONNX Runtime has no CUDA provider", "pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    return gpu_obstacle() or library_obstacle()


def tensorrt_obstacle() -> Obstacle | None:
    """Return why ONNX Runtime's TensorRT provider cannot run although CUDA can, or None if it should."""
    if TENSORRT_PROVIDER not in ort.get_available_providers():
        return Obstacle("this build of ONNX Runtime has no TensorRT provider")
    with contextlib.suppress(BackendError):
        find_library("tensorrt")  # importing it loads its libraries, and the provider then finds them
    try:
        ctypes.CDLL("nvinfer_10.dll" if sys.platform == "win32" else "libnvinfer.so.10")
    except OSError:
        return Obstacle("it needs TensorRT 10, which is not installed", "pip install 'tensorrt<11'")
    return None


def capture_hint() -> Obstacle | None:
    """Return why the CUDA provider is slower than it could be, and the fix, or None if it captures CUDA graphs."""
    if release() >= CAPTURE_SAFE:
        return None
    needed = ".".join(map(str, CAPTURE_SAFE))
    why = f"slower than it could be: CUDA graphs need ONNX Runtime {needed} or later"
    return Obstacle(why, f"pip install 'onnxruntime-gpu>={needed}'")


def library_obstacle() -> Obstacle | None:
    """Load CUDA and cuDNN for ONNX Runtime's CUDA provider, from pip packages or the system; return the obstacle."""
    folder = Path(ort.__file__).parent / "capi"
    shared, provider = (folder / f"libonnxruntime_providers_{name}.so" for name in ("shared", "cuda"))
    if not provider.is_file():
        return None  # the files have other names on this platform: opening a session reports an error
    # It prints missing libraries, which are reported below. Two threads at once could restore the wrong stream.
    with _PRINTING, contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    try:
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        return Obstacle(f"a CUDA library is missing ({first_line(error)})", "pip install 'adafocus-edge[gpu]'")
    return None


def open_variant(request: LoadRequest) -> LoadedModel:
    """Open a variant of a bundle on a backend that can run here, and check its files. Raises ``BackendError``."""
    bundle, variant, backend = request.bundle, request.variant, request.backend
    built = None
    if backend == ORT_TENSORRT_BACKEND:  # it identifies engines by the names in a graph, not by its weights
        built = bundle.path / ENGINES / f"{backend}-{variant}-{variant_hash(bundle, variant)[:12]}"
    with ExitStack() as opened:
        model = opened.enter_context(
            open_graphs(
                bundle.spec, lambda graph: bundle.graph_path(variant, graph), variant, backend, request.threads,
                step=STEP_GRAPH in bundle.manifest.variants[variant], built=built, conv_search=request.conv_search,
            )
        )  # fmt: skip
        check_graph_files(bundle, variant)  # the loaded files are those that were hashed
        opened.pop_all()
    return model


def open_graphs(
    spec: ModelSpec,
    path_of: Callable[[str], Path],
    variant: str,
    backend: str,
    threads: int | None = None,
    *,
    step: bool = False,
    built: Path | None = None,
    conv_search: ConvSearch = CONV_SEARCH,
) -> LoadedModel:
    """Open graph files with ONNX Runtime on a backend that can run here, and check their signatures.

    Args:
        spec: the model's shapes and names.
        path_of: returns a graph's file.
        variant: name of the variant.
        backend: one of ONNX Runtime's backends.
        threads: for computing on the CPU; None for as many as there are usable cores.
        step: whether there is a joined step, which a GPU then runs.
        built: folder for the engines of ONNX Runtime's TensorRT provider; None for other providers.
        conv_search: see :data:`ConvSearch`.

    Raises ``BackendError``.
    """
    if backend == CPU_BACKEND:
        with ExitStack() as opened:
            sessions: dict[str, Session] = {}
            for graph in GRAPHS:
                session = open_on_cpu(path_of(graph), graph, threads, exact_int8=variant in EXACT_INT8)
                opened.callback(session.close)
                check_contract(session, spec, graph, path_of(graph))
                sessions[graph] = session
            opened.pop_all()
        return LoadedModel.of(spec, sessions, backend, variant, CPU_BATCH)

    if built is not None:
        built = _writable(built)
    device = cuda.CudaDevice()

    def opener(graph: str) -> Program:
        if graph == PIXELS_GRAPH:
            return OrtProgram(PIXELS_FILE, device, threads, any_shape=True)
        return OrtProgram(path_of(graph), device, threads, built if graph in GRAPHS else None, conv_search=conv_search)

    graphs = (*GRAPHS, STEP_GRAPH) if step and built is None else GRAPHS
    return open_programs(spec, (*graphs, PIXELS_GRAPH), opener, path_of, device, backend=backend, variant=variant)


def _writable(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise BackendError(f"{folder}: cannot be written ({error.strerror})") from None
    return folder
