"""Measure the whole from file to answer against an older version, in one run, in turns.

Usage: python -m benchmarks.whole [--parts folder,reading,...] [--old DIR] [--clips DIR] [--rounds 3]

Each part writes its own key of ``results/whole.json`` and leaves the others. To add one, write a function that takes
the arguments and returns what is to be stored, and enter it in ``PARTS``.

``--old`` is a folder with the older version's packages: ``git archive COMMIT | tar x -C DIR``.

``busy`` is the share of the cores' time in which the processes ran or were ready to run: on a machine that has other
work to do, it says what the programme would have used, and clips per second do not. ``cpu_ms_per_clip`` is the
processor time spent, start-up included.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.media.sources import Source, find_sources
from adafocus_edge.runtime.glimpse import see_clip
from adafocus_edge.system.cpu import limit_cores_of_thread
from benchmarks import by_hand
from benchmarks.machine import RESULTS, save
from benchmarks.watched import Usage, watch

ROOT = Path(__file__).parent.parent
CLIPS = ROOT / "tests" / "fights"
IGNORED = ("latency_ms", "model_ms")
"""Keys of a result that differ from run to run."""
SHORT = CLIPS / "fight" / "fi013.mp4"
READING = """
import json, sys, time
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.media.preprocess import sampled_frames
from adafocus_edge.media.sources import find_sources
spec, sources = read_bundle(default_bundle()).spec, find_sources([sys.argv[1]])
for turn in range(2):
    cpu, wall = time.process_time(), time.perf_counter()
    for source in sources:
        list(sampled_frames(source.open_clip(), spec))
    took = [(time.process_time() - cpu) / len(sources) * 1e3, (time.perf_counter() - wall) / len(sources) * 1e3]
print(json.dumps({"read": took}))
"""
EXITS = """
import json, sys
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.media.sources import find_sources
from adafocus_edge.runtime.classifier import Classifier
bundle, sources, found = read_bundle(default_bundle()), find_sources([sys.argv[1]]), {}
runs = [(variant, threads) for threads in (None, 1) for variant in ("fp32", "int8-cpu")]
for variant, threads in runs:  # files side by side have one thread each
    shown = variant if threads is None else f"{variant}, one thread:"
    with load_model(bundle, variant, "cpu", threads) as model:
        for name in ("all", *bundle.manifest.thresholds):
            exits = None if name == "all" else bundle.manifest.thresholds[name][0]
            classifier = Classifier(model, bundle.classes, exits=exits)
            for turn in range(2):
                results = [classifier.classify(source)[0] for source in sources]
            count = len(results)
            means = [sum(r.model_ms for r in results) / count, sum(len(r.steps) for r in results) / count]
            found[f"{shown} {name}"] = means
print(json.dumps(found))
"""
SCENE = ROOT / "tests" / "clips" / "people_1080p.mp4"


def folder(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure ``classify FOLDER``: the older version, one worker, and the pipeline."""
    runs: dict[str, tuple[Path, tuple[str, ...]]] = {
        **({"old": (arguments.old, ())} if arguments.old else {}),
        "one worker": (ROOT, ("--workers", "1")),
        "pipeline": (ROOT, ()),
    }
    count = len(find_sources([str(arguments.clips)]))
    used: dict[str, list[Usage]] = {name: [] for name in runs}
    lines: dict[str, list[dict[str, Any]]] = {}
    for turn in range(arguments.rounds):
        for name, (home, more) in runs.items():
            usage, lines[name] = _classified(home, arguments.clips, more)
            used[name].append(usage)
            print(f"round {turn + 1}: {name}: {usage.line(count)}", flush=True)
    first = next(iter(lines.values()))
    return {
        "clips": count,
        "rounds": arguments.rounds,
        "equal": all(found == first for found in lines.values()),
        "runs": {name: _figures(found, count) for name, found in used.items()},
    }


