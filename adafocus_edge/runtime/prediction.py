"""What the Python interface returns of one clip: the result, and the pixels it came from."""

from __future__ import annotations

import io
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from adafocus_edge.errors import SourceError
from adafocus_edge.media.frame_folder import FrameFolder
from adafocus_edge.media.preprocess import CropWindow
from adafocus_edge.runtime.annotate import StepFinder, annotate, check_apart, save_annotated
from adafocus_edge.system.files import atomic_write, writable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from adafocus_edge.media.clip import Clip
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Guess, Result, Step

COLUMNS = 4
"""Of the pictures that :meth:`Prediction.plot` puts together."""
TILE = 320
"""Width of each, pixels."""


@dataclass(frozen=True, eq=False)
class SeenFrame:
    """One frame of a clip, and what was known when it was shown.

    Attributes:
        index: its number, from 0.
        time_s: when it is shown, in seconds; None where frames have no times.
        pixels: RGB uint8 [H, W, 3].
        step: the latest glimpse; before the first one, the first.
        box: that glimpse's patch in pixels of this frame: x1, y1, x2, y2.
    """

    index: int
    time_s: float | None
    pixels: NDArray[np.uint8]
    step: Step
    box: tuple[float, float, float, float]


@dataclass(frozen=True, repr=False)
class Prediction:
    """What was found in one clip, or in one window of a live source.

    Attributes:
        result: the figures, as ``classify`` has them.
        cut: of a live window: whether it ended before its time.
    """

    result: Result
    cut: bool
    _spec: ModelSpec
    _clip: Clip | None

    @property
    def source(self) -> str:
        """Name of the source."""
        return self.result.source

    @property
    def label(self) -> str:
        """The best class."""
        return self.result.top[0].label

    @property
    def class_id(self) -> int:
        """Number of the best class, from 0."""
        return self.result.top[0].class_id

    @property
    def confidence(self) -> float:
        """Softmax probability of the best class, 0..1."""
        return self.result.top[0].confidence

    @property
    def top(self) -> tuple[Guess, ...]:
        """The best classes, best first."""
        return self.result.top

    @property
    def steps(self) -> tuple[Step, ...]:
        """One per glimpse, in the order in which they were seen."""
        return self.result.steps

    @property
    def start_s(self) -> float | None:
        """Where the clip or window begins, in seconds of the source; None where frames have no times."""
        return self.result.start_s

    @property
    def end_s(self) -> float | None:
        """Where the clip or window ends; see :attr:`start_s`."""
        return self.result.end_s

    @property
    def exited_early(self) -> bool:
        """Whether the model was sure before the last glimpse."""
        return self.result.exited_early

    @property
    def latency_ms(self) -> float:
        """From opening the source to the result; of a live source, from the capture of the last frame."""
        return self.result.latency_ms

    @property
    def model_ms(self) -> float:
        """Time in the model; of a live source, of the last glimpse."""
        return self.result.model_ms

    @property
    def backend(self) -> str:
        """Name of the backend that ran the model."""
        return self.result.backend

    @property
    def variant(self) -> str:
        """Name of the variant that was run."""
        return self.result.variant

    @property
    def patches(self) -> NDArray[np.int64 | np.float64]:
        """The patch of each glimpse, [T, 3]: (y, x, size) in pixels of the model's square frame.

        int64; float64 for a model that chooses points between pixels, such as AdaFocus V2.
        """
        return np.array([step.patch for step in self.steps], np.float64 if self._spec.choice == "point" else np.int64)

    @property
    def times(self) -> tuple[float | None, ...]:
        """When each glimpsed frame is shown, in seconds; None where frames have no times."""
        return tuple(step.time_s for step in self.steps)

    @property
    def logits(self) -> NDArray[np.float32]:
        """The logits after each glimpse, float32 [T, C]."""
        return np.stack([step.logits for step in self.steps])

    def boxes(self, height: int, width: int) -> NDArray[np.float64]:
        """Return the patch of each glimpse in pixels of a source frame of this size, float64 [T, 4]: x1, y1, x2, y2."""
        window = CropWindow.of(height, width, self._spec.frame_size, self._spec.fit)
        return np.array([_box(window, step) for step in self.steps])

    def frames(self) -> Iterator[SeenFrame]:
        """Read the clip again, and yield each of its frames with the latest glimpse.

        Raises ``SourceError`` if the source cannot be read again, as of live sources.
        """
        clip = self._readable("frames")
        finder = StepFinder(self.steps)
        for index, pixels in clip.frames():
            yield self._seen(clip, finder, index, pixels)

    def _seen(self, clip: Clip, finder: StepFinder, index: int, pixels: NDArray[np.uint8]) -> SeenFrame:
        height, width = pixels.shape[:2]
        window, step = CropWindow.of(height, width, self._spec.frame_size, self._spec.fit), finder.at(index)
        return SeenFrame(index, clip.time_s(index), pixels, step, _box(window, step))

    def to_dict(self, *, logits: bool = False) -> dict[str, Any]:
        """Return the object that ``classify --json`` prints."""
        return self.result.to_json(logits=logits)

    def to_json(self, *, logits: bool = False) -> str:
        """Return :meth:`to_dict` as one line of JSON."""
        return json.dumps(self.to_dict(logits=logits), ensure_ascii=False)

    def plot(self, path: str | Path | None = None) -> Image.Image:
        """Draw the glimpsed frames with their patches, in the order of time.

        Args:
            path: also write the picture here, whole or not at all, in the format of its suffix.

        Raises ``SourceError`` if the source cannot be read again, as of live sources, or the file cannot be written.
        """
        clip = self._readable("plot")
        if path is not None:
            _check_picture(Path(path), clip)
        by_frame = {step.frame_index: step for step in self.steps}
        tiles = []
        for index, pixels in clip.select(sorted(by_frame), lambda rgb: rgb):
            drawn = Image.fromarray(annotate(pixels, by_frame[index], self.result, self._spec))
            tiles.append(drawn.resize((TILE, max(1, round(drawn.height * TILE / drawn.width)))))
        columns = min(COLUMNS, len(tiles))
        height = tiles[0].height
        sheet = Image.new("RGB", (columns * TILE, -(-len(tiles) // columns) * height))
        for number, tile in enumerate(tiles):
            sheet.paste(tile, (number % columns * TILE, number // columns * height))
        if path is not None:
            _write_picture(sheet, Path(path))
        return sheet

    def save(self, path: str | Path, draw: Callable[[SeenFrame], NDArray[np.uint8]] | None = None) -> Path:
        """Write the whole clip as a video with what was seen drawn on it; the file appears whole or not at all.

        Args:
            path: of the video: an MP4, MOV or MKV, and not the source.
            draw: is called with each frame, and returns what to write instead, RGB uint8 [H, W, 3] with even sides;
                by default the patch, the class and the confidence are drawn.

        Raises ``SourceError`` if the source cannot be read again, as of live sources, or the file cannot be written.
        """
        clip, finder = self._readable("save"), StepFinder(self.steps)

        def drawn(index: int, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
            assert draw is not None
            return draw(self._seen(clip, finder, index, pixels))

        for _ in save_annotated(clip, self.result, self._spec, Path(path), None if draw is None else drawn):
            pass
        return Path(path)

    def _readable(self, what: str) -> Clip:
        if self._clip is None:
            raise SourceError(f"{self.source}: {what} needs a file or frames: a live source cannot be read again")
        return self._clip

    def __str__(self) -> str:
        return f"{self.source}: {self.label} {self.confidence:.1%} ({len(self.steps)} glimpses)"


def _box(window: CropWindow, step: Step) -> tuple[float, float, float, float]:
    """Return a glimpse's patch in pixels of a source frame: x1, y1, x2, y2."""
    y, x, size = step.patch
    top, left, bottom, right = window.source_box(y, x, size, size)
    return left, top, right, bottom


def _check_picture(path: Path, clip: Clip) -> None:
    """Check that a picture to write is not the clip's file, nor in its folder of frames. Raises ``SourceError``."""
    check_apart(path, clip)
    if isinstance(clip, FrameFolder) and os.path.realpath(path.parent) == os.path.realpath(clip.name):
        raise SourceError(f"{path}: would be a frame of the source: write to another folder")


def _write_picture(picture: Image.Image, path: Path) -> None:
    """Write a picture, whole or not at all. Raises ``SourceError``."""
    encoded = io.BytesIO()
    try:
        picture.save(encoded, Image.registered_extensions().get(path.suffix.lower()))
    except (OSError, ValueError, KeyError) as error:
        raise SourceError(f"{path}: cannot be written ({error})") from None
    with writable(path, SourceError), atomic_write(path) as file:
        file.write(encoded.getvalue())
