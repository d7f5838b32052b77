"""What a run starts from, how it resumes exactly where it stopped, and the checkpoints that it writes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from adafocus_edge.errors import CheckpointError, UsageError
from training.checkpoint import (
    Checkpoint,
    backbone_weights,
    load_part,
    read_checkpoint,
    save_checkpoint,
)
from training.compose import Composed
from training.distributed import Processes, gather
from training.lineage import (
    INPUT_OPTIONS,
    STARTS,
    UNRECORDED_OPTIONS,
    changed_options,
    check_pretrained,
    check_same_classes,
    check_shapes,
    check_stage,
    differences,
    shape_options,
)
from training.model import AdaFocus
from training.models.v2_checkpoint import is_v2

LAST = "last.pth.tar"
BEST = "best.pth.tar"


@dataclass(frozen=True)
class Start:
    """Loads the weights that a stage starts from.

    Attributes:
        model: to load them into.
        composed: the options.
        classes: class names of the data set.
        log: logs a line.
    """

    model: AdaFocus
    composed: Composed
    classes: Sequence[str]
    log: Callable[[str], None]

    def load(self) -> Checkpoint | None:
        """Load the weights; return the checkpoint of this same stage if the run resumes one.

        Raises ``UsageError`` or ``CheckpointError`` that names the option.
        """
        options = self.composed.options
        if options.resume:
            return self._resume(read_checkpoint(options.resume))
        if options.stage >= 2:
            raise UsageError(
                f"train_stage={options.train_stage}: needs resume=CHECKPOINT of the stage before: "
                f"{STARTS[options.stage]}"
            )
        notes = [note for part in ("glancer", "focuser") for note in self._load_backbone(part)]
        for note in notes:  # only now, since nothing was refused
            self.log(f"note: {note}")
        return None

    def _resume(self, checkpoint: Checkpoint) -> Checkpoint | None:
        """Load the model of a checkpoint; return the checkpoint if the run resumes it."""
        options, stage = self.composed.options, self.composed.options.stage
        if is_v2(checkpoint.weights):
            raise UsageError(f"resume={checkpoint.path}: a checkpoint of AdaFocus V2: give family=v2")
        notes = [*checkpoint.notes]
        notes += check_stage(checkpoint, stage, evaluate=options.evaluate, glancer=options.pretrain_glancer)
        with_policy = stage == 3 or (stage == 2 and (options.evaluate or checkpoint.stage == stage))
        parts = ["glancer.", "focuser.net.", "classifier.", *(["focuser.policy."] if with_policy else [])]
        if stage == 0 and checkpoint.stage is None:  # of one backbone alone, if it holds no more
            parts = ["glancer." if options.pretrain_glancer else "focuser.net."]
        check_shapes(checkpoint, options, len(self.classes), parts)
        for prefix in parts:
            load_part(self.model, checkpoint, prefix, "resume")
        self._check_same_model(checkpoint)
        resumes = checkpoint.stage == stage and "rng" in checkpoint.state and not options.evaluate
        if not resumes:  # else all changed options are logged when its state is restored
            changed = differences(checkpoint, options, ("dataset", *UNRECORDED_OPTIONS))
            notes += [f"resume={checkpoint.path}: trained with {change}" for change in changed]
        for note in notes:
            self.log(f"note: {note}")
        return checkpoint if resumes else None

    def _load_backbone(self, part: str) -> list[str]:
        """Load a backbone from the source that its options name, if this stage uses it; return notes for the user."""
        options = self.composed.options
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
                    f"pretrained_{part}={pretrained}: its {part} is a {found}, the options name {part}={name}"
                )
            load_part(self.model, checkpoint, f"{part}.net.", f"pretrained_{part}")
        elif options.stage == 1 or (part == "glancer") == options.pretrain_glancer:
            backbone_weights(getattr(self.model, part).net, name, source, f"{part}_weights")
            if options.stage == 1 and part == "glancer" and source in ("imagenet", "random"):
                notes.append(
                    f"stage 1 does not train the glancer: it keeps the weights of glancer_weights={source}; "
                    "pretrained_glancer=CKPT takes those of a stage-0 run"
                )
        return notes

    def _check_same_model(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint whose unrecorded options differ, unless the new values were given explicitly."""
        given = {text.partition("=")[0] for text in self.composed.given}
        for name in UNRECORDED_OPTIONS:
            before, now = checkpoint.config.get(name), getattr(self.composed.options, name)
            if before is not None and before != now and name not in given:
                raise UsageError(f"resume={checkpoint.path}: trained with {name}={before}, now {now}: give {name}=")
        check_same_classes(checkpoint, self.classes)


