"""Measure one model on one device: parity, latency, throughput, leaks."""

from __future__ import annotations

import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.runner import DeviceRunner
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.model.spec import GRAPHS
from adafocus_edge.runtime.glimpse import GlimpseStream, see_clip

TOLERANCE = {"fp32": 2e-3, "fp16": 2e-2}
"""Max error of a logit, by variant; for INT8, see the accuracy in the calibration's report."""
STOPPED_GROWING = 1.05
LEAKED_DEVICE, LEAKED_HOST = 16 << 20, 32 << 20
"""Bytes from which growth counts as a leak."""


def parity(model: LoadedModel, frames: np.ndarray, expected: np.ndarray, places: np.ndarray) -> dict[str, Any]:
    """Compare both schedules with a reference.

    Args:
        model: the model to compare.
        frames: uint8 [T, S, S, 3].
        expected: the reference's logits [T, C].
        places: the reference's origins of the patches [T, 2].
    """
    stream = GlimpseStream(model)
    worst, same_places, same_labels = 0.0, True, True
    for glimpses in (list(see_clip(model, frames)), [stream.see([frame]) for frame in frames]):
        found = np.concatenate([glimpse.logits for glimpse in glimpses])
        origins = np.concatenate([glimpse.origins for glimpse in glimpses])
        error = np.abs(found - expected).max()
        worst = max(worst, float(error) if np.isfinite(error) else float("inf"))
        same_places &= bool(np.abs(origins - places).max() < 1e-5)
        same_labels &= bool((found.argmax(-1) == expected.argmax(-1)).all())
    limit = TOLERANCE.get(model.variant)
    exact = model.variant != "fp32" or (same_places and same_labels)
    return {
        "largest_logit_error": worst,
        "same_places": same_places,
        "same_labels": same_labels,
        "limit": limit,
        "ok": limit is None or (worst <= limit and exact),
    }


def latency(model: LoadedModel, frames: np.ndarray, rounds: int) -> dict[str, Any]:
    """Time the steps of one stream, the host's time to queue each, and whole clips."""
    loop = resident(model).steps(1)
    took, queued, clips = [], [], []
    for number in range(rounds + 10):
        started = time.perf_counter()
        loop.submit([frames[number % len(frames)]])
        between = time.perf_counter()
        loop.collect()
        took.append((time.perf_counter() - started) * 1e3)
        queued.append((between - started) * 1e3)
    for _ in range(max(3, rounds // 4)):
        started = time.perf_counter()
        list(see_clip(model, frames))
        clips.append((time.perf_counter() - started) * 1e3)
    on_host = statistics.median(queued[10:])
    return {
        "step_ms": percentiles(took[10:]),
        "queueing_ms": on_host,
        # ONNX Runtime waits for the CUDA graph that it replays, so the time to queue it cannot be measured.
        "host_share": on_host / statistics.median(took[10:]) if model.backend == "tensorrt" else None,
        "clip_ms": percentiles(clips[2:]),
    }


def throughput(
    model: LoadedModel, frames: np.ndarray, rounds: int, most: int, keep: Callable[[dict[str, Any]], None]
) -> None:
    """Measure clips per second of 1, 2, 4 ... streams that step together, a step ahead, until it stops growing.

    Args:
        model: the model to time.
        frames: the frames of a clip, used by every stream.
        rounds: four times the steps to time for each number of streams.
        most: max streams.
        keep: called with all rows after each new row.
    """
    where = resident(model)
    found: dict[str, list[dict[str, Any]]] = {}
    with where.device.use():
        on_device = [where.device.store(frame[None]) for frame in frames]
    sources: tuple[tuple[str, list[Any]], ...] = (("host", list(frames)), ("device", on_device))
    for place, source in sources:
        rows = found[place] = []
        streams = 1
        while streams <= most:
            try:
                loop = where.steps(streams)
            except AdaFocusError as error:  # no memory, or more than the engines take
                rows.append({"streams": streams, "clips_per_s": 0.0, "stopped": str(error)})
                break
            steps = max(3, rounds // 4)
            loop.submit([source[0]] * streams)
            started = time.perf_counter()
            for step in range(steps):
                loop.submit([source[(step + row) % len(source)] for row in range(streams)])
                loop.collect()
            loop.collect()
            per_s = (steps + 1) * streams / (time.perf_counter() - started) / len(frames)
            rows.append({"streams": streams, "clips_per_s": round(per_s, 2)})
            best = max(row["clips_per_s"] for rows in found.values() for row in rows)
            keep({"frames_in": found, "best_clips_per_s": best})
            if len(rows) > 1 and per_s < STOPPED_GROWING * rows[-2]["clips_per_s"]:
                break
            streams *= 2


def leaks(model: LoadedModel, frames: np.ndarray, steps: int) -> dict[str, Any]:
    """Run steps and clips, and measure whether memory grows after the warm-up."""
    where = resident(model)
    loop, on_gpu = where.steps(1), where.device.kind == "cuda"

    def run(count: int) -> tuple[int, int]:
        for number in range(count):
            loop.submit([frames[number % len(frames)]], fresh=[0] if number % len(frames) == 0 else [])
            loop.collect()
            if number % 100 == 0:
                list(see_clip(model, frames))
        free = free_bytes() if on_gpu else 0
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return free, pages * resource.getpagesize()

    free, rss = run(max(20, steps // 10))
    free_after, rss_after = run(steps)
    lost, grown = free - free_after, rss_after - rss
    return {
        "steps": steps,
        "device_bytes": lost,
        "host_bytes": grown,
        "ok": lost < LEAKED_DEVICE and grown < LEAKED_HOST,
    }


def free_bytes() -> int:
    """Return the free memory of the GPU, in bytes."""
    from adafocus_edge.backends.device.cuda import checked, runtime

    cuda = runtime()
    checked(cuda, cuda.cudaSetDevice(0), "taking the GPU")
    status, free, _ = cuda.cudaMemGetInfo()
    return int(checked(cuda, (status, free), "asking for free memory"))


def percentiles(values: list[float]) -> dict[str, float]:
    """Return median, 95th and 99th percentile."""
    return {f"p{share}": round(float(np.percentile(values, share)), 4) for share in (50, 95, 99)}


def resident(model: LoadedModel) -> DeviceRunner:
    """Return the model on its device, or a model of CPU sessions with the CPU as its device."""
    return model.resident or DeviceRunner(model.spec, {g: getattr(model, g) for g in GRAPHS}, HostDevice())
