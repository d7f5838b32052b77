"""Ranges of tensors, and graphs in INT8 as ONNX Runtime computes them on a CPU."""

import os

import numpy as np
import onnx
import onnxruntime
import pytest

from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.bundle.store import default_bundle
from calibration import int8
from calibration.graphs import copy_of, float_tensors, layers, load_graph, producers, save_graph
from calibration.profile import layer_times
from calibration.ranges import BINS, Histogram, histograms
from tests.calibration.helpers import graph_of, ranges_of, run_graph

# -- ranges -----------------------------------------------------------------------------------------------------------


def test_every_tensor_is_measured(samples, tmp_path):
    graph = graph_of(default_bundle(), "focuser")
    found = histograms(graph, lambda: samples.batches("focuser", 5))
    last = run_graph(graph, dict(samples.of["focuser"].items()), tmp_path / "g.onnx")["focus"]
    assert found["focus"].low == pytest.approx(last.min(), rel=1e-4, abs=1e-5)
    assert found["focus"].high == pytest.approx(last.max(), rel=1e-4)
    assert set(float_tensors(graph)) <= set(found)
    assert found["origin"].counts.sum() == 2 * 12
    clipped = [node.output[0] for node in graph.graph.node if node.op_type == "Clip"]
    assert all(found[name].low >= 0 and found[name].high <= 6 for name in clipped)


