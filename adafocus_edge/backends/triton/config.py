"""The configurations of a repository's models, ``config.pbtxt``, in the text form of Triton's protobuf."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from adafocus_edge.backends.triton.served import PARAMETER
from adafocus_edge.model.spec import CLIP_GRAPH, STEP_GRAPH, contract

if TYPE_CHECKING:
    from collections.abc import Iterator

    from adafocus_edge.backends.triton.served import Served
    from adafocus_edge.backends.triton.settings import RepositoryOptions
    from adafocus_edge.model.spec import ModelSpec, TensorSpec

TYPES = {"uint8": "TYPE_UINT8", "float32": "TYPE_FP32", "int64": "TYPE_INT64"}
"""Triton's names of the types of the contract."""
LABELS = "labels.txt"
STATES = {"policy_state": "policy_state_out", "state": "state_out"}
"""The inputs of a step that the server keeps, and the outputs that it takes them from. Triton pairs both sides by their
alphabetical order, which is the same."""
CANDIDATES = 1024
"""Sequences of one instance that may be under way at once; more of them wait for an end."""
MODEL_FILES = {"onnxruntime": "model.onnx", "tensorrt": "model.plan"}
"""Name of a model's file by Triton's backend."""


def model_name(name: str, graph: str) -> str:
    """Return the name of a graph's model in the repository."""
    return f"{name}_{graph}"


def config_of(graph: str, served: Served, options: RepositoryOptions) -> str:
    """Return the configuration of one model.

    Args:
        graph: ``step`` or ``clip``.
        served: the description that travels with it.
        options: of the repository.
    """
    batch = served.streams if graph == STEP_GRAPH else served.clips
    kind = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}[options.device]
    parts = [
        f'name: "{model_name(options.name, graph)}"',
        f'backend: "{served.backend}"',
        f'default_model_filename: "{MODEL_FILES[served.backend]}"',
        f"max_batch_size: {batch}",
        f"version_policy {{ specific {{ versions: [ {served.version} ] }} }}",
        *_tensors(graph, served.model),
        *(_sequences(served, options) if graph == STEP_GRAPH else _clips(served, options)),
        f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]",
        f'parameters {{ key: "{PARAMETER}" value {{ string_value: {_quoted(json.dumps(served.to_json()))} }} }}',
    ]
    return "\n".join(parts) + "\n"


def _tensors(graph: str, spec: ModelSpec) -> Iterator[str]:
    """Yield the inputs and outputs of a model, without the states that the server keeps."""
    kept = (*STATES, *STATES.values()) if graph == STEP_GRAPH else ()
    for side, tensors in zip(("input", "output"), contract(spec, graph), strict=True):
        shown = [tensor for tensor in tensors if tensor.name not in kept]
        yield f"{side} [\n  " + ",\n  ".join(map(_tensor, shown)) + "\n]"


def _tensor(tensor: TensorSpec) -> str:
    sides = tensor.shape[1:]
    shape = f"dims: [ {', '.join(map(str, sides))} ]" if sides else "dims: [ 1 ] reshape { shape: [ ] }"
    labels = f' label_filename: "{LABELS}"' if tensor.name == "logits" and len(sides) == 1 else ""
    return f'{{ name: "{tensor.name}" data_type: {TYPES[tensor.dtype]} {shape}{labels} }}'


def _sequences(served: Served, options: RepositoryOptions) -> Iterator[str]:
    """Yield the sequence batcher: states in the server, zero at a start, and steps of several sequences as a batch."""
    inputs, _ = contract(served.model, STEP_GRAPH)
    lengths = {tensor.name: tensor.shape[1] for tensor in inputs if tensor.name in STATES}
    states = [
        f'    {{ input_name: "{name}" output_name: "{out}" data_type: TYPE_FP32 dims: [ {lengths[name]} ]\n'
        f'      initial_state: {{ name: "zeros" data_type: TYPE_FP32 dims: [ {lengths[name]} ] zero_data: true }} }}'
        for name, out in STATES.items()
    ]
    yield (
        "sequence_batching {\n"
        f"  max_sequence_idle_microseconds: {served.idle_s * 1_000_000}\n"
        f"  oldest {{ max_candidate_sequences: {CANDIDATES} max_queue_delay_microseconds: {options.delay_us} }}\n"
        "  state [\n" + ",\n".join(states) + "\n  ]\n}"
    )


def _clips(served: Served, options: RepositoryOptions) -> Iterator[str]:
    """Yield the dynamic batcher of whole clips, and the batches that are run before the model counts as ready."""
    (frames,), _ = contract(served.model, CLIP_GRAPH)
    yield f"dynamic_batching {{ max_queue_delay_microseconds: {options.delay_us} }}"
    sides = ", ".join(map(str, frames.shape[1:]))
    samples = [
        f'  {{ name: "clips-{batch}" batch_size: {batch} inputs {{ key: "{frames.name}" '
        f"value {{ data_type: TYPE_UINT8 dims: [ {sides} ] zero_data: true }} }} }}"
        for batch in sorted({1, served.clips})
    ]
    yield "model_warmup [\n" + ",\n".join(samples) + "\n]"


def _quoted(text: str) -> str:
    """Return ASCII text as a string of protobuf's text form."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'
