"""The training loop of all four stages: epochs of updates, validation, checkpoints."""

from __future__ import annotations

import json
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from adafocus_edge.errors import DataError, TrainingError, UsageError
from adafocus_edge.evaluation.metrics import accuracy_curve, top_k_accuracy
from adafocus_edge.model.logits import softmax
from adafocus_edge.system.console import progress_bars
from adafocus_edge.system.interrupts import DeferredSignals
from adafocus_edge.system.printable import printable
from training.averaging import STATE, WeightAverage
from training.compose import Composed, as_yaml, compose_options
from training.datasets import Batch, EpochSampler
from training.distributed import Processes, gather, launch
from training.failures import wrap_loader_errors, wrap_memory_errors
from training.loading import crops_on_device, make_dataset, make_loader, open_cache, try_queues
from training.models.registry import FAMILIES
from training.options import model_spec
from training.policy_cache import CacheBuilder, KeptBatches, batch_option, remove_cache, resolve_cache
from training.policy_watch import policy_warning
from training.progress import Progress
from training.report import Log, epoch_line, open_recorder, print_evaluation
from training.resume import BEST, LAST, TrainingState
from training.splits import read_splits, split_notes
from training.stages import GlimpseStage

Batches: TypeAlias = "DataLoader[Any] | KeptBatches"
"""The batches of an epoch."""

CONFIG = "config.yaml"


def run(overrides: list[str], quiet: bool) -> None:
    """Compose ``key=value`` options, and train or evaluate."""
    run_composed(compose_options(overrides), quiet)


def run_composed(composed: Composed, quiet: bool, *, as_json: bool = False) -> None:
    """Train or evaluate with checked options; print the outcome as JSON at the end if ``as_json``."""
    if not quiet:
        for note in composed.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
    launch(composed.options, _Work(composed, quiet, as_json))


@dataclass(frozen=True)
class _Work:
    """The work of one process; an object that can be sent to other processes."""

    composed: Composed
    quiet: bool
    as_json: bool

    def __call__(self, processes: Processes) -> None:
        with wrap_memory_errors(self.composed.options):
            quiet = self.quiet or not processes.first
            Trainer(self.composed, processes, quiet, as_json=self.as_json and processes.first).run()


