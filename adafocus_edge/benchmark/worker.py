"""Run each loaded model in a process of its own: separate thread pools and memory; a crash ends only its rows."""

from __future__ import annotations

import logging
import multiprocessing
import os
import time
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.benchmark.energy import EnergyMeter
from adafocus_edge.benchmark.timing import Bench, Timing
from adafocus_edge.errors import AdaFocusError, BackendError
from adafocus_edge.system.interrupts import leave_interrupts_to_parent

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from numpy.typing import NDArray

    from adafocus_edge.benchmark.grid import Loading, Row
    from adafocus_edge.model.exits import ExitThresholds, Order

PATIENCE_S = 5.0
"""Time for a process to end by itself before it is killed."""


@dataclass(frozen=True)
class Opening:
    """The arguments of a process.

    Attributes:
        loading: the model to load.
        bundle: the bundle's folder.
        checkpoint: checkpoint for peers that run in PyTorch, or None.
        row: the setting of its first result.
        source: the clip of its first result.
        on_gpu: whether peers run on the GPU.
    """

    loading: Loading
    bundle: Path
    checkpoint: Path | None
    row: Row
    source: Any
    on_gpu: bool = False


@dataclass(frozen=True)
class Ready:
    """A process's report after its first result.

    Attributes:
        load_ms: time to read and check the bundle and load the model.
        first_ms: time from then to the first result.
        gflops_per_step: multiply-adds per step, in units of 1e9.
        energy_of: the device whose joules it measures; empty without an energy sensor.
    """

    load_ms: float
    first_ms: float
    gflops_per_step: float
    energy_of: str


@dataclass(frozen=True)
class Memory:
    """The memory of a process, in megabytes.

    Attributes:
        host_mb: peak main memory, including Python and all libraries.
        device_mb: GPU memory, or None without a GPU.
    """

    host_mb: float
    device_mb: float | None


class Worker:
    """A running process with a loaded model; the constructor returns after its first result.

    Raises any error that loading raised.
    """

    def __init__(self, opening: Opening) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        started = time.perf_counter()
        self._process = context.Process(target=_serve, args=(theirs, opening), daemon=True, name="bench")
        self._process.start()
        theirs.close()
        try:
            self.ready: Ready = self._answer()
        except BaseException:
            self.close()
            raise
        self.cold_start_ms = (time.perf_counter() - started) * 1e3
        """From the start of the process to its first result."""

    def time(self, row: Row, source: Any, *, parts: bool = False) -> Timing:
        """Run a row once; see :meth:`Bench.time`. Raises ``BackendError`` if the process has ended."""
        timing: Timing = self._ask("time", row, source, parts)
        return timing

    def logits(self, frames: Path, clip: int, order: Order) -> NDArray[np.float32]:
        """Return the logits of one clip of a file of clips, uint8 [N, T, S, S, 3]; see :meth:`Bench.logits`."""
        found: NDArray[np.float32] = self._ask("logits", frames, clip, order)
        return found

    def memory(self) -> Memory:
        """Return the memory that the process uses."""
        found: Memory = self._ask("memory")
        return found

    def close(self) -> None:
        """End the process."""
        with suppress(OSError):
            self._connection.send(("stop",))
        self._process.join(PATIENCE_S)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._connection.close()

    def _ask(self, *question: Any) -> Any:
        try:
            self._connection.send(question)
        except OSError:
            raise self._gone() from None
        return self._answer()

    def _answer(self) -> Any:
        try:
            answer = self._connection.recv()
        except (EOFError, OSError):
            raise self._gone() from None
        if isinstance(answer, Exception):
            raise answer
        return answer

    def _gone(self) -> BackendError:
        self._process.join(PATIENCE_S)
        return BackendError(f"its process ended by itself (exit status {self._process.exitcode})")


def _serve(connection: Connection, opening: Opening) -> None:
    """Load the model, then answer requests until the parent process stops it."""
    leave_interrupts_to_parent()
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)  # PyTorch's compiler logs missing optional parts
    try:
        bench, meter, ready = _open(opening)
    except Exception as error:
        connection.send(_as_user_error(error))
        return
    with meter:
        connection.send(ready)
        clips: dict[Path, NDArray[np.uint8]] = {}
        while True:
            try:
                what, *arguments = connection.recv()
            except EOFError:
                return
            try:
                if what == "stop":
                    return
                if what == "time":
                    row, source, parts = arguments
                    connection.send(bench.time(row, source, parts=parts))
                elif what == "logits":
                    path, clip, order = arguments
                    if path not in clips:
                        clips[path] = np.load(path, mmap_mode="r")
                    connection.send(bench.logits(np.ascontiguousarray(clips[path][clip]), order))
                else:
                    connection.send(_memory())
            except Exception as error:
                connection.send(_as_user_error(error))


def _open(opening: Opening) -> tuple[Bench, EnergyMeter, Ready]:
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.benchmark.peers import gflops_per_step, load_peer
    from adafocus_edge.bundle.store import read_bundle

    loading = opening.loading
    started = time.perf_counter()
    bundle = read_bundle(opening.bundle)
    if loading.peer:
        peer = load_peer(bundle, loading.backend, loading.threads, opening.checkpoint, on_gpu=opening.on_gpu)
        model, gflops = peer.model, peer.gflops_per_step
    else:
        model = load_model(bundle, loading.variant, loading.backend, loading.threads)
        gflops = gflops_per_step(bundle, loading.backend, loading.variant)
    loaded = time.perf_counter()

    def exits_of(name: str) -> ExitThresholds:
        kind, _, order = name.partition("/")
        return next(one for one in bundle.manifest.thresholds[kind] if one.order == order)

    meter = EnergyMeter()
    bench = Bench(model, bundle.classes, exits_of, meter)
    bench.time(opening.row, opening.source)
    first_ms = (time.perf_counter() - loaded) * 1e3
    return bench, meter, Ready((loaded - started) * 1e3, first_ms, gflops, meter.of)


def _as_user_error(error: Exception) -> AdaFocusError:
    """Return an error that can be sent to another process."""
    if isinstance(error, AdaFocusError):
        return type(error)(*error.args) if type(error).__init__ is AdaFocusError.__init__ else AdaFocusError(str(error))
    first = (str(error).splitlines() or [""])[0]
    return BackendError(f"failed ({type(error).__name__}: {first})")


def _memory() -> Memory:
    status = Path("/proc/self/status")
    if status.is_file():
        host_mb = int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    else:
        import resource

        host_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes, on macOS
    return Memory(host_mb, _device_mb())


def _device_mb() -> float | None:
    """Return the GPU memory that this process holds, as reported by NVML."""
    with suppress(Exception):  # no driver, no package, or a system that does not report it
        import pynvml

        pynvml.nvmlInit()
        used = 0
        for index in range(pynvml.nvmlDeviceGetCount()):
            handle = pynvml.nvmlDeviceGetHandleByIndex(index)
            for process in pynvml.nvmlDeviceGetComputeRunningProcesses(handle):
                if process.pid == os.getpid():
                    used += process.usedGpuMemory or 0
        return used / 2**20 if used else None
    return None
