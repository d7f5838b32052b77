"""Recordings without decoding: nothing is lost or changed, whatever the stream, the disk and the process do."""

from __future__ import annotations

import hashlib
import json
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from adafocus_edge.errors import UsageError
from adafocus_edge.live.capture import Capture
from adafocus_edge.live.event_store import EventStore
from adafocus_edge.live.messages import Event, LiveFragment, LiveFrame, Notice
from adafocus_edge.live.packet_copy import PacketCopier
from adafocus_edge.live.settings import CaptureOptions
from adafocus_edge.live.sinks import copier as copying
from adafocus_edge.live.sinks import event_clips
from adafocus_edge.live.sinks.copier import CopyRecorder
from adafocus_edge.live.sinks.event_clips import EventClips
from adafocus_edge.media.sources import Source
from adafocus_edge.media.zones import Zones
from tests.conftest import ROOT, edge, one_line_error
from tests.support.live_parts import SPEC, look, until, window
from tests.support.streams import HttpStream, RtspServer, free_port, listens, need

SIZE = (320, 240)
CODECS = {
    "h264 with B-frames": ("mpegts", "-c:v libx264 -preset ultrafast -bf 2 -b_strategy 0 -g 25"),
    "h264 in flv": ("flv", "-c:v libx264 -preset ultrafast -g 25"),
    "hevc with B-frames": ("mpegts", "-c:v libx265 -preset ultrafast -x265-params log-level=none:keyint=25"),
    "mpeg4": ("mpegts", "-c:v mpeg4 -g 25"),
    "vp9": ("matroska", "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -g 25"),
    "mjpeg": ("mpjpeg", "-c:v mjpeg"),
    "a key frame each 6 s": ("mpegts", "-c:v libx264 -preset ultrafast -g 150"),
}
"""What cameras send, over TCP."""


def made(folder: Path, coding: str, container: str, seconds: float = 4, size: tuple[int, int] = SIZE) -> Path:
    """A film of 25 frames per second in which no two frames are alike."""
    need("ffmpeg")
    path = folder / f"film-{size[0]}.{container}"
    source = f"testsrc2=s={size[0]}x{size[1]}:r=25:d={seconds}"
    words = ["-f", "lavfi", "-i", source, *coding.split(), "-pix_fmt", "yuv420p", "-f", container, str(path)]
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", "-y", *words], check=True, timeout=60)
    return path


@contextmanager
def served(film: Path, container: str, *more: str) -> Iterator[str]:
    """The address at which FFmpeg sends a film once, at its own pace, to the first who asks."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    words = ["-re", "-i", film, "-c", "copy", *more, "-f", container, f"{address}?listen=1"]
    with subprocess.Popen(["ffmpeg", "-nostdin", "-v", "error", *words]) as process:
        try:
            until(lambda: listens(port))
            yield address
        finally:
            process.kill()


@contextmanager
def captured(
    address: str,
    *sinks: Any,
    on_frame: Callable[[LiveFrame], None] = lambda _: None,
    on_fragment: Callable[[LiveFragment], None] = lambda _: None,
    **options: Any,
) -> Iterator[Capture]:
    """A source that is read into sinks, and no longer once the block ends."""

    def publish(message: Any) -> None:
        for sink in sinks:
            sink.enqueue(message)

    def frame(message: LiveFrame) -> None:
        publish(message)
        on_frame(message)

    def fragment(message: LiveFragment) -> None:
        publish(message)
        on_fragment(message)

    source = Source("yard", address, live="://" in address)
    options = {"retries": 30, "patient": True, **options}
    capture = Capture(
        source, SPEC, CaptureOptions(copy=True, **options), threading.Condition(), on_frame=frame, on_notice=publish,
        on_fragment=fragment,
    )  # fmt: skip
    capture.start()
    try:
        yield capture
    finally:
        capture.close(20)


def has_ended(capture: Capture) -> Callable[[], bool]:
    return lambda: capture.state in ("lost", "ended", "failed") and capture.counters.frames > 0


def frame_hashes(path: Path) -> list[str]:
    """A hash of every decoded frame, by the system's FFmpeg, which must find nothing wrong."""
    words = ["-i", path, "-map", "0:v", "-vsync", "passthrough", "-enc_time_base", "1:90000", "-f", "framemd5", "-"]
    done = subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", *words], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stderr == ""
    return [line.split(",")[-1].strip() for line in done.stdout.splitlines() if not line.startswith("#")]


