"""Decoding on an NVIDIA GPU with PyNvVideoCodec: frames are made into model frames where they were decoded."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.addresses import conceal
from adafocus_edge.backends.cuda import CudaDevice
from adafocus_edge.backends.memory import Buffer, Device
from adafocus_edge.errors import AdaFocusError, BackendError, SourceError
from adafocus_edge.pixels import Decoded, PixelMaker
from adafocus_edge.preprocess import motion_frame_indices, sample_indices

if TYPE_CHECKING:
    from adafocus_edge.backends.resident import Resident
    from adafocus_edge.sources import Clip
    from adafocus_edge.video import VideoFile

INSTALL = "pip install 'adafocus-edge[nvdec]', or leave out --decoder gpu"
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
    """Take a tensor of bytes where it lies, through DLPack.

    Args:
        tensor: with ``__dlpack__``; it must not be written to as long as the buffer is in use.
        device: whose memory it lies in.

    Raises:
        BackendError: it lies elsewhere, is not dense, or holds no bytes.
    """
    # The producer lets our queue wait for the tensor to be there.
    capsule = tensor.__dlpack__(stream=device.stream) if isinstance(device, CudaDevice) else tensor.__dlpack__()
    read = ctypes.pythonapi.PyCapsule_GetPointer
    read.restype, read.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    found = _DLTensor.from_address(int(read(capsule, b"dltensor")))
    shape = tuple(found.shape[: found.ndim])
    if found.device_type != DEVICE_TYPES[device.kind]:
        raise BackendError(f"a decoded frame lies on DLPack's device {found.device_type}, not on {device.kind}")
    if (found.code, found.bits, found.lanes) != UINT8:
        raise BackendError("a decoded frame holds no bytes: only 8-bit video can be decoded on the GPU")
    dense = [int(np.prod(shape[place + 1 :], dtype=np.int64)) for place in range(found.ndim)]
    if found.strides and list(found.strides[: found.ndim]) != dense:
        raise BackendError("a decoded frame has gaps between its rows")
    # The capsule owns the tensor as long as nobody takes it over.
    return Buffer(device, int(found.data) + found.byte_offset, shape, np.dtype(np.uint8), (capsule, tensor))


def decoded_frames(clip: VideoFile, resident: Resident) -> Iterator[tuple[int, Buffer]]:
    """Decode the frames that stand for a clip, as the model sees them, on the model's GPU.

    Frames have the numbers that the CPU's decoder gives them (:func:`adafocus_edge.preprocess.sampled_frames`).

    Args:
        clip: the video.
        resident: the model.

    Yields:
        each number with uint8 [1, S, S, 3] on the device.

    Raises:
        BackendError: PyNvVideoCodec cannot run here.
        SourceError: it cannot decode this video, or counts other frames than the CPU's decoder.
    """
    decoder = _open(clip, resident)
    layout = clip.nv12()
    with _telling(clip):
        count = len(decoder)
    if count != clip.frame_count:
        raise SourceError(
            f"{clip.name}: the GPU's decoder counts {count} frames, the CPU's {clip.frame_count}: "
            "leave out --decoder gpu"
        )

    def read(index: int) -> Buffer:
        with _telling(clip):
            return from_dlpack(decoder[index], resident.device)

    yield from make_frames(read, clip, layout, resident)


def make_frames(read: Any, clip: Clip, layout: Decoded, resident: Resident) -> Iterator[tuple[int, Buffer]]:
    """Make a clip's model frames of what ``read`` decodes by number: NV12 planes, uint8 [3/2 height, width]."""
    spec, maker = resident.spec, PixelMaker(resident)
    for index in sample_indices(clip.frame_count, spec.segments):
        numbers: Sequence[int] = motion_frame_indices(clip, index, spec.motion_gap_s) if spec.motion_gap_s else (index,)
        planes = []
        for number in numbers:
            frame = read(number)
            if frame.shape != (layout.height * 3 // 2, layout.width):
                raise SourceError(f"a decoded frame is {frame.shape}, not NV12 of {layout.width} x {layout.height}")
            kept = resident.device.empty(frame.shape, np.uint8)  # decoders use their memory again
            with resident.device.use():
                resident.device.copy(kept, frame)
                resident.device.finish()
            planes.append(kept)
        yield index, maker.make(planes, layout)


def _open(clip: VideoFile, resident: Resident) -> Any:
    if resident.device.kind != "cuda":
        raise BackendError("--decoder gpu needs a backend on an NVIDIA GPU")
    try:
        import PyNvVideoCodec as codec  # noqa: N813
    except (ImportError, OSError, RuntimeError) as error:
        said = " ".join(str(error).split())
        raise BackendError(f"PyNvVideoCodec cannot be loaded here ({said}): {INSTALL}") from None
    with _telling(clip):
        return codec.SimpleDecoder(clip.address, gpu_id=0, use_device_memory=True)


@contextmanager
def _telling(clip: VideoFile) -> Iterator[None]:
    """Turn what the library raises into a line."""
    try:
        yield
    except AdaFocusError:
        raise
    except Exception as error:  # it raises exceptions of its own kinds
        said = conceal((str(error).splitlines() or [type(error).__name__])[0], clip.address)
        raise SourceError(f"{clip.name}: the GPU cannot decode it ({said}): leave out --decoder gpu") from None
