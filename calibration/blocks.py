"""Split a float graph into blocks that hand one tensor on to the next."""

from __future__ import annotations

from collections.abc import Iterator

from onnx import ModelProto
from onnx.utils import Extractor

from calibration.graphs import float_tensors, initializers, layers, tidy

LAYERS_PER_BLOCK = 3
"""A block has at least so many layers, the last one perhaps less: what is kept between blocks takes memory."""


class Blocks:
    """A graph's blocks, in execution order; run one after another, they compute what the graph does.

    A block ends where a single FP32 tensor is all that is still needed, and a layer reads it, as between the residual
    blocks of a ResNet or a MobileNetV2. Nodes and tensors keep their names. Quantized on their own, blocks give the
    values of the whole quantized graph, unless a pooling or an activation reads the tensor between them as well.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
    """

    def __init__(self, model: ModelProto) -> None:
        self._model = model
        self._cuts, self.block_of = _cuts(model)
        """The number of each layer's block, in execution order."""
        self._extractor = Extractor(model)
        self._last: tuple[int, ModelProto] | None = None

    def __len__(self) -> int:
        return len(self._cuts) + 1

    def __iter__(self) -> Iterator[ModelProto]:
        return (self[place] for place in range(len(self)))

    def __getitem__(self, place: int) -> ModelProto:
        """Return a block; only the last one that was asked for is kept."""
        if self._last is None or self._last[0] != place:
            graph = self._model.graph
            start = [self._cuts[place - 1]] if place else [tensor.name for tensor in graph.input]
            end = [self._cuts[place]] if place < len(self._cuts) else [tensor.name for tensor in graph.output]
            self._last = place, tidy(self._extractor.extract_model(start, end))
        return self._last[1]


def _cuts(model: ModelProto) -> tuple[list[str], dict[str, int]]:
    """Return the tensors between blocks, and the number of each layer's block."""
    constants, with_weights = set(initializers(model)), set(layers(model))
    outputs = [output.name for output in model.graph.output]
    inner = float_tensors(model).keys() - outputs
    last_read: dict[str, int] = {}
    read_by_layer: set[str] = set()
    for place, node in enumerate(model.graph.node):
        for name in node.input:
            last_read[name] = place
            if node.name in with_weights:
                read_by_layer.add(name)
    last_read.update(dict.fromkeys(outputs, len(model.graph.node)))
    needed = {tensor.name for tensor in model.graph.input}
    cuts: list[str] = []
    block_of: dict[str, int] = {}
    layers_since = 0
    for place, node in enumerate(model.graph.node):
        if node.name in with_weights:
            block_of[node.name] = len(cuts)
            layers_since += 1
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
        else:
            needed.update(node.output)
        needed = {name for name in needed if last_read.get(name, -1) > place}
        if layers_since >= LAYERS_PER_BLOCK and len(needed) == 1 and needed <= read_by_layer & inner:
            cuts.extend(needed)
            layers_since = 0
    return cuts, block_of
