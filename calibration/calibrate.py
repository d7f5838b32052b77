"""`adafocus-edge calibrate`: add variants and exit thresholds to a bundle one by one, each whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Set
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx
import onnxruntime

from adafocus_edge import __version__
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.manifest import Bundle, GraphInfo, Manifest
from adafocus_edge.bundle.store import copy_bundle, read_bundle, sha256_of, update_bundle, writing
from adafocus_edge.bundle.variants import PURPOSE, REFERENCE
from adafocus_edge.errors import BundleError, DataError, UsageError
from adafocus_edge.evaluation.dataset import Example
from adafocus_edge.evaluation.evaluate import with_patches
from adafocus_edge.evaluation.evidence import CALIBRATION, CONVERTED, Verdict, warning_of
from adafocus_edge.evaluation.settings import Patches
from adafocus_edge.model.exits import Confidence, ExitThresholds, Order
from adafocus_edge.model.spec import GRAPHS, contract
from adafocus_edge.system.cpu import processor, usable_cores
from adafocus_edge.system.files import draft_folder, locked, writable
from adafocus_edge.system.timestamps import iso_now
from calibration.compare import timed
from calibration.inputs import MIN_CLIPS, Inputs, read_inputs
from calibration.judge import Viewer
from calibration.profile import layer_times
from calibration.ranges import Method
from calibration.remembering import remembering
from calibration.samples import Clips, Samples, read_clips, record
from calibration.thresholds import Goal, solve
from calibration.variants import Choices, Made, Maker, Variant
from calibration.workers import Workers

REPORT = CALIBRATION
"""Key of this report in the manifest's reports."""
TIMING_NOISE = 0.05
"""A variant that was fitted to a time may take so much longer beside the others."""
PROFILED_FRAMES = 4
"""Frames per call when layers are timed."""
Progress = Callable[[str, int, int], None]
"""Called with the current activity, the steps done and their total (0 if unknown)."""


@dataclass(frozen=True)
class CalibrateOptions:
    """A request to ``adafocus-edge calibrate``.

    Attributes:
        data: labelled clips, or videos without labels.
        frames: for a split list, the folder that its paths are relative to.
        report_on: clips to report on, or None to hold back a share of ``data``.
        variants: variants to make.
        goals: exit thresholds to solve.
        output: bundle to write, or None to add to the input bundle.
        clips: max clips to use in each of the two parts.
        samples: recorded steps that ranges are computed from.
        share: share of the clips to calibrate on, 0..1; the report uses the rest.
        seed: random seed.
        patches: where the float model looks while inputs are recorded.
        method: range method, or None to choose by accuracy.
        max_drop: points of accuracy that a variant may lose on the calibration clips.
        max_latency_ms: time per clip up to which layers of ``int8-cpu`` stay float, or None.
        confidence: confidence measure that exit thresholds are compared with.
        orders: frame orders to solve thresholds for.
        glimpse_fps: glimpses per second of live windows.
        reduce_range: whether ``int8-cpu`` uses 7-bit weights.
        threads: CPU threads, or None for all cores.
        force: whether to replace variants and thresholds made with other options.
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
    max_latency_ms: float | None
    confidence: Confidence
    orders: tuple[Order, ...]
    glimpse_fps: float
    reduce_range: bool
    threads: int | None
    force: bool


@dataclass(frozen=True)
class Calibrated:
    """The result of a calibration.

    Attributes:
        bundle: the updated bundle.
        notes: notes for the user, a line each.
    """

    bundle: Bundle
    notes: tuple[str, ...]

    @property
    def report(self) -> dict[str, Any]:
        """The calibration report in the manifest."""
        found: dict[str, Any] = self.bundle.manifest.reports[REPORT]
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the object of ``calibrate --json``: the bundle's folder, the report and all thresholds."""
        sets = self.bundle.manifest.thresholds
        thresholds = {name: [asdict(one) for one in of_name] for name, of_name in sets.items()}
        return {"bundle": str(self.bundle.path), **self.report, "exits": thresholds}


