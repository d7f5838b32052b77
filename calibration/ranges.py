"""Compute the range of every tensor of a graph from recorded inputs, by minimum and maximum, percentile, or entropy."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto

from adafocus_edge.backends.onnxruntime import session_options
from calibration.graphs import copy_of, float_tensors
from calibration.samples import Feeds

Method = Literal["minmax", "entropy", "percentile"]
METHODS: tuple[Method, ...] = get_args(Method)
BINS = 2048
MAX_COUNTED = 20_000
"""Values of one tensor counted per batch, evenly spread over it; minimum and maximum are those of all values."""
PERCENTILE = 99.99
"""Share of the values that ``percentile`` keeps, in percent; half of the rest is cut off at each end."""
LEVELS = 256
SHRINKS = np.linspace(1.0, 0.2, 81)
"""Shares of the range that ``entropy`` tries."""

Range = tuple[float, float]


@dataclass(frozen=True)
class Histogram:
    """The distribution of a tensor's values: ``counts`` int64 [BINS] over equal parts of ``low`` to ``high``."""

    low: float
    high: float
    counts: NDArray[np.int64]

    def range_by(self, method: Method) -> Range:
        """Return the range to quantize; it always includes 0."""
        low, high = min(self.low, 0.0), max(self.high, 0.0)
        if method == "minmax" or self.low == self.high:
            return low, high
        if method == "percentile":
            total = np.cumsum(self.counts)
            cut = (100 - PERCENTILE) / 200 * total[-1]
            width = (self.high - self.low) / BINS
            first = int(np.searchsorted(total, cut, side="right"))
            last = int(np.searchsorted(total, total[-1] - cut, side="left"))
            return min(self.low + first * width, 0.0), max(self.low + (last + 1) * width, 0.0)
        return self._least_entropy_lost(low, high)

    def _least_entropy_lost(self, low: float, high: float) -> Range:
        """Return the shrunk range whose quantized values have the distribution nearest to the true one.

        The measure is the Kullback-Leibler divergence between the clipped histogram and the same histogram with each
        quantization level's share spread evenly over that level's nonempty bins (as in TensorRT's entropy calibration;
        GTC 2017, S7310).
        """
        counts = self.counts.copy()
        if self.low <= 0 <= self.high:  # zeros are exact in any range, and after a ReLU they would dominate
            counts[min(int(-self.low / (self.high - self.low) * BINS), BINS - 1)] = 0
        if not counts.any():
            return low, high
        centres = self.low + (np.arange(BINS) + 0.5) * (self.high - self.low) / BINS
        held = counts > 0
        best, least = (low, high), np.inf
        for shrink in SHRINKS:
            bottom, top = low * shrink, high * shrink
            inside = (centres >= bottom) & (centres <= top)
            if not inside.any():
                break
            true = np.where(inside, counts, 0).astype(np.float64)
            places = np.flatnonzero(inside)
            true[places[0]] += counts[: places[0]].sum()
            true[places[-1]] += counts[places[-1] + 1 :].sum()
            level = np.clip(((centres - bottom) / (top - bottom) * LEVELS).astype(int), 0, LEVELS - 1)
            counted = np.where(inside, counts, 0)
            sums = np.bincount(level, counted, LEVELS)
            bins = np.bincount(level, inside & held, LEVELS)
            guess = np.where(inside & held, sums[level] / np.maximum(bins[level], 1), 0.0)
            lost = _divergence(true, guess)
            if lost < least:
                best, least = (bottom, top), lost
        return best


def _divergence(true: NDArray[np.float64], guess: NDArray[np.float64]) -> float:
    true, guess = true / true.sum(), guess / max(guess.sum(), 1e-12)
    held = true > 0
    return float((true[held] * np.log(true[held] / np.maximum(guess[held], 1e-9))).sum())


def histograms(
    model: ModelProto,
    feeds: Callable[[], Iterable[Feeds]],
    progress: Callable[[int], None] = lambda _: None,
    threads: int | None = None,
) -> dict[str, Histogram]:
    """Run a float graph twice over recorded inputs and count the values of each of its FP32 tensors.

    Args:
        model: float graph with the types of all tensors (:func:`calibration.graphs.load_graph`).
        feeds: returns the inputs, batch by batch, each time it is called.
        progress: called with the number of batches done in both passes.
        threads: CPU threads.
    """
    session, names = _every_tensor(model, threads)
    limits: dict[str, Range] = {}
    done = 0
    for batch in feeds():
        for name, values in _run(session, names, batch):
            low, high = limits.get(name, (np.inf, -np.inf))
            limits[name] = (min(low, float(values.min())), max(high, float(values.max())))
        done += 1
        progress(done)
    counts = {name: np.zeros(BINS, np.int64) for name in limits}
    for batch in feeds():
        for name, values in _run(session, names, batch):
            low, high = limits[name]
            flat = values.reshape(-1)
            flat = flat[:: flat.size // MAX_COUNTED | 1]  # an odd step, so that every column of an image is sampled
            scale = BINS / (high - low) if high > low else 0.0
            places = np.minimum(((flat - low) * scale).astype(np.int64), BINS - 1)
            counts[name] += np.bincount(places, minlength=BINS)
        done += 1
        progress(done)
    return {name: Histogram(*limits[name], counts[name]) for name in limits}


def _every_tensor(model: ModelProto, threads: int | None) -> tuple[ort.InferenceSession, list[str]]:
    """Open a graph with all its FP32 tensors as outputs; return the session and the outputs' names."""
    opened = copy_of(model)
    there = {tensor.name for tensor in (*opened.graph.output, *opened.graph.input)}
    opened.graph.output.extend(info for name, info in float_tensors(model).items() if name not in there)
    options = session_options(threads)
    session = ort.InferenceSession(opened.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, [output.name for output in session.get_outputs()]


def _run(session: ort.InferenceSession, names: list[str], batch: Feeds) -> Iterable[tuple[str, NDArray[np.float32]]]:
    for name, values in (*batch.items(), *zip(names, session.run(names, batch), strict=True)):
        if values.dtype == np.float32 and values.size:
            yield name, values
