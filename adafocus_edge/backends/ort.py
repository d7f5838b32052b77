"""ONNX Runtime on the CPU, and on a GPU with tensors that stay there."""

from __future__ import annotations

import contextlib
import ctypes
import io
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnxruntime as ort

from adafocus_edge.cpus import usable_cores
from adafocus_edge.errors import BackendError
from adafocus_edge.types import TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

NUMPY_TYPES = {"tensor(float)": "float32", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}
"""ONNX Runtime's names for the types of the contract."""
ERROR = 3
"""Severity from which ONNX Runtime writes to stderr itself; warnings about providers are told by us."""


class OrtSession:
    """One graph on the CPU; tensors are NumPy arrays.

    Args:
        path: of the graph.
        threads: for computing; None for as many as there are usable cores.
        exact_int8: compute what is quantized in floats of the same values. Without VNNI the CPU's kernels add products
            of two signed bytes in 16 bits, which overflow; a TensorRT device does not.
    """

    def __init__(self, path: Path, threads: int | None = None, *, exact_int8: bool = False) -> None:
        self._session = make_session(path, ["CPUExecutionProvider"], threads, exact_int8=exact_int8)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self._names = [output.name for output in self.outputs]

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once."""
        try:
            made = self._session.run(self._names, feeds)
        except Exception as error:  # ONNX Runtime raises a family of types with no useful common base
            raise BackendError(f"ONNX Runtime failed while it ran a graph: {first_line(error)}") from None
        return dict(zip(self._names, made, strict=True))

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees it with its last reference."""
        del self._session


class DeviceTensor:
    """A tensor in a device's memory, or a range of one's batch, as ONNX Runtime can bind it."""

    def __init__(self, value: ort.OrtValue, start: int = 0, stop: int | None = None) -> None:
        self.value = value
        self._full_shape: tuple[int, ...] = tuple(value.shape())
        self._start = start
        self._stop = self._full_shape[0] if stop is None else stop

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, the batch first."""
        return (self._stop - self._start, *self._full_shape[1:])

    def address(self, item_size: int) -> int:
        """Return where it begins in the device's memory; ``item_size`` is in bytes."""
        row = int(np.prod(self._full_shape[1:], dtype=np.int64)) * item_size
        return int(self.value.data_ptr()) + self._start * row

    def __getitem__(self, rows: slice) -> DeviceTensor:
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise ValueError("only a range without steps can be cut out of a device tensor")
        return DeviceTensor(self.value, self._start + start, self._start + max(start, stop))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        del copy  # bringing it to the host is a copy
        return np.asarray(self.value.numpy()[self._start : self._stop], dtype=dtype)


