"""Measure what each kind of layer costs in a clip, against the most that this machine's cores can do.

Usage: python -m benchmarks.layers [NAME=BUNDLE ...] [--threads 1] [--rounds 5]

Without bundles: the default model, and an official one with deterministic weights (FP32 only). Every variant for CPUs
runs in ONNX Runtime as the clip schedule runs it under ONNX Runtime's profiler, which times every node after its
optimisations: the glancer and the focuser on several frames, the policy and the classifier on one, or in two parts, of
which the first sees all frames.

The peak is the rate of a large matrix product in ONNX Runtime with as many threads, once in FP32 and once of U8 and S8:
no kernel of these types does more. Both are measured before each round; the best counts. A node's time is the median of
its runs, and the least of the rounds; the profiler itself adds some microseconds to each node.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from adafocus_edge.backends.ahead import split_of
from adafocus_edge.backends.loaded import CPU_BATCH
from adafocus_edge.backends.onnxruntime import OrtSession, session_options
from adafocus_edge.bundle.manifest import Bundle
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.model.spec import GRAPHS, TensorSpec
from benchmarks.machine import save
from benchmarks.official import cached_export
from calibration.profile import CONVOLUTIONS, TimedNode, convolution_kind, time_nodes

PRODUCTS = (
    "Gemm", "FusedGemm", "MatMul", "FusedMatMul", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul",
    "QGemm", "QLinearMatMul",
)  # fmt: skip
"""Operators that are products of matrices, after ONNX Runtime's optimisations."""
INT8_OPERATORS = ("QLinearConv", "MatMulInteger", "MatMulIntegerToFloat", "DynamicQuantizeMatMul", "QGemm",
                  "QLinearMatMul")  # fmt: skip
SEEING = ("glancer", "focuser")
PIXELS, PRODUCT, OTHERS = "pixels: crop, resize, normalisation", "matrix product", "everything else"
CPU_VARIANTS = ("fp32", "int8-cpu")
PEAK_SIZE = 1536
"""Side of the square matrices of the peak: 9 MB each in FP32, more than the caches hold."""


@dataclass(frozen=True)
class KindCost:
    """The nodes of one kind in one graph, for a whole clip.

    Attributes:
        graph: name of the graph.
        kind: kind of the nodes.
        type: ``int8`` or ``fp32``, what they compute in.
        nodes: their number.
        gmacs: multiply-adds, in units of 1e9; 0 for other arithmetic.
        ms: milliseconds.
    """

    graph: str
    kind: str
    type: str
    nodes: int
    gmacs: float
    ms: float


def main() -> None:
    """Measure, print and write ``results/layers.json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundles", nargs="*", metavar="NAME=BUNDLE")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    given = dict(entry.split("=", 1) for entry in options.bundles)
    places = {name: Path(path) for name, path in given.items()} or {
        "default": default_bundle(), "official": cached_export() / "bundle",
    }  # fmt: skip
    bundles = {name: read_bundle(place) for name, place in places.items()}
    peaks: dict[str, float] = {}
    costs: dict[tuple[str, str], list[KindCost]] = {}
    for _ in range(options.rounds):
        for number, speed in measured_peaks(options.threads).items():
            peaks[number] = max(peaks.get(number, 0.0), speed)
        for name, bundle in bundles.items():
            for variant, measured in clip_costs(bundle, options.threads).items():
                costs[name, variant] = faster(costs.get((name, variant)), measured)
    print("peak: " + ", ".join(f"{kind} {rate:.0f} G multiply-adds per second" for kind, rate in peaks.items()))
    models = []
    for (name, variant), found in costs.items():
        print(f"{name} {variant}: {sum(one.ms for one in found):.1f} ms per clip")
        rows = [row_of(one, found, peaks) for one in sorted(found, key=lambda one: -one.ms)]
        for row in rows:
            rate = f"{row['gmacs_per_s']:8.1f} G/s {row['of_peak']:5.0%} of peak" if row["gmacs"] else ""
            print(f"  {row['graph']:11}{row['kind']:38}{row['type']:5}{row['ms']:8.2f} ms {row['share']:5.0%}{rate}")
        models.append({"model": name, "variant": variant, "patch_size": bundles[name].spec.patch_size, "rows": rows})
    command = " ".join(["python -m benchmarks.layers", *(f"{name}=BUNDLE" for name in given)])
    what = "time of each kind of layer in a clip, against the rate of a large matrix product in the same run"
    report = {"what": what, "command": f"{command} --threads {options.threads} --rounds {options.rounds}"}
    peak = {kind: round(rate, 1) for kind, rate in peaks.items()}
    path = save("layers", {**report, "threads": options.threads, "peak_gmacs_per_s": peak, "models": models})
    print(f"written to {path}")


def row_of(one: KindCost, of: list[KindCost], peaks: dict[str, float]) -> dict[str, Any]:
    """Return a row of the report: a cost with its share of the clip's time, its rate, and its share of the peak."""
    rate = one.gmacs / one.ms * 1e3
    return asdict(one) | {
        "gmacs": round(one.gmacs, 4),
        "ms": round(one.ms, 3),
        "share": round(one.ms / sum(each.ms for each in of), 4),
        "gmacs_per_s": round(rate, 2),
        "of_peak": round(rate / peaks[one.type], 4),
    }


def faster(one: list[KindCost] | None, other: list[KindCost]) -> list[KindCost]:
    """Return the costs of the faster of two runs, kind by kind."""
    return [min(pair, key=lambda cost: cost.ms) for pair in zip(one or other, other, strict=True)]


