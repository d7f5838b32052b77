"""What somebody made on purpose: files that name other files, fill memory or never end, and names that are codes."""

import http.server
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from adafocus_edge.benchmark.compare import read_report
from adafocus_edge.bundle.classes import read_classes
from adafocus_edge.bundle.manifest import CLASSES, MANIFEST
from adafocus_edge.bundle.store import copy_bundle, default_bundle, read_bundle, sha256_of
from adafocus_edge.errors import AdaFocusError, BundleError, DataError, SourceError, UsageError
from adafocus_edge.evaluation.dataset import read_data
from adafocus_edge.live.meters import Counters
from adafocus_edge.live.readers import address_pictures
from adafocus_edge.media import containers as reading
from adafocus_edge.media.clip import DEFAULT_FPS
from adafocus_edge.media.frame_folder import FPS_FILE, FrameFolder
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.media.video_file import VideoFile
from adafocus_edge.system import files
from tests.conftest import ROOT, edge, one_line_error
from tests.support.videos import encode
from training.prepare import PrepareOptions, prepare

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
PLAYLIST = "#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n{}\n#EXT-X-ENDLIST\n"
CONCAT = "ffconcat version 1.0\n# é\nfile {}\n"
SDP = "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video {} RTP/AVP 96\na=rtpmap:96 H264/90000\n"


@contextmanager
def website(pages: dict[str, bytes]) -> Iterator[tuple[str, list[str]]]:
    """Serve pages; give the address, and what was asked for."""
    asked: list[str] = []

    class Pages(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            body = pages.get(self.path, b"")
            self.send_response(200 if body else 404)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Pages) as server:
        threading.Thread(target=server.serve_forever).start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}", asked
        finally:
            server.shutdown()


# -- videos that name others -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.mp4", CONCAT.format("other.mp4")),
        ("itself.mp4", CONCAT.format("itself.mp4")),
        ("a.m3u8", PLAYLIST.format("other.mp4")),
        ("a.mp4", SDP.format(5004)),
        ("a.idx", "# VobSub index file, v7\n"),
    ],
)
def test_a_file_that_lists_others_is_not_followed(name: str, content: str, tmp_path: Path) -> None:
    shutil.copy(FIGHT, tmp_path / "other.mp4")
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(SourceError, match="files that list other files are not followed"):
        VideoFile(str(tmp_path / name))


@pytest.mark.parametrize("listed", ["other.mp4", "list.mp4", "{}", "file://{}"])
def test_an_address_that_lists_others_is_not_followed(listed: str) -> None:
    page = CONCAT.format(listed.format(FIGHT)).encode()
    with website({"/list.mp4": page, "/other.mp4": FIGHT.read_bytes()}) as (address, asked):
        with pytest.raises(SourceError, match="files that list other files are not followed"):
            VideoFile(f"{address}/list.mp4")
        with pytest.raises(SourceError, match="cannot be read"):
            list(address_pictures(Source("list", f"{address}/list.mp4"), threading.Event(), Counters()))
    assert set(asked) == {"/list.mp4"}


@pytest.mark.parametrize("named", ["file://{}", "{}", "concat:{}", "subfile,,start,0,end,0,,:{}"])
def test_a_playlist_from_elsewhere_names_no_files_of_this_machine(named: str, tmp_path: Path) -> None:
    clip = encode(tmp_path / "clip.ts", 30)
    page = PLAYLIST.format(named.format(clip)).encode()
    with website({"/live.m3u8": page}) as (address, _), pytest.raises(SourceError, match="cannot be read"):
        list(address_pictures(Source("live", f"{address}/live.m3u8"), threading.Event(), Counters()))


# -- pictures that fill memory -----------------------------------------------------------------------------------------


def test_a_video_of_huge_pictures_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = encode(tmp_path / "clip.mp4", 10, size=(320, 240))
    monkeypatch.setattr(reading, "LARGEST_IMAGE", 320 * 240 - 1)
    with pytest.raises(SourceError, match="frames of 320 x 240 pixels are too large"):
        VideoFile(str(path))