class OrtBoundSession:
    """One graph whose inputs and outputs are bound to device memory, so that nothing passes through the host unasked.

    The same code runs with ``device="cpu"``, which is how it is tested where there is no GPU.
    """

    def __init__(self, path: Path, device: str = "cuda", threads: int | None = None) -> None:
        self._device = device
        if device == "cuda":
            # TF32 would round FP32 convolutions to 10 bits; a reduced precision is a variant, never a surprise.
            provider: Any = ("CUDAExecutionProvider", {"device_id": "0", "use_tf32": "0"})
            self._session = make_session(path, [provider, "CPUExecutionProvider"], threads)
            if self._session.get_providers()[0] != "CUDAExecutionProvider":
                raise BackendError(
                    "onnxruntime-cuda cannot run here: ONNX Runtime could not load its CUDA libraries; "
                    "install them: pip install 'adafocus-edge[gpu]'"
                )
        else:
            self._session = make_session(path, ["CPUExecutionProvider"], threads)
        self.inputs = tensor_specs(self._session.get_inputs())
        self.outputs = tensor_specs(self._session.get_outputs())
        self._types = {tensor.name: np.dtype(tensor.dtype) for tensor in self.inputs}

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once; NumPy feeds are uploaded, device tensors are bound where they lie."""
        binding = self._session.io_binding()
        held = []
        for name, feed in feeds.items():
            dtype = self._types[name]
            tensor = feed if isinstance(feed, DeviceTensor) else self._upload(np.ascontiguousarray(feed, dtype))
            held.append(tensor)
            binding.bind_input(name, self._device, 0, dtype, tensor.shape, tensor.address(dtype.itemsize))
        for output in self.outputs:
            binding.bind_output(output.name, self._device, 0)
        try:
            self._session.run_with_iobinding(binding)
        except Exception as error:
            raise BackendError(f"ONNX Runtime failed while it ran a graph: {first_line(error)}") from None
        return {
            output.name: DeviceTensor(value) for output, value in zip(self.outputs, binding.get_outputs(), strict=True)
        }

    def _upload(self, array: NDArray[Any]) -> DeviceTensor:
        return DeviceTensor(ort.OrtValue.ortvalue_from_numpy(array, self._device, 0))

    def close(self) -> None:
        """Drop the session; ONNX Runtime frees it with its last reference."""
        del self._session


def make_session(
    path: Path, providers: list[Any], threads: int | None, *, exact_int8: bool = False
) -> ort.InferenceSession:
    """Make a session with the options that four sessions taking turns need. Raises ``BackendError``."""
    options = session_options(threads)
    if exact_int8:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    try:
        return ort.InferenceSession(str(path), options, providers=providers)
    except Exception as error:  # ONNX Runtime raises a family of types with no useful common base
        raise BackendError(f"{path}: ONNX Runtime {ort.__version__} cannot load it ({first_line(error)})") from None


def session_options(threads: int | None) -> ort.SessionOptions:
    """Return the options of every session of ours; None for as many threads as there are usable cores."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or usable_cores()
    options.inter_op_num_threads = 1
    options.log_severity_level = ERROR
    # Each session has threads of its own. Left spinning when a run ends, they would starve the next session's.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return options


def tensor_specs(arguments: list[Any]) -> tuple[TensorSpec, ...]:
    """Turn ONNX Runtime's description of inputs or outputs into ours; a dynamic batch is ``"N"``."""
    return tuple(
        TensorSpec(a.name, NUMPY_TYPES.get(a.type, a.type), tuple(d if isinstance(d, int) else "N" for d in a.shape))
        for a in arguments
    )


def first_line(error: BaseException) -> str:
    """Return an exception's first line of text."""
    return (str(error).splitlines() or [type(error).__name__])[0]


@dataclass(frozen=True)
class Obstacle:
    """Why something cannot run here.

    Attributes:
        why: in words.
        fix: the command or step that changes that; empty where this machine just has no such thing.
    """

    why: str
    fix: str = ""


@lru_cache(maxsize=1)
def cuda_obstacle() -> Obstacle | None:
    """Say why ONNX Runtime cannot use an NVIDIA GPU here, or return None if it should: driver, GPU and libraries."""
    if "CUDAExecutionProvider" not in ort.get_available_providers():
        return Obstacle(
            "this build of ONNX Runtime has no CUDA provider", "pip uninstall onnxruntime; pip install onnxruntime-gpu"
        )
    return gpu_obstacle() or library_obstacle()


def gpu_obstacle() -> Obstacle | None:
    """Ask the driver for a GPU."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    try:
        driver = ctypes.CDLL(name)
    except OSError:
        return Obstacle(f"no NVIDIA driver was found ({name})")
    if status := driver.cuInit(0):
        return Obstacle(f"the NVIDIA driver finds no usable GPU (cuInit returned {status})")
    count = ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) or count.value == 0:
        return Obstacle("the NVIDIA driver finds no GPU")
    return None


def library_obstacle() -> Obstacle | None:
    """Load what ONNX Runtime's CUDA provider needs: CUDA and cuDNN, from pip packages or the system."""
    folder = Path(ort.__file__).parent / "capi"
    shared, provider = (folder / f"libonnxruntime_providers_{name}.so" for name in ("shared", "cuda"))
    if not provider.is_file():
        return None  # another platform's naming: the session itself will tell
    with contextlib.redirect_stdout(io.StringIO()):  # it prints what it cannot find, which is told below
        ort.preload_dlls()
    try:
        ctypes.CDLL(str(shared), mode=ctypes.RTLD_GLOBAL)
        ctypes.CDLL(str(provider))
    except OSError as error:
        return Obstacle(f"a CUDA library is missing ({first_line(error)})", "pip install 'adafocus-edge[gpu]'")
    return None
