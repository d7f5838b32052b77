"""Measure a 720p camera at 30 frames per second end to end: our live run against a plain OpenCV and PyTorch loop.

Usage: python -m benchmarks.live [--seconds 25] [--rates 2,8,30] [--official-rates 30] [--no-save]

A real RTSP server (GStreamer) sends a real clip over loopback. "Ours" is a live run as in `classify`; "plain" is the
obvious loop: read a frame with OpenCV, at the glimpse rate preprocess it and take a step in eager PyTorch, read the
next. Both get the same stream, one after the other, at the same glimpses per second, and use motion as the default
model does.

Latency is from the decoded frame to the provisional result. If a plain loop takes longer than a frame, frames pile up
in the network instead of being dropped: "behind" is how far it lags behind the camera at the end. CPU is the processor
time per second of the run, over both cores (1.0 is one whole core), without the server's.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np

CAMERA_FPS = 30
WARM_UP_S = 4.0
"""Start of each run that is not counted."""


def processor_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def report(
    latencies: list[float], frames: int, glimpses: int, dropped: int, used_s: float, seconds: float
) -> dict[str, Any]:
    p50, p95, p99 = np.percentile(latencies, (50, 95, 99)) if latencies else (None, None, None)
    return {
        "fps_in": frames / seconds, "glimpses_per_s": glimpses / seconds, "dropped": dropped,
        "p50_ms": p50, "p95_ms": p95, "p99_ms": p99, "cpu": used_s / seconds,
        "behind_s": max(0.0, seconds - frames / CAMERA_FPS),
    }  # fmt: skip


def ours(address: str, bundle: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Run our live run; the run itself counts every frame."""
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import read_bundle
    from adafocus_edge.live.listener import Sink
    from adafocus_edge.live.messages import ProvisionalResult
    from adafocus_edge.live.run import LiveOptions, LiveRun
    from adafocus_edge.live.settings import CaptureOptions
    from adafocus_edge.media.sources import find_sources
    from adafocus_edge.runtime.classifier import Classifier

    class Latencies(Sink):
        wants = (ProvisionalResult,)

        def __init__(self) -> None:
            self.kept: list[tuple[float, float]] = []
            super().__init__("latencies", 10_000, print)

        def process(self, message: Any) -> None:
            self.kept.append((time.monotonic(), message.latency_ms))

    found = read_bundle(bundle)
    stop, seen, marks = threading.Event(), Latencies(), []
    with load_model(found, "auto", "onnxruntime-cpu", None) as model:
        run = LiveRun(
            Classifier(model, found.classes, schedule="stream"), find_sources([address]),
            LiveOptions(CaptureOptions(glimpse_fps=rate, patient=True)), [seen],
        )  # fmt: skip

        def watch() -> None:
            while not run.status().sources[0].frames:
                time.sleep(0.05)
            for wait in (WARM_UP_S, seconds):
                time.sleep(wait)
                marks.append((time.monotonic(), processor_s(), run.status().sources[0]))
            stop.set()

        watcher = threading.Thread(target=watch)
        watcher.start()
        run.run(stop)
        watcher.join()
    seen.close()
    (begun, used, before), (ended, used_then, after) = marks
    latencies = [latency for at, latency in seen.kept if begun <= at <= ended]
    counts = [getattr(after, name) - getattr(before, name) for name in ("frames", "glimpses", "dropped")]
    left = after.picked - after.glimpses - after.dropped - after.waiting
    assert 0 <= left <= 2, f"{left} picked frames are neither seen nor counted as dropped"  # two are in hand
    return report(latencies, *counts, used_then - used, ended - begun)


