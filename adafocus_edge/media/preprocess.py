"""From decoded frames to the S x S pixels of a model's input; by default equal to the official evaluation."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
from PIL import Image

from adafocus_edge.errors import FrameError
from adafocus_edge.media.clip import DEFAULT_FPS, DecodedClip, DecodedInModes
from adafocus_edge.media.frames import ModelFrame, as_picture
from adafocus_edge.model.published import published_order
from adafocus_edge.model.spec import short_side

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.media.clip import Clip
    from adafocus_edge.model.spec import Fit, ModelSpec

Sampled = TypeVar("Sampled")
LONGEST_STRIP = 16
"""Aspect ratio above which only the part of the source under the crop is resized."""


@dataclass(frozen=True)
class CropWindow:
    """The position of the S x S frame in its source. All sizes are in pixels.

    Attributes:
        height: height of the source frame.
        width: width of the source frame.
        resized_height: height of the whole frame after the resize.
        resized_width: width of the whole frame after the resize.
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
        """Return the official resize and centre crop for a source of this size; with ``squash``, the whole frame."""
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
        """Return a rectangle of the S x S frame as (top, left, bottom, right) in source pixels."""
        down = self.height / self.resized_height
        across = self.width / self.resized_width
        top = (y + self.top) * down
        left = (x + self.left) * across
        return top, left, top + height * down, left + width * across


def preprocess(image: Image.Image | NDArray[np.uint8], size: int, fit: Fit = "crop") -> NDArray[np.uint8]:
    """Resize (bilinear, antialiased) and centre-crop one image; see :func:`model_frame` for the input of a model.

    Args:
        image: an RGB or grey picture of any size (:func:`adafocus_edge.media.frames.as_picture`).
        size: S, in pixels.
        fit: ``squash`` to resize the whole image to S x S instead.

    Returns:
        uint8 [S, S, 3], or [S, S] for a grey image, equal to the official evaluation's pixels. For a strip longer than
        16 times its width, whose whole resized image would take hundreds of megabytes, equal within one grey level.

    Raises:
        FrameError: ``image`` is not such a picture.
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
    """Return the frames that represent a clip: the middle of each of T equal segments (official evaluation).

    If the clip has fewer than T frames, these are all of them, with the last one repeated.

    Args:
        frame_count: number of frames in the clip, at least 1.
        segments: T.

    Returns:
        T frame numbers from 0, rising.
    """
    if frame_count < segments:
        return [min(index, frame_count - 1) for index in range(segments)]
    return [int(frame_count / segments * (index + 0.5)) for index in range(segments)]


def luminance(picture: Image.Image | NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the luminance (ITU-R BT.601) of an RGB or grey picture as uint8 [H, W]. Raises ``FrameError``."""
    return np.asarray(as_picture(picture).convert("L"))


def motion_indices(index: int, fps: float, gap_s: float) -> tuple[int, int, int]:
    """Return the frames of a motion frame at a constant rate: two gaps before, one gap before, and ``index``.

    Args:
        index: number of the frame, from 0.
        fps: frame rate; 0 if unknown, which counts as :data:`DEFAULT_FPS`.
        gap_s: see :class:`ModelSpec`, ``motion_gap_s``.

    See :func:`motion_frame_indices` for a clip of any rate.
    """
    gap = max(1, round((fps or DEFAULT_FPS) * gap_s))
    return max(0, index - 2 * gap), max(0, index - gap), index


SAME_S = 1e-6
"""Times that differ by less are equal: they are sums of rounded numbers."""


def nearest_earlier(time_s: Callable[[int], float], start: int, target_s: float) -> int:
    """Return the frame, from 0 to ``start``, that is nearest in time to ``target_s``; of two equally near, the earlier.

    Args:
        time_s: returns a frame's time in seconds, which rises with its number.
        start: the last frame that may be returned.
        target_s: a time in seconds, at or before that of frame ``start``.
    """
    index = start
    while index > 0 and abs(time_s(index - 1) - target_s) <= abs(time_s(index) - target_s) + SAME_S:
        index -= 1
    return index


def nearest_motion(time_s: Callable[[int], float], now: int, gap_s: float) -> tuple[int, int, int]:
    """Return the frames nearest in time to two gaps and to one gap before frame ``now``, and ``now`` itself.

    Args:
        time_s: returns a frame's time in seconds, which rises with its number, from 0.
        now: number of the frame.
        gap_s: see :class:`ModelSpec`, ``motion_gap_s``.
    """
    one = nearest_earlier(time_s, now, time_s(now) - gap_s)
    return nearest_earlier(time_s, one, time_s(now) - 2 * gap_s), one, now


