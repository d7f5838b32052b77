"""Make one variant: convert each graph, choose the range method, and keep sensitive layers in higher precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
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
from calibration.compare import Difference, Run, compare, run
from calibration.fp16 import to_half
from calibration.graphs import layers, load_graph, save_graph
from calibration.ranges import METHODS, Histogram, Method, Range, histograms
from calibration.samples import Clips, Feeds, Samples

Variant = str
VARIANTS = CALIBRATED
CONVOLUTIONS = ("glancer", "focuser")
"""Graphs dominated by convolutions, where INT8 pays."""
RECURRENT = ("policy", "classifier")
RANKED_SAMPLES = 32
"""Recorded inputs for measuring the error of each layer alone."""
TRIED_WITHOUT = 16
"""Most sensitive layers that are also measured as the only float layer of an INT8 graph."""


@dataclass(frozen=True)
class Choices:
    """Settings for making a variant.

    Attributes:
        method: range method; None to choose by accuracy.
        max_drop: points of accuracy that may be lost on the calibration clips.
        reduce_range: whether ``int8-cpu`` uses 7-bit weights.
        threads: CPU threads, or None for all cores.
    """

    method: Method | None
    max_drop: float
    reduce_range: bool
    threads: int | None


@dataclass(frozen=True)
class Kept:
    """A layer that is not quantized.

    Attributes:
        graph: the layer's graph.
        layer: the node's name, or ``all``.
        why: the reason, in words.
        error_alone: error of the graph's outputs when this layer alone is INT8, relative to their norm.
        error_saved: how much smaller the error of the INT8 graph is when this layer alone stays float.
    """

    graph: str
    layer: str
    why: str
    error_alone: float = 0.0
    error_saved: float = 0.0


@dataclass(frozen=True)
class Quantization:
    """How an INT8 variant was made: fields of its row in the report.

    Attributes:
        method: the range method.
        methods: the differences with each method tried.
        graphs_alone: the differences with one graph alone in INT8, before layers were kept.
        kept: the layers that are not quantized.
        on_calibration_clips: the differences of the variant as it is.
        reduce_range: whether weights are 7-bit.
    """

    method: Method
    methods: dict[Method, Difference]
    graphs_alone: dict[str, Difference]
    kept: tuple[Kept, ...]
    on_calibration_clips: Difference
    reduce_range: bool


@dataclass(frozen=True)
class Made:
    """A variant in a folder.

    Attributes:
        folder: folder with the four graphs.
        precision: each graph's precision, in words.
        quantization: how it was made; None for ``fp16``.
        notes: notes for the user, a line each.
    """

    folder: Path
    precision: dict[str, str]
    quantization: Quantization | None = None
    notes: tuple[str, ...] = ()


class Maker:
    """Makes variants of one float model and judges candidates on the calibration clips.

    Args:
        spec: the model's shapes and names.
        float_path: returns the path of the float model's graph of that name.
        samples: recorded inputs.
        clips: clips to judge candidates on.
        reference: the float model's run over these clips.
        choices: see :class:`Choices`.
        work: an empty folder.
        progress: called with the current activity, the steps done and their total (0 if unknown).
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
        """Open the given graphs on the CPU, and the float model's for those not given."""
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
        """Return a graph in half precision; layers with values near overflow stay FP32."""
        return to_half(self.float[graph], self._ranges(graph, "minmax"))

    # -- INT8 ---------------------------------------------------------------------------------------------------------

    def _int8(self, variant: Variant) -> Made:
        recurrent = self._recurrent(variant)
        tried: dict[Method, Difference] = {}
        paths_of: dict[Method, dict[str, Path]] = {}
        for method in (self.choices.method,) if self.choices.method else METHODS:
            paths = {graph: self.quantized(variant, graph, method) for graph in CONVOLUTIONS}
            paths_of[method] = {**paths, **recurrent}
            tried[method] = self._judge(paths_of[method], f"{variant}: ranges by {method}", variant)
        method = min(tried, key=lambda name: _badness(tried[name]))
        paths, judged = paths_of[method], tried[method]

        alone = {graph: self._judge({graph: paths[graph]}, f"{variant}: {graph} alone", variant) for graph in paths}
        kept = [
            Kept(graph, name, "the stem: no gain there, and much to lose")
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
        reduced = variant == "int8-cpu" and self.choices.reduce_range
        quantization = Quantization(method, tried, alone, tuple(kept), judged, reduced)
        notes: tuple[str, ...] = ()
        if judged.top1_drop > self.choices.max_drop:
            notes = (
                f"{variant}: loses {judged.top1_drop:.2f} points on the calibration clips, more than "
                f"--max-accuracy-drop {self.choices.max_drop:g}, and keeping layers in higher precision does not help",
            )
        return Made(folder, precision, quantization, notes)

    def _recurrent(self, variant: Variant) -> dict[str, Path]:
        """Write the recurrent graphs: with 8-bit weights for a CPU, in half precision for TensorRT."""
        if variant == "int8-cpu":
            return {
                graph: self._write(int8.weights_only(self.float[graph], self.choices.reduce_range))
                for graph in RECURRENT
            }
        return {graph: self._write(self._halved(graph)) for graph in RECURRENT}

    def _unquantized(self, variant: Variant, graph: str) -> ModelProto:
        """Return a graph with no layer quantized: FP32 for a CPU, FP16 for TensorRT."""
        return self.float[graph] if variant == "int8-cpu" else self._halved(graph)

    def _precision(self, variant: Variant, graph: str, model: ModelProto) -> str:
        done, every = len(int8.quantized_layers(model)), len(layers(self.float[graph]))
        if not done:
            return "fp32" if variant == "int8-cpu" else "fp16"
        kind = "int8 S8S8" if variant == "int8-trt" else "int8 U8S8" if graph in CONVOLUTIONS else "int8 dynamic"
        return kind if done == every else f"{kind}, {done} of {every} layers"

    def quantized(self, variant: Variant, graph: str, method: Method, skip: Sequence[str] = ()) -> Path:
        """Quantize a graph of convolutions except for its stem and the layers to skip; return the path of the file."""
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
        judged: Difference,
        alone: Mapping[str, Difference],
    ) -> tuple[dict[str, Path], Difference, list[Kept]]:
        """Keep sensitive layers in higher precision until the variant loses no more than allowed.

        Each round takes the graph with the largest loss alone and keeps twice as many of its layers as before.

        Returns the graphs, their loss together, and the layers kept; graphs and loss unchanged if nothing helps.
        """
        limit = self.choices.max_drop
        why = f"{judged.top1_drop:.2f} points were lost, at most {limit:g} are allowed"
        now, costs, together = dict(paths), dict(alone), judged
        ranked: dict[str, list[Kept]] = {}
        counts = dict.fromkeys(paths, 0)
        left = {graph for graph in paths if alone[graph].logit_error_max > 0}
        while together.top1_drop > limit and left:
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
            kept.extend([Kept(graph, "all", why)] if whole else [replace(layer, why=why) for layer in layers_kept])
        return now, together, kept

    def _ranked(self, variant: Variant, graph: str, method: Method) -> list[Kept]:
        """Return a graph's layers, the most sensitive first.

        A layer's score is the error of the graph's outputs when it alone is INT8. For the worst layers, the error that
        is saved when it alone stays float is added: some layers do harm only together with those that follow.
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
            ranked.append(Kept(graph, name, "", error([name], ())))
        ranked.sort(key=lambda layer: -layer.error_alone)
        whole = error(None, sorted(stem))
        for place, layer in enumerate(ranked[:TRIED_WITHOUT]):
            self.progress(f"{variant}: the {graph} without each of its worst layers", place + 1, TRIED_WITHOUT)
            ranked[place] = replace(layer, error_saved=whole - error(None, [*sorted(stem), layer.layer]))
        return sorted(ranked, key=lambda layer: -(layer.error_alone + layer.error_saved))

    # -- judging ------------------------------------------------------------------------------------------------------

    def _judge(self, paths: Mapping[str, Path], what: str, variant: Variant) -> Difference:
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


def _badness(judged: Difference) -> tuple[float, float, float]:
    """Return the sort key of a candidate: accuracy lost, then agreement of labels, then error of logits."""
    # A gain is due to chance, so it does not count in a candidate's favour.
    return max(judged.top1_drop, 0.0), -judged.label_agreement, judged.logit_error_mean


def _outputs(path: Path, batches: Sequence[Feeds], threads: int | None, exact_int8: bool) -> list[NDArray[Any]]:
    session = OrtSession(path, threads, exact_int8=exact_int8)
    try:
        made = [session.run(feeds) for feeds in batches]
    finally:
        session.close()
    return [np.concatenate([outputs[name] for outputs in made]) for name in made[0]]


def _relative_error(found: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> float:
    """Return the largest of the outputs' errors, each relative to the norm of the expected output."""
    errors = []
    for made, wanted in zip(found, expected, strict=True):
        size = float(np.linalg.norm(wanted.astype(np.float64)))
        errors.append(float(np.linalg.norm(made.astype(np.float64) - wanted)) / max(size, 1e-12))
    return max(errors)
