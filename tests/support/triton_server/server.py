"""Starts NVIDIA's Triton server on a model repository, with the backend in backend.c in place of `onnxruntime`."""

from __future__ import annotations

import functools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from tests.support.streams import free_port

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
BINARY = ROOT / ".triton" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
START_S = 180


def need_triton() -> None:
    """Skip the test without the server binary or a C compiler, or fail it where ADAFOCUS_EDGE_REQUIRE_TOOLS=1."""
    missing = [] if BINARY.exists() else ["the Triton server is not installed here: scripts/triton-server"]
    if subprocess.run(["which", "gcc"], check=False, capture_output=True).returncode:
        missing.append("gcc is not installed here: scripts/system-packages")
    if missing and os.environ.get("ADAFOCUS_EDGE_REQUIRE_TOOLS") == "1" and sys.platform == "linux":
        pytest.fail(missing[0])
    if missing:
        pytest.skip(missing[0])


@functools.cache
def backends() -> Path:
    """Compile the backend once, in a folder that lasts as long as this process."""
    folder = tempfile.TemporaryDirectory(prefix="adafocus-edge-triton-")
    backends.keep = folder  # type: ignore[attr-defined]
    library = Path(folder.name) / "onnxruntime" / "libtriton_onnxruntime.so"
    library.parent.mkdir()
    subprocess.run(
        ["gcc", "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", library, HERE / "backend.c"],
        check=True, timeout=60,
    )  # fmt: skip
    return Path(folder.name)


class TritonServer:
    """A server of a repository; a context manager. It can be killed, and started again at the same port.

    Args:
        repository: its model repository.
        folder: for its log, and the list of the batches that it has run.
        lifetime_s: after which its processes end, whatever happens.
    """

    def __init__(self, repository: Path, folder: Path, lifetime_s: int = 600) -> None:
        self.repository, self.lifetime_s = repository, lifetime_s
        self.log, self._batches = folder / "triton.log", folder / "triton-batches"
        self.port = free_port()
        self.address = f"triton://127.0.0.1:{self.port}"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> TritonServer:
        """Start it, and wait until it accepts connections: then all models are loaded and warm."""
        words = [
            "timeout", "-k", "2", str(self.lifetime_s), BINARY, "--model-repository", self.repository,
            "--backend-directory", backends(), "--grpc-address", "127.0.0.1", "--grpc-port", self.port,
            "--allow-http", "false", "--allow-metrics", "false", "--exit-timeout-secs", "1",
        ]  # fmt: skip
        variables = {
            "TRITON_TEST_PYTHON": sys.executable, "TRITON_TEST_WORKER": HERE / "worker.py",
            "TRITON_TEST_LOG": self._batches, "ORT_DISABLE_TELEMETRY": "1",
        }  # fmt: skip
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                list(map(str, words)), stdout=log, stderr=log, start_new_session=True,
                env={**os.environ, **{name: str(value) for name, value in variables.items()}},
            )  # fmt: skip
        until_s = time.monotonic() + START_S
        while self._process.poll() is None and time.monotonic() < until_s:
            with socket.socket() as knock:
                if knock.connect_ex(("127.0.0.1", self.port)) == 0:
                    return self
            time.sleep(0.1)
        text = self.log.read_text()
        self.kill()
        raise RuntimeError(f"the server has not started:\n{text[-3000:]}")

    def kill(self) -> None:
        """End it at once, with its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def freeze(self) -> None:
        """Stop it, so that it accepts requests and never answers."""
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGSTOP)

    def batches(self, model: str) -> list[int]:
        """Rows of every batch of a model so far."""
        lines = self._batches.read_text().splitlines() if self._batches.exists() else []
        return [entry["rows"] for entry in map(json.loads, lines) if entry["model"] == model]

    def __enter__(self) -> TritonServer:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.kill()
