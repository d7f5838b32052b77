"""The streams that other tests look at are real: PyAV decodes them, and they come back when they were killed."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import time
from itertools import groupby
from pathlib import Path

import av
import pytest

from tests.conftest import ROOT
from tests.support.live_parts import until
from tests.support.streams import (
    Garbage,
    HttpStream,
    RtmpStream,
    RtspServer,
    Stream,
    UdpStream,
    VirtualCamera,
    group_runs,
    loopback_devices,
    need,
)

SMALL = (320, 240)
OTHER = (256, 144)


def look(stream: Stream, frames: int = 10, timeout_s: float = 8, **options: str) -> list[tuple[int, int]]:
    """Sizes of the first frames that a plain viewer gets, which leaves then; a broken packet is not the end."""
    sizes: list[tuple[int, int]] = []
    options = {"analyzeduration": "500000"} | stream.options | options
    with av.open(stream.address, options=options, timeout=(timeout_s, timeout_s)) as container:
        for packet in container.demux(video=0):
            try:
                sizes += [(frame.width, frame.height) for frame in packet.decode()]
            except av.error.InvalidDataError:
                continue
            if len(sizes) >= frames:
                break
    assert len(sizes) >= frames
    return sizes


STREAMS = {
    "rtsp": lambda: RtspServer([SMALL]),
    "mjpeg": lambda: HttpStream("mjpeg", [SMALL], bitrate_kbps=2000),
    "ts": lambda: HttpStream("ts", [SMALL]),
    "hls": lambda: HttpStream("hls", [SMALL]),
    "udp": lambda: UdpStream([SMALL]),
    "rtmp": lambda: RtmpStream(SMALL),
}


@pytest.mark.parametrize("kind", STREAMS)
def test_a_stream_is_seen_and_comes_back_three_times(kind):
    with STREAMS[kind]() as stream:
        address = stream.address
        for _ in range(3):
            assert set(look(stream)) == {SMALL}
            group = stream._process.pid
            stream.kill()
            assert not stream.alive
            assert not group_runs(group)
            with pytest.raises(av.error.FFmpegError):
                av.open(address, options=stream.options, timeout=(0.5, 0.5))
            stream.restart()
        assert set(look(stream)) == {SMALL}
        assert stream.address == address
        group = stream._process.pid
    assert not group_runs(group)


def test_a_stream_ends_with_the_process_that_made_it(tmp_path):
    code = (
        "import os, sys; from tests.support.streams import HttpStream; stream = HttpStream('hls', [(320, 240)]);"
        "stream.__enter__(); print(stream._process.pid, flush=True); os._exit(0)"
    )
    need("ffmpeg")
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60, env=environment
    )
    until_s = time.monotonic() + 5
    while group_runs(int(done.stdout)) and time.monotonic() < until_s:
        time.sleep(0.05)
    assert not group_runs(int(done.stdout))


def test_a_stream_ends_when_its_time_is_over():
    with Garbage("silence", lifetime_s=1) as stream:
        assert stream.alive
        time.sleep(1.5)
        assert not stream.alive


def test_a_camera_keeps_its_pace():
    with RtspServer(fps=25) as stream, av.open(stream.address, options=stream.options, timeout=(8, 5)) as container:
        seen = []
        for frame in container.decode(video=0):
            seen.append((time.monotonic(), frame.time))
            if len(seen) == 150:
                break
    (begun_s, first_s), (ended_s, last_s) = seen[50], seen[-1]
    assert ended_s - begun_s == pytest.approx(99 / 25, rel=0.1)
    assert last_s - first_s == pytest.approx(99 / 25, rel=0.1)


def test_rtsp_over_udp():
    with RtspServer([SMALL], transports=["udp"]) as stream:
        assert stream.options == {"rtsp_transport": "udp"}
        assert set(look(stream, 40)) == {SMALL}


@pytest.mark.parametrize("auth", ["basic", "digest"])
def test_rtsp_asks_for_a_password(auth):
    with RtspServer([SMALL], user="viewer", password="s3cret", auth=auth) as stream:
        assert set(look(stream)) == {SMALL}
        with pytest.raises(av.error.HTTPUnauthorizedError):
            av.open(stream.bare_address, options=stream.options, timeout=(8, 5))


@pytest.mark.parametrize("transport", ["tcp", "udp"])
def test_rtsp_that_loses_packets(transport):
    with RtspServer([SMALL], loss=0.05, transports=[transport]) as stream:
        assert set(look(stream, 60)) == {SMALL}


def test_rtsp_changes_its_size_when_told():
    with RtspServer([SMALL, OTHER]) as stream:
        sizes = []
        with av.open(stream.address, options=stream.options, timeout=(8, 5)) as container:
            for number, frame in enumerate(container.decode(video=0)):
                sizes.append((frame.width, frame.height))
                if number in (30, 60):
                    stream.switch()
                if number == 100:
                    break
    assert [size for size, _ in groupby(sizes)] == [SMALL, OTHER, SMALL]


def test_rtsp_changes_its_size_by_itself():
    with RtspServer([SMALL, OTHER], switch_every_s=1) as stream:
        assert set(look(stream, 60)) == {SMALL, OTHER}


@pytest.mark.parametrize(
    "make",
    [
        lambda: HttpStream("ts", [SMALL, OTHER], each_s=1),
        lambda: HttpStream("mjpeg", [SMALL, OTHER], each_s=1),
        lambda: UdpStream([SMALL, OTHER], each_s=1),
        lambda: HttpStream("hls", [SMALL, OTHER], each_s=1),
    ],
    ids=["ts", "mjpeg", "udp", "hls"],
)
def test_others_change_their_size(make):
    with make() as stream:
        assert set(look(stream, 60)) == {SMALL, OTHER}


def test_http_asks_for_a_password():
    with HttpStream("mjpeg", [SMALL], user="viewer", password="s3cret") as stream:
        assert set(look(stream)) == {SMALL}
        with pytest.raises(av.error.HTTPUnauthorizedError):
            av.open(stream.bare_address, timeout=(8, 5))


def test_http_serves_several_viewers():
    with HttpStream("ts", [SMALL]) as stream:
        options = {"timeout": (8, 5)}
        with av.open(stream.address, **options) as one, av.open(stream.address, **options) as two:
            assert next(one.decode(video=0)).width == next(two.decode(video=0)).width == SMALL[0]


def test_udp_that_loses_packets_and_brings_garbage():
    with UdpStream([SMALL], loss=0.05, garbage=0.05, seed=random.Random(1).randrange(1000)) as stream:
        assert set(look(stream, 60)) == {SMALL}


@pytest.mark.parametrize("scheme", ["http", "rtsp"])
@pytest.mark.parametrize("kind", ["noise", "silence", "close"])
def test_garbage_is_no_stream(kind, scheme):
    with Garbage(kind, scheme) as stream:
        begun_s = time.monotonic()
        with pytest.raises((av.error.FFmpegError, ValueError, IndexError)):
            look(stream, timeout_s=2)
        assert time.monotonic() - begun_s < 10
        assert stream.alive


def test_half_a_stream():
    with Garbage("half", good_s=2) as stream:
        look(stream, 40)
        with pytest.raises((av.error.FFmpegError, AssertionError)):
            look(stream, 200, timeout_s=1)


def test_a_camera_that_hangs():
    with RtspServer([SMALL]) as stream:
        with av.open(stream.address, options=stream.options, timeout=(8, 1)) as container:
            frames = container.decode(video=0)
            next(frames)
            stream.freeze()
            with pytest.raises(av.error.FFmpegError):
                for _ in range(100):
                    next(frames)
        stream.thaw()
        assert set(look(stream)) == {SMALL}


def test_a_server_that_cannot_start_says_so():
    with Garbage("silence") as stream:
        other = Garbage("silence", port=stream.port)
        with pytest.raises(RuntimeError, match="Garbage does not serve: (?s:.*)Address already in use"):
            other.restart()
        assert not other.alive


@pytest.mark.skipif(not loopback_devices(), reason="this kernel has no v4l2loopback device")
def test_a_virtual_camera():
    with VirtualCamera(SMALL) as camera, av.open(camera.address, format="v4l2", timeout=(8, 5)) as container:
        assert next(container.decode(video=0)).width == SMALL[0]


def opened() -> list[int]:
    """How many files and threads this process has."""
    return [len(list(Path("/proc/self", kind).iterdir())) for kind in ("fd", "task")]


def serve_once() -> None:
    """In a process of its own: in one that ran other tests, theirs may end meanwhile."""
    before = opened()
    with HttpStream("ts", [SMALL]) as stream:
        look(stream)
    until(lambda: opened() == before)  # the system counts a thread a little longer than Python


def test_nothing_is_left_open():
    """Neither files nor threads of a process, after it served."""
    code = "from tests.live.test_streams import serve_once; serve_once()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT, timeout=300)
