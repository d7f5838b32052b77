"""Model frames made on the device: resize, crop and colour as matrices of a graph that every backend runs.

The graph (``pixels.onnx``) takes N decoded frames that make up one model frame (one, or three luminances of a model
that sees motion) and computes, with ``rows`` R, ``columns`` C, ``colour`` M and ``offset`` o:
``frame[y, x] = floor(sum over n of [R_k planes_n C_k for k in 0..2][y, x] M_n + o)``, clipped to a byte.

=========  =====================  =================================================================================
input      shape                  meaning
=========  =====================  =================================================================================
planes     uint8 [N, A, B]        frames as they come out of a decoder; NV12: A = 3/2 height, B = width
rows       f32 [3, S, A]          vertical weights of Y, U and V
columns    f32 [3, B, S]          horizontal weights
colour     f32 [N, 3, 3]          from (Y, U, V) to the model frame's channels, transposed
offset     f32 [3]                added at the end, with the half that makes of ``floor`` a rounding
=========  =====================  =================================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.engines import PIXELS_GRAPH
from adafocus_edge.errors import BackendError
from adafocus_edge.frames import FrameBuffer
from adafocus_edge.preprocess import CropWindow

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.memory import Buffer
    from adafocus_edge.backends.resident import Resident
    from adafocus_edge.types import ModelSpec

LUMA_WEIGHTS = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722), "bt2020": (0.2627, 0.0593)}
"""Weights of red and blue in Y (ITU-R BT.601, BT.709, BT.2020)."""
ROUNDED_DOWN = {False: 1.1, True: 0.65}
"""Grey levels by which FFmpeg's conversion to RGB is darker on average, for limited and full range: it rounds down at
each step (measured on random colours). Models are trained on its frames."""
GREY = (0.299, 0.587, 0.114)
"""Luminance of RGB as :func:`adafocus_edge.preprocess.luminance` takes it (ITU-R BT.601)."""


@dataclass(frozen=True)
class Decoded:
    """What comes out of a decoder as NV12: Y of every pixel, then U and V side by side of every 2 x 2 of them.

    Attributes:
        height: pixels, even.
        width: pixels, even.
        matrix: one of :data:`LUMA_WEIGHTS`.
        full_range: whether Y uses all of 0 to 255 instead of 16 to 235.
    """

    height: int
    width: int
    matrix: str = "bt601"
    full_range: bool = False

    def __post_init__(self) -> None:
        if self.height % 2 or self.width % 2:
            raise ValueError(f"NV12 has even sides, not {self.width} x {self.height}")
        if self.matrix not in LUMA_WEIGHTS:
            raise ValueError(f"unknown colour matrix {self.matrix!r}; known: {', '.join(LUMA_WEIGHTS)}")


class PixelMaker:
    """Makes model frames of decoded ones, on a model's device.

    Args:
        resident: the device and its graphs, that of pixels among them.
    """

    def __init__(self, resident: Resident) -> None:
        if PIXELS_GRAPH not in resident.programs:
            raise BackendError("this backend has no graph that makes model frames: decode on the CPU")
        self._program = resident.programs[PIXELS_GRAPH]
        self._device = resident.device
        self._spec = resident.spec
        self._matrices: dict[Decoded, dict[str, Buffer]] = {}

    def make(self, planes: Sequence[NDArray[np.uint8] | Buffer], decoded: Decoded) -> FrameBuffer:
        """Queue the making of one model frame.

        Args:
            planes: one frame, or three of a model that sees motion: uint8 [3/2 height, width].
            decoded: what they are.

        Returns:
            uint8 [1, S, S, 3] on the device, there once the queue has come to it.
        """
        device, side = self._device, self._spec.frame_size
        rows, columns = decoded.height * 3 // 2, decoded.width
        with device.use():
            if decoded not in self._matrices:
                made = matrices(decoded, self._spec)
                self._matrices[decoded] = {name: device.store(value) for name, value in made.items()}
            together = device.empty((len(planes), rows, columns), np.uint8)
            for number, plane in enumerate(planes):
                source = device.store(plane) if isinstance(plane, np.ndarray) else plane
                device.copy(together[number : number + 1], source)
            frame = device.empty((1, side, side, 3), np.uint8)
            self._program.bind({"planes": together, **self._matrices[decoded], "frame": frame}, fixed=False)()
            return FrameBuffer.of(frame, self._spec)


@lru_cache(maxsize=16)
def matrices(decoded: Decoded, spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Return the graph's matrices for a source and a model; they must not be written to."""
    window = CropWindow.of(decoded.height, decoded.width, spec.frame_size, spec.fit)
    size = spec.frame_size
    down = resize_weights(decoded.height, window.resized_height)[window.top : window.top + size]
    across = resize_weights(decoded.width, window.resized_width)[window.left : window.left + size]
    rows = np.zeros((3, size, decoded.height * 3 // 2), np.float32)
    rows[0, :, : decoded.height] = down
    rows[1:, :, decoded.height :] = _of_pairs(down)
    columns = np.zeros((3, decoded.width, size), np.float32)
    columns[0] = across.T
    for place in (0, 1):  # U and V take turns along a row
        columns[1 + place, place::2] = _of_pairs(across).T
    to_rgb, offset = rgb_of_yuv(decoded.matrix, full_range=decoded.full_range)
    if not spec.motion_gap_s:
        colour = to_rgb.T[None].copy()
    else:  # frame n of three gives channel n, its luminance
        grey = np.array(GREY)
        colour = np.zeros((3, 3, 3))
        for channel in range(3):
            colour[channel, :, channel] = grey @ to_rgb
        offset = np.full(3, grey @ offset)
    return {
        "rows": rows,
        "columns": columns,
        "colour": colour.astype(np.float32),
        "offset": (offset - ROUNDED_DOWN[decoded.full_range] + 0.5).astype(np.float32),
    }


def resize_weights(source: int, target: int) -> NDArray[np.float64]:
    """Return the weights [target, source] of a bilinear, antialiased resize along one side, as Pillow computes them.

    A triangle as wide as the step between two output samples, at least two input samples, centred on each output.
    """
    step = source / target
    reach = max(step, 1.0)
    centres = (np.arange(target) + 0.5) * step
    places = np.arange(source) + 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(places[None, :] - centres[:, None]) / reach)
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return normalised


def rgb_of_yuv(matrix: str, *, full_range: bool) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return M [3, 3] and o [3] of ``RGB = M (Y, U, V) + o``, all of them bytes (ITU-T H.273, 8.3)."""
    red, blue = LUMA_WEIGHTS[matrix]
    green = 1 - red - blue
    luma, chroma, black = (1.0, 1.0, 0.0) if full_range else (255 / 219, 255 / 224, 16.0)
    made = np.array(
        [
            [luma, 0, 2 * (1 - red) * chroma],
            [luma, -2 * (1 - blue) * blue / green * chroma, -2 * (1 - red) * red / green * chroma],
            [luma, 2 * (1 - blue) * chroma, 0],
        ]
    )
    return made, -made @ np.array([black, 128.0, 128.0])


def _of_pairs(weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the weights of chroma samples: each stands for two pixels beside each other."""
    return weights[:, 0::2] + weights[:, 1::2]
