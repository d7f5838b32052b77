"""INT8 graphs in ONNX's Q/DQ format, with the pairs placed for ONNX Runtime on a CPU or for TensorRT.

ONNX Runtime's quantizer does the work; this module configures it and rewrites graphs as each target requires.
"""

from __future__ import annotations

import logging
import platform
import tempfile
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper
from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_dynamic
from onnxruntime.quantization.calibrate import TensorsData

from adafocus_edge.system.cpu import processor
from calibration.graphs import (
    LAYERS,
    MOVES,
    add_initializer,
    constant,
    consumers,
    copy_of,
    initializers,
    load_graph,
    producers,
    replace_nodes,
    tidy,
)
from calibration.ranges import Range
from calibration.weights import Hollow, LightQuantizer, QuantizedWeights

CPU_OPERATORS = ["Conv", "Gemm", "MatMul", "Clip", "Relu", "Add", "MaxPool"]
TENSORRT_OPERATORS = ["Conv", "Gemm", "MatMul", "Add", "MaxPool", "GlobalAveragePool"]
PIXEL_ZERO = 114
"""Grey level that is subtracted from raw pixels, and so the level that a convolution's zero padding stands for (the
mean is 124, 116 and 104 in R, G and B, so padded pixels are up to 10 levels off; all others are exact)."""
STEM = 3
"""Layers of a MobileNetV2 up to and including its first projection."""
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})


def needs_reduced_range() -> bool:
    """Return whether this processor adds pairs of 8-bit products in 16 bits: 8-bit weights overflow, 7-bit ones fit."""
    return platform.machine().lower() in ("x86_64", "amd64") and not VNNI & processor()[1]


def for_cpu(
    model: ModelProto,
    ranges: Mapping[str, Range],
    *,
    reduce_range: bool,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    known: QuantizedWeights | None = None,
) -> ModelProto:
    """Quantize a graph of convolutions for ONNX Runtime's CPU kernels: activations U8, weights S8 per channel.

    Pixels stay bytes, and the first convolution's weights absorb their normalisation.

    Args:
        model: float graph, from :func:`calibration.graphs.load_graph`.
        ranges: range of each tensor, by name.
        reduce_range: whether to use 7-bit weights (:func:`needs_reduced_range`).
        only: names of the only layers to quantize; None for all.
        skip: names of layers to leave float.
        known: weights that earlier calls for the same float graph or its blocks quantized; gets those of this call.
    """
    first = _first_layer(model)
    hollow = Hollow(model, keep=first.input if first else ())
    raw = _with_raw_pixels(hollow.model) if _quantizes_first(model, only, skip) else None
    ranges = dict(ranges)
    if raw is not None:
        hollow.model = raw
        ranges[RAW] = (-float(PIXEL_ZERO), float(255 - PIXEL_ZERO))
    options = {"QuantizeBias": True}
    made = _quantize(hollow, known, ranges, CPU_OPERATORS, QuantType.QUInt8, reduce_range, only, skip, options)
    return _finished(hollow, made if raw is None else _bytes_as_quantized(made))


def for_tensorrt(
    model: ModelProto,
    ranges: Mapping[str, Range],
    *,
    only: Collection[str] | None = None,
    skip: Collection[str] = (),
    known: QuantizedWeights | None = None,
) -> ModelProto:
    """Quantize a graph of convolutions for TensorRT's explicit quantization: symmetric S8 everywhere.

    Q/DQ pairs are on a layer's inputs, never on its outputs, so that TensorRT fuses a convolution with its bias,
    activation and residual addition. Of an addition's two inputs, the one that skips the block is quantized; a
    pooling's input is quantized, too. Weights are S8 constants, per channel; biases stay float. For the arguments, see
    :func:`for_cpu`.
    """
    hollow = Hollow(model)
    hollow.model = _pooling_named(hollow.model)
    options = {
        "ActivationSymmetric": True,
        "WeightSymmetric": True,
        "QuantizeBias": False,
        "OpTypesToExcludeOutputQuantization": TENSORRT_OPERATORS,
        "ForceQuantizeNoInputCheck": True,  # quantizes a pooling although its input is not quantized yet
    }
    pooled = {n.output[0]: n.input[0] for n in hollow.model.graph.node if n.op_type == "GlobalAveragePool"}
    ranges = {**{made: ranges[read] for made, read in pooled.items() if read in ranges}, **ranges}
    made = _quantize(hollow, known, ranges, TENSORRT_OPERATORS, QuantType.QInt8, False, only, skip, options)
    return _finished(hollow, _additions_fused(made))


