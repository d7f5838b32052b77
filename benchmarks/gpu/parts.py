"""The parts of a check, each a function that keeps its results after every row."""

from __future__ import annotations

import itertools
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, get_args

from adafocus_edge.backends.base import ConvSearch
from adafocus_edge.backends.registry import load_model
from adafocus_edge.errors import AdaFocusError
from adafocus_edge.runtime.glimpse import see_clip
from benchmarks.gpu import speed
from benchmarks.gpu.running import live, rows, training
from benchmarks.gpu.work import SkipPartError, Work, set_up
from benchmarks.official import CHECKPOINT, PATCH_SIZE, ROOT

TEST_LINE = re.compile(r"^(tests/\S+::.+?) (PASSED|FAILED|ERROR|SKIPPED|XFAIL|XPASS)")
REPORT_S = 5.0
"""Time of a part's limit that is reserved for its report."""


def setup(work: Work) -> None:
    """Make the model in FP32 and FP16."""
    work.keep("setup", set_up(work))


def engines(work: Work) -> None:
    """Build engines of both precisions with every installed TensorRT that runs on this GPU."""
    from adafocus_edge.backends.device.cuda import find_gpu
    from adafocus_edge.backends.tensorrt.build import BuildRequest, build
    from adafocus_edge.backends.tensorrt.library import NAMES, find_library
    from adafocus_edge.bundle.engines import BuildOptions
    from export.fuse import fuse

    found: list[dict[str, Any]] = []
    gpu = find_gpu() if work.on_gpu else None
    for library in NAMES:
        entry: dict[str, Any] = {"library": library}
        try:
            if gpu is None:
                raise SkipPartError("engines need a GPU, but --device is cpu")
            if (obstacle := find_library(library).gpu_obstacle(gpu)) is not None:
                raise SkipPartError(obstacle)
            for variant in ("fp16", "fp32"):
                request = BuildRequest(library, variant, options=BuildOptions(work.streams))
                done = build(work.bundle(), request, lambda: fuse, lambda *_: None)
                entry[f"{variant}_s"] = {row.graph: row.engine.build_s for row in done.rows}
        except (AdaFocusError, SkipPartError) as error:
            entry["not_built"] = str(error)
        found.append(entry)
        work.keep("engines", {"rows": found})
    if all("not_built" in entry for entry in found):
        raise SkipPartError("; ".join(entry["not_built"] for entry in found))


def tests(work: Work) -> None:
    """Run every test that needs a GPU; on the CPU, they are collected and skipped."""
    files = [path for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
    command = [sys.executable, "-m", "pytest", "-v", "-rs", "--tb=short", "-p", "no:cacheprovider", "-m", "gpu"]
    command += [str(path.relative_to(ROOT)) for path in files if path.name != "test_gpu_check.py"]
    environment = {**os.environ, **({"ADAFOCUS_EDGE_REQUIRE_GPU": "1"} if work.on_gpu else {})}
    found: dict[str, Any] = {"command": " ".join(command[1:]), "tests": {}}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT, env=environment
    ) as running:
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
            if seen := TEST_LINE.match(line):
                found["tests"][seen[1]] = seen[2].lower()
                work.keep("tests", found)
    if running.returncode:
        raise SystemExit(f"pytest ended with {running.returncode}")


def parity(work: Work) -> None:
    """Compare every backend and variant with the official code's outputs."""
    frames, (logits, places) = work.frames(), work.reference()
    _each(work, "parity", lambda model: speed.parity(model, frames, logits, places))


def latency(work: Work) -> None:
    """Time steps and clips of every backend and variant."""
    _each(work, "latency", lambda model: speed.latency(model, work.frames(), work.rounds))


def leaks(work: Work) -> None:
    """Measure whether memory grows over many steps."""
    _each(work, "leaks", lambda model: speed.leaks(model, work.frames(), work.steps))


def throughput(work: Work) -> None:
    """Count clips per second against the number of streams."""
    frames, found = work.frames(), _Rows(work, "throughput")
    for name, model in found.models():

        def keep(result: dict[str, Any], name: dict[str, str] = name) -> None:
            found.keep({**name, **result})

        try:
            speed.throughput(model, frames, work.rounds, work.streams, keep)
        except AdaFocusError as error:
            found.fail(name, error)
    found.check()


class _Rows:
    """The rows of one part, one per backend and variant, written after each."""

    def __init__(self, work: Work, part: str) -> None:
        self.work, self.part = work, part
        self.rows: dict[tuple[str, str], dict[str, Any]] = {}
        self.not_run: list[dict[str, str]] = []

    def keep(self, row: dict[str, Any]) -> None:
        """Keep a row; it replaces an earlier one of the same backend and variant."""
        self.rows[row["backend"], row["variant"]] = row
        self._write()

    def models(self) -> Iterator[tuple[dict[str, str], Any]]:
        """Load each backend and variant that can run; an error of one does not affect the others."""
        bundle = self.work.bundle()
        for backend, variant in self.work.combinations():
            name = {"backend": backend, "variant": variant}
            try:
                with load_model(bundle, variant, backend) as model:
                    yield name, model
            except AdaFocusError as error:
                self.fail(name, error)

    def fail(self, name: dict[str, str], error: Exception) -> None:
        """Keep the reason why a backend gave no row, or an incomplete one."""
        self.not_run.append({**name, "why": str(error)})
        self._write()

    def check(self) -> None:
        """Raise ``SystemExit`` if a row is not ok, or none ran."""
        if not self.rows:
            raise SystemExit(f"no backend ran: {self.not_run[0]['why']}")
        if wrong := [row for row in self.rows.values() if not row.get("ok", True)]:
            raise SystemExit(f"not ok: {wrong[0]}")

    def _write(self) -> None:
        self.work.keep(self.part, {"rows": list(self.rows.values()), "not_run": self.not_run})


