"""Making one variant: which graphs become what, which range is best, and which layers stay as they were."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import ModelProto

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.onnxruntime import OrtSession, open_graphs
from adafocus_edge.bundle.variants import CALIBRATED, EXACT_INT8, RECIPE
from adafocus_edge.model.spec import GRAPHS, ModelSpec
from calibration import int8
from calibration.compare import Run, compare, run
from calibration.fp16 import to_half
from calibration.graphs import layers, load_graph, save_graph
from calibration.ranges import METHODS, Histogram, Method, Range, histograms
from calibration.samples import Clips, Feeds, Samples

Variant = str
VARIANTS = CALIBRATED
CONVOLUTIONS = ("glancer", "focuser")
"""The graphs whose work is convolutions: INT8 pays there."""
RECURRENT = ("policy", "classifier")
RANKED_SAMPLES = 32
"""Recorded inputs on which the error of each layer alone is measured."""
TRIED_WITHOUT = 16
"""Layers that are also tried the other way round."""


@dataclass(frozen=True)
class Choices:
    """What a variant is made with.

    Attributes:
        method: of ranges; None to choose by accuracy.
        max_drop: points of accuracy that may be lost on the calibration clips.
        reduce_range: 7-bit weights in ``int8-cpu``.
        threads: for the CPU.
    """

    method: Method | None
    max_drop: float
    reduce_range: bool
    threads: int | None


@dataclass(frozen=True)
class Made:
    """A variant in a folder.

    Attributes:
        folder: holds the four graphs.
        precision: of each graph, in words.
        facts: for the report: method, what each graph costs, what was kept and why.
        notes: what the user should know, a line each.
    """

    folder: Path
    precision: dict[str, str]
    facts: dict[str, Any] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Kept:
    """A layer that is not quantized.

    Attributes:
        graph: it is in.
        layer: the node's name, or ``all``.
        why: in words.
        error_alone: of the graph's outputs when this layer alone is INT8, as a share of their size.
        error_saved: by which that error shrinks when all layers but this one are INT8.
    """

    graph: str
    layer: str
    why: str
    error_alone: float = 0.0
    error_saved: float = 0.0


class Maker:
    """Makes variants of one float model, judged on the calibration clips.

    Args:
        spec: the model's shapes and names.
        float_path: gives the float model's graph files.
        samples: recorded inputs.
        clips: what candidates are judged on.
        reference: the float model's run over these clips.
        choices: see :class:`Choices`.
        work: an empty folder.
        progress: told what is being done, and how much of how much.
    """

    def __init__(
        self,
        spec: ModelSpec,
        float_path: Callable[[str], Path],
        samples: Samples,
        clips: Clips,
        reference: Run,
        choices: Choices,
        work: Path,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.spec, self.samples, self.clips, self.reference = spec, samples, clips, reference
        self.choices, self.work, self.progress = choices, work, progress
        self.float_path = float_path
        self.float = {graph: load_graph(float_path(graph)) for graph in GRAPHS}
        self._histograms: dict[str, dict[str, Histogram]] = {}
        self._written = 0

    def make(self, variant: Variant) -> Made:
        """Make one variant."""
        return self._half() if RECIPE[variant] == "fp16" else self._int8(variant)

    def opened(self, paths: Mapping[str, Path], variant: str) -> LoadedModel:
        """Open graphs on the CPU; those not given are the float model's."""
        return open_graphs(
            self.spec,
            lambda graph: paths.get(graph, self.float_path(graph)),
            variant,
            "onnxruntime-cpu",
            self.choices.threads,
        )

    # -- FP16 ---------------------------------------------------------------------------------------------------------

    def _half(self) -> Made:
        folder = self._folder()
        for graph in GRAPHS:
            self.progress(f"fp16: {graph}", 0, 0)
            save_graph(self._halved(graph), folder / f"{graph}.onnx")
        return Made(folder, dict.fromkeys(GRAPHS, "fp16"))

    def _halved(self, graph: str) -> ModelProto:
        """Return a graph in half precision; layers that come near its largest number stay as they are."""
        return to_half(self.float[graph], self._ranges(graph, "minmax"))

    # -- INT8 ---------------------------------------------------------------------------------------------------------

    def _int8(self, variant: Variant) -> Made:
        recurrent = self._recurrent(variant)
        tried: dict[Method, dict[str, Any]] = {}
        paths_of: dict[Method, dict[str, Path]] = {}
        for method in (self.choices.method,) if self.choices.method else METHODS:
            paths = {graph: self.quantized(variant, graph, method) for graph in CONVOLUTIONS}
            paths_of[method] = {**paths, **recurrent}
            tried[method] = self._judge(paths_of[method], f"{variant}: ranges by {method}", variant)
        method = min(tried, key=lambda name: _badness(tried[name]))
        paths, judged = paths_of[method], tried[method]

        alone = {graph: self._judge({graph: paths[graph]}, f"{variant}: {graph} alone", variant) for graph in paths}
        kept = [
            _Kept(graph, name, "the stem: nothing to gain there, much to lose")
            for graph in CONVOLUTIONS
            for name in int8.stem(self.float[graph])
        ]
        paths, judged, more = self._restored(variant, method, paths, judged, alone)
        kept.extend(more)

        folder = self._folder()
        precision = {}
        for graph in GRAPHS:
            model = onnx.load_model(paths[graph])
            save_graph(model, folder / f"{graph}.onnx")
            precision[graph] = self._precision(variant, graph, model)
        facts = {
            "method": method,
            "methods": tried,
            "graphs_alone": alone,
            "kept": [asdict(entry) for entry in kept],
            "on_calibration_clips": judged,
            "reduce_range": variant == "int8-cpu" and self.choices.reduce_range,
        }
        notes: tuple[str, ...] = ()
        if judged["top1_drop"] > self.choices.max_drop:
            notes = (
                f"{variant}: loses {judged['top1_drop']:.2f} points on the calibration clips, more than "
                f"--max-accuracy-drop {self.choices.max_drop:g}, and no layer kept higher helps",
            )
        return Made(folder, precision, facts, notes)

    def _recurrent(self, variant: Variant) -> dict[str, Path]:
        """Write what becomes of the recurrent graphs: 8-bit weights on a CPU, half precision in TensorRT."""
        if variant == "int8-cpu":
            return {
                graph: self._write(int8.weights_only(self.float[graph], self.choices.reduce_range))
                for graph in RECURRENT
            }
        return {graph: self._write(self._halved(graph)) for graph in RECURRENT}

    def _unquantized(self, variant: Variant, graph: str) -> ModelProto:
        """Return what a graph is when all of it is kept: FP32 on a CPU, FP16 in TensorRT."""
        return self.float[graph] if variant == "int8-cpu" else self._halved(graph)

    def _precision(self, variant: Variant, graph: str, model: ModelProto) -> str:
        done, every = len(int8.quantized_layers(model)), len(layers(self.float[graph]))
        if not done:
            return "fp32" if variant == "int8-cpu" else "fp16"
        kind = "int8 S8S8" if variant == "int8-trt" else "int8 U8S8" if graph in CONVOLUTIONS else "int8 dynamic"
        return kind if done == every else f"{kind}, {done} of {every} layers"

    def quantized(self, variant: Variant, graph: str, method: Method, skip: Sequence[str] = ()) -> Path:
        """Write a graph of convolutions in INT8, but for its stem and the layers to skip; where it was written."""
        return self._write(self._quantize(variant, graph, method, None, [*int8.stem(self.float[graph]), *skip]))

    def _quantize(
        self, variant: Variant, graph: str, method: Method, only: Sequence[str] | None, skip: Sequence[str] = ()
    ) -> ModelProto:
        model, ranges = self.float[graph], self._ranges(graph, method)
        if variant == "int8-cpu":
            return int8.for_cpu(model, ranges, reduce_range=self.choices.reduce_range, only=only, skip=skip)
        return int8.for_tensorrt(model, ranges, only=only, skip=skip)

    def _ranges(self, graph: str, method: Method) -> dict[str, Range]:
        if graph not in self._histograms:
            batches = 2 * len(list(self.samples.batches(graph)))
            self._histograms[graph] = histograms(
                self.float[graph],
                lambda: self.samples.batches(graph),
                lambda done: self.progress(f"ranges of the {graph}", done, batches),
                self.choices.threads,
            )
        return {name: histogram.range_by(method) for name, histogram in self._histograms[graph].items()}

    # -- sensitivity --------------------------------------------------------------------------------------------------

    def _restored(
        self,
        variant: Variant,
        method: Method,
        paths: dict[str, Path],
        judged: dict[str, Any],
        alone: Mapping[str, dict[str, Any]],
    ) -> tuple[dict[str, Path], dict[str, Any], list[_Kept]]:
        """Keep sensitive layers until the variant fits: of the graph that is worst alone, twice as many as before.

        Returns the graphs, what they cost together, and the layers that are kept; all as it was if nothing helps.
        """
        limit = self.choices.max_drop
        why = f"{judged['top1_drop']:.2f} points were lost, {limit:g} may be"
        now, costs, together = dict(paths), dict(alone), judged
        ranked: dict[str, list[_Kept]] = {}
        counts = dict.fromkeys(paths, 0)
        left = {graph for graph in paths if alone[graph]["logit_error_max"] > 0}
        while together["top1_drop"] > limit and left:
            graph = max(left, key=lambda name: _badness(costs[name]))
            if graph in CONVOLUTIONS and graph not in ranked:
                ranked[graph] = self._ranked(variant, graph, method)
            counts[graph] = max(1, 2 * counts[graph])
            if counts[graph] < len(ranked.get(graph, ())):
                names = [layer.layer for layer in ranked[graph][: counts[graph]]]
                now[graph] = self.quantized(variant, graph, method, names)
                what = f"{variant}: {graph} with {counts[graph]} layers kept"
            else:
                now[graph] = self._write(self._unquantized(variant, graph))
                left.remove(graph)
                what = f"{variant}: {graph} kept whole"
            costs[graph] = self._judge({graph: now[graph]}, what, variant)
            together = self._judge(now, f"{what}, all graphs", variant)
        if _badness(together) >= _badness(judged):
            return paths, judged, []
        kept = []
        for graph in (graph for graph in paths if counts[graph]):
            layers_kept = ranked.get(graph, [])[: counts[graph]]
            whole = graph not in left
            kept.extend([_Kept(graph, "all", why)] if whole else [replace(layer, why=why) for layer in layers_kept])
        return now, together, kept

    def _ranked(self, variant: Variant, graph: str, method: Method) -> list[_Kept]:
        """Return a graph's layers, the most sensitive first.

        A layer counts by the error of the graph's outputs when it alone is INT8, and the worst of them also by how
        much of the error goes when it alone is not: some do their harm only together with what follows.
        """
        stem = set(int8.stem(self.float[graph]))
        names = [name for name in layers(self.float[graph]) if name not in stem]
        batches = list(self.samples.batches(graph, most=RANKED_SAMPLES))
        exact = variant in EXACT_INT8
        expected = _outputs(self._write(self.float[graph]), batches, self.choices.threads, exact)

        def error(only: Sequence[str] | None, skip: Sequence[str]) -> float:
            path = self._write(self._quantize(variant, graph, method, only, skip))
            found = _relative_error(_outputs(path, batches, self.choices.threads, exact), expected)
            path.unlink()
            return found

        ranked = []
        for done, name in enumerate(names, start=1):
            self.progress(f"{variant}: each layer of the {graph} alone", done, len(names))
            ranked.append(_Kept(graph, name, "", error([name], ())))
        ranked.sort(key=lambda layer: -layer.error_alone)
        whole = error(None, sorted(stem))
        for place, layer in enumerate(ranked[:TRIED_WITHOUT]):
            self.progress(f"{variant}: the {graph} without each of its worst layers", place + 1, TRIED_WITHOUT)
            ranked[place] = replace(layer, error_saved=whole - error(None, [*sorted(stem), layer.layer]))
        return sorted(ranked, key=lambda layer: -(layer.error_alone + layer.error_saved))

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self, paths: Mapping[str, Path], what: str, variant: Variant) -> dict[str, Any]:
        with self.opened(paths, variant) as model:
            found = run(model, self.clips, progress=lambda done: self.progress(what, done, len(self.clips)))
        return compare(found, self.reference, self.clips.labels)

    def _write(self, model: ModelProto) -> Path:
        self._written += 1
        path = self.work / f"{self._written}.onnx"
        onnx.save_model(model, path)
        return path

    def _folder(self) -> Path:
        self._written += 1
        folder = self.work / f"{self._written}"
        folder.mkdir()
        return folder


def _badness(judged: dict[str, Any]) -> tuple[float, float, float]:
    """Order candidates: by accuracy, then by labels that agree with the float model's, then by logits."""
    # Clips that chance makes right are no merit of a candidate.
    return max(judged["top1_drop"], 0.0), -judged["label_agreement"], judged["logit_error_mean"]


def _outputs(path: Path, batches: Sequence[Feeds], threads: int | None, exact_int8: bool) -> list[NDArray[Any]]:
    session = OrtSession(path, threads, exact_int8=exact_int8)
    try:
        made = [session.run(feeds) for feeds in batches]
    finally:
        session.close()
    return [np.concatenate([outputs[name] for outputs in made]) for name in made[0]]


def _relative_error(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """Return the largest of the outputs' errors, each as a share of that output's own size (root of squares)."""
    errors = []
    for made, wanted in zip(found, expected, strict=True):
        size = float(np.linalg.norm(wanted.astype(np.float64)))
        errors.append(float(np.linalg.norm(made.astype(np.float64) - wanted)) / max(size, 1e-12))
    return max(errors)