def weights_only(model: ModelProto, reduce_range: bool) -> ModelProto:
    """Quantize a recurrent graph for a CPU: S8 weights per channel, activations quantized dynamically.

    One step of a recurrent graph reads every weight once, so the gain is in reading a quarter of the bytes; and a state
    is never clipped to a recorded range.
    """
    with tempfile.TemporaryDirectory() as folder:
        before, after = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        plain = copy_of(model)
        del plain.graph.value_info[:]
        onnx.save_model(plain, before)
        with quiet():
            quantize_dynamic(
                before, after, weight_type=QuantType.QInt8, per_channel=True, reduce_range=reduce_range,
                op_types_to_quantize=["Gemm", "MatMul"],
            )  # fmt: skip
        return load_graph(after)


def stem(model: ModelProto) -> list[str]:
    """Return the first layers of a graph that are better left float on every device.

    In a network of depthwise convolutions (MobileNetV2), these are the first three: the convolution of three channels
    and the depthwise one are not faster in INT8, and every later layer suffers from what they and the projection after
    them round away (measured: docs/results/calibration.md). In other networks, there are none.
    """
    convolutions = [node for node in model.graph.node if node.op_type == "Conv"]
    if len(convolutions) < STEM:
        return []
    groups = next((attribute.i for attribute in convolutions[1].attribute if attribute.name == "group"), 1)
    return [node.name for node in convolutions[:STEM]] if groups > 1 else []


_THREAD = threading.local()


def _is_wanted(record: logging.LogRecord) -> bool:
    return record.levelno > logging.WARNING or not getattr(_THREAD, "is_quiet", False)


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the messages that the quantizer logs with the root logger in this thread.

    Other threads, which may quantize too, keep their messages during and after it.
    """
    logging.getLogger().addFilter(_is_wanted)  # adds it once
    _THREAD.is_quiet = True
    try:
        yield
    finally:
        _THREAD.is_quiet = False


def _quantize(
    hollow: Hollow,
    known: QuantizedWeights | None,
    ranges: Mapping[str, Range],
    operators: list[str],
    activations: QuantType,
    reduce_range: bool,
    only: Collection[str] | None,
    skip: Collection[str],
    options: Mapping[str, object],
) -> ModelProto:
    model, left_out = hollow.model, set(skip)
    if only is not None:
        made_by = producers(model)
        wanted = set(only) | {
            n.name for n in model.graph.node
            if n.op_type in ("Clip", "Relu") and n.input[0] in made_by and made_by[n.input[0]].name in only
        }  # fmt: skip
        left_out |= {n.name for n in model.graph.node if n.op_type in operators and n.name not in wanted}
    # A tensor without a range is not float: additions of integers compute a patch's position.
    left_out |= {
        n.name for n in model.graph.node if n.op_type in operators and not any(name in ranges for name in n.output)
    }
    tensors = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with quiet():
        quantizer = LightQuantizer(
            hollow,
            known or QuantizedWeights(),
            True,
            reduce_range,
            QuantType.QInt8,
            activations,
            TensorsData(CalibrationMethod.MinMax, tensors),
            [],
            sorted(left_out),
            operators,
            options,
        )
        quantizer.quantize_model()
    made: ModelProto = quantizer.model.model
    return made


def _finished(hollow: Hollow, made: ModelProto) -> ModelProto:
    """Tidy a quantized graph, put its weights' values in, and check it."""
    made = hollow.filled(tidy(made, check=False))
    onnx.checker.check_model(made)
    return made


# -- raw pixels ----------------------------------------------------------------------------------------------------

RAW = "raw_pixels"
"""Name of the tensor of pixels minus :data:`PIXEL_ZERO`, the first convolution's input."""


def _first_layer(model: ModelProto) -> NodeProto | None:
    return next((node for node in model.graph.node if node.op_type == "Conv"), None)


def _quantizes_first(model: ModelProto, only: Collection[str] | None, skip: Collection[str]) -> bool:
    first = _first_layer(model)
    return first is not None and first.name not in skip and (only is None or first.name in only)


