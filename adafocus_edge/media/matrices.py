"""Model frames made on the device: the CPU path's colour conversion and resize as a graph for every backend.

The graph (``pixels.onnx``) takes the N decoded frames of one model frame (one, or three for a model that sees motion)
as NV12 and computes M channels of each, N M = 3. Its steps, with the same roundings as on the CPU:

1. colour, per channel c: ``floor((Y - black) luma_gain) + floor((U - 128) chroma_gain[0, c]) + floor((V - 128)
   chroma_gain[1, c])``, clipped to a byte; U and V apply to 2 x 2 pixels, wherever sampled, as in FFmpeg;
2. channels: multiplied by ``mix``, rounded: RGB unchanged, or the luminance;
3. resize and crop: multiplied by ``columns``, rounded; then ``rows`` multiplied by that, rounded.

===========  =====================  ===============================================================================
input        shape                  meaning
===========  =====================  ===============================================================================
luma         uint8 [N, H, W]        Y
chroma       uint8 [N, H / 2, W]    U and V of every 2 x 2 pixels, side by side
black        f32 [1]                level of black in Y
luma_gain    f32 [1]                levels of RGB per level of Y
chroma_gain  f32 [2, 3, 1, 1]       levels of red, green and blue per level of U, and of V
mix          f32 [M, 3, 1, 1]       weights of red, green and blue in each channel
rows         f32 [S, H]             vertical weights
columns      f32 [W, S]             horizontal weights
===========  =====================  ===============================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from adafocus_edge.media.preprocess import CropWindow

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.model.spec import ModelSpec

LUMA_WEIGHTS = {
    "bt601": (0.299, 0.114),
    "bt709": (0.2126, 0.0722),
    "bt2020": (0.2627, 0.0593),
    "fcc": (0.30, 0.11),
    "smpte240m": (0.212, 0.087),
}
"""Weights of red and blue in Y (ITU-T H.273, table 4)."""
GAIN_STEPS = 8192
"""FFmpeg's gains are multiples of 1 / 8192 (libswscale, ``yuv2rgb``)."""
WEIGHT_STEPS = 1 << 22
"""Pillow's weights are multiples of 2^-22 (``Resample.c``)."""
GREY = (19595 / 65536, 38470 / 65536, 7471 / 65536)
"""Weights of RGB in the luminance of :func:`adafocus_edge.media.preprocess.luminance` (ITU-R BT.601, in Pillow's
integers).
"""


@dataclass(frozen=True)
class Decoded:
    """Layout of a decoded NV12 frame: Y of every pixel, then interleaved U and V of every 2 x 2 pixels.

    Attributes:
        height: in pixels, even.
        width: in pixels, even.
        matrix: one of :data:`LUMA_WEIGHTS`.
        full_range: whether Y uses all of 0 to 255 instead of 16 to 235.
    """

    height: int
    width: int
    matrix: str = "bt601"
    full_range: bool = False

    def __post_init__(self) -> None:
        if self.height % 2 or self.width % 2:
            raise ValueError(f"NV12 needs an even width and height, not {self.width} x {self.height}")
        if self.matrix not in LUMA_WEIGHTS:
            raise ValueError(f"unknown colour matrix {self.matrix!r}; known: {', '.join(LUMA_WEIGHTS)}")


@lru_cache(maxsize=16)
def matrices(decoded: Decoded, spec: ModelSpec) -> dict[str, NDArray[np.float32]]:
    """Return the graph's inputs other than pixels, by name, for a source and a model; do not modify them (cached)."""
    window = CropWindow.of(decoded.height, decoded.width, spec.frame_size, spec.fit)
    size = spec.frame_size
    down = resize_weights(decoded.height, window.resized_height)[window.top : window.top + size]
    across = resize_weights(decoded.width, window.resized_width)[window.left : window.left + size]
    to_rgb, black = rgb_of_yuv(decoded.matrix, full_range=decoded.full_range)
    gains = np.round(to_rgb * GAIN_STEPS) / GAIN_STEPS
    mix = np.array([GREY]) if spec.motion_gap_s else np.eye(3)
    made = {
        "rows": down,
        "columns": across.T,
        "black": np.array([black]),
        "luma_gain": gains[:1, 0],
        "chroma_gain": gains[:, 1:].T[:, :, None, None],
        "mix": mix[:, :, None, None],
    }
    return {name: np.ascontiguousarray(value, np.float32) for name, value in made.items()}


def resize_weights(source: int, target: int) -> NDArray[np.float64]:
    """Return the weights [target, source] of a bilinear, antialiased resize along one side, as Pillow computes them.

    The kernel is a triangle centred on each output, as wide as two steps between outputs, but at least two inputs.
    """
    step = source / target
    reach = max(step, 1.0)
    centres = (np.arange(target) + 0.5) * step
    places = np.arange(source) + 0.5
    weights = np.maximum(0.0, 1.0 - np.abs(places[None, :] - centres[:, None]) / reach)
    normalised: NDArray[np.float64] = weights / weights.sum(axis=1, keepdims=True)
    return np.round(normalised * WEIGHT_STEPS) / WEIGHT_STEPS


def rgb_of_yuv(matrix: str, *, full_range: bool) -> tuple[NDArray[np.float64], float]:
    """Return M, float64 [3, 3], and black of ``RGB = M (Y - black, U - 128, V - 128)`` in bytes (ITU-T H.273, 8.3)."""
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
    return made, black
