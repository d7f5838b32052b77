"""Compare classifying a long video file with decoding all of it.

Usage: python -m benchmarks.long_file [BUNDLE] [--seconds 120] [--rounds 5]

Makes 1080p H.264 files from a real clip (people_1080p.mp4, played forwards and backwards), with a key frame every 30,
60 and 250 frames, which determines how much must be decoded to reach a frame. "Whole" is PyAV decoding every frame on
all cores, without any conversion. "Classified" includes opening, seeking, decoding, preprocessing and the glimpse loop,
in each mode of `--decode`. All take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, get_args

import av

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import read_bundle
from adafocus_edge.media.decode_modes import DecodeMode
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier, Result
from benchmarks.machine import save
from benchmarks.official import make_bundle, make_checkpoint

CLIP = Path(__file__).parent.parent / "tests" / "clips" / "people_1080p.mp4"
KEY_FRAMES = (30, 60, 250)
T = TypeVar("T")


def make(path: Path, seconds: int, key_frames: int) -> None:
    """Encode the clip forwards and backwards until the file is long enough, at 30 frames per second."""
    with av.open(str(CLIP)) as source:
        frames = [frame.to_ndarray(format="yuv420p") for frame in source.decode(video=0)]
    turn = [*range(len(frames)), *range(len(frames) - 2, 0, -1)]
    with av.open(str(path), "w") as target:
        options = {"preset": "veryfast", "crf": "23", "g": str(key_frames), "keyint_min": str(key_frames)}
        stream: Any = target.add_stream("libx264", rate=30, options=options)
        stream.height, stream.width, stream.pix_fmt, stream.thread_type = 1080, 1920, "yuv420p", "AUTO"
        for number in range(seconds * 30):
            frame = av.VideoFrame.from_ndarray(frames[turn[number % len(turn)]], format="yuv420p")
            target.mux(stream.encode(frame))
        target.mux(stream.encode(None))


def decode_whole(path: Path) -> None:
    """Decode every frame."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "AUTO"
        for _ in container.decode(video=0):
            pass


def measured(work: Callable[[], T]) -> tuple[T, float, float]:
    """Return what a function returns, its seconds, and those of the processor in all threads."""
    started, busy = time.perf_counter(), time.process_time()
    made = work()
    return made, time.perf_counter() - started, time.process_time() - busy


def main() -> None:
    """Measure, print and write ``results/long_file.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, nargs="?")
    parser.add_argument("--seconds", type=int, default=120)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(options.bundle or make_bundle(make_checkpoint(Path(folder)), Path(folder)), Path(folder), options)


def compare(classifier: Classifier, path: Path, rounds: int) -> list[dict[str, Any]]:
    """Time one file, whole and in each mode; return a row per mode."""
    source = Source(path.name, str(path))
    classifier.classify(source)  # warm up
    whole: list[tuple[float, float]] = []
    ours: dict[DecodeMode, list[tuple[Result, float, float]]] = {mode: [] for mode in get_args(DecodeMode)}
    for _ in range(rounds):
        whole.append(measured(lambda: decode_whole(path))[1:])
        for mode, runs in ours.items():
            one = replace(source, decode=mode)
            runs.append(measured(lambda one=one: classifier.classify(one)[0]))  # type: ignore[misc]
    return [
        {
            "decode": mode,
            "file_mb": round(path.stat().st_size / 1e6, 1),
            "decode_whole_s": round(statistics.median(wall for wall, _ in whole), 3),
            "decode_whole_cpu_s": round(statistics.median(busy for _, busy in whole), 3),
            "classified_s": round(statistics.median(wall for _, wall, _ in runs), 3),
            "classified_cpu_s": round(statistics.median(busy for _, _, busy in runs), 3),
            "model_s": round(statistics.median(result.model_ms for result, _, _ in runs) / 1e3, 3),
            "ratio_median": round(
                statistics.median(all_s / one[1] for (all_s, _), one in zip(whole, runs, strict=True)), 2
            ),
        }
        for mode, runs in ours.items()
    ]


def measure(bundle_path: Path, folder: Path, options: argparse.Namespace) -> None:
    """Make the files, time them, print and write the report."""
    rows: list[dict[str, Any]] = []
    bundle = read_bundle(bundle_path)
    with load_model(bundle, backend="onnxruntime-cpu") as model:
        classifier = Classifier(model, bundle.classes)
        print(f"{'key frame every':>18}{'decode':>12}{'whole':>10}{'classified':>12}{'model':>9}{'times faster':>14}")
        for key_frames in KEY_FRAMES:
            path = folder / f"{key_frames}.mp4"
            make(path, options.seconds, key_frames)
            for row in compare(classifier, path, options.rounds):
                rows.append({"key_frame_every": key_frames, **row})
                print(
                    f"{key_frames:11} frames{row['decode']:>12}{row['decode_whole_s']:8.2f} s"
                    f"{row['classified_s']:10.2f} s{row['model_s']:7.2f} s{row['ratio_median']:14.1f}",
                    flush=True,
                )
    path = save(
        "long_file",
        {
            "what": f"a {options.seconds}-second 1080p H.264 file: decoded whole, and classified",
            "command": f"python -m benchmarks.long_file --seconds {options.seconds} --rounds {options.rounds}",
            "rounds": options.rounds,
            "rows": rows,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