def probed(path: Path) -> dict[str, str]:
    """What ffprobe says of the video."""
    words = ["-count_packets", "-show_entries", "stream", "-of", "json", path]
    done = subprocess.run(["ffprobe", "-v", "error", *words], capture_output=True, text=True, check=True, timeout=60)
    (stream,) = json.loads(done.stdout)["streams"]
    return dict(stream)


def recorded(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.mp4"), key=lambda path: (path.stat().st_mtime_ns, path.name))


@pytest.fixture
def reports() -> list[str]:
    return []


@pytest.fixture
def recorder(tmp_path: Path, reports: list[str]) -> Iterator[Callable[..., CopyRecorder]]:
    made: list[CopyRecorder] = []

    def make(folder: Path = tmp_path / "video", **options: Any) -> CopyRecorder:
        made.append(CopyRecorder(folder, SPEC, reports.append, **options))
        return made[-1]

    yield make
    for one in made:
        one.close(60)


# -- nothing is lost ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", CODECS)
def test_every_frame_that_a_camera_sends_is_recorded_as_it_is(
    kind: str, recorder: Callable[..., CopyRecorder], reports: list[str], tmp_path: Path
) -> None:
    container, coding = CODECS[kind]
    film = made(tmp_path, coding, "matroska" if kind == "mjpeg" else container)
    sink = recorder()
    with served(film, container) as address, captured(address, sink, retries=0) as capture:
        until(has_ended(capture))
    sink.close(20)
    assert (reports, sink.handled, sink.dropped, sink.failed) == ([], 100, 0, 0)
    (path,) = recorded(tmp_path / "video")
    assert frame_hashes(path) == frame_hashes(film)
    stream = probed(path)
    assert (stream["width"], stream["height"], stream["nb_read_packets"]) == (*SIZE, "100")
    # MJPEG has no times of its own: those of its arrival.
    assert float(stream["duration"]) == pytest.approx(4.0, abs=0.5 if kind == "mjpeg" else 0.001)
    assert float(stream["start_time"]) == pytest.approx(0.0, abs=0.121)


def test_a_file_that_is_played_is_copied_too(recorder: Callable[..., CopyRecorder], tmp_path: Path) -> None:
    film = made(tmp_path, CODECS["h264 with B-frames"][1], "mp4", seconds=2)
    sink = recorder()
    sink.patient_until = threading.Event()
    with captured(str(film), sink) as capture:
        until(has_ended(capture))
    sink.close(20)
    (path,) = recorded(tmp_path / "video")
    assert frame_hashes(path) == frame_hashes(film)


def test_files_begin_at_key_frames_and_join_to_the_whole(recorder: Callable[..., CopyRecorder], tmp_path: Path) -> None:
    film = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts", seconds=6)
    sink = recorder(rotate_s=2.0, keep=3)
    with served(film, "mpegts") as address, captured(address, sink, retries=0) as capture:
        until(has_ended(capture))
    sink.close(20)
    files = recorded(tmp_path / "video")
    assert [probed(path)["nb_read_packets"] for path in files] == ["50", "50", "50"]
    assert [one for path in files for one in frame_hashes(path)] == frame_hashes(film)
    for path in files:
        assert float(probed(path)["start_time"]) == pytest.approx(0.08, abs=0.001)
    assert {path.suffix for path in (tmp_path / "video").iterdir()} == {".mp4", ".vtt", ".jsonl"}
    # One more makes the oldest too many, with what lies beside it.
    with served(film, "mpegts", "-t", "1") as address, captured(address, recorder(keep=3), retries=0) as capture:
        until(has_ended(capture))
    until(lambda: not any(files[0].with_suffix(ending).exists() for ending in (".mp4", ".vtt", ".jsonl")))
    assert files[1].with_suffix(".jsonl").exists()


def test_a_stream_that_changes_its_size_goes_on_in_a_new_file(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    other = (256, 144)
    sink = recorder()
    with RtspServer([SIZE, other]) as server, captured(server.address, sink) as capture:
        until(lambda: capture.counters.frames > 20)
        server.switch()
        until(lambda: capture.counters.width == other[0])
        until(lambda: capture.counters.frames > 60)
    sink.close(20)
    first, second = recorded(tmp_path / "video")
    assert (probed(first)["width"], probed(second)["width"]) == (SIZE[0], other[0])
    assert len(frame_hashes(first)) + len(frame_hashes(second)) == sink.handled == capture.counters.frames


def shown_size(head: bytes) -> tuple[int, int]:
    """Width and height of the only track, of an MP4's first boxes (ISO/IEC 14496-12, 8.3.2)."""
    place = head.index(b"tkhd") - 4
    (length,) = struct.unpack(">I", head[place : place + 4])
    width, height = struct.unpack(">II", head[place + length - 8 : place + length])
    return width >> 16, height >> 16


@pytest.mark.parametrize("coding", ["libx264", "libx265 -x265-params log-level=none", "mpeg4"])
def test_a_file_whose_pictures_change_their_size_has_recordings_of_both_sizes(
    coding: str, recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    sizes = (SIZE, (640, 360))
    films = [made(tmp_path, f"-c:v {coding} -g 25", "mpegts", seconds=1, size=size) for size in sizes]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(film.read_bytes() for film in films))
    fragments: list[LiveFragment] = []
    with captured(str(joined), recorder(), retries=0, on_fragment=fragments.append) as capture:
        until(has_ended(capture))
    videos = list({id(one.video): one.video for one in fragments}.values())
    assert [(video.width, video.height) for video in videos] == list(sizes)
    assert [shown_size(video.head) for video in videos] == list(sizes)


def test_a_camera_that_is_joined_between_key_frames_is_recorded_from_the_next_one(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    """What its pictures are is known only then; a packet arrives before it is decoded."""
    film = made(tmp_path, "-c:v libx264 -preset ultrafast -g 75", "mpegts", seconds=8)
    whole = film.read_bytes()
    part = whole[len(whole) // 8 // 188 * 188 :]  # the key frame of second 0 is gone
    port, over = free_port(), threading.Event()

    def send() -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for place in range(0, len(part), 1316):
                sender.sendto(part[place : place + 1316], ("127.0.0.1", port))
                if over.wait(7 * 1316 / len(part)):
                    return

    sink = recorder()
    with captured(f"udp://127.0.0.1:{port}", sink, retries=0) as capture:
        thread = threading.Thread(target=send)
        thread.start()
        until(lambda: capture.counters.frames > 100)
        over.set()
        thread.join()
    sink.close(20)
    (path,) = recorded(tmp_path / "video")
    sent = frame_hashes(film)
    kept = frame_hashes(path)
    assert kept == sent[75 : 75 + len(kept)]
    assert len(kept) > 50


def test_the_shape_of_pixels_that_only_the_container_knows_is_kept(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    film = made(tmp_path, "-c:v libvpx-vp9 -deadline realtime -cpu-used 8 -vf setsar=2/1", "webm", seconds=1)
    with captured(str(film), recorder(), retries=0) as capture:
        until(has_ended(capture))
    capture.close(20)
    until(lambda: bool(recorded(tmp_path / "video")))
    (path,) = recorded(tmp_path / "video")
    assert probed(film)["sample_aspect_ratio"] == probed(path)["sample_aspect_ratio"] == "2:1"


def test_a_stream_that_was_lost_goes_on_in_a_new_file(recorder: Callable[..., CopyRecorder], tmp_path: Path) -> None:
    sink, fragments = recorder(), []
    with (
        HttpStream("ts", [SIZE]) as server,
        captured(server.address, sink, on_fragment=fragments.append) as capture,
    ):
        until(lambda: capture.counters.frames > 20)
        server.restart()
        until(lambda: capture.counters.connections == 2)
        frames = capture.counters.frames
        until(lambda: capture.counters.frames > frames + 20)
    sink.close(20)
    files = recorded(tmp_path / "video")
    assert len(files) == 2
    sent = [sum(len(one.shown) for one in fragments if one.video.opening == opening) for opening in (1, 2)]
    assert [int(probed(path)["nb_read_packets"]) for path in files] == sent
    assert sum(sent) >= capture.counters.frames
    assert len(frame_hashes(files[1])) == sent[1]  # of the last frame before the loss, a part may have been sent


def test_a_source_that_is_retired_publishes_what_it_has_and_then_nothing(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    sink, after = recorder(), []
    with HttpStream("ts", [SIZE]) as server, captured(server.address, sink) as capture:
        until(lambda: capture.counters.frames > 40)
        ended = Notice("yard", "ended", "yard: changed", time.time())
        capture.retire(ended)
        sink.enqueue(ended)
        frames = capture.counters.frames
        capture._on_fragment, capture._on_notice = after.append, after.append
        server.kill()  # it would be lost
        capture.close(20)
    sink.close(20)
    assert after == []
    assert capture.last_notice is ended
    (path,) = recorded(tmp_path / "video")
    assert int(probed(path)["nb_read_packets"]) == sink.handled - 1 >= frames, "and one notice"


def test_packets_of_a_source_with_masks_are_not_copied_even_if_asked(tmp_path: Path) -> None:
    film = made(tmp_path, CODECS["h264 in flv"][1], "mpegts", seconds=1)
    source = Source("yard", str(film), zones=Zones(masks=(((0.0, 0.0), (1.0, 0.0), (1.0, 1.0)),)))
    fragments, notices, packets = [], [], []
    capture = Capture(
        source, SPEC, CaptureOptions(copy=True), threading.Condition(), on_fragment=fragments.append,
        on_frame=lambda frame: packets.append(frame.packet), on_notice=lambda notice: notices.append(notice.text),
    )  # fmt: skip
    capture.start()
    until(has_ended(capture))
    capture.close(20)
    assert (fragments, packets) == ([], [None] * 25)
    assert notices[0] == (
        "yard: its packets cannot be copied (its masks cannot be applied to them): no recording; clips are encoded"
    )


def test_what_mp4_cannot_hold_is_noted_once(
    recorder: Callable[..., CopyRecorder], reports: list[str], tmp_path: Path
) -> None:
    film = made(tmp_path, "-c:v libvpx -deadline realtime -cpu-used 8", "matroska", seconds=2)
    sink, notices = recorder(), []
    with served(film, "matroska") as address, captured(address, sink, retries=0) as capture:
        capture._on_notice = lambda notice: notices.append(notice.text)
        until(has_ended(capture))
    assert capture.counters.frames == 50, "it is watched all the same"
    assert [text for text in notices if "copied" in text] == [
        "yard: its packets cannot be copied (an MP4 file cannot hold vp8 video): no recording; clips are encoded"
    ]
    assert recorded(tmp_path / "video") == []


def test_a_machine_that_is_too_slow_to_decode_records_everything(
    recorder: Callable[..., CopyRecorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("adafocus_edge.live.packets_ahead.MAX_AHEAD_S", 1.0)
    film = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts", seconds=8)
    sink, notices = recorder(), []
    with (
        served(film, "mpegts") as address,
        captured(address, sink, on_frame=lambda _: time.sleep(0.2), retries=0) as capture,
    ):
        capture._on_notice = lambda notice: notices.append(notice.text)
        until(has_ended(capture), 60)
    sink.close(20)
    (path,) = recorded(tmp_path / "video")
    assert frame_hashes(path) == frame_hashes(film)
    assert capture.counters.frames < 100
    assert capture.counters.damaged > 50
    assert [text for text in notices if "too slow" in text] == [
        "yard: decoding is too slow here: pictures are skipped, and count as damaged"
    ]


def test_a_key_frame_that_is_long_in_coming_is_no_reason_to_open_a_stream_again(
    recorder: Callable[..., CopyRecorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While pictures are skipped for a slow decoder, sound goes on."""
    monkeypatch.setattr("adafocus_edge.live.packets_ahead.MAX_AHEAD_S", 0.5)
    monkeypatch.setattr("adafocus_edge.live.readers.SILENCE_S", 2.0)
    film = tmp_path / "film.ts"
    words = (
        "-f lavfi -i testsrc2=s=320x240:r=25:d=9 -f lavfi -i sine=d=9 -c:v libx264 -preset ultrafast -g 200 -c:a aac"
    )
    subprocess.run(["ffmpeg", "-nostdin", "-v", "error", *words.split(), film], check=True, timeout=60)
    sink = recorder()

    def frame(message: LiveFrame) -> None:
        if message.index < 8:
            time.sleep(0.3)

    with served(film, "mpegts") as address, captured(address, sink, on_frame=frame, retries=0) as capture:
        until(has_ended(capture), 60)
        assert "no picture" not in capture.text
    sink.close(20)
    assert capture.counters.damaged > 100, "pictures were skipped for longer than it may be silent"
    (path,) = recorded(tmp_path / "video")
    assert probed(path)["nb_read_packets"] == "225"


def test_packets_whose_time_stands_still_do_not_pile_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adafocus_edge.live.packet_copy.MAX_FRAGMENT_BYTES", 100_000)
    film = made(tmp_path, "-c:v libx264 -preset ultrafast -g 1000", "mpegts", seconds=8)
    fragments: list[LiveFragment] = []
    copier = PacketCopier("yard", 1, fragments.append, print, for_clips=True)
    with av.open(str(film)) as container:
        for packet in container.demux(video=0):
            if packet.size:
                packet.pts = packet.dts = 0
                copier.add(packet, container.streams.video[0])
    copier.close()
    sizes = [len(fragment.data) for fragment in fragments]
    assert max(sizes) < 150_000 < sum(sizes)
    assert sum(len(fragment.shown) for fragment in fragments) == 200
    whole = tmp_path / "whole.mp4"
    whole.write_bytes(fragments[0].video.head + b"".join(fragment.data for fragment in fragments))
    assert probed(whole)["nb_read_packets"] == "200"


# -- results beside it -------------------------------------------------------------------------------------------------


def test_results_lie_beside_the_frames_that_they_were_made_of(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    film = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts")
    sink, glimpsed = recorder(rotate_s=2.0), []

    def frame(message: LiveFrame) -> None:
        if message.index % 10 == 5:
            glimpsed.append(hashlib.md5(message.to_rgb()).hexdigest())
            result = look(message, message.index, label="x <b> & y")
            threading.Timer(0.3, sink.enqueue, [result]).start()  # the model takes its time

    with served(film, "mpegts") as address, captured(address, sink, on_frame=frame, retries=0) as capture:
        until(has_ended(capture))
        time.sleep(0.5)
        sink.enqueue(window("yard"))
        until(lambda: not sink.waiting)
    sink.close(20)
    files = recorded(tmp_path / "video")
    assert len(files) == 2
    found, cues = [], 0
    for path in files:
        head, *lines = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
        assert (head["recording"], head["source"], head["codec"]) == (path.name, "yard", "h264")
        assert (head["width"], head["height"], head["frame_size"], head["fit"]) == (*SIZE, SPEC.frame_size, SPEC.fit)
        with av.open(str(path)) as container:
            frames = {round(frame.time, 3): frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)}
        for line in lines:
            if line.get("provisional"):
                assert line["patch"] == [64, 64, 96]
                found.append(hashlib.md5(frames[round(line["media_s"], 3)]).hexdigest())
        subtitles = path.with_suffix(".vtt")
        assert "x &lt;b&gt; &amp; y 75%" in subtitles.read_text()
        shown = json.loads(
            subprocess.run(
                ["ffprobe", "-v", "error", "-show_packets", "-of", "json", subtitles],
                capture_output=True,
                check=True,
            ).stdout
        )["packets"]
        starts = [float(cue["pts_time"]) for cue in shown]
        assert starts == [line["media_s"] for line in lines if line.get("provisional")]
        assert all(0 < float(cue["duration_time"]) <= 2 for cue in shown)
        cues += len(shown)
    assert found == glimpsed
    assert cues == len(glimpsed) == 10
    assert [line["label"] for line in lines if "steps" in line] == ["juggling"], "the window is in the last file"


@pytest.mark.parametrize("results_first", [True, False])
def test_results_are_recorded_however_early_or_late_they_are(
    results_first: bool, recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    """Before the first fragment, or after all of them and after the source has ended; each frame is a fragment."""
    film, frames, fragments = made(tmp_path, "-c:v libx264 -g 1", "mpegts"), [], []
    with (
        served(film, "mpegts") as address,
        captured(address, retries=0, on_frame=frames.append, on_fragment=fragments.append) as capture,
    ):
        until(has_ended(capture))
    assert len(fragments) == len(frames) == 100
    sink = recorder()
    results = [look(frame, frame.index) for frame in frames[::10]]
    ended = Notice("yard", "ended", "yard: has ended", time.time())
    for message in [*results, *fragments, ended] if results_first else [*fragments, ended, *results]:
        sink.enqueue(message)
    sink.close(20)
    (path,) = recorded(tmp_path / "video")
    _, *lines = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
    assert [line["media_s"] for line in lines] == pytest.approx([number * 0.4 for number in range(10)], abs=1e-3)
    assert sink.dropped == 0


def test_what_is_not_copied_has_no_place_in_an_older_recording(
    recorder: Callable[..., CopyRecorder], tmp_path: Path
) -> None:
    """A source that takes the name of another, and whose packets cannot be copied."""
    film, frames, fragments = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts", seconds=1), [], []
    with (
        served(film, "mpegts") as address,
        captured(address, retries=0, on_frame=frames.append, on_fragment=fragments.append) as capture,
    ):
        until(has_ended(capture))
    sink = recorder()
    for message in [*fragments, look(frames[3]), window("yard"), Notice("yard", "ended", "yard: changed", time.time())]:
        sink.enqueue(message)
    for number in range(copying.RESULTS_WAITING + 50):
        sink.enqueue(look(replace(frames[5], packet=None), number))
        sink.enqueue(window("yard"))
        sink.enqueue(window("never copied"))
        if number % 50 == 0:
            until(lambda: not sink.waiting)
    for number in range(20):
        for message in (*(replace(one, source=f"file {number}") for one in fragments),
                        Notice(f"file {number}", "ended", "has ended", time.time())):  # fmt: skip
            sink.enqueue(message)
        until(lambda: not sink.waiting)
    sink.close(20)
    (path,) = (path for path in recorded(tmp_path / "video") if path.name.startswith("yard"))
    _, *lines = map(json.loads, path.with_suffix(".jsonl").read_text().splitlines())
    assert ["provisional" in line for line in lines] == [True, False]
    assert len(sink._series) <= copying.ENDED_SERIES + 1


# -- trouble -----------------------------------------------------------------------------------------------------------


def fragments_of(film: Path, container: str) -> list[LiveFragment]:
    """The fragments of a film, as a capture publishes them."""
    found: list[LiveFragment] = []
    with served(film, container) as address, captured(address, retries=0, on_fragment=found.append) as capture:
        until(has_ended(capture))
    return found


def test_a_slow_disk_drops_whole_pieces_and_holds_nobody_up(
    recorder: Callable[..., CopyRecorder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    film = made(tmp_path, "-c:v libx264 -preset ultrafast -bf 2 -g 75", "mpegts", seconds=9)
    fragments = fragments_of(film, "mpegts")
    assert [one.is_key for one in fragments] == [True, False] * 3, "each 3 s have two fragments"
    go = threading.Event()
    sink = recorder()
    sync = copying.Output.sync
    monkeypatch.setattr(copying.Output, "sync", lambda output: (go.wait(30), sync(output)))
    monkeypatch.setattr("adafocus_edge.live.listener.MAX_WAITING_BYTES", len(fragments[1].data) + 1)
    began_s = time.monotonic()
    sink.enqueue(fragments[0])
    until(lambda: sink.waiting == 0)  # it is being written
    for fragment in fragments[1:5]:
        sink.enqueue(fragment)
    assert time.monotonic() - began_s < 20
    go.set()
    until(lambda: sink.waiting == 0)
    for fragment in fragments[4:]:
        sink.enqueue(fragment)
        until(lambda: sink.waiting == 0)
    sink.close(20)
    kept = [fragments[0], fragments[1], fragments[4], fragments[5]]
    assert sink.handled == sum(len(one.shown) for one in kept)
    assert sink.dropped == sink.offered - sink.handled > 0
    (path,) = recorded(tmp_path / "video")
    sent = frame_hashes(film)
    assert frame_hashes(path) == sent[:75] + sent[150:]


def test_a_full_disk_is_reported_once_and_recording_goes_on_later(
    small_disk: Path, recorder: Callable[..., CopyRecorder], reports: list[str], tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(copying, "RETRY_S", 0.05)
    film = made(tmp_path, "-c:v libx264 -preset ultrafast -g 25 -b:v 1500k", "mpegts", seconds=6)
    fragments = fragments_of(film, "mpegts")
    assert sum(len(one.data) for one in fragments) > 700_000
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(700_000))
    sink = recorder(small_disk / "video")

    def enqueue(some: list[LiveFragment]) -> None:
        for fragment in some:
            sink.enqueue(fragment)
            until(lambda: not sink.waiting)
            time.sleep(0.1)

    enqueue(fragments[:4])
    assert len(reports) == 1
    assert "recordings cannot be written (No space left on device): retrying every 0.05 s" in reports[0]
    assert sink.trouble == "cannot be written"
    before = recorded(small_disk / "video")
    assert len(before) == 1, "no empty files pile up"
    whole = frame_hashes(before[0])
    assert whole == frame_hashes(film)[: len(whole)], "what is there can be played"
    dropped = sink.dropped
    assert dropped
    ballast.unlink()
    time.sleep(0.1)
    enqueue(fragments[4:])
    sink.close(20)
    assert sink.dropped == dropped
    after = recorded(small_disk / "video")
    assert len(after) == 2
    assert frame_hashes(after[1]) == frame_hashes(film)[100:]


def test_kill_9_costs_at_most_the_last_fragment(tmp_path: Path) -> None:
    folder = tmp_path / "video"
    with HttpStream("ts", [SIZE]) as server:
        command = [
            sys.executable, "-m", "adafocus_edge", "classify", f"yard={server.address}", "--glimpse-fps", "4",
            "--record", folder, "--record-mode", "copy", "--json", "-q",
        ]  # fmt: skip
        run = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, cwd=ROOT)
        try:
            until(lambda: bool(recorded(folder)), 60)
            (path,) = recorded(folder)
            began_s = time.monotonic()
            until(lambda: len(frame_hashes(path)) > 150, 60)
            took_s = time.monotonic() - began_s
        finally:
            run.send_signal(signal.SIGKILL)
            run.wait()
    assert took_s > 2
    frames = frame_hashes(path)
    assert len(frames) > 150
    _, *lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert len(lines) > 10
    assert max(line["media_s"] for line in lines) < len(frames) / 30
    assert path.with_suffix(".vtt").read_text().startswith("WEBVTT\n\n00:00:0")


# -- events ------------------------------------------------------------------------------------------------------------


def event(kind: str, frame: LiveFrame, start_s: float, end_s: float | None = None) -> Event:
    return Event("yard", kind, 1, "fight", start_s, end_s, 0.9, frame.wall_s, frame, (64, 64, 96), "key")  # type: ignore[arg-type]


@pytest.mark.parametrize("behind_s", [0.0, 0.055], ids=["in time", "the decoder is behind"])
def test_the_clip_of_an_event_is_cut_from_the_camera_s_own_packets(
    behind_s: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("nothing is encoded")

    monkeypatch.setattr(event_clips, "RollingVideo", never)
    film = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts", seconds=12)
    store, reports = EventStore(tmp_path / "events"), []
    sink = EventClips(store, SPEC, reports.append, window_s=1.0, pre_s=2.0, post_s=1.0, copy=True)

    def frame(message: LiveFrame) -> None:
        if message.index == 150:
            sink.enqueue(event("start", message, message.time_s - 0.5))
        if message.index == 200:
            sink.enqueue(event("end", message, 5.5, message.time_s))
        time.sleep(behind_s)  # each frame more

    with served(film, "mpegts") as address, captured(address, sink, on_frame=frame, retries=0) as capture:
        until(has_ended(capture))
    sink.close(20)
    stored = store.get("key")
    store.close()
    assert (reports, sink.dropped, sink.failed) == ([], 0, 0)
    assert stored is not None
    assert stored.clip is not None
    clip = store.path(stored.clip)
    sent, kept = frame_hashes(film), frame_hashes(clip)
    first = sent.index(kept[0])
    assert kept == sent[first : first + len(kept)]
    # From 1 + 2 s before the event, at the key frame before, to 1 s after it, to the end of its fragment.
    assert 137 - 75 - 30 <= first <= (141 if behind_s else 137) - 75  # half a second has fewer frames if it is behind
    assert 200 + 25 <= first + len(kept) <= 200 + 25 + 60
    assert stored.clip_s == pytest.approx(float(probed(clip)["duration"]), abs=0.06)
    assert stored.clip_from is not None
    if not behind_s:
        assert stored.started - stored.clip_from == pytest.approx(5.5 - first / 25, abs=1.2)
    assert stored.bytes == clip.stat().st_size + store.path(f"{stored.key}.jpg").stat().st_size


def test_an_event_before_the_first_fragment_has_a_clip_too(tmp_path: Path) -> None:
    film = made(tmp_path, CODECS["a key frame each 6 s"][1], "mpegts", seconds=4)
    store, reports = EventStore(tmp_path / "events"), []
    sink = EventClips(store, SPEC, reports.append, window_s=1.0, copy=True)

    def frame(message: LiveFrame) -> None:
        if message.index == 3:
            sink.enqueue(event("start", message, 0.0))
            until(lambda: store.get("key") is not None)
            assert store.get("key").clip is None  # type: ignore[union-attr]

    with served(film, "mpegts") as address, captured(address, sink, on_frame=frame, retries=0) as capture:
        until(has_ended(capture))
    sink.close(20)
    stored = store.get("key")
    store.close()
    assert stored is not None
    assert stored.clip == "key.mp4"
    assert frame_hashes(store.path("key.mp4")) == frame_hashes(film)
    assert stored.clip_s == pytest.approx(4, abs=0.1)
    assert stored.bytes == sum(store.path(f"key.{ending}").stat().st_size for ending in ("mp4", "jpg"))
    assert reports == []


@pytest.mark.parametrize("ends", [True, False])
def test_an_event_whose_video_has_ended_takes_none_of_the_next_one(ends: bool, tmp_path: Path) -> None:
    """Its last glimpses are seen when the source is lost already."""
    film, frames, fragments = made(tmp_path, CODECS["h264 with B-frames"][1], "mpegts", seconds=2), [], []
    with (
        served(film, "mpegts") as address,
        captured(address, retries=0, on_frame=frames.append, on_fragment=fragments.append) as capture,
    ):
        until(has_ended(capture))
    store, reports = EventStore(tmp_path / "events"), []
    sink = EventClips(store, SPEC, reports.append, window_s=1.0, copy=True)
    lost = Notice("yard", "lost", "yard: no answer", time.time())
    late = event("start", frames[9], 0.2)
    over = [event("end", frames[9], 0.2, 0.3)] if ends else []
    for message in [frames[9], *fragments, lost, late, *over, *fragments]:
        sink.enqueue(message)
        until(lambda: not sink.waiting)
    sink.close(20)
    stored = store.get("key")
    store.close()
    assert stored is not None
    assert (stored.clip, stored.clip_s) == (None, None)
    assert sorted(path.suffix for path in (tmp_path / "events").glob("key.*")) == [".jpg"]
    assert reports == []


def test_what_browsers_do_not_play_is_encoded_for_events(tmp_path: Path) -> None:
    film = made(tmp_path, CODECS["mpeg4"][1], "mpegts")
    store = EventStore(tmp_path / "events")
    sink = EventClips(store, SPEC, print, window_s=1.0, copy=True, waiting=1000)

    def frame(message: LiveFrame) -> None:
        if message.index == 60:
            sink.enqueue(event("start", message, message.time_s))

    with served(film, "mpegts") as address, captured(address, sink, on_frame=frame, retries=0) as capture:
        until(has_ended(capture))
    sink.close(60)
    store.close()
    assert probed(store.path("key.mp4"))["codec_name"] in ("h264", "mpeg4")
    assert int(probed(store.path("key.mp4"))["nb_read_packets"]) <= 42, "ten frames per second"


# -- the command -------------------------------------------------------------------------------------------------------


def test_a_live_run_records_copies_and_clips_of_one_camera(tmp_path: Path) -> None:
    fight = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
    with HttpStream("ts", [SIZE], video=fight) as server:
        done = edge(
            "classify", f"yard={server.address}", "--duration", 12, "--glimpse-fps", 8, "--json", "-q",
            "--event", "fight=0.3", "--events", tmp_path / "events", "--record", tmp_path / "video",
            "--record-mode", "copy", "--rotate-minutes", 0.05,
        )  # fmt: skip
    assert done.returncode == 0, done.stderr
    files = recorded(tmp_path / "video")
    assert len(files) >= 3
    frames = [one for path in files for one in frame_hashes(path)]
    store = EventStore(tmp_path / "events")
    (clip,) = (tmp_path / "events").glob("*.mp4")
    store.close()
    kept = frame_hashes(clip)
    joined = "".join(frames)
    assert "".join(kept) in joined, "the clip is a piece of the recordings"
    records = [json.loads(line) for path in files for line in path.with_suffix(".jsonl").read_text().splitlines()]
    printed = [json.loads(line) for line in done.stdout.splitlines()]
    assert {record["key"] for record in records if "event" in record} == {
        entry["key"] for entry in printed if "event" in entry
    }
    assert np.isclose(len(frames) / 30, 12, atol=3)


def test_what_cannot_be_recorded_as_asked_is_refused(tmp_path: Path, recorder: Callable[..., CopyRecorder]) -> None:
    frames = tmp_path / "frames"
    frames.mkdir()
    clip = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
    copy = ("--record", tmp_path / "video", "--record-mode", "copy", "-q")
    one_line_error(edge("classify", clip, "--realtime", "--record", "copy", "-q", cwd=tmp_path), 2,
                   "--record copy: is read as a folder: give --record DIR --record-mode copy")  # fmt: skip
    one_line_error(edge("classify", clip, "--realtime", "--record-mode", "copy", "-q"), 2,
                   "--record-mode copy: needs --record")  # fmt: skip
    one_line_error(edge("classify", "0", *copy), 2, "camera 0: --record-mode copy needs packets")
    one_line_error(edge("classify", frames, clip, "--realtime", *copy), 2, "but this is a folder of frames")
    one_line_error(edge("classify", clip, "--realtime", "--events-video", "copy", "-q"), 2,
                   "--events-video: needs --events")  # fmt: skip
    assert not (tmp_path / "copy").exists()
    for wrong in ({"rotate_s": 0.0}, {"rotate_mb": -1.0}, {"keep": 0}):
        with pytest.raises(UsageError):
            recorder(**wrong)
