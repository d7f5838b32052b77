"""Lose a batch between a worker of a data loader and the trainer, for want of shared memory; print the error.

In a process of its own, which has small files only.
"""

from __future__ import annotations

import resource
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
from torch.utils.data import DataLoader, Dataset

from adafocus_edge.errors import TrainingError
from training.datasets import collate
from training.train import Trainer


class Samples(Dataset[Any]):
    """Stands for clips."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict[str, Any]:
        return dict.fromkeys(("frames", "target", "number", "origins", "draws"), np.zeros(100_000, np.uint8))


if __name__ == "__main__":
    batches = DataLoader(Samples(), 2, num_workers=1, collate_fn=collate, multiprocessing_context="fork", timeout=60)
    trainer = SimpleNamespace(options=SimpleNamespace(workers=1), started=[])
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    try:
        next(Trainer._loaded(cast("Trainer", trainer), batches))
    except TrainingError as error:
        print(error)