def clip_costs(bundle: Bundle, threads: int) -> dict[str, list[KindCost]]:
    """Return the cost of every kind of layer of each variant for CPUs, for a clip of the model's length."""
    weights: dict[str, list[tuple[int, ...]]] = {}
    return {
        variant: _variant_costs(bundle, variant, threads, weights)
        for variant in CPU_VARIANTS
        if variant in bundle.manifest.variants
    }


def _variant_costs(
    bundle: Bundle, variant: str, threads: int, weights: dict[str, list[tuple[int, ...]]]
) -> list[KindCost]:
    """Return the costs of one variant; ``weights`` keeps the shapes of FP32's convolutions by graph."""
    frames = bundle.spec.segments
    costs = []
    for graph in GRAPHS:
        path = bundle.path / variant / f"{graph}.onnx"
        with tempfile.TemporaryDirectory() as folder:
            timed = [
                (node, many)
                for part, many in _parts(path, graph, frames, Path(folder))
                for node in time_nodes(part, {each.name: some_values(each, many) for each in _inputs(part)}, threads)
            ]
        nodes = [node for node, _ in timed]
        if variant == "fp32":
            weights[graph] = [node.weight for node in nodes if node.operator in CONVOLUTIONS]
        kinds: dict[tuple[str, str], list[tuple[TimedNode, int, float]]] = {}
        for (node, kind, count), (_, many) in zip(sorted_out(graph, nodes, weights[graph]), timed, strict=True):
            type_ = "int8" if node.operator in INT8_OPERATORS else "fp32"
            shown = f"{kind}, all frames at once" if kind == PRODUCT and many > 1 else kind
            kinds.setdefault((shown, type_), []).append((node, count, frames / many))
        costs += [
            KindCost(
                graph=graph,
                kind=kind,
                type=type_,
                nodes=len(found),
                gmacs=sum(count * runs for _, count, runs in found) / 1e9,
                ms=sum(node.ms * runs for node, _, runs in found),
            )
            for (kind, type_), found in kinds.items()
        ]
    return costs


def _parts(path: Path, graph: str, frames: int, folder: Path) -> list[tuple[Path, int]]:
    """Return the graphs that the clip schedule runs in place of one of the four, and how many frames each sees."""
    if graph in SEEING:
        return [(path, min(CPU_BATCH, frames))]
    split = split_of(path, graph)
    if split is None:
        return [(path, 1)]
    parts = [(folder / "ahead.onnx", frames), (folder / "rest.onnx", 1)]
    for (part, _), content in zip(parts, (split.ahead, split.rest), strict=True):
        part.write_bytes(content)
    return parts


def _inputs(path: Path) -> tuple[TensorSpec, ...]:
    session = OrtSession(path, 1)
    session.close()
    return session.inputs


def some_values(tensor: TensorSpec, batch: int) -> np.ndarray:
    """Return values in the shape and type of an input."""
    shape = tuple(batch if size == "N" else int(size) for size in tensor.shape)
    random = np.random.default_rng(0)
    return random.integers(0, 256, shape, np.uint8) if tensor.dtype == "uint8" else random.random(shape, np.float32)


def sorted_out(
    graph: str, nodes: list[TimedNode], weights: list[tuple[int, ...]]
) -> Iterator[tuple[TimedNode, str, int]]:
    """Yield every node of a graph with its kind and its number of multiply-adds, in execution order.

    Channels that a blocked layout adds to fill its last block are counted: the kernel computes them.

    Args:
        graph: name of the graph.
        nodes: the nodes.
        weights: shapes of the convolutions' weights, in their order; ONNX Runtime hides those of packed INT8 weights.
    """
    remaining, pixels = iter(weights), graph in SEEING
    for node in nodes:
        if node.operator in CONVOLUTIONS:
            weight, pixels = next(remaining), False
            yield node, convolution_kind(weight), math.prod(node.makes) * math.prod(weight[1:])
        elif node.operator in PRODUCTS:
            yield node, PRODUCT, math.prod(node.makes) * node.takes[0][-1]
        else:
            yield node, PIXELS if pixels else OTHERS, 0


def measured_peaks(threads: int) -> dict[str, float]:
    """Return the rates of large products of matrices, in 1e9 multiply-adds per second, by type."""
    random = np.random.default_rng(0)
    left = random.integers(0, 128, (PEAK_SIZE, PEAK_SIZE), np.uint8)
    right = random.integers(-64, 64, (PEAK_SIZE, PEAK_SIZE), np.int8)  # as with reduce_range: no sum overflows
    floats = (left.astype(np.float32), right.astype(np.float32))
    return {
        "fp32": _product_rate("MatMul", *floats, threads),
        "int8": _product_rate("MatMulInteger", left, right, threads),
    }


def _product_rate(operator: str, left: np.ndarray, right: np.ndarray, threads: int) -> float:
    """Return the best rate of a product whose right matrix is a weight, in 1e9 multiply-adds per second."""
    made = TensorProto.INT32 if operator == "MatMulInteger" else TensorProto.FLOAT
    kind = helper.np_dtype_to_tensor_dtype(left.dtype)
    graph = helper.make_graph(
        [helper.make_node(operator, ["left", "right"], ["product"])],
        "peak",
        [helper.make_tensor_value_info("left", kind, left.shape)],
        [helper.make_tensor_value_info("product", made, left.shape)],
        [onnx.numpy_helper.from_array(right, "right")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    session = ort.InferenceSession(
        model.SerializeToString(), session_options(threads), providers=["CPUExecutionProvider"]
    )
    times = []
    for _ in range(5):
        started = time.perf_counter()
        session.run(None, {"left": left})
        times.append(time.perf_counter() - started)
    return float(PEAK_SIZE**3 / 1e9 / min(times))


if __name__ == "__main__":
    main()
