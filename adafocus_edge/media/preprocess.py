"""From decoded frames to the S x S pixels that the model sees; by default as the official evaluation does it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from adafocus_edge.errors import FrameError
from adafocus_edge.media.clip import DEFAULT_FPS
from adafocus_edge.media.frames import ModelFrame, as_picture
from adafocus_edge.model.spec import short_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.media.clip import Clip
    from adafocus_edge.model.spec import Fit, ModelSpec

LONGEST_STRIP = 16
"""Beyond this aspect ratio only the part of the source under the crop is resized."""


@dataclass(frozen=True)
class CropWindow:
    """Where the S x S frame lies in its source. All sizes are in pixels.

    Attributes:
        height: of the source frame.
        width: of the source frame.
        resized_height: of the whole frame after the resize.
        resized_width: of the whole frame after the resize.
        top: first row of the crop in the resized frame.
        left: first column of the crop in the resized frame.
        size: S.
    """

    height: int
    width: int
    resized_height: int
    resized_width: int
    top: int
    left: int
    size: int

    @classmethod
    def of(cls, height: int, width: int, size: int, fit: Fit = "crop") -> CropWindow:
        """Compute the official evaluation's resize and centre crop for a source of this size, or the whole of it."""
        if fit == "squash":
            return cls(height, width, size, size, 0, 0, size)
        short = short_side(size)
        # torchvision's rule: the short side becomes `short`, the long side is truncated to whole pixels.
        if width <= height:
            resized_width, resized_height = short, int(short * height / width)
        else:
            resized_width, resized_height = int(short * width / height), short
        top = round((resized_height - size) / 2)
        left = round((resized_width - size) / 2)
        return cls(height, width, resized_height, resized_width, top, left, size)

    def source_box(self, y: float, x: float, height: float, width: float) -> tuple[float, float, float, float]:
        """Map a rectangle of the S x S frame back to (top, left, bottom, right) in source pixels."""
        down = self.height / self.resized_height
        across = self.width / self.resized_width
        top = (y + self.top) * down
        left = (x + self.left) * across
        return top, left, top + height * down, left + width * across


