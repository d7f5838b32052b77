"""TensorRT engines on an NVIDIA GPU: deserialized once, with a context per shape and addresses bound before a run."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adafocus_edge.backends.device import cuda
from adafocus_edge.backends.device.memory import check_alignment
from adafocus_edge.backends.loaded import LoadedModel, open_programs
from adafocus_edge.backends.tensorrt.library import MODULES, Library, find_library, pop_first_error, wrap_errors
from adafocus_edge.bundle.engines import PIXELS_GRAPH, find_engines
from adafocus_edge.bundle.store import check_unchanged
from adafocus_edge.errors import BackendError
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, TensorSpec
from adafocus_edge.system.files import atomic_write

if TYPE_CHECKING:
    from adafocus_edge.backends.base import LoadRequest
    from adafocus_edge.backends.tensors import Buffer, Work

Shapes = tuple[tuple[int, ...], ...]
WORKSPACE_UNIT = 1 << 20
"""Workspaces are allocated in whole MiB, so that contexts of similar shapes share one."""

RUNTIME_CACHE = "runtime.cache"
"""File beside the engines: kernels that TensorRT-RTX compiled on this device."""


class TrtRuntime:
    """The library's runtime, logger and cache of compiled kernels, which the engines of one model share.

    Args:
        library: that built the engines.
        cache: file for the kernels that TensorRT-RTX compiles on the device at the first start.
        host_code: whether engines may contain code for the host, as version-compatible ones do.
    """

    def __init__(self, library: Library, cache: Path, *, host_code: bool = False) -> None:
        self.library = library
        self.logger = library.logger()
        with wrap_errors(self.logger, f"{library.title} cannot start"):
            self.runtime = library.module.Runtime(self.logger)
        self.runtime.engine_host_code_allowed = host_code
        self._cache_file = cache
        self._cache: Any = None

    def configure(self, engine: Any) -> Any:
        """Return the configuration of an engine's contexts, or None if the library has none."""
        if self.library.name != "tensorrt-rtx":
            return None
        trt = self.library.module
        config = engine.create_runtime_config()
        # Compile kernels for these shapes before the first run: a captured graph would keep the fallbacks for ever.
        strategies = trt.DynamicShapesKernelSpecializationStrategy
        config.dynamic_shapes_kernel_specialization_strategy = strategies.EAGER
        config.set_execution_context_allocation_strategy(trt.ExecutionContextAllocationStrategy.USER_MANAGED)
        if self._cache is None:
            self._cache = config.create_runtime_cache()
            with suppress(OSError):
                self._cache.deserialize(self._cache_file.read_bytes())
        config.set_runtime_cache(self._cache)
        return config

    def close(self) -> None:
        """Store the compiled kernels for the next start, if the bundle is writable."""
        if self._cache is not None:
            kernels = self._cache.serialize()
            with suppress(OSError, TypeError), atomic_write(self._cache_file) as file:
                file.write(bytes(kernels))
        self._cache = self.runtime = None


