"""Several processes: started by torchrun, by hand, or one per GPU as in the official code."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Any

import torch
import torch.distributed as dist
from torch.multiprocessing.spawn import ProcessException, spawn

import adafocus_edge.errors
from adafocus_edge.errors import AdaFocusError, TrainingError, UsageError
from training.options import TrainOptions


@dataclass(frozen=True)
class Processes:
    """This process and the others of the run.

    Attributes:
        rank: number of this process, from 0.
        world: number of processes on all machines.
        local: number of processes on this machine.
        device: device of this process.
    """

    rank: int
    world: int
    local: int
    device: torch.device

    @property
    def first(self) -> bool:
        """Whether this is the process that writes and prints."""
        return self.rank == 0

    def total(self, count: int) -> int:
        """Return the sum of every process's count."""
        if self.world == 1:
            return count
        counts = torch.tensor(count, device=self.device)
        dist.all_reduce(counts)
        return int(counts)

    def share_buffers(self, module: torch.nn.Module) -> None:
        """Copy the first process's buffers to all: each process gathers its own statistics in batch norms."""
        if self.world > 1:
            for buffer in module.buffers():
                dist.broadcast(buffer, 0)


def gather(value: Any) -> list[Any]:
    """Return every process's value, in the order of ranks."""
    if not dist.is_available() or not dist.is_initialized():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def launch(options: TrainOptions, work: Callable[[Processes], None]) -> None:
    """Run ``work`` in this process, in one process per GPU, or as one of the processes that torchrun started.

    Raises ``UsageError`` if options contradict each other, ``TrainingError`` if the processes cannot connect.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        local = int(os.environ["LOCAL_WORLD_SIZE"])
        device = _device(options, int(os.environ["LOCAL_RANK"]))
        with _group(options, device, "env://", int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])) as (rank, world):
            work(Processes(rank, world, local, device))
        return
    local = _local_processes(options)
    world = local * options.world_size
    if world > 1 and options.distributed is False:
        raise UsageError(f"distributed=false: but world_size and the GPUs give {world} processes")
    if local > 1:
        _spawn(options, work, local, world)
        return
    device = _device(options, options.gpu or 0)
    if world == 1:
        work(Processes(0, 1, 1, device))
        return
    # Started by hand: each process has its rank as an option, and counts as a machine of its own.
    with _group(options, device, options.dist_url, options.rank, world) as (rank, size):
        work(Processes(rank, size, 1, device))


def _spawn(options: TrainOptions, work: Callable[[Processes], None], local: int, world: int) -> None:
    """Run one process per GPU, and end them all when one fails or this one is stopped."""
    errors: Any = get_context("spawn").SimpleQueue()
    running = spawn(  # type: ignore[no-untyped-call]
        _spawned, args=(options, work, local, world, errors), nprocs=local, join=False
    )
    try:
        while not running.join():
            pass
    except ProcessException:
        if errors.empty():
            raise
        kind, text = errors.get()
        raise getattr(adafocus_edge.errors, kind)(text) from None
    finally:
        for process in running.processes:
            if process.is_alive():
                process.terminate()
            process.join()


def _spawned(
    number: int, options: TrainOptions, work: Callable[[Processes], None], local: int, world: int, errors: Any
) -> None:
    device = torch.device("cuda", number)
    try:
        with _group(options, device, options.dist_url, options.rank * local + number, world) as (rank, size):
            work(Processes(rank, size, local, device))
    except AdaFocusError as error:
        # PyTorch's exception for a failed process would not show this text to the user.
        errors.put((type(error).__name__, str(error)))
        raise


def _local_processes(options: TrainOptions) -> int:
    """Return the number of processes on this machine: one per GPU with ``multiprocessing_distributed``."""
    if not options.multiprocessing_distributed or options.gpu is not None or options.device not in ("auto", "cuda"):
        return 1
    return max(1, torch.cuda.device_count())


def _device(options: TrainOptions, number: int) -> torch.device:
    if options.device == "cpu" or (options.device == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    device = torch.device(options.device if ":" in options.device else f"cuda:{number}")
    if device.type != "cuda" or not torch.cuda.is_available() or (device.index or 0) >= torch.cuda.device_count():
        raise UsageError(f"device={options.device}: this machine has {torch.cuda.device_count()} CUDA devices")
    return device


@contextmanager
def _group(
    options: TrainOptions, device: torch.device, address: str, rank: int, world: int
) -> Iterator[tuple[int, int]]:
    """Join the other processes; NCCL needs a GPU, so the CPU uses Gloo."""
    backend = "gloo" if device.type == "cpu" else options.dist_backend
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        dist.init_process_group(backend, init_method=address, rank=rank, world_size=world)
    except (RuntimeError, ValueError, OSError) as error:
        first = str(error).splitlines()[0]
        raise TrainingError(f"process {rank} of {world} cannot join the others at {address}: {first}") from None
    try:
        yield rank, world
    finally:
        dist.destroy_process_group()
