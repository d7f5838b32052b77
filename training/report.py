"""What a run prints and records: lines on stderr and in ``training.log``, metrics, TensorBoard events, its outcome."""

from __future__ import annotations

import json
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.evaluation.evidence import few_clips_note, share_interval
from adafocus_edge.system.printable import printable
from training.policy_watch import places_picture

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

METRICS = "metrics.jsonl"
"""A line of figures per epoch, in the run's folder."""
HPARAM_METRICS = ("val/top1", "val/mAP")
"""Scalars that TensorBoard shows beside the options of several runs."""
LOG = "training.log"
"""Every line that a run prints, with its time, in the run's folder."""


class Log:
    """Prints lines on stderr and, once its file is open, records them.

    Args:
        quiet: whether to print nothing.
        records: whether this process writes the file.
    """

    def __init__(self, *, quiet: bool, records: bool) -> None:
        self._quiet, self._records = quiet, records
        self._waiting: list[str] = []
        self._path: Path | None = None

    def __call__(self, text: str, *, always: bool = False) -> None:
        """Print a line, unless quiet; ``always`` prints it even then."""
        line = printable(text)
        if always or not self._quiet:
            print(line, file=sys.stderr, flush=True)
        self.record(line)

    def record(self, line: str) -> None:
        """Write a line to the file alone."""
        if not self._records:
            return
        self._waiting.append(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}\n")
        if self._path is not None:
            # A disk that is full is reported where the checkpoint cannot be written.
            with suppress(OSError), self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
                file.writelines(self._waiting)
            self._waiting.clear()

    def open(self, run_dir: Path) -> None:
        """Record in a run's folder from now on, beginning with the lines so far."""
        self._path = run_dir / LOG


class Recorder:
    """Records epochs: a line of ``metrics.jsonl`` and TensorBoard events each.

    Args:
        run_dir: the run's folder.
        writer: of TensorBoard events.
    """

    def __init__(self, run_dir: Path, writer: SummaryWriter) -> None:
        self._run_dir, self._writer = run_dir, writer

    def record(
        self, epoch: int, trained: dict[str, Any], found: dict[str, Any] | None, seconds: float, unreadable: int
    ) -> None:
        """Record one epoch.

        Args:
            epoch: its number, from 1.
            trained: figures of training.
            found: figures of the validation after it, if there was one.
            seconds: how long both took.
            unreadable: clips that could not be read so far.
        """
        entry = {"epoch": epoch, "train": trained, "val": found, "seconds": round(seconds, 3)}
        entry["unreadable_clips"] = unreadable
        with (self._run_dir / METRICS).open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        for part, values in (("train", trained), ("val", found or {})):
            for name, value in values.items():
                if isinstance(value, (int, float)):
                    self._writer.add_scalar(f"{part}/{name}", value, epoch)
                elif name == "places":
                    self._writer.add_image(f"{part}/places", places_picture(value), epoch)
        self._writer.flush()


@contextmanager
def open_recorder(run_dir: Path, epoch: int, options: dict[str, Any]) -> Iterator[Recorder]:
    """Give a recorder of a run that has finished ``epoch`` epochs; a new run's options become TensorBoard's hparams."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of TensorBoard's own dependencies
        from torch.utils.tensorboard import SummaryWriter
        from torch.utils.tensorboard.summary import hparams

        writer = SummaryWriter(str(run_dir), purge_step=epoch + 1)
        if epoch == 0:
            chosen = {name: value for name, value in options.items() if isinstance(value, (bool, int, float, str))}
            for summary in hparams(chosen, dict.fromkeys(HPARAM_METRICS, 0.0)):  # type: ignore[no-untyped-call]
                writer._get_file_writer().add_summary(summary)  # type: ignore[no-untyped-call]
    try:
        yield Recorder(run_dir, writer)
    finally:
        writer.close()


def epoch_line(trained: dict[str, Any], found: dict[str, Any] | None) -> str:
    """Return an epoch's figures in words."""
    line = f"loss {trained['loss']:.4f}, top-1 {trained['top1']:.1f}"
    if found:
        line += f"; validation: loss {found['loss']:.4f}, top-1 {found['top1']:.2f}, mAP {found['mAP']:.2f}"
        if "random_top1" in found:
            line += f" (random patches: top-1 {found['random_top1']:.2f}), {found['cells_used']} cells used"
    return line


def print_evaluation(found: dict[str, Any], failed: int, log: Log, *, as_json: bool) -> None:
    """Print an evaluation on stdout: accuracy after each step, and over the split; a note if its clips are few."""
    if as_json:
        print(json.dumps({**found, "left_out": failed}))
    else:
        for number, step in enumerate(found["per_step"]):
            print(f"step {number + 1:3d}: top-1 {step['top1']:.2f}  mAP {step['mAP']:.2f}")
        print(
            f"{found['clips']} clips: top-1 {found['top1']:.2f}, top-5 {found['top5']:.2f}, "
            f"mAP {found['mAP']:.3f}, loss {found['loss']:.4f}" + (f"; {failed} clips skipped" if failed else "")
        )
    right = round(found["top1"] * found["clips"] / 100)
    if note := few_clips_note(share_interval(right, found["clips"]), found["clips"]):
        log(f"note: {note}")