def calibrate(path: Path, options: CalibrateOptions, progress: Progress = lambda *_: None) -> Calibrated:
    """Calibrate a bundle.

    Args:
        path: the bundle with the FP32 graphs.
        options: see :class:`CalibrateOptions`.
        progress: see :data:`Progress`.

    An interrupted run keeps the variants that it had finished; the same command then makes the others. Raises a
    subclass of ``AdaFocusError``.
    """
    path = path.resolve()
    bundle = read_bundle(path)
    if REFERENCE not in bundle.manifest.variants:
        raise BundleError(
            f"{path}: has no {REFERENCE} variant to calibrate, only {', '.join(bundle.manifest.variants)}"
        )
    if bundle.spec.order != "time" and "coarse-to-fine" in options.orders:
        raise UsageError(
            "--orders coarse-to-fine: this model was trained to see frames in an order of its own, which --orders clip "
            "keeps"
        )
    inputs = read_inputs(
        bundle, options.data, options.frames, options.report_on, options.clips, options.share, options.seed
    )
    if options.output is not None and options.output.resolve() != path:
        path = _target(bundle, options)
    with _alone(path) as work:
        return _Calibration(read_bundle(path), inputs, options, work, progress).run()


class _Calibration:
    """One run over one bundle."""

    def __init__(
        self, bundle: Bundle, inputs: Inputs, options: CalibrateOptions, work: Path, progress: Progress
    ) -> None:
        self.bundle, self.inputs, self.options, self.work, self.progress = bundle, inputs, options, work, progress
        self.workers = Workers(options.threads)
        self.notes = list(inputs.notes)
        graphs = bundle.manifest.variants[REFERENCE]
        self.marks: dict[str, list[str]] = {}
        self.gflops = sum(graphs[graph].gflops for graph in GRAPHS)
        self.settings: dict[str, Any] = {
            **inputs.identity(),
            "seed": options.seed,
            "fp32_sha256": [graphs[graph].sha256 for graph in GRAPHS],
        }

    def run(self) -> Calibrated:
        """Make the missing variants and thresholds, and judge all of them on the same clips."""
        for goal in self.options.goals:
            goal.check(self.bundle.spec.segments, self.gflops)
        wanted = [name for name in self.options.variants if not self._is_there(name)]
        goals = [goal for goal in self.options.goals if not self._is_solved(goal)]
        if not wanted and not goals and self._all_judged():
            self.notes.extend(self._report().get("warnings", ()))
            return Calibrated(self.bundle, tuple(self.notes))
        self.marks = self.inputs.marks()
        failed: list[tuple[str, str]] = []
        calibration = self._read(self.inputs.calibrate_on, failed, "reading the clips to calibrate on")
        judging = self._read(self.inputs.report_on, failed, "reading the clips to report on")
        self.notes.extend(f"skipped: {name}: {error}" for name, error in failed)
        with self._open(REFERENCE, self.workers.threads_each) as opened:
            self._make_all(remembering(opened, self.workers.batch), calibration, wanted, goals)
            self._judge_all(remembering(opened, self.workers.batch), judging)
        self.notes.extend(self._report()["warnings"])
        return Calibrated(self.bundle, tuple(self.notes))

    # -- existing variants and thresholds ------------------------------------------------------------------------------

    def _variant_settings(self, name: Variant) -> dict[str, Any]:
        """Return the settings that determine a variant; stored with it, so that it is not made twice."""
        options = self.options
        settings = {**self.settings, "samples": options.samples, "patches": options.patches}
        if name != "fp16":
            settings |= {"method": options.method or "auto", "max_accuracy_drop": options.max_drop}
        if name == "int8-cpu":
            settings["reduce_range"] = options.reduce_range
            if options.max_latency_ms is not None:
                threads = options.threads or usable_cores()
                settings |= {"max_latency_ms": options.max_latency_ms, "timed_on": [processor()[0], threads]}
        return settings

    def _goal_settings(self, goal: Goal) -> dict[str, Any]:
        options = self.options
        more = {"goal": str(goal), "confidence": options.confidence, "orders": list(options.orders)}
        return {**self.settings, **more, "glimpse_fps": options.glimpse_fps if "live" in options.orders else None}

    def _is_there(self, name: Variant) -> bool:
        if name not in self.bundle.manifest.variants or self.options.force:
            return False
        settings = self._report()["rows"].get(name, {}).get("settings")
        if name == CONVERTED and settings is None and CONVERTED in self.bundle.manifest.reports:
            self.notes.append("fp16: replaced the variant that was converted without data by one made with these clips")
            return False
        if settings == self._variant_settings(name):
            self.notes.append(f"{name}: kept, already made with the same clips and options")
            return True
        raise UsageError(
            f"{self.bundle.path}: variant {name} exists, made with other clips or options: give --force to replace it"
        )

    def _is_solved(self, goal: Goal) -> bool:
        if goal.name not in self.bundle.manifest.thresholds or self.options.force:
            return False
        if self._report()["thresholds"].get(goal.name, {}).get("settings") == self._goal_settings(goal):
            self.notes.append(f"exit thresholds {goal.name}: kept, already solved with the same clips and options")
            return True
        raise UsageError(
            f"{self.bundle.path}: exit thresholds {goal.name} exist, solved with other clips or options: "
            "give --force to replace them"
        )

    def _all_judged(self) -> bool:
        return self._report().get("judged") == self._judgement()

    def _judgement(self) -> dict[str, Any]:
        """Return what a report covers: these clips, and the bundle's variants and thresholds."""
        variants = self.bundle.manifest.variants
        return {
            **self.settings,
            "variants": {name: [graphs[graph].sha256 for graph in GRAPHS] for name, graphs in variants.items()},
            "thresholds": [[name, one.order, list(one.values)] for name, one in self._sets()],
        }

    def _sets(self) -> list[tuple[str, ExitThresholds]]:
        """Return the threshold sets that may be judged here: those solved on the calibration part of the same clips."""
        solved = self._report()["thresholds"]
        return [
            (name, one)
            for name, sets in self.bundle.manifest.thresholds.items()
            if self.settings.items() <= solved.get(name, {}).get("settings", {}).items()
            for one in sets
        ]

    def _report(self) -> dict[str, Any]:
        return _report_of(self.bundle.manifest)

    # -- steps --------------------------------------------------------------------------------------------------------

    def _read(self, examples: tuple[Example, ...], failed: list[tuple[str, str]], what: str) -> Clips:
        clips = read_clips(examples, self.bundle.spec, failed, lambda done: self.progress(what, done, len(examples)))
        if len(clips) < MIN_CLIPS:
            raise DataError(
                f"{self.inputs.origin}: only {len(clips)} of {len(examples)} clips can be read, at least {MIN_CLIPS} "
                f"are needed: {failed[0][1] if failed else 'give more clips'}"
            )
        return clips

    def _viewer(self, reference: LoadedModel, clips: Clips, examples: tuple[Example, ...]) -> Viewer:
        return Viewer(
            reference, clips, examples, labelled=self.inputs.labelled, progress=self.progress, workers=self.workers
        )

    def _open(self, variant: str, threads: int | None) -> LoadedModel:
        return load_model(self.bundle, variant, "onnxruntime-cpu", threads)

    def _make_all(self, reference: LoadedModel, calibration: Clips, wanted: list[Variant], goals: list[Goal]) -> None:
        """Solve exit thresholds and make variants, on the same clips, and store each when it is done."""
        viewer = self._viewer(reference, calibration, self.inputs.calibrate_on)
        for goal in goals:
            self._solve(goal, viewer)
        if wanted:
            maker = self._maker(reference, viewer)
            for name in wanted:
                self._add(name, maker)

    def _solve(self, goal: Goal, viewer: Viewer) -> None:
        options = self.options
        solved = []
        for order in options.orders:
            fps = options.glimpse_fps if order == "live" else None
            seen = viewer.seen(order, fps)
            solved.append(
                solve(
                    goal,
                    seen.run.logits,
                    seen.clips.labels,
                    order=order,
                    confidence=options.confidence,
                    gflops_per_step=self.gflops,
                    glimpse_fps=fps,
                )
            )
        settings = self._goal_settings(goal)

        def change(manifest: Manifest) -> Manifest:
            report = _report_of(manifest)
            report["thresholds"] = {**report["thresholds"], goal.name: {"settings": settings}}
            sets = {**manifest.thresholds, goal.name: tuple(solved)}
            return replace(manifest, thresholds=sets, reports={**manifest.reports, REPORT: report})

        self._update(change)

    def _maker(self, reference: LoadedModel, viewer: Viewer) -> Maker:
        options = self.options
        seen = viewer.seen("clip")
        samples = self._record(reference, seen.clips)
        choices = Choices(
            options.method, options.max_drop, options.reduce_range, options.threads, options.max_latency_ms
        )
        return Maker(
            reference, lambda graph: self.bundle.graph_path(REFERENCE, graph), samples, seen.clips, seen.run,
            choices, self.work, self.progress,
        )  # fmt: skip

    def _record(self, reference: LoadedModel, clips: Clips) -> Samples:
        looking = with_patches(reference, self.options.patches, self.options.seed)
        return record(
            looking, clips, self.options.samples, self.options.seed,
            lambda done: self.progress("recording trajectories", done, len(clips)),
        )  # fmt: skip

    def _add(self, name: Variant, maker: Maker) -> None:
        """Make a variant and store it in the bundle, with its row of the report."""
        made = maker.make(name)
        self.notes.extend(made.notes)
        graphs = self._describe(name, made)
        row = {
            **({} if made.quantization is None else msgspec.to_builtins(made.quantization)),
            "data": str(self.options.data),
            "tools": _tools(),
            "settings": self._variant_settings(name),
        }

        def change(manifest: Manifest) -> Manifest:
            report = _report_of(manifest)
            report["rows"] = {**report["rows"], name: row}
            variants = {**manifest.variants, name: graphs}
            reports = {**manifest.reports, REPORT: report}
            if name == CONVERTED:
                reports.pop(CONVERTED, None)  # the report on the conversion that this variant replaces
            return replace(manifest, variants=variants, reports=reports)

        self._update(change, name, made.folder)

    def _describe(self, name: str, made: Made) -> dict[str, GraphInfo]:
        described = {}
        for graph in GRAPHS:
            path = made.folder / f"{graph}.onnx"
            inputs, outputs = contract(self.bundle.spec, graph)
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

    def _judge_all(self, reference: LoadedModel, judging: Clips) -> None:
        """Judge and time every variant of the bundle on the same clips, and store all rows in one update."""
        viewer = self._viewer(reference, judging, self.inputs.report_on)
        report = self._report()
        names = [REFERENCE, *(name for name in self.bundle.manifest.variants if name != REFERENCE)]
        rows = {}
        for name in names:
            with self._open(name, self.workers.threads_each) if name != REFERENCE else nullcontext(reference) as model:
                seen = reference if name == REFERENCE else remembering(model, self.workers.batch)
                rows[name] = {
                    **report["rows"].get(name, {}),
                    "purpose": PURPOSE.get(name, ""),
                    **self._sizes(name),
                    **viewer.judge(seen, self._sets(), self.gflops).to_json(),
                }
        with ExitStack() as stack:
            models = {name: stack.enter_context(self._open(name, self.options.threads)) for name in names}
            times = timed(models, judging, lambda done, total: self.progress("timing", done, total))
        for name in names:
            faster = times[REFERENCE].ms_per_clip / times[name].ms_per_clip
            rows[name] |= {**asdict(times[name]), "times_faster_per_clip": round(faster, 3)}
            limit = rows[name].get("settings", {}).get("max_accuracy_drop")
            if limit is not None:
                drop, interval = rows[name]["top1_drop"], rows[name]["top1_drop_interval_95"]
                verdict = Verdict(f"at most {limit:g} points lost", limit, drop, tuple(interval), len(judging))
                rows[name]["verdict"] = verdict.to_json()
        if "int8-cpu" in names:
            rows["int8-cpu"]["layers"] = self._layers(judging)
        report |= {
            "rows": rows,
            "warnings": _warnings(rows),
            "judged": self._judgement(),
            "measured": {
                "on": f"{processor()[0]}, {self.options.threads or usable_cores()} threads, ONNX Runtime's CPU kernels",
                "clips": len(judging),
                "when": iso_now(),
                "tools": _tools(),
            },
        }
        self._update(lambda manifest: replace(manifest, reports={**manifest.reports, REPORT: report}))

    def _update(
        self, change: Callable[[Manifest], Manifest], variant: str | None = None, folder: Path | None = None
    ) -> None:
        """Update the bundle; see :func:`update_bundle`. Raises ``BundleError`` if it now holds another model."""

        def checked(manifest: Manifest) -> Manifest:
            graphs = manifest.variants.get(REFERENCE, {})
            if [graphs[graph].sha256 for graph in GRAPHS if graph in graphs] != self.settings["fp32_sha256"]:
                raise BundleError(f"{self.bundle.path}: was replaced by another model meanwhile: calibrate again")
            return self._with_clips(change(manifest))

        self.bundle = update_bundle(self.bundle.path, checked, variant, folder)

    def _with_clips(self, manifest: Manifest) -> Manifest:
        """Add the fingerprints of these clips, so that later figures can be marked where they use the same clips."""
        report = _report_of(manifest)
        before = report.get("clips_seen", {})
        report["clips_seen"] = {part: sorted({*before.get(part, ()), *marks}) for part, marks in self.marks.items()}
        return replace(manifest, reports={**manifest.reports, REPORT: report})

    def _sizes(self, name: str) -> dict[str, float]:
        """Return the size in megabytes, and its share of the size with plain FP32 weights, however those are stored."""
        size = sum(os.path.getsize(self.bundle.graph_path(name, graph)) for graph in GRAPHS)
        return {"size_mb": round(size / 1e6, 3), "share_of_fp32_size": round(size / self._plain_bytes(), 4)}

    def _plain_bytes(self) -> int:
        total = 0
        for graph in GRAPHS:
            path = self.bundle.graph_path(REFERENCE, graph)
            weights = onnx.load_model(path).graph.initializer
            halves = sum(w.ByteSize() for w in weights if w.data_type == onnx.TensorProto.FLOAT16)
            total += os.path.getsize(path) + halves
        return total

    def _layers(self, judging: Clips) -> dict[str, list[dict[str, Any]]]:
        """Return the time of each kind of layer in both convolutional graphs, per call of :data:`PROFILED_FRAMES`."""
        frames = judging.frames[0][:PROFILED_FRAMES]
        feeds = {"glancer": {"frame": frames}, "focuser": {"frame": frames}}
        feeds["focuser"]["origin"] = np.full((len(frames), 2), 0.5, np.float32)
        found = {}
        for graph, given in feeds.items():
            self.progress(f"timing the layers of the {graph}", 0, 0)
            before, after = (self.bundle.graph_path(name, graph) for name in (REFERENCE, "int8-cpu"))
            found[graph] = msgspec.to_builtins(layer_times(before, after, given, self.options.threads))
        return found


