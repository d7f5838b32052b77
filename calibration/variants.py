"""Make one variant: convert each graph, choose the range method, and keep sensitive layers in higher precision."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import onnx
from onnx import ModelProto

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.bundle.variants import CALIBRATED, EXACT_INT8, RECIPE
from adafocus_edge.model.spec import GRAPHS
from calibration import int8
from calibration.compare import Comparison, Difference, Run, timed
from calibration.fp16 import to_half
from calibration.graphs import layers, load_graph, multiplications, save_graph
from calibration.ranges import METHODS, Histogram, Method, Range, histograms
from calibration.remembering import Combinations, forgetful
from calibration.samples import Clips, Samples
from calibration.sensitivity import Quantize, Sensitivity
from calibration.weights import QuantizedWeights
from calibration.workers import Workers

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
        max_ms: milliseconds that a clip may take with ``int8-cpu``: while it takes less, further sensitive layers stay
            float. None to keep no more layers than accuracy needs.
    """

    method: Method | None
    max_drop: float
    reduce_range: bool
    threads: int | None
    max_ms: float | None = None


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


@dataclass(frozen=True)
class _Candidate:
    """An INT8 variant in the making.

    Attributes:
        variant: its name.
        method: the range method.
        paths: its graphs; those that are missing stay FP32.
        judged: their loss together.
        alone: the loss of each graph alone, with all its layers in INT8.
        kept: the layers that are not quantized.
    """

    variant: Variant
    method: Method
    paths: dict[str, Path]
    judged: Difference
    alone: dict[str, Difference]
    kept: tuple[Kept, ...]


