"""Fuzz the product: thousands of hostile inputs, each of which must give a result or a one-line error.

    python -m benchmarks.fuzz [--inputs 10000] [--first 0] [--targets video graph ...] [--minutes 60]

The inputs are those of ``tests/support/fuzzing.py``, one per seed: ``--targets T --first SEED --inputs 1`` reproduces a
finding. They run in a process that is restarted when an input crashes it (in a library) or takes longer than a minute.
Such an input is a finding, as is one that takes more than 3 GB of memory or raises an error that is not an
``AdaFocusError``. Finally, Schemathesis sends valid and invalid requests, made from its OpenAPI description, to the
page's server.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import warnings
from collections import Counter
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.machine import save
from tests.support.fuzzing import TARGETS, Outcome, api, attack

MAX_S = 60.0
MAX_BYTES = 3 << 30
SHARES = {
    "video": 0.2,
    "frames": 0.1,
    "manifest": 0.2,
    "graph": 0.15,
    "checkpoint": 0.1,
    "lists": 0.15,
    "requests": 0.1,
}
"""Share of the inputs, by target."""


class Victim:
    """A process that inputs are fed to."""

    def __init__(self, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, folder), daemon=True)
        self._process.start()
        theirs.close()

    def feed(self, target: str, seed: int) -> tuple[Outcome, float]:
        """Feed one input; return the outcome and the seconds. A crash or a hang ends the process."""
        started = time.monotonic()
        try:
            self._connection.send((target, seed))
            if self._connection.poll(MAX_S):
                outcome: Outcome = self._connection.recv()
                return outcome, time.monotonic() - started
            text = f"hung for {MAX_S:g} s"
        except (EOFError, OSError):
            self._process.join(5)
            text = f"crashed (exit status {self._process.exitcode})"
        self.close()
        return Outcome("escaped", text), time.monotonic() - started

    @property
    def alive(self) -> bool:
        """Whether it can be fed."""
        return self._process.is_alive()

    def close(self) -> None:
        """Kill the process."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(connection: Connection, folder: Path) -> None:
    warnings.simplefilter("ignore")
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, 2)  # libraries log errors about the inputs
    import torch  # noqa: F401 - before memory is measured, so that it does not count

    with suppress(ValueError):
        size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + 2 * MAX_BYTES, size + 2 * MAX_BYTES))
    while True:
        try:
            target, seed = connection.recv()
        except EOFError:
            return
        place = folder / "input"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        try:
            outcome = attack(target, seed, place)
        except MemoryError:
            outcome = Outcome("escaped", "out of memory")
        grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
        if grown > MAX_BYTES:
            outcome = Outcome("escaped", f"took {grown >> 20} MB ({outcome.kind}: {outcome.text})")
        connection.send(outcome)


def main() -> None:
    """Run, print and write ``results/fuzz.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first input of each target")
    parser.add_argument("--targets", nargs="+", choices=list(TARGETS), default=list(TARGETS))
    parser.add_argument("--minutes", type=float, default=120.0, help="max minutes to run, without the API's part")
    parser.add_argument("--api-examples", type=int, default=200, help="requests per operation of the API; 0 for none")
    parser.add_argument("--no-save", action="store_true")
    asked = parser.parse_args()
    began = time.monotonic()
    counts: dict[str, Counter[str]] = {target: Counter() for target in asked.targets}
    slowest = dict.fromkeys(asked.targets, 0.0)
    findings: list[dict[str, Any]] = []
    whole = sum(SHARES[target] for target in asked.targets)
    left = {target: max(1, round(asked.inputs * SHARES[target] / whole)) for target in asked.targets}
    with tempfile.TemporaryDirectory() as folder:
        victim = Victim(Path(folder))
        number = asked.first
        while any(left.values()) and time.monotonic() - began < asked.minutes * 60:
            for target in asked.targets:
                if not left[target]:
                    continue
                left[target] -= 1
                if not victim.alive:
                    victim = Victim(Path(folder))
                outcome, seconds = victim.feed(target, number)
                counts[target][outcome.kind] += 1
                slowest[target] = max(slowest[target], seconds)
                if outcome.kind == "escaped":
                    findings.append({"target": target, "seed": number, "text": outcome.text})
                    print(f"{target} {number}: {outcome.text[:300]}", flush=True)
            number += 1
            if number % 100 == 0:
                print(f"{sum(sum(c.values()) for c in counts.values())} inputs, {len(findings)} findings", flush=True)
        victim.close()
    rows = {target: {**counts[target], "slowest_s": round(slowest[target], 2)} for target in asked.targets}
    inputs = sum(sum(c.values()) for c in counts.values())
    if asked.api_examples:
        with tempfile.TemporaryDirectory() as folder:
            found = api(asked.api_examples, asked.first, Path(folder))
        inputs += found["test_cases"]["generated"]
        rows["api"] = {"requests": found["test_cases"]["generated"], "running_s": round(found["running_time"], 1)}
        failed = [*found["failures"], *found["errors"]]
        if failed or not found["alive"]:
            findings.append({"target": "api", "seed": asked.first, "text": found["text"]})
    report = {"inputs": inputs, "targets": rows, "findings": findings}
    print(json.dumps(report, indent=2))
    if not asked.no_save:
        print(save("fuzz", report))
    sys.exit(bool(findings))


if __name__ == "__main__":
    main()
