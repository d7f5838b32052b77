"""An NVIDIA GPU as a device, through NVIDIA's own bindings (the package cuda-bindings); no PyTorch."""

from __future__ import annotations

import ctypes
import math
import weakref
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.device.memory import ThreadGuard
from adafocus_edge.backends.tensors import Buffer, Work
from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import Gpu

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

BINDINGS = "NVIDIA's cuda-bindings are missing: pip install 'adafocus-edge[gpu]'"


def runtime() -> Any:
    """Return the CUDA runtime's bindings. Raises ``BackendError`` if they are not installed."""
    try:
        from cuda.bindings import runtime as bindings
    except ImportError:
        try:
            from cuda import cudart as bindings  # releases before 12.6
        except ImportError:
            raise BackendError(BINDINGS) from None
    return bindings


def checked(cuda: Any, result: tuple[Any, ...], what: str) -> Any:
    """Return the value of a call of the runtime, or raise ``BackendError`` with the reason in words."""
    status, *values = result
    if int(status) != 0:
        _, text = cuda.cudaGetErrorString(status)
        reason = text.decode() if isinstance(text, bytes) else str(text)
        if int(status) == int(cuda.cudaError_t.cudaErrorInsufficientDriver):
            reason += "; with a driver of CUDA 12: pip install 'cuda-bindings<13'"
        raise BackendError(f"CUDA failed while {what}: {reason}")
    return values[0] if values else None


def this_gpu() -> Gpu:
    """Return the GPU in use: the first that the driver lists. Raises ``BackendError`` if there is none."""
    cuda = runtime()
    properties = checked(cuda, cuda.cudaGetDeviceProperties(0), "asking for the GPU")
    name = properties.name.decode() if isinstance(properties.name, bytes) else str(properties.name)
    return Gpu(name.rstrip("\0"), f"{properties.major}.{properties.minor}")


def find_gpu() -> Gpu | None:
    """Return the GPU, or None if no driver finds one. Raises ``BackendError`` if the bindings cannot use it."""
    from adafocus_edge.backends.probe import gpu_obstacle

    return this_gpu() if gpu_obstacle() is None else None