class Maker:
    """Makes variants of one float model and judges candidates on the calibration clips.

    Args:
        model: the float model, open; best one that remembers (:func:`calibration.remembering.remembering`), with the
            threads of one of the :class:`calibration.workers.Workers`.
        float_path: returns the path of its graph of that name.
        samples: recorded inputs.
        clips: clips to judge candidates on.
        reference: the float model's run over these clips.
        choices: see :class:`Choices`.
        work: an empty folder.
        progress: called with the current activity, the steps done and their total (0 if unknown).
    """

    def __init__(
        self,
        model: LoadedModel,
        float_path: Callable[[str], Path],
        samples: Samples,
        clips: Clips,
        reference: Run,
        choices: Choices,
        work: Path,
        progress: Callable[[str, int, int], None],
    ) -> None:
        self.samples, self.clips, self.reference = samples, clips, reference
        self.choices, self.work, self.progress = choices, work, progress
        self.float = {graph: load_graph(float_path(graph)) for graph in GRAPHS}
        self._workers = Workers(choices.threads)
        self._combinations = Combinations(model, self._workers.threads_each, self._workers.batch)
        self._float_path, self._to_time = float_path, Combinations(model, choices.threads)
        self._histograms: dict[str, dict[str, Histogram]] = {}
        self._known_ranges: dict[tuple[str, Method], dict[str, Range]] = {}
        self._rankings: dict[tuple[Variant, str, Method], list[Kept]] = {}
        self._weights = {graph: QuantizedWeights() for graph in CONVOLUTIONS}
        self._right: defaultdict[tuple[str, ...], list[dict[int, bool]]] = defaultdict(list)
        self._written = 0

    def make(self, variant: Variant) -> Made:
        """Make one variant."""
        try:
            return self._half() if RECIPE[variant] == "fp16" else self._int8(variant)
        finally:
            self._combinations.drop()
            self._to_time.drop()

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
        for tried_now in (self.choices.method,) if self.choices.method else METHODS:
            paths = {graph: self.quantized(variant, graph, tried_now) for graph in CONVOLUTIONS}
            paths_of[tried_now] = {**paths, **recurrent}
            tried[tried_now] = self.judged(paths_of[tried_now], f"{variant}: ranges by {tried_now}", variant)
            method = min(tried, key=lambda name: _badness(tried[name]))
            for others in paths_of.values():
                self._combinations.drop(set(others.values()) - set(paths_of[method].values()))
        paths = paths_of[method]
        alone = {graph: self.judged({graph: paths[graph]}, f"{variant}: {graph} alone", variant) for graph in paths}
        stems = (
            Kept(graph, name, "the stem: no gain there, and much to lose")
            for graph in CONVOLUTIONS
            for name in int8.stem(self.float[graph])
        )
        chosen = self._restored(_Candidate(variant, method, paths, tried[method], alone, tuple(stems)))
        if variant == "int8-cpu" and self.choices.max_ms is not None:
            chosen = self._within_time(chosen, self.choices.max_ms)

        folder = self._folder()
        precision = {}
        for graph in GRAPHS:
            model = onnx.load_model(chosen.paths[graph]) if graph in chosen.paths else self.float[graph]
            save_graph(model, folder / f"{graph}.onnx")
            precision[graph] = self._precision(variant, graph, model)
        reduced = variant == "int8-cpu" and self.choices.reduce_range
        quantization = Quantization(method, tried, alone, chosen.kept, chosen.judged, reduced)
        notes: tuple[str, ...] = ()
        if chosen.judged.top1_drop > self.choices.max_drop:
            notes = (
                f"{variant}: loses {chosen.judged.top1_drop:.2f} points on the calibration clips, more than "
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

    def _precision(self, variant: Variant, graph: str, model: ModelProto) -> str:
        done, every = len(int8.quantized_layers(model)), len(layers(self.float[graph]))
        if not done:
            return "fp32" if variant == "int8-cpu" else "fp16"
        kind = "int8 S8S8" if variant == "int8-trt" else "int8 U8S8" if graph in CONVOLUTIONS else "int8 dynamic"
        return kind if done == every else f"{kind}, {done} of {every} layers"

    def quantized(self, variant: Variant, graph: str, method: Method, skip: Sequence[str] = ()) -> Path:
        """Quantize a graph of convolutions except for its stem and the layers to skip; return the path of the file."""
        quantize = self._quantizer(variant, graph, method)
        model = self.float[graph]
        return self._write(quantize(model, None, [*int8.stem(model), *skip]))

    def _quantizer(self, variant: Variant, graph: str, method: Method) -> Quantize:
        """Return the function that quantizes a graph of convolutions, or a block of it, for a variant."""
        ranges, known = self._ranges(graph, method), self._weights[graph]
        if variant == "int8-cpu":
            reduced = self.choices.reduce_range
            return lambda model, only, skip: int8.for_cpu(
                model, ranges, reduce_range=reduced, only=only, skip=skip, known=known
            )
        return lambda model, only, skip: int8.for_tensorrt(model, ranges, only=only, skip=skip, known=known)

    def _ranges(self, graph: str, method: Method) -> dict[str, Range]:
        if (graph, method) in self._known_ranges:
            return self._known_ranges[graph, method]
        if graph not in self._histograms:
            batches = 2 * len(list(self.samples.batches(graph)))
            self._histograms[graph] = histograms(
                self.float[graph],
                lambda: self.samples.batches(graph),
                lambda done: self.progress(f"ranges of the {graph}", done, batches),
                self.choices.threads,
            )
        found = {name: histogram.range_by(method) for name, histogram in self._histograms[graph].items()}
        self._known_ranges[graph, method] = found
        return found

    # -- sensitivity --------------------------------------------------------------------------------------------------

    def _restored(self, before: _Candidate) -> _Candidate:
        """Keep sensitive layers in higher precision until the variant loses no more than allowed.

        Each round takes the graph with the largest loss alone and keeps twice as many of its layers as before. Clips
        that can change neither that choice nor whether the loss is allowed are not run. Returns the candidate as it was
        if nothing helps.
        """
        variant, method, paths, judged = before.variant, before.method, before.paths, before.judged
        limit = self.choices.max_drop
        why = f"{judged.top1_drop:.2f} points were lost, at most {limit:g} are allowed"
        now, together = dict(paths), judged
        costs: dict[str, Difference | Comparison] = dict(before.alone)
        too_much = judged.top1_drop > limit
        ranked: dict[str, list[Kept]] = {}
        counts = dict.fromkeys(paths, 0)
        left = {graph for graph in paths if before.alone[graph].logit_error_max > 0}
        while too_much and left:
            graph = _worst({name: costs[name] for name in left})
            self._combinations.drop({now.pop(graph)})
            if graph in CONVOLUTIONS and graph not in ranked:
                ranked[graph] = self._ranked(variant, graph, method)
            counts[graph] = max(1, 2 * counts[graph])
            if counts[graph] < len(ranked.get(graph, ())):
                names = [layer.layer for layer in ranked[graph][: counts[graph]]]
                now[graph] = self.quantized(variant, graph, method, names)
                what = f"{variant}: {graph} with {counts[graph]} layers kept"
            else:
                if variant != "int8-cpu":
                    now[graph] = self._write(self._halved(graph))
                left.remove(graph)
                what = f"{variant}: {graph} kept whole"
            costs[graph] = self._compared({graph: now[graph]} if graph in now else {}, what, variant)
            every = self._compared(now, f"{what}, all graphs", variant)
            too_much = every.loses_more(limit)
            if not (too_much and left):
                together = every.difference()
        if _badness(together) >= _badness(judged):
            return before
        kept = list(before.kept)
        for graph in (graph for graph in paths if counts[graph]):
            layers_kept = ranked.get(graph, [])[: counts[graph]]
            whole = graph not in left
            kept.extend([Kept(graph, "all", why)] if whole else [replace(layer, why=why) for layer in layers_kept])
        return replace(before, paths=now, judged=together, kept=tuple(kept))

    def _within_time(self, before: _Candidate, limit_ms: float) -> _Candidate:
        """Keep as many further layers in float as the time of a clip allows.

        The first ones are those with the largest error for each of their multiplications. How many there can be is
        found by halving, with the time of the loop measured here each time. Returns the candidate as it was if it takes
        too long already, or if no layer brings it nearer to the float model.
        """
        variant, paths = before.variant, before.paths
        order = self._by_error_per_multiplication(before)

        def with_float(count: int) -> dict[str, Path]:
            made = dict(paths)
            for graph in {layer.graph for layer in order}:
                more = [layer.layer for layer in order[:count] if layer.graph == graph]
                if len(more) == sum(layer.graph == graph for layer in order):
                    del made[graph]  # all of them
                elif more:
                    names = [layer.layer for layer in before.kept if layer.graph == graph]
                    made[graph] = self.quantized(variant, graph, before.method, [*names, *more])
            return made

        def ms(made: Mapping[str, Path], count: int) -> float:
            self.progress(f"{variant}: timing it with {count} more layers in float", 0, 0)
            try:
                every = {graph: made.get(graph) or self._float_path(graph) for graph in GRAPHS}
                model = forgetful(self._to_time.model(every, variant))
                return timed({variant: model}, self.clips)[variant].ms_per_clip
            finally:
                self._to_time.drop(set(made.values()) - set(paths.values()))

        if ms(paths, 0) > limit_ms:
            return before
        best, took_ms, fitting, too_many = paths, 0.0, 0, len(order) + 1
        while too_many - fitting > 1:
            count = (fitting + too_many) // 2
            made = with_float(count)
            if (now_ms := ms(made, count)) <= limit_ms:
                best, took_ms, fitting = made, now_ms, count
            else:
                too_many = count
        if not fitting:
            return before
        together = self.judged(best, f"{variant}: with {fitting} more layers in float", variant)
        if _badness(together) >= _badness(before.judged):
            return before
        why = f"fits the time limit: {took_ms:.1f} of {limit_ms:g} ms per clip"
        whole = (Kept(graph, "all", why) for graph in CONVOLUTIONS if graph in paths and graph not in best)
        some = (replace(layer, why=why) for layer in order[:fitting] if layer.graph in best)
        return replace(before, paths=best, judged=together, kept=(*before.kept, *whole, *some))

    def _by_error_per_multiplication(self, candidate: _Candidate) -> list[Kept]:
        """Return the quantized layers of the graphs of convolutions, that with the largest quotient first."""
        kept = {(layer.graph, layer.layer) for layer in candidate.kept}
        found: list[tuple[float, Kept]] = []
        for graph in CONVOLUTIONS:
            if graph not in candidate.paths:
                continue
            work = multiplications(self.float[graph])
            ranked = self._ranked(candidate.variant, graph, candidate.method)
            # An error of a graph's outputs, in logits: the layers' errors together are as large as that of the graph.
            scale = candidate.alone[graph].logit_error_mean / max(sum(map(_score, ranked)), 1e-12)
            found += [(_score(one) * scale / work[one.layer], one) for one in ranked if (graph, one.layer) not in kept]
        return [layer for _, layer in sorted(found, key=lambda pair: -pair[0])]

    def _ranked(self, variant: Variant, graph: str, method: Method) -> list[Kept]:
        """Return a graph's layers, the most sensitive first; see :meth:`_rank`."""
        key = variant, graph, method
        if key not in self._rankings:
            self._rankings[key] = self._rank(*key)
        return self._rankings[key]

    def _rank(self, variant: Variant, graph: str, method: Method) -> list[Kept]:
        """Measure a graph's layers, and return the most sensitive first.

        A layer's score is the error of the graph's outputs when it alone is INT8. For the worst layers, the error that
        is saved when it alone stays float is added: some layers do harm only together with those that follow.
        """
        model = self.float[graph]
        measured = Sensitivity(
            model, int8.stem(model), list(self.samples.batches(graph, self._workers.batch, RANKED_SAMPLES)),
            self._quantizer(variant, graph, method),
            lambda block: self._open(block, exact_int8=variant in EXACT_INT8), self._workers,
        )  # fmt: skip
        names, ranked = measured.layers, []
        for name, error in zip(names, measured.errors_alone(), strict=True):
            ranked.append(Kept(graph, name, "", error))
            self.progress(f"{variant}: each layer of the {graph} alone", len(ranked), len(names))
        ranked.sort(key=lambda layer: -layer.error_alone)
        worst = ranked[:TRIED_WITHOUT]
        for place, saved in enumerate(measured.errors_saved([layer.layer for layer in worst])):
            ranked[place] = replace(worst[place], error_saved=saved)
            self.progress(f"{variant}: the {graph} without each of its worst layers", place + 1, len(worst))
        return sorted(ranked, key=lambda layer: -_score(layer))

    # -- judging ------------------------------------------------------------------------------------------------------

    def judged(self, paths: Mapping[str, Path], what: str, variant: Variant) -> Difference:
        """Return how a model of the given graphs, and of the float model's for those not given, differs from it."""
        return self._compared(paths, what, variant).difference()

    def _compared(self, paths: Mapping[str, Path], what: str, variant: str) -> Comparison:
        """Return the same as :meth:`judged`, to be found as far as needed while the graphs are not dropped."""
        model, count = self._combinations.model(paths, variant), len(self.clips)
        earlier = self._right[tuple(sorted(paths))]
        right = {place: was_right for one in earlier for place, was_right in one.items()}
        order = sorted(range(count), key=lambda place: right.get(place, True))  # lost before, so likely to be again
        found = Comparison(
            model, self.clips, self.reference, lambda done: self.progress(what, done, count), self._workers, order
        )
        earlier.append(found.right)
        return found

    def _open(self, model: ModelProto, *, exact_int8: bool) -> OrtSession:
        path = self._write(model)
        try:
            return OrtSession(path, self._workers.threads_each, exact_int8=exact_int8)
        finally:
            path.unlink()

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


def _score(layer: Kept) -> float:
    """Return how sensitive a layer is."""
    return layer.error_alone + layer.error_saved


def _badness(judged: Difference) -> tuple[float, float, float]:
    """Return the sort key of a candidate: accuracy lost, then agreement of labels, then error of logits."""
    # A gain is due to chance, so it does not count in a candidate's favour.
    return max(judged.top1_drop, 0.0), -judged.label_agreement, judged.logit_error_mean


def _worst(costs: Mapping[str, Difference | Comparison]) -> str:
    """Return the graph with the largest loss; a loss is found only as far as this takes."""
    drops = {name: _drops(cost) for name, cost in costs.items()}
    while True:
        for name, (least, _) in drops.items():
            if all(least > most for other, (_, most) in drops.items() if other != name):
                return name
        unknown = {name: cost for name, cost in costs.items() if isinstance(cost, Comparison) and not cost.done}
        if not unknown:
            break
        name = max(unknown, key=lambda name: drops[name][1])
        unknown[name].advance()
        drops[name] = _drops(unknown[name])
    losses = {name: cost.difference() if isinstance(cost, Comparison) else cost for name, cost in costs.items()}
    return max(losses, key=lambda name: _badness(losses[name]))


def _drops(cost: Difference | Comparison) -> tuple[float, float]:
    """Return the least and the most accuracy that may be lost, as in :func:`_badness`."""
    drops = [cost.drop_if(right=right) for right in (True, False)] if isinstance(cost, Comparison) else [cost.top1_drop]
    return max(drops[0], 0.0), max(drops[-1], 0.0)
