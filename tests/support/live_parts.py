"""Messages of a live run as tests need them, made of real pictures; imports neither torch nor conftest."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from adafocus_edge.live.messages import Event, LiveFrame, Notice, ProvisionalResult, Window
from adafocus_edge.model.spec import ModelSpec
from adafocus_edge.runtime.classifier import Guess, Result, Step

SPEC = ModelSpec(
    glancer="mobilenet_v2", focuser="resnet50", glance_dim=1280, focus_dim=2048, frame_size=224, glance_size=224,
    patch_size=96, grid=7, segments=16, policy_state=1024, classifier_state=1024, classes=200,
)  # fmt: skip
WALL_S = 1_700_000_000.0
"""2023-11-14 22:13:20 UTC."""


def picture(number: int = 0, height: int = 480, width: int = 640) -> np.ndarray:
    """A grey scene with a bright square that moves."""
    made = np.full((height, width, 3), 70, np.uint8)
    made[::16] = 90
    left = number * 8 % (width - 40)
    made[40:80, left : left + 40] = (200, 220, 240)
    return made


def live_frame(source: str = "camera 0", index: int = 0, time_s: float = 0.0, **more: Any) -> LiveFrame:
    shape = more.get("size", (480, 640))
    to_rgb = more.get("to_rgb", lambda: picture(index, *shape))
    return LiveFrame(source, index, time.monotonic(), time_s, more.get("wall_s", WALL_S + time_s), to_rgb)


def glimpse(number: int = 0, label: str = "juggling", confidence: float = 0.75) -> Step:
    return Step(number, number, 0.1, (64, 64, 96), Guess(label, 3, confidence), np.arange(4, dtype=np.float32))


def look(frame: LiveFrame, number: int = 2, label: str = "juggling", confidence: float = 0.75) -> ProvisionalResult:
    step = glimpse(number, label, confidence)
    return ProvisionalResult(frame.source, frame, step, (step.guess,), True, 41.5)


def window(source: str = "camera 0", start_s: float = 0.0, label: str = "juggling") -> Window:
    steps = (glimpse(0, label), glimpse(1, label))
    guesses = (steps[1].guess, Guess("smoking", 1, 0.2))
    result = Result(source, start_s, start_s + 4, guesses, steps, False, 12.5, 9.5, "onnxruntime-cpu", "fp32")
    return Window(source, result, None, WALL_S + start_s, False)


def event(kind: Any = "start", number: int = 1, source: str = "camera 0", **more: Any) -> Event:
    frame = more.get("frame") or live_frame(source, number, float(number))
    end_s = 4.0 if kind == "end" else None
    wall_s = more.get("wall_s", WALL_S + number)
    return Event(source, kind, number, more.get("label", "juggling"), 1.0, end_s, 0.9, wall_s, frame, (64, 64, 96))


def notice(kind: Any = "lost", source: str = "camera 0", text: str = "the camera is gone") -> Notice:
    return Notice(source, kind, text, WALL_S)


def until(met: Any, within_s: float = 30.0) -> None:
    """Wait for something that another thread or process does."""
    deadline = time.monotonic() + within_s
    while not met():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.01)