def plain(address: str, bundle: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Run the plain loop, with weights of the same shapes."""
    import cv2
    import torch

    from adafocus_edge.bundle.store import read_bundle
    from training.eager import OfficialWay
    from training.model import AdaFocus

    spec = read_bundle(bundle).spec
    torch.manual_seed(1)
    weights = {name.replace(".policy_old.", ".policy."): value for name, value in AdaFocus(spec).state_dict().items()}
    model = OfficialWay(weights, spec.focuser, spec.patch_size, spec.glance_size)
    torch.set_num_threads(2)
    gap = round(CAMERA_FPS * spec.motion_gap_s)
    size = spec.frame_size
    camera = cv2.VideoCapture(address)
    kept: list[Any] = []
    latencies: list[float] = []
    frames = glimpses = 0
    begun = time.monotonic()
    measured: tuple[float, float] | None = None
    due = 0.0
    while True:
        there, frame = camera.read()
        assert there, "the stream ended"
        now = time.monotonic()
        if measured is None and now - begun >= WARM_UP_S:
            measured, frames, glimpses, latencies = (now, processor_s()), 0, 0, []
        if measured is not None and now - measured[0] >= seconds:
            break
        frames += 1
        kept = [*kept[-2 * gap :], frame]
        if now < due:
            continue
        due = max(due + 1 / rate, now)
        if gap:
            shown = (kept[max(0, len(kept) - 1 - back)] for back in (2 * gap, gap, 0))
            parts = [cv2.cvtColor(part, cv2.COLOR_BGR2GRAY) for part in shown]
            seen = np.stack([cv2.resize(part, (size, size), interpolation=cv2.INTER_AREA) for part in parts], axis=-1)
        else:
            height, width = frame.shape[:2]
            short = size * 256 // 224
            scale = short / min(height, width)
            scaled = cv2.resize(frame, (int(width * scale), int(height * scale)), interpolation=cv2.INTER_AREA)
            top, left = (scaled.shape[0] - size) // 2, (scaled.shape[1] - size) // 2
            seen = np.ascontiguousarray(scaled[top : top + size, left : left + size, ::-1])
        if glimpses % spec.segments == 0:
            model.reset()
        _, logits = model.frame(torch.from_numpy(seen)[None])
        logits.argmax().item()
        glimpses += 1
        latencies.append((time.monotonic() - now) * 1e3)
    return report(latencies, frames, glimpses, 0, processor_s() - measured[1], now - measured[0])


def child(way: str, address: str, bundle: Path, rate: float, seconds: float) -> dict[str, Any]:
    """Run one way in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.live", "--way", way, "--address", address, "--bundle", str(bundle)]
    command += ["--rates", f"{rate:g}", "--seconds", f"{seconds:g}"]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Measure, print and write ``results/live.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=25)
    parser.add_argument("--rates", default="2,8,30")
    parser.add_argument("--official-rates", default="30")
    parser.add_argument("--no-save", action="store_true")
    parser.add_argument("--way", choices=("ours", "plain"), help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--bundle", type=Path, help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.way:
        run = {"ours": ours, "plain": plain}[asked.way]
        print(json.dumps(run(asked.address, asked.bundle, float(asked.rates), asked.seconds)))
        return

    from adafocus_edge.bundle.store import default_bundle
    from benchmarks.machine import save
    from benchmarks.official import make_bundle, make_checkpoint
    from tests.support.streams import RtspServer

    rows = []
    with tempfile.TemporaryDirectory() as folder, RtspServer(lifetime_s=3600) as server:
        official = make_bundle(make_checkpoint(Path(folder)), Path(folder))
        plan = [("default", default_bundle(), float(rate)) for rate in asked.rates.split(",")]
        plan += [("official", official, float(rate)) for rate in asked.official_rates.split(",")]
        for model, bundle, rate in plan:
            for way in ("ours", "plain"):
                row = {"model": model, "asked_per_s": rate, "way": way}
                rows.append({**row, **child(way, server.address, bundle, rate, asked.seconds)})
                row = rows[-1]
                print(
                    f"{model:9} {rate:4g}/s wanted {way:6} {row['fps_in']:5.1f} fps in  {row['glimpses_per_s']:5.1f}/s "
                    f"{row['dropped']:5d} dropped  p50 {row['p50_ms']:6.1f}  p95 {row['p95_ms']:6.1f}  "
                    f"p99 {row['p99_ms']:6.1f} ms  cpu {row['cpu']:.2f}  behind {row['behind_s']:.1f} s",
                    flush=True,
                )
    if not asked.no_save:
        print(save("live", {"seconds": asked.seconds, "rows": rows}))


if __name__ == "__main__":
    main()
