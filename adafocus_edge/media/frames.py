"""Model frames: pixels marked with how they were made, and checks against input that a model would misread."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image

from adafocus_edge.errors import FrameError

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from typing_extensions import Self

    from adafocus_edge.model.spec import Fit, ModelSpec

Kind = Literal["rgb", "motion"]
MAKERS = "adafocus_edge.media.preprocess"
"""The module that makes model frames, as error messages name it."""
PICTURE_MODES = ("RGB", "L")
"""Pillow's modes of pictures from which frames can be made."""


class ModelFrame(np.ndarray[Any, np.dtype[np.uint8]]):
    """The input of a model: a frame, uint8 [S, S, 3], or a clip of them, uint8 [T, S, S, 3].

    It is a NumPy array that is marked with how it was made. Slices of it are model frames, too. Arrays that are
    computed or stacked from it are plain arrays; mark them with :meth:`of`. ``adafocus_edge.media.preprocess`` makes
    model frames.

    Attributes:
        fit: how the source frame became square (:class:`ModelSpec`).
        motion_gap_s: 0 for RGB; otherwise the gap between the three luminances that are its channels, in seconds.
    """

    fit: Fit
    motion_gap_s: float

    @classmethod
    def of(cls, pixels: NDArray[np.uint8], spec: ModelSpec) -> Self:
        """Mark pixels that were made according to a model's specification, without a copy.

        Args:
            pixels: uint8 [S, S, 3] or [T, S, S, 3].
            spec: the model's specification.

        Raises:
            FrameError: type or shape do not fit the model.
        """
        _check_pixels(pixels, spec.frame_size, clip=np.ndim(pixels) == 4)
        made = pixels.view(cls)
        made.fit, made.motion_gap_s = spec.fit, spec.motion_gap_s
        return made

    @property
    def kind(self) -> Kind:
        """Content of the three channels: ``rgb`` or ``motion``."""
        return "motion" if self.motion_gap_s else "rgb"

    def __array_finalize__(self, parent: Any) -> None:
        # A view of a plain array has no marks, and models refuse it.
        self.fit = getattr(parent, "fit", None)  # type: ignore[assignment]
        self.motion_gap_s = getattr(parent, "motion_gap_s", None)  # type: ignore[assignment]

    def __array_wrap__(self, array: Any, context: Any = None, return_scalar: bool = False) -> Any:
        del context, return_scalar  # NumPy 1 does not pass the latter
        plain = array.view(np.ndarray)
        return plain if plain.ndim else plain[()]


@runtime_checkable
class DeviceTensor(Protocol):
    """A tensor in a device's memory, as far as checks need it; a backend's ``Buffer`` is one."""

    @property
    def address(self) -> int:
        """Address of its first byte."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape, batch first."""

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of its elements."""


@runtime_checkable
class KnownFrame(Protocol):
    """A frame marked with how it was made: a :class:`ModelFrame`, or one in a device's memory."""

    @property
    def fit(self) -> Fit:
        """See :class:`ModelFrame`."""

    @property
    def motion_gap_s(self) -> float:
        """See :class:`ModelFrame`."""


def blank_frame(spec: ModelSpec) -> ModelFrame:
    """Return a black model frame, uint8 [S, S, 3], to warm up a model."""
    return ModelFrame.of(np.zeros((spec.frame_size, spec.frame_size, 3), np.uint8), spec)


def check_frames(frames: Sequence[Any] | NDArray[np.uint8], spec: ModelSpec) -> None:
    """Check that a model can take frames, before it misreads one.

    Args:
        frames: a sequence of uint8 [S, S, 3], or uint8 [N, S, S, 3] as one array: model frames, tensors on a device, or
            plain arrays if the model sees RGB.
        spec: the model's specification.

    Raises:
        FrameError: a frame does not fit the model; names the frame found, what the model takes, and the fix.
    """
    if isinstance(frames, np.ndarray):
        _check_frame(frames, spec, clip=True)
        return
    if not isinstance(frames, Sequence) or isinstance(frames, str):
        raise FrameError(f"frames: {_described(frames)}: pass a list of frames, or one array [N, S, S, 3]")
    for frame in frames:
        _check_frame(frame, spec, clip=False)


def check_frame(frame: Any, spec: ModelSpec) -> None:
    """Check that a model can take one frame, uint8 [S, S, 3]; see :func:`check_frames`."""
    _check_frame(frame, spec, clip=False)


def _check_frame(frame: Any, spec: ModelSpec, *, clip: bool) -> None:
    _check_pixels(frame, spec.frame_size, clip=clip)
    if isinstance(frame, (ModelFrame, KnownFrame)):
        if (frame.motion_gap_s, frame.fit) != (spec.motion_gap_s, spec.fit):
            raise FrameError(
                f"frame: made for {_purpose(frame.motion_gap_s, frame.fit)}, but this model takes "
                f"{_purpose(spec.motion_gap_s, spec.fit)}: make it for this model's spec with {MAKERS}"
            )
    elif spec.motion_gap_s:
        raise FrameError(
            f"frame: {_described(frame)} may be RGB, but this model takes {_purpose(spec.motion_gap_s, spec.fit)}: "
            f"make it with FrameMaker, motion_frame or sampled_frames of {MAKERS}; mark stacked or stored frames with "
            "adafocus_edge.media.frames.ModelFrame.of(pixels, spec)"
        )


