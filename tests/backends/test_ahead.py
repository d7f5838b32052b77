"""Recurrent graphs in two parts: the same numbers as the whole graph, and no split where the numbers would change."""

from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from adafocus_edge.backends import ahead
from adafocus_edge.backends.ahead import split_ahead
from adafocus_edge.backends.base import SplitSession
from adafocus_edge.backends.onnxruntime import OrtSession, OrtSplitSession, open_on_cpu
from adafocus_edge.backends.openvino import openvino_obstacle
from adafocus_edge.backends.registry import load_model
from adafocus_edge.benchmark.timing import timed
from adafocus_edge.bundle.store import default_bundle, read_bundle
from adafocus_edge.errors import BackendError
from adafocus_edge.media.frames import ModelFrame
from adafocus_edge.model.spec import STATES
from adafocus_edge.runtime.glimpse import AHEAD, GlimpseStream, see_clip
from adafocus_edge.runtime.lanes import HostLanes, Lanes
from tests.conftest import GOLDEN
from tests.training.test_model import frames_of

FRAMES = frames_of(GOLDEN / "actnet96")


@pytest.fixture
def split_all(monkeypatch):
    """Split recurrent graphs of any size."""
    monkeypatch.setattr(ahead, "SPLIT_BYTES", 0)


def needed_backends():
    """Return the backends on the CPU that are installed."""
    return ["onnxruntime-cpu", *(["openvino"] if openvino_obstacle() is None else [])]


@pytest.fixture(params=["default", "small", "v2"])
def bundle(request, small_bundle, v2_bundle):
    return {"default": default_bundle(), "small": small_bundle, "v2": v2_bundle}[request.param]


def inputs_of(session, rows):
    generator = np.random.default_rng(3)
    return {t.name: generator.standard_normal((rows, *t.shape[1:]), np.float32) for t in session.inputs}


@pytest.mark.parametrize("graph", sorted(STATES))
def test_parts_are_valid_graphs_that_share_the_weights_and_the_numbers(bundle, graph):
    path = bundle / "fp32" / f"{graph}.onnx"
    split, state = split_ahead(path.read_bytes(), STATES[graph]), STATES[graph]
    assert split is not None
    first, rest = (onnx.load_from_string(content) for content in (split.ahead, split.rest))
    for part in (first, rest):
        onnx.checker.check_model(part, full_check=True)
    assert not any(state in node.input for node in first.graph.node)
    whole = onnx.load(path)
    assert {node.name for node in first.graph.node} | {node.name for node in rest.graph.node} == {
        node.name for node in whole.graph.node
    }
    weights = [[weight.name for weight in part.graph.initializer] for part in (first, rest)]
    assert {*weights[0], *weights[1]} <= {weight.name for weight in whole.graph.initializer}
    assert split.moved_bytes > sum(w.ByteSize() for w in whole.graph.initializer if w.name in set(weights[0])) > 0

    session, parts = OrtSession(path, 1), OrtSplitSession(partial(OrtSession, path, 1), split, state)
    assert {t.name: t for t in parts.inputs} == {t.name: t for t in session.inputs}
    assert {t.name: t for t in parts.outputs} == {t.name: t for t in session.outputs}
    feeds = inputs_of(session, 5)
    expected, found = session.run(feeds), parts.run(feeds)
    prepared = parts.ahead({name: value for name, value in feeds.items() if name != state})
    by_row = [
        parts.follow({**{n: v[row : row + 1] for n, v in prepared.items()}, state: feeds[state][row : row + 1]})
        for row in range(5)
    ]
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, atol=1e-6)
        np.testing.assert_allclose(np.concatenate([made[name] for made in by_row]), value, atol=1e-6)
    parts.close()


