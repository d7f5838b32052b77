"""Of several video tracks, the one that FFmpeg takes is read, never a cover; another can be asked for."""

from __future__ import annotations

import functools
import http.server
import re
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import pytest

from adafocus_edge.errors import SourceError
from adafocus_edge.live.meters import Counters
from adafocus_edge.live.readers import address_pictures
from adafocus_edge.media.sources import Source
from adafocus_edge.media.video_file import VideoFile
from tests.conftest import edge
from tests.support.streams import need
from tests.support.videos import ffmpeg, ffmpeg_frames, ffmpeg_size

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL, LARGE = (160, 90), (640, 360)


@pytest.fixture(scope="module")
def preview(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transport stream with a camera's preview as its first track, of another length than the main picture."""
    need("ffmpeg")
    path = tmp_path_factory.mktemp("tracks") / "preview.ts"
    inputs = []
    for (width, height), rate in ((SMALL, 10), (LARGE, 25)):
        inputs += ["-f", "lavfi", "-i", f"testsrc2=size={width}x{height}:rate={rate}:duration=2"]
    ffmpeg(*inputs, "-map", 0, "-map", 1, "-c:v", "libx264", "-preset", "ultrafast", path)
    return path


@pytest.fixture(scope="module")
def cover(preview: Path) -> Path:
    path = preview.with_name("cover.jpg")
    ffmpeg("-f", "lavfi", "-i", "color=red:size=1280x720:duration=1:rate=1", "-frames:v", 1, path)
    return path


def without_first(path: Path) -> Path:
    """Drop all packets of the first track (PID 256), which the tables go on naming."""
    content = path.read_bytes()
    packets = [content[at : at + 188] for at in range(0, len(content), 188)]
    empty = path.with_name("empty.ts")
    empty.write_bytes(b"".join(p for p in packets if (p[1] & 31) << 8 | p[2] != 256))
    return empty


KINDS = {
    "preview.mkv": ["-map", "0", "-disposition:v", "0"],
    "preview.mp4": ["-map", "0", "-disposition:v", "0"],
    "default-first.mp4": ["-map", "0", "-disposition:v:0", "default", "-disposition:v:1", "0"],
    "default-second.mp4": ["-map", "0", "-disposition:v:0", "0", "-disposition:v:1", "default"],
    "default-first.mkv": ["-map", "0", "-disposition:v:0", "default", "-disposition:v:1", "0"],
}


@pytest.mark.parametrize("kind", [*KINDS, "preview.ts", "empty.ts", "cover.mp4"])
def test_the_track_is_the_one_that_ffmpeg_takes(kind: str, preview: Path, cover: Path) -> None:
    path = preview.with_name(kind)
    if kind == "empty.ts":
        path = without_first(preview)
    elif kind == "cover.mp4":
        ffmpeg(
            "-i", cover, "-i", preview, "-map", 0, "-map", "1:1", "-c", "copy", "-disposition:v:0", "attached_pic", path
        )
    elif kind != "preview.ts":
        ffmpeg("-i", preview, *KINDS[kind], "-c", "copy", path)
    video = VideoFile(str(path))
    frames = dict(video.select(range(video.frame_count), lambda rgb: rgb))
    expected = ffmpeg_size(path)
    assert {(rgb.shape[1], rgb.shape[0]) for rgb in frames.values()} == {expected}
    assert len(frames) == len(ffmpeg_frames(path, size=expected))
    several = kind not in ("empty.ts", "cover.mp4")
    assert bool(video.track_note) == several
    if several:
        assert f"({expected[0]} x {expected[1]})" in video.track_note.partition("ignoring")[0]


def test_another_track_is_taken_if_asked_for(preview: Path, cover: Path) -> None:
    for track, size in enumerate((SMALL, LARGE)):
        video = VideoFile(str(preview), track)
        found = [rgb.shape[1::-1] for _, rgb in video.frames()]
        assert found == [size] * len(ffmpeg_frames(preview, "-map", f"0:v:{track}", size=size))
    with pytest.raises(SourceError, match="no video track 2: it has 2"):
        VideoFile(str(preview), 2)
    covered = preview.with_name("covered.mp4")
    ffmpeg(
        "-i", cover, "-i", preview, "-map", 0, "-map", "1:1", "-c", "copy", "-disposition:v:0", "attached_pic", covered
    )
    with pytest.raises(SourceError, match="cover picture"):
        VideoFile(str(covered), 1)  # FFmpeg lists an MP4's cover last


def test_classify_says_which_track_it_took(preview: Path) -> None:
    plain = edge("classify", preview, "--json")
    assert plain.returncode == 0, plain.stderr
    assert "using 1 (640 x 360), ignoring 0 (160 x 90)" in plain.stderr
    asked = edge("classify", preview, "--json", "--video-track", 0)
    assert "using 0 (160 x 90)" in asked.stderr
    assert asked.stdout != plain.stdout
    wrong = edge("classify", preview, "--json", "--video-track", 7)
    assert wrong.returncode == 1
    assert "no video track 7" in wrong.stderr
    live = edge("classify", preview, "--json", "--provisional")
    assert "using 1 (640 x 360)" in live.stderr
    folder = edge("classify", "tests/golden/actnet96", "--video-track", 1)
    assert folder.returncode == 1
    assert "has no video tracks" in folder.stderr


@contextmanager
def live_hls(folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve a folder; its playlists grow with each request. Give its address and the list of paths asked for."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            asked.append(self.path)

        def do_GET(self) -> None:
            if not self.path.endswith(".m3u8") or "master" in self.path:
                super().do_GET()
                return
            lines = (folder / self.path[1:]).read_text().replace("#EXT-X-ENDLIST\n", "").splitlines()
            there = 2 * (3 + asked.count(self.path))  # a segment has two lines
            head = [line for line in lines if not line.startswith("#EXTINF") and line.startswith("#")]
            body = "\n".join(head + lines[len(head) :][:there]).encode() + b"\n"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()


def test_of_a_live_hls_master_one_variant_is_fetched(tmp_path: Path) -> None:
    need("ffmpeg")
    names = {"low": SMALL, "high": LARGE}
    for name, (width, height) in names.items():
        ffmpeg(
            *("-f", "lavfi", "-i", f"testsrc2=size={width}x{height}:rate=10:duration=20", "-c:v", "libx264"),
            *("-preset", "ultrafast", "-g", 10, "-hls_time", 1, "-hls_list_size", 0, tmp_path / f"{name}.m3u8"),
        )
    (tmp_path / "master.m3u8").write_text(
        "#EXTM3U\n"
        + "".join(
            f"#EXT-X-STREAM-INF:BANDWIDTH={width * 1000},RESOLUTION={width}x{height}\n{name}.m3u8\n"
            for name, (width, height) in names.items()
        )
    )
    notes: list[str] = []
    with live_hls(tmp_path) as (address, asked):
        source = Source("hls", f"{address}/master.m3u8")
        pictures = address_pictures(source, threading.Event(), Counters(), notes.append)
        sizes = set()
        for number, picture in enumerate(pictures):
            sizes.add((picture.width, picture.height))
            if number == 40:
                break
        pictures.close()  # type: ignore[attr-defined]
    assert sizes == {LARGE}
    assert "using 1 (640 x 360), ignoring 0 (160 x 90)" in notes[0]
    fetched = {name: len({path for path in asked if re.fullmatch(rf"/{name}\d+\.ts", path)}) for name in names}
    # Both are looked into when the list is opened; only one is read on.
    assert fetched["low"] <= 2
    assert fetched["high"] >= 4
