"""Soak test of recordings: every packet of the cameras must be in them, every event must have its clip.

    python -m benchmarks.soak_recordings [--minutes 30] [--sources 4] [--folder DIR] [--no-save]

One `adafocus-edge serve` process records real streams (MPEG-TS over HTTP, RTSP and RTMP, in turns) at a camera's rate
with `--record-mode copy`, and keeps a clip of each event. The film that all streams repeat changes between scenes with
and without fights, so that events begin and end. Afterwards, the slices of the recorded pictures are compared with
those of the film: from a source's first to its last one, across all files, none may be missing, changed or doubled.
Memory, open files and CPU time of the process are recorded every ten seconds; growth is from the first fifth of the
records after the warm-up to the last fifth. Ctrl-C ends the run early; its recordings are checked. Writes
`results/soak_recordings.json`; the exit code is 1 if something is missing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import av

from benchmarks.machine import save
from benchmarks.soak import NOTE_S, UNITS, growth, note
from tests.support.streams import HttpStream, RtmpStream, RtspServer, Stream, clips_of

ROOT = Path(__file__).parent.parent
FIGHTS = ROOT / "tests" / "fights"
SIZE, FPS = (1280, 720), 25
CODING = {"fps": FPS, "bitrate_kbps": 2000}
SCENES, SCENE_S = 4, 10
FILM_S = SCENES * SCENE_S
KINDS = ("ts", "rtsp", "rtmp", "ts")
PRE_ROLL_S = 5.0
MAX_GROWTH = 0.02
SLICES = range(1, 6)
"""Types of H.264 units that hold a picture: what surrounds them differs between containers."""
PACE_S = 3.0
"""How much shorter than the time that it took a recording may be: packets are buffered on their way."""
MAX_NAMED = 5
"""Breaks of a recording that the report names."""
DECODED = 10
"""Clips of events that are decoded as a whole."""


def make_film(folder: Path) -> Path:
    """Return a film of scenes in turns: a fight, and none."""
    kinds = {kind: sorted((FIGHTS / kind).glob("*.mp4")) for kind in ("fight", "no_fight")}
    scenes = [files[number] for number in range(SCENES // 2) for files in kinds.values()]
    inputs = [part for scene in scenes for part in ("-stream_loop", "-1", "-t", str(SCENE_S), "-i", str(scene))]
    scaled = "".join(
        f"[{number}:v]scale={SIZE[0]}:{SIZE[1]},setsar=1,fps={FPS}[s{number}];" for number in range(len(scenes))
    )
    joined = "".join(f"[s{number}]" for number in range(len(scenes))) + f"concat=n={len(scenes)}:v=1"
    path = folder / "film.mkv"
    coding = "-c:v libx264 -preset ultrafast -crf 16".split()
    subprocess.run(
        ["ffmpeg", "-nostdin", "-v", "error", "-y", *inputs, "-filter_complex", scaled + joined, *coding, path],
        check=True,
    )
    return path


def open_stream(number: int, film: Path, lifetime_s: int) -> Stream:
    """Return a camera that repeats the film."""
    more: dict[str, Any] = {**CODING, "video": film, "lifetime_s": lifetime_s}
    kind = KINDS[number % len(KINDS)]
    if kind == "rtsp":
        return RtspServer([SIZE], seconds=FILM_S, **more)
    if kind == "rtmp":
        return RtmpStream(SIZE, seconds=FILM_S, **more)
    return HttpStream("ts", [SIZE], each_s=FILM_S, **more)


def sent_slices(number: int, film: Path) -> list[bytes]:
    """Return hashes of the slices that a camera repeats, in order."""
    kind = "h264" if KINDS[number % len(KINDS)] == "rtsp" else "mp4"
    (clip,) = clips_of([SIZE], kind, video=film, seconds=FILM_S, **CODING)  # as the stream has it
    return list(slices_of(clip))


def units_of(data: bytes) -> Iterator[bytes]:
    """Yield the H.264 units of a packet, with lengths or with start codes before them."""
    place = 0
    if data[:4] == b"\0\0\0\1" or data[:3] == b"\0\0\1":
        for part in data.split(b"\0\0\1"):
            if unit := part.rstrip(b"\0"):
                yield unit
        return
    while place + 4 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        yield data[place + 4 : place + 4 + size].rstrip(b"\0")
        place += 4 + size


def slices_of(path: Path) -> Iterator[bytes]:
    """Yield a hash of each slice of the pictures in a video, in decoding order."""
    with av.open(str(path)) as container:
        for packet in container.demux(video=0):
            for unit in units_of(bytes(packet)) if packet.size else ():
                if unit[0] & 31 in SLICES:
                    yield hashlib.md5(unit).digest()


def breaks_in(found: list[bytes], film: list[bytes]) -> list[str]:
    """Return where slices are missing, doubled or foreign, compared with the film over and over."""
    places: dict[bytes, list[int]] = {}
    for number, one in enumerate(film):
        places.setdefault(one, []).append(number)
    wrong, expected = [], set(places.get(found[0], []) if found else [])
    for number, one in enumerate(found):
        here = set(places.get(one, []))
        if not here & expected:
            wrong.append(f"slice {number} of {len(found)}")
            expected = here
        expected = {(place + 1) % len(film) for place in here & expected}
    return [*wrong[:MAX_NAMED], f"{len(wrong)} in all"] if wrong else []


def cpu_s(process: int) -> float:
    """Return the CPU time of a process."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def watch(run: subprocess.Popen[bytes], seconds: float, recordings: Path) -> list[dict[str, Any]]:
    """Record the numbers of the process until the time is over, or Ctrl-C."""
    notes: list[dict[str, Any]] = []
    begun_s = time.monotonic()
    with suppress(KeyboardInterrupt):
        while (now_s := time.monotonic() - begun_s) < seconds:
            time.sleep(min(NOTE_S, seconds - now_s))
            if run.poll() is not None:
                raise SystemExit(f"serve ended by itself, with code {run.returncode}")
            notes.append({"at_s": time.monotonic() - begun_s, "serve": {**note(run.pid), "cpu_s": cpu_s(run.pid)}})
            if len(notes) % 6 == 1:
                size_mb = sum(path.stat().st_size for path in recordings.glob("*.mp4")) / 1e6
                now_s, numbers = notes[-1]["at_s"], notes[-1]["serve"]
                print(f"{now_s:6.0f} s of {seconds:.0f}: {numbers}, {size_mb:.0f} MB recorded", flush=True)
    return notes


