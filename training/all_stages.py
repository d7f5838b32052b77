"""Trains glancer, focuser and stages 1 to 3 one after the other: ``stages=all``. A second run resumes the first."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adafocus_edge.errors import UsageError
from adafocus_edge.system.printable import printable
from training.checkpoint import Checkpoint, read_checkpoint
from training.compose import STAGE_RUNS, Composed, by_key, compose_options, quoted, stage_defaults
from training.lineage import changed_options
from training.options import GLANCER
from training.policy_cache import resolve_cache
from training.resume import BEST, LAST
from training.train import run_composed

BUNDLE = "bundle"
"""Folder of the exported model, in the run folder."""
FIXED = {
    "glancer": ("train_stage=0", "pretrain_glancer=true"),
    "focuser": ("train_stage=0", "pretrain_glancer=false"),
    "stage1": ("train_stage=1",),
    "stage2": ("train_stage=2",),
    "stage3": ("train_stage=3",),
}
"""The options that make each run what it is."""


@dataclass(frozen=True)
class StageRun:
    """One run of ``stages=all``.

    Attributes:
        name: one of :data:`training.compose.STAGE_RUNS`, which is its folder's name, too.
        composed: its options.
        checkpoint: its last checkpoint so far, or None.
    """

    name: str
    composed: Composed
    checkpoint: Checkpoint | None

    @property
    def last(self) -> Path:
        """Return the path of its last checkpoint."""
        return self.composed.run_dir / LAST

    @property
    def epochs_done(self) -> int:
        """Return how many epochs it has finished."""
        return 0 if self.checkpoint is None else int(self.checkpoint.state.get("epoch", 0))

    @property
    def finished(self) -> bool:
        """Whether no epoch is left."""
        return self.epochs_done >= self.composed.options.epochs

    def outcome(self) -> dict[str, Any]:
        """Return its figures for ``--json``."""
        assert self.checkpoint is not None
        return {
            "stage": self.name,
            "run_dir": str(self.composed.run_dir),
            "checkpoint": str(self.last),
            "best_checkpoint": str(self.composed.run_dir / BEST),
            "best_by": self.composed.options.best_by,
            "best": float(self.checkpoint.state["best_acc"]),
            "epochs": self.epochs_done,
        }


Export = Callable[[Path, Path], None]
"""Exports a checkpoint to a bundle's folder."""


