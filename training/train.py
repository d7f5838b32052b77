"""The training loop of all four stages: epochs of updates, validation, checkpoints, and going on after a break."""

from __future__ import annotations

import json
import math
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from adafocus_edge.bundle.classes import first_difference, read_classes, same_classes
from adafocus_edge.errors import CheckpointError, DataError, ShortageError, TrainingError, UsageError
from adafocus_edge.evaluation.dataset import Split, read_data, read_list
from adafocus_edge.evaluation.evidence import few_clips_note, share_interval
from adafocus_edge.evaluation.metrics import accuracy_curve, top_k_accuracy
from adafocus_edge.model.logits import softmax
from adafocus_edge.model.spec import ModelSpec
from adafocus_edge.system.console import printable, progress_bars
from adafocus_edge.system.interrupts import DeferredSignals
from training.backbones import BACKBONES
from training.checkpoint import (
    Checkpoint,
    backbone_weights,
    load_part,
    official_layout,
    read_checkpoint,
    save_checkpoint,
)
from training.datasets import Batch, EpochSampler
from training.distributed import Processes, gather, launch
from training.lineage import (
    INPUT_OPTIONS,
    STARTS,
    UNTOLD_OPTIONS,
    changed_options,
    check_pretrained,
    check_shapes,
    check_stage,
    differences,
    shape_options,
)
from training.loading import crops_on_device, make_dataset, make_loader, open_cache, try_queues
from training.model import AdaFocus
from training.options import Composed, TrainOptions, compose_options
from training.policy_cache import CacheBuilder, KeptBatches, batch_option, remove_cache, resolve_cache
from training.policy_watch import collapse_warning, places_picture
from training.stages import STAGES, PolicyStage, Stage

if TYPE_CHECKING:
    from rich.progress import Progress

Batches: TypeAlias = "DataLoader[Any] | KeptBatches"
"""What gives the batches of an epoch."""

LAST = "last.pth.tar"
BEST = "best.pth.tar"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"


def run(overrides: list[str], quiet: bool) -> None:
    """Train or evaluate as ``key=value`` options say; what ``adafocus-edge train`` calls."""
    run_composed(compose_options(overrides), quiet)


def run_composed(composed: Composed, quiet: bool, *, as_json: bool = False) -> None:
    """Train or evaluate as options say that were checked; at the end, print what came of it as JSON if asked."""
    if not quiet:
        for note in composed.notes:
            print(f"note: {printable(note)}", file=sys.stderr)
    launch(composed.options, _Work(composed, quiet, as_json))


@dataclass(frozen=True)
class _Work:
    """What one process does; an object that other processes can be given."""

    composed: Composed
    quiet: bool
    as_json: bool

    def __call__(self, processes: Processes) -> None:
        with _wrap_memory_errors(self.composed.options):
            quiet = self.quiet or not processes.first
            Trainer(self.composed, processes, quiet, as_json=self.as_json and processes.first).run()


