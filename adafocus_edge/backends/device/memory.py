"""Memory of a device and work queued on it: the CPU as a device with the rules of a GPU."""

from __future__ import annotations

import ctypes
import math
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.tensors import ALIGNMENT, Buffer, Work
from adafocus_edge.errors import BackendError, BusyError

if TYPE_CHECKING:
    from numpy.typing import NDArray

POISON = 0xFF
"""Value of every byte that was never written: NaN in floating point, -1 in signed integers."""


def check_alignment(tensors: Mapping[str, Buffer]) -> None:
    """Raise ``BackendError`` if a tensor's address cannot be bound. Every backend calls this before it binds."""
    for name, tensor in tensors.items():
        if not tensor.is_aligned:
            raise BackendError(
                f"{name}: address {tensor.address:#x} is not a multiple of {ALIGNMENT} bytes: copy the rows to a "
                "tensor of their own before binding them"
            )


def aligned(tensor: Buffer) -> Buffer:
    """Return the tensor if a program can be bound to it, else queue a copy and return the copy."""
    if tensor.is_aligned:
        return tensor
    made = tensor.device.empty(tensor.shape, tensor.dtype)
    tensor.device.copy(made, tensor)
    return made


class ThreadGuard:
    """Ensures that one thread at a time uses a device: a model keeps its state there between calls."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """Hold the guard. Raises ``BusyError`` at once if another thread holds it."""
        if not self._lock.acquire(blocking=False):
            raise BusyError("this model is in use by another thread: load one model per thread")
        try:
            yield
        finally:
            self._lock.release()


class HostDevice:
    """The CPU as a device: its memory is the host's, and queued work is done at once.

    It enforces the rules of a GPU, so that code that runs here keeps them there: tensors are accessed by address, and
    captured work is recorded, not done, and may neither allocate nor wait. It is stricter in one way: memory that was
    never written is :data:`POISON`, and so are :data:`ALIGNMENT` bytes on either side of each tensor, which must not be
    written.
    """

    kind = "cpu"

    def __init__(self) -> None:
        self._turn = ThreadGuard()
        self._recorded: list[Work] | None = None
        self._closed = False
        self._allocated: weakref.WeakSet[_Fenced] = weakref.WeakSet()

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Allocate a tensor."""
        self._not_captured("allocating")
        kind = np.dtype(dtype)
        memory = _Fenced(math.prod(shape) * kind.itemsize)
        self._allocated.add(memory)
        return Buffer(self, memory.address, tuple(shape), kind, memory)

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate an array."""
        self._not_captured("allocating")
        return np.empty(shape, dtype)

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """Copy."""
        self._not_captured("uploading")
        np.copyto(_view(target), source)

    def after_uploads(self) -> None:
        """Do nothing: uploads are done at once."""
        self._not_captured("waiting")

    def store(self, array: NDArray[Any]) -> Buffer:
        """Copy an array."""
        made = self.empty(array.shape, array.dtype)
        np.copyto(_view(made), array)
        return made

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        """Queue a copy."""
        self.launch(lambda: np.copyto(target, _view(source)))

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Queue a copy."""
        self.launch(lambda: np.copyto(_view(target), _view(source)))

    def zero(self, target: Buffer) -> None:
        """Queue filling with zeros."""
        self.launch(lambda: _view(target).fill(0))

    def launch(self, work: Work) -> None:
        """Do the work, or record it."""
        if self._closed:
            raise BackendError("the device is closed")
        if self._recorded is None:
            work()
        else:
            self._recorded.append(work)

    def capture(self, work: Work) -> Work:
        """Record work."""
        self._not_captured("capturing")
        recorded: list[Work] = []
        self._recorded = recorded
        try:
            work()
        finally:
            self._recorded = None

        def replay() -> None:
            for one in recorded:
                self.launch(one)

        return replay

    def mark(self) -> None:
        """Do nothing: all work is done when it is queued."""
        self._not_captured("waiting")

    def wait(self, mark: None) -> None:
        """Do nothing: all work is done when it is queued."""
        del mark
        self._not_captured("waiting")

    def fetch(self, source: Buffer) -> NDArray[Any]:
        """Copy a tensor."""
        self._not_captured("waiting")
        return _view(source).copy()

    def finish(self) -> None:
        """Raise ``BackendError`` if memory outside of a tensor was written; there is nothing to wait for."""
        self._not_captured("waiting")
        for memory in list(self._allocated):
            memory.check()

    def use(self) -> Any:
        """Refuse a second thread."""
        return self._turn.taken()

    def close(self) -> None:
        """Refuse all further use."""
        self._closed = True

    def _not_captured(self, what: str) -> None:
        if self._closed:
            raise BackendError("the device is closed")
        if self._recorded is not None:
            raise BackendError(f"{what} cannot be captured")


class _Fenced:
    """Memory of one tensor with a fence of poison on either side.

    Args:
        size: bytes between the fences.
    """

    def __init__(self, size: int) -> None:
        self._raw = np.full(size + 3 * ALIGNMENT, POISON, np.uint8)
        first = -(-self._raw.ctypes.data // ALIGNMENT) * ALIGNMENT + ALIGNMENT
        self.address = first
        self._begin = first - self._raw.ctypes.data
        self._end = self._begin + size

    def check(self) -> None:
        """Raise ``BackendError`` if a fence was written to."""
        for fence in (self._raw[self._begin - ALIGNMENT : self._begin], self._raw[self._end : self._end + ALIGNMENT]):
            if not (fence == POISON).all():
                raise BackendError(f"memory was written outside of the tensor at {self.address:#x}")


def _view(buffer: Buffer) -> NDArray[Any]:
    """Return the host's memory at a buffer's address as an array."""
    raw = (ctypes.c_uint8 * buffer.size_bytes).from_address(buffer.address)
    return np.ctypeslib.as_array(raw).view(buffer.dtype).reshape(buffer.shape)