@dataclass
class TrainingState:
    """What changes while a stage trains, beside the model's weights.

    Attributes:
        optimizer: over what the stage trains.
        scaler: of the loss in half precision.
        epoch: epochs finished.
        best: the best value of the option ``best_by`` so far, percent; -1 before the first validation.
    """

    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch: int = 0
    best: float = -1.0

    def restore(
        self, checkpoint: Checkpoint, composed: Composed, processes: Processes, log: Callable[[str], None]
    ) -> None:
        """Restore the state of a checkpoint, random generators included. Raises ``CheckpointError``."""
        state = checkpoint.state
        try:
            self.epoch, self.best = int(state["epoch"]), float(state["best_acc"])
            chosen = [{k: v for k, v in group.items() if k != "params"} for group in self.optimizer.param_groups]
            self.optimizer.load_state_dict(state["optimizer"])
            for group, settings in zip(self.optimizer.param_groups, chosen, strict=True):
                group.update(settings)  # the options count, if they have changed
            if state.get("scaler"):
                self.scaler.load_state_dict(state["scaler"])
            generators = state["rng"]
            if len(generators) == processes.world:
                mine = generators[processes.rank]
                torch.set_rng_state(mine["cpu"])
                if processes.device.type == "cuda" and mine.get("cuda") is not None:
                    torch.cuda.set_rng_state(mine["cuda"], processes.device)
            else:
                log(
                    f"note: {len(generators)} processes before, {processes.world} now: dropout has other random numbers"
                )
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise CheckpointError(
                f"resume={checkpoint.path}: its training state does not fit these options ({error})"
            ) from None
        changed = changed_options(checkpoint, composed.options)
        log(f"resuming after epoch {self.epoch} of {checkpoint.path}")
        if changed:
            log(f"note: options changed since: {', '.join(changed)}")

    def save(
        self, weights: dict[str, Any], composed: Composed, classes: Sequence[str], processes: Processes,
        found: dict[str, Any] | None, run_dir: Path, more: dict[str, Any],
    ) -> None:  # fmt: skip
        """Write the last checkpoint, and the best one if this is it. All processes take part; the first one writes.

        Args:
            weights: the model's, in the official layout.
            composed: the options.
            classes: class names.
            processes: this process and the others.
            found: figures of a validation, equal in all processes; None if there was none.
            run_dir: folder of the checkpoints.
            more: further entries.
        """
        generators = {"cpu": torch.get_rng_state(), "cuda": None}
        if processes.device.type == "cuda":
            generators["cuda"] = torch.cuda.get_rng_state(processes.device)
        every = gather(generators)
        options = composed.options
        accuracy = None if found is None else float(found[options.best_by])
        better = accuracy is not None and accuracy > self.best
        if better and accuracy is not None:
            self.best = accuracy
        if not processes.first:
            return
        content = {
            **weights,
            "epoch": self.epoch,
            "acc": accuracy,
            "best_acc": self.best,
            "optimizer": self.optimizer.state_dict(),
            "scaler": self.scaler.state_dict() or None,
            "rng": every,
            "config": asdict(options),
            "class_names": list(classes),
            **more,
        }
        if better:
            save_checkpoint(content, run_dir / BEST)
        save_checkpoint(content, run_dir / LAST)