def test_ranges_by_each_method():
    counts = np.zeros(BINS, np.int64)
    counts[: BINS // 4] = 1000  # 512 bins of much
    counts[-1] = 1  # and one value far off
    histogram = Histogram(0.0, 8.0, counts)
    assert histogram.range_by("minmax") == (0.0, 8.0)
    assert histogram.range_by("percentile")[1] == pytest.approx(2.0, abs=0.02)
    random = np.random.default_rng(0)
    spread = np.histogram(np.abs(random.normal(0, 0.3, 100_000)), BINS, (0, 8))[0]
    spread[-1] += 1
    assert 1.2 <= Histogram(0.0, 8.0, spread).range_by("entropy")[1] <= 3  # four to ten deviations, not 27
    assert Histogram(2.0, 8.0, counts).range_by("minmax") == (0.0, 8.0)  # zero is always in it
    assert Histogram(0.0, 0.0, counts).range_by("entropy") == (0.0, 0.0)
    zeros = np.zeros(BINS, np.int64)
    zeros[0] = 10**9  # after a ReLU; they are exact in any range and must not draw it together
    assert Histogram(0.0, 8.0, zeros + np.arange(BINS)[::-1]).range_by("entropy")[1] > 4


# -- INT8 on a CPU ----------------------------------------------------------------------------------------------------


def test_raw_pixels_give_what_normalised_ones_do(samples, tmp_path):
    """The folded graph, still in floats, equals the original but for the convolution's padded border."""
    graph = graph_of(default_bundle(), "glancer")
    folded = int8._with_raw_pixels(graph)
    assert folded is not None
    first = [next(n for n in g.graph.node if n.op_type == "Conv").output[0] for g in (graph, folded)]
    outputs = []
    for number, (model, name) in enumerate(zip((graph, folded), first, strict=True)):
        opened = copy_of(model)
        opened.graph.output.append(float_tensors(model)[name])
        made = run_graph(opened, {"frame": samples.of["glancer"]["frame"][:2]}, tmp_path / f"{number}.onnx")
        outputs.append(made[name])
    inside = [out[:, :, 1:-1, 1:-1] for out in outputs]
    np.testing.assert_allclose(*inside, atol=1e-4 * np.abs(outputs[0]).max())
    border = np.abs(outputs[0] - outputs[1]).max() / np.abs(outputs[0]).max()
    assert border < 0.25


@pytest.mark.parametrize("name", ["glancer", "focuser"])
def test_every_convolution_becomes_an_integer_one(name, samples, tmp_path):
    """As ONNX Runtime's CPU provider sees it after its own optimisations; the stem stays float."""
    graph = graph_of(default_bundle(), name)
    made = int8.for_cpu(graph, ranges_of(graph, samples, name), reduce_range=True, skip=int8.stem(graph))
    save_graph(made, tmp_path / "int8.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(tmp_path / "int8.onnx"), options, providers=["CPUExecutionProvider"])
    operators = [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]
    assert operators.count("QLinearConv") == len(layers(graph)) - 3
    assert operators.count("QLinearAdd") == 10
    assert len(int8.quantized_layers(made)) == len(layers(graph)) - 3
    session, reference = OrtSession(tmp_path / "int8.onnx"), OrtSession(default_bundle() / "fp32" / f"{name}.onnx")
    assert (session.inputs, session.outputs) == (reference.inputs, reference.outputs)
    feeds = dict(samples.of[name].items())
    found, expected = (s.run(feeds)[reference.outputs[-1].name] for s in (session, reference))
    assert np.linalg.norm(found - expected) < 0.25 * np.linalg.norm(expected)
    weights = [onnx.numpy_helper.to_array(w) for w in made.graph.initializer if w.data_type == onnx.TensorProto.INT8]
    assert max(np.abs(w).max() for w in weights) <= 64  # seven bits


def test_a_network_without_depthwise_layers_takes_bytes(small, tmp_path):
    """ResNet has no stem to keep: its first convolution reads the frame's own bytes."""
    graph = load_graph(small.graph_path("fp32", "focuser"))
    assert int8.stem(graph) == []
    random = np.random.default_rng(0)
    feeds = {"frame": random.integers(0, 256, (3, 224, 224, 3), np.uint8), "origin": random.random((3, 2), np.float32)}
    found = histograms(graph, lambda: [feeds])
    ranges = {name: histogram.range_by("minmax") for name, histogram in found.items()}
    made = int8.for_cpu(graph, ranges, reduce_range=False)
    first = next(node for node in made.graph.node if node.op_type == "Conv")
    dequantize = producers(made)[first.input[0]]
    assert dequantize.op_type == "DequantizeLinear"
    assert producers(made)[dequantize.input[0]].op_type == "Transpose"  # of the cropped bytes
    assert not [node for node in made.graph.node if node.op_type == "Div"]
    outputs = [run_graph(m, feeds, tmp_path / f"{n}.onnx")["focus"] for n, m in enumerate((graph, made))]
    assert np.linalg.norm(outputs[0] - outputs[1]) < 0.1 * np.linalg.norm(outputs[0])
    # One layer alone, and all but one.
    name = layers(graph)[3]
    assert int8.quantized_layers(int8.for_cpu(graph, ranges, reduce_range=False, only=[name])) == [name]
    rest = int8.quantized_layers(int8.for_cpu(graph, ranges, reduce_range=False, skip=[name]))
    assert rest == [layer for layer in layers(graph) if layer != name]


def test_recurrent_weights_are_bytes(small, samples, tmp_path):
    for name in ("policy", "classifier"):
        graph = graph_of(default_bundle(), name)
        made = int8.weights_only(graph, reduce_range=True)
        feeds = dict(samples.of[name].items())
        outputs = [run_graph(m, feeds, tmp_path / f"{name}{n}.onnx") for n, m in enumerate((graph, made))]
        state = "policy_state_out" if name == "policy" else "state_out"
        np.testing.assert_allclose(outputs[0][state], outputs[1][state], atol=0.1)
        assert {node.op_type for node in made.graph.node} >= {"MatMulInteger", "DynamicQuantizeLinear"}
        assert os.path.getsize(tmp_path / f"{name}1.onnx") < 0.5 * os.path.getsize(tmp_path / f"{name}0.onnx")


def test_layer_times_cover_every_layer(samples, tmp_path):
    graph = graph_of(default_bundle(), "glancer")
    made = int8.for_cpu(graph, ranges_of(graph, samples, "glancer"), reduce_range=True, skip=int8.stem(graph))
    save_graph(graph, tmp_path / "float.onnx")
    save_graph(made, tmp_path / "int8.onnx")
    entries = layer_times(tmp_path / "float.onnx", tmp_path / "int8.onnx", next(samples.batches("glancer")), None)
    assert {entry.kind: entry.layers for entry in entries} == {
        "3 x 3 of 3 channels": 1, "depthwise 3 x 3": 17, "1 x 1": 34, "everything else": 0,
    }  # fmt: skip
    assert all(entry.fp32_ms > 0 and entry.int8_ms > 0 for entry in entries)
    assert sum(len(entry.each) for entry in entries) == 52


def test_signed_bytes_are_added_exactly_where_a_device_would(tmp_path):
    """On a CPU without VNNI the kernels overflow; the int8-trt variant is judged as a TensorRT device computes it."""
    from onnx import TensorProto, helper, numpy_helper

    constants = {
        "scale": np.array(1.0, np.float32), "zero": np.array(0, np.int8),
        "weight": np.full((1, 64, 1, 1), 127, np.int8), "weight_scale": np.ones(1, np.float32),
        "out_scale": np.array(2.0**14, np.float32),
    }  # fmt: skip
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "scale", "zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["weight", "weight_scale"], ["w"], axis=0),
        helper.make_node("Conv", ["xd", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "out_scale", "zero"], ["cq"]),
        helper.make_node("DequantizeLinear", ["cq", "out_scale", "zero"], ["y"]),
    ]
    shapes = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", c, 4, 4]) for n, c in (("x", 64), ("y", 1))]
    weights = [numpy_helper.from_array(values, name) for name, values in constants.items()]
    graph = helper.make_graph(nodes, "g", shapes[:1], shapes[1:], initializer=weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g.onnx")
    session = OrtSession(tmp_path / "g.onnx", exact_int8=True)
    made = session.run({"x": np.full((1, 64, 4, 4), 127, np.float32)})["y"]
    assert made == pytest.approx(np.full((1, 1, 4, 4), 64 * 127 * 127), abs=2**13)
