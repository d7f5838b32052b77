"""What an address shows, and that no secret of one appears in anything that a command writes."""

from __future__ import annotations

import http.server
import io
import json
import random
import secrets
import signal
import string
import subprocess
import sys
import threading
import time
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from adafocus_edge.cli.outputs import video_names
from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.live.sinks.mqtt import Mqtt
from adafocus_edge.live.sinks.webhook import Webhook
from adafocus_edge.media.sources import find_sources
from adafocus_edge.system.addresses import conceal, encoding_hint, is_token, without_password
from adafocus_edge.system.retention import safe_name
from tests.conftest import ROOT, edge, one_line_error

FIGHT = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
SECRET = "S3cretPW"
TOKEN = "9f8e7d6c5b4a39281706f5e4d3c2b1a0"

SHOWN = [
    # user and password, whatever the password holds
    ("rtsp://a:b@c/d", "rtsp://***@c/d"),
    ("rtsp://admin:p@ss@10.0.0.1/a", "rtsp://***@10.0.0.1/a"),
    ("rtsp://admin:p@ss/w@10.0.0.1/x", "rtsp://***@10.0.0.1/x"),
    ("rtsp://admin:pa#ss@10.0.0.1/x", "rtsp://***@10.0.0.1/x"),
    ("rtsp://admin:pa?ss@cam.lan:554/x", "rtsp://***@cam.lan:554/x"),
    ("rtsp://admin:12/34@nvr/x", "rtsp://***@nvr/x"),
    ("rtsp://admin:12#34@10.0.0.1/x", "rtsp://***@10.0.0.1/x"),
    ("rtsp://john.doe:12/3@10.0.0.1/x", "rtsp://***@10.0.0.1/x"),
    ("rtsp://me@example.com:pa/ss@nvr/x", "rtsp://***@nvr/x"),
    ("rtsp://ad min:pa ss@cam.lan/x", "rtsp://***@cam.lan/x"),
    ("rtsp://u:a://b@nvr/x", "rtsp://***@nvr/x"),
    ("rtsp://admin:forgot-the-at/stream", "rtsp://***/stream"),
    ("http://proxy/fetch?url=rtsp://user:pw@cam/x", "http://proxy/fetch?url=rtsp://***@cam/x"),
    ("http://proxy/f?url=rtsp%3A%2F%2Fu%3Ap%40cam%2Fx&a=1", "http://proxy/f?url=rtsp%3A%2F%2F***%40cam%2Fx&a=1"),
    ("concat:http://a/x.mp4|http://u:p@b/y.mp4", "concat:http://a/x.mp4|http://***@b/y.mp4"),
    # keys in a query and in a path
    ("rtsp://h/live?user=admin&password=top&x=1", "rtsp://h/live?user=***&password=***&x=1"),
    ("http://h/a?access_token=abc;b=2#c", "http://h/a?access_token=***;b=2#c"),
    (
        "rtsp://10.0.0.1:554/user=admin_password=S_w0rd_channel=1_stream=0.sdp?real_stream",
        "rtsp://10.0.0.1:554/user=***_password=***_channel=1_stream=0.sdp?real_stream",
    ),
    ("rtsp://h/user=admin,password=S,channel=2", "rtsp://h/user=***,password=***,channel=2"),
    ("http://h/c?loginuse=a&loginpas=b&p=c&u=d&jwt=e&sid=f&fps=9", "http://h/c?loginuse=***&loginpas=***&p=***&u=***&"
     "jwt=***&sid=***&fps=9"),
    ("https://h/a.mp4?X-Amz-Expires=600&X-Amz-Signature=ab12", "https://h/a.mp4?X-Amz-Expires=600&X-Amz-Signature=***"),
    ("https://h/a.mp4?Policy=ab&Key-Pair-Id=cd&Expires=9", "https://h/a.mp4?Policy=***&Key-Pair-Id=***&Expires=9"),
    ("http://h/c?x=1%26password%3Dabc%26y=1", "http://h/c?x=1%26password%3D***%26y=1"),
    ("http://h/c?PassWord=a&b", "http://h/c?PassWord=***"),
    ("srt://h:9000?mode=caller&passphrase=abc", "srt://h:9000?mode=caller&passphrase=***"),
    # tokens in a path
    (f"https://h/live/{TOKEN}/index.m3u8", "https://h/live/***/index.m3u8"),
    ("https://h/s/eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.abc-D/x.m3u8", "https://h/s/***/x.m3u8"),
    ("https://api.telegram.org/file/bot123:ABC-DEF/videos/file_1.mp4", "https://api.telegram.org/file/***/videos/file_1.mp4"),
    ("rtmp://h/live2/abcd-efgh-1234-5678-ijkl", "rtmp://h/live2/***"),
    ("rtmp://h/app/s3cr3tk3y", "rtmp://h/app/***"),
    ("rtsps://10.0.0.1:7441/aB3dE5fG7hI9jK1l?enableSrtp", "rtsps://10.0.0.1:7441/***?enableSrtp"),
    ("http://h/password/abc/index.m3u8", "http://h/password/***/index.m3u8"),
    ("http://h/v/550e8400-e29b-41d4-a716-446655440000/index.m3u8", "http://h/v/***/index.m3u8"),
]  # fmt: skip

