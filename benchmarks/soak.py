"""Half an hour of trouble: does a live run's memory stay flat, do threads and files, does it always come back?

Usage: python -m benchmarks.soak [--minutes 30] [--no-save]

Runs `adafocus-edge serve` as an operator would, on four real streams at once: RTSP whose server is killed and started
again every 45 seconds and changes its resolution every 20, MJPEG over HTTP that changes its size, MPEG-TS over UDP that
loses packets and has garbage in it, and a file in a loop; with recordings, snapshots of events, results on disk, a
webhook that fails half of the time, and somebody who looks at the page's data. Every ten seconds it notes resident
memory, threads and open files of that process; growth is from the first notes after five minutes to the last ones.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from tests.streams import HttpStream, RtspServer, UdpStream, free_port

ROOT = Path(__file__).parent.parent
WARM_UP_S = 300.0
NOTE_S = 10.0
KILL_S = 45.0


class Moody(http.server.BaseHTTPRequestHandler):
    """A webhook that answers every other time."""

    count = itertools.count()

    def do_POST(self) -> None:
        """Take it, or say that there is trouble."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if next(self.count) % 2 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def note(process: int) -> dict[str, float]:
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = int(status.split("VmRSS:")[1].split()[0])
    threads = int(status.split("Threads:")[1].split()[0])
    return {"rss_mb": kilobytes / 1024, "threads": threads, "files": len(list(Path(f"/proc/{process}/fd").iterdir()))}


def watch(url: str, over: threading.Event) -> None:
    """Look at the page's data and pictures, as a browser does, and come and go."""
    while not over.is_set():
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{url}/api/live", timeout=20) as events:
                for _ in itertools.takewhile(lambda _: not over.is_set(), range(400)):
                    events.readline()
            urllib.request.urlopen(f"{url}/api/streams/yard/picture.jpg", timeout=20).read()
        over.wait(1)


def main() -> None:
    """Run, print and write ``results/soak.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--no-save", action="store_true")
    asked = parser.parse_args()
    seconds = asked.minutes * 60
    hook = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Moody)
    threading.Thread(target=hook.serve_forever, daemon=True).start()
    port, over = free_port(), threading.Event()
    small, other = (640, 360), (480, 270)
    lifetime = int(seconds) + 600
    with (
        tempfile.TemporaryDirectory() as folder,
        RtspServer([small, other], switch_every_s=20, lifetime_s=lifetime) as rtsp,
        HttpStream("mjpeg", [other, (320, 180)], each_s=15, lifetime_s=lifetime, bitrate_kbps=4000) as mjpeg,
        UdpStream([small], loss=0.02, garbage=0.01, lifetime_s=lifetime) as udp,
    ):
        clip = ROOT / "tests" / "fights" / "fight" / "fi013.mp4"
        sources = [f"yard={rtsp.address}", f"gate={mjpeg.address}", f"hall={udp.address}", f"film={clip}"]
        out = Path(folder)
        command: list[Any] = [
            sys.executable, "-m", "adafocus_edge", "serve", "--port", port, "--loop", "--glimpse-fps", 4,
            "--overlap", 2, "--event", "fight=0.6,for=0.5,cooldown=5", "--snapshots", out / "pictures",
            "--record", out / "video", "--rotate-minutes", 0.5, "--rotate-mb", 1, "--keep", 4,
            "-o", out / "results.jsonl", "--log", out / "run.log", "--quiet",
            "--webhook", f"http://127.0.0.1:{hook.server_port}/",
        ]  # fmt: skip
        command += [part for source in sources for part in ("--source", source)]
        process = subprocess.Popen(list(map(str, command)))  # what it says is seen
        watcher = threading.Thread(target=watch, args=(f"http://127.0.0.1:{port}", over))
        watcher.start()
        begun, notes, kills = time.monotonic(), [], 0
        while (now := time.monotonic() - begun) < seconds:
            time.sleep(NOTE_S)
            assert process.poll() is None, "it ended"
            notes.append({"at_s": now, **note(process.pid)})
            if now >= (kills + 1) * KILL_S and now < seconds - 60:
                rtsp.restart()
                kills += 1
            if len(notes) % 12 == 0:
                print(json.dumps({**notes[-1], "kills": kills}), flush=True)
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=20) as answer:
            status = json.load(answer)
        over.set()
        process.terminate()
        code = process.wait(60)
        watcher.join()
        files = sorted((path.relative_to(out).as_posix(), path.stat().st_size) for path in out.rglob("*.*"))
    hook.shutdown()
    hook.server_close()
    later = [entry for entry in notes if entry["at_s"] >= min(WARM_UP_S, seconds / 3)]
    part = max(1, len(later) // 5)

    def growth(name: str) -> float:
        first, last = (statistics.median(entry[name] for entry in some) for some in (later[:part], later[-part:]))
        return last / first - 1

    found = {
        "minutes": asked.minutes, "exit_code": code, "kills": kills,
        "memory_growth": growth("rss_mb"), "thread_growth": growth("threads"), "file_growth": growth("files"),
        "sources": status["sources"], "listeners": status["listeners"], "files_left": len(files), "notes": notes[::6],
    }  # fmt: skip
    print(json.dumps({name: value for name, value in found.items() if name != "notes"}, indent=2))
    if not asked.no_save:
        print(save("soak", found))


if __name__ == "__main__":
    main()
