"""Load the peers that a model is compared with, for the same loop: the model without some parts, or other runtimes."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.benchmark.grid import CHECKPOINT_PEER, TORCH_PEERS
from adafocus_edge.bundle.store import check_graph_files
from adafocus_edge.evaluation.evaluate import with_patches
from adafocus_edge.model.spec import GRAPHS, Glimpse, contract
from adafocus_edge.system.companions import import_companion

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.bundle.manifest import Bundle
    from adafocus_edge.evaluation.evaluate import Predict
    from adafocus_edge.model.spec import TensorSpec


@dataclass(frozen=True)
class Peer:
    """A loaded peer.

    Attributes:
        model: the model that the loop runs.
        gflops_per_step: multiply-adds per step, in units of 1e9.
    """

    model: LoadedModel
    gflops_per_step: float


class OnePiece:
    """A function from a clip to logits, wrapped as the runner of a model.

    Args:
        predict: maps frames uint8 [T, S, S, 3] to logits float32 [T, C].
    """

    def __init__(self, predict: Predict) -> None:
        self._predict = predict

    def see_clip(self, frames: Sequence[NDArray[np.uint8]]) -> Iterator[Glimpse]:
        """Predict one clip; the patches are unknown."""
        logits = self._predict(np.stack(list(frames)))
        for step in range(len(frames)):
            yield Glimpse(np.zeros((1, 2), np.float32), logits[step : step + 1])

    def release(self) -> None:
        """Do nothing: it holds nothing."""

    def close(self) -> None:
        """Do nothing: it holds nothing."""


class Constant:
    """A session that replaces a graph and returns zeros of the right shapes at no cost.

    Args:
        inputs: the graph's inputs.
        outputs: the graph's outputs.
    """

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> None:
        self.inputs, self.outputs = inputs, outputs
        self._made: dict[int, dict[str, Any]] = {}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Return zeros."""
        rows = len(next(iter(feeds.values())))
        if rows not in self._made:
            self._made[rows] = {
                spec.name: np.zeros([rows if side == "N" else int(side) for side in spec.shape], spec.dtype)
                for spec in self.outputs
            }
        return self._made[rows]

    def close(self) -> None:
        """Do nothing: it holds nothing."""


def load_peer(bundle: Bundle, peer: str, threads: int, checkpoint: Path | None = None, *, on_gpu: bool = False) -> Peer:
    """Load a peer of a bundle's model.

    Args:
        bundle: the model's bundle.
        peer: one of :data:`adafocus_edge.benchmark.settings.PEERS`, or ``checkpoint:NAME``.
        threads: CPU threads.
        checkpoint: for ``pytorch-*``, the checkpoint with the weights, or None for random ones; for ``checkpoint:``,
            the checkpoint to run.
        on_gpu: run peers that support it on the NVIDIA GPU, all others on the CPU.

    Raises:
        MissingExtraError: a package that it needs is not installed.
        BackendError: it cannot run here.
    """
    if peer not in TORCH_PEERS and not peer.startswith(CHECKPOINT_PEER):
        model = _of_graphs(bundle, peer, threads, on_gpu=on_gpu)
        check_graph_files(bundle, "fp32")  # the loaded files are those that were hashed
        return Peer(model, gflops_per_step(bundle, peer))
    made = import_companion("training.peers", f"benchmark --peers {peer}", "train")
    device = "cuda" if on_gpu else "cpu"
    if peer == "pytorch-compile":
        compiled: LoadedModel = made.compiled(bundle.spec, checkpoint, threads, device)
        return Peer(replace(compiled, backend=peer), gflops_per_step(bundle, peer))
    if peer == "pytorch-eager":
        predict = made.eager(bundle.spec, checkpoint, threads, device)
        return Peer(_one_piece(bundle, peer, predict), gflops_per_step(bundle, peer))
    predict, gflops = made.whole(bundle.spec, checkpoint, threads)
    return Peer(_one_piece(bundle, peer, predict), gflops)


def _one_piece(bundle: Bundle, peer: str, predict: Predict) -> LoadedModel:
    sessions = {graph: Constant(*contract(bundle.spec, graph)) for graph in GRAPHS}
    piece: Any = OnePiece(predict)
    return LoadedModel.of(bundle.spec, sessions, peer, "fp32", bundle.spec.segments, piece)


def _of_graphs(bundle: Bundle, peer: str, threads: int, *, on_gpu: bool) -> LoadedModel:
    """Load the bundle's own FP32 graphs, some of them replaced."""
    from adafocus_edge.backends.onnxruntime import open_graphs

    spec = bundle.spec
    paths = {graph: bundle.graph_path("fp32", graph) for graph in GRAPHS}
    with tempfile.TemporaryDirectory() as folder:
        if peer == "whole-frames":
            edited = import_companion("export.whole", f"benchmark --peers {peer}", "calibrate")
            whole = Path(folder) / "focuser.onnx"
            edited.on_whole_frames(spec, paths["focuser"], whole)
            paths["focuser"] = whole
        backend = "onnxruntime-cuda" if on_gpu else "onnxruntime-cpu"
        model = open_graphs(spec, paths.__getitem__, "fp32", backend, threads)
    made = with_patches(model, "random" if peer == "random-patches" else "centre")
    if peer == "glancer-alone":
        made = replace(made, focuser=Constant(*contract(spec, "focuser")))
    elif not spec.with_glancer:  # no graph reads its outputs
        made = replace(made, glancer=Constant(*contract(spec, "glancer")))
    return replace(made, backend=peer)


def gflops_per_step(bundle: Bundle, backend: str, variant: str = "fp32") -> float:
    """Return the multiply-adds of one step of a bundle's model, or of a peer made of its parts, in units of 1e9."""
    spec = bundle.spec
    graphs = {name: bundle.manifest.variants[variant][name].gflops for name in GRAPHS}
    if backend in ("centre-patches", "random-patches", "whole-frames"):
        graphs.pop("policy")
        if not spec.with_glancer:
            graphs.pop("glancer")
    if backend == "glancer-alone":
        graphs.pop("policy")
        graphs.pop("focuser")
    if backend == "whole-frames":  # the cost of convolutions is proportional to the number of pixels
        graphs["focuser"] *= (spec.frame_size / spec.patch_size) ** 2
    return sum(graphs.values())