def _with_raw_pixels(model: ModelProto) -> ModelProto | None:
    """Make the first convolution read ``pixel - PIXEL_ZERO`` instead of ``(pixel / 255 - mean) / std``.

    Its weights and bias absorb the difference. Returns None if the graph does not begin with that normalisation.
    """
    model = copy_of(model)
    made, first = producers(model), _first_layer(model)
    if first is None:
        return None
    chain: list[NodeProto] = []
    name = first.input[0]
    while name in made:
        chain.append(made[name])
        if chain[-1].op_type == "Cast":
            break
        name = chain[-1].input[0]
    arithmetic = [node for node in chain if node.op_type in ("Div", "Sub")]
    moves = [node for node in chain if node.op_type in MOVES]
    if [n.op_type for n in arithmetic] != ["Div", "Sub", "Div"] or len(arithmetic) + len(moves) + 1 != len(chain):
        return None
    std, mean, scale = (constant(model, node.input[1]) for node in arithmetic)
    weight, bias = constant(model, first.input[1]), constant(model, first.input[2]) if len(first.input) > 2 else None
    if std is None or mean is None or scale is None or weight is None:
        return None
    if bias is None:
        bias = np.zeros(len(weight), np.float32)
    folded = weight.astype(np.float64) / (float(scale) * std.reshape(1, -1, 1, 1))
    shift = (folded * (PIXEL_ZERO - float(scale) * mean.reshape(1, -1, 1, 1))).sum(axis=(1, 2, 3))
    for suffix, values in (("weight", folded), ("bias", bias + shift), ("zero", np.array(PIXEL_ZERO))):
        add_initializer(model, f"{RAW}_{suffix}", values.astype(np.float32))
    new = []
    name = chain[-1].input[0]
    for node in reversed(moves):
        moved = NodeProto()
        moved.CopyFrom(node)
        moved.input[0], moved.output[0], moved.name = name, f"{node.output[0]}_bytes", f"{node.name}_bytes"
        new.append(moved)
        name = moved.output[0]
    new.append(helper.make_node("Cast", [name], [f"{RAW}_float"], name=f"{RAW}_cast", to=TensorProto.FLOAT))
    new.append(helper.make_node("Sub", [f"{RAW}_float", f"{RAW}_zero"], [RAW], name=f"{RAW}_sub"))
    del first.input[:]
    first.input.extend([RAW, f"{RAW}_weight", f"{RAW}_bias"])
    replace_nodes(model, [], new)
    return tidy(model, check=False)


def _bytes_as_quantized(model: ModelProto) -> ModelProto:
    """Drop cast, subtraction and quantization of raw pixels: the bytes already are the quantized values."""
    made, taken = producers(model), consumers(model)
    quantize = next(node for node in taken[RAW] if node.op_type == "QuantizeLinear")
    scale, zero = constant(model, quantize.input[1]), constant(model, quantize.input[2])
    assert scale == 1 and zero == PIXEL_ZERO, (scale, zero)  # noqa: PT018 - as for_cpu configures it
    source = made[f"{RAW}_float"].input[0]
    for dequantize in taken[quantize.output[0]]:
        dequantize.input[0] = source
    model.graph.node.remove(quantize)
    return model


# -- Q/DQ placement for TensorRT -----------------------------------------------------------------------------------


def _pooling_named(model: ModelProto) -> ModelProto:
    """Replace each mean over height and width of [N, C, H, W] by the global average pooling that it is."""
    for node in [node for node in model.graph.node if node.op_type == "ReduceMean"]:
        axes = constant(model, node.input[1]) if len(node.input) > 1 else None
        keeps = next((attribute.i for attribute in node.attribute if attribute.name == "keepdims"), 1)
        if axes is None or sorted(int(axis) % 4 for axis in axes.reshape(-1)) != [2, 3]:
            continue
        pooled = node.output[0] if keeps else f"{node.output[0]}_pooled"
        new = [helper.make_node("GlobalAveragePool", [node.input[0]], [pooled], name=f"{node.name}_pool")]
        if not keeps:
            add_initializer(model, f"{node.name}_axes", np.array([2, 3], np.int64))
            new.append(helper.make_node("Squeeze", [pooled, f"{node.name}_axes"], list(node.output), name=node.name))
        replace_nodes(model, [node], new)
    return tidy(model, check=False)


def _additions_fused(model: ModelProto) -> ModelProto:
    """Remove the Q/DQ pair between a convolution and the addition that ends its block."""
    made, taken = producers(model), consumers(model)

    def behind(name: str, *operators: str) -> NodeProto | None:
        node = made.get(name)
        return node if node is not None and node.op_type in operators else None

    for addition in [node for node in model.graph.node if node.op_type == "Add"]:
        for place, name in enumerate(addition.input):
            dequantize = behind(name, "DequantizeLinear")
            quantize = dequantize and behind(dequantize.input[0], "QuantizeLinear")
            if not quantize or not behind(quantize.input[0], *LAYERS):
                continue
            if len(taken[quantize.input[0]]) == 1 and len(taken[name]) == 1:
                addition.input[place] = quantize.input[0]
                break  # the other input, which skips the block, stays quantized
    return model


def quantized_layers(model: ModelProto) -> list[str]:
    """Return the layers of a graph whose weights are 8-bit."""
    made, weights = producers(model), initializers(model)
    found = []
    for node in model.graph.node:
        if node.op_type == "MatMulInteger":
            found.append(node.name)
        elif node.op_type in LAYERS and (source := made.get(node.input[1])) is not None:
            weight = weights.get(source.input[0]) if source.op_type == "DequantizeLinear" else None
            if weight is not None and weight.data_type == TensorProto.INT8:
                found.append(node.name)
    return found
