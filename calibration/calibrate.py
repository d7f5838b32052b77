"""`adafocus-edge calibrate`: variants and exit thresholds are added to a bundle one by one, whole or not at all."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from adafocus_edge import __version__
from adafocus_edge.backends.base import LoadedModel
from adafocus_edge.backends.load import load_model
from adafocus_edge.bundle import Bundle, GraphInfo, Manifest, copy_bundle, read_bundle, sha256_of, update_bundle
from adafocus_edge.cpus import processor, usable_cores
from adafocus_edge.data import Example, Split, read_data
from adafocus_edge.errors import BundleError, DataError, UsageError
from adafocus_edge.evaluate import Patches, exit_figures, with_patches
from adafocus_edge.exits import Confidence, ExitThresholds, Order
from adafocus_edge.sources import find_sources
from adafocus_edge.types import GRAPHS, contract
from calibration.compare import Run, compare, run, timed
from calibration.ranges import Method
from calibration.samples import Clips, Samples, choose_clips, halve, read_clips, read_windows, record
from calibration.thresholds import Goal, solve
from calibration.variants import PURPOSE, Choices, Made, Maker, Variant

REFERENCE = "fp32"
FEWEST_CLIPS = 8
REPORT = "calibration"
"""Where the manifest's reports hold what is told here."""
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class CalibrateOptions:
    """What ``adafocus-edge calibrate`` was asked for.

    Attributes:
        data: labelled clips, or videos without labels.
        frames: for a split list, the folder its paths lie in.
        report_on: clips to report on, or None to keep a share of ``data`` for that.
        variants: to make.
        goals: exit thresholds to solve.
        output: bundle to write, or None to add to the one that is read.
        clips: how many clips to use at most, of each of the two parts.
        samples: recorded steps that ranges are taken from.
        share: of the clips that calibrate; the others report.
        seed: of every choice made by chance.
        patches: where the float model looks while inputs are recorded.
        method: of ranges, or None to choose.
        max_drop: points of accuracy that a variant may lose on the calibration clips.
        confidence: what exit thresholds are compared with.
        orders: orders of frames that thresholds are solved for.
        glimpse_fps: of live windows.
        reduce_range: 7-bit weights in ``int8-cpu``.
        threads: CPU threads.
        force: whether to replace what is there and was made otherwise.
    """

    data: Path
    frames: Path | None
    report_on: Path | None
    variants: tuple[Variant, ...]
    goals: tuple[Goal, ...]
    output: Path | None
    clips: int
    samples: int
    share: float
    seed: int
    patches: Patches
    method: Method | None
    max_drop: float
    confidence: Confidence
    orders: tuple[Order, ...]
    glimpse_fps: float
    reduce_range: bool
    threads: int | None
    force: bool


@dataclass(frozen=True)
class Calibrated:
    """What came of it.

    Attributes:
        bundle: as it is now.
        notes: what the user should know, a line each.
    """

    bundle: Bundle
    notes: tuple[str, ...]

    @property
    def report(self) -> dict[str, Any]:
        """The manifest's report."""
        found: dict[str, Any] = self.bundle.manifest.reports[REPORT]
        return found


@dataclass(frozen=True)
class _Data:
    """The clips, in their two parts."""

    split: Split
    labelled: bool
    calibrate_on: list[Example]
    report_on: list[Example]
    notes: list[str]


def calibrate(path: Path, options: CalibrateOptions, progress: Progress = lambda *_: None) -> Calibrated:
    """Calibrate a bundle.

    Args:
        path: the bundle with the FP32 graphs.
        options: see :class:`CalibrateOptions`.
        progress: told what is being done, and how much of how much.

    A run that was broken off keeps the variants that it had finished; the same command then makes the others. Raises
    ``AdaFocusError`` of the kind that fits.
    """
    bundle = read_bundle(path)
    if REFERENCE not in bundle.manifest.variants:
        raise BundleError(
            f"{path}: has no variant {REFERENCE} to calibrate; it holds: {', '.join(bundle.manifest.variants)}"
        )
    data = _read_data(bundle, options)
    if options.output is not None and options.output.resolve() != path.resolve():
        path = _target(bundle, options.output)
    with _alone(path) as work:
        return _Calibration(read_bundle(path), data, options, work, progress).run()