class TrtProgram:
    """One engine.

    Args:
        path: of the engine.
        runtime: shared by the model's engines.
        device: whose stream it computes on.
    """

    def __init__(self, path: Path, runtime: TrtRuntime, device: cuda.CudaDevice) -> None:
        self._path = path
        self._runtime = runtime
        self._device = device
        self._trt = runtime.library.module
        with wrap_errors(runtime.logger, f"{path}: {runtime.library.title} cannot load it"):
            self._engine = runtime.runtime.deserialize_cuda_engine(path.read_bytes())
        if self._engine is None:
            raise BackendError(f"{path}: {runtime.library.title} cannot load it: {pop_first_error(runtime.logger)}")
        self._config = runtime.configure(self._engine)
        self._contexts: dict[Shapes, Any] = {}  # for tensors that change
        self.capturable = True
        self._workspaces: list[Buffer] = []
        modes = self._trt.TensorIOMode
        self.inputs = self._specs(modes.INPUT)
        self.outputs = self._specs(modes.OUTPUT)

    @property
    def largest_batch(self) -> int:
        """Return the maximum number of rows of any profile."""
        name = self.inputs[0].name
        numbers = range(self._engine.num_optimization_profiles)
        return max(int(self._engine.get_tensor_profile_shape(name, number)[2][0]) for number in numbers)

    def bind(self, tensors: Mapping[str, Buffer], *, fixed: bool) -> Work:
        """Return a callable that queues one run on these tensors; see :class:`Program`."""
        shapes = tuple(tensors[spec.name].shape for spec in self.inputs)
        if fixed:  # a captured graph needs a context that is not bound to other tensors later
            context = self._new_context(shapes)
        else:
            context = self._contexts.get(shapes) or self._new_context(shapes)
            self._contexts[shapes] = context
        check_alignment(tensors)
        addresses = [(name, tensor.address) for name, tensor in tensors.items()]

        def run() -> None:
            for name, address in addresses:
                context.set_tensor_address(name, address)
            if not context.execute_async_v3(self._device.stream):
                raise BackendError(f"{self._path}: the engine failed: {pop_first_error(self._runtime.logger)}")

        return lambda: self._device.launch(run)

    def close(self) -> None:
        """Free contexts, workspaces and engine."""
        self._contexts.clear()
        self._workspaces.clear()
        self._config = self._engine = None

    def _specs(self, mode: Any) -> tuple[TensorSpec, ...]:
        engine, trt = self._engine, self._trt
        names = [engine.get_tensor_name(number) for number in range(engine.num_io_tensors)]
        return tuple(
            TensorSpec(
                name,
                str(trt.nptype(engine.get_tensor_dtype(name)).__name__),
                tuple("N" if side < 0 else int(side) for side in engine.get_tensor_shape(name)),
            )
            for name in names
            if engine.get_tensor_mode(name) == mode
        )

    def _new_context(self, shapes: Shapes) -> Any:
        with wrap_errors(self._runtime.logger, f"{self._path}: cannot run at {shapes}"):
            return self._made_context(shapes)

    def _made_context(self, shapes: Shapes) -> Any:
        profile = self._profile(shapes)
        if self._config is not None:
            context = self._engine.create_execution_context(self._config)
        else:
            strategy = self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
            context = self._engine.create_execution_context(strategy)
        if context is None:
            raise BackendError(f"{self._path}: no execution context: {pop_first_error(self._runtime.logger)}")
        context.set_optimization_profile_async(profile, self._device.stream)
        self._device.finish()
        for spec, shape in zip(self.inputs, shapes, strict=True):
            if not context.set_input_shape(spec.name, shape):
                why = pop_first_error(self._runtime.logger)
                raise BackendError(f"{self._path}: rejects {spec.name} of shape {shape}: {why}")
        # All contexts run one after the other on one stream, so they may share their workspace.
        needed = context.update_device_memory_size_for_shapes()
        if needed:
            workspace = next((one for one in self._workspaces if one.size_bytes >= needed), None)
            if workspace is None:
                workspace = self._device.empty((-(-needed // WORKSPACE_UNIT) * WORKSPACE_UNIT,), "uint8")
                self._workspaces.append(workspace)
            context.set_device_memory(workspace.address, workspace.size_bytes)
        if hasattr(context, "is_stream_capturable"):
            self.capturable &= bool(context.is_stream_capturable(self._device.stream))
        return context

    def _profile(self, shapes: Shapes) -> int:
        """Return the optimization profile with the smallest batch that takes these shapes. Raises ``BackendError``."""
        fitting = []
        for number in range(self._engine.num_optimization_profiles):
            limits = [self._engine.get_tensor_profile_shape(spec.name, number) for spec in self.inputs]
            if all(
                all(low <= side <= high for low, side, high in zip(least, shape, most, strict=True))
                for (least, _, most), shape in zip(limits, shapes, strict=True)
            ):
                fitting.append((limits[0][2][0], number))
        if not fitting:
            batch, most = shapes[0][0], self.largest_batch
            if batch <= most:
                raise BackendError(f"{self._path}: input shape {shapes[0]} is outside of the range of its profiles")
            raise BackendError(
                f"{self._path}: takes batches of up to {most}, not {batch}: build it with --streams {batch}"
            )
        return min(fitting)[1]


def open_variant(request: LoadRequest) -> LoadedModel:
    """Open the engines of a variant that were built for this GPU, and check their files.

    Raises ``BackendError`` if no TensorRT library runs on this GPU, or no engines fit.
    """
    bundle, variant = request.bundle, request.variant
    gpu = cuda.this_gpu()
    found = None
    refused: BackendError | None = None
    for name in MODULES:
        try:
            library = find_library(name)
        except BackendError as error:
            refused = refused or error
            continue
        if (obstacle := library.gpu_obstacle(gpu)) is not None:
            refused = BackendError(obstacle)
            continue
        try:
            found = find_engines(bundle, variant, library.name, library.version, gpu)
            break
        except BackendError as error:
            refused = error
    if found is None:
        raise refused or BackendError("TensorRT is not installed")
    folder, engines = found
    runtime = TrtRuntime(library, folder / RUNTIME_CACHE, host_code=engines.options.version_compatible)
    device = cuda.CudaDevice()

    def path_of(graph: str) -> Path:
        return folder / engines.engines[graph].file

    graphs = (*GRAPHS, *(graph for graph in (STEP_GRAPH, PIXELS_GRAPH) if graph in engines.engines))
    model = open_programs(
        bundle.spec, graphs, lambda graph: TrtProgram(path_of(graph), runtime, device), path_of, device,
        backend=request.backend, variant=variant,
    )  # fmt: skip
    assert model.resident is not None
    model.resident.on_close(runtime.close)
    with ExitStack() as opened:
        opened.enter_context(model)
        for graph in graphs:
            check_unchanged(path_of(graph), engines.engines[graph].sha256)
        opened.pop_all()
    return model
