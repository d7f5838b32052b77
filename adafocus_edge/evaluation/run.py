"""A whole evaluation: a bundle or a checkpoint on labelled clips, for each kind of patches."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adafocus_edge.backends.registry import load_model
from adafocus_edge.bundle.classes import check_class_order, check_classes, read_classes
from adafocus_edge.bundle.store import check_graph_files, open_bundle
from adafocus_edge.errors import UsageError
from adafocus_edge.evaluation.dataset import check_data, read_data
from adafocus_edge.evaluation.evaluate import Evaluation, evaluate, gflops_per_step, predict_at
from adafocus_edge.evaluation.evidence import reused_clips
from adafocus_edge.media.frame_folder import unknown_rate_notes
from adafocus_edge.runtime.exits import exits_named
from adafocus_edge.runtime.served import served_model
from adafocus_edge.system.companions import import_companion
from adafocus_edge.system.files import check_different, check_overwrites, write_text
from adafocus_edge.system.retention import check_file

if TYPE_CHECKING:
    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.evaluation.dataset import Split
    from adafocus_edge.evaluation.settings import EvaluateOptions, Patches
    from adafocus_edge.model.exits import ExitThresholds
    from adafocus_edge.model.spec import ModelSpec

SHOWN_CLASSES = 4
"""Classes that a note on their order lists."""
Progress = Callable[[int], AbstractContextManager[Callable[[int], None]]]
"""Opens a progress display for a number of clips; it is given how many are done."""


@dataclass(frozen=True)
class Run:
    """A model on one kind of patches.

    Attributes:
        patches: where it looked.
        what: what ran, in words.
        evaluation: its figures.
    """

    patches: str
    what: str
    evaluation: Evaluation


@dataclass(frozen=True)
class Evaluated:
    """An evaluation's runs, at least one, and the model they are of: its path, or the address where it is served."""

    model: Path | str
    runs: tuple[Run, ...]

    @property
    def first(self) -> Run:
        """The run on the first kind of patches."""
        return self.runs[0]

    @property
    def failed(self) -> dict[str, str]:
        """Error by clip, of those that could not be read in some run."""
        return {name: error for run in self.runs for name, error in run.evaluation.failed}

    @property
    def notes(self) -> list[str]:
        """What limits the worth of the figures, each once; notes on the clips were logged when they were read."""
        return list(dict.fromkeys(note for run in self.runs for note in run.evaluation.limits))

    def to_json(self) -> dict[str, Any]:
        """Return the object for ``--json``: the figures of the only run, or those of each kind of patches."""
        if len(self.runs) == 1:
            return {"model": str(self.model), "ran": self.first.what, **self.first.evaluation.to_json()}
        every = {run.patches: {"ran": run.what, **run.evaluation.to_json()} for run in self.runs}
        return {"model": str(self.model), "data": self.first.evaluation.origin, "patches": every}

    def write(self, output: Path | None, plot: Path | None) -> None:
        """Write the JSON and the plot to files, where they are given. Raises ``AdaFocusError``."""
        if output is not None:
            write_text(output, json.dumps(self.to_json(), indent=2, ensure_ascii=False) + "\n")
        if plot is not None:
            self._draw(plot)

    def _draw(self, path: Path) -> None:
        from adafocus_edge.evaluation.plot import draw_evaluation, draw_patches

        first, name = self.first, Path(self.model).name
        if len(self.runs) > 1:
            draw_patches(self.to_json()["patches"], f"{name} on {first.evaluation.origin}", path)
        else:
            draw_evaluation(first.evaluation, f"{name}: {first.what}", path)


def check_files(model: Path | None, options: EvaluateOptions) -> None:
    """Check inputs and outputs, which takes no time, before a model is loaded. Raises ``AdaFocusError``."""
    if options.plot is not None:
        from adafocus_edge.evaluation.plot import check_plot

        check_plot(options.plot)
    if model is not None and not model.exists():
        raise UsageError(f"{model}: no such bundle or checkpoint")
    check_data(options.clips, options.frames)
    if options.classes is not None:
        read_classes(options.classes)
    for path in (options.output, options.plot):
        if path is not None:
            check_file(path)
    labels = None if os.path.isdir(options.clips) else options.clips
    check_different(_outputs(options).items())
    check_overwrites(_outputs(options), (labels, options.classes, model))


def _outputs(options: EvaluateOptions) -> dict[str, Path | None]:
    return {"--output": options.output, "--plot": options.plot}


def _order_note(names: Sequence[str]) -> str:
    shown = ", ".join(f"{number} = {name!r}" for number, name in enumerate(names[:SHOWN_CLASSES]))
    more = ", ..." if len(names) > SHOWN_CLASSES else ""
    return f"the model has no class names: assumed the data's, sorted ({shown}{more}); give --classes FILE to be sure"