def _warnings(rows: dict[str, Any]) -> list[str]:
    """Return a line for each limit that is missed on the held-out clips, or that they are too few to settle.

    Variants with the same figure for the same exit thresholds share a line. A budget (steps, GFLOPs) that is met gives
    no line, even where the clips are few.
    """
    found: dict[str, list[str]] = {}
    for variant, row in rows.items():
        if "verdict" in row and (text := warning_of("", row["verdict"])):
            found.setdefault(text, []).append(variant)
        for name, orders in row["exits"].items():
            for order, one in orders.items():
                verdict = one.get("verdict")
                budget = verdict is not None and ("steps" in verdict["demand"] or "GFLOPs" in verdict["demand"])
                if verdict is None or (budget and verdict["met"]):
                    continue
                if text := warning_of(f" with exit thresholds {name} ({order})", verdict):
                    found.setdefault(text, []).append(variant)
        limit = row.get("settings", {}).get("max_latency_ms")
        if limit is not None and row["ms_per_clip"] > limit * (1 + TIMING_NOISE):
            text = f": {row['ms_per_clip']:.1f} ms per clip, more than --max-latency-ms {limit:g}: use early exits"
            found.setdefault(text, []).append(variant)
    return [f"{', '.join(variants)}{text}" for text, variants in found.items()]


