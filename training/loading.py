"""The data loader of training, and the lifetime of its workers and of kept frames."""

from __future__ import annotations

import os
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from multiprocessing import forkserver, get_context, parent_process, resource_tracker
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader

from adafocus_edge.errors import AdaFocusError, UsageError
from adafocus_edge.evaluation.dataset import Split
from adafocus_edge.model.spec import ModelSpec
from adafocus_edge.system.cpu import limit_cores, usable_cores
from adafocus_edge.system.interrupts import leave_interrupts_to_parent
from training.datasets import ClipDataset, EpochSampler, Keeping, collate
from training.distributed import Processes, gather
from training.frame_cache import FrameStore, disk_room, disk_store, memory_room, memory_store
from training.options import TrainOptions
from training.policy_cache import batch_option, update_clips

DISK_CACHE = ".frame-cache"
"""Folder of ``cache=disk`` within ``data_dir``."""


def make_dataset(
    split: Split, spec: ModelSpec, options: TrainOptions, keeping: Keeping | None, *, train: bool, crops: bool = True
) -> ClipDataset:
    """Return the data set of a split, as the options describe it."""
    return ClipDataset(
        split, spec, seed=options.seed, train=train, dense=options.dense_sample, colour_jitter=options.colour_jitter,
        flip=options.flip, crop_scales=options.crop_shares, keeping=keeping, crops=crops,
    )  # fmt: skip


def make_loader(data: ClipDataset, options: TrainOptions, processes: Processes, *, train: bool) -> DataLoader[Any]:
    """Return a loader of this process's share of the clips. Raises ``UsageError``.

    Its workers live as long as the loader: each sample's key holds the epoch.
    """
    clips = update_clips(options, len(data))
    if clips % processes.local:
        raise UsageError(f"{batch_option(options)}: must be a multiple of the {processes.local} processes")
    batch = clips // processes.local
    workers = min(options.workers, usable_cores()) // processes.local
    seed = options.seed if train else None
    sampler = EpochSampler(len(data), batch, seed, processes.rank, processes.world)
    # Samples have their own generators: the base seed of workers must not advance the generator of training.
    generator = torch.Generator().manual_seed(options.seed)
    return DataLoader(
        data, batch, sampler=sampler, num_workers=workers, collate_fn=collate, generator=generator,
        pin_memory=processes.device.type == "cuda", worker_init_fn=partial(_start_worker, data.memory_folder),
        multiprocessing_context=fork_server() if workers else None, persistent_workers=workers > 0,
        prefetch_factor=options.prefetch_factor if workers else None,
    )  # fmt: skip


def crops_on_device(options: TrainOptions, device: torch.device) -> bool:
    """Whether frames are cropped on the model's device. Raises ``UsageError`` if that is impossible."""
    if options.augment_on == "device" and options.cache == "off":
        raise UsageError(
            "augment_on=device: needs cache=ram or cache=disk, which limit the size of frames; with cache=off they may "
            "have any size"
        )
    return options.augment_on == "device" or (
        options.augment_on == "auto" and device.type == "cuda" and options.cache != "off"
    )


@contextmanager
def open_cache(
    options: TrainOptions, splits: tuple[Split, Split], spec: ModelSpec, processes: Processes
) -> Iterator[tuple[Keeping | None, list[str]]]:
    """Give the store of decoded frames that ``cache`` names and the machine has room for, and lines to log.

    All processes of a machine share one store. Frames that do not fit are decoded at each epoch, which changes no
    sample.
    """
    if options.cache == "off" or options.evaluate:
        keeping = None if options.cache == "off" else Keeping(options.cache_frames, None)
        yield keeping, []
        return
    if options.cache == "ram" and options.policy_cache != "off":
        # Both would use the same memory, and frames are of no use once the features are kept.
        yield (
            Keeping(options.cache_frames, None),
            ["cache: frames are not kept in RAM: policy_cache keeps features"],
        )
        return
    machines = gather(_machine())
    leader = machines.index(machines[processes.rank])
    with ExitStack() as stack:
        store, line = None, ""
        if processes.rank == leader:
            store, line = _open_store(stack, options, splits, spec)
        store, line = gather((store, line))[leader]
        yield Keeping(options.cache_frames, store), [line] if processes.rank == leader else []
        gather(None)  # no process removes frames that another still reads


def _open_store(
    stack: ExitStack, options: TrainOptions, splits: tuple[Split, Split], spec: ModelSpec
) -> tuple[FrameStore | None, str]:
    in_memory = options.cache == "ram"
    folder = Path(options.cache_dir).expanduser() if options.cache_dir else options.root / DISK_CACHE
    clips = sum(len(split.examples) for split in splits)
    try:
        store = stack.enter_context(memory_store() if in_memory else disk_store(folder))
        keeping = Keeping(options.cache_frames, store)
        parts = zip(splits, (True, False), strict=True)
        need = sum(make_dataset(s, spec, options, keeping, train=train).kept_bytes() for s, train in parts)
        room = memory_room() if in_memory else disk_room(folder)
    except (AdaFocusError, OSError) as error:
        return None, f"note: {error}: clips are decoded at each epoch"
    where = "RAM" if in_memory else f"disk in {folder}"
    if need == 0:
        return store, f"cache: {where} holds the frames of all {clips:,} clips"
    if need > room:
        other = "cache=disk" if in_memory else "cache_dir= on another disk"
        return None, (
            f"note: cache={options.cache}: {clips:,} clips need {_size(need)}, and {_size(room)} of "
            f"{where} may be used, so clips are decoded at each epoch: give {other}, fewer cache_frames= "
            f"(now {options.cache_frames}), or cache=off"
        )
    return store, f"cache: {_size(need)} of {where} for {clips:,} clips"


def _size(count: int) -> str:
    """Return a number of bytes as text."""
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def _machine() -> str:
    """Return an identity that processes with shared memory and disks have in common."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    shared = Path("/dev/shm")
    parts = [os.uname().nodename if hasattr(os, "uname") else "", boot.read_text().strip() if boot.is_file() else ""]
    return " ".join([*parts, str(shared.stat().st_dev) if shared.is_dir() else ""])


def try_queues(workers: int) -> None:
    """Create and drop the queues of a loader, which would print an error twice. Raises ``OSError``."""
    if workers:
        context = fork_server()
        made = [context.Event(), *(context.Queue() for _ in range(workers + 1))]
        del made


def fork_server() -> BaseContext:
    """Return the context of workers.

    They are forked from a process without threads: one forked here, beside those of Gloo or NCCL, may hang.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload(["training.datasets"])
    # Ctrl-C reaches every process of a terminal, but only the trainer handles it: these processes block it.
    resource_tracker.ensure_running()  # it would unblock the signal
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    return context


def _start_worker(memory: Path | None, _: int) -> None:
    """Let a worker leave Ctrl-C to the trainer, use one thread, and end when the trainer is killed, with its memory."""
    leave_interrupts_to_parent(reset_termination=True)
    torch.set_num_threads(1)
    limit_cores(1)
    threading.Thread(target=_end_with_trainer, args=(memory,), name="watch", daemon=True).start()


def _end_with_trainer(memory: Path | None) -> None:
    """End this worker when the trainer ends: its parent is the fork server, which does not end before its workers."""
    if (trainer := parent_process()) is not None:
        trainer.join()
        if memory is not None:
            shutil.rmtree(memory, ignore_errors=True)
        os._exit(1)