class _Calibration:
    def __init__(self, bundle: Bundle, data: _Data, options: CalibrateOptions, work: Path, progress: Progress) -> None:
        self.bundle, self.data, self.options, self.work, self.progress = bundle, data, options, work, progress
        self.notes = list(data.notes)
        self.settings = self._settings()

    def run(self) -> Calibrated:
        wanted = [name for name in self.options.variants if not self._is_there(name)]
        goals = [goal for goal in self.options.goals if not self._is_solved(goal)]
        if wanted or goals:
            failed: list[tuple[str, str]] = []
            spec = self.bundle.model
            self.calibration, self.judging = (
                self._read(examples, failed, what)
                for examples, what in (
                    (self.data.calibrate_on, "reading the clips to calibrate on"),
                    (self.data.report_on, "reading the clips to report on"),
                )
            )
            self.notes.extend(f"left out: {name}: {error}" for name, error in failed)
            with load_model(self.bundle, REFERENCE, "onnxruntime-cpu", self.options.threads) as reference:
                self.reference = reference
                self.before = self._run(reference, self.calibration, "the float model on the calibration clips")
                self.after = self._run(reference, self.judging, "the float model on the report's clips")
                if not self.data.labelled:
                    self.calibration = _labelled_by(self.calibration, self.before)
                    self.judging = _labelled_by(self.judging, self.after)
                # Thresholds first: the rows of the variants say what each of them does with these.
                for goal in goals:
                    self._solve(goal)
                self._update_reference()
                if wanted:
                    samples = self._record(reference)
                    choices = Choices(
                        self.options.method, self.options.max_drop, self.options.reduce_range, self.options.threads
                    )
                    maker = Maker(
                        spec, lambda graph: self.bundle.graph_path(REFERENCE, graph), samples, self.calibration,
                        self.before, choices, self.work, self.progress,
                    )  # fmt: skip
                    for name in wanted:
                        self._add(name, maker)
        return Calibrated(self.bundle, tuple(self.notes))

    # -- what is there already ----------------------------------------------------------------------------------------

    def _settings(self) -> dict[str, Any]:
        """Return what decides the outcome; kept with each variant, so that the same is not made twice."""
        options, data = self.options, self.data
        named = [[e.name, list(e.labels)] for e in (*data.calibrate_on, *data.report_on)]
        return {
            "data": str(options.data),
            "report_on": str(options.report_on) if options.report_on else f"{1 - options.share:.0%} of the clips",
            "labelled": data.labelled,
            "clips_to_calibrate": len(data.calibrate_on),
            "clips_to_report": len(data.report_on),
            "clips_sha256": hashlib.sha256(json.dumps(named).encode()).hexdigest(),
            "samples": options.samples,
            "seed": options.seed,
            "patches": options.patches,
            "fp32_sha256": [self.bundle.manifest.variants[REFERENCE][graph].sha256 for graph in GRAPHS],
            "onnxruntime": onnxruntime.__version__,
        }

    def _variant_settings(self) -> dict[str, Any]:
        options = self.options
        return {
            **self.settings,
            "method": options.method or "auto",
            "max_accuracy_drop": options.max_drop,
            "reduce_range": options.reduce_range,
        }

    def _is_there(self, name: Variant) -> bool:
        if name not in self.bundle.manifest.variants or self.options.force:
            return False
        row = self._report()["rows"].get(name, {})
        if row.get("settings") == self._variant_settings():
            self.notes.append(f"{name}: is there already, made with the same data and options")
            return True
        raise UsageError(
            f"{self.bundle.path}: holds a variant {name} made with other data or options: --force replaces it"
        )

    def _is_solved(self, goal: Goal) -> bool:
        sets = self.bundle.manifest.thresholds
        if goal.name not in sets or self.options.force:
            return False
        if self._report()["thresholds"].get(goal.name, {}).get("settings") == self._goal_settings(goal):
            self.notes.append(f"exit thresholds {goal.name}: are there already, solved with the same data and options")
            return True
        raise UsageError(
            f"{self.bundle.path}: holds exit thresholds {goal.name} solved with other data or options: "
            "--force replaces them"
        )

    def _goal_settings(self, goal: Goal) -> dict[str, Any]:
        options = self.options
        more = {"goal": str(goal), "confidence": options.confidence, "orders": list(options.orders)}
        return {**self.settings, **more, "glimpse_fps": options.glimpse_fps if "live" in options.orders else None}

    def _report(self) -> dict[str, Any]:
        return _report_of(self.bundle.manifest)

    # -- clips --------------------------------------------------------------------------------------------------------

    def _read(self, examples: list[Example], failed: list[tuple[str, str]], what: str) -> Clips:
        clips = read_clips(examples, self.bundle.model, failed, lambda done: self.progress(what, done, len(examples)))
        if len(clips) < FEWEST_CLIPS // 2:
            raise DataError(
                f"{self.data.split.origin}: only {len(clips)} clips can be read of {len(examples)}: "
                f"{failed[0][1] if failed else 'give more'}"
            )
        return clips

    def _run(self, model: LoadedModel, clips: Clips, what: str, order: Order = "clip") -> Run:
        return run(model, clips, order, lambda done: self.progress(what, done, len(clips)))

    def _record(self, reference: LoadedModel) -> Samples:
        options = self.options
        looking = with_patches(reference, options.patches, options.seed)
        return record(
            looking, self.calibration, options.samples, options.seed,
            lambda done: self.progress("recording trajectories", done, len(self.calibration)),
        )  # fmt: skip

    # -- variants -----------------------------------------------------------------------------------------------------

    def _add(self, name: Variant, maker: Maker) -> None:
        made = maker.make(name)
        paths = {graph: made.folder / f"{graph}.onnx" for graph in GRAPHS}
        with maker.opened(paths, name) as model:
            found = self._run(model, self.judging, f"{name} on the report's clips")
            self.progress(f"timing {name}", 0, 0)
            times = timed({REFERENCE: self.reference, name: model}, self.judging)
            row = {
                "purpose": PURPOSE[name],
                **self._sizes(paths),
                **compare(found, self.after, self.judging.labels),
                **times[name],
                "fp32_ms_per_clip": times[REFERENCE]["ms_per_clip"],
                "fp32_ms_per_step": times[REFERENCE]["ms_per_step"],
                "times_faster_per_clip": round(times[REFERENCE]["ms_per_clip"] / times[name]["ms_per_clip"], 3),
                "exits": self._exits_of(model, found),
                **made.facts,
                **self._context(),
                "settings": self._variant_settings(),
            }
        graphs = self._describe(name, made)

        def change(manifest: Manifest) -> Manifest:
            report = _report_of(manifest)
            report["rows"] = {**report["rows"], name: row}
            return replace(
                manifest,
                variants={**manifest.variants, name: graphs},
                reports={**manifest.reports, REPORT: report},
            )

        self.bundle = update_bundle(self.bundle.path, change, name, made.folder)

    def _describe(self, name: str, made: Made) -> dict[str, GraphInfo]:
        described = {}
        for graph in GRAPHS:
            path = made.folder / f"{graph}.onnx"
            inputs, outputs = contract(self.bundle.model, graph)
            opset = next(o.version for o in onnx.load_model(path).opset_import if o.domain in ("", "ai.onnx"))
            described[graph] = GraphInfo(
                file=f"{name}/{path.name}",
                sha256=sha256_of(path),
                size_bytes=os.path.getsize(path),
                precision=made.precision[graph],
                opset=opset,
                inputs=inputs,
                outputs=outputs,
                gflops=self.bundle.manifest.variants[REFERENCE][graph].gflops,
            )
        return described

    def _sizes(self, paths: dict[str, Path]) -> dict[str, float]:
        """Return megabytes, and the share of FP32: of what plain FP32 weights take, however they are stored."""
        size = sum(os.path.getsize(path) for path in paths.values())
        return {"size_mb": round(size / 1e6, 3), "share_of_fp32_size": round(size / self._plain_bytes(), 4)}

    def _plain_bytes(self) -> int:
        total = 0
        for graph in GRAPHS:
            path = self.bundle.graph_path(REFERENCE, graph)
            weights = onnx.load_model(path).graph.initializer
            halves = sum(w.ByteSize() for w in weights if w.data_type == onnx.TensorProto.FLOAT16)
            total += os.path.getsize(path) + halves
        return total

    def _context(self) -> dict[str, Any]:
        name, _ = processor()
        return {
            "measured": {
                "on": f"{name}, {self.options.threads or usable_cores()} threads, ONNX Runtime's CPU provider",
                "clips": len(self.judging),
                "when": datetime.now(timezone.utc).isoformat(timespec="seconds"),
                "tools": {
                    "adafocus-edge": __version__,
                    "onnx": version("onnx"),
                    "onnxruntime": onnxruntime.__version__,
                },
            }
        }

    def _update_reference(self) -> None:
        """Record the float model's own row, with the thresholds that are there."""
        self.progress("timing fp32", 0, 0)
        row = {
            "purpose": PURPOSE[REFERENCE],
            **self._sizes({graph: self.bundle.graph_path(REFERENCE, graph) for graph in GRAPHS}),
            **compare(self.after, self.after, self.judging.labels),
            **timed({REFERENCE: self.reference}, self.judging)[REFERENCE],
            "per_step_top1": [round(float(v * 100), 4) for v in self.after.right(self.judging.labels).mean(axis=0)],
            "exits": self._exits_of(self.reference, self.after),
            **self._context(),
        }

        def change(manifest: Manifest) -> Manifest:
            report = _report_of(manifest)
            report["rows"] = {REFERENCE: row, **{n: r for n, r in report["rows"].items() if n != REFERENCE}}
            return replace(manifest, reports={**manifest.reports, REPORT: report})

        self.bundle = update_bundle(self.bundle.path, change)

    # -- thresholds ---------------------------------------------------------------------------------------------------

    def _solve(self, goal: Goal) -> None:
        solved = []
        for order in self.options.orders:
            clips, found = self._seen_in(order)
            at = self.options.glimpse_fps if order == "live" else None
            found_for = solve(
                goal, found.logits, clips.labels, order=order, confidence=self.options.confidence,
                gflops_per_step=self._gflops(), glimpse_fps=at,
            )  # fmt: skip
            solved.append(found_for)

        def change(manifest: Manifest) -> Manifest:
            report = _report_of(manifest)
            report["thresholds"] = {**report["thresholds"], goal.name: {"settings": self._goal_settings(goal)}}
            return replace(
                manifest,
                thresholds={**manifest.thresholds, goal.name: tuple(solved)},
                reports={**manifest.reports, REPORT: report},
            )

        self.bundle = update_bundle(self.bundle.path, change)

    def _seen_in(self, order: Order) -> tuple[Clips, Run]:
        """Return the calibration clips and the float model's run over them, their frames in an order."""
        if order == "clip":
            return self.calibration, self.before
        if not hasattr(self, "_orders"):
            self._orders: dict[Order, tuple[Clips, Run]] = {}
        if order not in self._orders:
            clips = self.calibration
            if order == "live":
                self.progress("reading live windows", 0, 0)
                clips = read_windows(self.data.calibrate_on, self.bundle.model, self.options.glimpse_fps)
            found = self._run(self.reference, clips, f"the float model, order {order}", order)
            if not self.data.labelled:
                clips = _labelled_by(clips, found)
            self._orders[order] = clips, found
        return self._orders[order]

    def _exits_of(self, model: LoadedModel, found: Run) -> dict[str, dict[str, Any]]:
        """Return what a model does with each threshold set on the report's clips."""
        runs: dict[Order, tuple[Clips, Run]] = {"clip": (self.judging, found)}
        told: dict[str, dict[str, Any]] = {}
        for name, sets in self.bundle.manifest.thresholds.items():
            for exits in sets:
                key: tuple[Order, float | None] = (exits.order, exits.glimpse_fps)
                if exits.order not in runs:
                    runs[exits.order] = self._judged_in(model, exits)
                clips, seen = runs[exits.order]
                told.setdefault(name, {})[key[0]] = {
                    **exit_figures(seen.logits, clips.labels, exits, self._gflops()),
                    "top1_all_steps": round(float(seen.right(clips.labels)[:, -1].mean() * 100), 4),
                    "clips": len(clips),
                }
        return told

    def _judged_in(self, model: LoadedModel, exits: ExitThresholds) -> tuple[Clips, Run]:
        clips = self.judging
        if exits.order == "live":
            assert exits.glimpse_fps is not None
            clips = read_windows(self.data.report_on, self.bundle.model, exits.glimpse_fps)
        found = self._run(model, clips, f"{model.variant}, order {exits.order}", exits.order)
        return (clips if self.data.labelled else _labelled_by(clips, found)), found

    def _gflops(self) -> float:
        return sum(self.bundle.manifest.variants[REFERENCE][graph].gflops for graph in GRAPHS)