@pytest.mark.parametrize("backend", needed_backends())
def test_clips_streams_and_lanes_are_the_same_with_split_graphs(bundle, backend, monkeypatch):
    opened = read_bundle(bundle)
    side = opened.spec.frame_size
    noise = np.random.default_rng(1).integers(0, 256, (AHEAD + 3, side, side, 3), np.uint8)
    frames = ModelFrame.of(noise, opened.spec)
    with load_model(opened, "fp32", backend, 1) as whole:
        expected = list(see_clip(whole, frames))
    monkeypatch.setattr(ahead, "SPLIT_BYTES", 0)
    with load_model(opened, "fp32", backend, 1) as loaded:
        assert isinstance(loaded.policy, SplitSession)
        assert isinstance(loaded.classifier, SplitSession)
        found = list(see_clip(loaded, frames))
        stream, lanes = GlimpseStream(loaded), Lanes(loaded, 1) if backend == "onnxruntime-cpu" else HostLanes(loaded)
        lane = lanes.join()
        for step, glimpse in enumerate(expected):
            stepped, laned = stream.see(frames[step : step + 1]), lanes.step({lane: frames[step]})[lane]
            for one in (found[step], stepped, laned):
                np.testing.assert_array_equal(one.origins, glimpse.origins)
                np.testing.assert_allclose(one.logits, glimpse.logits, atol=1e-4)
        lanes.leave(lane)
    assert len(found) == AHEAD + 3


def test_a_clip_reads_what_is_ahead_once_and_the_rest_once_a_frame(split_all, small_bundle):
    calls = []
    with load_model(read_bundle(small_bundle), "fp32", "cpu", 1) as loaded:
        for graph in STATES:
            session = getattr(loaded, graph)
            for part in (session._ahead, session._rest):
                part.run = lambda feeds, run=part.run, name=(graph, part is session._ahead): (
                    calls.append((*name, len(next(iter(feeds.values()))))) or run(feeds)
                )
        assert len(list(see_clip(loaded, FRAMES[:6]))) == 6
    assert [call for call in calls if call[1]] == [("policy", True, 6), ("classifier", True, 6)]
    assert [call for call in calls if not call[1]] == [("policy", False, 1)] * 6 + [("classifier", False, 1)] * 6


def test_only_graphs_with_many_weights_are_split(golden_bundle):
    with load_model(read_bundle(golden_bundle), "fp32", "cpu", 1) as loaded:
        assert isinstance(loaded.policy, SplitSession)
        assert isinstance(loaded.classifier, SplitSession)
        assert not isinstance(loaded.focuser, SplitSession)
    with load_model(read_bundle(default_bundle()), "fp32", "cpu", 1) as loaded:
        assert not isinstance(loaded.classifier, SplitSession)


def test_time_of_both_parts_is_measured(split_all, small_bundle):
    with load_model(read_bundle(small_bundle), "fp32", "cpu", 1) as loaded:
        session = timed(loaded.classifier)
        assert isinstance(session, SplitSession)
        list(see_clip(replace(loaded, classifier=session), FRAMES[:4]))
        first = session.inside_s
        session.run(inputs_of(session, 1))
        assert session.inside_s > first > 0
        assert not isinstance(timed(loaded.glancer), SplitSession)


def test_rows_that_are_quantized_by_the_range_of_their_batch_are_not_independent(split_all):
    with load_model(read_bundle(default_bundle()), "int8-cpu", "cpu", 1) as loaded:
        assert not isinstance(loaded.classifier, SplitSession)


# -- graphs that no exporter of ours makes -------------------------------------------------------------------------


