"""The backends: their names, whether each can run on this machine, and how it opens a variant of a bundle.

Adding a backend takes an entry in :data:`BACKEND_TABLE` and a module that opens a variant. The command line, `auto`,
`doctor` and `benchmark` read the table. Backends are imported only when they are examined or opened.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from adafocus_edge.backends.base import (
    CONV_SEARCH,
    CPU_BACKEND,
    OPENVINO_BACKEND,
    ORT_TENSORRT_BACKEND,
    ConvSearch,
    LoadRequest,
)
from adafocus_edge.errors import BackendError, BundleError, UsageError

if TYPE_CHECKING:
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.backends.probe import Obstacle
    from adafocus_edge.bundle.manifest import Bundle

AUTO = "auto"
"""The name that lets the machine and the bundle decide."""


@dataclass(frozen=True)
class Backend:
    """One way to run a bundle's graphs.

    Attributes:
        name: as in ``--backend``.
        obstacle: returns why the backend cannot run on this machine, or None if it should.
        open: opens a variant; raises ``BackendError`` or ``BundleError``.
        aliases: other names that the command line accepts for it.
        on_gpu: whether it computes on an NVIDIA GPU.
        exact_int8: whether it adds 8-bit products exactly, and so computes in 8 bits what variants for such devices
            hold in 8 bits.
        auto_rank: its place in the order in which ``auto`` tries the backends of a usable GPU, from 1; None if ``auto``
            does not try it.
        devices: whether it has several kinds of devices, which ``--device`` chooses from.
        callers_compute: whether the threads that call a model compute, too; otherwise they only wait.
        hint: returns what would make it faster on this machine, or None; `doctor` prints it if the backend can run.
    """

    name: str
    obstacle: Callable[[], Obstacle | None]
    open: Callable[[LoadRequest], LoadedModel]
    aliases: tuple[str, ...] = ()
    on_gpu: bool = True
    exact_int8: bool = False
    auto_rank: int | None = None
    devices: bool = False
    callers_compute: bool = False
    hint: Callable[[], Obstacle | None] = lambda: None


def _runs_everywhere() -> Obstacle | None:
    return None


def _cuda_obstacle() -> Obstacle | None:
    from adafocus_edge.backends.onnxruntime import cuda_obstacle

    return cuda_obstacle()


def _cuda_hint() -> Obstacle | None:
    from adafocus_edge.backends.onnxruntime import capture_hint

    return capture_hint()


def _ort_tensorrt_obstacle() -> Obstacle | None:
    from adafocus_edge.backends.onnxruntime import cuda_obstacle, tensorrt_obstacle

    return cuda_obstacle() or tensorrt_obstacle()


def _gpu_obstacle() -> Obstacle | None:
    from adafocus_edge.backends.probe import gpu_obstacle

    return gpu_obstacle()


def _open_onnxruntime(request: LoadRequest) -> LoadedModel:
    from adafocus_edge.backends.onnxruntime import open_variant

    return open_variant(request)


def _openvino_obstacle() -> Obstacle | None:
    from adafocus_edge.backends.openvino import openvino_obstacle

    return openvino_obstacle()


def _open_openvino(request: LoadRequest) -> LoadedModel:
    from adafocus_edge.backends.openvino import open_variant

    return open_variant(request)


def _open_engines(request: LoadRequest) -> LoadedModel:
    from adafocus_edge.backends.tensorrt.program import open_variant

    return open_variant(request)


BACKEND_TABLE = (
    Backend(CPU_BACKEND, _runs_everywhere, _open_onnxruntime, aliases=("cpu",), on_gpu=False, callers_compute=True),
    Backend("onnxruntime-cuda", _cuda_obstacle, _open_onnxruntime, aliases=("cuda",), auto_rank=2, hint=_cuda_hint),
    Backend(ORT_TENSORRT_BACKEND, _ort_tensorrt_obstacle, _open_onnxruntime, exact_int8=True),
    Backend("tensorrt", _gpu_obstacle, _open_engines, exact_int8=True, auto_rank=1),
    Backend(OPENVINO_BACKEND, _openvino_obstacle, _open_openvino, on_gpu=False, devices=True),
)
BACKENDS = tuple(backend.name for backend in BACKEND_TABLE)
"""Names of all backends."""
ON_GPU = tuple(
    backend.name
    for backend in sorted(BACKEND_TABLE, key=lambda backend: backend.auto_rank or 0)
    if backend.auto_rank is not None
)
"""The backends that ``auto`` tries on a usable GPU before the CPU, best first."""
ALIASES = {alias: backend.name for backend in BACKEND_TABLE for alias in backend.aliases}
"""Backends by their aliases."""

if TYPE_CHECKING:
    BackendChoice: TypeAlias = str
else:
    BackendChoice = Literal[(AUTO, *BACKENDS, *ALIASES)]
"""Values of ``--backend``, for Typer: ``auto``, the backends, and their aliases."""


def canonical_backend(name: str) -> str:
    """Return the backend that a name or an alias stands for; ``auto`` stands for itself.

    Raises ``UsageError`` that lists the known names.
    """
    name = ALIASES.get(name, name)
    if name != AUTO and name not in BACKENDS:
        raise UsageError(f"unknown backend {name!r}; known: {AUTO}, {', '.join(BACKENDS)}")
    return name


def find_backend(name: str) -> Backend:
    """Return a backend's entry by its name or alias. Raises ``UsageError`` that lists the known names."""
    name = ALIASES.get(name, name)
    for backend in BACKEND_TABLE:
        if backend.name == name:
            return backend
    raise UsageError(f"unknown backend {name!r}; known: {', '.join(BACKENDS)}")