def _report_of(manifest: Manifest) -> dict[str, Any]:
    return {"rows": {}, "thresholds": {}, **manifest.reports.get(REPORT, {})}


def _labelled_by(clips: Clips, found: Run) -> Clips:
    """Return clips that have no labels with the float model's own as theirs."""
    return replace(clips, labels=found.logits[:, -1].argmax(axis=1).astype(np.int64))


def _read_data(bundle: Bundle, options: CalibrateOptions) -> _Data:
    split, labelled = _read_split(options.data, bundle, options.frames)
    notes = []
    if not labelled:
        notes.append(f"{options.data}: no labels, so accuracy here is agreement with the float model")
    chosen = choose_clips(split, options.clips if options.report_on else 2 * options.clips, options.seed)
    if options.report_on is not None:
        other, other_labelled = _read_split(options.report_on, bundle, options.frames)
        if other_labelled != labelled:
            raise UsageError("--report-on: one of the two data sets has labels, the other has none")
        shared = {str(e.path.resolve()) for e in split.examples} & {str(e.path.resolve()) for e in other.examples}
        if shared:
            raise UsageError(f"--report-on: {len(shared)} of its clips are in --data, too: {sorted(shared)[0]}")
        parts = chosen, choose_clips(other, options.clips, options.seed)
    else:
        parts = halve(chosen, options.share, options.seed)
    for part, what in zip(parts, ("calibrate on", "report on"), strict=True):
        if len(part) < FEWEST_CLIPS // 2:
            raise DataError(
                f"{options.data}: {len(part)} clips to {what}, at least {FEWEST_CLIPS // 2} are needed: give more clips"
                + ("" if options.report_on else ", or another --share")
            )
        present = {example.labels[0] for example in part}
        missing = [name for number, name in enumerate(bundle.classes) if number not in present]
        if labelled and missing:
            named = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            notes.append(f"no clip to {what} shows {len(missing)} of the {len(bundle.classes)} classes: {named}")
    return _Data(split, labelled, *parts, notes)


