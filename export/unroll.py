"""Join the four graphs into one graph of a whole clip: the recurrent ones are repeated, once for each frame."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from adafocus_edge.errors import ExportError
from adafocus_edge.model.spec import CLIP_GRAPH, GRAPHS, ModelSpec, TensorSpec, contract

Shape = Sequence[int | str]


def unroll(spec: ModelSpec, graphs: Mapping[str, Path], path: Path) -> None:
    """Join the four graphs of one variant into ``clip.onnx``: N clips of T frames, on the clip schedule.

    The glancer and the focuser see the N x T frames of all clips as one batch. Between them the policy is repeated T
    times, and after them the classifier, each time on the N clips' rows of one frame and on the states that the time
    before has left; both begin with zeros. All repetitions share their weights.

    Args:
        spec: the model's shapes and names.
        graphs: paths of the four graphs.
        path: path of the graph to write.
    """
    clip = _Clip(spec, {name: onnx.load_model(graphs[name]) for name in GRAPHS})
    clip.glance_at_all()
    clip.choose_all()
    clip.focus_on_all()
    clip.classify_all()
    model = clip.model()
    onnx.checker.check_model(model, full_check=True)
    onnx.save_model(model, path)


class _Clip:
    """The graph of a clip while it is made; tensors of a batch of N x T frames are named ``all/...``."""

    def __init__(self, spec: ModelSpec, models: Mapping[str, onnx.ModelProto]) -> None:
        self.spec, self.models = spec, models
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []
        self._shared: dict[str, set[str]] = {}
        shape = self._constant("frame/shape", (-1, spec.frame_size, spec.frame_size, 3))
        # TensorRT takes whole numbers of 8 bits from outside, and can only convert them.
        self._add("Cast", ["frames"], "frames/float", to=TensorProto.FLOAT)
        self._add("Reshape", ["frames/float", shape], "all/frame")
        self._add("Shape", ["frames"], "clips", start=0, end=1)

    def glance_at_all(self) -> None:
        """Run the glancer on every frame, and split what it has made by frame of a clip."""
        self._run("glancer", "all", {"frame": "all/frame"})
        side = self.spec.feature_map_size
        self._by_frame("feature_map", (self.spec.glance_dim, side, side))
        self._by_frame("glance", (self.spec.glance_dim,))

    def choose_all(self) -> None:
        """Run the policy on one frame after another, and put all origins in one tensor."""
        self._zeros("policy_state", self.spec.policy_state)
        for step in range(self.spec.segments):
            feeds = {"feature_map": f"{step}/feature_map", "policy_state": f"{step - 1}/policy_state_out"}
            self._run("policy", f"{step}", feeds)
        self._stack("origin", "origins")
        self._add("Reshape", ["origins", self._constant("origin/shape", (-1, 2))], "all/origin")

    def focus_on_all(self) -> None:
        """Run the focuser on every frame at its origin."""
        self._run("focuser", "all", {"frame": "all/frame", "origin": "all/origin"})
        self._by_frame("focus", (self.spec.focus_dim,))

    def classify_all(self) -> None:
        """Run the classifier on one frame after another, and put all logits in one tensor."""
        self._zeros("state", self.spec.classifier_state)
        seen = ("glance", "focus") if self.spec.with_glancer else ("focus",)
        for step in range(self.spec.segments):
            feeds = {name: f"{step}/{name}" for name in seen}
            self._run("classifier", f"{step}", {**feeds, "state": f"{step - 1}/state_out"})
        self._stack("logits", "logits")

    def model(self) -> onnx.ModelProto:
        """Return the whole as a model with the signature of :func:`contract`."""
        inputs, outputs = contract(self.spec, CLIP_GRAPH)
        opsets: dict[str, int] = {}
        for model in self.models.values():
            opsets |= {opset.domain: max(opset.version, opsets.get(opset.domain, 0)) for opset in model.opset_import}
        graph = helper.make_graph(
            self.nodes, CLIP_GRAPH, list(map(_info, inputs)), list(map(_info, outputs)), initializer=self.weights
        )
        return helper.make_model(
            graph,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in opsets.items()],
            ir_version=max(model.ir_version for model in self.models.values()),
            producer_name="adafocus-edge",
        )

    def _run(self, name: str, prefix: str, feeds: Mapping[str, str]) -> None:
        """Add one run of a graph whose outputs get a prefix; what does not depend on its inputs is added once."""
        readers = [node.op_type for node in self.models[name].graph.node if "frame" in node.input]
        if set(readers) - {"Cast"}:
            raise ExportError(f"{name}: {readers[0]} reads the frame as it is, not converted first: export it again")
        part = compose.add_prefix(self.models[name], f"{name}/", rename_inputs=False, rename_outputs=False).graph
        if name not in self._shared:
            self.weights += part.initializer
            self._shared[name] = {weight.name for weight in part.initializer}
            for node in part.node:
                if _reads(node) <= self._shared[name]:
                    self.nodes.append(node)
                    self._shared[name] |= set(node.output)
        shared = self._shared[name]
        for node in part.node:
            if set(node.output) <= shared:
                continue
            copied = onnx.NodeProto()
            copied.CopyFrom(node)
            copied.name = f"{prefix}/{node.name}"
            for names in (copied.input, copied.output):
                names[:] = [one if not one or one in shared else feeds.get(one, f"{prefix}/{one}") for one in names]
            self.nodes.append(copied)

    def _by_frame(self, name: str, shape: Shape) -> None:
        """Split a tensor of all frames, [N x T, ...], into one of each frame of a clip, [N, ...]."""
        frames = self.spec.segments
        whole = self._constant(f"{name}/by_clip", (-1, frames, *shape))
        self._add("Reshape", [f"all/{name}", whole], f"{name}/by_clip/value")
        for step in range(frames):
            number = self._constant(f"{name}/{step}", step)
            self._add("Gather", [f"{name}/by_clip/value", number], f"{step}/{name}", axis=1)

    def _stack(self, name: str, stacked: str) -> None:
        """Join the tensors of the frames of a clip, [N, ...] each, into one, [N, T, ...]."""
        axes = self._constant(f"{stacked}/axes", (1,))
        for step in range(self.spec.segments):
            self._add("Unsqueeze", [f"{step}/{name}", axes], f"{step}/{name}/row")
        self._add("Concat", [f"{step}/{name}/row" for step in range(self.spec.segments)], stacked, axis=1)

    def _zeros(self, name: str, length: int) -> None:
        """Add the state before the first frame: zeros, [N, length]."""
        self._add("Concat", ["clips", self._constant(f"{name}/length", (length,))], f"{name}/shape", axis=0)
        zero = helper.make_tensor("value", TensorProto.FLOAT, [1], [0.0])
        self._add("ConstantOfShape", [f"{name}/shape"], f"-1/{name}_out", value=zero)

    def _constant(self, name: str, value: int | Iterable[int | str]) -> str:
        """Add whole numbers; return their name."""
        number = np.array(value if isinstance(value, int) else tuple(value), np.int64)
        self.weights.append(numpy_helper.from_array(number, f"constant/{name}"))
        return f"constant/{name}"

    def _add(self, operator: str, inputs: Sequence[str], output: str, **attributes: Any) -> None:
        self.nodes.append(helper.make_node(operator, inputs, [output], name=f"{output}/{operator}", **attributes))


def _reads(node: onnx.NodeProto) -> set[str]:
    """Return the names that a node reads, with those of its subgraphs."""
    inner = {
        name
        for attribute in node.attribute
        for graph in (attribute.g, *attribute.graphs)
        for part in graph.node
        for name in _reads(part)
    }
    return {name for name in (*node.input, *inner) if name}


def _info(tensor: TensorSpec) -> onnx.ValueInfoProto:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
    return helper.make_tensor_value_info(tensor.name, kind, tensor.shape)