def _purpose(motion_gap_s: float | None, fit: Fit | None) -> str:
    if motion_gap_s is None:
        return "an unknown model"
    if not motion_gap_s:
        return f"RGB frames (fit {fit})"
    return f"motion frames (luminance {2 * motion_gap_s:g} s before, {motion_gap_s:g} s before and now; fit {fit})"


def _check_pixels(frame: Any, size: int, *, clip: bool) -> None:
    """Check the type and the shape of a frame, or of a clip's frames in one array."""
    wanted = f"uint8 [{'N, ' * clip}{size}, {size}, 3]"
    if not isinstance(frame, (np.ndarray, DeviceTensor)):
        raise FrameError(f"frame: {_described(frame)}: a model takes {wanted}: make one with {MAKERS}")
    shape = frame.shape
    if len(shape) == 4 and shape[0] == 1 and not clip and isinstance(frame, DeviceTensor):
        shape = shape[1:]  # a row of a batch on the device
    if frame.dtype != np.uint8:
        raise FrameError(f"frame: {_described(frame)}: a model takes {wanted}: {_fix_of_type(frame.dtype)}")
    if shape[-3:] != (size, size, 3) or len(shape) != 3 + clip:
        raise FrameError(f"frame: {_described(frame)}: a model takes {wanted}: {_fix_of_shape(shape, size)}")


def _fix_of_type(kind: np.dtype[Any]) -> str:
    if np.issubdtype(kind, np.floating):
        return "multiply 0..1 by 255, round, and convert to uint8 (normalisation is inside the model)"
    return "convert it to uint8, 0..255"


def _fix_of_shape(shape: tuple[int, ...], size: int) -> str:
    if shape[-3:] == (3, size, size):
        return "the channels must come last: transpose it"
    if shape[-1:] == (4,):
        return "remove the alpha channel"
    if len(shape) in (3, 4) and shape[-3:] == (size, size, 3):
        return "pass one frame of each clip, as a list or as one array"
    return f"make it with {MAKERS}"


def _described(thing: Any) -> str:
    """Return the type of an object, and for arrays also element type and shape."""
    if isinstance(thing, Image.Image):
        return f"a PIL image ({thing.mode}, {thing.width} x {thing.height})"
    if isinstance(thing, (np.ndarray, DeviceTensor)):
        what = "a plain array" if type(thing) is np.ndarray else type(thing).__name__
        return f"{what} {thing.dtype} {list(thing.shape)}"
    module = type(thing).__module__.partition(".")[0]
    return f"a {type(thing).__name__}" if module == "builtins" else f"a {module} {type(thing).__name__}"


def as_picture(picture: Any) -> Image.Image:
    """Return a picture of any size as a PIL image in mode RGB or L.

    Args:
        picture: a PIL image in one of these modes, or uint8 [H, W, 3] in the order red, green, blue (OpenCV's order is
            the reverse, which no check can detect: pass ``bgr[..., ::-1]``), or grey uint8 [H, W].

    Raises:
        FrameError: it is anything else; names what was given and the fix.
    """
    if isinstance(picture, Image.Image):
        if picture.mode not in PICTURE_MODES:
            raise FrameError(f"picture: {_described(picture)}: use image.convert('RGB')")
        if not picture.width or not picture.height:
            raise FrameError(f"picture: {_described(picture)}: it is empty")
        return picture
    if not isinstance(picture, np.ndarray):
        raise FrameError(f"picture: {_described(picture)}: give a PIL image, or uint8 [H, W, 3] RGB")
    wrong = f"picture: {_described(picture)}: give a PIL image, or uint8 [H, W, 3] RGB"
    if isinstance(picture, ModelFrame):
        raise FrameError(f"{wrong}: this is already a model frame")
    if picture.dtype != np.uint8:
        raise FrameError(f"{wrong}: {_fix_of_type(picture.dtype)}")
    if 0 in picture.shape:
        raise FrameError(f"{wrong}: it is empty")
    if picture.ndim != 2 and (picture.ndim != 3 or picture.shape[2] != 3):
        raise FrameError(f"{wrong}: {_fix_of_picture(picture.shape)}")
    return Image.fromarray(picture)


def _fix_of_picture(shape: tuple[int, ...]) -> str:
    if len(shape) == 3 and shape[2] == 4:
        return "remove the alpha channel: picture[..., :3]"
    if len(shape) == 3 and shape[2] == 1:
        return "a grey picture must be [H, W]: picture[..., 0]"
    if len(shape) == 3 and shape[0] in (1, 3, 4):
        return "the channels must come last: picture.transpose(1, 2, 0)"
    return "give one picture at a time" if len(shape) == 4 else "a picture is [H, W, 3] or [H, W]"
