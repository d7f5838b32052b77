"""The contract of a backend: sessions that run one graph each, and the model that holds the four of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

from adafocus_edge.model.spec import Glimpse, TensorSpec

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from adafocus_edge.backends.tensors import Buffer, Work
    from adafocus_edge.bundle.manifest import Bundle


ConvSearch = Literal["heuristic", "exhaustive"]
"""How ONNX Runtime's CUDA provider picks the algorithm of each convolution: by cuDNN's heuristics, or by timing every
algorithm, which takes seconds for each shape and may run faster afterwards."""
CONV_SEARCH: ConvSearch = "heuristic"
"""The default: with ``exhaustive`` the first clip of the default model took 4.2 s on an H200."""


CPU_BACKEND = "onnxruntime-cpu"
"""The backend that runs everywhere."""
ORT_TENSORRT_BACKEND = "onnxruntime-tensorrt"
OPENVINO_BACKEND = "openvino"


@dataclass(frozen=True)
class LoadRequest:
    """A variant to open on a backend.

    Attributes:
        bundle: that holds it.
        variant: its name.
        backend: its name.
        threads: for computing on the CPU; None for as many as there are usable cores.
        conv_search: see :data:`ConvSearch`.
        device: of a backend that has several, such as ``GPU`` of OpenVINO; None for its default.
    """

    bundle: Bundle
    variant: str
    backend: str
    threads: int | None = None
    conv_search: ConvSearch = CONV_SEARCH
    device: str | None = None


class Tensor(Protocol):
    """An input or output of sessions: a NumPy array, or a tensor on a device with the same few methods.

    A slice of the batch is a view; ``numpy.asarray`` copies the values to the host.
    """

    @property
    def shape(self) -> tuple[int, ...]:
        """Return its shape, the batch first."""

    def __getitem__(self, rows: slice, /) -> Any:
        """Return a range of the batch, without a copy."""

    def __array__(self, dtype: Any = None, /, *, copy: bool | None = None) -> NDArray[Any]:
        """Copy to the host."""


class Session(Protocol):
    """One graph, ready to run.

    Attributes:
        inputs: its input tensors.
        outputs: its output tensors.
    """

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return its input tensors."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return its output tensors."""

    def run(self, feeds: Mapping[str, Tensor | NDArray[np.generic]]) -> dict[str, Any]:
        """Run the graph once. Feeds may come from the host or from another session of the same backend."""

    def close(self) -> None:
        """Free its memory; it cannot run after that."""


@runtime_checkable
class SplitSession(Session, Protocol):
    """A recurrent graph in two parts, of which the first can run for many frames of a clip at once."""

    def ahead(self, feeds: Mapping[str, Tensor | NDArray[np.generic]]) -> dict[str, Any]:
        """Run the part that does not depend on the state; return the feeds of :meth:`follow`, a row per frame."""

    def follow(self, feeds: Mapping[str, Tensor | NDArray[np.generic]]) -> dict[str, Any]:
        """Run the rest for one row of what :meth:`ahead` has returned, and the state; return the graph's outputs."""


class Program(Protocol):
    """One graph that runs on tensors in a device's memory, in the order of its queue.

    Attributes:
        inputs: its input tensors.
        outputs: its output tensors.
        capturable: whether the work that it queues may be recorded with other work (:meth:`Device.capture`).
        largest_batch: the maximum number of rows, or None for no limit.
    """

    @property
    def capturable(self) -> bool:
        """Return whether the work that it queues may be recorded with other work."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Return its input tensors."""

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Return its output tensors."""

    @property
    def largest_batch(self) -> int | None:
        """Return the maximum number of rows, or None for no limit."""

    def bind(self, tensors: Mapping[str, Buffer], *, fixed: bool) -> Work:
        """Return a callable that queues one run on these tensors.

        Args:
            tensors: every input and every output, by name, all of the same batch.
            fixed: whether it will run on them repeatedly.

        Raises:
            BackendError: it cannot run at this batch.
        """

    def close(self) -> None:
        """Free its memory; it cannot run after that."""


class Steps(Protocol):
    """N clips, one frame of each at a time; both states are kept between steps."""

    def reset(self) -> None:
        """Start every clip again with the next step."""

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Glimpse:
        """Run one step with one frame of each clip, uint8 [S, S, 3]; return origins [N, 2] and logits [N, C]."""


class Pieces(Protocol):
    """One clip, some frames at a time; both states are kept between them."""

    def reset(self) -> None:
        """Start a new clip with the next frames."""

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Run the clip's next frames, uint8 [S, S, 3] each; yield one glimpse per frame, for a batch of one.

        All glimpses must be taken before the next frames are given.
        """


class StepPieces:
    """One clip, whose frames are given some at a time and seen step by step: :class:`Pieces` made of :class:`Steps`.

    Args:
        steps: over one clip.
    """

    def __init__(self, steps: Steps) -> None:
        self._steps = steps

    def reset(self) -> None:
        """Start a new clip with the next frames."""
        self._steps.reset()

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """See the clip's next frames."""
        for frame in frames:
            yield self._steps.see([frame])


class Runner(Protocol):
    """Runs a model's graphs over whole clips and over steps, on the host or on a device.

    Attributes:
        largest_batch: how many clips can step together at most, or None for no limit.
    """

    @property
    def largest_batch(self) -> int | None:
        """Return how many clips can step together at most, or None for no limit."""

    def see_clip(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Run a whole clip of frames uint8 [S, S, 3]; yield one glimpse per frame, for a batch of one."""

    def pieces(self) -> Pieces:
        """Return a new loop over one clip, some frames at a time."""

    def steps(self, clips: int) -> Steps:
        """Return a new loop over the steps of N clips at once, with states of its own."""


class ServerLanes(Protocol):
    """Streams of a model that a server runs; the interface of :class:`~adafocus_edge.runtime.lanes.Lanes`."""

    @property
    def streams(self) -> tuple[int, ...]:
        """Return the numbers of all streams."""

    def prepare(self) -> Iterator[int]:
        """Prepare every batch size that may be needed; yield each before it is prepared."""

    def join(self) -> int:
        """Add a stream, at the beginning of a clip; return its number."""

    def leave(self, stream: int) -> None:
        """Remove a stream."""

    def restart(self, stream: int) -> None:
        """Start a new clip of a stream with its next frame."""

    def step(self, frames: Mapping[int, NDArray[Any]]) -> dict[int, Glimpse]:
        """Run a step with one frame of some of the streams; return the glimpse of each.

        Raises ``ServerLostError`` if the server is gone or has lost states: every stream then starts a new clip.
        """


class ServerRunner(Runner, Protocol):
    """Runs a model on a server, which keeps the states of its streams."""

    def lanes(self) -> ServerLanes:
        """Return streams that step together."""

    def check(self) -> None:
        """Check that the server still runs the same model. Raises ``BackendError``, ``ServerLostError``."""

    def close(self) -> None:
        """End all streams, and close the connection."""
