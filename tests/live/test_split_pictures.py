"""A server that repeats the parameter sets within a key frame: its pictures are whole, live and in recordings."""

import signal
import subprocess
import sys
import threading
from itertools import islice

import av
import pytest

from adafocus_edge.live import split_pictures
from adafocus_edge.live.meters import Counters
from adafocus_edge.live.readers import address_pictures
from adafocus_edge.media.sources import Source
from tests.conftest import ROOT
from tests.support.live_parts import until
from tests.support.streams import RtspServer, clips_of
from tests.support.videos import encode

SIZE = (1280, 720)
COUNT = 75


def content(path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in container.decode(video=0)]


@pytest.fixture(scope="module")
def film():
    """The clip that the server repeats. Each of its pictures has several slices, whatever the number of cores."""
    (clip,) = clips_of([SIZE], "h264")
    with av.open(str(clip)) as container:
        first = bytes(next(container.demux(video=0)))
    if sum(bool(unit) and unit[0] & 31 == 5 for unit in first.split(b"\0\0\1")) < 2:
        pytest.skip("the encoder made one slice per picture: this machine has one core")
    return clip


def seen(stream: RtspServer) -> list[bytes]:
    stop = threading.Event()
    pictures = address_pictures(Source("gate", stream.address, live=True), stop, Counters())
    try:
        return [picture.to_rgb().tobytes() for picture in islice(pictures, COUNT)]
    finally:
        stop.set()
        pictures.close()


def test_live_pictures_are_whole(film, monkeypatch):
    whole = set(content(film))
    with RtspServer([SIZE]) as stream:
        assert set(seen(stream)) <= whole
        monkeypatch.setattr(split_pictures, "WATCHED", 0)  # so that nothing is joined
        assert not set(seen(stream)) <= whole


def test_recorded_pictures_are_whole(film, tmp_path):
    whole, recordings = set(content(film)), tmp_path / "recordings"
    with RtspServer([SIZE]) as stream:
        options = ["--record", recordings, "--record-mode", "copy"]
        run = subprocess.Popen(
            [sys.executable, "-m", "adafocus_edge", "classify", stream.address, *options],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            until(lambda: sum(path.stat().st_size for path in recordings.glob("*.mp4")) > 1_500_000)
        finally:
            run.send_signal(signal.SIGINT)
            _, told = run.communicate(timeout=60)
    assert " 0 damaged" in told
    found = [picture for path in sorted(recordings.glob("*.mp4")) for picture in content(path)]
    assert len(found) > 100
    assert set(found) <= whole


def packets(path):
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        yield stream
        yield from container.demux(stream)


def test_packets_that_are_whole_pass_as_they_are(film):
    found = packets(film)
    stream = next(found)
    given = list(found)
    made = list(split_pictures.whole_pictures(iter(given), stream))
    assert [bytes(packet) for packet in made] == [bytes(packet) for packet in given]
    assert all(one is other for one, other in zip(made, given, strict=True))


def test_no_packet_waits_where_no_picture_is_split(film):
    found = packets(film)
    stream = next(found)
    given: list[av.Packet] = []

    def arriving():
        for packet in found:
            given.append(packet)
            yield packet

    waits = [len(given) - number for number, _ in enumerate(split_pictures.whole_pictures(arriving(), stream), 1)]
    assert waits[0] == 1
    assert set(waits[60:]) == {0}


HEVC = {"x265-params": "slices=3:pools=4:frame-threads=1:log-level=none"}


@pytest.mark.parametrize(("codec", "options"), [("libx264", {"slices": "3"}), ("libx265", HEVC)])
def test_slices_of_a_picture_are_joined(codec, options, tmp_path):
    clip = encode(tmp_path / f"clip.h{codec[-3:]}", 20, codec, options, size=(640, 480))
    found = packets(clip)
    stream = next(found)
    whole = [packet for packet in found if packet.size]
    parts = []
    for number, packet in enumerate(whole):
        packet.pts = packet.dts = number
        units = bytes(packet).split(b"\0\0\1")
        for data in (b"\0\0\1".join(units[:-1]), b"\0\0\1" + units[-1]):  # the last slice in a packet of its own
            part = av.Packet(data)
            part.pts, part.dts, part.is_keyframe = number, number, packet.is_keyframe
            part.stream, part.time_base = stream, packet.time_base
            parts.append(part)
    made = list(split_pictures.whole_pictures(iter(parts), stream))
    assert [bytes(packet) for packet in made] == [bytes(packet) for packet in whole]
    assert [packet.pts for packet in made] == list(range(len(whole)))
