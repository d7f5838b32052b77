"""Measure the training data loader's clips per second and core, against PyAV and torchcodec on the same frames.

Usage: python -m benchmarks.loader [--rounds 7] [--preset official edge] [--data short long frames]

Three kinds of data: short files (``tests/fights``: 2 s, 456 x 256), a long 1080p file (made from a real clip by FFmpeg,
40 s, a key frame every 2 s, as cameras write), and a folder of JPEG frames (``export/frames``, 340 x 256). One process
on one core runs all rows of a round one after the other, so that a round's ratios compare equal conditions; results are
medians over the rounds. The samples are those of a preset's training at 224 pixels; the model itself does not run.

Rows:
    off: an epoch with ``cache=off``.
    first: the first epoch with ``cache=ram``, which decodes and keeps all frames that may be drawn.
    first, device: the same, with the crops left to the GPU.
    ram, disk: a later epoch, cropped on the CPU; ``ram, device``: only read, with the crops left to the GPU.
    pyav: opens each clip and decodes it with a plain PyAV loop on one thread, up to the last frame that is drawn; for a
        folder, decodes the drawn frames with Pillow. ``pyav, rgb`` also converts all frames to RGB.
    torchcodec: opens each clip and decodes the drawn frames to RGB, on one thread (``seek_mode="approximate"``).

For the long file, ``first`` decodes ``cache_frames`` frames of each segment, so it takes several times as long as
``off``. The times are those of a loader's worker, without the transfer to the trainer; nothing waits for a disk.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image

from adafocus_edge.evaluation.dataset import Example, Split
from adafocus_edge.model.spec import ModelSpec
from adafocus_edge.system.cpu import limit_cores
from benchmarks.machine import save
from training.compose import compose_options
from training.datasets import ClipDataset, Keeping
from training.frame_cache import FrameStore, memory_folder
from training.options import TrainOptions
from training.train import model_spec

ROOT = Path(__file__).parent.parent
LONG_CLIP = ROOT / "tests" / "clips" / "R6llTwEh07w.mp4"
COPIES = 6
"""How often the folder of frames is listed as a clip: a single one is too short to time."""


def make_long_file(folder: Path) -> Path:
    """Encode 40 s of 1080p video from a real clip in a loop; return its path."""
    path = folder / "long.mp4"
    given = ["-stream_loop", "-1", "-i", LONG_CLIP, "-t", "40", "-an", "-vf", "scale=1920:1080", "-r", "30"]
    encoder = ["-c:v", "libx264", "-preset", "veryfast", "-g", "60", "-pix_fmt", "yuv420p"]
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, given), *encoder, str(path)], check=True)
    return path


KINDS: dict[str, Callable[[Path], list[Path]]] = {
    "short": lambda _: sorted((ROOT / "tests" / "fights").glob("*/*.mp4")),
    "long": lambda folder: [make_long_file(folder)],
    "frames": lambda _: [ROOT / "export" / "frames"] * COPIES,
}
"""The kinds of data, each with a function that lists the clips and may write them to the given folder."""


def split_of(kind: str, folder: Path) -> Split:
    """Return the clips of a kind."""
    paths = KINDS[kind](folder)
    return Split(tuple(Example(path.name, path, (0,)) for path in paths), ("a",), kind)


def settings(preset: str) -> tuple[TrainOptions, ModelSpec]:
    """Return a preset's options and model."""
    options = compose_options(["dataset=custom", f"preset={preset}", f"data_dir={ROOT}", "train_stage=0"]).options
    return options, model_spec(options, 2)


