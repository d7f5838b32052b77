"""Time a graph's layers on this CPU in FP32 and in INT8, to find what keeps INT8 from being faster."""

from __future__ import annotations

import json
import statistics
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnxruntime as ort

from adafocus_edge.backends.onnxruntime import session_options
from calibration.samples import Feeds

CONVOLUTIONS = ("Conv", "FusedConv", "NhwcFusedConv", "QLinearConv")
"""Names of convolution operators after ONNX Runtime's optimisations."""
ROUNDS = 12
OTHERS = "everything else"
BLOCKS = (4, 8, 16)
"""Channels per block in the layouts of ONNX Runtime's float kernels; the size depends on the CPU's registers."""


@dataclass(frozen=True)
class TimedNode:
    """One node of a graph after ONNX Runtime's optimisations.

    Attributes:
        operator: the node's operator.
        takes: shapes of its inputs.
        makes: shape of its first output.
        ms: its median time.
    """

    operator: str
    takes: tuple[tuple[int, ...], ...]
    makes: tuple[int, ...]
    ms: float

    @property
    def weight(self) -> tuple[int, ...]:
        """Shape of a convolution's weight, or ``()``."""
        return next((shape for shape in self.takes[1:] if len(shape) == 4), ())


@dataclass(frozen=True)
class LayerTime:
    """One layer: the shape of its output, and its time in the float graph and in its INT8 twin."""

    makes: tuple[int, ...]
    fp32_ms: float
    int8_ms: float


@dataclass(frozen=True)
class KindTime:
    """The layers of one kind, their number (0 for everything that is not a convolution), and the sum of their times."""

    kind: str
    layers: int
    fp32_ms: float
    int8_ms: float
    each: tuple[LayerTime, ...]


def layer_times(before: Path, after: Path, feeds: Feeds, threads: int | None) -> list[KindTime]:
    """Return the time of each kind of layer, in milliseconds for these inputs, in a float graph and its INT8 twin.

    Args:
        before: the float graph.
        after: the same graph, quantized.
        feeds: inputs for both, batch axis first.
        threads: CPU threads.

    The list is empty if the convolutions of the two graphs cannot be matched.
    """
    first, second = (time_nodes(path, feeds, threads) for path in (before, after))
    layers = [[node for node in nodes if node.operator in CONVOLUTIONS] for nodes in (first, second)]
    if len(layers[0]) != len(layers[1]):
        return []
    kinds: dict[str, list[tuple[TimedNode, TimedNode]]] = {}
    for one, other in zip(*layers, strict=True):
        if not _same_size(one.makes, other.makes):
            return []
        kinds.setdefault(convolution_kind(one.weight), []).append((one, other))
    entries = [
        KindTime(
            kind=kind,
            layers=len(pairs),
            fp32_ms=round(sum(one.ms for one, _ in pairs), 4),
            int8_ms=round(sum(other.ms for _, other in pairs), 4),
            each=tuple(LayerTime(one.makes, round(one.ms, 4), round(other.ms, 4)) for one, other in pairs),
        )
        for kind, pairs in kinds.items()
    ]
    rest = [sum(node.ms for node in nodes if node.operator not in CONVOLUTIONS) for nodes in (first, second)]
    return [*entries, KindTime(OTHERS, 0, round(rest[0], 4), round(rest[1], 4), ())]


def _same_size(one: Sequence[int], other: Sequence[int]) -> bool:
    """Whether two output shapes agree in any order of axes; a blocked layout rounds channels up (AVX-512: to 16s)."""
    left = sorted((Counter(one) - Counter(other)).elements())
    right = sorted((Counter(other) - Counter(one)).elements())
    if len(left) != len(right) or len(left) > 1:
        return False
    return not left or any(-(-min(left + right) // block) * block == max(left + right) for block in BLOCKS)


def convolution_kind(weight: Sequence[int]) -> str:
    """Name the kind of a convolution by the shape of its weight."""
    if len(weight) != 4:
        return "of unknown shape"
    _, inputs, height, width = weight
    if inputs == 1:
        return f"depthwise {height} x {width}"
    return f"{height} x {width} of 3 channels" if inputs <= 3 else f"{height} x {width}"


def time_nodes(path: Path, feeds: Feeds, threads: int | None) -> list[TimedNode]:
    """Run a graph under ONNX Runtime's profiler; return every node with its median time, in execution order."""
    options = session_options(threads)
    options.enable_profiling = True
    with tempfile.TemporaryDirectory() as folder:
        options.profile_file_prefix = str(Path(folder) / "run")
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        for _ in range(ROUNDS + 1):
            session.run(None, feeds)
        events = json.loads(Path(session.end_profiling()).read_text())
    found: dict[str, tuple[dict[str, Any], list[float]]] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith("_kernel_time"):
            found.setdefault(event["args"]["node_index"], (event["args"], []))[1].append(event["dur"] / 1e3)
    return [
        TimedNode(
            operator=facts["op_name"],
            takes=tuple(tuple(next(iter(shape.values()), [])) for shape in facts["input_type_shape"]),
            makes=tuple(next(iter(facts["output_type_shape"][0].values()), [])) if facts["output_type_shape"] else (),
            ms=statistics.median(times[1:]),
        )
        for facts, times in found.values()
    ]
