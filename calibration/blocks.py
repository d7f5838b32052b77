"""Split a float graph into blocks that hand one tensor on to the next."""

from __future__ import annotations

from onnx import ModelProto
from onnx.utils import Extractor

from calibration.graphs import float_tensors, initializers, layers, tidy

LAYERS_PER_BLOCK = 3
"""A block has at least so many layers, the last one perhaps less: what is kept between blocks takes memory."""


def blocks_of(model: ModelProto) -> list[ModelProto]:
    """Return a graph's blocks, in execution order; run one after another, they compute what the graph does.

    A block ends where a single FP32 tensor is all that is still needed, and a layer reads it, as between the residual
    blocks of a ResNet or a MobileNetV2. Nodes and tensors keep their names. Quantized on their own, blocks give the
    values of the whole quantized graph, unless a pooling or an activation reads the tensor between them as well.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
    """
    cuts = _cuts(model)
    if not cuts:
        return [model]
    extractor = Extractor(model)
    starts = [[tensor.name for tensor in model.graph.input], *([cut] for cut in cuts)]
    ends = [*([cut] for cut in cuts), [tensor.name for tensor in model.graph.output]]
    return [tidy(extractor.extract_model(start, end)) for start, end in zip(starts, ends, strict=True)]


def _cuts(model: ModelProto) -> list[str]:
    """Return the tensors between blocks."""
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
    layers_since = 0
    for place, node in enumerate(model.graph.node):
        layers_since += node.name in with_weights
        if constants.issuperset(name for name in node.input if name):
            constants.update(node.output)
        else:
            needed.update(node.output)
        needed = {name for name in needed if last_read.get(name, -1) > place}
        if layers_since >= LAYERS_PER_BLOCK and len(needed) == 1 and needed <= read_by_layer & inner:
            cuts.extend(needed)
            layers_since = 0
    return cuts