class Bench:
    """Times the rows of one kind of data with one preset."""

    def __init__(self, split: Split, preset: str, memory: Path, disk: Path) -> None:
        options, spec = settings(preset)
        self.split, self.spec = split, spec
        self.epoch = 0

        def data(keeping: Keeping | None, *, crops: bool = True) -> ClipDataset:
            return ClipDataset(
                split, spec, seed=1, train=True, colour_jitter=options.colour_jitter, keeping=keeping, crops=crops
            )

        self.memory = FrameStore(memory, in_memory=True)
        ram, on_disk = (Keeping(options.cache_frames, store) for store in (self.memory, FrameStore(disk, False)))
        self.data = {"off": data(None), "ram": data(ram), "ram, device": data(ram, crops=False), "disk": data(on_disk)}
        self.indices = [self._drawn(number) for number in range(len(split.examples))]

    def _drawn(self, number: int) -> list[int]:
        from adafocus_edge.media.preprocess import motion_frame_indices, sample_indices

        clip = self.split.examples[number].open_clip()
        middle = sample_indices(clip.frame_count, self.spec.segments)
        gap_s = self.spec.motion_gap_s
        parts = [motion_frame_indices(clip, n, gap_s) if gap_s else (n,) for n in middle]
        return sorted({number for part in parts for number in part})

    def rows(self) -> dict[str, Callable[[], None]]:
        """Return the function to time for each row, in the order of timing."""
        for data in (self.data["ram"], self.data["disk"]):
            self._samples(data)  # fills the caches
        rows: dict[str, Callable[[], None]] = {
            "pyav": lambda: self._pyav(rgb=False),
            "off": lambda: self._samples(self.data["off"]),
            "torchcodec": self._torchcodec,
            "pyav, rgb": lambda: self._pyav(rgb=True),
            "first, device": lambda: self._samples(self.data["ram, device"]),
            "first": lambda: self._samples(self.data["ram"]),
            "ram": lambda: self._samples(self.data["ram"]),
            "ram, device": lambda: self._samples(self.data["ram, device"]),
            "disk": lambda: self._samples(self.data["disk"]),
        }
        if self.split.examples[0].path.is_dir() or not has_torchcodec():
            del rows["torchcodec"]
        return rows

    def _samples(self, data: ClipDataset) -> None:
        self.epoch += 1
        for number in range(len(data)):
            if "failed" in (sample := data[self.epoch, number]):
                raise SystemExit(str(sample["failed"]))

    def forget(self) -> None:
        """Empty the cache in memory."""
        for path in self.memory.folder.iterdir():
            path.unlink()

    def _pyav(self, *, rgb: bool) -> None:
        for example, indices in zip(self.split.examples, self.indices, strict=True):
            if example.path.is_dir():
                files = sorted(example.path.glob("*.jpg"))
                for index in range(len(files)) if rgb else indices:
                    with Image.open(files[index]) as image:
                        np.asarray(image.convert("RGB"))
                continue
            with av.open(str(example.path)) as container:
                stream = container.streams.video[0]
                stream.thread_type, stream.codec_context.thread_count = "NONE", 1
                for number, frame in enumerate(container.decode(stream)):
                    if rgb:
                        frame.to_ndarray(format="rgb24", threads=1)
                    elif number == indices[-1]:
                        break

    def _torchcodec(self) -> None:
        from torchcodec.decoders import VideoDecoder

        for example, indices in zip(self.split.examples, self.indices, strict=True):
            decoder = VideoDecoder(
                str(example.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="approximate"
            )
            decoder.get_frames_at(indices)


def has_torchcodec() -> bool:
    """Return whether torchcodec can be used here: it needs an installed FFmpeg."""
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError, OSError):
        return False
    return True


def measure(bench: Bench, rounds: int) -> dict[str, Any]:
    """Return each row's milliseconds and clips per second, and its ratios to the peers within a round."""
    rows = bench.rows()
    clips = len(bench.split.examples)
    times: dict[str, list[float]] = {row: [] for row in rows}
    for _ in range(rounds):
        for row, run in rows.items():
            if row.startswith("first"):
                bench.forget()
            started = time.perf_counter()
            run()
            times[row].append((time.perf_counter() - started) / clips * 1e3)

    def ratio(row: str, peer: str) -> float:
        return round(statistics.median(a / b for a, b in zip(times[row], times[peer], strict=True)), 3)

    report: dict[str, Any] = {"clips": clips}
    for row, found in times.items():
        report[row] = {
            "ms_per_clip_median": round(statistics.median(found), 3),
            "ms_per_clip_min": round(min(found), 3),
            "clips_per_s_and_core": round(1e3 / statistics.median(found), 1),
            "times_of_pyav": ratio(row, "pyav"),
            "times_of_first": ratio(row, "first"),
        }
    report["first"]["times_of_pyav_rgb"] = ratio("first", "pyav, rgb")
    if "torchcodec" in times:
        report["off"]["times_of_torchcodec"] = ratio("off", "torchcodec")
    else:
        report["torchcodec"] = "does not read folders" if has_torchcodec() else "not installed, or no FFmpeg for it"
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--preset", nargs="+", default=["official", "edge"])
    parser.add_argument("--data", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--name", default="loader", help="name of the file in benchmarks/results")
    options = parser.parse_args()
    limit_cores(1)  # as in a worker
    torch.set_num_threads(1)  # torchcodec converts colours by PyTorch's threads
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    report: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryDirectory(dir=memory_folder()) as memory:
        for kind in options.data:
            split = split_of(kind, Path(folder))
            for preset in options.preset:
                name = f"{kind}, {preset}"
                places = [Path(tempfile.mkdtemp(dir=parent)) for parent in (memory, folder)]
                report[name] = found = measure(Bench(split, preset, *places), options.rounds)
                print(f"{name} ({found['clips']} clips)")
                print(f"{'':16}{'ms/clip':>10}{'clips/s':>10}{'x PyAV':>10}{'x first':>10}")
                for row, values in found.items():
                    if isinstance(values, dict):
                        keys = ("ms_per_clip_median", "clips_per_s_and_core", "times_of_pyav", "times_of_first")
                        print(f"{row:16}" + "".join(f"{values[key]:10.2f}" for key in keys), flush=True)
    path = save(
        options.name,
        {
            "what": "training's data loader on one core against PyAV and torchcodec, interleaved rounds, medians",
            "command": f"python -m benchmarks.loader --rounds {options.rounds} "
            f"--preset {' '.join(options.preset)} --data {' '.join(options.data)}",
            "rounds": options.rounds,
            **report,
        },
    )
    print(f"written to {path}")


if __name__ == "__main__":
    main()
