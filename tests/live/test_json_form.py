"""The JSON of live runs, byte for byte: messages and the status of a run, against lines recorded in a file."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.live.messages import Drops, Notice
from adafocus_edge.live.run import LiveOptions, LiveRun
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.media.sources import Source
from adafocus_edge.runtime.classifier import Classifier, Guess
from adafocus_edge.system.json_lines import to_line
from adafocus_edge.system.sensors import Sensors
from tests.support.live_parts import SPEC, WALL_S, event, live_frame, look, notice, window

RECORDED = Path(__file__).parent / "recorded" / "json_lines.jsonl"
"""Written by the code of before the status was made of dataclasses; new lines are added, none is changed."""
NOW_S = 5000.0


class Output:
    """A subscriber with fixed counts."""

    name, waiting, handled, dropped, failed = "out.jsonl", 3, 11, 2, 1

    def enqueue(self, message: Any) -> None:
        raise AssertionError("nothing runs")


def message_lines() -> list[str]:
    """Each kind of message, with every optional part once present and once absent."""
    cut = replace(window(), cut=True, smoothed=(Guess("juggling", 3, 0.5), Guess("a \u202eb\udcff", 1, 1 / 3)))
    entries: list[dict[str, Any]] = [
        window().to_json(),
        window(label='one, "two"', start_s=1 / 3).to_json(logits=True),
        cut.to_json(),
        event().to_json(),
        event("end", 7, "gate\n\x1b[31m").to_json(),
        look(live_frame(index=12, time_s=2 / 3)).to_json(),
        notice("failed").to_json(),
        Drops("film", "dropping", "film: the model is too slow", WALL_S).to_json(),
        Drops("film", "recovered", "film: keeps up", WALL_S + 0.5).to_json(),
    ]
    kinds = ("connected", "lost", "reconnected", "changed", "stalled", "resumed", "ended")
    entries += [Notice("é \u2028", kind, "text", WALL_S + n / 7).to_json() for n, kind in enumerate(kinds)]  # type: ignore[arg-type]
    return [to_line(entry) for entry in entries]


def status_lines(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The status of a run at fixed times: before anything happened, and with every number set."""
    now = [NOW_S]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    found = read_bundle(default_bundle())
    lines = []
    with load_model(found, "auto", "onnxruntime-cpu", 1) as model:
        sources = [Source("film", "film.mp4"), Source("yard \udcff", "rtsp://h/1", live=True), Source("0", "0", True)]
        options = LiveOptions(CaptureOptions(4.0), overlap=3, max_guests=2)
        run = LiveRun(Classifier(model, found.classes), sources, options, [Output()])
        readings = [Sensors(None, None, None, None, None), Sensors(41.5, 7.25, "module", 50.0, 3.0)]
        # Not those of the default bundle, which may change.
        run.classes, run.spec = ("fight", "no_fight"), replace(SPEC, segments=8, patch_size=128, fit="squash")
        run._sensors = SimpleNamespace(read=lambda: readings.pop(0))  # type: ignore[assignment]
        lines.append(to_line({"status": run.status().to_json()}))
        now[0] += 12.3456
        run._ready.set()
        run._running = True
        yard = run._sources["yard \udcff"]
        counters = yard.capture.counters
        counters.frames, counters.picked, counters.dropped, counters.damaged = 250, 48, 5, 2
        counters.connections, counters.width, counters.height = 3, 1280, 720
        yard.capture.state, yard.capture.text = "running", "yard: 1280 x 720, 25 fps"
        yard.capture.newest = replace(live_frame("yard \udcff", 249), captured_s=now[0] - 0.0404)
        yard.glimpses, yard.windows = 43, 7
        for latency_ms in (20.0, 25.5, 31.333333):
            yard.latency.add(latency_ms)
        yard.seen_s, yard.seen_wall_s, yard.seen_connection = now[0] - 1.0, WALL_S + 3.25, 3
        yard.drops.dropping = True
        run._sources["film"].capture.state = "failed"
        run._preparing = "preparing batch 4"
        lines.append(to_line({"status": run.status().to_json()}))
    return lines


def test_the_json_of_messages_and_of_the_status_is_as_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [*message_lines(), *status_lines(monkeypatch)]
    found = [line.encode(errors="backslashreplace") for line in lines]  # as files are written
    assert found == RECORDED.read_bytes().splitlines()