PLAIN = """\
http://c/d?e=@
http://host/path?to=me@example.com
http://host/@user/x.mp4
http://127.0.0.1:8080/a@b/c.mp4
rtsp://[fe80::1]:554/x@y
udp://@239.0.0.1:1234
udp://:1234
rtmp://h/live/key?name=monkey
rtmp://h/bcs/channel0_main.bcs?channel=0&stream=0
rtsp://h/h264Preview_01_main
rtsp://h/cam/realmonitor?channel=1&subtype=0
rtsp://h/Streaming/Channels/101
http://h/mjpg/video.mjpg?resolution=1280x720&compression=30
http://h/20240102T030405Z_camera12_front-door/index.m3u8
http://h/v/550e8400-e29b-41d4-a716-446655440000.mp4
http://h/v/9f8e7d6c5b4a39281706f5e4d3c2b1a0.mp4
http://h/IMG_20240102_030405.mov
file:///home/a@b/c.mp4
/home/a@b/password=c.mp4
a.mp4""".splitlines()


@pytest.mark.parametrize(("address", "shown"), SHOWN)
def test_secrets_are_blanked_wherever_they_stand(address: str, shown: str) -> None:
    assert without_password(address) == shown
    assert without_password(shown) == shown


@pytest.mark.parametrize("address", PLAIN)
def test_addresses_without_secrets_stay_as_they_are(address: str) -> None:
    assert without_password(address) == address


FORMS = [
    "rtsp://admin:{}@10.0.0.1:554/live/ch1",
    "rtsp://admin:{}@camera-7/live/ch1",
    "http://admin:{}@cam.example.org/video.mjpg?channel=1",
    "rtsp://10.0.0.1/user=admin_password={}_channel=1_stream=0.sdp",
    "http://h:8080/videostream.cgi?loginuse=admin&loginpas={}",
    "rtsp://h/live?channel=1&pwd={}&subtype=0",
    "rtsp://recorder:554/user=admin_password={}_channel=1_stream=0.sdp",
    "rtsp://admin:{}@recorder:554/user=admin_password={}_channel=1_stream=0.sdp",
    "http://proxy/get?source=rtsp://admin:{}@10.0.0.9/live",
]


@pytest.mark.parametrize("form", FORMS)
def test_no_password_whatever_it_holds_is_shown(form: str) -> None:
    drawn = random.Random(7)
    signs = string.ascii_letters + string.digits + "#?/:@!$'()*+,;._-~%^ \\[]{}|" + "äß漢"
    for _ in range(300):
        inner = "".join(drawn.choice(signs) for _ in range(drawn.randint(0, 9)))
        # The ends stand out, so that whatever part is left is seen.
        password = f"Qz{drawn.randint(10, 99)}x{inner}x{drawn.randint(10, 99)}Zq"
        address = form.format(password, password)
        for shown in (without_password(address), conceal(f"open: '{address}' failed", address)):
            assert password[:5] not in shown, address
            assert password[-5:] not in shown, address
            assert "admin" not in shown, address
        assert without_password(without_password(address)) == without_password(address)


