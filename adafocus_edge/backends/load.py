"""Choosing a backend by name and loading a bundle with it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from adafocus_edge.backends.base import LoadedModel, Session
from adafocus_edge.bundle import describe_tensors
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.types import GRAPHS, ModelSpec, contract

if TYPE_CHECKING:
    from adafocus_edge.bundle import Bundle

BACKENDS = ("onnxruntime-cpu", "onnxruntime-cuda")
EXACT_INT8 = frozenset({"int8-trt"})
"""Variants for devices that add 8-bit products exactly: a CPU that may not do so runs them in floats, slower."""
CPU_BATCH = 4
"""Frames per call on a CPU: as fast as the whole clip at once (measured), and its activations stay in the caches."""


def load_model(bundle: Bundle, variant: str = "auto", backend: str = "auto", threads: int | None = None) -> LoadedModel:
    """Load a bundle's variant on a backend.

    Args:
        bundle: from :func:`adafocus_edge.bundle.read_bundle`.
        variant: its name, or ``auto`` for FP32, or the first one where there is none.
        backend: one of :data:`BACKENDS`, or ``auto``: the GPU if there is a usable one, else the CPU.
        threads: for computing on the CPU; None for as many as there are usable cores.

    Raises:
        UsageError: an unknown variant or backend.
        BackendError: the backend cannot run here, with the reason and what to install.
    """
    from adafocus_edge.backends import ort

    variant = bundle.choose_variant(variant)
    if backend == "auto":
        if ort.cuda_obstacle() is None:
            # A GPU that looks usable may still refuse, with a driver older than the CUDA libraries, say.
            with suppress(BackendError):
                return load_model(bundle, variant, "onnxruntime-cuda", threads)
        backend = "onnxruntime-cpu"
    elif backend not in BACKENDS:
        raise UsageError(f"unknown backend {backend!r}; known: auto, {', '.join(BACKENDS)}")
    elif backend == "onnxruntime-cuda" and (obstacle := ort.cuda_obstacle()):
        fix = f"{obstacle.fix}, or " if obstacle.fix else ""
        raise BackendError(f"onnxruntime-cuda cannot run here: {obstacle.why}; {fix}use --backend onnxruntime-cpu")
    return open_graphs(bundle.model, lambda graph: bundle.graph_path(variant, graph), variant, backend, threads)


def open_graphs(
    spec: ModelSpec, path_of: Callable[[str], Path], variant: str, backend: str, threads: int | None = None
) -> LoadedModel:
    """Open four graph files on a backend that can run here, and check them against the contract.

    Args:
        spec: the model's shapes and names.
        path_of: gives each graph's file.
        variant: what to call it.
        backend: one of :data:`BACKENDS`.
        threads: see :func:`load_model`.

    Raises ``BackendError``.
    """
    from adafocus_edge.backends import ort

    on_gpu = backend == "onnxruntime-cuda"
    with ExitStack() as opened:
        sessions: dict[str, Session] = {}
        for graph in GRAPHS:
            path = path_of(graph)
            session: Session
            if on_gpu:
                session = ort.OrtBoundSession(path, "cuda", threads)
            else:
                session = ort.OrtSession(path, threads, exact_int8=variant in EXACT_INT8)
            opened.callback(session.close)
            for found, expected in zip((session.inputs, session.outputs), contract(spec, graph), strict=True):
                if found != expected:
                    raise BackendError(
                        f"{path}: takes or gives {describe_tensors(found)} instead of {describe_tensors(expected)}"
                    )
            sessions[graph] = session
        opened.pop_all()
    return LoadedModel(
        spec,
        **sessions,
        backend=backend,
        variant=variant,
        batch=spec.segments if on_gpu else CPU_BATCH,
    )
