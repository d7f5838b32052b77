"""Python processes that start at once: a server imports what our modules need and forks for each run.

A run is a process of its own, with its own working folder, environment, arguments, files for stdout and stderr, signal
handlers and exit status, started as ``python -m MODULE`` starts it; only the imports are done. Tests of what is
imported, of terminals and of variables that libraries read while they load start Python themselves.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import io
import json
import os
import runpy
import select
import signal
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
DEVICE = (
    "PIL.Image av cv2 multiprocessing.forkserver numpy onnx onnxruntime pydantic rich.table uvicorn "
    "adafocus_edge.benchmark.run adafocus_edge.benchmark.tables adafocus_edge.cli.app adafocus_edge.cli.tables "
    "adafocus_edge.evaluation.evaluate adafocus_edge.live.session adafocus_edge.media.video_file "
    "adafocus_edge.runtime.classifier adafocus_edge.serve.session calibration.calibrate"
).split()
"""What most commands import."""
DEVICE += [
    f"adafocus_edge.cli.{verb}" for verb in "benchmark calibrate classify evaluate export serve train tune".split()
]
TORCH = [*DEVICE, "hydra", "torch", "torchvision", "training.train", "training.prepare", "export.exporter"]
"""What training and export import beside that."""
FREE = ("ADAFOCUS_EDGE_", "COLUMNS", "HOME", "PYTEST_", "TEST_", "TMPDIR", "XDG_")
"""Variables that a run may have of its own; libraries may have read others while they were imported."""

START_TIMEOUT_S = 300


class Prefork:
    """A server that forks.

    Args:
        modules: what it imports beforehand; those that are missing are skipped.
    """

    def __init__(self, modules: list[str]) -> None:
        self._environment = dict(os.environ)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.prefork", *modules],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT,
            bufsize=0,  # a reply that waits in a buffer is one that select does not see
        )  # fmt: skip
        atexit.register(self.close)

    def suits(self, environment: dict[str, str]) -> bool:
        """Whether a run may have this environment."""
        names = environment.keys() | self._environment.keys()
        return self._process.poll() is None and all(
            environment.get(name) == self._environment.get(name) for name in names if not name.startswith(FREE)
        )

    def run(
        self, module: str, arguments: list[str], cwd: Path, environment: dict[str, str], timeout_s: float
    ) -> subprocess.CompletedProcess[str]:
        """Run a module to its end. Raises ``subprocess.TimeoutExpired``."""
        with tempfile.TemporaryDirectory() as folder:
            out, err = Path(folder, "stdout"), Path(folder, "stderr")
            self._send({"module": module, "arguments": arguments, "cwd": str(cwd), "environment": environment,
                        "stdout": str(out), "stderr": str(err)})  # fmt: skip
            process = self._receive(START_TIMEOUT_S)  # the first run waits for the imports
            if not process:
                self._process.kill()
                raise RuntimeError(f"the server of forked runs gave no process within {START_TIMEOUT_S} s")
            status = self._receive(timeout_s)
            if status is None:
                os.kill(int(process), signal.SIGKILL)
                self._receive(START_TIMEOUT_S)
                raise subprocess.TimeoutExpired([module, *arguments], timeout_s)
            return subprocess.CompletedProcess([module, *arguments], int(status), out.read_text(), err.read_text())

    def close(self) -> None:
        """End the server."""
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
        self._process.wait(30)

    def _send(self, request: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request).encode() + b"\n")
        self._process.stdin.flush()

    def _receive(self, timeout_s: float) -> bytes | None:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], timeout_s)[0]:
            return None
        return self._process.stdout.readline()


_servers: dict[bool, Prefork] = {}


def run_module(
    module: str, arguments: list[str], cwd: Path | None, environment: dict[str, str], *, torch: bool, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m MODULE ARGUMENTS``, forked from a server where that makes no difference.

    Args:
        module: what to run.
        arguments: its command line.
        cwd: the folder that it runs in, or None for this process's.
        environment: all of its variables.
        torch: whether the server is the one that has PyTorch imported.
        timeout_s: how long it may take.
    """
    # A CUDA context does not survive a fork; nor do all of macOS's libraries.
    if sys.platform == "linux" and os.environ.get("ADAFOCUS_EDGE_REQUIRE_GPU") != "1":
        if torch not in _servers:
            _servers[torch] = Prefork(TORCH if torch else DEVICE)
        if _servers[torch].suits(environment):
            return _servers[torch].run(module, arguments, cwd or Path.cwd(), environment, timeout_s)
    return subprocess.run(
        [sys.executable, "-m", module, *arguments],
        capture_output=True, text=True, cwd=cwd, env=environment, timeout=timeout_s, check=False,
    )  # fmt: skip


def _serve(modules: list[str]) -> None:
    for name in modules:
        try:
            importlib.import_module(name)
        except ModuleNotFoundError:
            continue
    gc.collect()
    gc.freeze()  # children touch fewer pages
    replies = os.dup(1)
    os.dup2(2, 1)
    while request := sys.stdin.buffer.readline():
        with warnings.catch_warnings():  # of NumPy's threads, which wait
            warnings.simplefilter("ignore", DeprecationWarning)
            process = os.fork()
        if not process:
            os.close(replies)
            _become(json.loads(request))
            return
        os.write(replies, b"%d\n" % process)
        _, status = os.waitpid(process, 0)
        os.write(replies, b"%d\n" % os.waitstatus_to_exitcode(status))


def _become(request: dict[str, Any]) -> None:
    """Turn this process into what a fresh ``python -m MODULE`` is."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, place in ((0, os.devnull), (1, request["stdout"]), (2, request["stderr"])):
        opened = os.open(place, flags if number else os.O_RDONLY)
        os.dup2(opened, number)
        os.close(opened)
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]
    sys.stdout = sys.__stdout__ = _stream(1, "strict")  # type: ignore[misc]
    sys.stderr = sys.__stderr__ = _stream(2, "backslashreplace")  # type: ignore[misc]
    os.environ.clear()
    os.environ.update(request["environment"])
    os.chdir(request["cwd"])
    sys.path[0] = request["cwd"]
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


def _stream(number: int, errors: str) -> io.TextIOWrapper:
    return io.TextIOWrapper(
        io.BufferedWriter(io.FileIO(number, "w", closefd=False)), errors=errors, line_buffering=number == 2
    )


if __name__ == "__main__":
    _serve(sys.argv[1:])