@pytest.mark.parametrize(
    "draw",
    [
        lambda: secrets.token_hex(16),
        lambda: secrets.token_hex(32).upper(),
        lambda: secrets.token_urlsafe(24),
        lambda: str(uuid.uuid4()),
    ],
)
def test_tokens_drawn_by_chance_are_seen_as_such(draw: Callable[[], str]) -> None:
    assert sum(not is_token(draw()) for _ in range(500)) <= 2


@pytest.mark.parametrize(
    "name",
    (
        "mainEntranceNorthDoor Cam01Main02Stream IMG_20240102_030405 DSC_000123456789 front-door-2024-05-01 "
        "MediaInput_h264_stream_1 videoinput_1_h264_1 defaultPrimary_streamType Parkplatz_Nord_Einfahrt "
        "h264_1080p_30fps_ch01_stream 20240102030405678 strassenkreuzung12 onvif-media_profile_1"
    ).split(),
)
def test_names_that_people_give_are_no_tokens(name: str) -> None:
    assert not is_token(name)


def test_addresses_that_differ_only_in_a_secret_keep_names_of_their_own() -> None:
    first, second, again, other = find_sources(
        ["rtsps://h/aB3dE5fG7hI9jK1l", "rtsps://h/aB3dE5fG7hI9jK1m", "rtsps://h/aB3dE5fG7hI9jK1l", "rtsps://h/cam"]
    )
    assert [first.name, second.name, again.name, other.name] == [
        "rtsps://h/***", "rtsps://h/*** (2)", "rtsps://h/***", "rtsps://h/cam"
    ]  # fmt: skip
    assert safe_name(first.name) != safe_name(second.name)
    assert "aB3d" not in repr((first, second))


def test_names_of_annotated_videos_hold_no_secrets() -> None:
    sources = find_sources(
        [
            "http://u:p@h/clip.mp4",
            f"http://h/a.mp4?token={SECRET}.b/c",
            "http://h/a.mp4?token=other",
            f"http://h/{TOKEN}/",
        ]
    )
    names = video_names(sources)
    assert names[0] == "clip.mp4"
    assert len(set(names)) == 4
    assert not any(SECRET in name or "other" in name or TOKEN in name for name in names)


@pytest.mark.parametrize(
    ("address", "words"),
    [
        ("rtsp://u:pa#ss@h/x", "# as %23"),
        ("rtsp://u:pa?s/s@h/x", "/ as %2F, ? as %3F"),
        ("rtsp://u:pa s@h/x", "a space as %20"),
        ("rtsp://u:100%@h/x", "% as %25"),
        ("rtsp://u:p@ss@h/x", "@ as %40"),
    ],
)
def test_what_must_be_percent_encoded_is_named(address: str, words: str) -> None:
    hint = encoding_hint(address)
    assert words in hint
    assert "pa" not in hint.replace("password", "").replace("space", "")
    assert encoding_hint("rtsp://u:p%23ss@h/x?a=b#c") == ""
    assert encoding_hint("http://host/@user/x.mp4") == ""


@pytest.mark.parametrize("address", ["rtsp://admin:{}#1@127.0.0.1:9/x", "http://admin:{}/1@127.0.0.1:9/a.mp4"])
def test_an_address_that_cannot_be_opened_says_what_to_encode(address: str) -> None:
    done = edge("classify", address.format(SECRET), "-q")
    one_line_error(done, 1, "***@127.0.0.1:9", "must be percent-encoded")
    assert SECRET not in done.stderr


@pytest.mark.parametrize(
    "make", [lambda url: Webhook(f"http://{url}", print), lambda url: Mqtt(f"mqtt://{url}", print)]
)
def test_a_hook_or_a_broker_says_what_to_encode(make: Callable[[str], Any]) -> None:
    with pytest.raises(UsageError, match="# as %23") as told:
        make(f"me:{SECRET}#1@h/x")
    assert SECRET not in str(told.value)


def test_a_hook_is_not_named_by_a_part_of_its_password() -> None:
    hook = Webhook("http://admin:12#34@h/x", print)
    hook.close(0.1)
    assert hook.name == "http://***@h"


# -- through the command line ------------------------------------------------------------------------------------------


def jpeg() -> bytes:
    written = io.BytesIO()
    Image.new("RGB", (160, 120), (90, 80, 80)).save(written, "JPEG")
    return written.getvalue()