def _tools() -> dict[str, str]:
    return {"adafocus-edge": __version__, "onnx": version("onnx"), "onnxruntime": onnxruntime.__version__}


def _report_of(manifest: Manifest) -> dict[str, Any]:
    return {"rows": {}, "thresholds": {}, **manifest.reports.get(REPORT, {})}


def _target(bundle: Bundle, options: CalibrateOptions) -> Path:
    """Copy the bundle to ``output``, or reuse the copy that an earlier run left there; return its path.

    A new copy lacks what will be made with these clips, so that it need not be replaced by force.
    """
    assert options.output is not None
    output = options.output.resolve()
    if not output.exists():
        rows = _report_of(bundle.manifest)["rows"]
        made = {name for name in options.variants if "settings" in rows.get(name, {})}
        with writable(output, BundleError):
            output.parent.mkdir(parents=True, exist_ok=True)
        with writable(output, BundleError), draft_folder(output.parent, f".{output.name}.", ".copy") as draft:
            copy = draft / "bundle"  # at its place once it is what this run needs, even if the run is killed
            try:
                copy_bundle(bundle.path, copy)
            except BundleError as error:
                raise BundleError(str(error).replace(str(copy), str(output))) from None
            update_bundle(copy, lambda manifest: _without(manifest, made, {goal.name for goal in options.goals}))
            for name in made:
                shutil.rmtree(copy / name, ignore_errors=True)
            copy.rename(output)
        return output
    there = read_bundle(output).manifest.variants.get(REFERENCE)
    if there is None or {g: i.sha256 for g, i in there.items()} != {
        g: i.sha256 for g, i in bundle.manifest.variants[REFERENCE].items()
    }:
        raise UsageError(f"{output}: exists and is a bundle of another model: give another folder with --output")
    return output


