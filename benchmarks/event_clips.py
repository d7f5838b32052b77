"""Measure what the archive of events costs: CPU time per source, with nothing happening and with an event.

    python -m benchmarks.event_clips [--video tests/clips/people_1080p.mp4] [--seconds 20]

The frames are decoded before; a live run decodes them anyway. Every source is encoded all the time, so that a clip can
begin before its event.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import av
import numpy as np

from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.event_store import EventStore
from adafocus_edge.live.messages import Event, LiveFrame
from adafocus_edge.live.sinks.event_clips import EventClips
from benchmarks.machine import save

VIDEO = Path(__file__).parents[1] / "tests" / "clips" / "people_1080p.mp4"
FPS = 25.0
MAX_FRAMES = 50
"""Frames in memory, shown over and over."""


def decoded(video: Path) -> list[Any]:
    """Return the first frames of a video, as a live source holds them."""
    with av.open(str(video)) as container:
        return [frame for frame, _ in zip(container.decode(video=0), range(MAX_FRAMES), strict=False)]


def cost(frames: list[Any], seconds: float, *, with_event: bool) -> dict[str, float]:
    """Return the CPU time per second of video, in cores, and the size of a minute's clip in megabytes."""
    spec = read_bundle(default_bundle()).spec
    with tempfile.TemporaryDirectory() as folder:
        store = EventStore(Path(folder))
        sink = EventClips(store, spec, print, window_s=4.0, waiting=100_000)
        began_s, wall_s = time.process_time(), time.time()
        for index in range(round(seconds * FPS)):
            picture, time_s = frames[index % len(frames)], index / FPS

            def to_rgb(picture: Any = picture) -> Any:
                return picture.to_ndarray(format="rgb24")

            frame = LiveFrame("camera", index, time.monotonic(), time_s, wall_s + time_s, to_rgb)
            sink.enqueue(frame)
            if with_event and index == round(FPS):
                sink.enqueue(Event("camera", "start", 1, "x", 0.5, None, 0.9, wall_s + 1, frame, (0, 0, 128), "key"))
        sink.close(600)
        took_s = time.process_time() - began_s
        event = store.get("key")
        store.close()
    found = {"cores": round(took_s / seconds, 4)}
    if event is not None and event.clip_s:
        found["mb_per_minute"] = round(event.bytes / 1e6 / event.clip_s * 60, 2)
    return found


def main() -> None:
    """Measure, print and write ``results/event_clips.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--video", type=Path, default=VIDEO)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    frames = decoded(options.video)
    rounds = [
        [cost(frames, options.seconds, with_event=event) for event in (False, True)] for _ in range(options.rounds)
    ]
    idle, lasting = ([found[case]["cores"] for found in rounds] for case in (0, 1))
    report = {
        "command": f"python -m benchmarks.event_clips --seconds {options.seconds:g} --rounds {options.rounds}",
        "video": {"name": options.video.name, "width": frames[0].width, "height": frames[0].height, "fps": FPS},
        "cores_per_source": {
            "no event": {"median": float(np.median(idle)), "range": [min(idle), max(idle)]},
            "event": {"median": float(np.median(lasting)), "range": [min(lasting), max(lasting)]},
        },
        "mb_per_minute": rounds[0][1].get("mb_per_minute"),
    }
    print(report["cores_per_source"], report["mb_per_minute"], "MB per minute of clip")
    save("event_clips", report)


if __name__ == "__main__":
    main()
