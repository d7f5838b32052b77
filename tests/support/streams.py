"""Real streams over loopback, each served by real tools in a process group of its own.

Every stream is a context manager: it has an ``address`` and the ``options`` that ``av.open`` needs, can be killed,
started again at the same address, frozen and thawed. Its processes end with the test's own, or after ``lifetime_s``,
whatever happens. Run as a program, this file is those processes, and then needs nothing but Python.
"""

from __future__ import annotations

import atexit
import base64
import contextlib
import functools
import http.server
import itertools
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent
CLIP = ROOT.parent / "clips" / "R6llTwEh07w.mp4"
SYSTEM_PYTHON = Path("/usr/bin/python3")
HD = (1280, 720)
OTHER_NAMES = {"chromium": ("chromium", "chromium-browser", "google-chrome")}
START_TIMEOUT_S = 20
NUMBERS = itertools.count()
PORTS = range(20000, 30000)
"""Below those that the kernel gives to clients: one that knocks at a dead port there can end up connected to itself."""
TS_PACKET_BYTES = 188
DATAGRAM_BYTES = 7 * TS_PACKET_BYTES
NOISE_BYTES = 16384
"""Garbage comes in pieces of this size, one every ``NOISE_EVERY_S``: enough to annoy, not to fill a processor."""
NOISE_EVERY_S = 0.05


# --- what a test needs ------------------------------------------------------------------------------------------------


@functools.cache
def has_rtsp_server() -> bool:
    """Whether the system's Python has GStreamer's RTSP server."""
    code = "import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer"
    if not SYSTEM_PYTHON.exists():
        return False
    return subprocess.run([SYSTEM_PYTHON, "-c", code], check=False, capture_output=True).returncode == 0


def need(*tools: str) -> None:
    """Skip the test where a system tool is missing, or fail it where ADAFOCUS_EDGE_REQUIRE_TOOLS=1.

    Tools are commands, or ``rtsp-server``. scripts/system-packages installs them.
    """
    import pytest

    found = {t: has_rtsp_server() if t == "rtsp-server" else command(t) is not None for t in tools}
    missing = [tool for tool, there in found.items() if not there]
    if missing:
        why = f"{', '.join(missing)} not installed here: scripts/system-packages"
        if os.environ.get("ADAFOCUS_EDGE_REQUIRE_TOOLS") == "1":
            pytest.fail(why)
        pytest.skip(why)


def command(name: str) -> str | None:
    """Path of a command, also of one that has another name elsewhere, or lies where only root's path leads."""
    paths = (os.environ.get("PATH"), "/usr/sbin:/sbin")
    found = (shutil.which(each, path=path) for each in OTHER_NAMES.get(name, (name,)) for path in paths)
    return next(filter(None, found), None)


def free_port() -> int:
    """A port on loopback that nobody has, TCP nor UDP."""
    for port in random.SystemRandom().sample(PORTS, 100):
        with socket.socket() as tcp, socket.socket(type=socket.SOCK_DGRAM) as udp, contextlib.suppress(OSError):
            tcp.bind(("127.0.0.1", port))
            udp.bind(("127.0.0.1", port))
            return port
    raise RuntimeError("no free port")


@functools.cache
def shelf() -> Path:
    """A folder for encoded clips, which lasts as long as this process."""
    folder = Path(tempfile.mkdtemp(prefix="adafocus-edge-streams-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


@functools.cache
def encoded(
    video: Path, size: tuple[int, int], fps: float, bitrate_kbps: int, kind: str = "mp4", seconds: float = 8
) -> Path:
    """Encode a clip once, so that serving it costs no encoding: H.264 as cameras write it, or motion JPEG.

    ``kind`` is "mp4", "h264" (raw, with delimiters) or "mkv" (motion JPEG). A key frame comes every half second.
    """
    path = shelf() / f"clip-{next(NUMBERS)}.{kind}"
    x264 = f"-c:v libx264 -preset ultrafast -tune zerolatency -profile:v baseline -g {max(1, round(fps / 2))}"
    x264 += f" -b:v {bitrate_kbps}k -maxrate {bitrate_kbps}k -bufsize {bitrate_kbps // 2}k"
    x264 += " -x264-params aud=1:repeat-headers=1"
    mjpeg = f"-c:v mjpeg -pix_fmt yuvj420p -huffman default -b:v {bitrate_kbps}k"
    subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-stream_loop", "-1", "-i", video, "-t", str(seconds), "-an",
         "-vf", f"scale={size[0]}:{size[1]},setsar=1,fps={fps}", *(mjpeg if kind == "mkv" else x264).split(), path],
        check=True, timeout=120,
    )  # fmt: skip
    return path