def model_of(nodes, outputs=("out",), between_shape=("N", 4), extra=()):
    value = helper.make_tensor_value_info
    described = [value("y", TensorProto.FLOAT, between_shape)] if between_shape else []
    graph = helper.make_graph(
        nodes, "g", [value("x", TensorProto.FLOAT, ["N", 4]), value("state", TensorProto.FLOAT, ["N", 4])],
        [value(name, TensorProto.FLOAT, ["N", 4]) for name in outputs],
        initializer=[numpy_helper.from_array(np.eye(4, dtype=np.float32), "w"), *extra], value_info=described,
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def node(operator, reads, makes, **attributes):
    return helper.make_node(operator, reads, makes, name=f"make_{makes[0]}", **attributes)


SIMPLE = [node("MatMul", ["x", "w"], ["y"]), node("Add", ["y", "state"], ["out"])]


def test_a_simple_graph_is_split():
    split = split_ahead(model_of(SIMPLE).SerializeToString(), "state")
    assert [n.op_type for n in onnx.load_from_string(split.ahead).graph.node] == ["MatMul"]
    assert [n.op_type for n in onnx.load_from_string(split.rest).graph.node] == ["Add"]
    assert not onnx.load_from_string(split.rest).graph.initializer


def test_an_input_that_the_rest_reads_itself_passes_by(tmp_path):
    nodes = [*SIMPLE[:1], node("Add", ["y", "state"], ["z"]), node("Mul", ["z", "x"], ["out"])]
    content = model_of(nodes).SerializeToString()
    (tmp_path / "g.onnx").write_bytes(content)
    session = OrtSplitSession(partial(OrtSession, tmp_path / "g.onnx", 1), split_ahead(content, "state"), "state")
    x, state = np.float32([[1, 2, 3, 4]]), np.float32([[10, 20, 30, 40]])
    np.testing.assert_array_equal(session.run({"x": x, "state": state})["out"], (x + state) * x)
    assert sorted(t.name for t in session.inputs) == ["state", "x"]


@pytest.mark.parametrize(
    ("nodes", "changes"),
    [
        pytest.param([node("Add", ["x", "state"], ["out"])], {}, id="nothing ahead"),
        pytest.param([*SIMPLE, node("Relu", ["y"], ["early"])], {"outputs": ("out", "early")}, id="an output is ahead"),
        pytest.param(SIMPLE, {"between_shape": (1, 4)}, id="one row for all frames"),
        pytest.param(SIMPLE, {"between_shape": None}, id="unknown shape"),
        pytest.param(SIMPLE, {"between_shape": ("M", 4)}, id="rows that are no clips"),
        pytest.param(
            [node("Shape", ["x"], ["y"]), node("Reshape", ["state", "y"], ["out"])],
            {"between_shape": (2,)}, id="the batch itself",
        ),
        pytest.param(
            [node("DynamicQuantizeLinear", ["x"], ["y", "scale", "zero"]),
             node("DequantizeLinear", ["y", "scale", "zero"], ["d"]), node("Add", ["d", "state"], ["out"])],
            {}, id="rows depend on the batch",
        ),
        pytest.param(
            [node("If", ["flag"], ["y"], **{
                branch: helper.make_graph(
                    [node("Identity", ["x"], ["inner"])], "b", [],
                    [helper.make_tensor_value_info("inner", TensorProto.FLOAT, ["N", 4])],
                ) for branch in ("then_branch", "else_branch")}),
             node("Add", ["y", "state"], ["out"])],
            {"extra": (numpy_helper.from_array(np.array(True), "flag"),)}, id="control flow",
        ),
    ],
)  # fmt: skip
def test_graphs_that_stay_whole(nodes, changes):
    content = model_of(nodes, **changes).SerializeToString()
    assert split_ahead(content, "state") is None


def test_what_is_not_a_model_is_reported_by_the_one_who_opens_it(split_all, small_bundle, tmp_path):
    content = (small_bundle / "fp32" / "classifier.onnx").read_bytes()
    with pytest.raises(ValueError, match="not an ONNX model"):
        split_ahead(content[: len(content) // 2], "state")
    for number, wrong in enumerate((content[: len(content) // 2], b"", b"\xff" * 100, b"no model")):
        path = tmp_path / f"{number}.onnx"
        path.write_bytes(wrong)
        with pytest.raises(BackendError, match=f"{number}.onnx"):
            open_on_cpu(path, "classifier", 1)
    with pytest.raises(BackendError, match="missing.onnx"):
        open_on_cpu(tmp_path / "missing.onnx", "classifier", 1)