def evaluate_model(
    model: Path | None, options: EvaluateOptions, log: Callable[[str], None], progress: Progress
) -> Evaluated:  # fmt: skip
    """Evaluate a bundle (a folder) or a checkpoint (a file) on each kind of patches.

    Args:
        model: path of either; None for the model that the options' engine serves.
        options: see :class:`EvaluateOptions`.
        log: called with lines for the user.
        progress: shows how far each run is.

    Raises ``UsageError`` for options that do not suit the model, ``AdaFocusError`` for what cannot be read or run.
    """
    job = _Evaluating(options, log, progress)
    if options.engine is not None and model is not None and not model.is_dir():
        raise UsageError(f"--engine {options.engine}: serves bundles: {model} is a checkpoint, which PyTorch runs here")
    served = served_model(options, model)
    if served is not None:
        return Evaluated(served.name, tuple(job.bundle(served)))
    assert model is not None
    return Evaluated(model, tuple(job.bundle(open_bundle(model)) if model.is_dir() else job.checkpoint(model)))


@dataclass(frozen=True)
class _Evaluating:
    options: EvaluateOptions
    log: Callable[[str], None]
    progress: Progress

    @property
    def schedule(self) -> str:
        return "stream" if self.options.schedule == "stream" else "clip"

    @property
    def patches(self) -> tuple[Patches, ...]:
        return cast("tuple[Patches, ...]", self.options.patches)

    @property
    def decoded(self) -> str:
        """How files are decoded, for what ran; empty for exactly."""
        return "" if self.options.decode == "exact" else f", decoded: {self.options.decode}"

    def bundle(self, found: Bundle) -> list[Run]:
        """Evaluate a bundle, or a model that is served."""
        asked = self.options
        if asked.patch_size is not None:
            raise UsageError(f"--patch-size {asked.patch_size}: is for official checkpoints; a bundle holds its own")
        found.choose_variant(asked.variant)
        exits, stopped = None, ""
        if asked.exit_set is not None:
            exits = exits_named(found, asked.exit_set, live=False)
            stopped = f", exit {asked.exit_set.partition('/')[0]}/{exits.order}"
        split = self._split(found.spec, found.classes)
        check_graph_files(found)
        runs = []
        with load_model(found, asked.variant, asked.backend, asked.threads, device=asked.device) as model:
            costs = found.costs(model.variant)
            for patches in self.patches:
                gflops = gflops_per_step(costs, found.spec, patches)
                predict = predict_at(model, patches, self.schedule)
                what = f"{model.backend}, {model.variant}, {self.schedule} schedule, {patches} patches{stopped}"
                what += self.decoded
                runs.append(Run(patches, what, self._run(predict, found.spec, split, gflops, what, exits)))
        reports = found.manifest.reports
        return [
            replace(run, evaluation=replace(one, reused=reused_clips(reports, [s.example for s in one.scored])))
            for run in runs
            if (one := run.evaluation)
        ]

    def checkpoint(self, path: Path) -> list[Run]:
        """Evaluate a checkpoint with PyTorch."""
        asked = self.options
        if (asked.backend, asked.variant, asked.exit_set, asked.device) != ("auto", "auto", None, None):
            raise UsageError("--backend, --variant, --device and --exit are for bundles: PyTorch runs a checkpoint")
        training = import_companion("training.predict", "evaluate", "train")
        options = training.ModelOptions(patch_size=asked.patch_size, num_segments=asked.segments)
        runs: list[Run] = []
        split, logged = None, set[str]()
        for patches in self.patches:
            loaded = training.load_predictor(path, options, patches, self.schedule, asked.threads)
            for note in loaded.notes:
                if note not in logged:
                    self.log(f"note: {note}")
            logged |= set(loaded.notes)
            split = split or self._split(loaded.spec, loaded.classes)
            what = loaded.what + self.decoded
            runs.append(Run(patches, what, self._run(loaded.predict, loaded.spec, split, loaded.gflops_per_step, what)))
        return runs

    def _split(self, spec: ModelSpec, names: tuple[str, ...] | None) -> Split:
        """Read the clips, with the classes that the model has."""
        asked = self.options
        if asked.classes is not None:
            own, names = names, read_classes(asked.classes)
            check_classes(names, spec.classes, str(asked.classes))
            check_class_order(own, names, str(asked.classes))
        split = read_data(asked.clips, names, asked.frames)
        more = unknown_rate_notes([example.path for example in split.examples], spec.motion_gap_s)
        if names is None:
            more.append(_order_note(split.classes))
        examples = tuple(replace(example, decode=asked.decode) for example in split.examples)
        split = replace(split, examples=examples, notes=(*split.notes, *more))
        for note in split.notes:
            self.log(f"note: {note}")
        check_classes(split.classes, spec.classes, str(asked.data))
        check_overwrites(_outputs(asked), (example.path for example in split.examples))
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
        asked = self.options
        spec = replace(spec, segments=asked.segments or spec.segments)
        if exits is not None and len(exits.values) != spec.segments:
            raise UsageError(f"--segments {spec.segments}: --exit {asked.exit_set} is for {len(exits.values)} frames")
        self.log(f"evaluating: {what}")
        with self.progress(len(split.examples)) as done:
            return evaluate(
                predict, spec, split, gflops_per_clip=gflops * spec.segments, multi_label=asked.multi_label,
                exits=exits, progress=done,
            )  # fmt: skip
