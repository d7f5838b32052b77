"""The model's shapes, graphs and preprocessing: frozen dataclasses that check their values when they are created."""

from __future__ import annotations

import math
import re
import unicodedata
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


Library = Literal["auto", "tensorrt", "tensorrt-rtx"]
"""TensorRT libraries; ``auto`` takes the first that is installed and can run."""
HardwareCompatibility = Literal["none", "same", "ampere+"]
"""GPUs that may load an engine: the kind it was built on, all of that compute capability, or all from Ampere on."""
Consensus = Literal["gru", "fc", "max"]
"""A GRU (V1); the mean of per-frame probabilities (V1); the running maximum, with a linear layer per step (V2)."""
Choice = Literal["grid", "point"]
"""The policy's choice: a cell of a grid, in whole pixels (V1); any point, with bilinear patches (V2)."""
ViewingOrder = Literal["time", "frameexit"]
"""The order in which a model was trained to see a clip's frames: in time; or as V2's ``--sample`` does."""
Fit = Literal["crop", "squash"]
Patch = tuple[float, float, int]
"""A patch's corner (y, x) and its side, in pixels of the preprocessed frame."""
GRAPHS = ("glancer", "policy", "focuser", "classifier")
"""The four graphs of a model, in the order in which a step runs them."""
STATES = {"policy": "policy_state", "classifier": "state"}
"""The state that a recurrent graph reads, by graph; what it leaves for the next step is named ``STATE_out``."""
STEP_GRAPH = "step"
"""The optional fifth graph: the whole step, joined from the four."""
CLIP_GRAPH = "clip"
"""A graph of a whole clip, joined from the four; bundles hold none: it is made for a server of models."""
MAX_SEGMENTS = 4096
"""Maximum number of frames of a clip, which are all in memory at once."""


def class_name(text: str) -> str:
    """Return a class name in the Unicode form in which names are stored and compared (NFC).

    File systems of macOS store é as two characters.
    """
    return unicodedata.normalize("NFC", text)