def motion_frame_indices(clip: Clip, index: int, gap_s: float) -> tuple[int, int, int]:
    """Return the frames of a motion frame of a clip: two gaps before, one gap before, and ``index`` itself.

    They are those nearest in time, as for cameras. At a constant rate, and if frames have no times, they are counted
    (:func:`motion_indices`).

    Args:
        clip: the clip.
        index: number of the frame, from 0.
        gap_s: see :class:`ModelSpec`, ``motion_gap_s``.
    """
    if clip.is_constant_rate or clip.time_s(index) is None:
        return motion_indices(index, clip.fps, gap_s)
    return nearest_motion(lambda number: clip.time_s(number) or 0.0, index, gap_s)


def glimpse_frames(
    clip: Clip, indices: Sequence[int], motion_gap_s: float, convert: Callable[[NDArray[np.uint8]], NDArray[np.uint8]]
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read frames of a clip as RGB, or with a motion gap as the luminance of three frames.

    Args:
        clip: the clip to read.
        indices: rising frame numbers.
        motion_gap_s: see :class:`ModelSpec`; 0 for RGB.
        convert: applied to each decoded frame: uint8 [H, W, 3], or [H, W] with a motion gap.

    Yields:
        each frame's number and the result of ``convert``; with a motion gap, three results stacked along a new last
        axis.
    """
    if not motion_gap_s:
        yield from clip.select(indices, convert)
        return
    yield from _stacked(
        clip, indices, motion_gap_s, lambda needed: clip.select(needed, lambda rgb: convert(luminance(rgb)))
    )


def _stacked(
    clip: Clip,
    indices: Sequence[int],
    motion_gap_s: float,
    read_planes: Callable[[Sequence[int]], Iterator[tuple[int, NDArray[np.uint8]]]],
) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Yield each frame's number and the three planes that show its motion, stacked along a new last axis.

    Args:
        clip: whose frames they are.
        indices: rising frame numbers.
        motion_gap_s: see :class:`ModelSpec`.
        read_planes: yields the planes of rising frame numbers.
    """
    parts = [motion_frame_indices(clip, index, motion_gap_s) for index in indices]
    needed = sorted({number for part in parts for number in part})
    read = read_planes(needed)
    held: dict[int, NDArray[np.uint8]] = {}
    for part in parts:
        while part[-1] not in held:
            number, made = next(read)
            held[number] = made
        held = {number: made for number, made in held.items() if number >= part[0]}
        yield part[-1], np.stack([held[number] for number in part], axis=-1)


def model_frames(clip: Clip, indices: Sequence[int], spec: ModelSpec) -> Iterator[tuple[int, ModelFrame]]:
    """Read frames of a clip as model frames.

    Args:
        clip: the clip to read.
        indices: rising frame numbers, from 0.
        spec: the model's specification.

    Yields:
        each frame's number and the model frame, uint8 [S, S, 3], in the order of ``indices``.

    Raises:
        SourceError: a frame cannot be read.
    """
    for index, pixels in input_pixels(clip, indices, spec):
        yield index, ModelFrame.of(pixels, spec)


def input_pixels(clip: Clip, indices: Sequence[int], spec: ModelSpec) -> Iterator[tuple[int, NDArray[np.uint8]]]:
    """Read frames of a clip as :func:`model_frames` does, as plain arrays."""

    def convert(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return preprocess(pixels, spec.frame_size, spec.fit)

    if spec.motion_gap_s and isinstance(clip, DecodedClip):
        yield from _stacked(
            clip, indices, spec.motion_gap_s, lambda needed: clip.select_grey(needed, spec.frame_size, spec.fit)
        )
        return
    yield from glimpse_frames(clip, indices, spec.motion_gap_s, convert)


def sampled_frames(clip: Clip, spec: ModelSpec) -> Iterator[tuple[int, ModelFrame]]:
    """Read the T frames that represent a clip (:func:`sample_indices`) as model frames (:func:`model_frames`).

    Example::

        for index, frame in sampled_frames(clip, bundle.spec):
            glimpse = stream.see([frame])

    They come in time, or in the order that the model was trained on (``spec.order``). A video file that was opened to
    decode only key frames gives other frames of the same segments.
    """
    return in_viewing_order(model_frames(clip, _seen_indices(clip, spec), spec), spec)


def _seen_indices(clip: Clip, spec: ModelSpec) -> list[int]:
    usual = sample_indices(clip.frame_count, spec.segments)
    if not isinstance(clip, DecodedInModes):
        return usual

    def parts_of(index: int) -> tuple[int, ...]:
        return motion_frame_indices(clip, index, spec.motion_gap_s) if spec.motion_gap_s else (index,)

    return clip.cheaper_indices(usual, parts_of)


def in_viewing_order(frames: Iterator[Sampled], spec: ModelSpec) -> Iterator[Sampled]:
    """Yield a clip's frames, given in time, in the order that the model was trained on."""
    if spec.order == "time":
        yield from frames
        return
    read = list(frames)
    for position in published_order(len(read)):
        yield read[position]


# -- model frames of the caller's own pictures -------------------------------------------------------------------------


def model_frame(picture: Image.Image | NDArray[np.uint8], spec: ModelSpec) -> ModelFrame:
    """Return the model frame, uint8 [S, S, 3], of one picture, for a model that sees RGB.

    Args:
        picture: an RGB or grey picture of any size (:func:`adafocus_edge.media.frames.as_picture`).
        spec: the model's specification.

    Raises:
        FrameError: ``picture`` is not such a picture, or the model sees motion, which one picture cannot show.

    Example::

        frame = model_frame(Image.open("photo.jpg").convert("RGB"), bundle.spec)
    """
    if spec.motion_gap_s:
        raise FrameError(
            f"this model sees motion: a frame is made from three pictures, {spec.motion_gap_s:g} s apart: use "
            "FrameMaker(spec).add(picture, time_s), or motion_frame(pictures, spec)"
        )
    rgb = as_picture(picture).convert("RGB")
    return ModelFrame.of(preprocess(rgb, spec.frame_size, spec.fit), spec)


def motion_frame(pictures: Sequence[Image.Image | NDArray[np.uint8]], spec: ModelSpec) -> ModelFrame:
    """Return the model frame, uint8 [S, S, 3], of three pictures, for a model that sees motion.

    Args:
        pictures: two gaps before, one gap before, and now (``spec.motion_gap_s`` is the gap in seconds).
        spec: the model's specification.

    Raises:
        FrameError: these are not three pictures (:func:`adafocus_edge.media.frames.as_picture`), or the model sees RGB.

    Example::

        frame = motion_frame([before_last, last, now], bundle.spec)
    """
    if not spec.motion_gap_s:
        raise FrameError("this model sees RGB, not motion: use model_frame(picture, spec)")
    if len(pictures) != 3:
        raise FrameError(
            f"a motion frame is made from 3 pictures, not {len(pictures)}: two gaps before, one gap before, now"
        )
    return ModelFrame.of(np.stack([_plane(picture, spec) for picture in pictures], axis=-1), spec)


def _plane(picture: Image.Image | NDArray[np.uint8], spec: ModelSpec) -> NDArray[np.uint8]:
    """Return one channel of a motion frame, uint8 [S, S]."""
    return preprocess(luminance(picture), spec.frame_size, spec.fit)


class FrameMaker:
    """Makes model frames from one live sequence of pictures with time stamps.

    For a model that sees motion, a frame combines the picture with those nearest in time to two gaps and to one gap
    before, as for live sources. Add every picture, not only those that the model will see. Before the first picture,
    nothing is assumed to have moved.

    Args:
        spec: the model's specification.

    Example::

        maker = FrameMaker(bundle.spec)
        for picture, time_s in pictures:
            frame = maker.add(picture, time_s)
    """

    def __init__(self, spec: ModelSpec) -> None:
        self._spec = spec
        self._planes: list[tuple[float, NDArray[np.uint8]]] = []

    def add(self, picture: Image.Image | NDArray[np.uint8], time_s: float) -> ModelFrame:
        """Add the next picture and return its model frame, uint8 [S, S, 3].

        Args:
            picture: an RGB or grey picture of any size (:func:`adafocus_edge.media.frames.as_picture`); not kept.
            time_s: time of the picture in seconds, from any origin; greater than that of the previous picture.

        Raises:
            FrameError: ``picture`` is not such a picture, or ``time_s`` does not rise.
        """
        spec, planes = self._spec, self._planes
        if not spec.motion_gap_s:
            return model_frame(picture, spec)
        if not math.isfinite(time_s) or (planes and time_s <= planes[-1][0]):
            before = f" after {planes[-1][0]:g}" if planes else ""
            raise FrameError(f"time_s {time_s:g}{before}: times must rise (use a new FrameMaker for a new sequence)")
        planes.append((time_s, _plane(picture, spec)))
        # Keep the newest plane that is older than two gaps: it may be the nearest for the next picture.
        while len(planes) > 1 and planes[1][0] <= time_s - 2 * spec.motion_gap_s:
            planes.pop(0)
        times_s = [kept_s for kept_s, _ in planes]
        parts = nearest_motion(times_s.__getitem__, len(planes) - 1, spec.motion_gap_s)
        return ModelFrame.of(np.stack([planes[part][1] for part in parts], axis=-1), spec)
