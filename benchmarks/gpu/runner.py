"""Run the parts of a check, each in a process of its own with a time limit; write the whole report after every part."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafocus_edge.system.files import atomic_write

OK, FAILED, TIMED_OUT, SKIPPED = "ok", "failed", "timed out", "skipped"
SKIP_CODE = 77
"""Exit code of a part that cannot run here, as in Automake."""
GRACE_S = 3.0
"""Time from SIGTERM to SIGKILL."""
MIN_S = 1.0
LOG_LINES = 25


@dataclass(frozen=True)
class Limit:
    """A part's share of the time.

    Attributes:
        name: name of the part.
        share: share of the budget, relative to the other parts' shares.
        needs: a part that must have ended with ``ok``, or None.
    """

    name: str
    share: float
    needs: str | None = None


def run_parts(
    parts: Sequence[Limit],
    command: Callable[[str, float], list[str]],
    folder: Path,
    budget_s: float,
    report: dict[str, Any],
    write: Callable[[dict[str, Any]], None],
) -> None:
    """Run parts one after the other and write the report after each.

    Time that a part does not use goes to the next ones. A part that hangs is killed with all its processes.

    Args:
        parts: the parts, in order.
        command: returns the command that runs a part, from its name and limit in seconds.
        folder: folder for each part's result ``NAME.json`` and log ``NAME.log``.
        budget_s: seconds for all parts.
        report: the report; the entries of the parts are added to its ``parts``, by name.
        write: writes the report.
    """
    found: dict[str, Any] = report.setdefault("parts", {})
    total = sum(part.share for part in parts)
    spare = 0.0
    for part in parts:
        planned = budget_s * part.share / total
        if part.needs is not None and found.get(part.needs, {}).get("status", OK) != OK:
            entry: dict[str, Any] = {"status": SKIPPED, "why": f"{part.needs} did not end with ok", "seconds": 0.0}
        else:
            limit = max(MIN_S, planned + spare)
            print(f"{part.name}: at most {limit:.0f} s", flush=True)
            try:
                entry = {"limit_s": round(limit, 1), **run_part(part.name, command(part.name, limit), folder, limit)}
            except (KeyboardInterrupt, SystemExit):
                found[part.name] = {"status": TIMED_OUT, "why": "the run was interrupted", **kept(part.name, folder)}
                write(report)
                raise
        spare += planned - entry["seconds"]
        found[part.name] = entry
        write(report)
        why = f": {entry['why']}" if entry.get("why") else ""
        print(f"{part.name}: {entry['status']} after {entry['seconds']:.1f} s{why}", flush=True)


def run_part(name: str, command: list[str], folder: Path, limit_s: float) -> dict[str, Any]:
    """Run one part; return its entry in the report: status, seconds, result so far, and the end of its log."""
    result, log = folder / f"{name}.json", folder / f"{name}.log"
    result.unlink(missing_ok=True)
    started = time.monotonic()
    with log.open("wb") as output:
        running = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, start_new_session=True)
        try:
            code: int | None = running.wait(limit_s)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end(running)
    status = TIMED_OUT if code is None else {0: OK, SKIP_CODE: SKIPPED}.get(code, FAILED)
    entry: dict[str, Any] = {"status": status, "seconds": round(time.monotonic() - started, 2)}
    entry |= kept(name, folder)
    lines = log.read_text(errors="replace").splitlines()
    if status != OK:
        entry["why"] = f"exceeded {limit_s:.0f} s" if code is None else (lines or [f"exit code {code}"])[-1]
        entry["log_tail"] = lines[-LOG_LINES:]
    return entry


def kept(name: str, folder: Path) -> dict[str, Any]:
    """Return the result that a part has kept so far, as ``result``."""
    with suppress(OSError, ValueError):
        return {"result": json.loads((folder / f"{name}.json").read_text())}
    return {}


def end(running: subprocess.Popen[bytes]) -> None:
    """End a part and every process that it has started, which form a session of their own."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(running.pid, number)
        except ProcessLookupError:
            break
        with suppress(subprocess.TimeoutExpired):
            running.wait(GRACE_S)
    running.wait()


def write_json(path: Path, content: object) -> None:
    """Write a JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as file:
        file.write(json.dumps(content, indent=2).encode() + b"\n")