def _without(manifest: Manifest, variants: Set[str], goals: Set[str]) -> Manifest:
    """Return a manifest without some variants and exit thresholds, and without what is reported of them."""
    if REPORT not in manifest.reports:
        return manifest
    report = _report_of(manifest)
    kept = {
        "rows": {name: row for name, row in report["rows"].items() if name not in variants},
        "thresholds": {name: one for name, one in report["thresholds"].items() if name not in goals},
    }
    profiles = manifest.profiles.items()
    return replace(
        manifest,
        variants={name: graphs for name, graphs in manifest.variants.items() if name not in variants},
        thresholds={name: sets for name, sets in manifest.thresholds.items() if name not in goals},
        profiles={n: one for n, one in profiles if one.variant not in variants and one.exit.split("/")[0] not in goals},
        reports={**manifest.reports, REPORT: {**report, **kept}},
    )


@contextmanager
def _alone(path: Path) -> Iterator[Path]:
    """Lock the bundle against other calibrations and yield a work folder beside it, on the same file system."""
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(path.parent / f".{path.name}.calibrate.lock"))
            work = stack.enter_context(draft_folder(path.parent, f".{path.name}.calibrate.", ""))
        except BlockingIOError:
            raise BundleError(f"{path}: another calibration is writing to it: wait until it has ended") from None
        except OSError as error:
            raise BundleError(f"{path}: cannot be written ({error.strerror}): give another with --output") from None
        with writing(path, work):
            yield work
