"""Tensors in a device's memory, and the queue of work on them: the contract of a device."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


Work = Callable[[], None]
ALIGNMENT = 256
"""Every bound tensor's address is a multiple of this many bytes: CUDA's allocator keeps to it, TensorRT requires it,
and vectorised kernels fault ("misaligned address") without it."""


@dataclass(frozen=True)
class Buffer:
    """A dense tensor in a device's memory, or a range of its rows; the batch is the first dimension.

    Attributes:
        device: that owns the memory.
        address: of its first byte, in that memory.
        shape: the batch first.
        dtype: of its elements.
        owner: keeps the memory alive.
    """

    device: Device
    address: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    owner: object

    @property
    def size_bytes(self) -> int:
        """Its size in bytes."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_aligned(self) -> bool:
        """Whether a program can be bound to it: its address is a multiple of :data:`ALIGNMENT`."""
        return self.address % ALIGNMENT == 0

    def __getitem__(self, rows: slice) -> Buffer:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("a tensor on a device can only be sliced with step 1")
        stop = max(start, stop)
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return Buffer(self.device, self.address + start * row_bytes, shape, self.dtype, self.owner)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # the result on the host is always a copy
        return np.asarray(self.device.fetch(self), dtype=dtype)


class Device(Protocol):
    """Where a model's tensors live, and the queue of work on them.

    Work is done in the order in which it was queued, after the call has returned; uploads have a queue of their own and
    run while the device computes. Every method raises ``BackendError`` if the device fails, and if two threads use a
    device at the same time.

    Attributes:
        kind: ``cpu`` or ``cuda``, as ONNX Runtime calls it.
    """

    kind: str

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Allocate a tensor, freed when nothing refers to it any more or the device is closed."""

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate host memory that the device copies from and to directly; freed when the device is closed."""

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """Queue a copy from pinned memory among the uploads; ``source`` must not change until it is done."""

    def after_uploads(self) -> None:
        """Make all work that is queued from now on wait for the uploads so far."""

    def store(self, array: NDArray[Any]) -> Buffer:
        """Copy an array of the host to a new tensor, in order with the queued work."""

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        """Queue a copy to pinned memory."""

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Queue a copy within the device."""

    def zero(self, target: Buffer) -> None:
        """Queue filling a tensor with zeros."""

    def launch(self, work: Work) -> None:
        """Queue a backend's computation; ``work`` submits it to the device."""

    def capture(self, work: Work) -> Work:
        """Record the work that ``work`` queues, without doing it; return a callable that queues it all in one launch.

        Only queued work can be recorded: allocating, waiting and uploading cannot. The callable keeps ``work`` alive,
        and with it the tensors that it uses.
        """

    def mark(self) -> Any:
        """Return a mark after all work that is queued now."""

    def wait(self, mark: Any) -> None:
        """Block until everything before a mark is done."""

    def fetch(self, source: Buffer) -> NDArray[Any]:
        """Wait for a tensor and copy it to the host."""

    def finish(self) -> None:
        """Block until all queued work is done."""

    def use(self) -> Any:
        """Return a context manager in which this thread uses the device. Raises ``BusyError`` in a second thread."""

    def close(self) -> None:
        """Free everything; neither the device nor its tensors can be used after that."""