class CudaDevice:
    """The first NVIDIA GPU: a non-blocking stream for work, another for uploads, and memory.

    The methods are those of :class:`adafocus_edge.backends.tensors.Device`.
    """

    kind = "cuda"

    def __init__(self) -> None:
        self._runtime = cuda = runtime()
        self._turn = ThreadGuard()
        self._allocated: dict[int, Any] = {}  # address -> the call that frees it
        # Addresses to reuse, by size: all work on device memory is in one queue, and host memory is waited for.
        self._spare: dict[int, list[int]] = {}
        self._spare_pinned: dict[int, list[int]] = {}
        self._graphs: weakref.WeakSet[_CudaGraph] = weakref.WeakSet()
        self._events: list[Any] = []
        self._marks: list[Any] = []
        self._closed = False
        self._check(cuda.cudaSetDevice(0), "taking the GPU")
        flags = cuda.cudaStreamNonBlocking
        self._stream = self._check(cuda.cudaStreamCreateWithFlags(flags), "making a stream")
        self._uploads = self._check(cuda.cudaStreamCreateWithFlags(flags), "making a stream")
        self._uploaded = self._event()

    @property
    def _cuda(self) -> Any:
        """Return the runtime. Raises ``BackendError`` if the device is closed."""
        if self._closed:
            raise BackendError("the device is closed")
        return self._runtime

    @property
    def stream(self) -> int:
        """Return the handle of the stream on which work is queued."""
        return int(self._stream)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Allocate a tensor in the GPU's memory."""
        kind = np.dtype(dtype)
        cuda, size = self._cuda, max(1, math.prod(shape) * kind.itemsize)
        address, spare = self._take(self._spare, size, lambda: cuda.cudaMalloc(size), cuda.cudaFree)
        owner = _Owner()
        weakref.finalize(owner, spare.append, address)
        return Buffer(self, address, tuple(shape), kind, owner)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate page-locked memory of the host."""
        kind = np.dtype(dtype)
        used = math.prod(shape) * kind.itemsize
        cuda, size = self._cuda, max(1, used)
        address, spare = self._take(
            self._spare_pinned, size, lambda: cuda.cudaHostAlloc(size, cuda.cudaHostAllocDefault), cuda.cudaFreeHost
        )
        raw = (ctypes.c_uint8 * size).from_address(address)
        weakref.finalize(raw, spare.append, address)  # every view of the array keeps it alive
        array: NDArray[Any] = np.ctypeslib.as_array(raw)[:used].view(kind).reshape(shape)
        array[...] = 0
        return array

    def _take(
        self, pool: dict[int, list[int]], size: int, allocate: Callable[[], Any], free: Any
    ) -> tuple[int, list[int]]:
        """Return an address of this size, reused if possible, and the list to which it is returned."""
        spare = pool.setdefault(size, [])
        if spare:
            return spare.pop(), spare
        try:
            address = int(self._check(allocate(), "allocating"))
        except BackendError:
            self._free_spares()
            address = int(self._check(allocate(), "allocating"))
        self._allocated[address] = free
        return address, spare

    def _free_spares(self) -> None:
        """Free memory that is kept for tensors of other sizes."""
        self._runtime.cudaGetLastError()  # otherwise the next check may report the failed allocation
        self.finish()
        for pool in (self._spare, self._spare_pinned):
            for spare in pool.values():
                while spare:
                    address = spare.pop()
                    self._allocated.pop(address)(address)

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """Copy from page-locked memory, on the stream of uploads."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(target.address, source.ctypes.data, target.size_bytes, kind, self._uploads)

    def after_uploads(self) -> None:
        """Make the stream of work wait for the uploads so far."""
        self._check(self._cuda.cudaEventRecord(self._uploaded, self._uploads), "uploading")
        self._check(self._cuda.cudaStreamWaitEvent(self._stream, self._uploaded, 0), "uploading")

    def store(self, array: NDArray[Any]) -> Buffer:
        """Copy from ordinary memory, on the stream of work; the array may change as soon as this returns."""
        array = np.ascontiguousarray(array)
        made = self.empty(array.shape, array.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyHostToDevice
        self._copy(made.address, array.ctypes.data, made.size_bytes, kind, self._stream)
        return made

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        """Copy to page-locked memory, on the stream of work."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(target.ctypes.data, source.address, source.size_bytes, kind, self._stream)

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Copy within the GPU's memory."""
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToDevice
        self._copy(target.address, source.address, target.size_bytes, kind, self._stream)

    def zero(self, target: Buffer) -> None:
        """Fill with zeros."""
        self._check(self._cuda.cudaMemsetAsync(target.address, 0, target.size_bytes, self._stream), "clearing a state")

    def launch(self, work: Work) -> None:
        """Call ``work``, which queues a backend's kernels."""
        if self._closed:
            raise BackendError("the device is closed")
        work()

    def capture(self, work: Work) -> Work:
        """Record work as a CUDA graph."""
        cuda = self._cuda
        # Only this thread's calls are restricted meanwhile: other models of the process continue.
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        self._check(cuda.cudaStreamBeginCapture(self._stream, mode), "beginning a CUDA graph")
        end = "ending a CUDA graph"
        try:
            work()
        except BaseException:
            with suppress(BackendError):
                self._check(cuda.cudaStreamEndCapture(self._stream), end)
            raise
        graph = self._check(cuda.cudaStreamEndCapture(self._stream), end)
        try:
            executable = self._check(cuda.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        finally:
            cuda.cudaGraphDestroy(graph)
        made = _CudaGraph(self, executable, work)
        self._graphs.add(made)
        self._check(cuda.cudaGraphUpload(executable, self._stream), "uploading a CUDA graph")
        return made

    def mark(self) -> Any:
        """Record an event, which :meth:`wait` makes available again."""
        event = self._marks.pop() if self._marks else self._event()
        self._check(self._cuda.cudaEventRecord(event, self._stream), "computing")
        return event

    def wait(self, mark: Any) -> None:
        """Block until an event has passed; raise errors of the work before it."""
        self._check(self._cuda.cudaEventSynchronize(mark), "computing")
        self._marks.append(mark)

    def fetch(self, source: Buffer) -> NDArray[Any]:
        """Wait for a tensor and copy it to ordinary memory."""
        made: NDArray[Any] = np.empty(source.shape, source.dtype)
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost
        self._copy(made.ctypes.data, source.address, source.size_bytes, kind, self._stream)
        self.finish()
        return made

    def finish(self) -> None:
        """Wait for both streams."""
        for stream in (self._uploads, self._stream):
            self._check(self._cuda.cudaStreamSynchronize(stream), "computing")

    @contextmanager
    def use(self) -> Iterator[None]:
        """Select the GPU for this thread, and refuse a second thread."""
        with self._turn.taken():
            if self._closed:
                raise BackendError("the device is closed")
            self._check(self._cuda.cudaSetDevice(0), "taking the GPU")
            yield

    def close(self) -> None:
        """Free graphs, events, memory and streams, even after a failure."""
        if self._closed:
            return
        with self._turn.taken():
            self._close()

    def _close(self) -> None:
        cuda, self._closed = self._runtime, True
        cuda.cudaSetDevice(0)
        for stream in (self._uploads, self._stream):
            cuda.cudaStreamSynchronize(stream)
        for graph in list(self._graphs):
            graph.destroy()
        for event in self._events:
            cuda.cudaEventDestroy(event)
        for address, free in self._allocated.items():
            free(address)
        self._allocated.clear()
        for stream in (self._stream, self._uploads):
            cuda.cudaStreamDestroy(stream)

    def _event(self) -> Any:
        flags = self._cuda.cudaEventDisableTiming
        event = self._check(self._cuda.cudaEventCreateWithFlags(flags), "making an event")
        self._events.append(event)
        return event

    def _copy(self, target: int, source: int, size_bytes: int, kind: Any, stream: Any) -> None:
        self._check(self._cuda.cudaMemcpyAsync(target, source, size_bytes, kind, stream), "copying")

    def _check(self, result: tuple[Any, ...], what: str) -> Any:
        return checked(self._runtime, result, what)


class _CudaGraph:
    """Captured work; its CUDA graph is destroyed with it.

    The graph holds addresses only: the tensors there, and TensorRT's contexts, live as long as the captured work.
    """

    def __init__(self, device: CudaDevice, executable: Any, work: Work) -> None:
        self._device = device
        self._work = work
        self._executable = executable
        self.destroy = weakref.finalize(self, device._runtime.cudaGraphExecDestroy, executable)

    def __call__(self) -> None:
        """Queue all of it in one launch."""
        device = self._device
        device._check(device._cuda.cudaGraphLaunch(self._executable, device._stream), "launching a CUDA graph")


class _Owner:
    """Represents a piece of memory, which is returned when nothing refers to this any more."""