class Trainer:
    """One stage of training in one process.

    Args:
        composed: the options.
        processes: this process among its like.
        quiet: whether to keep from printing.
        as_json: whether to print the outcome as JSON.
    """

    def __init__(self, composed: Composed, processes: Processes, quiet: bool, *, as_json: bool = False) -> None:
        self.options = options = composed.options
        self.composed = composed
        self.processes = processes
        self.quiet = quiet
        self.as_json = as_json
        if note := resolve_cache(options, processes.world):
            self._say(f"note: {note}")
        self.train_split, self.val_split = read_splits(options)
        for note in _split_notes(self.train_split, self.val_split):
            self._say(f"note: {note}")
        self.spec = model_spec(options, len(self.val_split.classes))
        torch.manual_seed(options.seed + processes.rank)
        self.model = AdaFocus(self.spec, options.dropout)
        start = self._load_weights()
        self.model.to(processes.device).to(memory_format=torch.channels_last)
        if processes.world > 1 and processes.device.type == "cuda":
            # Statistics over the whole batch, as one process would have them.
            self.model = torch.nn.SyncBatchNorm.convert_sync_batchnorm(self.model)  # type: ignore[no-untyped-call]
        if options.compile:
            self.model.compile_backbones()
        self.stage: Stage = STAGES[_stage(options)](self.model, options)
        self.optimizer = self.stage.optimizer()
        amp = options.amp and processes.device.type == "cuda"
        self.autocast = torch.autocast(processes.device.type, torch.float16, enabled=amp)
        self.scaler = torch.amp.GradScaler(processes.device.type, enabled=amp)
        self.epoch, self.best, self.run_dir = 0, -1.0, composed.run_dir
        self.goes_on = start is not None
        if start is not None:
            self._restore(start)
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
                self._say(line)
            seen = make_dataset(self.val_split, self.spec, options, keeping, train=False)
            if options.evaluate:
                found = self.validate(make_loader(seen, options, processes, train=False))
                self._print_evaluation(found, self._count_failed())
                return
            data = make_dataset(self.train_split, self.spec, options, keeping, train=True, crops=crops)
            # Held by nobody here: the policy cache ends their workers once it needs no clip any more.
            self._train(
                make_loader(data, options, processes, train=True), make_loader(seen, options, processes, train=False)
            )

    def _train(self, batches: Batches, validation: Batches) -> None:
        """Train to the last epoch."""
        options = self.options
        if len(batches) == 0:
            share = f" in each of {self.processes.world} processes" if self.processes.world > 1 else ""
            raise UsageError(
                f"{batch_option(options)}: larger than the split: {self.train_split.origin} has "
                f"{len(self.train_split.examples)} clips{share}"
            )
        self._prepare_run_dir()
        if self.epoch >= options.epochs:
            self._say(f"nothing to do: {options.resume} has finished its {self.epoch} epochs (epochs={options.epochs})")
            self._print_outcome()
            return
        told = self._report_how_to_resume()
        with told, self._log() as log, progress_bars(self.quiet) as bars, self.interruption:
            if options.policy_cache != "off":
                batches, validation = self._cached(batches, validation, bars)
            while self.epoch < options.epochs:
                started = time.monotonic()
                trained = self._train_epoch(batches, bars)
                self.epoch += 1
                found = None
                if self.epoch % options.eval_freq == 0 or self.epoch == options.epochs:
                    found = self.validate(validation, bars)
                    if warning := collapse_warning(trained, found, options):
                        self._say(f"warning: epoch {self.epoch}: {warning}")
                self._save(found)
                log(trained, found, time.monotonic() - started, self._count_failed())
        if self.processes.first:
            remove_cache(self.run_dir)
        self._say(f"done: {self.run_dir / LAST}, best {options.best_by} {self.best:.2f}: {self.run_dir / BEST}")
        self._print_outcome()

    def _cached(self, batches: Batches, validation: Batches, bars: Progress) -> tuple[KeptBatches, KeptBatches]:
        """Return the batches of stage 2 from features that are computed once."""
        assert isinstance(self.stage, PolicyStage)
        assert isinstance(batches, DataLoader)
        assert isinstance(validation, DataLoader)
        task = bars.add_task("policy cache", total=None)
        builder = CacheBuilder(
            self.options, self.stage, self.run_dir, self.autocast, self._readable, self._say,
            lambda done, total: bars.update(task, completed=done, total=total),
        )  # fmt: skip
        made = builder.build(batches, validation)
        bars.remove_task(task)
        self.started.clear()  # no clip is read any more
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
                self._say(
                    f"stopped after epoch {self.epoch}: go on with the same options and resume={self.run_dir / LAST}"
                )
            raise

    def _train_epoch(self, batches: Batches, bars: Progress) -> dict[str, Any]:
        options, epoch = self.options, self.epoch
        lr = self._set_learning_rate()
        cast("EpochSampler", batches.sampler).epoch = epoch
        self.stage.train()
        losses, hits, seen = 0.0, 0, 0
        name = f"epoch {epoch + 1}/{options.epochs}"
        task = bars.add_task(name, total=len(batches))
        updates = 0
        for read in self._readable(batches):
            # Processes may read unequal numbers of clips; all of them take part in each update, by their shares.
            count = 0 if read is None else len(read.target)
            total = self.processes.total(count)
            if total == 0:
                continue
            updates += 1
            batch = self._nothing() if read is None else read
            for _ in range(self.stage.passes):
                loss, logits = self._update(batch, count, total)
            losses += loss.item() * count
            hits += int((logits[:, -1].argmax(dim=1) == batch.target).sum()) if count else 0
            seen += count
            if seen:
                shown = f"{name}  loss {losses / seen:.3f}  top-1 {hits / seen:.1%}"
                bars.update(task, advance=1, description=shown)
        bars.remove_task(task)
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
                f"epoch {self.epoch + 1}: the loss is {loss.item()}: lower backbone_lr, fc_lr or policy_lr, or "
                "amp=false"
            )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss * (count * self.processes.world / total)).backward()
        if self.options.clip_grad:
            self.scaler.unscale_(self.optimizer)
            torch.nn.utils.clip_grad_norm_(self._parameters(), self.options.clip_grad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.stage.after_update(count)
        return loss, logits

    def _nothing(self) -> Batch:
        """Return a clip of black frames, with which a process that could read none takes part; its weight is 0."""
        spec = self.spec
        frames = torch.zeros(1, spec.segments, spec.frame_size, spec.frame_size, 3, dtype=torch.uint8)
        none, zeros = torch.zeros(1, dtype=torch.int64), torch.zeros(1, spec.segments)
        return Batch(frames, none, none, zeros[..., None].expand(-1, -1, 2), zeros, []).to(self.processes.device)

    def _parameters(self) -> list[Tensor]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]

    def _set_learning_rate(self) -> float:
        """Set this epoch's learning rate; the policy's stays (official ``adjust_learning_rate``)."""
        options = self.options
        if options.lr_type == "cos":
            factor = 0.5 * (1 + math.cos(math.pi * self.epoch / options.epochs))
        else:
            factor = 0.1 ** sum(self.epoch >= milestone for milestone in options.lr_milestones)
        for group in self.optimizer.param_groups:
            if "base_lr" in group:
                group["lr"] = group["base_lr"] * factor
        return float(self.optimizer.param_groups[0]["lr"])

    def validate(self, batches: Batches, bars: Progress | None = None) -> dict[str, Any]:
        """Return loss, top-1, top-5 and mAP (percent) over the validation split, and the same after each step."""
        self.stage.train(False)
        self.processes.share_buffers(self.model)
        numbers, logits, losses, seen = [], [], 0.0, 0
        task = bars.add_task("validating", total=len(batches)) if bars else None
        with torch.no_grad():
            for batch in self._readable(batches):
                if batch is None:
                    continue
                with self.autocast:
                    found = self.stage.logits(batch).float()
                losses += self.stage.loss(found, batch.target).item() * len(batch.target)
                seen += len(batch.target)
                numbers.append(batch.number.cpu())
                logits.append(found.cpu())
                if bars and task is not None:
                    bars.update(task, advance=1)
        if bars and task is not None:
            bars.remove_task(task)
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
        """Yield batches on the device, None for one without a readable clip; tell of each broken clip, once."""
        for batch in self._loaded(batches):
            self.interruption.check()
            for name, text in batch if isinstance(batch, list) else batch.failed:
                if name not in self.failed:
                    self.failed.add(name)
                    print(f"left out: {printable(text)}", file=sys.stderr)
            if isinstance(batch, list):
                yield None
                continue
            if batch.shortages and not self.shortage:
                self.shortage = batch.shortages[0]
                self._say(f"note: cache: {self.shortage}: what is not kept yet is decoded at each epoch")
            yield batch.to(self.processes.device, self.spec.frame_size)

    def _loaded(self, batches: Batches) -> Iterator[Any]:
        """Yield what the loader gives. Raises ``TrainingError`` for what its workers lack."""
        try:
            if batches not in self.started:  # their workers live on
                try_queues(batches.num_workers)
                self.started.append(batches)
            yield from batches
        except (RuntimeError, OSError, ShortageError) as error:  # what a worker raises has its traceback as text
            lines = [line for line in str(error).splitlines() if line.strip()] or [repr(error)]
            why = lines[-1 if lines[0].startswith("Caught ") else 0]
            raise TrainingError(
                f"workers={self.options.workers}: a batch cannot be loaded ({why}): give fewer workers, or "
                "workers=0, or raise the limit of open files (ulimit -n), memory, or /dev/shm"
            ) from error

    # -- weights and state --------------------------------------------------------------------------------------------

    def _load_weights(self) -> Checkpoint | None:
        """Load what this stage begins with; return the checkpoint of this same stage if it goes on with one."""
        options = self.options
        if options.resume:
            return self._resume(read_checkpoint(options.resume))
        if _stage(options) >= 2:
            raise UsageError(
                f"train_stage={options.train_stage}: needs resume=CHECKPOINT of the stage before: "
                f"{STARTS[_stage(options)]}"
            )
        notes = [note for part in ("glancer", "focuser") for note in self._load_backbone(part)]
        for note in notes:  # once nothing was refused
            self._say(f"note: {note}")
        return None

    def _resume(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Load the model of a checkpoint; return the checkpoint if the run goes on with it."""
        options, stage = self.options, _stage(self.options)
        notes = [*checkpoint.notes]
        notes += check_stage(checkpoint, stage, evaluate=options.evaluate, glancer=options.pretrain_glancer)
        with_policy = stage == 3 or (stage == 2 and (options.evaluate or checkpoint.stage == stage))
        parts = ["glancer.", "focuser.net.", "classifier.", *(["focuser.policy."] if with_policy else [])]
        if stage == 0 and checkpoint.stage is None:  # of one backbone alone, if no more is in it
            parts = ["glancer." if options.pretrain_glancer else "focuser.net."]
        check_shapes(checkpoint, options, self.spec.classes, parts)
        for prefix in parts:
            load_part(self.model, checkpoint, prefix, "resume")
        self._check_same_model(checkpoint)
        goes_on = checkpoint.stage == stage and "rng" in checkpoint.state and not options.evaluate
        if not goes_on:  # else all that changed is reported when its state is restored
            changed = differences(checkpoint, options, ("dataset", *UNTOLD_OPTIONS))
            notes += [f"resume={checkpoint.path}: trained with {change}" for change in changed]
        for note in notes:
            self._say(f"note: {note}")
        return checkpoint if goes_on else None

    def _load_backbone(self, part: str) -> list[str]:
        """Load a backbone from what its options name, if this stage uses it; return notes for the user."""
        options, stage = self.options, _stage(self.options)
        name, pretrained = getattr(options, part), getattr(options, f"pretrained_{part}")
        source = getattr(options, f"{part}_weights")
        notes: list[str] = []
        if pretrained:
            checkpoint = read_checkpoint(pretrained)
            notes += [*checkpoint.notes, *check_pretrained(checkpoint, part)]
            changed = differences(checkpoint, options, INPUT_OPTIONS)
            notes += [f"pretrained_{part}={pretrained}: trained with {change}" for change in changed]
            found = shape_options(checkpoint.weights).get(part, name)
            if found != name:
                raise CheckpointError(
                    f"pretrained_{part}={pretrained}: its {part} is a {found}, the options say {part}={name}"
                )
            load_part(self.model, checkpoint, f"{part}.net.", f"pretrained_{part}")
        elif stage == 1 or (part == "glancer") == options.pretrain_glancer:
            backbone_weights(getattr(self.model, part).net, name, source, f"{part}_weights")
            if stage == 1 and part == "glancer" and source in ("imagenet", "random"):
                notes.append(
                    f"stage 1 does not train the glancer: it stays as glancer_weights={source} has it; "
                    "pretrained_glancer=CKPT takes one that stage 0 trained"
                )
        return notes

    def _check_same_model(self, checkpoint: Checkpoint) -> None:
        """Refuse a model that its weights cannot tell apart, unless that was asked for in so many words."""
        given = {text.partition("=")[0] for text in self.composed.given}
        for name in UNTOLD_OPTIONS:
            before, now = checkpoint.config.get(name), getattr(self.options, name)
            if before is not None and before != now and name not in given:
                raise UsageError(f"resume={checkpoint.path}: trained with {name}={before}, now {now}: give {name}=")
        trained, classes = checkpoint.classes, self.val_split.classes
        if trained is not None and not same_classes(trained, classes):
            raise UsageError(
                f"resume={checkpoint.path}: trained on other classes ({first_difference(trained, classes)}): give the "
                "class names of that training, in their order"
            )

    def _restore(self, checkpoint: Checkpoint) -> None:
        """Go on exactly where a run of this stage stopped, in its own folder unless another was asked for."""
        state = checkpoint.state
        try:
            self.epoch, self.best = int(state["epoch"]), float(state["best_acc"])
            asked = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, asked, strict=True):
                group.update(settings)  # what the options say counts, should they have changed
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            generators = state["rng"]
            if len(generators) == self.processes.world:
                mine = generators[self.processes.rank]
                torch.set_rng_state(mine["cpu"])
                if self.processes.device.type == "cuda" and mine.get("cuda") is not None:
                    torch.cuda.set_rng_state(mine["cuda"], self.processes.device)
            else:
                self._say(
                    f"note: {len(generators)} processes before, {self.processes.world} now: dropout is drawn anew"
                )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"resume={checkpoint.path}: its training state does not fit these options ({error})"
            ) from None
        if not self.composed.chose_run_dir:
            self.run_dir = checkpoint.path.resolve().parent
        changed = changed_options(checkpoint, self.options)
        self._say(f"going on after epoch {self.epoch} of {checkpoint.path}")
        if changed:
            self._say(f"note: options changed since: {', '.join(changed)}")

    def _save(self, found: dict[str, Any] | None) -> None:
        """Write the last checkpoint, and the best one if this is it; the metrics decide on all processes alike."""
        generators = {"cpu": torch.get_rng_state(), "cuda": None}
        if self.processes.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(self.processes.device)
        every = gather(generators)
        accuracy = None if found is None else float(found[self.options.best_by])
        better = accuracy is not None and accuracy > self.best
        if better and accuracy is not None:
            self.best = accuracy
        if not self.processes.first:
            return
        content = {
            **official_layout(self.model, with_policy=_stage(self.options) >= 2),
            "epoch": self.epoch,
            "acc": accuracy,
            "best_acc": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() or None,
            "rng": every,
            "config": asdict(self.options),
            "class_names": list(self.val_split.classes),
        }
        if better:
            save_checkpoint(content, self.run_dir / BEST)
        save_checkpoint(content, self.run_dir / LAST)

    # -- what people see ----------------------------------------------------------------------------------------------

    def _prepare_run_dir(self) -> None:
        if not self.processes.first:
            return
        last = self.run_dir / LAST
        if last.exists() and not (self.goes_on and last.samefile(self.options.resume)):
            raise UsageError(f"{self.run_dir}: holds a run already: go on with it by resume={last}, or name another")
        try:
            self.run_dir.mkdir(parents=True, exist_ok=True)
            (self.run_dir / CONFIG).write_text(OmegaConf.to_yaml(OmegaConf.create(asdict(self.options))))
        except OSError as error:
            raise TrainingError(f"{self.run_dir}: cannot be written ({error.strerror})") from None
        self._say(
            f"stage {self.options.train_stage}: {len(self.train_split.examples)} clips to train on"
            + (f" ({self.train_split.left_out} too short)" if self.train_split.left_out else "")
            + f", "
            f"{len(self.val_split.examples)} to validate, {self.spec.classes} classes; {self.processes.device.type}"
            + (f", {self.processes.world} processes" if self.processes.world > 1 else "")
            + f"; into {self.run_dir}"
        )

    @contextmanager
    def _log(self) -> Iterator[Any]:
        """Give a function that records an epoch: a line of metrics.jsonl, TensorBoard events, a line on stderr."""
        if not self.processes.first:
            yield lambda *_: None
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of TensorBoard's own dependencies
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self.run_dir), purge_step=self.epoch + 1)

        def log(trained: dict[str, Any], found: dict[str, Any] | None, seconds: float, failed: int) -> None:
            entry = {"epoch": self.epoch, "train": trained, "val": found, "seconds": round(seconds, 3)}
            entry["unreadable_clips"] = failed
            with (self.run_dir / METRICS).open("a", encoding="utf-8") as file:
                file.write(json.dumps(entry) + "\n")
            for part, values in (("train", trained), ("val", found or {})):
                for name, value in values.items():
                    if isinstance(value, (int, float)):
                        writer.add_scalar(f"{part}/{name}", value, self.epoch)
                    elif name == "places":
                        writer.add_image(f"{part}/places", places_picture(value), self.epoch)
            writer.flush()
            told = f"epoch {self.epoch}/{self.options.epochs}: loss {trained['loss']:.4f}, top-1 {trained['top1']:.1f}"
            if found:
                told += f"; validation: loss {found['loss']:.4f}, top-1 {found['top1']:.2f}, mAP {found['mAP']:.2f}"
                if "random_top1" in found:
                    told += f" (random patches: top-1 {found['random_top1']:.2f}), {found['cells_used']} cells used"
            self._say(f"{told}  ({seconds:.0f} s)")

        try:
            yield log
        finally:
            writer.close()

    def _print_evaluation(self, found: dict[str, Any], failed: int) -> None:
        if not self.processes.first:
            return
        if self.as_json:
            print(json.dumps({**found, "left_out": failed}))
        else:
            for number, step in enumerate(found["per_step"]):
                print(f"step {number + 1:3d}: top-1 {step['top1']:.2f}  mAP {step['mAP']:.2f}")
            print(
                f"{found['clips']} clips: top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}, "
                f"mAP {found['mAP']:.3f}, loss {found['loss']:.4f}" + (f"; {failed} clips left out" if failed else "")
            )
        right = round(found["top1"] * found["clips"] / 100)
        if note := few_clips_note(share_interval(right, found["clips"]), found["clips"]):
            self._say(f"note: {note}")
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
                "best": self.best,
                "epochs": self.epoch,
            }
            print(json.dumps(outcome))

    def _say(self, text: str) -> None:
        if not self.quiet:
            print(printable(text), file=sys.stderr, flush=True)


def model_spec(options: TrainOptions, classes: int) -> ModelSpec:
    """Return the model that options describe. Raises ``UsageError`` if its sizes do not fit together."""
    try:
        return ModelSpec(
            glancer=options.glancer,
            focuser=options.focuser,
            glance_dim=BACKBONES[options.glancer].dim,
            focus_dim=BACKBONES[options.focuser].dim,
            frame_size=options.input_size,
            glance_size=options.glance_size,
            patch_size=options.patch_size,
            grid=math.isqrt(options.action_dim),
            segments=options.num_segments,
            policy_state=options.hidden_state_dim,
            classifier_state=options.hidden_dim if options.consensus == "gru" else classes + 1,
            classes=classes,
            consensus=options.consensus,  # type: ignore[arg-type]
            with_glancer=options.with_glancer,
            policy_conv=options.policy_conv,
            fit=options.fit,  # type: ignore[arg-type]
            motion_gap_s=options.motion_gap_s,
        )
    except ValueError as error:
        raise UsageError(f"options: {error}") from None


def read_splits(options: TrainOptions) -> tuple[Split, Split]:
    """Read the training and the validation split. Raises ``DataError`` that names file, line and what is wrong."""
    classes: tuple[str, ...] | None = None
    if options.path("classes").exists() or options.dataset != "custom":
        classes = read_classes(options.path("classes"))
    if options.evaluate and classes is not None:
        # The training list need not be there.
        val = _read_split(options, "val_list", classes)
        return val, val
    train = _read_split(options, "train_list", classes)
    return train, _read_split(options, "val_list", train.classes)


def _split_notes(train: Split, val: Split) -> list[str]:
    """Return what the user should know of the two splits; an evaluation reads one only."""
    if train is val:
        return list(val.notes)
    notes = list(dict.fromkeys((*train.notes, *val.notes)))
    shared = {os.path.normpath(e.path) for e in train.examples} & {os.path.normpath(e.path) for e in val.examples}
    if shared:
        notes.append(
            f"{len(shared)} clips to validate are in {train.origin}, too, so they prove nothing: {min(shared)}"
        )
    return notes


def _read_split(options: TrainOptions, name: str, classes: tuple[str, ...] | None) -> Split:
    path = options.path(name)
    if path.is_dir() or path.suffix.lower() == ".csv":
        return read_data(path, classes)
    if classes is None:
        raise DataError(
            f"{options.path('classes')}: no such class file; the ids in {path} are its line numbers, from 0"
        )
    # Frames where they were extracted; else, unless another place was named, the videos themselves.
    places = [options.path("root_path")]
    if options.root_path == TrainOptions.root_path:
        places += [options.root / "videos", options.root]
    root = next((place for place in places if place.is_dir()), None)
    if root is None:
        raise DataError(f"{places[0]}: no such folder of frames or videos (root_path)")
    return read_list(path, root, classes, options.separator)


def _stage(options: TrainOptions) -> int:
    assert options.train_stage is not None
    return options.train_stage


@contextmanager
def _wrap_memory_errors(options: TrainOptions) -> Iterator[None]:
    """Turn running out of memory, on a device or the host, into what to lower."""
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


__all__ = ["BEST", "LAST", "Trainer", "model_spec", "read_splits", "run"]
