"""Draws results on frames (the patch, the label, its confidence, the latency), and writes such videos."""

from __future__ import annotations

import bisect
import os
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import TYPE_CHECKING, cast

import av
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from adafocus_edge.errors import SourceError
from adafocus_edge.media.clip import DEFAULT_FPS
from adafocus_edge.media.encoders import TICKS, VIDEO_CONTAINERS, video_encoder
from adafocus_edge.media.preprocess import CropWindow
from adafocus_edge.system.files import DRAFT, draft_file, take_place

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from av.video.stream import VideoStream
    from numpy.typing import NDArray
    from PIL.ImageFont import FreeTypeFont
    from PIL.ImageFont import ImageFont as BuiltinFont

    from adafocus_edge.media.clip import Clip
    from adafocus_edge.model.spec import ModelSpec, Patch
    from adafocus_edge.runtime.classifier import Result, Step

PATCH_COLOUR = (255, 176, 0)
CROP_COLOUR = (255, 255, 255)
PANEL_COLOUR = (12, 14, 18, 190)
TEXT_COLOUR = (245, 245, 245)
FADED_COLOUR = (150, 154, 160)
"""Colour of a result from before the source was lost."""
TEXT_SHARE = 22
"""Text height is 1/22 of the frame's short side, and at least 10 pixels."""
LARGEST_FACTOR = 4
SMALLEST_WIDTH = 360
"""Narrower videos are enlarged, so that the text on them can be read."""


@lru_cache
def _font(size: int) -> FreeTypeFont | BuiltinFont:
    return ImageFont.load_default(size)


class StepFinder:
    """Finds the latest glimpse at each frame of a clip; before the first one, the first.

    Args:
        steps: in the order in which they were seen, which coarse-to-fine is not that of time.
    """

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = sorted(steps, key=lambda step: step.frame_index)
        self._first_seen = [step.frame_index for step in self._steps]

    def at(self, index: int) -> Step:
        """Return the latest glimpse at a frame, by the frame's number."""
        return self._steps[max(0, bisect.bisect_right(self._first_seen, index) - 1)]


def save_annotated(
    clip: Clip,
    result: Result,
    spec: ModelSpec,
    path: Path,
    draw_frame: Callable[[int, NDArray[np.uint8]], NDArray[np.uint8]] | None = None,
) -> Iterator[int]:
    """Write the whole clip as a video with the result drawn on it. The file appears whole or not at all.

    Args:
        clip: the classified clip.
        result: its result.
        spec: of the model.
        path: of the video, an MP4, MOV or MKV.
        draw_frame: returns what to write of a frame, given its number and RGB uint8 [H, W, 3]; by default
            :func:`annotate` draws its latest glimpse.

    Yields:
        The number of frames written, after each.

    Raises:
        SourceError: the clip cannot be decoded, or the file cannot be written, or it is the clip's own.
    """
    if path.suffix.lower() not in VIDEO_CONTAINERS:
        raise SourceError(
            f"{path}: cannot be written: name it {', '.join(f'*{suffix}' for suffix in VIDEO_CONTAINERS)}"
        )
    check_apart(path, clip)
    codec = video_encoder()
    steps = StepFinder(result.steps)
    options = {"movflags": "faststart"} if path.suffix.lower() in (".mp4", ".mov") else {}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with draft_file(path, f"{DRAFT}{path.suffix}") as draft:
            with av.open(f"file:{draft}", "w", options=options) as container:
                stream: VideoStream | None = None
                for index, frame in clip.frames():
                    if draw_frame is None:
                        picture = annotate(frame, steps.at(index), result, spec)
                    else:
                        picture = draw_frame(index, frame)
                    if stream is None:
                        stream = cast(
                            "VideoStream",
                            container.add_stream(codec, rate=Fraction(clip.fps or DEFAULT_FPS).limit_denominator(1001)),
                        )
                        stream.height, stream.width = picture.shape[:2]
                        stream.pix_fmt = "yuv420p"
                        stream.codec_context.sample_aspect_ratio = clip.sample_aspect
                        if clip.duration_s is not None:
                            stream.codec_context.time_base = Fraction(1, TICKS)
                        stream.thread_type = "AUTO"
                        if codec == "libx264":
                            stream.options = {"preset": "veryfast"}
                        size = picture.shape
                    if picture.shape != size:  # a stream that changes its size
                        picture = np.asarray(Image.fromarray(picture).resize((size[1], size[0])))
                    shown = av.VideoFrame.from_ndarray(picture, format="rgb24")
                    time_s = clip.time_s(index)
                    if time_s is not None:  # otherwise the encoder numbers the frames
                        shown.pts, shown.time_base = round(time_s * TICKS), Fraction(1, TICKS)
                    container.mux(stream.encode(shown))
                    yield index + 1
                if stream is not None:
                    container.mux(stream.encode(None))
            take_place(draft, path)
    except (OSError, av.error.FFmpegError) as error:
        raise SourceError(f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})") from None


