"""The command line. A verb imports what it needs when it runs: help is instant, and a device needs no PyTorch."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
import threading
import traceback
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import asdict, astuple, dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import typer.core

from adafocus_edge import __version__
from adafocus_edge.backends.base import CONV_SEARCH, ConvSearch
from adafocus_edge.cli.options import Config, with_live_options
from adafocus_edge.errors import (
    AdaFocusError,
    BundleError,
    CheckpointError,
    HasAnEndError,
    MissingExtraError,
    SourceError,
    UsageError,
)
from adafocus_edge.live.settings import DEFAULT_GLIMPSE_FPS, LiveArguments
from adafocus_edge.model.spec import MOST_SEGMENTS
from adafocus_edge.system.companions import check_installed, reach

if TYPE_CHECKING:
    from types import TracebackType

    from rich.progress import Progress
    from typing_extensions import Self

    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.backends.nvdec import Choice
    from adafocus_edge.bundle.manifest import Bundle, Manifest
    from adafocus_edge.evaluation.dataset import Split
    from adafocus_edge.evaluation.evaluate import Evaluation
    from adafocus_edge.media.sources import Source
    from adafocus_edge.model.exits import ExitThresholds
    from adafocus_edge.model.spec import ModelSpec
    from adafocus_edge.runtime.classifier import Classifier, Result

app = typer.Typer(
    name="adafocus-edge",
    help="Take an AdaFocus video model from a checkpoint to a device: export it, look into it, run it.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    no_args_is_help=True,
)


class BackendName(str, Enum):
    """Values of ``--backend``."""

    AUTO = "auto"
    CPU = "onnxruntime-cpu"
    CUDA = "onnxruntime-cuda"
    ORT_TENSORRT = "onnxruntime-tensorrt"
    TENSORRT = "tensorrt"


class LibraryName(str, Enum):
    """Values of ``build --library``."""

    AUTO = "auto"
    TENSORRT = "tensorrt"
    RTX = "tensorrt-rtx"


class HardwareName(str, Enum):
    """Values of ``build --hardware-compatible``."""

    NONE = "none"
    SAME = "same"
    AMPERE = "ampere+"


class DecoderName(str, Enum):
    """Values of ``--decoder``."""

    AUTO = "auto"
    CPU = "cpu"
    GPU = "gpu"


class DatasetName(str, Enum):
    """Values of ``prepare --dataset``."""

    CUSTOM = "custom"
    ACTNET = "actnet"
    FCVID = "fcvid"
    MINIK = "minik"


class PatchesName(str, Enum):
    """Values of ``--patches``."""

    POLICY = "policy"
    CENTRE = "centre"
    RANDOM = "random"


class ScheduleName(str, Enum):
    """Values of ``--schedule``."""

    AUTO = "auto"
    CLIP = "clip"
    STREAM = "stream"


class LatencyName(str, Enum):
    """Values of ``tune --latency``."""

    MODEL = "model"
    WHOLE = "whole"
    STEP = "step"


class PercentileName(str, Enum):
    """Values of ``tune --percentile``."""

    MEDIAN = "median"
    P95 = "p95"
    P99 = "p99"


DEFAULT_MODEL_NOTE = (
    "the default model: `fight` or `no_fight` in surveillance video (its MODEL_CARD.md says what it is not for)"
)
DEFAULT_TOP_K = 5
QUICK_CLIPS = 12
"""Clips of ``benchmark --quick``."""
BENCHMARK_WIDTH = 220
"""Columns of a benchmark's table in a pipe."""
LOCALHOST = "127.0.0.1"
VIDEO_CONTAINERS = (".mp4", ".mov", ".mkv")
SIGNALLED = 128
"""Exit status after a signal, as shells have it, less its number."""
INTERRUPTED = 130
"""Exit status after Ctrl-C, as shells have it."""

_debug = False


def _set_debug(value: bool) -> bool:
    global _debug  # noqa: PLW0603 - one process runs one command
    _debug = _debug or value
    return value


def _show_version(value: bool) -> None:
    if value:
        typer.echo(f"adafocus-edge {__version__}")
        raise typer.Exit


