"""Soak test: half an hour of failing sources, to check that a live run recovers and its memory does not grow.

Usage: python -m benchmarks.soak [--minutes 30] [--no-save]

Runs `adafocus-edge serve` as an operator would, on four real streams at once: RTSP with a server that is killed and
restarted every 45 seconds and changes its resolution every 20, MJPEG over HTTP that changes its size, MPEG-TS over UDP
with lost packets and garbage, and a file in a loop. It writes recordings, snapshots of events and results to disk; its
webhook fails half of the time, viewers of the page connect and disconnect, and files are uploaded for classification.
`adafocus-edge classify` runs beside it on the RTSP and the MJPEG stream. Every ten seconds, resident memory, threads
and open files of both processes are recorded; growth is from the first records after five minutes to the last. Writes
`results/soak.json` and the curves, `results/soak.png`.
"""

from __future__ import annotations

import argparse
import contextlib
import http.server
import itertools
import json
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from adafocus_edge.evaluation.plot import new_figure, save_png
from benchmarks.machine import RESULTS, save
from tests.support.streams import HttpStream, RtspServer, UdpStream, free_port

ROOT = Path(__file__).parent.parent
WARM_UP_S = 300.0
NOTE_S = 10.0
KILL_S = 45.0
UPLOAD_S = 60.0
VIEWERS = 3
PROCESSES = ("serve", "classify")
UNITS = {"rss_mb": "resident memory, MB", "threads": "threads", "files": "open files"}


class Moody(http.server.BaseHTTPRequestHandler):
    """A webhook that accepts every other request."""

    count = itertools.count()

    def do_POST(self) -> None:
        """Answer 200 and 503 in turns."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200 if next(self.count) % 2 else 503)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def note(process: int) -> dict[str, float]:
    status = Path(f"/proc/{process}/status").read_text()
    kilobytes = int(status.split("VmRSS:")[1].split()[0])
    threads = int(status.split("Threads:")[1].split()[0])
    return {"rss_mb": kilobytes / 1024, "threads": threads, "files": len(list(Path(f"/proc/{process}/fd").iterdir()))}


def watch(url: str, over: threading.Event) -> None:
    """Read the page's events and pictures as a browser does, connecting and disconnecting."""
    turn = random.Random(threading.get_ident())
    while not over.is_set():
        with contextlib.suppress(OSError):
            with urllib.request.urlopen(f"{url}/api/live", timeout=20) as events:
                for _ in itertools.takewhile(lambda _: not over.is_set(), range(turn.randrange(50, 800))):
                    events.readline()
            urllib.request.urlopen(f"{url}/api/streams/yard/picture.jpg", timeout=20).read()
        over.wait(turn.uniform(0, 10))


def upload(url: str, clip: Path, over: threading.Event, seen: list[str]) -> None:
    """Upload a file for classification at intervals; add its labels to ``seen``."""
    while not over.wait(UPLOAD_S):
        with contextlib.suppress(OSError):
            asked = urllib.request.Request(f"{url}/api/classify?name={clip.name}", clip.read_bytes(), method="POST")
            with urllib.request.urlopen(asked, timeout=60) as answer:
                seen.append(json.load(answer)["top"][0]["label"])


def growth(notes: list[dict[str, Any]], process: str, name: str) -> float:
    """Return a number's relative growth from the first fifth of the records after the warm-up to the last fifth."""
    warm_s = min(WARM_UP_S, notes[-1]["at_s"] / 3)
    later = [entry[process][name] for entry in notes if entry["at_s"] >= warm_s]
    part = max(1, len(later) // 5)
    return statistics.median(later[-part:]) / statistics.median(later[:part]) - 1


def draw(notes: list[dict[str, Any]], path: Path) -> None:
    """Draw memory, threads and open files of both processes over time."""
    figure = new_figure(10, 8)
    for axes, (name, unit) in zip(figure.subplots(3, 1, sharex=True), UNITS.items(), strict=True):
        for process in PROCESSES:
            axes.plot([entry["at_s"] / 60 for entry in notes], [entry[process][name] for entry in notes], label=process)
        axes.set_ylim(bottom=0)
        axes.set_ylabel(unit)
        axes.grid(alpha=0.3)
    axes.set_xlabel("minutes")
    axes.legend()
    save_png(figure, path)


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
        url = f"http://127.0.0.1:{port}"
        classify: list[Any] = [
            sys.executable, "-m", "adafocus_edge", "classify", rtsp.address, mjpeg.address, "--glimpse-fps", 2,
            "-o", out / "classified.jsonl", "--quiet",
        ]  # fmt: skip
        running = [  # their errors are printed
            subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL) for words in (command, classify)
        ]
        labels: list[str] = []
        clients = [threading.Thread(target=watch, args=(url, over)) for _ in range(VIEWERS)]
        clients.append(threading.Thread(target=upload, args=(url, clip, over, labels)))
        for client in clients:
            client.start()
        begun, notes, kills = time.monotonic(), [], 0
        while (now := time.monotonic() - begun) < seconds:
            time.sleep(NOTE_S)
            assert all(process.poll() is None for process in running), "a process ended by itself"
            each = {name: note(process.pid) for name, process in zip(PROCESSES, running, strict=True)}
            notes.append({"at_s": now, **each})
            if now >= (kills + 1) * KILL_S and now < seconds - 60:
                rtsp.restart()
                kills += 1
            if len(notes) % 12 == 0:
                print(json.dumps({**notes[-1], "kills": kills}), flush=True)
        with urllib.request.urlopen(f"{url}/api/status", timeout=20) as answer:
            status = json.load(answer)
        over.set()
        codes = []
        for process in running:
            process.terminate()
            codes.append(process.wait(60))
        for client in clients:
            client.join()
        files = sorted((path.relative_to(out).as_posix(), path.stat().st_size) for path in out.rglob("*.*"))
    hook.shutdown()
    hook.server_close()
    found = {
        "minutes": asked.minutes, "exit_codes": codes, "kills": kills,
        "uploads": len(labels), "labels": sorted(set(labels)),
        "growth": {process: {name: growth(notes, process, name) for name in UNITS} for process in PROCESSES},
        "sources": status["sources"], "listeners": status["listeners"], "files_left": len(files), "notes": notes[::6],
    }  # fmt: skip
    print(json.dumps({name: value for name, value in found.items() if name != "notes"}, indent=2))
    if not asked.no_save:
        draw(notes, RESULTS / "soak.png")
        print(save("soak", found))


if __name__ == "__main__":
    main()