def _each(work: Work, part: str, measure: Callable[[Any], dict[str, Any]]) -> None:
    """Measure every backend and variant. Raises ``SystemExit`` if one is not ok, or none ran."""
    found = _Rows(work, part)
    for name, model in found.models():
        try:
            found.keep({**name, **measure(model)})
        except AdaFocusError as error:  # raised by this backend while it runs
            found.fail(name, error)
    found.check()


def peers(work: Work) -> None:
    """Time PyTorch on the same device."""
    import torch

    from benchmarks.gpu.peers import peers as run
    from training.checkpoint import ModelOptions, read_checkpoint
    from training.checkpoint import load_model as load_checkpoint_model
    from training.model import AdaFocus

    if work.model == "official":
        read = read_checkpoint(work.folder / CHECKPOINT)
        model, weights = load_checkpoint_model(read, ModelOptions(patch_size=PATCH_SIZE)), read.weights
    else:
        torch.manual_seed(1)
        model = AdaFocus(work.bundle().spec)
        weights = {name.replace(".policy_old.", ".policy."): value for name, value in model.state_dict().items()}
    found = []
    for row in run(model, weights, work.frames(), work.rounds, work.on_gpu):
        found.append(row)
        work.keep("peers", {"rows": found})


def floor(work: Work) -> None:
    """Measure the shortest possible time of a step."""
    from benchmarks.gpu.peers import floor as measure

    work.keep("floor", measure(work.bundle(), work.on_gpu))


def conv_search(work: Work) -> None:
    """Time start-up and steady state for each search for convolution algorithms, each in a new process."""
    import multiprocessing

    backend, variant = next(work.combinations())
    found = []
    for search in get_args(ConvSearch):
        context = multiprocessing.get_context("spawn")
        mine, theirs = context.Pipe(duplex=False)
        process = context.Process(target=_start, args=(theirs, work, backend, variant, search))
        process.start()
        theirs.close()
        try:
            found.append({"backend": backend, "variant": variant, "conv_search": search, **mine.recv()})
        except EOFError:
            found.append({"conv_search": search, "failed": f"exit code {process.exitcode}"})
        process.join()
        work.keep("conv_search", {"rows": found})
    if any("failed" in row for row in found):
        raise SystemExit("a start failed: see the log above")


def _start(connection: Any, work: Work, backend: str, variant: str, search: ConvSearch) -> None:
    """Load a model and classify clips in a new process; send the start-up times."""
    frames = work.frames()
    marks = [time.perf_counter()]
    with load_model(work.bundle(), variant, backend, conv_search=search) as model:
        marks.append(time.perf_counter())
        for _ in range(2):
            list(see_clip(model, frames))
            marks.append(time.perf_counter())
        loop = speed.resident(model).steps(1)
        marks.append(time.perf_counter())
        steady = speed.latency(model, frames, work.rounds)
        del loop
    load_s, first_s, second_s, steps_s = (after - before for before, after in itertools.pairwise(marks))
    connection.send(
        {
            "load_s": round(load_s, 3),
            "first_clip_s": round(first_s, 4),
            "second_clip_s": round(second_s, 4),
            "making_step_loop_s": round(steps_s, 4),
            "step_ms": steady["step_ms"],
            "clip_ms": steady["clip_ms"],
        }
    )


def _timed(work: Work, part: Callable[[Work, float], None]) -> None:
    """Run a part that uses all the time it is given."""
    part(work, work.limit_s - REPORT_S)


PARTS: dict[str, Callable[[Work], None]] = {
    "setup": setup,
    "tests": tests,
    "engines": engines,
    "parity": parity,
    "live": lambda work: _timed(work, live),
    "throughput": throughput,
    "latency": latency,
    "peers": peers,
    "training": lambda work: _timed(work, training),
    "benchmark": lambda work: _timed(work, rows),
    "leaks": leaks,
    "conv_search": conv_search,
    "floor": floor,
}
"""The parts, the most important first."""
SHARES: dict[str, float] = {
    "setup": 75, "tests": 70, "engines": 10, "parity": 20, "live": 60, "throughput": 40, "latency": 20, "peers": 30,
    "training": 75, "benchmark": 30, "leaks": 20, "conv_search": 20, "floor": 10,
}  # fmt: skip
"""Seconds of each part, out of :data:`BUDGET_S`."""
BUDGET_S = 480.0
WITHOUT_MODEL = ("setup", "tests", "live", "training", "benchmark")
"""Parts that do not need the model from ``setup``."""