def obstacle(backend: str) -> Obstacle | None:
    """Return why one of :data:`BACKENDS` cannot run on this machine, or None if it should."""
    return find_backend(backend).obstacle()


def may_use_cpu(name: str) -> bool:
    """Return whether a backend computes on the CPU; for ``auto``, whether no NVIDIA GPU is usable."""
    from adafocus_edge.backends import probe

    name = canonical_backend(name)
    return probe.gpu_obstacle() is not None if name == AUTO else not find_backend(name).on_gpu


def model_threads(name: str, shared: int | None, requested: int | None) -> int | None:
    """Return the CPU threads of a model that several threads call at the same time.

    Args:
        name: of the backend, or ``auto``.
        shared: threads where each caller computes, too, as with ONNX Runtime on the CPU.
        requested: threads that the user asked for, where callers only wait; None for all usable cores.
    """
    name = canonical_backend(name)
    callers_compute = may_use_cpu(name) if name == AUTO else find_backend(name).callers_compute
    return shared if callers_compute else requested


def load_model(
    bundle: Bundle,
    variant: str = AUTO,
    backend: str = AUTO,
    threads: int | None = None,
    *,
    conv_search: ConvSearch = CONV_SEARCH,
    device: str | None = None,
) -> LoadedModel:
    """Load a bundle's variant on a backend.

    Args:
        bundle: from :func:`adafocus_edge.bundle.store.read_bundle`; one that a server runs has a backend of its own.
        variant: its name, or ``auto`` for FP32, or for the first variant of a bundle without FP32.
        backend: one of :data:`BACKENDS`, an alias (``cpu``, ``cuda``), or ``auto``: with a usable NVIDIA GPU, TensorRT
            if engines of the variant were built for it, else ONNX Runtime on the GPU; otherwise the CPU.
        threads: for computing on the CPU; None for as many as there are usable cores.
        conv_search: how ONNX Runtime on a GPU picks convolution algorithms: ``heuristic`` starts fast, ``exhaustive``
            times every algorithm first.
        device: of OpenVINO, such as ``CPU``, ``GPU`` or ``NPU``; None for its CPU.

    Raises:
        UsageError: the variant or the backend is unknown, or the backend has no devices to choose from.
        BackendError: the backend cannot run on this machine; gives the reason and what to install.
        BundleError: a graph file is damaged or has changed since the bundle was read.

    Example::

        with load_model(bundle, backend="onnxruntime-cpu") as model:
            glimpse = GlimpseStream(model).see([frame])
    """
    from adafocus_edge.backends import probe
    from adafocus_edge.backends.triton.served import ServedBundle

    if isinstance(bundle, ServedBundle):
        from adafocus_edge.backends.triton.runner import open_served

        return open_served(bundle)
    request = LoadRequest(
        bundle, bundle.choose_variant(variant), canonical_backend(backend), threads, conv_search, device
    )
    if device is not None and (request.backend == AUTO or not find_backend(request.backend).devices):
        several = ", ".join(one.name for one in BACKEND_TABLE if one.devices)
        raise UsageError(f"--device {device}: only for --backend {several}")
    if request.backend != AUTO:
        chosen = find_backend(request.backend)
        if (found := chosen.obstacle()) is not None:
            fix = f"{found.fix}, or " if found.fix else ""
            raise BackendError(f"{chosen.name} cannot run here: {found.why}; {fix}use --backend {CPU_BACKEND}")
        return chosen.open(request)
    if probe.gpu_obstacle() is None:
        for name in ON_GPU:
            # A GPU that looks usable may still refuse, for example with a driver older than the CUDA libraries.
            with suppress(BackendError, BundleError):
                return load_model(bundle, variant, name, threads, conv_search=conv_search)
    return load_model(bundle, variant, CPU_BACKEND, threads, conv_search=conv_search)