# --- streams ----------------------------------------------------------------------------------------------------------


class Stream:
    """A process group that serves one address until it is killed or closed."""

    address: str
    options: dict[str, str]

    def __init__(self, program: Sequence[str | Path], asked: dict[str, Any], lifetime_s: int) -> None:
        self._folder = shelf() / f"stream-{next(NUMBERS)}"
        self._command = [
            *map(str, program),
            json.dumps(asked | {"lifetime_s": lifetime_s, "folder": str(self._folder)}),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = self._folder.with_suffix(".log")
        self.options = {}

    def __enter__(self) -> Any:
        self.restart()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def log(self) -> str:
        """What the processes said so far."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def restart(self) -> None:
        """Serve, at the same address as before; kills what still runs. Returns when a viewer can come."""
        self.close()
        self._folder.mkdir()
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,  # never written to: its end tells the processes that this one is gone
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )
        assert self._process.stdout is not None
        late = threading.Timer(START_TIMEOUT_S, self._signal, [signal.SIGKILL])
        late.start()
        try:
            said = self._process.stdout.readline()
        finally:
            late.cancel()
            late.join()
        if said != b"serving\n":
            self.close()
            raise RuntimeError(f"{type(self).__name__} does not serve: {self.log}")

    def kill(self) -> None:
        """End all its processes at once, as a power cut does, and wait until they are gone."""
        if self._process is None:
            return
        self._signal(signal.SIGKILL)
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        until_s = time.monotonic() + 2
        while group_runs(self._process.pid) and time.monotonic() < until_s:
            time.sleep(0.01)
        self._process = None

    def freeze(self) -> None:
        """Stop sending without closing anything, as a camera that hangs."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def close(self) -> None:
        """Kill, and leave nothing behind but the log."""
        self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)


def group_runs(group: int) -> bool:
    """Whether a process of a group is left; zombies, which a slow init has not yet buried, do not count."""
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, of = stat.read_text().rpartition(")")[2].split()[:3]
            if int(of) == group and state not in "ZX":
                return True
    return False