def reading(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure opening, decoding and preprocessing the clips as the default model sees them, one after the other."""
    return _compared(arguments, READING, ("cpu_ms", "wall_ms"))


def exits(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure the default model's glimpse loop with all steps and with each of its exit sets, on the clips."""
    return _compared(arguments, EXITS, ("wall_ms", "steps"))


def start(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure a command's processor time from nothing to its first result, and that of ``--help``."""
    commands = {"classify": ("classify", str(SHORT), "--json", "--quiet"), "help": ("--help",)}
    times: dict[str, dict[str, list[float]]] = {name: {home: [] for home in _homes(arguments)} for name in commands}
    for turn in range(arguments.rounds + 1):
        for name, words in commands.items():
            for home, path in _homes(arguments).items():
                before = resource.getrusage(resource.RUSAGE_CHILDREN)
                _run(path, "-m", "adafocus_edge", *words)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                if turn:  # the first one compiles the modules
                    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
                    times[name][home].append(round(spent * 1e3, 1))
    found = {
        name: {home: {"cpu_ms": round(statistics.median(each), 1), "rounds": each} for home, each in of.items()}
        for name, of in times.items()
    }
    print(json.dumps(found), flush=True)
    return found


def _homes(arguments: argparse.Namespace) -> dict[str, Path]:
    return {**({"old": arguments.old} if arguments.old else {}), "new": ROOT}


def _run(home: Path, *words: str) -> str:
    """Run Python with the packages of a folder; return what it prints."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONDONTWRITEBYTECODE"}
    command = [sys.executable, *words]
    return subprocess.run(
        command, check=True, cwd=home, env={**environment, "PYTHONPATH": str(home)}, stdout=subprocess.PIPE, text=True
    ).stdout


def _compared(arguments: argparse.Namespace, script: str, names: tuple[str, ...]) -> dict[str, Any]:
    """Run a script that prints, for some settings, a list of numbers per clip; in turns with each version."""
    found: dict[str, dict[str, list[list[float]]]] = {home: {} for home in _homes(arguments)}
    for turn in range(arguments.rounds):
        for home, path in _homes(arguments).items():
            printed = json.loads(_run(path, "-c", script, str(arguments.clips.resolve())))
            for setting, numbers in printed.items():
                found[home].setdefault(setting, []).append(numbers)
            print(f"round {turn + 1}: {home}: {printed}", flush=True)
    medians = {
        home: {
            setting: {name: round(statistics.median(each[n] for each in rounds), 2) for n, name in enumerate(names)}
            for setting, rounds in of.items()
        }
        for home, of in found.items()
    }
    return {"rounds": arguments.rounds, "runs": medians, "all_rounds": found}


def archive(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure many files: plain ``classify``, processes of this machine, and actors of a Ray cluster that is there.

    The files are links to the clips, ``--times`` of each.
    """
    clips = [Path(source.address) for source in find_sources([str(arguments.clips)])]
    count = len(clips) * arguments.times
    used: dict[str, list[Usage]] = {"plain": [], "local": [], "ray": []}
    rows: dict[str, list[dict[str, Any]]] = {}
    with tempfile.TemporaryDirectory() as made, _cluster() as (address, holder):
        links = Path(made) / "clips"
        links.mkdir()
        for number in range(count):
            (links / f"{number}.mp4").symlink_to(clips[number % len(clips)].resolve())
        for turn in range(arguments.rounds):
            usage, rows["plain"] = _classified(ROOT, links, ())
            used["plain"].append(usage)
            for name, more in (("local", ()), ("ray", ("--address", address))):
                output = Path(made) / f"{name}-{turn}"
                words = ("classify", links, "--quiet", "--engine", name, "--output", output, *more)
                command = [sys.executable, "-m", "adafocus_edge", *map(str, words)]
                used[name].append(watch(command, ROOT, also=holder if name == "ray" else None))
                rows[name] = [_plain(line) for part in output.glob("jsonl/*") for line in part.open()]
            if short := [name for name, found in rows.items() if len(found) != count]:
                raise SystemExit(f"{short[0]}: {len(rows[short[0]])} rows of {count} clips")
            for name, found in used.items():
                print(f"round {turn + 1}: {name}: {found[-1].line(count)}", flush=True)
    names = [sorted(found, key=lambda entry: str(entry["source"])) for found in rows.values()]
    return {
        "clips": count,
        "rounds": arguments.rounds,
        "equal": all(found == names[0] for found in names),
        "runs": {name: _figures(found, count) for name, found in used.items()},
    }


def cost(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure what a clip of 10 s costs one core: opening, decoding and preprocessing; and the model, by variant.

    The clips show :data:`SCENE` again and again, with a key frame every 250 frames, as x264 sets them by default.
    """
    bundle = read_bundle(default_bundle())
    found: dict[str, Any] = {"seconds": 10, "rounds": arguments.rounds, "read_cpu_ms": {}, "model_cpu_ms": {}}
    limit_cores_of_thread(1)
    with tempfile.TemporaryDirectory() as made:
        for height in (240, 480, 720, 1080):
            path = Path(made) / f"{height}.mp4"
            scale = ("-vf", f"scale=-2:{height}", "-c:v", "libx264", "-preset", "veryfast", "-g", "250")
            looped = ("-stream_loop", "-1", "-i", str(SCENE), "-t", "10")
            subprocess.run(["ffmpeg", "-v", "error", *looped, *scale, "-an", str(path)], check=True)
            source = Source(str(path), str(path))

            def read(source: Source = source) -> list[Any]:
                return list(sampled_frames(source.open_clip(), bundle.spec))

            found["read_cpu_ms"][f"{height}p"] = _cpu_ms(read, arguments.rounds)
        frames = [frame for _, frame in read()]
        for variant in bundle.manifest.variants:
            with load_model(bundle, variant, "cpu", 1) as model:
                found["model_cpu_ms"][variant] = _cpu_ms(
                    lambda model=model: list(see_clip(model, frames)), arguments.rounds
                )
    print(json.dumps(found, indent=2), flush=True)
    return found


def _cpu_ms(function: Callable[[], Any], rounds: int) -> float:
    """Return the median processor time of this thread for a call, after one that does not count."""
    times = []
    for _ in range(rounds + 1):
        before = time.thread_time()
        function()
        times.append((time.thread_time() - before) * 1e3)
    return round(statistics.median(times[1:]), 1)


@contextmanager
def _cluster() -> Iterator[tuple[str, int]]:
    """Provide the address of a Ray cluster of two machines with a core each, and the process that holds it."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.ray_cluster"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert process.stdout is not None
    try:
        yield process.stdout.readline().strip(), process.pid
    finally:
        process.communicate()


def _classified(home: Path, clips: Path, more: tuple[str, ...]) -> tuple[Usage, list[dict[str, Any]]]:
    with tempfile.NamedTemporaryFile("w+") as printed:
        command = [sys.executable, "-m", "adafocus_edge", "classify", str(clips), "--json", "--quiet", *more]
        usage = watch(command, home, stdout=printed)
        printed.seek(0)
        return usage, [_plain(line) for line in printed]


def _plain(line: str) -> dict[str, Any]:
    return {key: value for key, value in json.loads(line).items() if key not in IGNORED}


def _figures(used: list[Usage], count: int) -> dict[str, Any]:
    return {
        "clips_per_s": round(statistics.median(count / usage.wall_s for usage in used), 2),
        "cpu_ms_per_clip": round(statistics.median(usage.cpu_s / count * 1e3 for usage in used), 1),
        "busy": round(statistics.median(usage.busy for usage in used), 3),
        "peak_mb": round(max(usage.peak_bytes for usage in used) / 1e6, 1),
        "rounds": [asdict(usage) for usage in used],
    }


def peers(arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure ``classify FOLDER`` beside the same by hand (:mod:`benchmarks.by_hand`), and in OpenVINO."""
    edge = [sys.executable, "-m", "adafocus_edge", "classify", str(arguments.clips), "--json", "--quiet"]
    commands = {
        "ours": edge,
        "ours, OpenVINO": [*edge, "--backend", "openvino"],
        **{name: [sys.executable, "-m", "benchmarks.by_hand", name, str(arguments.clips)] for name in by_hand.PEERS},
    }
    used: dict[str, list[Usage]] = {name: [] for name in commands}
    labels: dict[str, list[str]] = {}
    for turn in range(arguments.rounds):
        for name, command in commands.items():
            with tempfile.TemporaryFile("w+") as printed:
                used[name].append(watch(command, ROOT, stdout=printed))
                printed.seek(0)
                labels[name] = [json.loads(line)["label"] for line in printed]
            print(f"round {turn + 1}: {name}: {used[name][-1].line(len(labels[name]))}", flush=True)
    same = {
        name: round(sum(map(str.__eq__, found, labels["ours"])) / len(found), 4)
        for name, found in labels.items()
        if name not in by_hand.RANDOM_WEIGHTS
    }
    versions = {name: version(name) for name in ("decord", "torchcodec", "openvino", "opencv-python-headless", "torch")}
    count = len(labels["ours"])
    runs = {name: _figures(found, count) for name, found in used.items()}
    return {"clips": count, "rounds": arguments.rounds, "versions": versions, "same_labels": same, "runs": runs}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "folder": folder, "reading": reading, "start": start, "exits": exits, "archive": archive, "cost": cost,
    "peers": peers,
}  # fmt: skip


def main() -> None:
    """Run the parts and store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--old", type=Path)
    parser.add_argument("--clips", type=Path, default=CLIPS)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--times", type=int, default=1, help="of each clip in the archive")
    arguments = parser.parse_args()
    path = RESULTS / "whole.json"
    for name in arguments.parts.split(","):
        stored = json.loads(path.read_text())["parts"] if path.is_file() else {}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        measured = PARTS[name](arguments)
        save("whole", {"parts": {**stored, name: {"commit": commit.stdout.strip(), **measured}}})


if __name__ == "__main__":
    main()
