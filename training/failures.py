"""What ends a training run early: signals, memory, and workers that cannot load a batch."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from adafocus_edge.errors import ShortageError, TrainingError
from training.options import TrainOptions


@contextmanager
def wrap_loader_errors(options: TrainOptions) -> Iterator[None]:
    """Turn what a worker lacks (memory, files, processes) into ``TrainingError`` that names the option to lower."""
    try:
        yield
    except (RuntimeError, OSError, ShortageError) as error:  # a worker's exception has its traceback as text
        lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
        why = lines[-1 if lines[0].startswith("Caught ") else 0]
        raise TrainingError(
            f"workers={options.workers}: loading data failed ({why}): use fewer workers, or "
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
