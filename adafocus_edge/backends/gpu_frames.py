"""Frames of live sources in a GPU's memory, stored by other threads than the model's."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.device.pixels import FrameBuffer, PixelMaker
from adafocus_edge.backends.nvdec import from_dlpack
from adafocus_edge.errors import BackendError
from adafocus_edge.media.frames import blank_frame
from adafocus_edge.media.matrices import Decoded
from adafocus_edge.media.nv12 import frame_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.device.runner import DeviceRunner
    from adafocus_edge.backends.tensors import Buffer, Device
    from adafocus_edge.media.frames import ModelFrame


BLANK_SIDE = 64
BLANK = Decoded(BLANK_SIDE, BLANK_SIDE)
"""The layout of the decoded frame from which a blank one is made."""


class FrameStore:
    """Memory on a model's GPU with a queue of its own, for any thread.

    A model's device belongs to the model's thread. This one serves one thread at a time, and its work is done when a
    call returns, so every tensor that it returns can be read from any queue. It is closed when nothing refers to it any
    more: a picture that waits to be shown outlives its source.

    Args:
        resident: runs the model.
    """

    def __init__(self, resident: DeviceRunner) -> None:
        self._device: Device = type(resident.device)()
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._device)

    def keep(self, tensor: Any, shape: tuple[int, ...]) -> Buffer:
        """Copy a decoder's surface, which the decoder will overwrite.

        Args:
            tensor: uint8 with ``__dlpack__``, in the memory of this device.
            shape: the expected shape.

        Raises:
            BackendError: the device failed, or the tensor is not as expected.
        """
        device = self._device
        with self._lock, device.use():
            found = from_dlpack(tensor, device)
            if found.shape != shape:
                raise BackendError(f"decoded frame of shape {found.shape}, expected NV12 {shape}")
            kept = device.empty(shape, np.uint8)
            device.copy(kept, found)
            device.finish()
        return kept

    def upload(self, pixels: NDArray[np.uint8]) -> Buffer:
        """Copy an array of the host to a tensor [1, ...], through page-locked memory. Raises ``BackendError``."""
        device = self._device
        with self._lock, device.use():
            pinned = device.pinned((1, *pixels.shape), np.uint8)
            pinned[0] = pixels
            made = device.empty(pinned.shape, np.uint8)
            device.upload(made, pinned)
            device.finish()
        return made

    def fetch(self, tensor: Buffer) -> NDArray[Any]:
        """Copy one of its tensors to the host. Raises ``BackendError``."""
        with self._lock, self._device.use():
            return self._device.fetch(tensor)


def _close(device: Device) -> None:
    with suppress(BackendError):
        device.close()


@dataclass(frozen=True, eq=False)
class DeviceFrame:
    """A decoded frame on the GPU; calling it returns RGB uint8 [H, W, 3], in any thread.

    Attributes:
        store: that owns its memory.
        planes: NV12, uint8 [3/2 height, width].
        layout: their format.
    """

    store: FrameStore
    planes: Buffer
    layout: Decoded

    def __call__(self) -> NDArray[np.uint8]:
        """Fetch the planes and convert them as the CPU path does. Raises ``BackendError``."""
        from adafocus_edge.media.orientation import upright

        return upright(frame_of(self.store.fetch(self.planes), self.layout))


@dataclass(frozen=True, eq=False)
class UnmadeFrame:
    """Decoded frames from which the model's thread makes one model frame.

    Attributes:
        parts: one frame, or three for a model that sees motion, of one layout.
    """

    parts: tuple[DeviceFrame, ...]

    def make(self, maker: PixelMaker) -> FrameBuffer:
        """Queue making the model frame, which keeps the decoded ones alive. Raises ``BackendError``."""
        planes = [part.planes for part in self.parts]
        made = maker.make(planes, self.parts[0].layout)
        return replace(made, owner=(made.owner, planes))


def unmade(pictures: Sequence[Any]) -> UnmadeFrame | None:
    """Return the frame to make from pictures if all of them are on the GPU with one layout, else None.

    Args:
        pictures: the callable that makes RGB of each: ``to_rgb`` of :class:`adafocus_edge.live.messages.LiveFrame`.
    """
    parts = tuple(each for each in pictures if isinstance(each, DeviceFrame))
    if len(parts) < len(pictures) or len({part.layout for part in parts}) != 1:
        return None
    return UnmadeFrame(parts)


class LiveFrames:
    """Makes frames of live sources available to a model on a GPU.

    Args:
        resident: runs the model.
        decoder: ``cpu``, ``auto`` (sources are decoded on the GPU if possible) or ``gpu`` (always).
    """

    def __init__(self, resident: DeviceRunner, decoder: str) -> None:
        self.store = FrameStore(resident)
        self.decoder = decoder
        self._spec = resident.spec
        self._maker = None if decoder == "cpu" else PixelMaker(resident)

    def prepare(self) -> None:
        """Make and upload a blank frame, so that the first real one does not wait. Raises ``BackendError``."""
        self.bring(blank_frame(self._spec))
        if self._maker is not None:
            count = 3 if self._spec.motion_gap_s else 1
            self._maker.make([np.zeros((BLANK_SIDE * 3 // 2, BLANK_SIDE), np.uint8)] * count, BLANK)

    def bring(self, pixels: ModelFrame) -> FrameBuffer:
        """Upload a model frame, while the model's thread computes. Raises ``BackendError``."""
        return FrameBuffer.of(self.store.upload(pixels), self._spec)

    def made(self, pixels: FrameBuffer | UnmadeFrame | ModelFrame) -> FrameBuffer | ModelFrame:
        """Return the frame as the model takes it; call it in the model's thread. Raises ``BackendError``."""
        if not isinstance(pixels, UnmadeFrame):
            return pixels
        assert self._maker is not None
        return pixels.make(self._maker)