class Trainer:
    """One stage of training in one process.

    Args:
        composed: the options.
        processes: this process and the others.
        quiet: whether to print errors and results only.
        as_json: whether to print the outcome as JSON.
    """

    def __init__(self, composed: Composed, processes: Processes, quiet: bool, *, as_json: bool = False) -> None:
        self.options = options = composed.options
        self.composed = composed
        self.processes = processes
        self.quiet = quiet
        self.as_json = as_json
        self.log = Log(quiet=quiet, records=processes.first)
        for note in composed.notes:  # printed before this process began
            self.log.record(f"note: {note}")
        if cache_note := resolve_cache(options, processes.world):
            self.log(f"note: {cache_note}")
        self.train_split, self.val_split = read_splits(options)
        for note in split_notes(self.train_split, self.val_split, options.motion_gap_s):
            self.log(f"note: {note}")
        family = FAMILIES[options.family]
        self.spec = family.spec(options, len(self.val_split.classes))
        torch.manual_seed(options.seed + processes.rank)
        self.model = family.build(self.spec, options)
        start = family.load_start(self.model, composed, self.val_split.classes, self.log)
        self.model.to(processes.device).to(memory_format=torch.channels_last)
        if processes.world > 1 and processes.device.type == "cuda":
            # Statistics over the whole batch, as one process would have them.
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        if options.compile:
            self.model.compile_backbones()
        self.stage = family.stage(self.model, options)
        amp = options.amp and processes.device.type == "cuda"
        self.autocast = torch.autocast(processes.device.type, torch.float16, enabled=amp)
        self.state = TrainingState(self.stage.optimizer(), torch.amp.GradScaler(processes.device.type, enabled=amp))
        self.run_dir = composed.run_dir
        self.resumes = start is not None
        trained = [module for module, _ in self.stage.trained()]
        self.average = WeightAverage(trained, options.ema if self.stage.averages else 0.0)
        if start is not None:
            self.state.restore(start, composed, processes, self.log)
            self.average.restore(start.state, start.path)
            if not composed.chose_run_dir:
                self.run_dir = start.path.resolve().parent
        self.wrapped: torch.nn.Module = self.stage
        if processes.world > 1:
            devices = [processes.device] if processes.device.type == "cuda" else None
            self.wrapped = DistributedDataParallel(self.stage, devices, find_unused_parameters=True)
        self.failed: set[str] = set()
        self.shortage = ""
        self.started: list[Batches] = []
        self.interruption = DeferredSignals()

    # -- the loop -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Train to the last epoch, or evaluate once."""
        options, processes = self.options, self.processes
        splits = (self.train_split, self.val_split)
        crops = not crops_on_device(options, processes.device)
        with open_cache(options, splits, self.spec, processes) as (keeping, lines):
            for line in lines:
                self.log(line)
            seen = make_dataset(self.val_split, self.spec, options, keeping, train=False)
            if options.evaluate:
                found = self.validate(make_loader(seen, options, processes, train=False))
                self._report_evaluation(found, self._count_failed())
                return
            data = make_dataset(self.train_split, self.spec, options, keeping, train=True, crops=crops)
            # Passed on without a name: once the policy cache needs no clips, their workers can end.
            self._train(
                make_loader(data, options, processes, train=True), make_loader(seen, options, processes, train=False)
            )

    def _train(self, batches: Batches, validation: Batches) -> None:
        """Train to the last epoch."""
        options, state = self.options, self.state
        if len(batches) == 0:
            share = f" in each of {self.processes.world} processes" if self.processes.world > 1 else ""
            raise UsageError(
                f"{batch_option(options)}: larger than the split: {self.train_split.origin} has "
                f"{len(self.train_split.examples)} clips{share}"
            )
        self._prepare_run_dir()
        if state.epoch >= options.epochs:
            self.log(f"nothing to do: {options.resume} has finished its {state.epoch} epochs (epochs={options.epochs})")
            self._print_outcome()
            return
        with self._report_how_to_resume(), progress_bars(self.quiet) as bars, self.interruption:
            progress = Progress(bars, self.log)
            if options.policy_cache != "off":
                batches, validation = self._cached(batches, validation, progress)
            self._train_epochs(batches, validation, progress)
        if self.processes.first:
            remove_cache(options, self.run_dir)
        self.log(f"done: {self.run_dir / LAST}, best {options.best_by} {state.best:.2f}: {self.run_dir / BEST}")
        self._print_outcome()

    def _train_epochs(self, batches: Batches, validation: Batches, progress: Progress) -> None:
        """Train and validate, save and record, epoch by epoch."""
        options, state = self.options, self.state
        with self._open_recorder() as record:
            while state.epoch < options.epochs:
                started = time.monotonic()
                trained = self._train_epoch(batches, progress)
                state.epoch += 1
                with self.average.applied():
                    found = self._validate_and_save(trained, validation, progress)
                seconds = time.monotonic() - started
                record(trained, found, seconds, self._count_failed())
                left = progress.count_epoch(seconds, options.epochs - state.epoch)
                self.log(f"epoch {state.epoch}/{options.epochs}: {epoch_line(trained, found)}  ({seconds:.0f} s{left})")

    def _validate_and_save(
        self, trained: dict[str, Any], validation: Batches, progress: Progress
    ) -> dict[str, Any] | None:
        """Validate if the epoch is one to validate, and write the checkpoints; return the validation's figures."""
        options, state, found = self.options, self.state, None
        if state.epoch % options.eval_freq == 0 or state.epoch == options.epochs:
            found = self.validate(validation, progress)
            if warning := policy_warning(trained, found, options):
                self.log(f"warning: epoch {state.epoch}: {warning}")
        more = {STATE: self.average.state()}
        state.save(
            self.stage.layout(), self.composed, self.val_split.classes, self.processes, found, self.run_dir, more
        )
        return found

    @contextmanager
    def _open_recorder(self) -> Iterator[Any]:
        """Give a function that records an epoch's figures; only the first process does."""
        if not self.processes.first:
            yield lambda *_: None
            return
        with open_recorder(self.run_dir, self.state.epoch, asdict(self.options)) as recorder:
            yield lambda *figures: recorder.record(self.state.epoch, *figures)

    def _cached(self, batches: Batches, validation: Batches, progress: Progress) -> tuple[KeptBatches, KeptBatches]:
        """Return batches of features that are computed once."""
        assert isinstance(self.stage, GlimpseStage)
        assert isinstance(batches, DataLoader)
        assert isinstance(validation, DataLoader)
        with progress.task("policy cache") as task:
            builder = CacheBuilder(
                self.options, self.stage, self.run_dir, self.autocast, self._readable, self.log, task.update
            )
            made = builder.build(batches, validation)
        self.started.clear()  # no clips are read from now on
        return made

    def _count_failed(self) -> int:
        """Return how many clips could not be read so far, by any process."""
        return len({name for names in gather(sorted(self.failed)) for name in names})

    @contextmanager
    def _report_how_to_resume(self) -> Iterator[None]:
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            if (self.run_dir / LAST).exists():
                self.log(
                    f"stopped after epoch {self.state.epoch}: resume with the same options and "
                    f"resume={self.run_dir / LAST}"
                )
            raise

    def _train_epoch(self, batches: Batches, progress: Progress) -> dict[str, Any]:
        """Train on every clip once; return the mean loss, top-1 in percent, and the stage's own figures."""
        lr = self._set_learning_rate()
        cast("EpochSampler", batches.sampler).epoch = self.state.epoch
        self.stage.train()
        losses, hits, seen, updates = 0.0, 0, 0, 0
        with progress.task(f"epoch {self.state.epoch + 1}/{self.options.epochs}", len(batches)) as task:
            for read in self._readable(batches):
                # Processes may read unequal numbers of clips; all take part in each update, by their shares.
                count = 0 if read is None else len(read.target)
                total = self.processes.total(count)
                if total == 0:
                    continue
                updates += 1
                batch = self._black_clip() if read is None else read
                for _ in range(self.stage.passes):
                    loss, logits = self._update(batch, count, total)
                losses += loss.item() * count
                hits += int((logits[:, -1].argmax(dim=1) == batch.target).sum()) if count else 0
                seen += count
                task.advance(f"loss {losses / seen:.3f}  top-1 {hits / seen:.1%}" if seen else "")
        if not updates:
            raise DataError(f"{self.train_split.origin}: not one clip of an epoch can be read")
        totals = np.array(gather((losses, hits, seen))).sum(axis=0)
        trained = {"loss": totals[0] / totals[2], "top1": totals[1] / totals[2] * 100, "lr": lr}
        return {**trained, **self.stage.report()}

    def _update(self, batch: Batch, count: int, total: int) -> tuple[Tensor, Tensor]:
        """Take one gradient step on a batch, ``count`` of all processes' ``total`` clips; return loss and logits."""
        with self.autocast:
            loss, logits = self.wrapped(batch)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"epoch {self.state.epoch + 1}: the loss is {loss.item()}: lower backbone_lr, fc_lr or policy_lr, or "
                "give amp=false"
            )
        self.state.optimizer.zero_grad(set_to_none=True)
        self.state.scaler.scale(loss * (count * self.processes.world / total)).backward()
        if self.options.clip_grad:
            self.state.scaler.unscale_(self.state.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.options.clip_grad)
        self.state.scaler.step(self.state.optimizer)
        self.state.scaler.update()
        self.stage.after_update(count)
        self.average.update()
        return loss, logits

    def _black_clip(self) -> Batch:
        """Return a clip of black frames, of weight 0, for a process that could read none: it must take part."""
        spec = self.spec
        frames = torch.zeros(1, spec.segments, spec.frame_size, spec.frame_size, 3, dtype=torch.uint8)
        none, zeros = torch.zeros(1, dtype=torch.int64), torch.zeros(1, spec.segments)
        return Batch(frames, none, none, zeros[..., None].expand(-1, -1, 2), zeros, []).to(self.processes.device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.state.optimizer.param_groups for parameter in group["params"]]

    def _set_learning_rate(self) -> float:
        """Set and return this epoch's learning rate; the policy's is constant (official ``adjust_learning_rate``)."""
        options = self.options
        if options.lr_type == "cos":
            factor = 0.5 * (1 + math.cos(math.pi * self.state.epoch / options.epochs))
        else:
            factor = 0.1 ** sum(self.state.epoch >= milestone for milestone in options.lr_milestones)
        for group in self.state.optimizer.param_groups:
            if "base_lr" in group:
                group["lr"] = group["base_lr"] * factor
        return float(self.state.optimizer.param_groups[0]["lr"])

    def validate(self, batches: Batches, progress: Progress | None = None) -> dict[str, Any]:
        """Return loss, top-1, top-5 and mAP (percent) over the validation split, and the same after each step."""
        self.stage.train(False)
        self.processes.share_buffers(self.model)
        numbers, logits, losses, seen = [], [], 0.0, 0
        with torch.no_grad(), progress.task("validating", len(batches)) if progress else nullcontext() as task:
            for batch in self._readable(batches):
                if batch is None:
                    continue
                with self.autocast:
                    found = self.stage.logits(batch).float()
                losses += self.stage.loss(found, batch.target).item() * len(batch.target)
                seen += len(batch.target)
                numbers.append(batch.number.cpu())
                logits.append(found.cpu())
                if task is not None:
                    task.advance()
        parts = gather((numbers, logits, losses, seen))
        every = [tensor for part in parts for tensor in part[0]]
        if not every:
            raise DataError(f"{self.val_split.origin}: none of its clips can be read")
        order = torch.cat(every).numpy()
        probabilities = softmax(torch.cat([tensor for part in parts for tensor in part[1]]).numpy())
        total, count = sum(part[2] for part in parts), sum(part[3] for part in parts)
        return {"loss": total / count, **self._metrics(order, probabilities), **self.stage.report()}

    def _metrics(self, order: Any, probabilities: Any) -> dict[str, Any]:
        labels = [self.val_split.examples[number].labels for number in order]
        first = np.array([label[0] for label in labels])
        steps = accuracy_curve(probabilities, labels, multi_label=self.options.multi_label)
        top5 = top_k_accuracy(probabilities[:, -1], first, min(5, self.spec.classes))
        return {**steps[-1], "top5": top5, "clips": len(first), "per_step": steps}

    # -- data ---------------------------------------------------------------------------------------------------------

    def _readable(self, batches: Batches) -> Iterator[Batch | None]:
        """Yield batches on the device, None for one without a readable clip; report each broken clip once."""
        for batch in self._loaded(batches):
            self.interruption.check()
            for name, text in batch if isinstance(batch, list) else batch.failed:
                if name not in self.failed:
                    self.failed.add(name)
                    self.log(f"skipped: {text}", always=True)
            if isinstance(batch, list):
                yield None
                continue
            if batch.shortages and not self.shortage:
                self.shortage = batch.shortages[0]
                self.log(f"note: cache: {self.shortage}: frames not kept yet are decoded at each epoch")
            yield batch.to(self.processes.device, self.spec.frame_size)

    def _loaded(self, batches: Batches) -> Iterator[Any]:
        """Yield the loader's batches. Raises ``TrainingError`` for what its workers lack."""
        with wrap_loader_errors(self.options):
            if batches not in self.started:  # their workers live on
                try_queues(batches.num_workers)
                self.started.append(batches)
            yield from batches

    # -- run folder and outcome ----------------------------------------------------------------------------------------

    def _prepare_run_dir(self) -> None:
        if not self.processes.first:
            return
        last = self.run_dir / LAST
        if last.exists() and not (self.resumes and last.samefile(self.options.resume)):
            raise UsageError(
                f"{self.run_dir}: holds a run already: resume it by resume={last}, or give another hydra.run.dir"
            )
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / CONFIG).write_text(as_yaml(self.options))
        except OSError as error:
            raise TrainingError(f"{self.run_dir}: cannot be written ({error.strerror})") from None
        self.log.open(self.run_dir)
        self.log(
            f"{self.stage.title}: {len(self.train_split.examples)} clips to train on, "
            f"{len(self.val_split.examples)} to validate, {self.spec.classes} classes; {self.processes.device.type}"
            + (f", {self.processes.world} processes" if self.processes.world > 1 else "")
            + f"; into {self.run_dir}"
        )

    def _report_evaluation(self, found: dict[str, Any], failed: int) -> None:
        """Print an evaluation. Raises ``DataError`` if clips could not be read."""
        if not self.processes.first:
            return
        print_evaluation(found, failed, self.log, as_json=self.as_json)
        if failed:
            raise DataError(f"{self.val_split.origin}: {failed} of its clips could not be read")

    def _print_outcome(self) -> None:
        """Print where the checkpoints of a finished training are."""
        if self.as_json:
            outcome = {
                "run_dir": str(self.run_dir),
                "checkpoint": str(self.run_dir / LAST),
                "best_checkpoint": str(self.run_dir / BEST),
                "best_by": self.options.best_by,
                "best": self.state.best,
                "epochs": self.state.epoch,
            }
            print(json.dumps(outcome))


__all__ = ["BEST", "LAST", "Trainer", "model_spec", "read_splits", "run"]
