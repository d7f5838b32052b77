"""An RTSP camera made of GStreamer's server, for /usr/bin/python3 with gi: encoded frames, without end, at real pace.

It is told what to do in one JSON object (see ``streams.RtspServer``), says ``serving`` once it does, goes over to its
next clip on SIGUSR1, and ends when its standard input closes or its lifetime is over.
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path

import gi

gi.require_version("Gst", "1.0")
gi.require_version("GstRtsp", "1.0")
gi.require_version("GstRtspServer", "1.0")
from gi.repository import GLib, Gst, GstRtsp, GstRtspServer  # noqa: E402

START_OF_FRAME = re.compile(rb"\x00\x00\x00\x01\x09")
SEQUENCE_HEADER = b"\x00\x00\x01\x67"


def frames_of(path: str) -> list[bytes]:
    """Cut a raw H.264 file, written with access unit delimiters, into its frames."""
    content = Path(path).read_bytes()
    starts = [found.start() for found in START_OF_FRAME.finditer(content)] + [len(content)]
    return [content[start:end] for start, end in zip(starts, starts[1:])]  # noqa: B905, RUF007


class Film(threading.Thread):
    """Gives every viewer the frame that is due, as a camera does whether or not somebody looks."""

    def __init__(self, clips: list[str], fps: float, switch_every_s: float | None) -> None:
        super().__init__(daemon=True)
        self.clips = [frames_of(clip) for clip in clips]
        self.fps = fps
        self.switch_every_s = switch_every_s
        self.viewers: dict[Gst.Element, bool] = {}  # and whether it has had a key frame
        self.lock = threading.Lock()
        self.switch = threading.Event()

    def watch(self, _: GstRtspServer.RTSPMediaFactory, media: GstRtspServer.RTSPMedia) -> None:
        source = media.get_element().get_by_name_recurse_up("film")
        with self.lock:
            self.viewers[source] = False
        media.connect("unprepared", lambda _: self.leave(source))

    def leave(self, source: Gst.Element) -> None:
        with self.lock:
            self.viewers.pop(source, None)

    def run(self) -> None:
        clip = at = 0
        begun_s = switched_s = time.monotonic()
        number = 0
        while True:
            wait_s = begun_s + number / self.fps - time.monotonic()
            if wait_s < -1:  # it was frozen: what it did not see is gone
                begun_s -= wait_s
            time.sleep(max(0.0, wait_s))
            number += 1
            if self.switch_every_s is not None and time.monotonic() - switched_s >= self.switch_every_s:
                self.switch.set()
            if self.switch.is_set():
                self.switch.clear()
                switched_s = time.monotonic()
                clip, at = (clip + 1) % len(self.clips), 0
            frame = self.clips[clip][at]
            at = (at + 1) % len(self.clips[clip])
            begins = SEQUENCE_HEADER in frame[:64]
            with self.lock:
                for source, started in self.viewers.items():
                    if started or begins:
                        self.viewers[source] = True
                        source.emit("push-buffer", Gst.Buffer.new_wrapped(frame))


def guard(server: GstRtspServer.RTSPServer, factory: GstRtspServer.RTSPMediaFactory, asked: dict[str, str]) -> None:
    """Let in only who knows the user's name and password."""
    auth = GstRtspServer.RTSPAuth()
    token = GstRtspServer.RTSPToken()
    token.set_string("media.factory.role", "viewer")
    if asked["auth"] == "digest":
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.DIGEST)
        auth.add_digest(asked["user"], asked["password"], token)
    else:
        auth.set_supported_methods(GstRtsp.RTSPAuthMethod.BASIC)
        auth.add_basic(GstRtspServer.RTSPAuth.make_basic(asked["user"], asked["password"]), token)
    permissions = GstRtspServer.RTSPPermissions()
    permissions.add_permission_for_role("viewer", "media.factory.access", True)
    permissions.add_permission_for_role("viewer", "media.factory.construct", True)
    factory.set_permissions(permissions)
    server.set_auth(auth)


def main() -> None:
    asked = json.loads(sys.argv[1])
    threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
    Gst.init(None)
    loop = GLib.MainLoop()
    film = Film(asked["clips"], asked["fps"], asked["switch_every_s"])

    factory = GstRtspServer.RTSPMediaFactory()
    # Whatever is called pay0 is what the server sends; identity takes the packets one by one.
    loses = f"! identity name=pay0 drop-probability={asked['loss']:f}" if asked["loss"] else "name=pay0"
    factory.set_launch(
        "( appsrc name=film is-live=true format=time do-timestamp=true max-bytes=0"
        " caps=video/x-h264,stream-format=byte-stream,alignment=au"
        f" ! rtph264pay pt=96 mtu=1400 config-interval=-1 {loses} )"
    )
    protocols = {"udp": GstRtsp.RTSPLowerTrans.UDP, "tcp": GstRtsp.RTSPLowerTrans.TCP}
    allowed = GstRtsp.RTSPLowerTrans(0)
    for name in asked["transports"]:
        allowed |= protocols[name]
    factory.set_protocols(allowed)
    pool = GstRtspServer.RTSPAddressPool()
    first, last = asked["udp_ports"]
    pool.add_range("127.0.0.1", "127.0.0.1", first, last, 0)
    factory.set_address_pool(pool)
    factory.connect("media-configure", film.watch)

    server = GstRtspServer.RTSPServer()
    server.set_address("127.0.0.1")
    server.set_service(str(asked["port"]))
    server.get_mount_points().add_factory(asked["path"], factory)
    if asked["user"]:
        guard(server, factory, asked)
    if server.attach(None) == 0:
        raise SystemExit(f"port {asked['port']} is taken")
    film.start()
    # Sessions whose viewer vanished end after a minute, if somebody looks.
    GLib.timeout_add_seconds(2, lambda: server.get_session_pool().cleanup() >= 0)
    GLib.unix_signal_add(GLib.PRIORITY_DEFAULT, signal.SIGUSR1, lambda: film.switch.set() or True)
    GLib.timeout_add_seconds(asked["lifetime_s"], loop.quit)
    print("serving", flush=True)
    loop.run()


if __name__ == "__main__":
    main()