def _read_split(path: Path, bundle: Bundle, frames: Path | None) -> tuple[Split, bool]:
    """Read labelled clips, or plain videos: a video, or a folder without a sub-folder per class."""
    plain = path.is_file() and path.suffix.lower() not in (".csv", ".txt")
    if path.is_dir():
        folders = {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}
        plain = not folders
    if not plain:
        return read_data(path, bundle.classes, frames), True
    examples = tuple(Example(source.name, Path(source.address), (0,)) for source in find_sources([str(path)]))
    return Split(examples, bundle.classes, str(path)), False


def _target(bundle: Bundle, output: Path) -> Path:
    """Copy the bundle to where the result shall be, or find it there from a run before."""
    if not output.exists():
        copy_bundle(bundle.path, output)
        return output
    there = read_bundle(output).manifest.variants.get(REFERENCE)
    if there is None or {g: i.sha256 for g, i in there.items()} != {
        g: i.sha256 for g, i in bundle.manifest.variants[REFERENCE].items()
    }:
        raise UsageError(f"{output}: exists and is a bundle of another model: give another --output")
    return output


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Give a folder to work in, beside the bundle and so on its disk, and keep other runs away meanwhile."""
    path = path.resolve()
    try:
        lock = (path.parent / f".{path.name}.calibrate.lock").open("w")
    except OSError as error:
        raise BundleError(f"{path}: cannot be written ({error.strerror}): give --output for the result") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise BundleError(f"{path}: another calibration is writing it") from None
        pattern = f".{path.name}.calibrate."
        for left in path.parent.iterdir():
            if left.name.startswith(pattern) and left.is_dir():  # of a run that was killed
                shutil.rmtree(left, ignore_errors=True)
        work = Path(tempfile.mkdtemp(prefix=pattern, dir=path.parent))
        try:
            yield work
        finally:
            shutil.rmtree(work, ignore_errors=True)
            Path(lock.name).unlink(missing_ok=True)
