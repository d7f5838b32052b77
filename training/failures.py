"""What ends a training run early: signals, memory, and workers that cannot load a batch."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from adafocus_edge.errors import ShortageError, TrainingError
from training.options import TrainOptions


class Interruption:
    """Ctrl-C, SIGTERM and SIGHUP, handled between two batches; the second one at once. A context manager.

    Their exception would be lost, and the run continue, if it were raised inside a destructor, such as that of the
    data loader.
    """

    def __init__(self) -> None:
        self._before: dict[int, Any] = {}
        self._received: int | None = None

    def __enter__(self) -> None:
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):
            number = getattr(signal, name, signal.SIGTERM)  # Windows has no SIGHUP
            handler = signal.getsignal(number)
            if number not in self._before and callable(handler):  # an ignored signal stays ignored
                self._before[number] = signal.signal(number, self._receive)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def check(self) -> None:
        """Raise the exception of a signal received since the last check."""
        if self._received is not None:
            self._before[self._received](self._received, None)

    def _receive(self, number: int, frame: object) -> None:
        if self._received is not None:
            self._before[number](number, frame)
        self._received = number


@contextmanager
def wrap_loader_errors(options: TrainOptions) -> Iterator[None]:
    """Turn what a worker lacks (memory, files, processes) into ``TrainingError`` that names the option to lower."""
    try:
        yield
    except (RuntimeError, OSError, ShortageError) as error:  # a worker's exception has its traceback as text
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        why = lines[-1 if lines[0].startswith("Caught ") else 0]
        raise TrainingError(
            f"workers={options.workers}: a batch cannot be loaded ({why}): give fewer workers, or "
            "workers=0, or raise the limit of open files (ulimit -n), memory, or /dev/shm"
        ) from error


@contextmanager
def wrap_memory_errors(options: TrainOptions) -> Iterator[None]:
    """Turn running out of memory, on a device or the host, into ``TrainingError`` that names the options to lower.

    A failure to compile the backbones is one, too.
    """
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        text = str(error).lower()
        if options.compile and type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
            raise TrainingError(
                f"compile=true: the backbones cannot be compiled here ({next(iter(str(error).splitlines()), error)}): "
                "install a C++ compiler, or Triton for a GPU, or give compile=false"
            ) from None
        lost = "worker" in text and any(sign in text for sign in ("signal: killed", "bus error", "exited unexpectedly"))
        out = isinstance(error, (MemoryError, torch.OutOfMemoryError))
        if not (out or lost or "out of memory" in text or "can't allocate memory" in text):
            raise
        raise TrainingError(
            f"out of memory: lower batch_size (now {options.batch_size})"
            + (f" or workers (now {options.workers})" if lost or isinstance(error, MemoryError) else "")
            + f", patch_size ({options.patch_size}) or num_segments ({options.num_segments}); process {os.getpid()}"
        ) from None
