"""A live run holds few decoded frames: megabytes each, and FFmpeg keeps the memory of as many as there ever were."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from adafocus_edge.live.capture import Capture
from adafocus_edge.live.listener import Sink
from adafocus_edge.live.messages import Event, LiveFrame, Message, ProvisionalResult
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.sinks.results_file import ResultsFile
from adafocus_edge.live.sinks.webhook import Webhook
from adafocus_edge.media.sources import Source
from adafocus_edge.serve.board import Board
from adafocus_edge.serve.options import ServeOptions
from tests.conftest import ROOT
from tests.support.live_parts import SPEC, event, live_frame, look, until
from tests.support.streams import HttpStream, free_port

SENT = 20


class Slow(Sink):
    """An output that waits for ``go``, and keeps what it has been given."""

    wants = (LiveFrame, ProvisionalResult, Event)

    def __init__(self) -> None:
        self.go = threading.Event()
        self.taken: list[Any] = []
        super().__init__("slow", SENT * 2, print)

    def process(self, message: Message) -> None:
        self.go.wait(30)
        self.taken.append(message)


class Drawing(Slow):
    needs_pixels = True


class Hung:
    """A run whose status never comes."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def status(self) -> Any:
        self.go.wait(30)
        raise RuntimeError("the run is over")


def messages_to(sink: Sink) -> list[weakref.ref[np.ndarray]]:
    """Send results and events of one frame each; return references to the pixels of the frames."""
    pixels = []
    for number in range(SENT):
        rgb = np.zeros((2, 2, 3), np.uint8)
        pixels.append(weakref.ref(rgb))
        frame = live_frame(index=number, time_s=float(number), to_rgb=lambda rgb=rgb: rgb)
        sink.enqueue(event(number=number, frame=frame))
        sink.enqueue(look(frame))
    return pixels


def held(pixels: list[weakref.ref[np.ndarray]]) -> int:
    gc.collect()
    return sum(each() is not None for each in pixels)


@contextmanager
def webhook(_: Path) -> Iterator[Sink]:
    yield Webhook(f"http://127.0.0.1:{free_port()}/hook", print)  # nobody answers: retried


@contextmanager
def results_file(folder: Path) -> Iterator[Sink]:
    pipe = folder / "results.jsonl"
    os.mkfifo(pipe)  # nobody reads
    yield ResultsFile(pipe, print, provisional=True)


@contextmanager
def board(_: Path) -> Iterator[Sink]:
    run, loop = Hung(), asyncio.new_event_loop()
    made = Board(run, ServeOptions(), loop)  # type: ignore[arg-type]
    try:
        made.enqueue(look(live_frame()))  # of a source that it does not know: it asks the run
        yield made
    finally:
        run.go.set()
        loop.close()


@pytest.mark.parametrize("output", [webhook, results_file, board])
def test_an_output_that_hangs_holds_no_pixels(output: Callable[[Path], Any], tmp_path: Path) -> None:
    with output(tmp_path) as sink:
        try:
            pixels = messages_to(sink)
            assert sink.dropped == 0
            assert sink.waiting > SENT // 2
            assert held(pixels) == 0
        finally:
            sink.close(0.1)


def test_only_an_output_that_needs_pixels_gets_those_of_results_and_events() -> None:
    for kind, kept in ((Slow, 0), (Drawing, SENT)):
        sink = kind()
        pixels = messages_to(sink)
        assert held(pixels) == kept
        picture = live_frame()
        sink.enqueue(picture)
        sink.go.set()
        until(lambda sink=sink: sink.handled == 2 * SENT + 1)
        assert sink.taken[-1] is picture  # frames themselves keep their pixels
        assert [type(message) for message in sink.taken[:2]] == [Event, ProvisionalResult]
        if kept:
            assert sink.taken[0].frame.to_rgb().shape == (2, 2, 3)
        else:
            with pytest.raises(AssertionError, match="needs_pixels"):
                sink.taken[0].frame.to_rgb()
        sink.close()


@pytest.mark.parametrize("fps", [30, 400])  # as a camera; as a decoder that has fallen behind and catches up
def test_a_stream_that_is_watched_holds_few_decoded_frames(fps: int) -> None:
    code = f"from tests.live.test_held_frames import watch; watch({fps})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)


def watch(fps: int) -> None:
    """Count frames while Python looks for no cycles of objects: none of them may hold one. In a process of its own."""
    decoded: list[int] = []

    def count(frame: LiveFrame) -> None:
        if frame.index % 20 == 0:
            decoded.append(sum(isinstance(each, av.VideoFrame) for each in gc.get_objects()))

    arrived = threading.Condition()
    spec = replace(SPEC, motion_gap_s=0.1)
    with HttpStream("ts", [(320, 180)], fps=fps, each_s=3) as stream:
        source = Source("gate", stream.address, live=True)
        capture = Capture(source, spec, CaptureOptions(8.0), arrived, on_frame=count)
        gc.collect()
        gc.disable()
        try:
            capture.start()

            def seen() -> bool:
                with arrived:
                    capture.take()
                return capture.counters.frames > 120 + fps

            until(seen)
        finally:
            gc.enable()
            capture.close()
    assert len(decoded) >= 6
    assert max(decoded) < 45, decoded