def train_all(composed: Composed, quiet: bool, *, as_json: bool = False, export: Export | None = None) -> None:
    """Train every stage that is not finished, from the last checkpoint of the one before; export the last one.

    Args:
        composed: options with ``stages=all``.
        quiet: whether to print errors and results only.
        as_json: whether to print the outcome as JSON.
        export: exports the finished model, if ``export=true``.

    Raises ``UsageError``: options that contradict each other, or a later stage that was trained from an earlier state
    of one that is not finished.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ:
        raise UsageError("stages=all: torchrun starts the processes of one stage: give train_stage=0 to 3")

    def log(text: str) -> None:
        if not quiet:
            print(printable(text), file=sys.stderr, flush=True)

    bundle = composed.run_dir / BUNDLE
    if composed.chose_run_dir is False:
        log(f"run folder: {composed.run_dir}; to resume, give the same options and hydra.run.dir={composed.run_dir}")
    names = names_of(composed)
    _check_order([stage_run(composed, name, check=True) for name in names], bundle)
    outcomes = []
    for number, name in enumerate(names, start=1):
        run = stage_run(composed, name)
        title = f"{name} ({number} of {len(names)})"
        if run.finished:
            log(f"{title}: finished, {run.epochs_done} epochs: {run.last}")
            assert run.checkpoint is not None
            resolve_cache(run.composed.options, 1)  # as it is recorded
            if changed := changed_options(run.checkpoint, run.composed.options):
                log(f"note: {name}: options changed since have no effect on it: {', '.join(changed)}")
        else:
            log(title)
            run_composed(run.composed, quiet)
            run = stage_run(composed, name)
        outcomes.append(run.outcome())
    last = Path(outcomes[-1]["checkpoint"])
    if composed.options.export and export is not None and not bundle.exists():
        export(last, bundle)
    if bundle.exists():
        log(f"bundle: {bundle}")
    if as_json:
        found = str(bundle) if bundle.exists() else None
        print(json.dumps({"run_dir": str(composed.run_dir), "stages": outcomes, "bundle": found}))


def names_of(composed: Composed) -> tuple[str, ...]:
    """Return the names of the runs: with ``focuser_weights=glancer`` the focuser has none of its own.

    Raises ``UsageError`` for options of a run that there is not.
    """
    if composed.options.focuser_weights != GLANCER:
        return STAGE_RUNS
    of_both = composed.of_stages.get("glancer", ())  # stage0.KEY=VALUE stands for both backbones
    for text in composed.of_stages.get("focuser", ()):
        if text not in of_both:
            raise UsageError(f"focuser.{text}: focuser_weights=glancer leaves no such run: remove one of them")
    return tuple(name for name in STAGE_RUNS if name != "focuser")


def stage_run(composed: Composed, name: str, *, check: bool = False) -> StageRun:
    """Return one run with its options and what it has done so far.

    Args:
        composed: options with ``stages=all``.
        name: of the run.
        check: only check the options: checkpoints of the runs before need not exist.
    """
    preset = composed.options.preset
    folder = composed.run_dir / name
    last = folder / LAST
    shared = composed.options.focuser_weights == GLANCER
    without = ("stages", "export", *(("focuser_weights",) if shared else ()))
    common = [text for text in composed.given if text.partition("=")[0].lstrip("+") not in without]
    starts = ["focuser_weights=imagenet"] if shared else []  # which only stage 1 would use, and it has its own
    if not check:
        starts += _starts(composed.run_dir, name, shared=shared)
    resume = [f"resume={quoted(last)}"] if last.is_file() and not check else []
    options = by_key(
        stage_defaults(preset, composed.config_dir).get(name, ()), common, composed.of_stages.get(name, ()),
        FIXED[name], starts, resume, [f"hydra.run.dir={quoted(folder)}"],
    )  # fmt: skip
    made = compose_options(options, composed.config_dir)
    made.given = [*common, *composed.of_stages.get(name, ())]
    if name != STAGE_RUNS[0]:
        made.notes.clear()  # the same ones as for the first run
    return StageRun(name, made, read_checkpoint(last) if last.is_file() else None)


def _starts(run_dir: Path, name: str, *, shared: bool) -> list[str]:
    """Return the options that hand the checkpoints of the runs before on; ``shared``: the glancer's for both."""
    if name == "stage1" and shared:
        glancer = quoted(run_dir / "glancer" / LAST)
        return [f"pretrained_glancer={glancer}", f"focuser_weights={glancer}"]
    if name == "stage1":
        return [f"pretrained_{part}={quoted(run_dir / part / LAST)}" for part in ("glancer", "focuser")]
    before = {"stage2": "stage1", "stage3": "stage2"}.get(name)
    return [f"resume={quoted(run_dir / before / LAST)}"] if before else []


def _check_order(runs: list[StageRun], bundle: Path) -> None:
    """Refuse checkpoints and a bundle that an unfinished stage would make obsolete. Raises ``UsageError``."""
    first = next((number for number, run in enumerate(runs) if not run.finished), None)
    if first is None:
        return
    unfinished = runs[first]
    # The focuser does not depend on the glancer.
    dependent = [run for run in runs[first + 1 :] if not (unfinished.name == "glancer" and run.name == "focuser")]
    stale = [run.composed.run_dir for run in dependent if run.checkpoint is not None]
    stale += [bundle] if bundle.exists() else []
    if stale:
        raise UsageError(
            f"{stale[0]}: comes from an earlier {unfinished.name}, which has {unfinished.epochs_done} of "
            f"{unfinished.composed.options.epochs} epochs: remove {' '.join(map(str, stale))}, or give "
            f"{unfinished.name}.epochs={unfinished.epochs_done or unfinished.composed.options.epochs}"
        )
