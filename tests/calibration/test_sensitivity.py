"""Blocks of a graph, what each layer loses in INT8, and sessions that remember: the same figures as the long way."""

from typing import Any

import numpy as np
import pytest

from adafocus_edge.backends.onnxruntime import OrtSession
from adafocus_edge.bundle.store import default_bundle
from calibration import int8
from calibration import remembering as memory
from calibration.blocks import Blocks
from calibration.compare import run
from calibration.graphs import layers, save_graph
from calibration.remembering import Combinations, RememberingSession, remembering
from calibration.sensitivity import Sensitivity
from calibration.workers import Workers
from tests.calibration.helpers import graph_of, ranges_of, run_graph


def run_blocks(blocks, feeds, folder):
    for place, block in enumerate(blocks):
        feeds = run_graph(block, feeds, folder / f"{place}.onnx")
    return feeds


@pytest.mark.parametrize("name", ["glancer", "focuser"])
@pytest.mark.parametrize("family", ["small", "default"])
def test_blocks_one_after_another_are_the_graph(family, name, request, samples, tmp_path):
    path = request.getfixturevalue("small_bundle") if family == "small" else default_bundle()
    graph = graph_of(path, name)
    split = Blocks(graph)
    blocks = list(split)
    assert len(blocks) >= 5
    assert [layer for block in blocks for layer in layers(block)] == layers(graph) == list(split.block_of)
    assert all(layer in layers(blocks[place]) for layer, place in split.block_of.items())
    assert all(len(layers(block)) >= 3 for block in blocks[:-1])
    if family == "small":
        random = np.random.default_rng(4)
        feeds = {
            "frame": random.integers(0, 256, (2, 224, 224, 3), np.uint8),
            "origin": random.random((2, 2), np.float32),
        }
        feeds = {tensor.name: feeds[tensor.name] for tensor in graph.graph.input}
    else:
        feeds = next(samples.batches(name))
    expected = run_graph(graph, feeds, tmp_path / "whole.onnx")
    found = run_blocks(blocks, feeds, tmp_path)
    for output, values in expected.items():
        assert np.abs(found[output] - values).max() <= 1e-5 * np.abs(values).max()


def test_a_graph_that_cannot_be_cut_is_one_block():
    """The policy's state is needed beside what its layers make."""
    graph = graph_of(default_bundle(), "policy")
    assert [layers(block) for block in Blocks(graph)] == [layers(graph)]


QUANTIZE: dict[str, Any] = {
    "int8-cpu": lambda graph, ranges, only, skip: int8.for_cpu(graph, ranges, reduce_range=True, only=only, skip=skip),
    "int8-trt": lambda graph, ranges, only, skip: int8.for_tensorrt(graph, ranges, only=only, skip=skip),
}


@pytest.mark.parametrize("variant", QUANTIZE)
@pytest.mark.parametrize("name", ["glancer", "focuser"])
def test_a_layers_error_is_that_of_the_whole_graph(variant, name, samples, tmp_path):
    graph = graph_of(default_bundle(), name)
    ranges, batches = ranges_of(graph, samples, name), list(samples.batches(name))
    exact = variant == "int8-trt"

    def opened(model):
        save_graph(model, tmp_path / "block.onnx")
        return OrtSession(tmp_path / "block.onnx", 2, exact_int8=exact)

    stem = int8.stem(graph)
    measured = Sensitivity(
        graph, stem, batches, lambda block, only, skip: QUANTIZE[variant](block, ranges, only, skip), opened,
        Workers(2),
    )  # fmt: skip
    assert measured.layers == [layer for layer in layers(graph) if layer not in stem]

    def error_of_whole(only, skip):
        made, wanted = [], []
        for session, kept in ((opened(QUANTIZE[variant](graph, ranges, only, skip)), made), (opened(graph), wanted)):
            kept.extend(session.run(feeds) for feeds in batches)
        norms = []
        for output in made[0]:
            one, other = (np.concatenate([outputs[output] for outputs in kept]) for kept in (made, wanted))
            norms.append(np.linalg.norm(one - other) / np.linalg.norm(other))
        return float(max(norms))

    chosen = measured.layers[1 :: len(measured.layers) // 2]
    whole = error_of_whole(None, stem)
    alone = dict(zip(measured.layers, measured.errors_alone(), strict=True))
    for layer, saved in zip(chosen, measured.errors_saved(chosen), strict=True):
        assert alone[layer] == pytest.approx(error_of_whole([layer], ()), rel=2e-3), layer
        assert saved == pytest.approx(whole - error_of_whole(None, [*stem, layer]), abs=1e-4 * whole), layer


class Counting:
    """A session that counts the rows that it computes."""

    def __init__(self, session):
        self._session, self.rows = session, 0
        self.inputs, self.outputs = session.inputs, session.outputs

    def run(self, feeds):
        self.rows += len(next(iter(feeds.values())))
        return self._session.run(feeds)

    def close(self):
        self._session.close()


@pytest.mark.parametrize(("limit", "again"), [(10**9, 0), (0, 8)])
def test_a_row_is_computed_once_and_again_where_memory_is_short(limit, again, model, samples, monkeypatch):
    monkeypatch.setattr(memory, "MAX_BYTES", limit)
    counting = Counting(model.focuser)
    remembered = RememberingSession(counting)
    (first,) = list(samples.batches("focuser", size=8, most=8))
    expected = model.focuser.run(first)["focus"]
    assert np.allclose(remembered.run(first)["focus"], expected, rtol=1e-4, atol=1e-5)
    assert counting.rows == 8
    order = [3, 3, 0, 7, 5, 1, 2, 6, 4]  # one twice
    assert np.allclose(
        remembered.run({name: rows[order] for name, rows in first.items()})["focus"], expected[order],
        rtol=1e-4, atol=1e-5,
    )  # fmt: skip
    assert counting.rows == 8 + again
    moved = {**first, "origin": first["origin"] * 0.5 + 0.1}  # the same frames, other patches
    assert not np.allclose(remembered.run(moved)["focus"], expected, rtol=1e-4, atol=1e-5)
    assert counting.rows == 16 + again


def test_combinations_give_what_models_of_their_own_would(model, fights, samples, tmp_path):
    bundle = default_bundle()
    paths = {}
    for name in ("glancer", "focuser"):
        graph, paths[name] = graph_of(bundle, name), tmp_path / f"{name}.onnx"
        ranges = ranges_of(graph, samples, name)
        save_graph(int8.for_cpu(graph, ranges, reduce_range=True, skip=int8.stem(graph)), paths[name])
    together = Combinations(remembering(model), 2)
    for chosen in ({}, {"glancer"}, {"focuser"}, {"glancer", "focuser"}):
        found = run(together.model({name: paths[name] for name in chosen}, "int8-cpu"), fights)
        alone = Combinations(model, 2)
        expected = run(alone.model({name: paths[name] for name in chosen}, "int8-cpu"), fights)
        assert np.array_equal(found.patches, expected.patches)
        assert np.allclose(found.logits, expected.logits, atol=1e-4)
        alone.drop()
    together.drop()
