"""Decoding on an NVIDIA GPU with PyNvVideoCodec: model frames are made on the GPU that decoded them."""

from __future__ import annotations

import ctypes
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from adafocus_edge.backends.device.cuda import CudaDevice
from adafocus_edge.backends.device.pixels import PixelMaker
from adafocus_edge.backends.tensors import Buffer, Device
from adafocus_edge.errors import AdaFocusError, BackendError, SourceError, UsageError
from adafocus_edge.media.matrices import Decoded
from adafocus_edge.media.nv12 import NotOnGpuError
from adafocus_edge.media.preprocess import model_frames, motion_frame_indices, sample_indices
from adafocus_edge.system.addresses import conceal

if TYPE_CHECKING:
    from adafocus_edge.backends.device.runner import DeviceRunner
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.media.clip import Clip
    from adafocus_edge.media.frames import ModelFrame
    from adafocus_edge.media.video_file import VideoFile

Choice = Literal["auto", "cpu", "gpu"]
"""Where to decode: on the GPU if it can, on the CPU, or on the GPU only."""
INSTALL = "pip install 'adafocus-edge[nvdec]', or use --decoder cpu"
STDOUT, STDERR = 1, 2
UINT8 = (1, 8, 1)
"""DLPack's code, bits and lanes of a byte."""


class _DLTensor(ctypes.Structure):
    """DLPack's description of a tensor (dlpack.h, DLTensor)."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


DEVICE_TYPES = {"cpu": 1, "cuda": 2}
"""DLPack's numbers of our devices."""


def from_dlpack(tensor: Any, device: Device) -> Buffer:
    """Wrap a tensor of bytes without a copy, through DLPack.

    Args:
        tensor: with ``__dlpack__``; it must not be written to while the buffer is in use.
        device: that owns its memory.

    Raises:
        BackendError: it is on another device, is not dense, or does not hold bytes.
    """
    # The producer makes our queue wait until the tensor is written.
    capsule = tensor.__dlpack__(stream=device.stream) if isinstance(device, CudaDevice) else tensor.__dlpack__()
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found = _DLTensor.from_address(int(read(capsule, b"dltensor")))
    shape = tuple(found.shape[: found.ndim])
    if found.device_type != DEVICE_TYPES[device.kind]:
        raise BackendError(f"decoded frame on DLPack device {found.device_type}, expected {device.kind}")
    if (found.code, found.bits, found.lanes) != UINT8:
        raise BackendError("decoded frame does not hold bytes: only 8-bit video can be decoded on the GPU")
    dense = [int(np.prod(shape[place + 1 :], dtype=np.int64)) for place in range(found.ndim)]
    if found.strides and list(found.strides[: found.ndim]) != dense:
        raise BackendError("decoded frame has gaps between its rows")
    # The capsule owns the tensor until a consumer takes it over, which we do not.
    return Buffer(device, int(found.data) + found.byte_offset, shape, np.dtype(np.uint8), (capsule, tensor))


def library() -> Any:
    """Return PyNvVideoCodec. Raises ``BackendError`` if it cannot be loaded."""
    try:
        import PyNvVideoCodec as codec  # noqa: N813
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendError(f"PyNvVideoCodec cannot be loaded ({reason}): {INSTALL}") from None
    return codec


def send_library_output_to_stderr() -> None:
    """Redirect the output of C libraries to stderr: NVDEC's reports of damaged pictures would mix with JSON lines."""
    try:
        if sys.stdout.fileno() != STDOUT:
            return
    except (OSError, ValueError):  # not a file
        return
    sys.stdout.flush()
    ours = os.dup(STDOUT)
    os.dup2(STDERR, STDOUT)
    before = sys.stdout
    sys.stdout = os.fdopen(
        ours, "w", encoding=before.encoding, errors=before.errors, buffering=1 if before.isatty() else -1
    )


def usable_decoder(choice: Choice, model: LoadedModel, note: Callable[[str], None]) -> Choice:
    """Return the decoder for a model: the choice, or ``cpu`` if ``auto`` finds that the GPU cannot decode.

    Args:
        choice: the value of ``--decoder``.
        model: that will take the frames.
        note: called with one line if ``auto`` falls back to the CPU.

    Raises:
        UsageError: ``gpu``, but the model does not run on a GPU.
        BackendError: ``gpu``, but PyNvVideoCodec or the graph that makes frames is missing.
    """
    if choice == "cpu":
        return choice
    try:
        if model.resident is None:
            raise UsageError("--decoder gpu needs a backend on an NVIDIA GPU")
        PixelMaker(model.resident)
        library()
    except (UsageError, BackendError) as error:
        if choice == "gpu":
            raise
        reason = "the model does not run on an NVIDIA GPU" if model.resident is None else error
        note(f"decoding on the CPU: {reason}")
        return "cpu"
    return choice