def test_pictures_that_become_huge_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small, large = encode(tmp_path / "a.h264", 10, size=(320, 240)), encode(tmp_path / "b.h264", 10, size=(640, 480))
    path = tmp_path / "grows.h264"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    assert max(rgb.shape for _, rgb in VideoFile(str(path)).frames()) == (480, 640, 3)
    monkeypatch.setattr(reading, "LARGEST_IMAGE", 400 * 300)
    with pytest.raises(SourceError, match="damaged"):
        list(VideoFile(str(path)).frames())


def test_huge_pictures_of_a_stream_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = encode(tmp_path / "clip.ts", 10, size=(640, 480))
    monkeypatch.setattr(reading, "LARGEST_IMAGE", 400 * 300)
    counters = Counters()
    with website({"/live": clip.read_bytes()}) as (address, _):
        assert list(address_pictures(Source("live", f"{address}/live"), threading.Event(), counters)) == []
    assert counters.damaged > 0


# -- names that a terminal would obey ----------------------------------------------------------------------------------

CODES = "\x1b]0;owned\x07\x1b[31m\x9b2J\u202e"
"""Sets a terminal's title, its colour (twice: \x9b is a code, too), and turns text around."""


def copied_model(path: Path) -> Path:
    shutil.copytree(default_bundle(), path, ignore=shutil.ignore_patterns("*.md", "__pycache__"))
    return path


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle whose every name holds codes."""
    path = copied_model(tmp_path_factory.mktemp("marked") / "bundle")
    (path / CLASSES).write_text(f"fight{CODES}\n<b>no_fight</b>{CODES}\n", encoding="utf-8")
    manifest = json.loads((path / MANIFEST).read_bytes())
    variant = f"fp32{CODES}"
    (path / "fp32").rename(path / variant)
    graphs = manifest["variants"].pop("fp32")
    for graph in graphs.values():
        graph["file"] = graph["file"].replace("fp32/", f"{variant}/")
        graph["precision"] += CODES
    manifest["variants"] = {variant: graphs}
    manifest["classes_sha256"] = sha256_of(path / CLASSES)
    manifest["provenance"] |= {"checkpoint": CODES, "created": CODES, "tools": {CODES: CODES}}
    (path / MANIFEST).write_text(json.dumps(manifest))
    return path


@pytest.mark.parametrize(
    "command",
    [
        ["inspect", "{bundle}"],
        ["classify", "{clip}", "--bundle", "{bundle}"],
        ["classify", "{list}", "--bundle", "{bundle}", "--glimpse-fps", "4", "--json"],
        ["evaluate", "{bundle}", "--data", "{data}"],
    ],
)
def test_no_name_commands_a_terminal(command: list[str], marked: Path, tmp_path: Path) -> None:
    clip = tmp_path / f"clip{CODES}.mp4"
    shutil.copy(FIGHT, clip)
    (tmp_path / "a.streams").write_text(f"yard{CODES}={clip}\n", encoding="utf-8")
    (tmp_path / "data.csv").write_text(f"video,class\n{clip.name},fight{CODES}\n", encoding="utf-8")
    places = {"bundle": marked, "clip": clip, "list": tmp_path / "a.streams", "data": tmp_path / "data.csv"}
    done = edge(*(word.format(**places) for word in command))
    assert done.returncode == 0, done.stderr
    shown = (done.stdout + done.stderr).replace("\n", "")
    assert "x1b" in shown or "u001b" in shown or "x9b" in shown
    assert shown.isprintable(), [sign for sign in shown if not sign.isprintable()]


@pytest.mark.parametrize("wrong", [{"backend": CODES}, {"threads": -1}, {"segments": 0}, {"segments": 10**9}])
def test_a_profile_of_what_cannot_be_is_refused(wrong: dict[str, object], tmp_path: Path) -> None:
    path = copied_model(tmp_path / "bundle")
    manifest = json.loads((path / MANIFEST).read_bytes())
    profile = {
        "backend": "onnxruntime-cpu", "variant": "fp32", "schedule": "clip", "segments": 1, "threads": 1, "exit": "",
        "device": "", "demand": "", "latency_ms": 1.0, "top1": 1.0, "clips": 1, "created": "",
    }  # fmt: skip
    manifest["profiles"] = {"mine": profile | wrong}
    (path / MANIFEST).write_text(json.dumps(manifest))
    if "backend" in wrong:
        one_line_error(edge("classify", FIGHT, "--bundle", path, "--profile", "mine"), 2, "needs the backend")
        return
    with pytest.raises(UsageError, match="has invalid threads or segments"):
        read_bundle(path).profile("mine")


# -- files without an end, and numbers ---------------------------------------------------------------------------------

DIGITS = "9" * 5000
"""More than Python makes a number of."""


def test_what_has_no_end_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_BYTES", 1 << 20)
    zero = {suffix: tmp_path / f"zero{suffix}" for suffix in (".csv", ".txt", ".streams", ".json")}
    for path in zero.values():
        path.symlink_to("/dev/zero")
    for refused in (
        lambda: read_data(zero[".csv"]),
        lambda: read_data(zero[".txt"], ["a"], tmp_path),
        lambda: read_classes(zero[".txt"]),
        lambda: find_sources([str(zero[".streams"])]),
        lambda: read_report(zero[".json"]),
    ):
        with pytest.raises(AdaFocusError, match="More than 1 MB"):
            refused()


def test_pipes_in_a_folder_are_not_waited_for(tmp_path: Path) -> None:
    frames = shutil.copytree(ROOT / "export" / "frames", tmp_path / "frames")
    os.mkfifo(frames / FPS_FILE)
    assert FrameFolder(str(frames)).fps == DEFAULT_FPS
    bundle = copied_model(tmp_path / "bundle")
    (bundle / MANIFEST).unlink()
    os.mkfifo(bundle / MANIFEST)
    with pytest.raises(BundleError, match="missing or unreadable"):
        read_bundle(bundle)


@pytest.mark.parametrize("line", [f"a {DIGITS} 0", f"a 9 {DIGITS}"])
def test_endless_numbers_in_a_list_are_told(line: str, tmp_path: Path) -> None:
    (tmp_path / "split.txt").write_text(line)
    with pytest.raises(DataError, match="line 1: "):
        read_data(tmp_path / "split.txt", ["a"], tmp_path)


@pytest.mark.parametrize("text", [f"threads = {DIGITS}", "threads = " + "[" * 100_000])
def test_endless_numbers_and_depths_in_a_configuration_are_told(text: str, tmp_path: Path) -> None:
    (tmp_path / "a.toml").write_text(text)
    one_line_error(edge("classify", "--config", tmp_path / "a.toml", FIGHT), 2, "not TOML")


@pytest.mark.parametrize("row", ["b" * 200_000, "a,b,inf,nan", "a,b,1e999,-1e999", "a"])
def test_odd_annotations_are_told(row: str, tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "a.csv").write_text(f"youtube_id,label,time_start,time_end\n{row}\n")
    options = PrepareOptions(tmp_path / "videos", tmp_path / "data", "minik", annotations=(tmp_path / "a.csv",))
    with pytest.raises(DataError, match="not CSV|none of the|no videos"):
        prepare(options)


# -- links in a bundle -------------------------------------------------------------------------------------------------


def test_a_copy_of_a_bundle_holds_nothing_that_its_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "key").write_text("secret")
    bundle = copied_model(tmp_path / "bundle")
    (bundle / "notes.txt").symlink_to(tmp_path / "secret" / "key")
    (bundle / "more").symlink_to(tmp_path / "secret")
    for name in "ab":  # each leads to both: without an end
        (bundle / name).symlink_to(bundle)
    blob = (bundle / "fp32" / "policy.onnx").rename(tmp_path / "blob")  # as caches of downloads keep files
    (bundle / "fp32" / "policy.onnx").symlink_to(blob)
    copy_bundle(bundle, tmp_path / "copy")
    assert {path.name for path in (tmp_path / "copy").iterdir()} == {MANIFEST, CLASSES, "fp16", "fp32", "int8-cpu"}
    assert not (tmp_path / "copy" / "fp32" / "policy.onnx").is_symlink()