def preprocess(image: Image.Image | NDArray[np.uint8], size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Resize (bilinear, antialiased) and centre-crop one image; :func:`model_frame` does it as a model wants it.

    Args:
        image: an RGB or a grey picture of any size (:func:`adafocus_edge.media.frames.as_picture`).
        size: S, pixels.
        fit: ``squash`` to resize the whole image to S x S instead.

    Returns:
        uint8 [S, S, 3], or [S, S] of a grey image; equal to the official evaluation's pixels; for a strip longer than
        16 times its width, where the whole resized image would take hundreds of megabytes, within one grey level.
        Raises ``FrameError`` for what is no such picture.
    """
    image = as_picture(image)
    if fit == "squash":
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
    window = CropWindow.of(image.height, image.width, size)
    resized = (window.resized_width, window.resized_height)
    if max(resized) > LONGEST_STRIP * min(resized):
        top, left, bottom, right = window.source_box(0, 0, size, size)
        box = (max(left, 0.0), max(top, 0.0), min(right, float(image.width)), min(bottom, float(image.height)))
        return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR, box=box))
    if resized != image.size:
        image = image.resize(resized, Image.Resampling.BILINEAR)
    return np.asarray(image.crop((window.left, window.top, window.left + size, window.top + size)))


def sample_indices(frame_count: int, segments: int) -> list[int]:
    """Choose the frames that stand for a clip: the middle of each of T equal segments (official evaluation).

    A clip of fewer frames than T gives all of them, and its last one again until there are T.

    Args:
        frame_count: frames in the clip, at least 1.
        segments: T.

    Returns:
        T indices from 0, rising.
    """
    if frame_count < segments:
        return [min(index, frame_count - 1) for index in range(segments)]
    return [int(frame_count / segments * (index + 0.5)) for index in range(segments)]


def luminance(picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luminance (ITU-R BT.601) of an RGB or a grey picture as uint8 [H, W]. Raises ``FrameError``."""
    return np.asarray(as_picture(picture).convert("L"))


def motion_indices(index: int, fps: float, gap_s: float) -> tuple[int, int, int]:
    """Return the frames that make up a motion frame at a constant rate: two gaps before, one gap before, and ``index``.

    See :func:`motion_frame_indices` for a clip of any rate.
    """
    gap = max(1, round((fps or DEFAULT_FPS) * gap_s))
    return max(0, index - 2 * gap), max(0, index - gap), index


SAME_S = 1e-6
"""Times that differ by less are the same: they come from sums of rounded numbers."""


def nearest_earlier(time_s: Callable[[int], float], start: int, target_s: float) -> int:
    """Return which frame, from 0 to ``start``, is nearest in time to ``target_s``; of two as near, the earlier.

    Args:
        time_s: gives a frame's time; rises with its number.
        start: the latest frame that may be returned.
        target_s: at or before that frame's time.
    """
    index = start
    while index > 0 and abs(time_s(index - 1) - target_s) <= abs(time_s(index) - target_s) + SAME_S:
        index -= 1
    return index


def nearest_motion(time_s: Callable[[int], float], now: int, gap_s: float) -> tuple[int, int, int]:
    """Return the frames that are nearest in time to two gaps and to one gap before frame ``now``, and it itself.

    Args:
        time_s: gives a frame's time; rises with its number, from 0.
        now: the frame's number.
        gap_s: see :class:`ModelSpec`.
    """
    one = nearest_earlier(time_s, now, time_s(now) - gap_s)
    return nearest_earlier(time_s, one, time_s(now) - 2 * gap_s), one, now


def motion_frame_indices(clip: Clip, index: int, gap_s: float) -> tuple[int, int, int]:
    """Return the frames that make up a motion frame of a clip: two gaps before, one gap before, and ``index`` itself.

    They are the nearest in time, as with cameras. At a constant rate, and where frames have no times,
    :func:`motion_indices` counts them.
    """
    if clip.is_constant_rate or clip.time_s(index) is None:
        return motion_indices(index, clip.fps, gap_s)
    return nearest_motion(lambda number: clip.time_s(number) or 0.0, index, gap_s)


def glimpse_frames(
    clip: Clip, indices: Sequence[int], motion_gap_s: float, convert: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read what is glimpsed at some frames of a clip: RGB, or with a motion gap the luminance of three frames.

    Args:
        clip: to read.
        indices: rising frame numbers.
        motion_gap_s: see :class:`ModelSpec`; 0 for RGB.
        convert: applied to each decoded frame: uint8 [H, W, 3], or [H, W] with a motion gap.

    Yields:
        each number with what ``convert`` made of it, three of them stacked along a new last axis with a motion gap.
    """
    if not motion_gap_s:
        yield from clip.select(indices, convert)
        return
    parts = [motion_frame_indices(clip, index, motion_gap_s) for index in indices]
    needed = sorted({number for part in parts for number in part})
    read = clip.select(needed, lambda rgb: convert(luminance(rgb)))
    held: dict[int, NDArray[np.uint8]] = {}
    for part in parts:
        while part[-1] not in held:
            number, made = next(read)
            held[number] = made
        held = {number: made for number, made in held.items() if number >= part[0]}
        yield part[-1], np.stack([held[number] for number in part], axis=-1)


def model_frames(clip: Clip, indices: Sequence[int], spec: ModelSpec) -> Iterator[tuple[int, ModelFrame]]:
    """Read frames of a clip as a model sees them: number and uint8 [S, S, 3], in the order asked for."""

    def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return preprocess(pixels, spec.frame_size, spec.fit)

    for index, pixels in glimpse_frames(clip, indices, spec.motion_gap_s, convert):
        yield index, ModelFrame.of(pixels, spec)


def sampled_frames(clip: Clip, spec: ModelSpec) -> Iterator[tuple[int, ModelFrame]]:
    """Read the frames that stand for a clip, as a model sees them; see :func:`sample_indices`, :func:`model_frames`."""
    return model_frames(clip, sample_indices(clip.frame_count, spec.segments), spec)


# -- frames of pictures from elsewhere --------------------------------------------------------------------------------


def model_frame(picture: Image.Image | NDArray[np.uint8], spec: ModelSpec) -> ModelFrame:
    """Make a frame of one picture for a model that sees RGB.

    Args:
        picture: RGB or grey, of any size (:func:`adafocus_edge.media.frames.as_picture`).
        spec: of the model.

    Raises ``FrameError``, also where the model sees motion, of which one picture shows none.
    """
    if spec.motion_gap_s:
        raise FrameError(
            f"this model sees motion: its frames are made of three pictures, {spec.motion_gap_s:g} s apart: use "
            "FrameMaker(spec).add(picture, time_s), or motion_frame(pictures, spec)"
        )
    rgb = as_picture(picture).convert("RGB")
    return ModelFrame.of(preprocess(rgb, spec.frame_size, spec.fit), spec)


def motion_frame(pictures: Sequence[Image.Image | NDArray[np.uint8]], spec: ModelSpec) -> ModelFrame:
    """Make a frame of three pictures for a model that sees motion.

    Args:
        pictures: two gaps before, one gap before, and now (``spec.motion_gap_s`` is the gap in seconds).
        spec: of the model.

    Raises ``FrameError``, also where the model sees RGB.
    """
    if not spec.motion_gap_s:
        raise FrameError("this model sees RGB, not motion: use model_frame(picture, spec)")
    if len(pictures) != 3:
        raise FrameError(f"a motion frame is made of 3 pictures, not {len(pictures)}: two gaps before, one before, now")
    return ModelFrame.of(np.stack([_plane(picture, spec) for picture in pictures], axis=-1), spec)


def _plane(picture: Image.Image | NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return one channel of a motion frame, uint8 [S, S]."""
    return preprocess(luminance(picture), spec.frame_size, spec.fit)


class FrameMaker:
    """Makes the frames of a model from one live sequence of pictures with time stamps.

    A model that sees motion looks back at the pictures whose times are nearest to two gaps and to one gap before, as
    live sources do; so give it every picture, not only those that are to be looked at. Before the first picture nothing
    moved.

    Args:
        spec: of the model.
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._planes: list[tuple[float, NDArray[np.uint8]]] = []

    def add(self, picture: Image.Image | NDArray[np.uint8], time_s: float) -> ModelFrame:
        """Take the next picture and return the frame that shows it.

        Args:
            picture: RGB or grey, of any size (:func:`adafocus_edge.media.frames.as_picture`); it is not kept.
            time_s: of the picture, in seconds from any beginning; later than that of the one before.

        Raises ``FrameError``.
        """
        spec, planes = self._spec, self._planes
        if not spec.motion_gap_s:
            return model_frame(picture, spec)
        if not math.isfinite(time_s) or (planes and time_s <= planes[-1][0]):
            before = f"the one before has {planes[-1][0]:g}; " if planes else ""
            raise FrameError(f"time_s {time_s:g}: {before}times rise (a new sequence takes a new FrameMaker)")
        planes.append((time_s, _plane(picture, spec)))
        # The newest of those that are too old stays: no other may be nearer to the next picture's time.
        while len(planes) > 1 and planes[1][0] <= time_s - 2 * spec.motion_gap_s:
            planes.pop(0)
        times_s = [kept_s for kept_s, _ in planes]
        parts = nearest_motion(times_s.__getitem__, len(planes) - 1, spec.motion_gap_s)
        return ModelFrame.of(np.stack([planes[part][1] for part in parts], axis=-1), spec)