class RtspServer(Stream):
    """H.264 over RTSP from GStreamer's server. A client picks its transport with ``options`` (TCP unless changed).

    Args:
        sizes: Width and height of each of the clips that ``switch`` goes through, in mid-stream.
        switch_every_s: Switch without being told.
        user, password, auth: Ask for them, by "basic" or "digest". Unlike ``address``, ``bare_address`` has none.
        loss: Share of RTP packets that are never sent.
        transports: What the server agrees to.
        **more: ``video``, ``fps`` and ``bitrate_kbps`` of what is sent.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]] = (HD,),
        *,
        port: int | None = None,
        path: str = "/live",
        user: str = "",
        password: str = "",
        auth: str = "basic",
        loss: float = 0.0,
        switch_every_s: float | None = None,
        transports: Sequence[str] = ("udp", "tcp"),
        lifetime_s: int = 600,
        **more: Any,
    ) -> None:
        need("ffmpeg", "rtsp-server")
        self.port = port or free_port()
        asked = {
            "clips": [str(clip) for clip in clips_of(sizes, "h264", **more)],
            "fps": more.get("fps", 30),
            "port": self.port,
            "path": path,
            "user": user,
            "password": password,
            "auth": auth,
            "loss": loss,
            "switch_every_s": switch_every_s,
            "transports": list(transports),
            "udp_ports": [30000, 32700],
        }
        super().__init__([SYSTEM_PYTHON, ROOT / "rtsp_server.py"], asked, lifetime_s)
        self.bare_address = f"rtsp://127.0.0.1:{self.port}{path}"
        login = f"{user}:{password}@" if user else ""
        self.address = f"rtsp://{login}127.0.0.1:{self.port}{path}"
        self.options = {"rtsp_transport": transports[0] if len(transports) == 1 else "tcp"}

    def switch(self) -> None:
        """Go over to the clip of the next size, now."""
        assert self._process is not None
        self._process.send_signal(signal.SIGUSR1)


class HttpStream(Stream):
    """A camera over HTTP: each viewer has an ffmpeg of its own (ts, mjpeg), or reads a live playlist of segments (hls).

    Args:
        kind: "ts" (H.264 in MPEG-TS), "mjpeg" (multipart/x-mixed-replace) or "hls".
        sizes, each_s: With several sizes, the picture changes its own every ``each_s`` seconds.
        user, password: Ask for them (basic authentication).
        **more: ``video``, ``fps`` and ``bitrate_kbps`` of what is sent.
    """

    def __init__(
        self,
        kind: str = "mjpeg",
        sizes: Sequence[tuple[int, int]] = (HD,),
        *,
        each_s: float = 8,
        port: int | None = None,
        user: str = "",
        password: str = "",
        lifetime_s: int = 600,
        **more: Any,
    ) -> None:
        need("ffmpeg")
        self.port = port or free_port()
        container = "mkv" if kind == "mjpeg" else "mp4"
        if kind == "mjpeg":
            more = {"bitrate_kbps": 12000} | more
        clips = clips_of(sizes, container, seconds=each_s, **more)
        asked = {"role": "http", "kind": kind, "port": self.port, "clips": [str(clip) for clip in clips]}
        asked |= {"each_s": each_s, "login": f"{user}:{password}" if user else ""}
        super().__init__(OURSELVES, asked, lifetime_s)
        login = f"{user}:{password}@" if user else ""
        path = {"ts": "live.ts", "mjpeg": "live.mjpeg", "hls": "live.m3u8"}[kind]
        self.bare_address = f"http://127.0.0.1:{self.port}/{path}"
        self.address = f"http://{login}127.0.0.1:{self.port}/{path}"


class UdpStream(Stream):
    """MPEG-TS in UDP packets from ffmpeg, sent to ``address`` whether or not somebody listens, through a lossy relay.

    Args:
        sizes, each_s: With several sizes, the picture changes its own every ``each_s`` seconds.
        loss: Share of packets that get lost.
        garbage: Share of packets after which one of random bytes follows.
        seed: Which packets those are.
        **more: ``video``, ``fps`` and ``bitrate_kbps`` of what is sent.
    """

    def __init__(
        self,
        sizes: Sequence[tuple[int, int]] = (HD,),
        *,
        each_s: float = 8,
        port: int | None = None,
        loss: float = 0.0,
        garbage: float = 0.0,
        seed: int = 0,
        lifetime_s: int = 600,
        **more: Any,
    ) -> None:
        need("ffmpeg")
        self.port = port or free_port()
        clips = clips_of(sizes, "mp4", seconds=each_s, **more)
        asked = {"role": "udp", "port": self.port, "clips": [str(clip) for clip in clips], "each_s": each_s}
        super().__init__(OURSELVES, asked | {"loss": loss, "garbage": garbage, "seed": seed}, lifetime_s)
        self.address = f"udp://127.0.0.1:{self.port}"


class RtmpStream(Stream):
    """H.264 in FLV over RTMP, by ffmpeg's own server: one viewer at a time.

    Args:
        size: Of the picture; one only, for FLV tells it once.
        **more: ``video``, ``fps`` and ``bitrate_kbps`` of what is sent.
    """

    def __init__(
        self, size: tuple[int, int] = HD, *, port: int | None = None, lifetime_s: int = 600, **more: Any
    ) -> None:
        need("ffmpeg")
        self.port = port or free_port()
        clips = clips_of([size], "mp4", **more)
        super().__init__(OURSELVES, {"role": "rtmp", "port": self.port, "clips": list(map(str, clips))}, lifetime_s)
        self.address = f"rtmp://127.0.0.1:{self.port}/live/camera"


class Garbage(Stream):
    """A server that does not do what its address promises.

    Args:
        kind: "noise" (random bytes without end), "silence" (takes the connection, says nothing), "close" (hangs up at
            once), "half" (MPEG-TS for ``good_s`` seconds, then noise on the same connection; over HTTP only).
        scheme: Of the address: "http", where noise comes after proper headers, or "rtsp", "rtmp", "tcp".
        seed: Of the random bytes.
    """

    def __init__(
        self,
        kind: str,
        scheme: str = "http",
        *,
        port: int | None = None,
        good_s: float = 3,
        seed: int = 0,
        lifetime_s: int = 600,
    ) -> None:
        clips = []
        if kind == "half":
            need("ffmpeg")
            clips = clips_of([(640, 360)], "mp4")
        self.port = port or free_port()
        asked = {"role": "garbage", "kind": kind, "http": scheme == "http", "port": self.port, "good_s": good_s}
        super().__init__(OURSELVES, asked | {"seed": seed, "clips": list(map(str, clips))}, lifetime_s)
        self.address = f"{scheme}://127.0.0.1:{self.port}" + ("" if scheme == "tcp" else "/live/camera")


class VirtualCamera(Stream):
    """A film played into a loopback video device, seen as a camera; skipped where the kernel has no v4l2loopback.

    Args:
        size: Of the picture.
        **more: ``video``, ``fps`` and ``bitrate_kbps`` of what is sent.
    """

    def __init__(self, size: tuple[int, int] = (640, 480), *, lifetime_s: int = 600, **more: Any) -> None:
        import pytest

        need("ffmpeg")
        devices = loopback_devices()
        if not devices:
            pytest.skip("this kernel has no v4l2loopback device: modprobe v4l2loopback")
        self.address = str(devices[0])
        clips = clips_of([size], "mkv", **more)
        super().__init__(
            OURSELVES, {"role": "camera", "device": self.address, "clips": list(map(str, clips))}, lifetime_s
        )


def loopback_devices() -> list[Path]:
    """Video devices of the module v4l2loopback."""
    names = sorted(Path("/sys/devices/virtual/video4linux").glob("video*/name"))
    return [Path("/dev") / name.parent.name for name in names if (Path("/dev") / name.parent.name).exists()]


def clips_of(
    sizes: Sequence[tuple[int, int]],
    kind: str,
    *,
    video: Path = CLIP,
    fps: float = 30,
    bitrate_kbps: int = 2000,
    seconds: float = 8,
) -> list[Path]:
    """One clip for each size."""
    return [encoded(video, size, fps, bitrate_kbps, kind, seconds) for size in sizes]


# --- the processes, which need nothing but Python ---------------------------------------------------------------------

OURSELVES = [sys.executable, "-S", "-E", Path(__file__)]


def serve(asked: dict[str, Any]) -> None:
    """Be one of the servers, until the standard input closes or the lifetime is over."""

    def end() -> None:
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=lambda: (sys.stdin.buffer.read(), end()), daemon=True).start()
    late = threading.Timer(asked["lifetime_s"], end)
    late.daemon = True
    late.start()
    roles = {"http": serve_http, "udp": serve_udp, "rtmp": serve_rtmp, "garbage": serve_garbage, "camera": serve_camera}
    roles[asked["role"]](asked, Path(asked["folder"]))


def ffmpeg(clips: Sequence[str], folder: Path, *output: str, **more: Any) -> subprocess.Popen[bytes]:
    """Play clips one after the other at real pace, without encoding, for two hours and more."""
    handle, name = tempfile.mkstemp(dir=folder, suffix=".txt")
    with open(handle, "w") as playlist:  # noqa: PTH123
        for _ in range(8000 // len(clips)):
            playlist.writelines(f"file '{clip}'\n" for clip in clips)
    return subprocess.Popen(
        ["ffmpeg", "-nostdin", "-v", "error", "-re", "-f", "concat", "-safe", "0", "-i", name, *output],
        stdin=subprocess.DEVNULL,
        **more,
    )


def say_serving() -> None:
    print("serving", flush=True)


class Pages(http.server.SimpleHTTPRequestHandler):
    """Answers with a stream, or with the files of a live playlist."""

    asked: dict[str, Any]
    folder: Path

    def do_GET(self) -> None:
        login = self.asked["login"]
        if login and self.headers["Authorization"] != f"Basic {base64.b64encode(login.encode()).decode()}":
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="camera"')
            self.end_headers()
        elif self.asked["kind"] == "hls":
            super().do_GET()
        elif self.path != f"/live.{self.asked['kind']}":
            self.send_error(404)
        else:
            self.send_stream()

    def send_stream(self) -> None:
        kinds = {"ts": ("video/mp2t", "mpegts"), "mjpeg": ("multipart/x-mixed-replace; boundary=ffmpeg", "mpjpeg")}
        content_type, muxer = kinds[self.asked["kind"]]
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.end_headers()
        output = ("-c", "copy", "-muxdelay", "0", "-flush_packets", "1", "-f", muxer, "pipe:1")
        film = ffmpeg(self.asked["clips"], self.folder, *output, stdout=subprocess.PIPE)
        assert film.stdout is not None
        with contextlib.suppress(OSError):  # the viewer has gone
            while piece := film.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                self.wfile.write(piece)
        film.kill()
        film.wait()

    def log_message(self, *_: object) -> None:
        pass


def serve_http(asked: dict[str, Any], folder: Path) -> None:
    Pages.asked, Pages.folder = asked, folder
    pages = folder / "pages"
    pages.mkdir()
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", asked["port"]), functools.partial(Pages, directory=str(pages))
    )
    if asked["kind"] == "hls":
        ffmpeg(
            asked["clips"], folder, "-c", "copy", "-f", "hls", "-hls_time", "1", "-hls_list_size", "4",
            "-hls_flags", "delete_segments+omit_endlist+temp_file", str(pages / "live.m3u8"),
        )  # fmt: skip
        while not (pages / "live.m3u8").exists():
            time.sleep(0.02)
    say_serving()
    server.serve_forever()


def serve_udp(asked: dict[str, Any], folder: Path) -> None:
    dice = random.Random(asked["seed"])
    with socket.socket(type=socket.SOCK_DGRAM) as relay:
        relay.bind(("127.0.0.1", 0))
        relay.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        to = f"udp://127.0.0.1:{relay.getsockname()[1]}?pkt_size={DATAGRAM_BYTES}"
        ffmpeg(asked["clips"], folder, "-c", "copy", "-muxdelay", "0", "-flush_packets", "1", "-f", "mpegts", to)
        relay.recv(2048)
        say_serving()
        while True:
            packet = relay.recv(2048)
            if dice.random() >= asked["loss"]:
                relay.sendto(packet, ("127.0.0.1", asked["port"]))
            if dice.random() < asked["garbage"]:
                relay.sendto(dice.randbytes(DATAGRAM_BYTES), ("127.0.0.1", asked["port"]))


def listens(port: int) -> bool:
    """Whether someone listens at a port of 127.0.0.1; asking the kernel takes no connection away from a viewer."""
    wanted = f"0100007F:{port:04X}"
    with open("/proc/net/tcp") as table:  # noqa: PTH123
        return any(line.split()[1] == wanted and line.split()[3] == "0A" for line in table)


def serve_rtmp(asked: dict[str, Any], folder: Path) -> None:
    address = f"rtmp://127.0.0.1:{asked['port']}/live/camera"
    told = False
    while True:  # ffmpeg's server ends with its viewer
        film = ffmpeg(
            asked["clips"],
            folder,
            "-c",
            "copy",
            "-f",
            "flv",
            "-flvflags",
            "no_duration_filesize",
            "-listen",
            "1",
            address,
        )
        while not told and film.poll() is None:
            time.sleep(0.02)
            if listens(asked["port"]):
                say_serving()
                told = True
        film.wait()
        time.sleep(0.1)


def serve_camera(asked: dict[str, Any], folder: Path) -> None:
    film = ffmpeg(asked["clips"], folder, "-pix_fmt", "yuv420p", "-f", "v4l2", asked["device"])
    time.sleep(0.5)
    if film.poll() is None:
        say_serving()
        film.wait()


def noise(seed: int) -> Iterator[bytes]:
    dice = random.Random(seed)
    while True:
        yield dice.randbytes(NOISE_BYTES)
        time.sleep(NOISE_EVERY_S)


def serve_garbage(asked: dict[str, Any], folder: Path) -> None:
    def answer(viewer: socket.socket) -> None:
        with viewer, contextlib.suppress(OSError):
            if asked["kind"] == "close":
                return
            viewer.settimeout(asked["lifetime_s"])
            viewer.recv(1 << 16)
            if asked["kind"] == "silence":
                while viewer.recv(1 << 16):
                    pass
                return
            if asked["http"]:
                viewer.sendall(b"HTTP/1.0 200 OK\r\nContent-Type: video/mp2t\r\n\r\n")
            if asked["kind"] == "half":
                output = ("-c", "copy", "-t", str(asked["good_s"]), "-f", "mpegts", "pipe:1")
                film = ffmpeg(asked["clips"], folder, *output, stdout=subprocess.PIPE)
                assert film.stdout is not None
                while piece := film.stdout.read1(1 << 16):  # type: ignore[attr-defined]
                    viewer.sendall(piece)
                film.wait()
            for piece in noise(asked["seed"]):
                viewer.sendall(piece)

    with socket.create_server(("127.0.0.1", asked["port"])) as server:
        say_serving()
        while True:
            viewer, _ = server.accept()
            threading.Thread(target=answer, args=(viewer,), daemon=True).start()


if __name__ == "__main__":
    serve(json.loads(sys.argv[1]))