def check_source(name: str, folder: Path, film: list[bytes]) -> dict[str, Any]:
    """Return what the recordings of a source hold."""
    files = sorted(folder.glob(f"{name}-*.mp4"), key=lambda path: (path.stat().st_mtime, path.name))
    found = [one for path in files for one in slices_of(path)]
    records = [json.loads(line) for path in files for line in path.with_suffix(".jsonl").read_text().splitlines()]
    took_s = files[-1].stat().st_mtime - datetime.fromisoformat(records[0]["at"]).timestamp() if files else 0.0
    breaks, recorded_s = breaks_in(found, film), len(found) / len(film) * FILM_S
    if recorded_s < took_s - PACE_S:
        breaks.append(f"{took_s - recorded_s:.1f} s too short")
    return {
        "files": len(files),
        "slices": len(found),
        "seconds": round(recorded_s, 1),
        "took_s": round(took_s, 1),
        "breaks": breaks,
        "results": sum("provisional" in record for record in records),
    }


def check_events(folder: Path, films: dict[str, list[bytes]]) -> dict[str, Any]:
    """Return how many events there are, and which have no clip, a clip that begins too late, or one with gaps."""
    index = sqlite3.connect(folder / "events.sqlite")
    index.row_factory = sqlite3.Row
    events = index.execute("SELECT * FROM events ORDER BY started").fetchall()
    index.close()
    begun = min((event["started"] for event in events), default=0.0)
    without, late, broken = [], [], []
    for event in events:
        if event["clip"] is None or event["clip_from"] is None:
            without.append(event["key"])
            continue
        if event["clip_from"] > event["started"] - PRE_ROLL_S and event["started"] > begun + 60:
            late.append(event["key"])
        if breaks_in(list(slices_of(folder / event["clip"])), films[event["source"]]):
            broken.append(event["key"])
    clips = [folder / event["clip"] for event in events if event["clip"] is not None]
    for clip in clips[:: max(1, len(clips) // DECODED)]:
        keeping_times = ["-vsync", "passthrough", "-enc_time_base", "1:90000"]
        command = ["ffmpeg", "-nostdin", "-v", "error", "-i", clip, *keeping_times, "-f", "null", "-"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or done.stderr:
            broken.append(f"{clip.name}: {done.stderr[:200]!r}")
    lengths = sorted(event["clip_s"] or 0.0 for event in events)
    return {
        "events": len(events), "without_clip": without, "late": late, "broken": broken,
        "median_clip_s": lengths[len(lengths) // 2] if lengths else None,
    }  # fmt: skip


def run_serve(out: Path, streams: list[Stream], names: list[str], seconds: float) -> dict[str, Any]:
    """Record the streams for some time; return what was found beside the files."""
    command: list[Any] = [
        sys.executable, "-m", "adafocus_edge", "serve", "--port", 0, "--glimpse-fps", 4, "--overlap", 2,
        "--event", "fight=0.6,for=0.5,cooldown=2", "--events", out / "events", "--pre-roll", PRE_ROLL_S,
        "--record", out / "video", "--record-mode", "copy", "--rotate-minutes", 5, "--log", out / "run.log", "--quiet",
    ]  # fmt: skip
    for name, stream in zip(names, streams, strict=True):
        command += ["--source", f"{name}={stream.address}"]
    (out / "video").mkdir()
    run = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, cwd=ROOT, start_new_session=True)
    try:
        notes = watch(run, seconds, out / "video")
    finally:
        run.send_signal(signal.SIGTERM)
        code = run.wait(60)
    log = (out / "run.log").read_text()
    # That the model is too slow for all frames, as on a busy machine, is no fault of the recordings.
    lines = [line for line in log.splitlines() if any(word in line for word in (str(out), "retrying", "ERROR"))]
    return {"exit_code": code, "notes": notes, "log": log.splitlines()[-20:], "complaints": lines}


def main() -> None:
    """Run, print and write ``results/soak_recordings.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--sources", type=int, default=4)
    parser.add_argument("--folder", type=Path, help="keep the recordings here")
    parser.add_argument("--no-save", action="store_true")
    asked = parser.parse_args()
    seconds = asked.minutes * 60
    names = [f"camera{number}" for number in range(asked.sources)]
    out = asked.folder or Path(tempfile.mkdtemp(prefix="adafocus-edge-soak-"))
    out.mkdir(exist_ok=True)
    try:
        film = make_film(out)
        with ExitStack() as stack:
            streams = [
                stack.enter_context(open_stream(number, film, int(seconds) + 900)) for number in range(asked.sources)
            ]
            found = run_serve(out, streams, names, seconds)
        print("checking ...", flush=True)
        sent = {name: sent_slices(number, film) for number, name in enumerate(names)}
        sources = {name: check_source(name, out / "video", pictures) for name, pictures in sent.items()}
        events = check_events(out / "events", sent)
    finally:
        if asked.folder is None:
            shutil.rmtree(out, ignore_errors=True)
    notes = found.pop("notes")
    grown = {name: growth(notes, "serve", name) for name in UNITS}
    used = (notes[-1]["serve"]["cpu_s"] - notes[0]["serve"]["cpu_s"]) / (notes[-1]["at_s"] - notes[0]["at_s"])
    problems = [f"{name}: {one['breaks']}" for name, one in sources.items() if one["breaks"] or not one["slices"]]
    problems += [f"{kind}: {events[kind]}" for kind in ("without_clip", "late", "broken") if events[kind]]
    problems += [] if grown["rss_mb"] <= MAX_GROWTH else [f"memory has grown by {grown['rss_mb']:.1%}"]
    problems += found["complaints"]
    report = {
        "minutes": asked.minutes, "video": {"size": SIZE, **CODING}, "problems": problems,
        "sources": sources, "events": events, "growth": grown, "cores": round(used, 3), **found, "notes": notes[::6],
    }  # fmt: skip
    print(json.dumps({name: value for name, value in report.items() if name != "notes"}, indent=2))
    if not asked.no_save:
        print(save("soak_recordings", report))
    raise SystemExit(1 if problems else 0)


if __name__ == "__main__":
    main()
