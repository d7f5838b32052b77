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
    """A tensor in a device's memory, or a range of one's rows; tensors are dense, the batch first.

    Attributes:
        device: whose memory it is.
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
        """How much memory it covers."""
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def is_aligned(self) -> bool:
        """Whether a program may be bound to it: its address is a multiple of :data:`ALIGNMENT`."""
        return self.address % ALIGNMENT == 0

    def __getitem__(self, rows: slice) -> Buffer:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("only a range without steps can be cut out of a device's tensor")
        stop = max(start, stop)
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        shape = (stop - start, *self.shape[1:])
        return Buffer(self.device, self.address + start * row_bytes, shape, self.dtype, self.owner)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # bringing it to the host is a copy
        return np.asarray(self.device.fetch(self), dtype=dtype)


class Device(Protocol):
    """Where a model's tensors live, and the queue of work on them.

    Work is done in the order in which it was queued, later than the call; uploads have a queue of their own, so that
    they pass while the device computes. Every method raises ``BackendError`` if the device fails, and where a device is
    used from two threads at the same time.

    Attributes:
        kind: ``cpu`` or ``cuda``, as ONNX Runtime calls it.
    """

    kind: str

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Buffer:
        """Allocate a tensor, freed when nothing refers to it any more, or when the device is closed."""

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> NDArray[Any]:
        """Allocate host memory that the device copies from and to without a detour; freed when it is closed."""

    def upload(self, target: Buffer, source: NDArray[Any]) -> None:
        """Queue a copy from pinned memory among the uploads; ``source`` must stay as it is until that is done."""

    def after_uploads(self) -> None:
        """Let all work that is queued from now on wait for the uploads so far."""

    def store(self, array: NDArray[Any]) -> Buffer:
        """Copy any array of the host into a new tensor, in order with the queued work."""

    def download(self, target: NDArray[Any], source: Buffer) -> None:
        """Queue a copy to pinned memory."""

    def copy(self, target: Buffer, source: Buffer) -> None:
        """Queue a copy within the device."""

    def zero(self, target: Buffer) -> None:
        """Queue filling a tensor with zeros."""

    def launch(self, work: Work) -> None:
        """Queue what a backend computes; ``work`` hands it to the device."""

    def capture(self, work: Work) -> Work:
        """Record what ``work`` queues, without doing it, and return what queues all of it again in one launch.

        Only queued work can be recorded: allocating, waiting and uploading cannot. What is returned keeps ``work``, and
        with it the tensors that it uses, alive.
        """

    def mark(self) -> Any:
        """Return a mark at the end of what is queued now."""

    def wait(self, mark: Any) -> None:
        """Block until everything before a mark is done."""

    def fetch(self, source: Buffer) -> NDArray[Any]:
        """Wait for a tensor and copy it to the host."""

    def finish(self) -> None:
        """Block until everything that was queued is done."""

    def use(self) -> Any:
        """Return a context manager: this thread uses the device until it is left. Refuses a second thread."""

    def close(self) -> None:
        """Free everything; nothing of it can be used after that."""
