"""Measure what `--decode unfiltered` and `--decode key-frames` change in frames and in results.

Usage: python -m benchmarks.decode_modes [--data tests/fights ...] [--clips 60]

Labelled clips are encoded again with few key frames, as H.264 at several qualities and as H.265, and classified by the
default model in each mode. Frames and labels are compared with those of exact decoding of the same file. "Redrawn" is
the measure to compare key-frames with: exact decoding of a random frame of each segment, as in training.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.evaluation.dataset import Split, read_data
from adafocus_edge.media.preprocess import model_frames, sample_indices, sampled_frames
from adafocus_edge.media.sources import Source
from adafocus_edge.model.logits import softmax
from adafocus_edge.runtime.classifier import Classifier
from benchmarks.machine import save

DATA = Path(__file__).parent.parent / "tests" / "fights"
WHOLE = 100_000
"""Frames between key frames of a file that has one at its start only."""
SEED = 1007


@dataclass(frozen=True)
class Coding:
    """How clips are encoded again: codec, constant rate factor and the distance of key frames; None as they are."""

    codec: str | None = None
    crf: int | None = None
    key_frame_every: int | None = WHOLE


AS_THEY_ARE = Coding(key_frame_every=None)
FILTERED = [
    AS_THEY_ARE, *(Coding("libx264", crf) for crf in (23, 28, 33)), Coding("libx265", 28),
]  # fmt: skip
KEYED = [AS_THEY_ARE, *(Coding("libx264", 23, every) for every in (30, 60))]


def encode(source: Path, target: Path, coding: Coding) -> None:
    """Encode a clip's frames again, each with its time, without sound."""
    assert coding.codec is not None
    every = coding.key_frame_every
    options = {"preset": "veryfast", "crf": str(coding.crf)}
    if coding.codec == "libx265":
        options["x265-params"] = f"keyint={every}:min-keyint={every}:scenecut=0:log-level=none"
    else:
        options |= {"g": str(every), "keyint_min": str(every), "sc_threshold": "0"}
    with av.open(str(source)) as read, av.open(str(target), "w") as written:
        given = read.streams.video[0]
        stream: Any = written.add_stream(coding.codec, rate=given.average_rate, options=options)
        stream.width, stream.height, stream.pix_fmt = given.width & ~1, given.height & ~1, "yuv420p"
        stream.codec_context.time_base = given.time_base
        for frame in read.decode(given):
            made = frame.reformat(stream.width, stream.height, "yuv420p")
            made.pts, made.time_base, made.pict_type = frame.pts, frame.time_base, 0
            written.mux(stream.encode(made))
        written.mux(stream.encode(None))


@dataclass
class Tally:
    """What one mode changed over clips."""

    same: int = 0
    right: int = 0
    moved: int = 0
    frames: int = 0
    mean_grey: float = 0.0
    max_grey: int = 0
    shift: float = 0.0

    def row(self, clips: int) -> dict[str, Any]:
        """Return the figures of a report."""
        return {
            "same_label": round(self.same / clips, 4),
            "moved_frames": round(self.moved / self.frames, 3),
            "mean_grey": round(self.mean_grey / self.frames, 3),
            "max_grey": self.max_grey,
            "confidence_shift": round(self.shift / clips, 4),
        }


class Comparison:
    """Compares modes on the clips of one data set."""

    def __init__(self, classifier: Classifier, split: Split, clips: int, folder: Path) -> None:
        self.classifier, self.split, self.folder = classifier, split, folder
        self.spec = classifier.model.spec
        self.has_labels = split.classes == tuple(classifier.classes)
        step = max(1, len(split.examples) // clips)
        self.examples = split.examples[::step][:clips]

    def rows(self, coding: Coding, modes: Sequence[str]) -> Iterator[dict[str, Any]]:
        """Yield a row per mode for one coding."""
        tallies = {mode: Tally() for mode in modes}
        right = 0
        random = np.random.default_rng(SEED)
        for example in self.examples:
            path = example.path
            if coding.codec is not None:
                path = self.folder / "clip.mp4"
                encode(example.path, path, coding)
            exact = self._see(path, "exact", random)
            right += int(exact[2].argmax() == example.labels[0])
            for mode, tally in tallies.items():
                indices, frames, logits = self._see(path, mode, random)
                difference = np.abs(frames.astype(int) - exact[1])
                tally.same += int(logits.argmax() == exact[2].argmax())
                tally.right += int(logits.argmax() == example.labels[0])
                tally.moved += sum(one != usual for one, usual in zip(indices, exact[0], strict=True))
                tally.frames += len(indices)
                tally.mean_grey += float(difference.mean()) * len(indices)
                tally.max_grey = max(tally.max_grey, int(difference.max()))
                tally.shift += float(np.abs(softmax(logits) - softmax(exact[2])).max())
        for mode, tally in tallies.items():
            row = {
                "data": Path(self.split.origin).name, "clips": len(self.examples),
                "codec": coding.codec or "as they are", "crf": coding.crf, "key_frame_every": coding.key_frame_every,
                "mode": mode, **tally.row(len(self.examples)),
            }  # fmt: skip
            if self.has_labels:
                row |= {"right_exact": right, "right": tally.right}
            print(*row.values(), flush=True)
            yield row

    def _see(self, path: Path, mode: str, random: np.random.Generator) -> tuple[list[int], Any, Any]:
        """Return the numbers of the frames, the frames and the logits of a file in one mode."""
        source, segments = Source(path.name, str(path)), self.spec.segments
        if mode == "redrawn":
            clip = source.open_clip()
            usual, length = sample_indices(clip.frame_count, segments), clip.frame_count // segments
            drawn = [n * length + int(random.integers(length)) for n in range(segments)] if length else usual
            found = list(model_frames(clip, drawn, self.spec))
        else:
            found = list(sampled_frames(replace(source, decode=mode).open_clip(), self.spec))  # type: ignore[arg-type]
        indices, frames = zip(*found, strict=True)
        logits = [glimpse.logits[0] for _, glimpse, _ in self.classifier._glimpses(iter(found))]
        return list(indices), np.stack(frames), logits[-1]


def main() -> None:
    """Measure, print and write ``results/decode_modes.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, nargs="+", default=[DATA])
    parser.add_argument("--clips", type=int, default=60, help="of each data set, evenly spaced")
    options = parser.parse_args()
    bundle = read_bundle(default_bundle())
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder, load_model(bundle, backend="onnxruntime-cpu", threads=1) as model:
        for data in options.data:
            split = replace(read_data(data, None, None), origin=str(data.parent if data.suffix else data))
            compared = Comparison(Classifier(model, bundle.classes), split, options.clips, Path(folder))
            for coding in FILTERED:
                rows += compared.rows(coding, ["unfiltered"])
            for coding in KEYED:
                rows += compared.rows(coding, ["key-frames", "redrawn"])
    path = save(
        "decode_modes",
        {
            "what": "frames and labels of the default model in each mode of --decode, compared with exact decoding",
            "command": f"python -m benchmarks.decode_modes --data DATA ... --clips {options.clips}",
            "rows": rows,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
