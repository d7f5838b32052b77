"""Measure the whole from file to answer against an older version, in one run, in turns.

Usage: python -m benchmarks.whole [--parts folder] [--old DIR] [--clips DIR] [--rounds 3]

Each part writes its own key of ``results/whole.json`` and leaves the others. To add one, write a function that takes
the arguments and returns what is to be stored, and enter it in ``PARTS``.

``--old`` is a folder with the older version's packages: ``git archive v0.1.0 | tar x -C DIR``.

``busy`` is the share of the cores' time in which the processes ran or were ready to run: on a machine that has other
work to do, it says what the programme would have used, and clips per second do not. ``cpu_ms_per_clip`` is the
processor time spent, start-up included.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from adafocus_edge.media.sources import find_sources
from benchmarks.machine import RESULTS, save
from benchmarks.watched import Usage, watch

ROOT = Path(__file__).parent.parent
CLIPS = ROOT / "tests" / "fights"
IGNORED = ("latency_ms", "model_ms")
"""Keys of a result that differ from run to run."""


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


def _classified(home: Path, clips: Path, more: tuple[str, ...]) -> tuple[Usage, list[dict[str, Any]]]:
    with tempfile.NamedTemporaryFile("w+") as printed:
        command = [sys.executable, "-m", "adafocus_edge", "classify", str(clips), "--json", "--quiet", *more]
        usage = watch(command, home, stdout=printed)
        printed.seek(0)
        found = [json.loads(line) for line in printed]
    return usage, [{key: value for key, value in entry.items() if key not in IGNORED} for entry in found]


def _figures(used: list[Usage], count: int) -> dict[str, Any]:
    return {
        "clips_per_s": round(statistics.median(count / usage.wall_s for usage in used), 2),
        "cpu_ms_per_clip": round(statistics.median(usage.cpu_s / count * 1e3 for usage in used), 1),
        "busy": round(statistics.median(usage.busy for usage in used), 3),
        "peak_mb": round(max(usage.peak_bytes for usage in used) / 1e6, 1),
        "rounds": [asdict(usage) for usage in used],
    }


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"folder": folder}


def main() -> None:
    """Run the parts and store them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--old", type=Path)
    parser.add_argument("--clips", type=Path, default=CLIPS)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    path = RESULTS / "whole.json"
    for name in arguments.parts.split(","):
        stored = json.loads(path.read_text())["parts"] if path.is_file() else {}
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
        measured = PARTS[name](arguments)
        save("whole", {"parts": {**stored, name: {"commit": commit.stdout.strip(), **measured}}})


if __name__ == "__main__":
    main()
