"""Graphs and their ranges, for the tests of calibration."""

from pathlib import Path

import onnx

from adafocus_edge.backends.onnxruntime import OrtSession
from calibration.graphs import load_graph, save_graph
from calibration.ranges import histograms
from tests.conftest import ROOT

FIGHTS = ROOT / "tests" / "fights"


def graph_of(bundle: Path, name: str) -> onnx.ModelProto:
    return load_graph(bundle / "fp32" / f"{name}.onnx")


def run_graph(model: onnx.ModelProto, feeds, path: Path):
    save_graph(model, path)
    session = OrtSession(path)
    return session.run(feeds)


def ranges_of(graph, samples, name, method="minmax"):
    found = histograms(graph, lambda: samples.batches(name))
    return {tensor: histogram.range_by(method) for tensor, histogram in found.items()}
