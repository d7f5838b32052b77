"""OpenVINO on Intel's processors: the CPU, and with ``--device`` an integrated or discrete GPU or an NPU."""

from __future__ import annotations

import contextlib
import threading
from contextlib import ExitStack
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.ahead import SplitGraph, split_of
from adafocus_edge.backends.base import OPENVINO_BACKEND
from adafocus_edge.backends.loaded import CPU_BATCH, LoadedModel, check_contract
from adafocus_edge.backends.probe import Obstacle
from adafocus_edge.bundle.store import check_graph_files
from adafocus_edge.bundle.variants import EXACT_INT8
from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import GRAPHS, STATES, TensorSpec
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from collections.abc import Mapping

    from adafocus_edge.backends.base import LoadRequest, Session

CPU = "CPU"
"""The device that OpenVINO has everywhere, and the default."""
FIXED_SHAPES = ("NPU",)
"""Beginnings of the names of devices that run only shapes that were known when a graph was compiled."""
TYPES = {"f32": "float32", "u8": "uint8", "i64": "int64", "i32": "int32"}
"""OpenVINO's names for the types of the contract."""


_loading = threading.Lock()


def library() -> Any:
    """Return OpenVINO's ``Core``: one for all models, which is never freed before the process ends.

    Its CPU plugin replaces the signal stack (``sigaltstack``) of the thread that loads it, and unmaps the new one when
    the ``Core`` is freed. If another thread frees it, or several are not freed in reverse order, a thread keeps a stack
    that is gone, and the next signal with a Python handler, such as Ctrl-C, crashes the process or writes over what
    lies there by then. Source: https://github.com/openvinotoolkit/openvino/pull/11894
    """
    with _loading:
        return _core()


@lru_cache(maxsize=1)
def _core() -> Any:
    import openvino

    return openvino.Core()


class OpenVinoSession:
    """One graph in OpenVINO, configured for the lowest latency of a single request; tensors are NumPy arrays.

    Args:
        path: of the graph.
        device: as OpenVINO names it.
        threads: for computing on the CPU; None for as many as there are usable cores.
        fixed: compile the graph for every batch on its own, for devices that need to know the shapes.
        content: of the graph's file, if it is not that of the file.

    Raises:
        BackendError: OpenVINO cannot read or compile it, or has no such device here.
    """

    def __init__(
        self,
        path: Path,
        device: str = CPU,
        threads: int | None = None,
        *,
        fixed: bool = False,
        content: bytes | None = None,
    ) -> None:
        self._path, self._device, self._fixed = path, device, fixed
        # Reduced precision is a variant, never a surprise: by default GPUs and new CPUs compute in 16 bits.
        self._settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if device == CPU:
            self._settings["INFERENCE_NUM_THREADS"] = threads or usable_cores()
        self._core = library()
        with _reported(path, device):
            self._graph = self._core.read_model(content or path)
            self.inputs = tuple(_spec(port) for port in self._graph.inputs)
            self.outputs = tuple(_spec(port) for port in self._graph.outputs)
            self._compiled: dict[int | None, Any] = {}
            self._compiling = threading.Lock()
            self._of_thread = threading.local()
            self._request(1 if fixed else None)

    def _request(self, batch: int | None) -> Any:
        """Return this thread's request for a batch, or for any with None: a request runs one thread's feeds only."""
        requests: dict[int | None, Any] = self._of_thread.__dict__.setdefault("requests", {})
        if batch not in requests:
            requests[batch] = self._compile(batch).create_infer_request()
        return requests[batch]

    def _compile(self, batch: int | None) -> Any:
        """Return the graph compiled for a batch; the first time, this takes a while."""
        with self._compiling:
            if batch not in self._compiled:
                graph = self._graph
                if batch is not None:
                    graph = graph.clone()
                    graph.reshape({port.get_any_name(): [batch, *_sides(port)[1:]] for port in self._graph.inputs})
                self._compiled[batch] = self._core.compile_model(graph, self._device, self._settings)
            return self._compiled[batch]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once."""
        arrays = {name: np.ascontiguousarray(value) for name, value in feeds.items()}
        with _reported(self._path, self._device):
            made = self._request(len(next(iter(arrays.values()))) if self._fixed else None).infer(arrays)
        return {spec.name: np.array(made[spec.name]) for spec in self.outputs}  # the next run writes over its tensors

    def close(self) -> None:
        """Release the compiled graphs."""
        self._of_thread = threading.local()
        self._compiled.clear()
        del self._graph


@contextlib.contextmanager
def _reported(path: Path, device: str) -> Any:
    """Raise OpenVINO's errors as ``BackendError``."""
    try:
        yield
    except RuntimeError as error:
        last = (str(error).strip().splitlines() or ["unknown error"])[-1]
        raise BackendError(f"{path}: OpenVINO cannot run it on {device}: {last}") from None


def _sides(port: Any) -> list[int | str]:
    return [side.get_length() if side.is_static else "N" for side in port.get_partial_shape()]


def _spec(port: Any) -> TensorSpec:
    kind = port.get_element_type().get_type_name()
    return TensorSpec(port.get_any_name(), TYPES.get(kind, kind), tuple(_sides(port)))


@lru_cache(maxsize=1)
def openvino_obstacle() -> Obstacle | None:
    """Return why OpenVINO cannot run here, or None if it should."""
    try:
        import openvino  # noqa: F401
    except ModuleNotFoundError:
        return Obstacle("OpenVINO is not installed", "pip install 'adafocus-edge[openvino]'")
    except (ImportError, OSError) as error:
        return Obstacle(f"OpenVINO cannot be loaded ({error})")
    return None


def _open(path: Path, graph: str, device: str, threads: int | None) -> Session:
    """Open one of the four graphs; on the CPU, a recurrent one in two parts if that pays."""
    opener = partial(OpenVinoSession, path, device, threads, fixed=device.startswith(FIXED_SHAPES))
    split = split_of(path, graph) if device == CPU else None
    if split is None:
        return opener()
    return SplitGraph(opener(content=split.ahead), opener(content=split.rest), STATES[graph])


def open_variant(request: LoadRequest) -> LoadedModel:
    """Open a variant of a bundle on one of OpenVINO's devices, and check its files. Raises ``BackendError``."""
    bundle, variant = request.bundle, request.variant
    device = (request.device or CPU).upper()
    present = library().available_devices
    if device.partition(".")[0] not in {name.partition(".")[0] for name in present}:
        raise BackendError(f"--device {request.device}: OpenVINO has no such device here; it has {', '.join(present)}")
    if variant in EXACT_INT8:
        raise BackendError(
            f"--backend {OPENVINO_BACKEND}: variant {variant} needs a device that adds 8-bit products exactly, which "
            "OpenVINO does not guarantee: use int8-cpu"
        )
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for graph in GRAPHS:
            path = bundle.graph_path(variant, graph)
            session = _open(path, graph, device, request.threads)
            opened.callback(session.close)
            check_contract(session, bundle.spec, graph, path)
            sessions[graph] = session
        check_graph_files(bundle, variant)  # the loaded files are those that were hashed
        opened.pop_all()
    return LoadedModel.of(bundle.spec, sessions, OPENVINO_BACKEND, variant, CPU_BATCH)
