"""Makes model frames on the device, with the graph that :mod:`adafocus_edge.media.matrices` describes."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.backends.tensors import Buffer
from adafocus_edge.bundle.engines import PIXELS_GRAPH
from adafocus_edge.errors import BackendError
from adafocus_edge.media.matrices import Decoded, matrices

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.device.runner import DeviceRunner
    from adafocus_edge.model.spec import Fit, ModelSpec


@dataclass(frozen=True)
class FrameBuffer(Buffer):
    """A model frame in a device's memory, uint8 [1, S, S, 3]; see :class:`ModelFrame` for its attributes."""

    fit: Fit
    motion_gap_s: float

    @classmethod
    def of(cls, buffer: Buffer, spec: ModelSpec) -> FrameBuffer:
        """Return a tensor, made to a model's specification, as a model frame."""
        values = {field.name: getattr(buffer, field.name) for field in fields(Buffer)}
        return cls(**values, fit=spec.fit, motion_gap_s=spec.motion_gap_s)


class PixelMaker:
    """Makes model frames from decoded ones, on a model's device.

    Args:
        resident: the device and its graphs, including the graph of pixels.

    Raises:
        BackendError: there is no graph of pixels.
    """

    def __init__(self, resident: DeviceRunner) -> None:
        if PIXELS_GRAPH not in resident.programs:
            raise BackendError("this backend has no graph that makes model frames: use --decoder cpu")
        self._program = resident.programs[PIXELS_GRAPH]
        self._device = resident.device
        self._spec = resident.spec
        self._matrices: dict[Decoded, dict[str, Buffer]] = {}

    def make(self, planes: Sequence[NDArray[np.uint8] | Buffer], decoded: Decoded) -> FrameBuffer:
        """Queue making one model frame.

        Args:
            planes: one frame, or three for a model that sees motion: uint8 [3/2 height, width].
            decoded: their format.

        Returns:
            uint8 [1, S, S, 3] on the device, valid once the queued work is done.
        """
        device, side = self._device, self._spec.frame_size
        height, width = decoded.height, decoded.width
        with device.use():
            if decoded not in self._matrices:
                made = matrices(decoded, self._spec)
                self._matrices[decoded] = {name: device.store(value) for name, value in made.items()}
            luma = device.empty((len(planes), height, width), np.uint8)
            chroma = device.empty((len(planes), height // 2, width), np.uint8)
            for number, plane in enumerate(planes):
                source = device.store(plane) if isinstance(plane, np.ndarray) else plane
                device.copy(luma[number : number + 1], source[:height])
                device.copy(chroma[number : number + 1], source[height:])
            frame = device.empty((1, side, side, 3), np.uint8)
            tensors = {"luma": luma, "chroma": chroma, **self._matrices[decoded], "frame": frame}
            self._program.bind(tensors, fixed=False)()
            return FrameBuffer.of(frame, self._spec)