@dataclass(frozen=True)
class ModelSpec:
    """Everything that determines the shapes of an AdaFocus model. Sizes are in pixels, all other numbers are counts.

    Attributes:
        glancer: name of the backbone for whole frames.
        focuser: name of the backbone for patches.
        glance_dim: channels of the glancer's last feature map (1280 for MobileNetV2).
        focus_dim: length of the focuser's pooled feature (2048 for ResNet-50).
        frame_size: S, side of the square preprocessed frame.
        glance_size: side of the frame at the glancer's input.
        patch_size: P, side of the patch at the focuser's input.
        grid: n; the policy chooses one of n x n cells; 0 with ``choice="point"``.
        segments: T, frames sampled from one clip.
        policy_state: H, length of the policy's recurrent state.
        classifier_state: H, length of the classifier's recurrent state (with ``consensus="fc"``: classes + 1;
            with ``consensus="max"``: width of the maximum + 1).
        classes: C, number of classes.
        consensus: see :data:`Consensus`.
        with_glancer: whether the classifier also sees the glancer's pooled feature.
        policy_conv: whether the policy's encoder begins with a 1 x 1 convolution.
        fit: how a source frame becomes square: ``crop`` cuts out the centre, as the official code does; ``squash``
            resizes the whole frame, so that nothing at its sides is lost.
        motion_gap_s: 0 for RGB frames, as in the official code. Otherwise a frame's three channels are its luminance
            two gaps before, one gap before and now, so that motion appears as colour; in seconds.
        choice: see :data:`Choice`.
        order: see :data:`ViewingOrder`.

    Raises:
        ValueError: a value is out of range, with the range.
    """

    glancer: str
    focuser: str
    glance_dim: int
    focus_dim: int
    frame_size: int
    glance_size: int
    patch_size: int
    grid: int
    segments: int
    policy_state: int
    classifier_state: int
    classes: int
    consensus: Consensus = "gru"
    with_glancer: bool = True
    policy_conv: bool = True
    fit: Fit = "crop"
    motion_gap_s: float = 0.0
    choice: Choice = "grid"
    order: ViewingOrder = "time"

    def __post_init__(self) -> None:
        for name in ("glance_dim", "focus_dim", "segments", "policy_state", "classifier_state", "classes"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name, limit in (("frame_size", 2048), ("glance_size", 2048), ("segments", MAX_SEGMENTS)):
            if getattr(self, name) > limit:
                raise ValueError(f"{name} must be at most {limit}, not {getattr(self, name)}")
        if not 0 <= self.motion_gap_s <= 10:
            raise ValueError(f"motion_gap_s must be 0 to 10 seconds, not {self.motion_gap_s}")
        if self.choice == "point" and self.grid:
            raise ValueError(f"grid must be 0 for a policy that chooses points, not {self.grid}")
        if self.choice == "grid" and self.grid < 2:
            raise ValueError(f"the action grid must be at least 2 x 2, not {self.grid} x {self.grid}")
        if not 32 <= self.patch_size <= self.frame_size:
            raise ValueError(f"patch_size must be 32 to {self.frame_size}, the frame size, not {self.patch_size}")
        if self.glance_size < 32:
            raise ValueError(f"glance_size must be at least 32, not {self.glance_size}")
        if self.consensus == "fc" and self.classifier_state != self.classes + 1:
            raise ValueError(
                f"classifier_state must be {self.classes + 1} with consensus fc (classes + 1), not "
                f"{self.classifier_state}"
            )

    @property
    def is_first_generation(self) -> bool:
        """Whether the model needs nothing that bundles of format 1 could not say."""
        return self.choice == "grid" and self.consensus != "max" and self.order == "time"

    @property
    def feature_map_size(self) -> int:
        """Side of the glancer's last feature map: the backbones halve a frame five times, rounding up."""
        return math.ceil(self.glance_size / 32)

    @property
    def actions(self) -> int:
        """Number of cells from which the policy chooses; 0 if it chooses points."""
        return self.grid * self.grid


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: its name, NumPy type name, and shape with ``"N"`` for the batch."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


def contract(spec: ModelSpec, graph: str) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Return the inputs and the outputs that a graph of this model must have (design.md, "The four graphs").

    ``graph`` is one of :data:`GRAPHS`, :data:`STEP_GRAPH` or :data:`CLIP_GRAPH`; any other name raises ``KeyError``.
    """
    side = spec.feature_map_size
    frame = TensorSpec("frame", "uint8", ("N", spec.frame_size, spec.frame_size, 3))
    feature_map = TensorSpec("feature_map", "float32", ("N", spec.glance_dim, side, side))
    glance = TensorSpec("glance", "float32", ("N", spec.glance_dim))
    origin = TensorSpec("origin", "float32", ("N", 2))
    action = TensorSpec("action", "int64", ("N",))
    focus = TensorSpec("focus", "float32", ("N", spec.focus_dim))
    logits = TensorSpec("logits", "float32", ("N", spec.classes))

    def state(name: str, length: int) -> TensorSpec:
        return TensorSpec(name, "float32", ("N", length))

    policy_state = state("policy_state", spec.policy_state)
    policy_state_out = state("policy_state_out", spec.policy_state)
    classifier_state = state("state", spec.classifier_state)
    classifier_state_out = state("state_out", spec.classifier_state)
    seen = (glance, focus) if spec.with_glancer else (focus,)
    chosen = (origin, action) if spec.choice == "grid" else (origin,)
    return {
        "glancer": ((frame,), (feature_map, glance)),
        "policy": ((feature_map, policy_state), (*chosen, policy_state_out)),
        "focuser": ((frame, origin), (focus,)),
        "classifier": ((*seen, classifier_state), (logits, classifier_state_out)),
        STEP_GRAPH: (
            (frame, policy_state, classifier_state),
            (logits, *chosen, policy_state_out, classifier_state_out),
        ),
        CLIP_GRAPH: (
            (TensorSpec("frames", "uint8", ("N", spec.segments, spec.frame_size, spec.frame_size, 3)),),
            (
                TensorSpec("logits", "float32", ("N", spec.segments, spec.classes)),
                TensorSpec("origins", "float32", ("N", spec.segments, 2)),
            ),
        ),
    }[graph]


@dataclass(frozen=True)
class Gpu:
    """A model of GPU.

    Attributes:
        name: product name, such as ``NVIDIA H200``.
        compute_capability: such as ``9.0``.
    """

    name: str
    compute_capability: str

    @property
    def slug(self) -> str:
        """Name for use in file names, such as ``nvidia-h200``."""
        return re.sub(r"[^a-z0-9]+", "-", self.name.lower()).strip("-")

    @property
    def sm(self) -> str:
        """Compute capability as NVIDIA's tools write it, such as ``sm_90``."""
        return "sm_" + self.compute_capability.replace(".", "")


RESIZE_RATIO = (256, 224)
"""The short side is resized to S * 256 / 224 (official ``scale_size``)."""
INTERPOLATION = "bilinear, antialiased"
"""Interpolation of that resize, by Pillow."""


def short_side(size: int) -> int:
    """Return the length in pixels to which the short side is resized before the centre S x S is cut out."""
    return size * RESIZE_RATIO[0] // RESIZE_RATIO[1]


@dataclass(frozen=True)
class Glimpse:
    """Result of one step, for each of N clips.

    Attributes:
        origins: float32 [N, 2], top-left corner (y, x) of the patch as a fraction of its free range, 0 to 1.
        logits: float32 [N, C], after all frames of the clip so far.
    """

    origins: NDArray[np.float32]
    logits: NDArray[np.float32]