def check_apart(path: Path, clip: Clip) -> None:
    """Check that a file to write is not the clip's own. Raises ``SourceError``."""
    if os.path.realpath(path) == os.path.realpath(getattr(clip, "address", clip.name)):
        raise SourceError(f"{path}: would overwrite the source: write to another file")


def shown_size(width: int, height: int, sample_aspect: Fraction) -> tuple[int, int]:
    """Return the width and height in square pixels at which a frame is shown: one side grows, none shrinks.

    For formats that cannot signal that their pixels are not square, such as JPEG.
    """
    if sample_aspect >= 1:
        return round(width * sample_aspect), height
    return width, round(height / sample_aspect)


def in_square_pixels(image: Image.Image, sample_aspect: Fraction) -> Image.Image:
    """Return an image with square pixels; see :func:`shown_size`."""
    size = shown_size(image.width, image.height, sample_aspect)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


@dataclass(frozen=True)
class Overlay:
    """The annotation of a frame.

    Attributes:
        patch: (y, x, size) in pixels of the preprocessed S x S frame.
        headline: the label and its confidence.
        detail: the smaller line below it.
        bar: length of the bar at the bottom, as a share of the width, 0 to 1.
        faded: whether the result is out of date.
    """

    patch: Patch
    headline: str
    detail: str
    bar: float
    faded: bool = False


def annotate(frame: NDArray[np.uint8], step: Step, result: Result, spec: ModelSpec) -> NDArray[np.uint8]:
    """Draw one step on a frame.

    Args:
        frame: RGB uint8 [H, W, 3].
        step: the latest glimpse at this time.
        result: of the clip.
        spec: of the model.

    Returns:
        Uint8 [h, w, 3], as :func:`draw` returns it.
    """
    best = result.top[0]
    detail = (
        f"glimpse {step.step + 1}/{len(result.steps)}: {step.guess.label} {step.guess.confidence:.0%}"
        f"   |   {result.latency_ms:.0f} ms, {result.backend}, {result.variant}"
    )
    headline = f"{best.label}  {best.confidence:.0%}"
    return draw(frame, Overlay(step.patch, headline, detail, step.guess.confidence), spec)


def draw(frame: NDArray[np.uint8], overlay: Overlay | None, spec: ModelSpec) -> NDArray[np.uint8]:
    """Draw the patch, the model's view of the frame, and a panel with text and a bar.

    Args:
        frame: RGB uint8 [H, W, 3].
        overlay: what to draw; None for nothing.
        spec: of the model.

    Returns:
        Uint8 [h, w, 3], both even as video codecs require; enlarged if the frame is very small.
    """
    height, width = frame.shape[:2]
    window = CropWindow.of(height, width, spec.frame_size, spec.fit)
    enlarge = min(LARGEST_FACTOR, max(1, -(-SMALLEST_WIDTH // width)))
    image = Image.fromarray(frame)
    if enlarge > 1:
        image = image.resize((width * enlarge, height * enlarge), Image.Resampling.BILINEAR)
    image = image.crop((0, 0, max(2, image.width // 2 * 2), max(2, image.height // 2 * 2)))
    if overlay is None:
        return np.asarray(image)
    pen = ImageDraw.Draw(image, "RGBA")
    text_px = max(10, min(image.size) // TEXT_SHARE)
    line = max(2, text_px // 6)

    def box(y: float, x: float, size: int) -> tuple[float, float, float, float]:
        top, left, bottom, right = (value * enlarge for value in window.source_box(y, x, size, size))
        return left, top, right - 1, bottom - 1

    pen.rectangle(box(0, 0, spec.frame_size), outline=(*CROP_COLOUR, 110), width=max(1, line // 2))
    colour = FADED_COLOUR if overlay.faded else PATCH_COLOUR
    pen.rectangle(box(*overlay.patch), outline=colour, width=line)

    font = _font(text_px)
    panel = int(text_px * 2.9)
    top = image.height - panel
    pen.rectangle((0, top, image.width, image.height), fill=PANEL_COLOUR)
    margin = text_px // 2
    pen.text((margin, top + text_px * 0.3), overlay.headline, fill=colour, font=font)
    small = _font(max(9, text_px * 3 // 4))
    pen.text((margin, top + text_px * 1.6), overlay.detail, fill=TEXT_COLOUR, font=small)
    pen.rectangle((0, image.height - line, image.width * overlay.bar, image.height), fill=colour)
    return np.asarray(image)
