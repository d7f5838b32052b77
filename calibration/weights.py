"""Quantize a graph without carrying its weights along, and each weight only once.

ONNX Runtime's quantizer copies, infers and writes a graph as a whole, and computes weights channel by channel in
Python: for a ResNet-50, that is nearly all of its time. A layer's 8-bit weights do not depend on which other layers are
quantized nor, as a rule, on the ranges of activations, so they are kept. Everything else is done on a graph whose
weights hold no values; they are put in at the end.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper
from onnxruntime.quantization.base_quantizer import QuantizationParams
from onnxruntime.quantization.qdq_quantizer import QDQQuantizer, QDQQuantTensorType

from calibration.graphs import LAYERS, copy_of, initializers

HOOKS = ("_calc_initializer_quant_params", "_add_qdq_nodes_for_initializer")
"""Methods in which ONNX Runtime's quantizer computes weights."""
REPLACEABLE = all(hasattr(QDQQuantizer, name) for name in HOOKS)
"""Whether the installed release has them; if not, its quantizer gets all values and computes all weights each time."""
Key = tuple[Any, ...]
"""A weight's name, and the settings that decide how it is quantized."""


@dataclass
class QuantizedWeights:
    """Weights of one float graph as ONNX Runtime's quantizer computed them. The graph's blocks may share it.

    Attributes:
        parameters: each weight's scales and zero points, before they are adjusted to the layer's bias.
        values: each weight's 8-bit values, with the scales that they belong to: the scales asked for last.
    """

    parameters: dict[Key, QuantizationParams] = field(default_factory=dict)
    values: dict[Key, tuple[bytes, TensorProto]] = field(default_factory=dict)


class Hollow:
    """A copy of a float graph whose layers' weights hold no values, so that it is rewritten fast.

    Args:
        model: the graph.
        keep: names of weights that keep their values.

    Attributes:
        model: the copy.
        full: the constants that must be put in at the end, by name.
    """

    def __init__(self, model: ModelProto, keep: Collection[str] = ()) -> None:
        nodes = model.graph.node
        weights = {node.input[1] for node in nodes if node.op_type in LAYERS} - set(keep)
        for node in nodes:
            weights.difference_update(
                name for place, name in enumerate(node.input) if node.op_type not in LAYERS or place != 1
            )
        self.full = {name: one for name, one in initializers(model).items() if REPLACEABLE and name in weights}
        self.model = copy_of(model)
        for weight in self.model.graph.initializer:
            if weight.name in self.full:
                _empty(weight, weight.dims)

    def filled(self, model: ModelProto) -> ModelProto:
        """Put the values into a graph made from :attr:`model`, in place, and return it."""
        for weight in model.graph.initializer:
            if weight.name in self.full:
                weight.CopyFrom(self.full[weight.name])
        return model


class LightQuantizer(QDQQuantizer):  # type: ignore[misc]
    """ONNX Runtime's quantizer for a hollow graph: makes the same one, and computes a weight only if it is not known.

    Args:
        hollow: the graph; gets the values of the quantized weights.
        known: weights of the same float graph.
        arguments: of :class:`QDQQuantizer`, but for the graph.
    """

    tensors_to_quantize: dict[str, Any]

    def __init__(self, hollow: Hollow, known: QuantizedWeights, *arguments: Any) -> None:
        self._hollow, self._known = hollow, known
        self._keys: dict[str, Key] = {}
        super().__init__(hollow.model, *arguments)

    def _calc_initializer_quant_params(self) -> dict[str, QuantizationParams]:
        """Return the scales and zero points of all constants to quantize."""
        marked = self.tensors_to_quantize
        self._keys = {
            name: (name, info.axis, self.weight_qType, self.is_weight_symmetric(self.weight_qType), self.reduce_range)
            for name, info in marked.items()
            if info.tensor_type is QDQQuantTensorType.WEIGHT
        }
        known = {name: key for name, key in self._keys.items() if key in self._known.parameters}
        self.tensors_to_quantize = {name: info for name, info in marked.items() if name not in known}
        for weight in self.model.initializer():
            if weight.name in self._hollow.full and weight.name in self.tensors_to_quantize:
                weight.CopyFrom(self._hollow.full[weight.name])
        found: dict[str, QuantizationParams] = super()._calc_initializer_quant_params()
        self.tensors_to_quantize = marked
        for name, key in self._keys.items():
            if name in found:
                self._known.parameters[key] = _copied(found[name])  # the quantizer adjusts its own in place
        return found | {name: _copied(self._known.parameters[key]) for name, key in known.items()}

    def _add_qdq_nodes_for_initializer(self, weight_proto: TensorProto) -> None:
        """Quantize a constant."""
        name = weight_proto.name
        key = self._keys.get(name)
        if key is None or name in self.quantized_value_map:
            super()._add_qdq_nodes_for_initializer(weight_proto)
            return
        scales = self.initializer_quant_params[name]["scale"].tobytes()
        known = self._known.values.get(key)
        if known is None or known[0] != scales:
            known = None
            super()._add_qdq_nodes_for_initializer(self._hollow.full.get(name, weight_proto))
        else:
            one = np.zeros([1] * len(weight_proto.dims), helper.tensor_dtype_to_np_dtype(weight_proto.data_type))
            super()._add_qdq_nodes_for_initializer(numpy_helper.from_array(one, name))
        made_name = self.quantized_value_map[name].original.q_name
        made = next(weight for weight in self.model.initializer() if weight.name == made_name)
        if known is None:
            values = TensorProto()
            values.CopyFrom(made)
            known = self._known.values[key] = scales, values
        self._hollow.full[made_name] = known[1]
        _empty(made, self._hollow.full[made_name].dims)


def _empty(weight: TensorProto, dims: Collection[int]) -> None:
    """Remove a constant's values and set its shape."""
    name, kind, dims = weight.name, weight.data_type, list(dims)
    weight.Clear()
    weight.name, weight.data_type = name, kind
    weight.dims.extend(dims)


def _copied(parameters: QuantizationParams) -> QuantizationParams:
    return QuantizationParams(
        **{name: value.copy() if hasattr(value, "copy") else value for name, value in parameters.data.items()}
    )
