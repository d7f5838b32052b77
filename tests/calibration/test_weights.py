"""Graphs quantized without their weights, which are put in at the end: the same as ONNX Runtime's quantizer makes."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

from adafocus_edge.bundle.store import default_bundle
from calibration import int8, weights
from calibration.blocks import Blocks
from calibration.graphs import float_tensors, initializers, layers
from calibration.weights import Hollow, QuantizedWeights
from tests.calibration.helpers import graph_of

MAKE: dict[str, Any] = {
    "cpu": lambda *given, **more: int8.for_cpu(*given, reduce_range=False, **more),
    "cpu, 7 bits": lambda *given, **more: int8.for_cpu(*given, reduce_range=True, **more),
    "tensorrt": int8.for_tensorrt,
}


def as_bytes(model: onnx.ModelProto) -> bytes:
    for weight in model.graph.initializer:
        weight.ClearField("data_location")  # the default, which ONNX Runtime writes out
    return model.SerializeToString(deterministic=True)


@pytest.fixture
def plainly(monkeypatch):
    """A function that quantizes a graph by ONNX Runtime's own quantizer, as a whole and with all its values."""

    def make(target, *given, **more):
        with monkeypatch.context() as patch:
            patch.setattr(weights, "REPLACEABLE", False)
            patch.setattr(int8, "LightQuantizer", lambda hollow, known, *others: QDQQuantizer(hollow.model, *others))
            return MAKE[target](*given, **more)

    return make


def random_ranges(graph: onnx.ModelProto, seed: int, scale: float = 1.0) -> dict[str, tuple[float, float]]:
    random = np.random.default_rng(seed)
    return {
        name: (-scale * float(random.random()), 6 * scale * float(random.random()))
        for name in sorted(float_tensors(graph))
    }


@pytest.mark.parametrize("target", MAKE)
def test_the_graph_is_the_one_of_the_plain_quantizer(target, plainly):
    """For any choice of layers, and with other ranges, from weights that are shared by all of them."""
    graph = graph_of(default_bundle(), "glancer")
    every, known = layers(graph), QuantizedWeights()
    choices: list[tuple[Any, Any]] = [
        (None, int8.stem(graph)),
        (None, every[1::2]),
        ([every[4]], ()),
        ([every[0], every[-1]], ()),
        (None, every[:1]),
    ]
    for seed, (only, skip) in enumerate(choices):
        ranges = random_ranges(graph, seed)
        made = MAKE[target](graph, ranges, only=only, skip=skip, known=known)
        assert as_bytes(made) == as_bytes(plainly(target, graph, ranges, only=only, skip=skip)), (only, skip)
    quantized = [key for key in known.values if key[0] in initializers(graph)]
    assert len(quantized) >= len(every) - 1  # the first layer's are folded with the pixels' normalisation


def test_the_scales_of_weights_follow_a_large_bias(plainly):
    """The quantizer widens a weight's scale where its bias would overflow: that depends on the ranges."""
    graph = graph_of(default_bundle(), "focuser")
    known = QuantizedWeights()
    made = []
    for seed, scale in ((0, 1.0), (1, 1e-7), (0, 1.0)):
        ranges = random_ranges(graph, seed, scale)
        made.append(MAKE["cpu"](graph, ranges, known=known))
        assert as_bytes(made[-1]) == as_bytes(plainly("cpu", graph, ranges)), scale
    scales = [initializers(one) for one in made]
    widened = [name for name in scales[0] if name.endswith("weight_scale") and scales[0][name] != scales[1][name]]
    assert len(widened) > 10


@pytest.mark.parametrize("target", MAKE)
def test_blocks_share_the_weights_of_the_whole_graph(target, plainly):
    graph = graph_of(default_bundle(), "focuser")
    ranges, known = random_ranges(graph, 5), QuantizedWeights()
    MAKE[target](graph, ranges, known=known)
    computed = dict(known.values)
    for block in list(Blocks(graph))[:8]:
        assert as_bytes(MAKE[target](block, ranges, known=known)) == as_bytes(plainly(target, block, ranges))
    assert all(known.values[key] is kept for key, kept in computed.items())
    assert len(known.values) <= len(computed) + 1


def test_a_hollow_graph_gets_all_its_values_back():
    graph = graph_of(default_bundle(), "glancer")
    hollow = Hollow(graph)
    assert len(hollow.full) == len(layers(graph))
    assert hollow.model.ByteSize() < graph.ByteSize() / 10
    assert as_bytes(hollow.filled(hollow.model)) == as_bytes(graph)
    kept = Hollow(graph, keep=[next(iter(hollow.full))])
    assert len(kept.full) == len(hollow.full) - 1
