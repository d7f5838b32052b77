"""`adafocus-edge evaluate`."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from adafocus_edge.cli.inputs import check_threads, exits_of
from adafocus_edge.cli.options import (
    DEFAULT_MODEL_NOTE,
    BackendName,
    Debug,
    Exit,
    Json,
    Quiet,
    ScheduleName,
    Threads,
    Variant,
)
from adafocus_edge.cli.outputs import check_files, check_plot_name, progress_for, say, say_notes
from adafocus_edge.cli.process import print_error
from adafocus_edge.errors import UsageError
from adafocus_edge.model.spec import MAX_SEGMENTS
from adafocus_edge.system.companions import import_companion

if TYPE_CHECKING:
    from adafocus_edge.evaluation.dataset import Split
    from adafocus_edge.evaluation.evaluate import Evaluation, Patches
    from adafocus_edge.model.exits import ExitThresholds
    from adafocus_edge.model.spec import ModelSpec


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
        str,
        typer.Option(
            help="Where to look: policy, or to compare with it random, centre, or oracle, which knows the label and "
            "tries every cell. Comma-separated: all of them in one table."
        ),
    ] = "policy",
    multi_label: Annotated[bool, typer.Option("--multi-label", help="mAP by all labels of a clip (FCVID).")] = False,
    patch_size: Annotated[int | None, typer.Option(help="Of an official checkpoint, in pixels.")] = None,
    segments: Annotated[
        int | None, typer.Option(min=1, max=MAX_SEGMENTS, help="Frames per clip. [default: the model's]")
    ] = None,
    backend: Annotated[BackendName, typer.Option(help="What runs a bundle's graphs.")] = BackendName.AUTO,
    variant: Variant = "auto",
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
    check_plot_name(plot)
    check_threads(threads)
    from adafocus_edge.bundle.store import default_bundle

    if model is None:
        model = default_bundle()
        say(DEFAULT_MODEL_NOTE, quiet)
    if plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(plot)
    if not model.exists():
        raise UsageError(f"{model}: neither a bundle nor a checkpoint is there")
    asked = _Evaluating(
        data, frames, classes, _patches(patches), multi_label, patch_size, segments, backend.value, variant,
        "stream" if schedule is ScheduleName.STREAM else "clip", threads, exit_set, quiet,
    )  # fmt: skip
    asked.check_files()
    check_files(output, plot)
    runs = asked.bundle(model) if model.is_dir() else asked.checkpoint(model)
    failed = {name: error for found, _ in runs for name, error in found.failed}
    for name, error in failed.items():
        print_error(f"left out: {name}: {error}", 1)
    say_notes(list(dict.fromkeys(note for found, _ in runs for note in found.notes)), quiet)
    found, what = runs[0]
    entry: dict[str, Any] = {"model": str(model), "ran": what, **found.to_json()}
    if len(runs) > 1:
        every = {name: {"ran": ran, **one.to_json()} for name, (one, ran) in zip(asked.patches, runs, strict=True)}
        entry = {"model": str(model), "data": found.origin, "patches": every}
    with ExitStack() as stack:
        stack.callback(_print_evaluation, entry, as_json=as_json)  # whatever becomes of the files
        if output is not None:
            from adafocus_edge.system.files import write_text

            write_text(output, json.dumps(entry, indent=2, ensure_ascii=False) + "\n")
        if plot is not None:
            from adafocus_edge.evaluation.plot import draw_evaluation, draw_patches

            if len(runs) > 1:
                draw_patches(entry["patches"], f"{model.name} on {found.origin}", plot)
            else:
                draw_evaluation(found, f"{model.name}: {what}", plot)
    if failed:
        raise typer.Exit(1)


def _patches(text: str) -> tuple[Patches, ...]:
    """Read ``--patches``. Raises ``UsageError``."""
    from adafocus_edge.evaluation.evaluate import PATCHES

    names = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for name in names:
        if name not in PATCHES:
            raise UsageError(f"--patches {text}: {name!r} is none of {', '.join(PATCHES)}")
    return cast("tuple[Patches, ...]", names)


def _print_evaluation(entry: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        from adafocus_edge.system.json_lines import to_line

        typer.echo(to_line(entry))
        return
    from adafocus_edge.cli.tables import evaluation_tables, patches_table
    from adafocus_edge.system.console import console

    for table in [patches_table(entry)] if "patches" in entry else evaluation_tables(entry):
        console().print(table)


@dataclass(frozen=True)
class _Evaluating:
    """What ``evaluate`` was asked for."""

    data: Path
    frames: Path | None
    classes: Path | None
    patches: tuple[Patches, ...]
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
        from adafocus_edge.bundle.classes import read_classes
        from adafocus_edge.evaluation.dataset import check_data

        check_data(self.data, self.frames)
        if self.classes is not None:
            read_classes(self.classes)

    def bundle(self, path: Path) -> list[tuple[Evaluation, str]]:
        """Evaluate a bundle, on each kind of patches; return what was found, and what ran."""
        from adafocus_edge.backends.registry import load_model
        from adafocus_edge.bundle.store import check_graph_files, open_bundle
        from adafocus_edge.evaluation.evaluate import gflops_per_step, predict_at
        from adafocus_edge.evaluation.evidence import reused_clips

        if self.patch_size is not None:
            raise UsageError("--patch-size is for official checkpoints: a bundle knows its own")
        found = open_bundle(path)
        found.choose_variant(self.variant)
        exits = None if self.exit_set is None else exits_of(found, self.exit_set, live=False)
        split = self._split(found.spec, found.classes)
        check_graph_files(found)
        runs = []
        with load_model(found, self.variant, self.backend, self.threads) as model:
            costs = {name: graph.gflops for name, graph in found.manifest.variants[model.variant].items()}
            for patches in self.patches:
                gflops = gflops_per_step(costs, found.spec, patches)
                predict = predict_at(model, patches, self.schedule)
                what = f"{model.backend}, {model.variant}, {self.schedule} schedule, {patches} patches"
                runs.append((self._run(predict, found.spec, split, gflops, what, exits), what))
        reports = found.manifest.reports
        return [(replace(s, reused=reused_clips(reports, [one.example for one in s.scored])), w) for s, w in runs]

    def checkpoint(self, path: Path) -> list[tuple[Evaluation, str]]:
        """Evaluate a checkpoint with PyTorch, on each kind of patches; return what was found, and what ran."""
        if self.backend != "auto" or self.variant != "auto" or self.exit_set is not None:
            raise UsageError("--backend, --variant and --exit are for bundles: PyTorch runs a checkpoint")
        training = import_companion("training.predict", "evaluate", "train")
        options = training.ModelOptions(patch_size=self.patch_size, num_segments=self.segments)
        runs: list[tuple[Evaluation, str]] = []
        split, told = None, set()
        for patches in self.patches:
            loaded = training.load_predictor(path, options, patches, self.schedule, self.threads)
            say_notes([note for note in loaded.notes if note not in told], self.quiet)
            told |= set(loaded.notes)
            split = split or self._split(loaded.spec, loaded.classes)
            run = self._run(loaded.predict, loaded.spec, split, loaded.gflops_per_step, loaded.what)
            runs.append((run, loaded.what))
        return runs

    def _split(self, spec: ModelSpec, names: tuple[str, ...] | None) -> Split:
        """Read the clips, of the classes that the model has."""
        from adafocus_edge.bundle.classes import check_class_order, check_classes, read_classes
        from adafocus_edge.evaluation.dataset import read_data

        if self.classes is not None:
            own, names = names, read_classes(self.classes)
            check_classes(names, spec.classes, str(self.classes))
            check_class_order(own, names, str(self.classes))
        split = read_data(self.data, names, self.frames)
        say_notes(split.notes, self.quiet)
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
        say(f"evaluating: {what}", self.quiet)
        with progress_for(self.quiet) as bars:
            task = bars.add_task("evaluating", total=len(split.examples))
            return run(
                predict, spec, split, gflops_per_clip=gflops * spec.segments, multi_label=self.multi_label, exits=exits,
                progress=lambda count: bars.update(task, completed=count),
            )  # fmt: skip
