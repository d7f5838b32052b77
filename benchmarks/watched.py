"""Run a command and measure it with all processes that it starts: time, processor time, readiness, memory."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from adafocus_edge.system.cpu import usable_cores

EVERY_S = 0.1
"""Between two looks at the processes."""


@dataclass(frozen=True)
class Usage:
    """What a command took.

    Attributes:
        wall_s: from start to end.
        cpu_s: processor time of the command and its descendants.
        busy: share of the usable cores' time in which a thread of theirs ran or was ready to run; the last tenth of a
            second of a thread may be missing.
        peak_bytes: most memory of all of them at a time; what they share counts once.
    """

    wall_s: float
    cpu_s: float
    busy: float
    peak_bytes: int

    def line(self, clips: int) -> str:
        """Return the figures for a number of clips in words."""
        return (
            f"{clips / self.wall_s:.2f} clips/s, {self.cpu_s / clips * 1e3:.1f} ms CPU per clip, "
            f"{self.busy:.0%} busy, {self.peak_bytes / 1e6:.0f} MB"
        )


def watch(
    command: list[str], home: Path, stdout: IO[str] | int = subprocess.DEVNULL, *, also: int | None = None
) -> Usage:
    """Run a command in a folder that is also Python's path.

    Args:
        command: to run; one that ends with status 1, as with a damaged clip, has not failed.
        home: the folder.
        stdout: where it prints.
        also: a process that works for the command, with its descendants, such as a cluster's.

    Raises ``CalledProcessError`` if it fails.
    """
    before: dict[Path, tuple[int, int]] = {}
    for pid in _tree(also) if also else ():
        _look(pid, before)
    started = time.perf_counter()
    process = subprocess.Popen(command, cwd=home, env={**os.environ, "PYTHONPATH": str(home)}, stdout=stdout)
    seen: dict[Path, tuple[int, int]] = {}
    peak = 0
    while process.poll() is None:
        tree = [*_tree(process.pid), *(_tree(also) if also else ())]
        peak = max(peak, sum(map(_shared_bytes, tree)))
        for pid in tree:
            _look(pid, seen)
        time.sleep(EVERY_S)
    wall_s = time.perf_counter() - started
    if process.returncode not in (0, 1):
        raise subprocess.CalledProcessError(process.returncode, command)
    spent = [
        (ran - before.get(task, (0, 0))[0], waited - before.get(task, (0, 0))[1])
        for task, (ran, waited) in seen.items()
    ]
    ran, waited = (sum(times) / 1e9 for times in zip(*spent, strict=True))
    return Usage(wall_s, ran, min(1.0, (ran + waited) / (wall_s * usable_cores())), peak)


def _tree(pid: int) -> list[int]:
    """Return a process and its descendants."""
    found = [pid]
    for parent in found:
        for children in Path(f"/proc/{parent}/task").glob("*/children"):
            with suppress(OSError):
                found += [int(child) for child in children.read_text().split()]
    return found


def _shared_bytes(pid: int) -> int:
    """Return the memory of a process, with its share of what it shares."""
    with suppress(OSError, IndexError, ValueError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def _look(pid: int, seen: dict[Path, tuple[int, int]]) -> None:
    """Note how long each thread of a process has run and waited for a core, in ns."""
    for task in Path(f"/proc/{pid}/task").glob("*/schedstat"):
        with suppress(OSError, ValueError):
            ran, waited, _ = task.read_text().split()
            seen[task] = (int(ran), int(waited))