class _Camera(http.server.BaseHTTPRequestHandler):
    """MJPEG at any path, as recorders serve it whose addresses hold user and password in the path."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace;boundary=f")
        self.end_headers()
        picture = jpeg()
        head = b"--f\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n" % len(picture)
        with suppress(OSError):
            while True:
                self.wfile.write(head + picture + b"\r\n")
                time.sleep(0.1)


@pytest.fixture
def camera() -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Camera)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def addresses(host: str) -> list[str]:
    return [
        f"http://{host}/user=admin_password={SECRET}_channel=1_stream=0.sdp?real_stream",
        f"http://{SECRET}:{SECRET}@{host}/live/{TOKEN}/x?jwt={SECRET}&sid={SECRET}",
        f"http://{host}/live/{TOKEN[::-1]}/x?jwt={SECRET}&sid={SECRET}2",
    ]


def check_folder(folder: Path) -> None:
    """No file there holds a secret, or has one in its name."""
    for path in folder.rglob("*"):
        for secret in (SECRET, TOKEN, TOKEN[::-1]):
            assert secret not in str(path.relative_to(folder))
            assert not path.is_file() or secret.encode() not in path.read_bytes(), path


@contextmanager
def serving(*arguments: object, cwd: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    command = [sys.executable, "-m", "adafocus_edge", "serve", "--port", "0", *map(str, arguments)]
    with (cwd / "stdout.txt").open("w") as out, (cwd / "stderr.txt").open("w") as errors:
        process = subprocess.Popen(command, stdout=out, stderr=errors, text=True, cwd=cwd)
        try:
            deadline = time.monotonic() + 60
            while not (found := [w for w in (cwd / "stderr.txt").read_text().split() if w.startswith("http://127.0.0.1:")
                                 and w.count("/") == 2 + w.endswith("/")]):  # fmt: skip
                assert time.monotonic() < deadline, (cwd / "stderr.txt").read_text()
                assert process.poll() is None
                time.sleep(0.1)
            yield process, found[-1].rstrip("/")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def test_nothing_that_a_live_run_writes_holds_a_secret(camera: str, tmp_path: Path) -> None:
    done = edge(
        "classify", *addresses(camera), "--json", "--provisional", "--glimpse-fps", 8, "--duration", 4, "--status", 1,
        "--event", "fight=0.01", "--event", "no_fight=0.01",
        "--record", "videos", "--snapshots", "pictures", "--log", "log.txt", "-o", "out.jsonl",
        "--webhook", f"http://me:{SECRET}@127.0.0.1:9/{SECRET}", cwd=tmp_path,
    )  # fmt: skip
    (tmp_path / "stdout.txt").write_text(done.stdout)
    (tmp_path / "stderr.txt").write_text(done.stderr)
    assert done.returncode == 0, done.stderr
    check_folder(tmp_path)
    names = {json.loads(line)["source"] for line in done.stdout.splitlines() if '"steps"' in line}
    assert len(names) == 3
    assert f"http://{camera}/user=***_password=***_channel=1_stream=0.sdp?real_stream" in names
    assert len(list((tmp_path / "videos").iterdir())) == 3
    assert len({path.name.split("-2")[0] for path in (tmp_path / "pictures").iterdir()}) == 3


def test_nothing_that_the_page_serves_holds_a_secret(camera: str, tmp_path: Path) -> None:
    config = tmp_path / "config" / "site.toml"
    config.parent.mkdir()
    config.write_text("\n".join(f'[[source]]\naddress = "{address}"' for address in addresses(camera)))
    work = tmp_path / "work"
    work.mkdir()
    with serving("--config", config, "--glimpse-fps", 8, cwd=work) as (_, url):
        deadline = time.monotonic() + 60
        while not json.loads(urllib.request.urlopen(f"{url}/api/results").read())["results"]:
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for path in ("/api/status", "/api/results", "/api/events", "/metrics", "/", "/api/openapi.json"):
            (work / f"{path.replace('/', '_')}.txt").write_bytes(urllib.request.urlopen(url + path).read())
        with urllib.request.urlopen(f"{url}/api/live") as live:
            (work / "live.txt").write_bytes(live.read(20_000))
    check_folder(work)
    assert len(json.loads((work / "_api_status.txt").read_text())["sources"]) == 3


def test_no_error_repeats_a_secret(tmp_path: Path) -> None:
    address = f"rtsp://admin:{SECRET} 1@127.0.0.1:9/x"
    listed = tmp_path / "a.streams"
    listed.write_text(f"{address}.streams\n")
    table = tmp_path / "clips.csv"
    table.write_text(f"video,class\nhttp://admin:{SECRET}@h/a.mp4,fight\n{FIGHT},fight\n")
    config = tmp_path / "c.toml"
    config.write_text(f'"{address}" = 1\n')
    commands: list[tuple[object, ...]] = [
        ("classify", address, "--json"),
        ("classify", f"gate={address}", "--debug"),
        ("classify", f"admin:{SECRET}@127.0.0.1/x.mp4", "--json"),
        ("classify", f"rtsp:/admin:{SECRET}@127.0.0.1/x.mp4", "--json"),
        ("classify", f"=rtsp://admin:{SECRET}@127.0.0.1/x"),
        ("classify", listed),
        ("classify", "0", "--config", config),
        ("classify", FIGHT, "--bundle", f"http://admin:{SECRET}@h/b"),
        ("serve", address, "--port", "0", "--nosuch"),
        ("evaluate", "--data", f"http://admin:{SECRET}@h/x.csv", "--debug"),
        ("evaluate", "--data", table, "--json", "-o", tmp_path / "evaluation.json"),
        ("prepare", f"http://admin:{SECRET}@h/x", "-o", tmp_path / "prepared"),
    ]
    for number, command in enumerate(commands):
        done = edge(*command)
        assert done.returncode != 0, command
        assert done.stderr, command
        (tmp_path / f"said-{number}.txt").write_text(done.stdout + done.stderr)
    for given in (listed, table, config):
        given.unlink()
    check_folder(tmp_path)


def test_a_traceback_shows_no_secret() -> None:
    code = f"""