def sampled_frames_on_gpu(
    clip: Clip, resident: DeviceRunner, segments: int, *, strict: bool, note: Callable[[str], None]
) -> Iterator[tuple[int, Buffer | ModelFrame]]:
    """Decode the frames that represent a clip on the model's GPU; decode on the CPU those that the GPU cannot.

    Args:
        clip: a video, or a folder of frames, which is never decoded on the GPU.
        resident: runs the model.
        segments: T.
        strict: whether to raise an error instead of decoding on the CPU.
        note: called with one line if the CPU has to decode.

    Yields:
        Each frame number with a model frame, on the device or on the host.

    Raises:
        SourceError: the clip cannot be decoded.
    """
    from adafocus_edge.media.video_file import VideoFile

    done = 0
    try:
        if not isinstance(clip, VideoFile):
            raise NotOnGpuError("only video files are decoded on the GPU")
        for made in decoded_frames(clip, resident, segments):
            yield made
            done += 1
        return
    except NotOnGpuError as error:
        if strict:
            raise SourceError(f"{clip.name}: {error}: remove --decoder gpu") from None
        note(f"{clip.name}: decoded on the CPU: {error}")
    yield from model_frames(clip, sample_indices(clip.frame_count, segments)[done:], resident.spec)


def decoded_frames(clip: VideoFile, resident: DeviceRunner, segments: int) -> Iterator[tuple[int, Buffer]]:
    """Decode the frames that represent a clip on the model's GPU, and make model frames of them.

    Frames are numbered as by the CPU's decoder (:func:`adafocus_edge.media.preprocess.sampled_frames`).

    Args:
        clip: the video.
        resident: runs the model.
        segments: T.

    Yields:
        Each frame number with uint8 [1, S, S, 3] on the device.

    Raises:
        BackendError: PyNvVideoCodec cannot be loaded, or the device failed.
        NotOnGpuError: the GPU cannot decode this video, or counts frames differently from the CPU's decoder.
        SourceError: neither can decode this video.
    """
    layout = clip.nv12()
    codec = library()
    with wrap_errors(clip.address):
        decoder = codec.SimpleDecoder(clip.address, gpu_id=0, use_device_memory=True)
        count = len(decoder)
    if count != clip.frame_count:
        raise NotOnGpuError(f"the GPU's decoder counts {count} frames, the CPU's {clip.frame_count}")

    def read(index: int) -> Buffer:
        with wrap_errors(clip.address):
            return from_dlpack(decoder[index], resident.device)

    yield from make_frames(read, clip, layout, resident, segments)


def make_frames(
    read: Any, clip: Clip, layout: Decoded, resident: DeviceRunner, segments: int
) -> Iterator[tuple[int, Buffer]]:
    """Make a clip's model frames; ``read`` decodes a frame by its number to NV12 planes, uint8 [3/2 height, width]."""
    spec, maker = resident.spec, PixelMaker(resident)
    for index in sample_indices(clip.frame_count, segments):
        numbers: Sequence[int] = motion_frame_indices(clip, index, spec.motion_gap_s) if spec.motion_gap_s else (index,)
        planes = []
        for number in numbers:
            frame = read(number)
            if frame.shape != (layout.height * 3 // 2, layout.width):
                raise NotOnGpuError(
                    f"decoded frame of shape {frame.shape}, expected NV12 of {layout.width} x {layout.height}"
                )
            kept = resident.device.empty(frame.shape, np.uint8)  # the decoder reuses its memory
            with resident.device.use():
                resident.device.copy(kept, frame)
                resident.device.finish()
            planes.append(kept)
        yield index, maker.make(planes, layout)


@contextmanager
def wrap_errors(address: str) -> Iterator[None]:
    """Convert the library's exceptions to ``NotOnGpuError``, in one line without secrets of the address."""
    try:
        yield
    except AdaFocusError:
        raise
    except Exception as error:  # the library has exception types of its own
        reason = conceal((str(error).strip().splitlines() or [type(error).__name__])[0], address)
        raise NotOnGpuError(f"the GPU cannot decode it ({reason})") from None