VideoTrack = Annotated[
    int | None,
    typer.Option(
        min=0, help="Video track to read, from 0 as in FFmpeg's v:N. [default: the one with the main picture]"
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, help="CPU threads. [default: usable cores]")]
ConvSearchName = Annotated[
    ConvSearch,
    typer.Option(
        "--conv-search",
        help="Choose convolution algorithms of ONNX Runtime on a GPU by heuristics, or by timing them all at start-up.",
    ),
]
Decoder = Annotated[
    DecoderName,
    typer.Option(help="Decode on the CPU, on the NVIDIA GPU that runs the model, or auto: there, where it can."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Nothing on stderr but errors.")]
Exit = Annotated[
    str | None,
    typer.Option("--exit", help="Stop early by one of the bundle's threshold sets: NAME, or NAME/coarse-to-fine."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.", callback=_set_debug)]


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", callback=_show_version, is_eager=True)
    ] = False,
) -> None:
    del version


@app.command("export")
def export_verb(
    checkpoint: Annotated[Path, typer.Argument(help="An official AdaFocus checkpoint (.pth.tar), or one of `train`.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder of the bundle to write.")],
    patch_size: Annotated[int | None, typer.Option(help="Side of the focuser's patch in pixels, such as 128.")] = None,
    classes: Annotated[Path | None, typer.Option(help="Class names, one per line (classInd.txt).")] = None,
    segments: Annotated[int | None, typer.Option(help="Frames per clip. [default: 16]")] = None,
    glance_size: Annotated[
        int | None, typer.Option(help="Side of the glancer's frame. [default: from the weights]")
    ] = None,
    input_size: Annotated[int | None, typer.Option(help="Side of the preprocessed frame. [default: 224]")] = None,
    fused: Annotated[bool, typer.Option("--fused", help="Also write step.onnx, the four graphs joined.")] = False,
    half_weights: Annotated[
        bool,
        typer.Option("--half-weights", help="Store the fp32 graphs' weights as FP16: half the size, FP32 arithmetic."),
    ] = False,
    half: Annotated[
        bool,
        typer.Option("--half", help="Also write an fp16 variant, which computes in FP16: for GPUs. Needs no data."),
    ] = False,
    frames: Annotated[str | None, typer.Option(help="Video or folder of frames to compare the graphs on.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a bundle that is there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a checkpoint to a bundle of four ONNX graphs, and compare them with PyTorch."""
    del debug
    # What needs no PyTorch to tell is told at once.
    if not checkpoint.is_file():
        raise CheckpointError(f"{checkpoint}: no such checkpoint file")
    if output.exists() and not force:
        raise UsageError(f"{output}: exists already; give another name, or --force to replace it")
    if classes is not None:
        from adafocus_edge.bundle.store import read_classes

        read_classes(classes)
    if frames is not None:
        from adafocus_edge.media.sources import Source

        if (missing := Source(frames, frames).missing()) is not None:
            raise missing
    from adafocus_edge.system.retention import check_parent

    check_parent(output)
    exporter = reach("export.exporter", "export", "export")
    halve = reach("calibration.fp16", "export", "export").halve if half else None
    options = exporter.ExportOptions(
        model=exporter.ModelOptions(
            patch_size=patch_size, glance_size=glance_size, input_size=input_size, num_segments=segments
        ),
        classes=classes,
        fused=fused,
        frames=frames,
        replace=force,
        half_weights=half_weights,
    )
    with _stages(quiet) as progress:
        made = exporter.export(checkpoint, output, options, progress, halve)
    for warning in made.warnings:
        _say(f"warning: {warning}", quiet)
    _say_notes(made.notes, quiet)
    if as_json:
        told = {"warnings": made.warnings, "notes": made.notes}
        reports = made.bundle.manifest.reports
        converted = {"fp16": reports["fp16"]} if half else {}
        typer.echo(json.dumps({"bundle": str(output), **reports["parity"], **converted, **told}))
        return
    from adafocus_edge.cli.tables import parity_table
    from adafocus_edge.system.console import console

    megabytes, gflops = made.bundle.totals("fp32")
    clip = gflops * made.bundle.model.segments
    console().print(parity_table(made.bundle.manifest.reports["parity"]["rows"]))
    console().print(f"{output}: {megabytes:.1f} MB, {gflops:.2f} GFLOPs per frame, {clip:.1f} per clip")


@app.command()
def train(
    options: Annotated[
        list[str],
        typer.Argument(metavar="KEY=VALUE...", help="The official code's options, and ours; see the README."),
    ],
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Train one of the four stages: `train dataset=custom data_dir=DIR train_stage=1 ...`."""
    del debug
    check_installed("torch", "train", "train")
    # Before PyTorch is loaded, which takes seconds.
    composed = reach("training.options", "train", "train").compose_options(options)
    reach("training.train", "train", "train").run_composed(composed, quiet, as_json=as_json)


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(help="Folder of videos: one sub-folder per class, or with --annotations.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write: the data_dir of `train`.")],
    dataset: Annotated[
        DatasetName, typer.Option(help="custom: a folder per class; others: from --annotations.")
    ] = DatasetName.CUSTOM,
    annotations: Annotated[
        list[Path] | None,
        typer.Option(help="ActivityNet's JSON; FCVID's or Mini-Kinetics' text or CSV (training, then validation)."),
    ] = None,
    groups: Annotated[
        Path | None, typer.Option(help="CSV `video,source`: clips of one source stay on one side of the split.")
    ] = None,
    val_share: Annotated[float, typer.Option(min=0.01, max=0.99, help="Share of own videos to validate on.")] = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Of that split.")] = 1007,
    size: Annotated[int, typer.Option(min=32, max=8192, help="Short side of the frames in pixels.")] = 256,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 95,
    fps: Annotated[
        float | None, typer.Option(min=0.01, max=1000.0, help="Frames per second to keep. [default: all]")
    ] = None,
    frames: Annotated[
        bool, typer.Option("--frames/--no-frames", help="Without: write lists only; training reads the videos.")
    ] = True,
    workers: Annotated[int | None, typer.Option(min=1, help="Threads. [default: usable cores]")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Turn videos into frames and split lists for `train`. A run that was broken off goes on where it stopped."""
    del debug
    made = reach("training.prepare", "prepare", "train")
    plan = made.PrepareOptions(
        source=source, output=output, dataset=dataset.value, annotations=tuple(annotations or ()), groups=groups,
        val_share=val_share, seed=seed, size=size, quality=quality, fps=fps, frames=frames, workers=workers,
    )  # fmt: skip
    with _progress(quiet) as bars:
        task = bars.add_task("preparing", total=None)
        done = made.prepare(plan, lambda count, total: bars.update(task, completed=count, total=total))
    _say_notes(done.notes, quiet)
    for name, error in done.broken:
        _fail(f"left out: {name}: {error}", 1)
    if as_json:
        typer.echo(json.dumps(done.to_json()))
    else:
        from adafocus_edge.system.console import printable

        typer.echo(printable(done.summary()))
    if done.broken:
        raise typer.Exit(1)


@app.command()
def evaluate(
    model: Annotated[
        Path | None, typer.Argument(help="A bundle, or a checkpoint of any stage. [default: the default model]")
    ] = None,
    data: Annotated[
        Path | None, typer.Option(help="Folder with a sub-folder per class; CSV `video,class`; or a split list.")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="For a split list: the folder its paths lie in.")] = None,
    classes: Annotated[
        Path | None, typer.Option(help="Class names, one per line, where the model has none of its own.")
    ] = None,
    patches: Annotated[
        PatchesName, typer.Option(help="Where to look: as the policy says, or to compare with it.")
    ] = PatchesName.POLICY,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="mAP by all labels of a clip (FCVID).")] = False,
    patch_size: Annotated[int | None, typer.Option(help="Of an official checkpoint, in pixels.")] = None,
    segments: Annotated[
        int | None, typer.Option(min=1, max=MOST_SEGMENTS, help="Frames per clip. [default: the model's]")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs a bundle's graphs.")] = BackendName.AUTO,
    variant: Annotated[str, typer.Option(help="Which of the bundle's variants.")] = "auto",
    schedule: Annotated[ScheduleName, typer.Option(help="Whole clip at once, or frame by frame.")] = ScheduleName.AUTO,
    threads: Threads = None,
    exit_set: Exit = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Also write the JSON here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Write per-step curve and confusion matrix as a PNG.")] = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Say how good a model is on labelled clips: mAP, top-1, top-5, per step and per class."""
    del debug
    if data is None:
        raise UsageError("--data is missing: a folder with a sub-folder per class, a CSV, or a split list")
    _check_plot_name(plot)
    _check_threads(threads)
    from adafocus_edge.bundle.store import default_bundle

    if model is None:
        model = default_bundle()
        _say(DEFAULT_MODEL_NOTE, quiet)
    if plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(plot)
    if not model.exists():
        raise UsageError(f"{model}: neither a bundle nor a checkpoint is there")
    asked = _Evaluating(
        data, frames, classes, patches.value, multi_label, patch_size, segments, backend.value, variant,
        "stream" if schedule is ScheduleName.STREAM else "clip", threads, exit_set, quiet,
    )  # fmt: skip
    asked.check_files()
    _check_files(output, plot)
    found, what = asked.bundle(model) if model.is_dir() else asked.checkpoint(model)
    for name, error in found.failed:
        _fail(f"left out: {name}: {error}", 1)
    _say_notes(found.notes, quiet)
    entry = {"model": str(model), "ran": what, **found.to_json()}
    with ExitStack() as stack:
        stack.callback(_print_evaluation, entry, as_json=as_json)  # whatever becomes of the files
        if output is not None:
            from adafocus_edge.system.files import write_text

            write_text(output, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        if plot is not None:
            from adafocus_edge.evaluation.plot import draw_evaluation

            draw_evaluation(found, f"{model.name}: {what}", plot)
    if found.failed:
        raise typer.Exit(1)


def _print_evaluation(entry: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.live.messages import to_line

        typer.echo(to_line(entry))
        return
    from adafocus_edge.cli.tables import evaluation_tables
    from adafocus_edge.system.console import console

    for table in evaluation_tables(entry):
        console().print(table)


@dataclass(frozen=True)
class _Evaluating:
    """What ``evaluate`` was asked for."""

    data: Path
    frames: Path | None
    classes: Path | None
    patches: Any
    multi_label: bool
    patch_size: int | None
    segments: int | None
    backend: str
    variant: str
    schedule: str
    threads: int | None
    exit_set: str | None
    quiet: bool

    def check_files(self) -> None:
        """Check what takes no time, before a model is loaded. Raises ``DataError`` or ``BundleError``."""
        from adafocus_edge.bundle.store import read_classes
        from adafocus_edge.evaluation.dataset import check_data

        check_data(self.data, self.frames)
        if self.classes is not None:
            read_classes(self.classes)

    def bundle(self, path: Path) -> tuple[Evaluation, str]:
        """Evaluate a bundle."""
        from adafocus_edge.backends.registry import load_model
        from adafocus_edge.bundle.store import check_graph_files, open_bundle
        from adafocus_edge.evaluation.evaluate import graphs_used, predict_with, with_patches
        from adafocus_edge.evaluation.evidence import reused_clips

        if self.patch_size is not None:
            raise UsageError("--patch-size is for official checkpoints: a bundle knows its own")
        found = open_bundle(path)
        found.choose_variant(self.variant)
        exits = None if self.exit_set is None else _exits(found, self.exit_set, live=False)
        split = self._split(found.model, found.classes)
        check_graph_files(found)
        with load_model(found, self.variant, self.backend, self.threads) as model:
            graphs = found.manifest.variants[model.variant]
            gflops = sum(graphs[graph].gflops for graph in graphs_used(found.model, self.patches))
            predict = predict_with(with_patches(model, self.patches), self.schedule)
            what = f"{model.backend}, {model.variant}, {self.schedule} schedule, {self.patches} patches"
            seen = self._run(predict, found.model, split, gflops, what, exits)
        reports = found.manifest.reports
        return replace(seen, reused=reused_clips(reports, [one.example for one in seen.scored])), what

    def checkpoint(self, path: Path) -> tuple[Evaluation, str]:
        """Evaluate a checkpoint with PyTorch."""
        if self.backend != "auto" or self.variant != "auto" or self.exit_set is not None:
            raise UsageError("--backend, --variant and --exit are for bundles: PyTorch runs a checkpoint")
        training = reach("training.predict", "evaluate", "train")
        options = training.ModelOptions(patch_size=self.patch_size, num_segments=self.segments)
        loaded = training.load_predictor(path, options, self.patches, self.schedule, self.threads)
        _say_notes(loaded.notes, self.quiet)
        split = self._split(loaded.spec, loaded.classes)
        found = self._run(loaded.predict, loaded.spec, split, loaded.gflops_per_step, loaded.what)
        return found, loaded.what

    def _split(self, spec: ModelSpec, names: tuple[str, ...] | None) -> Split:
        """Read the clips, of the classes that the model has."""
        from adafocus_edge.bundle.store import check_class_order, check_classes, read_classes
        from adafocus_edge.evaluation.dataset import read_data

        if self.classes is not None:
            own, names = names, read_classes(self.classes)
            check_classes(names, spec.classes, str(self.classes))
            check_class_order(own, names, str(self.classes))
        split = read_data(self.data, names, self.frames)
        _say_notes(split.notes, self.quiet)
        check_classes(split.classes, spec.classes, str(self.data))
        return split

    def _run(
        self,
        predict: Any,
        spec: ModelSpec,
        split: Split,
        gflops: float,
        what: str,
        exits: ExitThresholds | None = None,
    ) -> Evaluation:
        from adafocus_edge.evaluation.evaluate import evaluate as run

        spec = replace(spec, segments=self.segments or spec.segments)
        if exits is not None and len(exits.values) != spec.segments:
            raise UsageError(f"--segments {spec.segments}: --exit {self.exit_set} is for {len(exits.values)} frames")
        _say(f"evaluating: {what}", self.quiet)
        with _progress(self.quiet) as bars:
            task = bars.add_task("evaluating", total=len(split.examples))
            return run(
                predict, spec, split, gflops_per_clip=gflops * spec.segments, multi_label=self.multi_label, exits=exits,
                progress=lambda count: bars.update(task, completed=count),
            )  # fmt: skip


@app.command()
def calibrate(
    bundle: Annotated[
        Path | None, typer.Argument(help="Bundle with FP32 graphs. [default: the default model, with --output]")
    ] = None,
    data: Annotated[
        Path | None,
        typer.Option(help="Clips that training never saw: a folder per class, CSV, split list; or plain videos."),
    ] = None,
    variants: Annotated[
        str, typer.Option(help="Which to make, by commas: int8-cpu, int8-trt, fp16; or none.")
    ] = "int8-cpu,int8-trt,fp16",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write a copy with the variants. [default: add to BUNDLE]")
    ] = None,
    frames: Annotated[Path | None, typer.Option(help="For a split list: the folder its paths lie in.")] = None,
    report_on: Annotated[
        Path | None, typer.Option(help="Other labelled clips to report on. [default: a share of --data]")
    ] = None,
    clips: Annotated[int, typer.Option(min=4, help="Clips to use at most, to calibrate and to report each.")] = 128,
    samples: Annotated[int, typer.Option(min=4, help="Recorded steps that ranges are taken from.")] = 128,
    share: Annotated[float, typer.Option(min=0.1, max=0.9, help="Of --data that calibrates; the rest reports.")] = 0.5,
    seed: Annotated[int, typer.Option(min=0, help="Of everything that chance decides.")] = 1007,
    patches: Annotated[
        PatchesName, typer.Option(help="Where the float model looks while inputs are recorded.")
    ] = PatchesName.POLICY,
    method: Annotated[str, typer.Option(help="Of ranges: minmax, entropy, percentile; auto: by accuracy.")] = "auto",
    max_accuracy_drop: Annotated[
        float, typer.Option(min=0.0, help="Points: keep layers in higher precision until a variant loses no more.")
    ] = 1.0,
    exit_goal: Annotated[
        list[str] | None,
        typer.Option(help="NAME=steps:N, gflops:G, drop:POINTS or accuracy:PERCENT. [default: half and safe]"),
    ] = None,
    confidence: Annotated[str, typer.Option(help="For exits: probability, logit or entropy.")] = "probability",
    orders: Annotated[str, typer.Option(help="Exits for, by commas: clip, coarse-to-fine, live.")] = "clip",
    glimpse_fps: Annotated[float, typer.Option(min=0.01, help="Of live windows.")] = DEFAULT_GLIMPSE_FPS,
    reduce_range: Annotated[
        str, typer.Option(help="7-bit weights in int8-cpu: on, off, or auto: where this CPU needs them.")
    ] = "auto",
    threads: Threads = None,
    plot: Annotated[Path | None, typer.Option(help="Write accuracy against size, time and steps as a PNG.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace variants and thresholds that are there.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make FP16 and INT8 variants and exit thresholds from real glimpses, and say what each costs."""
    del debug
    if data is None:
        raise UsageError("--data is missing: clips that the model was not trained on, best with labels")
    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    _check_plot_name(plot)
    _check_threads(threads)
    from adafocus_edge.bundle.store import default_bundle, open_bundle
    from adafocus_edge.evaluation.dataset import check_data
    from adafocus_edge.media.sources import VIDEO_SUFFIXES

    for clips_path in (data, report_on):
        # One video is taken, too.
        if clips_path is not None and not (clips_path.suffix.lower() in VIDEO_SUFFIXES and clips_path.is_file()):
            check_data(clips_path, frames)
    path = bundle or default_bundle()
    found = open_bundle(path)
    if plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(plot)
        _check_files(plot)
    made = reach("calibration.calibrate", "calibrate", "calibrate")
    options = reach("calibration.options", "calibrate", "calibrate").read_options(
        data=data, frames=frames, report_on=report_on, variants=variants, output=output, clips=clips, samples=samples,
        share=share, seed=seed, patches=patches.value, method=method, max_drop=max_accuracy_drop, exit_goals=exit_goal,
        confidence=confidence, orders=orders, glimpse_fps=glimpse_fps, reduce_range=reduce_range, threads=threads,
        force=force, segments=found.model.segments,
    )  # fmt: skip
    with _progress(quiet) as bars:
        task = bars.add_task("calibrating", total=None)
        done = made.calibrate(
            path,
            options,
            lambda what, count, of: bars.update(task, description=what, completed=count, total=of or None),
        )
    _say_notes(done.notes, quiet)
    with ExitStack() as stack:
        stack.callback(_print_calibration, done, as_json=as_json)  # whatever becomes of the plot
        if plot is not None:
            from adafocus_edge.evaluation.plot import draw_calibration

            draw_calibration(done.bundle, plot)


def _print_calibration(done: Any, *, as_json: bool) -> None:
    if as_json:
        sets = done.bundle.manifest.thresholds
        thresholds = {name: [asdict(one) for one in of_name] for name, of_name in sets.items()}
        typer.echo(json.dumps({"bundle": str(done.bundle.path), **done.report, "exits": thresholds}))
        return
    from adafocus_edge.cli.tables import calibration_tables
    from adafocus_edge.system.console import console

    for table in calibration_tables(done.bundle):
        console().print(table)


@app.command()
def build(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            help="Folder of the bundle; engines are stored in it. [default: the default model, with --output]"
        ),
    ] = None,
    variant: Annotated[str, typer.Option(help="Which of its variants: fp32, fp16 or int8-trt.")] = "auto",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the bundle there first, and build in the copy.")
    ] = None,
    library: Annotated[LibraryName, typer.Option(help="What builds and runs the engines.")] = LibraryName.AUTO,
    streams: Annotated[int, typer.Option(min=1, max=1024, help="Streams that step together, at most.")] = 1,
    target: Annotated[
        str | None,
        typer.Option(help="TensorRT-RTX: build without a GPU for these, by commas: sm_89. [default: GPU at hand]"),
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option("--version-compatible", help="TensorRT: let newer releases of the same major load them.")
    ] = False,
    hardware_compatible: Annotated[
        HardwareName, typer.Option(help="Let other GPUs load them: of the same compute capability, or all from Ampere.")
    ] = HardwareName.NONE,
    force: Annotated[bool, typer.Option("--force", help="Build even what is there and fits.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Build TensorRT engines of a bundle's variant. What is there and still fits is kept."""
    del debug
    from adafocus_edge.backends.tensorrt.build import BuildRequest
    from adafocus_edge.backends.tensorrt.build import build as run
    from adafocus_edge.bundle.engines import BuildOptions
    from adafocus_edge.bundle.store import default_bundle, read_bundle

    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    found = read_bundle(bundle or default_bundle())
    options = BuildOptions(streams, version_compatible, hardware_compatible.value)
    targets = tuple(part.strip() for part in target.split(",") if part.strip()) if target is not None else ()
    if target is not None and not targets:
        raise UsageError("--target is empty: name a compute capability, such as sm_89")
    request = BuildRequest(library.value, variant, targets, options, force, output)
    with _progress(quiet) as bars:
        task = bars.add_task("building", total=None)
        done = run(
            found,
            request,
            lambda: reach("export.fuse", "build", "tensorrt").fuse,
            lambda what, count, of: bars.update(task, description=what, completed=count, total=of or None),
        )
    if as_json:
        rows = [{"graph": row.graph, "built": row.built, **asdict(row.engine)} for row in done.rows]
        about = {**asdict(done.engines.built_for), "variant": done.engines.variant, "batches": done.engines.batches}
        typer.echo(json.dumps({"folder": str(done.folder), **about, "engines": rows}))
        return
    from adafocus_edge.cli.tables import build_table, where_built
    from adafocus_edge.system.console import console

    console().print(build_table(done))
    console().print(f"{done.folder}: {where_built(done.engines)}", markup=False, soft_wrap=True)


Backends = Annotated[str | None, typer.Option(help="By commas. [default: those that can run here]")]
Variants = Annotated[str | None, typer.Option(help="By commas. [default: those made for each backend]")]
Exits = Annotated[str | None, typer.Option(help="Threshold sets by commas, or none. [default: all of the bundle]")]
ThreadCounts = Annotated[str | None, typer.Option(help="CPU threads, by commas. [default: usable cores]")]
Rounds = Annotated[int, typer.Option(min=1, help="In each of which every setting has its turn.")]
ClipCount = Annotated[int, typer.Option(min=1, help="Clips to judge accuracy on, at most.")]
Seed = Annotated[int, typer.Option(min=0, help="Of the choice of clips and of the order in a round.")]
LabelledData = Annotated[
    Path | None, typer.Option(help="Folder with a sub-folder per class; CSV `video,class`; or a split list.")
]
SplitFrames = Annotated[Path | None, typer.Option(help="For a split list: the folder its paths lie in.")]


def old_json_form(arguments: Sequence[str]) -> list[str]:
    """Rewrite ``benchmark --json FILE``, which wrote the report there, to ``--json-file FILE``; a switch stays.

    What follows is a file unless it is another option, or a folder, which is a bundle.
    """
    made: list[str] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if argument == "--":
            return [*made, argument, *waiting]
        is_file = waiting and not waiting[0].startswith("-") and not Path(waiting[0]).is_dir()
        if argument == "--json" and is_file:
            argument = "--json-file"
            made += [argument, waiting.pop(0)]
        else:
            made.append(argument.replace("--json=", "--json-file=", 1) if argument.startswith("--json=") else argument)
    return made


class BenchmarkCommand(typer.core.TyperCommand):
    """Takes the old form of ``--json``, too."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments."""
        return super().parse_args(ctx, old_json_form(args))


REPORT_SUFFIXES = {".csv": "csv", ".md": "markdown", ".markdown": "markdown", ".html": "html", ".htm": "html"}
"""What a benchmark's ``--output`` is written as; JSON under any other name, but a plot under a plot's."""
PLOT_SUFFIX = ".png"


@app.command(cls=BenchmarkCommand)
def benchmark(
    bundle: Annotated[
        list[Path] | None, typer.Argument(help="One or more bundles. [default: the default model]")
    ] = None,
    data: LabelledData = None,
    frames: SplitFrames = None,
    backends: Backends = None,
    variants: Variants = None,
    schedules: Annotated[str, typer.Option(help="By commas.")] = "clip,stream",
    exits: Exits = None,
    segments: Annotated[str | None, typer.Option(help="Frames per clip, by commas. [default: the model's]")] = None,
    streams: Annotated[str, typer.Option(help="Clips that step together, by commas.")] = "1",
    threads: ThreadCounts = None,
    peers: Annotated[
        str | None,
        typer.Option(
            help="To compare with, by commas, or none: pytorch-eager, pytorch-compile, openvino, whole-frames, "
            "glancer-alone, centre-patches, random-patches. [default: all; with --quick none]"
        ),
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Weights of the PyTorch peers. [default: random ones, timed only]")
    ] = None,
    peer_checkpoint: Annotated[
        list[Path] | None,
        typer.Option(help="A checkpoint of any stage to compare with, by PyTorch, such as stage 0's; may be repeated."),
    ] = None,
    rounds: Rounds = 30,
    clips: ClipCount = 128,
    quick: Annotated[bool, typer.Option("--quick", help="Few clips, few rounds, no peers: under a minute.")] = False,
    seed: Seed = 1007,
    multi_label: Annotated[bool, typer.Option("--multi-label", help="mAP by all labels of a clip (FCVID).")] = False,
    output: Annotated[
        list[Path] | None,
        typer.Option(
            "--output",
            "-o",
            help="Write the report here, as JSON, or as FILE.csv, FILE.md, FILE.html (a page that needs "
            "nothing else) or FILE.png; may be repeated. With JSON, a run that was broken off goes on.",
        ),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Write fronts, curves and bars as a PNG.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json-file", hidden=True)] = None,
    csv_file: Annotated[Path | None, typer.Option("--csv", hidden=True)] = None,
    markdown: Annotated[Path | None, typer.Option(hidden=True)] = None,
    html: Annotated[Path | None, typer.Option(hidden=True)] = None,
    report: Annotated[
        Path | None, typer.Option("--from", help="Measure nothing: take this report, for the outputs and --compare.")
    ] = None,
    compare: Annotated[
        Path | None, typer.Option(help="An older report: exit with 1 if accuracy or latency got worse.")
    ] = None,
    max_slowdown: Annotated[float, typer.Option(min=0.0, help="Percent that --compare lets a median grow.")] = 10.0,
    max_accuracy_drop: Annotated[float, typer.Option(min=0.0, help="Points that --compare lets top-1 fall.")] = 1.0,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Weigh accuracy against latency: every setting of a bundle that can run here, and what to compare it with."""
    del debug
    from adafocus_edge.benchmark import compare as comparing

    _check_plot_name(plot)
    files = _Reports.of(output or [], plot)
    files = files.with_old(quiet, {"json": json_file, "csv": csv_file, "markdown": markdown, "html": html})
    files.check()  # before anything is measured
    old = None if compare is None else comparing.read_report(compare)
    if report is not None:
        if bundle or data is not None:
            raise UsageError("--from takes a report that is there: it needs no bundle and no --data")
        made = comparing.read_report(report)
    else:
        grid = _Grid(backends, variants, schedules, exits, segments, streams, threads, peers, quick=quick)
        asked = _Benchmark(data, frames, checkpoint, tuple(peer_checkpoint or ()), multi_label, files.kept_for, quiet)
        made = asked.run(bundle or [], grid, 3 if quick else rounds, min(clips, QUICK_CLIPS) if quick else clips, seed)
    found = None
    if compare is not None and old is not None:
        found = comparing.compare(made, old, comparing.Limits(max_slowdown / 100, max_accuracy_drop))
        made = {**made, "compared": comparing.to_json(found, compare)}
    with ExitStack() as stack:
        stack.callback(_print_benchmark, made, as_json=as_json)  # whatever becomes of the files
        files.write(made)
    if found is not None:
        _say_notes(found.notes, quiet)
        for sentence in found.worse:
            _fail(f"worse: {sentence}", 1)
        _say(f"compared {found.rows} rows with {compare}: {len(found.worse)} findings", quiet)
        if found.worse:
            raise typer.Exit(1)


@dataclass(frozen=True)
class _Reports:
    """The files that a benchmark's report is written to, each with its format."""

    files: tuple[tuple[str, Path], ...]

    @classmethod
    def of(cls, outputs: list[Path], plot: Path | None) -> _Reports:
        """Return those of ``--output``, whose names tell the formats, and of ``--plot``."""
        formats = {**REPORT_SUFFIXES, PLOT_SUFFIX: "plot"}
        named = [(formats.get(path.suffix.lower(), "json"), path) for path in outputs]
        return cls((*named, *([("plot", plot)] if plot is not None else [])))

    def with_old(self, quiet: bool, old: dict[str, Path | None]) -> _Reports:
        """Return them with those of the options from before ``--output``, whose names tell nothing."""
        given = [(kind, path) for kind, path in old.items() if path is not None]
        for kind, path in given:
            _say(f"note: --{kind} FILE is deprecated: use --output {path}, whose name tells the format", quiet)
        return _Reports((*self.files, *given))

    @property
    def kept_for(self) -> Path | None:
        """The file beside which what was measured is kept: the first JSON that is a file of its own, if any."""
        from adafocus_edge.system.files import is_stream

        return next((path for kind, path in self.files if kind == "json" and not is_stream(path)), None)

    def check(self) -> None:
        """Check that all of them can be written. Raises ``AdaFocusError``."""
        from adafocus_edge.system.files import is_stream
        from adafocus_edge.system.retention import check_folder

        drawn = next((path for kind, path in self.files if kind in ("plot", "html")), None)
        if drawn is not None:
            from adafocus_edge.evaluation.plot import check_plot

            check_plot(drawn)
        _check_files(*(path for _, path in self.files))
        for _, path in self.files:
            if not is_stream(path):
                check_folder(path.parent, "reports")

    def write(self, report: dict[str, Any]) -> None:
        """Write all of them."""
        from adafocus_edge.benchmark.tables import csv_text, markdown
        from adafocus_edge.system.files import write_text

        def draw(path: Path) -> None:
            from adafocus_edge.benchmark.plots import draw

            draw(report, path)

        def write_page(path: Path) -> None:
            from adafocus_edge.benchmark.plots import write_page

            write_page(report, path)

        writers: dict[str, Callable[[Path], None]] = {
            "json": lambda path: write_text(path, json.dumps(report, indent=1, ensure_ascii=False) + "\n"),
            "csv": lambda path: write_text(path, csv_text(report)),
            "markdown": lambda path: write_text(path, markdown(report)),
            "html": write_page,
            "plot": draw,
        }
        for kind, path in self.files:
            writers[kind](path)
        if self.kept_for is not None:
            shutil.rmtree(_kept_beside(self.kept_for), ignore_errors=True)


@app.command()
def tune(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Folder of the bundle; the profile is stored in it. [default: the default model, with -o]"),
    ] = None,
    data: LabelledData = None,
    max_latency_ms: Annotated[float | None, typer.Option(min=0.0, help="At most this; the most accurate wins.")] = None,
    min_accuracy: Annotated[
        float | None, typer.Option(min=0.0, max=100.0, help="At least this top-1 in percent; the fastest wins.")
    ] = None,
    latency: Annotated[
        LatencyName, typer.Option(help="Of a clip in the model, of the whole from file to result, or of a glimpse.")
    ] = LatencyName.MODEL,
    percentile: Annotated[PercentileName, typer.Option(help="Which of the latencies counts.")] = PercentileName.P95,
    name: Annotated[str, typer.Option(help="Of the profile.")] = "tuned",
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Copy the bundle there first, and store it in the copy.")
    ] = None,
    frames: SplitFrames = None,
    backends: Backends = None,
    variants: Variants = None,
    exits: Exits = None,
    segments: Annotated[
        str | None, typer.Option(help="Frames per clip, by commas. [default: the model's, half, a quarter]")
    ] = None,
    threads: ThreadCounts = None,
    rounds: Rounds = 20,
    clips: ClipCount = 128,
    seed: Seed = 1007,
    force: Annotated[bool, typer.Option("--force", help="Replace a profile of that name.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Find the setting that meets a demand on this device, and store it as a profile for `classify --profile`."""
    del debug
    from adafocus_edge.benchmark.tune import Demand, choose, profile_of
    from adafocus_edge.bundle.store import changing, copied_bundle, default_bundle, read_bundle, update_bundle
    from adafocus_edge.evaluation.dataset import check_data

    demand = Demand(max_latency_ms, min_accuracy, latency.value, percentile.value)
    if data is None:
        raise UsageError("--data is missing: labelled clips, best such that neither training nor calibration saw")
    if bundle is None and output is None:
        raise UsageError("--output is missing: the default model itself is not written to")
    if not name or not name.isprintable() or "/" in name:
        raise UsageError(f"--name {name!r}: a word without /")
    check_data(data, frames)
    found = read_bundle(bundle or default_bundle())
    if output is not None:
        found = copied_bundle(found, output)

    def check_free(manifest: Manifest) -> None:
        if name in manifest.profiles and not force:
            raise UsageError(f"{found.path}: has a profile {name!r} already; give another --name, or --force")

    check_free(found.manifest)
    with changing(found.path):  # where it cannot be written, this is told before anything is measured
        pass
    own = found.model.segments
    wanted = segments or ",".join(map(str, dict.fromkeys((own, max(1, own // 2), max(1, own // 4)))))
    grid = _Grid(backends, variants, "clip,stream", exits, wanted, "1", threads, "none")
    asked = _Benchmark(data, frames, None, (), multi_label=False, json_file=None, quiet=quiet)
    report = asked.run([found.path], grid, rounds, clips, seed)
    row = choose(report, demand)
    profile = profile_of(report, row, demand)
    _say_notes(profile.notes, quiet)

    def store(manifest: Manifest) -> Manifest:
        check_free(manifest)  # as it is now: measuring took a while
        if manifest.variants.get(profile.variant) != found.manifest.variants[profile.variant]:
            raise BundleError(f"{found.path}: its variant {profile.variant} was replaced meanwhile: tune again")
        return replace(manifest, profiles={**manifest.profiles, name: profile})

    update_bundle(found.path, store)
    if as_json:
        typer.echo(json.dumps({"bundle": str(found.path), "profile": name, **asdict(profile), "row": row}))
        return
    low, high = row["top1_interval_95"]
    typer.echo(
        f"{found.path}: profile {name!r}: {row['key'].partition(' ')[2]}: {percentile.value} "
        f"{profile.latency_ms:.1f} ms, top-1 {profile.top1:.1f} % ({low:.0f} to {high:.0f}) on {profile.clips} clips\n"
        f"use it: adafocus-edge classify VIDEO --bundle {found.path} --profile {name}"
    )


@dataclass(frozen=True)
class _Grid:
    """A grid of settings, as options give it: names and numbers by commas."""

    backends: str | None
    variants: str | None
    schedules: str
    exits: str | None
    segments: str | None
    streams: str
    threads: str | None
    peers: str | None
    quick: bool = False

    def read(self, *, labelled: bool, checkpoints: tuple[str, ...]) -> Any:
        """Return it as a ``Grid``."""
        from adafocus_edge.benchmark.grid import PEERS, Grid

        peers = tuple(PEERS) if self.peers is None and not self.quick else _names("--peers", self.peers or "none")
        return Grid(
            backends=None if self.backends is None else _names("--backends", self.backends),
            variants=None if self.variants is None else _names("--variants", self.variants),
            schedules=_names("--schedules", self.schedules),
            exits=None if self.exits is None else _names("--exits", self.exits),
            segments=None if self.segments is None else _numbers("--segments", self.segments),
            streams=_numbers("--streams", self.streams),
            threads=None if self.threads is None else _numbers("--threads", self.threads),
            peers=peers,
            checkpoints=checkpoints,
            labelled=labelled,
        )


@dataclass(frozen=True)
class _Benchmark:
    """What ``benchmark`` and ``tune`` measure on."""

    data: Path | None
    frames: Path | None
    checkpoint: Path | None
    checkpoints: tuple[Path, ...]
    multi_label: bool
    json_file: Path | None
    quiet: bool

    def run(self, paths: list[Path], grid: _Grid, rounds: int, clips: int, seed: int) -> dict[str, Any]:
        """Measure, with a progress bar."""
        from adafocus_edge.benchmark.run import Request
        from adafocus_edge.benchmark.run import run as measure
        from adafocus_edge.bundle.store import check_classes, check_graph_files, default_bundle, open_bundle
        from adafocus_edge.evaluation.dataset import read_data

        for path in (*self.checkpoints, *([self.checkpoint] if self.checkpoint is not None else [])):
            if not path.is_file():
                raise CheckpointError(f"{path}: no such checkpoint file")
        if not paths:
            _say(DEFAULT_MODEL_NOTE, self.quiet)
        bundles: dict[str, Bundle] = {}
        for path in paths or [default_bundle()]:
            name = path.resolve().name
            if name in bundles:
                name = f"{path.resolve().parent.name}/{name}"
            if name in bundles:
                raise UsageError(f"{path}: two of the bundles have the same name")
            bundles[name] = open_bundle(path)
        split = None
        if self.data is not None:
            classes = next(iter(bundles.values())).classes
            split = read_data(self.data, classes, self.frames)
            _say_notes(split.notes, self.quiet)
            for bundle in bundles.values():
                check_classes(split.classes, bundle.model.classes, str(self.data))
                if bundle.classes != classes:
                    raise UsageError(f"{bundle.path}: names other classes than the first bundle")
        checkpoints: dict[str, Path] = {}
        for path in self.checkpoints:
            run = path.resolve()  # runs are told apart by their folders: their checkpoints have the same names
            name = f"{run.parent.name}/{run.name}"
            if (other := checkpoints.setdefault(name, path)).resolve() != run:
                raise UsageError(f"{path}: is called {name} in the report, as {other} is: rename a folder")
        for bundle in bundles.values():
            check_graph_files(bundle)
        state = None if self.json_file is None else _kept_beside(self.json_file)
        request = Request(
            bundles, grid.read(labelled=split is not None, checkpoints=tuple(checkpoints)), split, clips=clips,
            rounds=rounds, seed=seed, checkpoint=self.checkpoint, checkpoints=checkpoints,
            multi_label=self.multi_label, state=state,
        )  # fmt: skip
        with _progress(self.quiet) as bars:
            task = bars.add_task("starting", total=None)
            try:
                return measure(
                    request, lambda what, count, of: bars.update(task, description=what, completed=count, total=of)
                )
            except KeyboardInterrupt:
                if state is not None:
                    _say("what was measured is kept: the same command goes on from there", self.quiet)
                raise


def _kept_beside(report: Path) -> Path:
    """Return the folder of what was measured so far for a report."""
    return report.with_name(f".{report.name}.parts")


def _names(option: str, text: str) -> tuple[str, ...]:
    """Read names by commas; ``none`` is none of them. Raises ``UsageError``."""
    names = tuple(dict.fromkeys(part.strip() for part in text.split(",") if part.strip()))
    if not names:
        raise UsageError(f"{option} is empty: name some by commas")
    return () if names == ("none",) else names


def _numbers(option: str, text: str) -> tuple[int, ...]:
    """Read whole numbers by commas. Raises ``UsageError``."""
    names = _names(option, text)
    if not names or not all(name.isascii() and name.isdecimal() for name in names):
        raise UsageError(f"{option} {text}: takes whole numbers by commas")
    return tuple(map(int, names))


def _print_benchmark(report: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.live.messages import to_line

        typer.echo(to_line(report))
        return
    from adafocus_edge.benchmark.tables import tables
    from adafocus_edge.system.console import console

    to = console(BENCHMARK_WIDTH)
    for part in tables(report):
        to.print(part, markup=False, soft_wrap=isinstance(part, str))


@app.command()
def inspect(
    bundle: Annotated[Path | None, typer.Argument(help="Folder of a bundle. [default: the default model]")] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """Show what is in a bundle, after checking every hash in it."""
    del debug
    from adafocus_edge.bundle.engines import engine_folders
    from adafocus_edge.bundle.manifest import encode_manifest
    from adafocus_edge.bundle.store import default_bundle, read_bundle
    from adafocus_edge.cli.tables import bundle_tables
    from adafocus_edge.system.console import console

    found = read_bundle(bundle or default_bundle())
    if as_json:
        manifest = json.loads(encode_manifest(found.manifest))
        totals = {}
        for variant in found.manifest.variants:
            megabytes, gflops = found.totals(variant)
            totals[variant] = {
                "size_mb": round(megabytes, 3),
                "gflops_per_step": round(gflops, 6),
                "gflops_per_clip": round(gflops * found.model.segments, 6),
            }
        engines = [{"folder": folder.name, **asdict(holds)} for folder, holds in engine_folders(found)]
        whole = {**manifest, "classes": list(found.classes), "totals": totals, "engines": engines}
        typer.echo(json.dumps(whole, indent=2))
        return
    for table in bundle_tables(found):
        console().print(table)


@app.command()
def doctor(as_json: Json = False, debug: Debug = False) -> None:
    """Say what this machine can run, what is missing, and the command that adds it."""
    del debug
    from adafocus_edge.doctor import examine, findings_json, findings_table
    from adafocus_edge.system.console import console

    findings = examine()
    if as_json:
        typer.echo(json.dumps(findings_json(findings), indent=2))
    else:
        console().print(findings_table(findings))


@app.command()
@with_live_options
def classify(
    source: Annotated[
        list[str],
        typer.Argument(help="Videos, folders of videos or of frames, globs, a camera index, or stream addresses."),
    ],
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of the bundle to run. [default: the model that ships with the product]")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs the graphs.")] = BackendName.AUTO,
    variant: Annotated[str, typer.Option(help="Which of the bundle's variants.")] = "auto",
    schedule: Annotated[ScheduleName, typer.Option(help="Whole clip at once, or frame by frame.")] = ScheduleName.AUTO,
    decoder: Decoder = DecoderName.CPU,
    video_track: VideoTrack = None,
    threads: Threads = None,
    conv_search: ConvSearchName = CONV_SEARCH,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes to list per clip. [default: 5]")] = None,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Stop a clip once its best class is this sure.")
    ] = None,
    exit_set: Exit = None,
    profile: Annotated[
        str | None, typer.Option(help="A setting that `tune` stored in the bundle: backend, variant, schedule, exit.")
    ] = None,
    logits: Annotated[bool, typer.Option("--logits", help="Add every step's logits to JSON.")] = False,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write results here: JSON lines, or CSV if so named.")
    ] = None,
    save_video: Annotated[
        Path | None, typer.Option(help="Write the video with the patch drawn on it; with several sources, a folder.")
    ] = None,
    provisional: Annotated[
        bool, typer.Option("--provisional", help="Tell what is known after every glimpse of a live source, too.")
    ] = False,
    show: Annotated[
        bool, typer.Option("--show", help="Show live sources in a window: q quits, space pauses, s takes a picture.")
    ] = False,
    config: Config = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    live: LiveArguments,
) -> None:
    """Classify videos, folders of frames, cameras and streams."""
    del debug, config
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files, default_bundle, open_bundle
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.runtime.results import ResultFile

    if bundle is None:
        bundle = default_bundle()
        _say(DEFAULT_MODEL_NOTE, quiet)
    found = open_bundle(bundle)
    asked = _Setting(backend, variant, schedule, threads, exit_set)
    asked = asked.checked(found, profile, exit_confidence, quiet)
    backend, variant, schedule, threads, exit_set = astuple(asked)[:5]
    sources = _sources(source, quiet, video_track)
    streamed = any(s.live for s in sources)
    only_live = _only_live(live, provisional=provisional, show=show)
    if streamed and exit_set is not None and len(sources) == 1 and sources[0].address.startswith("http"):
        # An address without a live set is tried as a file.
        streamed = _has_live_exits(found, exit_set)
    streamed = streamed or only_live is not None
    if streamed:
        _check_live(save_video, schedule, profile)
    _check_targets(output, save_video, bundle, sources, logits=logits, as_json=as_json)
    top = _top(top_k, found)
    found.choose_variant(variant)
    _exits_asked(found, exit_set, exit_confidence, live=streamed)
    missing = _check_missing(sources, live if streamed else None, output, as_json=as_json, quiet=quiet)
    check_graph_files(found)
    with ExitStack() as stack:
        model = stack.enter_context(load_model(found, variant, backend.value, threads, conv_search=conv_search))
        model = replace(model, spec=replace(model.spec, segments=asked.segments or model.spec.segments))
        if backend is BackendName.AUTO:
            _say(f"backend: {model.backend}, variant: {model.variant}", quiet)

        decodes = _usable_decoder(decoder, model, quiet)

        def classifier(*, live: bool) -> Classifier:
            return Classifier(
                model, found.classes, top_k=top, schedule=schedule.value,
                exits=_exits_asked(found, exit_set, exit_confidence, live=live),
                decoder=decodes, note=lambda text: _say(text, quiet),
            )  # fmt: skip

        failed: int | None = None
        if streamed:
            from adafocus_edge.live.session import Printing, run_live

            printing = Printing(as_json, logits, provisional, quiet)
            errors = run_live(sources, classifier(live=True), live, printing, output, show=show)
            failed = _count_failed(errors, only_live, alone=len(sources) == 1)
        if failed is None:
            file = stack.enter_context(ResultFile(output)) if output is not None else None
            sink = _Sink(as_json, logits, file)
            files = [replace(s, live=False) for s in sources]
            prepared = classifier(live=False)
            prepared.prepare(lambda line: _say(line, quiet))
            _run_files(files, missing, prepared, save_video, sink, quiet)
            failed = sink.failed
    if failed:
        raise typer.Exit(1)


def _count_failed(errors: dict[str, AdaFocusError], only_live: str | None, *, alone: bool) -> int | None:
    """Return how many sources of a live run failed, or None where its only one turned out to be a file.

    Raises ``UsageError`` where that file was given an option that is for live sources.
    """
    ends = [error for error in errors.values() if isinstance(error, HasAnEndError)]
    if ends and alone:
        if only_live is not None:
            raise UsageError(f"{ends[0]}: {only_live} is for live sources")
        return None
    for error in ends:
        _fail(f"{error}: download it, or classify it alone", 1)
    return len(errors)


@dataclass(frozen=True)
class _Setting:
    """What runs a model and how: as options say, or a profile of the bundle."""

    backend: BackendName
    variant: str
    schedule: ScheduleName
    threads: int | None
    exit_set: str | None
    segments: int | None = None

    def checked(self, bundle: Bundle, profile: str | None, exit_confidence: float | None, quiet: bool) -> _Setting:
        """Return it, or a profile's setting. Raises ``UsageError`` for what contradicts itself or is not there."""
        _check_threads(self.threads)
        _check_exit(self.exit_set, exit_confidence, self.schedule)
        if profile is None:
            return self
        if exit_confidence is not None or self != _Setting(BackendName.AUTO, "auto", ScheduleName.AUTO, None, None):
            raise UsageError("--profile decides backend, variant, schedule, threads and exit: leave those out")
        found = bundle.profile(profile)
        known = [name.value for name in BackendName]
        if found.backend not in known:
            raise UsageError(
                f"{bundle.path}: profile {profile!r} wants the backend {found.backend!r}; there are: {known}"
            )
        _say(f"profile {profile}: {found.demand}; measured on {found.device}", quiet)
        return _Setting(
            BackendName(found.backend), found.variant, ScheduleName(found.schedule),
            min(found.threads, os.cpu_count() or 1), found.exit or None, found.segments,
        )  # fmt: skip


def _only_live(live: LiveArguments, *, provisional: bool, show: bool) -> str | None:
    """Return the first option given that makes sources live: they are then seen window by window, files too."""
    given = {"provisional": provisional or None, "show": show or None, **asdict(live)}
    name = next((name for name, value in given.items() if value not in (None, False)), None)
    return None if name is None else "--" + name.replace("_", "-")


@app.command()
@with_live_options
def serve(
    source: Annotated[
        list[str] | None,
        typer.Option(help="A camera, an address, a file, or NAME=ADDRESS; may be given again. [default: none yet]"),
    ] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="Folder of the bundle to run. [default: the model that ships with the product]")
    ] = None,
    host: Annotated[str, typer.Option(help="Where to listen; all but this machine itself needs --token.")] = LOCALHOST,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for one that is free.")] = 8765,
    token: Annotated[
        str | None,
        typer.Option(
            envvar="ADAFOCUS_EDGE_TOKEN", show_default=False, help="What visitors must know, 16 or more signs."
        ),
    ] = None,
    max_upload_mb: Annotated[int, typer.Option(min=1, help="Largest file that may be uploaded.")] = 256,
    most_cameras: Annotated[int, typer.Option(min=0, help="Browsers' cameras at a time.")] = 4,
    backend: Annotated[BackendName, typer.Option(help="What runs the graphs.")] = BackendName.AUTO,
    variant: Annotated[str, typer.Option(help="Which of the bundle's variants.")] = "auto",
    decoder: Decoder = DecoderName.CPU,
    video_track: VideoTrack = None,
    threads: Threads = None,
    conv_search: ConvSearchName = CONV_SEARCH,
    top_k: Annotated[int | None, typer.Option(min=1, help="Classes to show. [default: 5]")] = None,
    exit_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, help="Stop looking in a window once its best class is this sure.")
    ] = None,
    exit_set: Exit = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Also write results here: JSON lines, or CSV if so named.")
    ] = None,
    config: Config = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the page's address, and --status, as JSON.")] = False,
    quiet: Quiet = False,
    debug: Debug = False,
    *,
    live: LiveArguments,
) -> None:
    """Serve a web page with live sources, uploads and the browser's own camera; an API and metrics, too."""
    del debug, config
    try:
        from adafocus_edge.serve import ServeOptions, check_exposure
    except ModuleNotFoundError as error:
        raise MissingExtraError("`adafocus-edge serve`", "serve", error.name or "starlette") from None
    from adafocus_edge.backends.registry import load_model
    from adafocus_edge.bundle.store import check_graph_files, default_bundle, open_bundle
    from adafocus_edge.runtime.classifier import Classifier
    from adafocus_edge.serve.session import serve_live

    options = ServeOptions(host=host, port=port, token=token, max_upload_mb=max_upload_mb, most_cameras=most_cameras)
    check_exposure(options)
    _check_threads(threads)
    _check_exit(exit_set, exit_confidence, ScheduleName.STREAM)
    if bundle is None:
        bundle = default_bundle()
        _say(DEFAULT_MODEL_NOTE, quiet)
    sources = _sources(source or [], quiet, video_track)
    _check_targets(output, None, bundle, sources, logits=False, as_json=True)
    found = open_bundle(bundle)
    top = _top(top_k, found)
    found.choose_variant(variant)
    _exits_asked(found, exit_set, exit_confidence, live=True)
    check_graph_files(found)
    with load_model(found, variant, backend.value, threads, conv_search=conv_search) as model:
        _say(f"backend: {model.backend}, variant: {model.variant}", quiet)
        exits = _exits_asked(found, exit_set, exit_confidence, live=True)
        decodes = _usable_decoder(decoder, model, quiet)
        classifier = Classifier(model, found.classes, top_k=top, schedule="stream", exits=exits, decoder=decodes)
        serve_live(sources, classifier, live, options, output, as_json=as_json, quiet=quiet)


class _Sink:
    """Where results and failed sources go."""

    def __init__(self, as_json: bool, logits: bool, file: Any) -> None:
        self.failed = 0
        self._json = as_json
        self._logits = logits
        self._file = file

    def result(self, result: Result) -> None:
        entry = result.to_json(logits=self._logits)
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            self._print(entry)
        else:
            from adafocus_edge.runtime.results import print_result
            from adafocus_edge.system.console import console

            print_result(console(), result)

    def failure(self, source: str, error: AdaFocusError, *, said: bool = False) -> None:
        """A source that gives no result; ``said`` if stderr has it already."""
        from adafocus_edge.system.addresses import conceal

        entry = {"source": source, "error": conceal(str(error))}
        if self._file is not None:
            self._file.write(entry)
        if self._json:
            self._print(entry)
        if said:
            self.failed += 1
        else:
            self.complaint(error)

    @staticmethod
    def _print(entry: dict[str, Any]) -> None:
        from adafocus_edge.live.messages import to_line

        print(to_line(entry), flush=True)

    def complaint(self, error: AdaFocusError) -> None:
        """Something that went wrong beside a result."""
        self.failed += 1
        _fail(str(error), 1)


def _check_missing(
    sources: list[Source], live: LiveArguments | None, output: Path | None, *, as_json: bool, quiet: bool
) -> dict[Source, SourceError]:
    """Report paths that lead nowhere before the model is loaded, and return them; exit where there are no others.

    Where some sources are there, a run goes on with them: a live one has notices of its own for those that are not.
    """
    missing = {source: error for source in sources if (error := source.missing()) is not None}
    if not missing or not all(source in missing for source in sources):
        for source in sources if live is None else ():
            if source in missing:
                _fail(str(missing[source]), 1)
        return missing
    if live is not None:
        from adafocus_edge.live.session import Printing, report_missing

        named = {source.name: error for source, error in missing.items()}
        report_missing(named, live, Printing(as_json, quiet=quiet), output)
        raise typer.Exit(1)
    from adafocus_edge.runtime.results import ResultFile

    with ExitStack() as stack:
        sink = _Sink(as_json, logits=False, file=stack.enter_context(ResultFile(output)) if output else None)
        for source in sources:
            sink.failure(source.name, missing[source])
    raise typer.Exit(1)


def _run_files(
    sources: list[Source],
    missing: dict[Source, SourceError],
    classifier: Classifier,
    save_video: Path | None,
    sink: _Sink,
    quiet: bool,
) -> None:
    from adafocus_edge.runtime.annotate import save_annotated
    from adafocus_edge.system.addresses import conceal

    names = dict(zip(sources, video_names(sources), strict=True))
    with _progress(quiet) as bars:
        clips = bars.add_task("classifying", total=len(sources), visible=len(sources) > 1)
        for source in sources:
            if source in missing:
                sink.failure(source.name, missing[source], said=True)
                bars.advance(clips)
                continue
            try:
                result, clip = classifier.classify(source)
            except AdaFocusError as error:
                sink.failure(source.name, error)
                bars.advance(clips)
                continue
            except Exception as error:  # whatever a strange file sets off, the others go on
                if _debug:
                    raise
                said = conceal(str(error), source.address)
                told = SourceError(f"{source.name}: cannot be read (unexpected {type(error).__name__}: {said})")
                sink.failure(source.name, told)
                bars.advance(clips)
                continue
            if clip.track_note:
                _say(f"{source.name}: {clip.track_note}", quiet)
            sink.result(result)
            if save_video is not None:
                path = save_video if _is_video_file(save_video) else save_video / names[source]
                frames = bars.add_task(f"writing {path.name}", total=clip.frame_count)
                try:
                    for count in save_annotated(clip, result, classifier.model.spec, path):
                        bars.update(frames, completed=count)
                except AdaFocusError as error:
                    sink.complaint(error)
                bars.remove_task(frames)
            bars.advance(clips)


def _top(asked: int | None, bundle: Bundle) -> int:
    """Return how many classes to list. Raises ``UsageError`` for more than there are."""
    if asked is not None and asked > bundle.model.classes:
        raise UsageError(f"--top-k {asked}: the bundle has {bundle.model.classes} classes")
    return min(asked or DEFAULT_TOP_K, bundle.model.classes)


def _check_exit(exit_set: str | None, exit_confidence: float | None, schedule: ScheduleName) -> None:
    if exit_confidence is not None and exit_set is not None:
        raise UsageError("--exit and --exit-confidence: give one of them")
    if (exit_confidence is not None or exit_set is not None) and schedule is ScheduleName.CLIP:
        raise UsageError("an early exit saves nothing on the clip schedule: use --schedule stream")


def _exits_asked(
    bundle: Bundle, exit_set: str | None, exit_confidence: float | None, *, live: bool
) -> ExitThresholds | None:
    from adafocus_edge.model.exits import ExitThresholds

    if exit_set is not None:
        return _exits(bundle, exit_set, live=live)
    return None if exit_confidence is None else ExitThresholds.at(exit_confidence, bundle.model.segments)


def _has_live_exits(bundle: Bundle, name: str) -> bool:
    sets = bundle.manifest.thresholds.get(name.partition("/")[0], ())
    return any(thresholds.order == "live" for thresholds in sets)


def _exits(bundle: Bundle, name: str, *, live: bool) -> ExitThresholds:
    """Return a threshold set of a bundle for live sources, or for files. Raises ``UsageError``."""
    from adafocus_edge.model.exits import ORDERS, find_exits

    name, _, asked = name.partition("/")
    orders = [order for order in ORDERS if (order == "live") == live and asked in ("", order)]
    if not orders:
        raise UsageError(f"--exit {name}/{asked}: files are seen in the order clip or coarse-to-fine, streams live")
    try:
        return find_exits(bundle.manifest.thresholds, name, orders)
    except KeyError as error:
        raise UsageError(f"{bundle.path}: {error.args[0]}") from None


def video_names(sources: list[Source]) -> list[str]:
    """Return the annotated videos' names: the source's own, with its folder's and its suffix where two are the same."""
    from adafocus_edge.system.addresses import shown_path
    from adafocus_edge.system.files import folded
    from adafocus_edge.system.retention import safe_name

    forms = []
    for source in sources:
        is_address = "://" in source.address
        path = Path((shown_path(source.address) if is_address else source.address).rstrip("/"))
        name = path.name.replace(".", "-")
        own = [path.stem or "clip", f"{path.parent.name}-{path.stem}", f"{path.parent.name}-{name}"]
        # Addresses may differ in nothing but what is not shown; their names do.
        forms.append([*map(safe_name, (*own, source.name))] if is_address else [*own, own[1]])
    counts = [Counter(map(folded, names)) for names in zip(*forms, strict=True)]
    names = []
    for own in forms:
        alone = (form for form, count in zip(own, counts, strict=True) if count[folded(form)] == 1)
        names.append(next(alone, own[1]) + ".mp4")
    return names


def _is_video_file(path: Path) -> bool:
    return path.suffix.lower() in VIDEO_CONTAINERS and not path.is_dir()


def _check_video_target(path: Path, sources: list[Source]) -> None:
    one = _is_video_file(path)
    if not one and (path.suffix or path.exists()) and not path.is_dir():
        raise UsageError(f"{path}: annotated videos are written as {', '.join(VIDEO_CONTAINERS)}, or into a folder")
    if one and len(sources) > 1:
        raise UsageError(f"--save-video {path}: {len(sources)} sources need a folder, not one file")
    targets = [_real(path if one else path / name) for name in video_names(sources)]
    if len(set(targets)) < len(targets):
        target = next(target for target in targets if targets.count(target) > 1)
        first, second = [source.name for source, own in zip(sources, targets, strict=True) if own == target][:2]
        raise UsageError(
            f"--save-video {path}: {first} and {second} would be written to the same file {target.name}: run them apart"
        )
    if set(targets) & _own_files(sources):
        raise UsageError(f"--save-video {path}: would overwrite a source")


def _check_live(save_video: Path | None, schedule: ScheduleName, profile: str | None) -> None:
    if profile is not None:
        raise UsageError(f"--profile {profile} was tuned for clips: a live source takes --backend, --variant, --exit")
    if save_video is not None:
        raise UsageError("--save-video takes files, not live sources: --record writes those")
    if schedule is ScheduleName.CLIP:
        raise UsageError("a live source is seen frame by frame: --schedule clip is for files")


def _check_targets(
    output: Path | None, save_video: Path | None, bundle: Path, sources: list[Source], *, logits: bool, as_json: bool
) -> None:
    if logits and not as_json and (output is None or output.suffix.lower() == ".csv"):
        raise UsageError("--logits adds to JSON: give --json, or --output FILE that is no CSV, too")
    if output is not None:
        _check_output(output, bundle, sources)
    if save_video is not None:
        _check_video_target(save_video, sources)


def _check_output(path: Path, bundle: Path, sources: list[Source]) -> None:
    from adafocus_edge.media.sources import VIDEO_SUFFIXES

    if _real(path) in _own_files(sources) or _real(path).is_relative_to(_real(bundle)):
        raise UsageError(f"--output {path}: would overwrite a source or a part of the bundle")
    if path.suffix.lower() in VIDEO_SUFFIXES:
        raise UsageError(f"--output {path}: takes results (JSON lines or CSV); --save-video writes videos")
    _check_files(path)


def _own_files(sources: list[Source]) -> set[Path]:
    return {_real(Path(source.address)) for source in sources}


def _real(path: Path) -> Path:
    """Return where a path leads; links in a circle are told by what opens it."""
    return Path(os.path.realpath(path))


def _check_files(*paths: Path | None) -> None:
    """Check that files can be written, before anything slow is begun. Raises ``AdaFocusError``."""
    from adafocus_edge.system.retention import check_file

    for path in paths:
        if path is not None:
            check_file(path)


def _check_plot_name(plot: Path | None) -> None:
    if plot is not None and plot.suffix.lower() != ".png":
        raise UsageError(f"--plot {plot}: is written as PNG, so name it *.png")


def _check_threads(threads: int | None) -> None:
    if threads is not None and threads > (os.cpu_count() or 1):
        raise UsageError(f"--threads {threads}: this machine has {os.cpu_count()} processors")


def _usable_decoder(asked: DecoderName, model: LoadedModel, quiet: bool) -> Choice:
    """Return what decodes. Raises ``AdaFocusError`` where the GPU must and cannot."""
    from adafocus_edge.backends.nvdec import send_library_output_to_stderr, usable_decoder

    usable = usable_decoder(asked.value, model, lambda text: _say(text, quiet))
    if usable != "cpu":
        send_library_output_to_stderr()
    return usable


def _say(text: str, quiet: bool) -> None:
    if not quiet:
        from adafocus_edge.system.addresses import conceal
        from adafocus_edge.system.console import printable

        print(printable(conceal(text, *sys.argv[1:])), file=sys.stderr)


def _say_notes(notes: Iterable[str], quiet: bool) -> None:
    for note in notes:
        _say(f"note: {note}", quiet)


def _sources(arguments: list[str], quiet: bool, video_track: int | None) -> list[Source]:
    """Find sources, and print what is there and was not taken."""
    from adafocus_edge.media.sources import find_sources, left_out_note

    left_out: list[str] = []
    sources = find_sources(arguments, left_out)
    if left_out:
        _say_notes([left_out_note(left_out)], quiet)
    return [replace(source, video_track=video_track) for source in sources]


def _progress(quiet: bool) -> AbstractContextManager[Progress]:
    from adafocus_edge.system.console import progress_bars

    return progress_bars(quiet)


@contextmanager
def _stages(quiet: bool) -> Iterator[Any]:
    """Give a function that shows what is being done: a spinner on a terminal, nothing in a pipe."""
    if quiet or not sys.stderr.isatty():
        yield lambda *_: None
        return
    from adafocus_edge.system.console import console

    with console(stderr=True).status("starting") as status:
        yield lambda stage: status.update(stage + " ...")


_ended: list[int] = []
"""Exit statuses of the signals that came."""


def _terminate(number: int, _: object) -> None:
    _ended.append(SIGNALLED + number)
    raise SystemExit(_ended[-1])


class _Stdout(io.TextIOWrapper):
    """Stdout, whose errors name it."""

    @classmethod
    def around(cls, stream: io.TextIOWrapper) -> Self:
        """Return it in place of what Python opened."""
        # Names of files may hold bytes, and tables signs, that the caller's encoding does not know.
        return cls(stream.buffer, stream.encoding, "backslashreplace", line_buffering=stream.line_buffering)

    def write(self, text: str) -> int:
        """Write a text."""
        with self._told():
            return super().write(text)

    def flush(self) -> None:
        """Write what waits."""
        with self._told():
            super().flush()

    @contextmanager
    def _told(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            error.filename = "stdout"
            raise


class _Stderr(_Stdout):
    """Stderr: what cannot be told there, as on a full disk, does not end the work."""

    def write(self, text: str) -> int:
        """Write a text."""
        with suppress(OSError):
            super().write(text)
        return len(text)

    def flush(self) -> None:
        """Write what waits."""
        with suppress(OSError):
            super().flush()


def main() -> None:
    """Run the command line: every error becomes one line and an exit code."""
    # Unwinds the stack, as Ctrl-C does, so that nothing half-written stays.
    signal.signal(signal.SIGTERM, _terminate)
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # not so under nohup
        signal.signal(signal.SIGHUP, _terminate)
    for name, kind in (("stdout", _Stdout), ("stderr", _Stderr)):
        stream = getattr(sys, name)
        if stream is None:  # closed by the caller
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123
        elif type(stream) is io.TextIOWrapper:
            setattr(sys, name, kind.around(stream))
    sys.excepthook = _print_traceback
    threading.excepthook = lambda failed: _print_traceback(
        failed.exc_type, failed.exc_value or failed.exc_type(), failed.exc_traceback
    )
    status: object = 0
    try:
        status = typer.main.get_command(app).main(prog_name="adafocus-edge", standalone_mode=False)
    except AdaFocusError as error:
        if _debug:
            raise
        status = _fail(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        status = INTERRUPTED
    except MemoryError:
        status = _fail("out of memory", 1)
    except OSError as error:
        if _debug:
            raise
        where = error.filename or ("" if _is_here() else "the current folder was deleted: run from another")
        status = _fail(": ".join(str(part) for part in (where, error.strerror or error) if part), 1)
    except Exception as error:
        usage = _usage_text(error)
        if _ended:  # what was interrupted has made another error of it, as libraries do while they are imported
            status = _ended[-1]
        elif usage is not None:
            status = _fail(f"{usage} (see --help)", 2)
        elif _debug:
            raise
        else:
            status = _fail(_unexpected(error), 1)
    if status == INTERRUPTED:  # Typer turns Ctrl-C into this status, too
        print("interrupted", file=sys.stderr)
    _leave(status if isinstance(status, int) else 0)


def _print_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """Print what ``--debug`` shows, without the secrets of addresses: messages of other libraries quote them."""
    from adafocus_edge.system.addresses import conceal

    print(conceal("".join(traceback.format_exception(kind, error, trace)), *sys.argv[1:]), end="", file=sys.stderr)


def _is_here() -> bool:
    """Whether the current folder is there."""
    try:
        Path.cwd()
    except OSError:
        return False
    return True


def _leave(code: int) -> None:
    """End the process: at once where a capture thread hangs in a decoder, which may crash while Python winds down."""
    stream = sys.modules.get("adafocus_edge.live.capture")
    if stream is not None and any(t.name.startswith(stream.CAPTURE_THREAD) for t in threading.enumerate()):
        with suppress(OSError):
            sys.stdout.flush()
        os._exit(code)
    sys.exit(code)


def _fail(text: str, status: int) -> int:
    """Print an error as one line."""
    from adafocus_edge.system.console import one_line

    print(f"error: {one_line(text)}", file=sys.stderr)
    return status


def _unexpected(error: Exception) -> str:
    """Say what no one foresaw, and what tight limits on memory and processes do anywhere."""
    first = (str(error).splitlines() or [""])[0]
    if isinstance(error, ImportError) and not isinstance(error, ModuleNotFoundError):
        return f"a library cannot be loaded ({first or error.name}): memory is short, or it is not installed whole"
    if isinstance(error, RuntimeError) and "start new thread" in first:
        return "no more threads can be started: raise the limit of processes or of memory (ulimit -u, ulimit -v)"
    return f"unexpected {type(error).__name__}: {first} (--debug shows where)"


def _usage_text(error: Exception) -> str | None:
    """Return what Typer says of wrong usage, or None for any other error. No verb at all shows the help."""
    if not hasattr(error, "format_message"):
        return None
    text = str(error.format_message())
    if text.lstrip().startswith("Usage"):
        print(text, file=sys.stderr)
        return "no verb given"
    return " ".join(text.split())


if __name__ == "__main__":
    main()