import sys
from adafocus_edge.cli import app as cli
from adafocus_edge.media import sources
sys.argv = ["x", "classify", "http://admin:{SECRET} x@127.0.0.1:9/a.mp4", "--debug"]
def broken(self):
    raise RuntimeError("[Errno 5] failed: " + repr(self.address))
sources.Source.open_clip = broken
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "RuntimeError: [Errno 5] failed: 'http://***@127.0.0.1:9/a.mp4'" in done.stderr
    assert SECRET not in done.stderr


def test_the_name_that_was_given_stands_in_errors_instead_of_the_address() -> None:
    done = edge("classify", "gate=http://127.0.0.1:9/hidden/a.mp4", "-q")
    one_line_error(done, 1, "gate: not a video that can be read")
    assert "hidden" not in done.stderr


def test_errors_of_other_libraries_are_shown_without_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    from adafocus_edge.media.video_file import VideoFile

    def refuse(address: str, **_: Any) -> None:
        raise ValueError(f"bad port in '{address}'")

    monkeypatch.setattr(av, "open", refuse)
    with pytest.raises(AdaFocusError) as told:
        VideoFile(f"http://u:{SECRET}@h/a.mp4")
    assert SECRET not in str(told.value)
    assert "bad port" in str(told.value)


@pytest.mark.parametrize(
    "text",
    [
        "a" * 1_000_000,
        ":" * 1_000_000,
        "rtsp://" + ":" * 1_000_000,
        "a://" * 250_000,
        "rtsp://u:p@" * 100_000,
        "x?a=" * 250_000,
        "http://h/?" + "k=v&" * 250_000,
        ("http://h/" + "a_b=" * 400 + " ") * 600,
    ],
    ids=range(8),
)
def test_texts_of_any_length_are_read_in_no_time(text: str) -> None:
    """Regular expressions that look back took minutes or days for these."""
    message = f"list.txt, line 1: {text!r} is not `path frames class`"
    assert conceal(message).endswith("is not `path frames class`")
    assert len(conceal(message)) <= len(message)
    without_password(text)


def test_a_long_message_shows_no_end_of_an_address() -> None:
    shown = conceal("cannot open " + "x" * 70_000 + " rtsp://u:" + "secret" * 20_000 + "@host/live in the list")
    assert "secret" not in shown
    assert shown.startswith("cannot open x")
    assert shown.endswith("in the list")
