"""A model that a Triton server runs: whole clips, and streams whose states the server keeps."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.base import StepPieces
from adafocus_edge.backends.loaded import LoadedModel
from adafocus_edge.backends.triton.address import Address
from adafocus_edge.backends.triton.client import Connection, Request
from adafocus_edge.backends.triton.served import Served, ServedBundle, bundle_of, check_same
from adafocus_edge.errors import BackendError, ServerLostError
from adafocus_edge.media.frames import ModelFrame, blank_frame, check_frames
from adafocus_edge.model.spec import CLIP_GRAPH, GRAPHS, STEP_GRAPH, Glimpse, ModelSpec, TensorSpec

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.bundle.manifest import Bundle

BACKEND = "triton"
"""Name of the backend in results."""
STEP_OUTPUTS = ("origin", "logits")
CLIP_OUTPUTS = ("origins", "logits")
ID_BITS = 62
"""Numbers of sequences are drawn at random: clients do not know of each other."""
GOODBYE_S = 2.0
"""How long the end of a sequence that is of no more use may take."""


def find_served(address: Address, own: Bundle | None = None, variant: str = "auto") -> ServedBundle:
    """Ask a server for its model.

    Args:
        address: of the model.
        own: a bundle that the server's model must be of; None for any.
        variant: that it must be; ``auto`` for any.

    Raises:
        UsageError: it serves another model or variant.
        BackendError: no server answers there, or it does not serve the model.
    """
    connection = Connection(address)
    try:
        found = bundle_of(connection.served(), address)
    finally:
        connection.close()
    if own is not None:
        check_same(found, own, variant)
    return found


def open_served(bundle: ServedBundle) -> LoadedModel:
    """Return a served model that is ready to run. Raises ``BackendError`` if the server cannot be asked again."""
    connection = Connection(bundle.address)
    with ExitStack() as opened:
        opened.callback(connection.close)
        runner = RemoteRunner(connection, bundle.served)
        runner.check()
        opened.pop_all()
    why = (
        f"{bundle.address}: the server runs whole steps and clips, but this needs single graphs: use the bundle itself"
    )
    absent = NotServed(why)
    sessions = dict.fromkeys(GRAPHS, absent)
    model = LoadedModel.of(bundle.spec, sessions, BACKEND, bundle.served.variant, bundle.spec.segments)
    return replace(model, remote=runner)


@dataclass(frozen=True)
class NotServed:
    """Stands for a single graph, which a server of whole steps and clips does not run.

    Attributes:
        why: the error of a run that needs the graph.
    """

    why: str

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Raise ``BackendError``."""
        raise BackendError(self.why)

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Raise ``BackendError``."""
        raise BackendError(self.why)

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Raise ``BackendError``."""
        del feeds
        raise BackendError(self.why)

    def close(self) -> None:
        """Do nothing: there is nothing to free."""


class RemoteRunner:
    """The glimpse loop on a server: the :class:`Runner` of a served model.

    Args:
        connection: to the server; the runner closes it.
        served: the description that the server has given.
    """

    largest_batch = None

    def __init__(self, connection: Connection, served: Served) -> None:
        self._connection = connection
        self._served = served
        self._lanes: list[RemoteLanes] = []

    @property
    def spec(self) -> ModelSpec:
        """The model's shapes and names."""
        return self._served.model

    @property
    def address(self) -> Address:
        """Where the model is served."""
        return self._connection.address

    def check(self) -> None:
        """Check that the server still serves the same model. Raises ``BackendError``."""
        if self._connection.served() != self._served:
            raise BackendError(f"{self.address}: the server's model has changed meanwhile: start this run again")

    def see_clip(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Run a whole clip in one request; one of other lengths, or without such a model, frame by frame."""
        pixels = np.asarray(frames)
        if not self._served.clips or len(pixels) != self.spec.segments:
            yield from self._see_frames(pixels)
            return
        (made,) = self._connection.run([Request(CLIP_GRAPH, pixels[None], CLIP_OUTPUTS)])
        for step in range(len(pixels)):
            yield Glimpse(made["origins"][0, step : step + 1], made["logits"][0, step : step + 1])

    def _see_frames(self, frames: NDArray[np.uint8]) -> Iterator[Glimpse]:
        lanes = self.lanes()
        stream = lanes.join()
        try:
            for frame in frames:
                yield lanes.step({stream: ModelFrame.of(frame, self.spec)})[stream]
        finally:
            lanes.close()
            self._lanes.remove(lanes)

    def pieces(self) -> StepPieces:
        """Return a new loop over one clip, step by step: each frame is sent only once it is needed."""
        return StepPieces(self.steps(1))

    def steps(self, clips: int) -> RemoteSteps:
        """Return a new loop over the steps of N clips at once."""
        return RemoteSteps(self.lanes(), clips)

    def lanes(self) -> RemoteLanes:
        """Return streams that step together."""
        lanes = RemoteLanes(self, self._connection)
        self._lanes.append(lanes)
        return lanes

    def close(self) -> None:
        """End all sequences, and close the connection."""
        for lanes in list(self._lanes):
            lanes.close()
        self._connection.close()


@dataclass
class _Sequence:
    """A sequence of the server: one stream's clips, one after another.

    Attributes:
        number: by which the server knows it.
        seen: frames of the present clip that it has seen.
    """

    number: int = field(default_factory=lambda: 1 + secrets.randbits(ID_BITS))
    seen: int = 0


class RemoteLanes:
    """The counterpart of :class:`~adafocus_edge.runtime.lanes.Lanes` for a served model: each stream is a sequence.

    The steps of all streams are sent at once, and the server batches them, also with those of other clients. A clip's
    first frame starts a sequence, which sets its states to zero, and its last one ends it.

    Args:
        runner: of the model.
        connection: to its server.
    """

    def __init__(self, runner: RemoteRunner, connection: Connection) -> None:
        self._runner, self._connection = runner, connection
        self._sequences: dict[int, _Sequence] = {}
        self._count = 0
        self._lost = False

    @property
    def streams(self) -> tuple[int, ...]:
        """Return the numbers of all streams."""
        return tuple(self._sequences)

    def prepare(self) -> Iterator[int]:
        """Run one step with a blank frame, so that a server that cannot run the model is found at the start."""
        yield 1
        self._connection.run([self._request(_Sequence(), blank_frame(self._runner.spec), end=True)])

    def join(self) -> int:
        """Add a stream, at the beginning of a clip; return its number."""
        stream, self._count = self._count, self._count + 1
        self._sequences[stream] = _Sequence()
        return stream

    def leave(self, stream: int) -> None:
        """Remove a stream."""
        self._end([self._sequences.pop(stream)])

    def restart(self, stream: int) -> None:
        """Start a new clip of a stream with its next frame."""
        self._sequences[stream].seen = 0

    def step(self, frames: Mapping[int, NDArray[Any]]) -> dict[int, Glimpse]:
        """Run a step with one frame of some of the streams; return the glimpse of each.

        Raises:
            FrameError: the model would misread a frame.
            ServerLostError: the server is gone or has lost states: every stream starts a new clip with its next frame.
            BackendError: the server refuses, its model has changed, or a clip has no more frames.
        """
        check_frames(list(frames.values()), self._runner.spec)
        if self._lost:
            self._runner.check()
            self._lost = False
        sequences = [self._sequences[stream] for stream in frames]
        segments = self._runner.spec.segments
        if any(sequence.seen == segments for sequence in sequences):
            raise BackendError(f"{self._runner.address}: a clip of the served model has {segments} frames: restart it")
        requests = [
            self._request(sequence, frame, end=sequence.seen + 1 == segments)
            for sequence, frame in zip(sequences, frames.values(), strict=True)
        ]
        try:
            made = self._connection.run(requests)
        except ServerLostError:
            self._lost = True
            self._sequences = {stream: _Sequence() for stream in self._sequences}
            raise
        for sequence in sequences:
            sequence.seen += 1
        return {
            stream: Glimpse(one["origin"], one["logits"]) for stream, one in zip(frames, made, strict=True)
        }  # fmt: skip

    def close(self) -> None:
        """End the sequences of all streams."""
        self._end(list(self._sequences.values()))
        self._sequences = {}

    def _end(self, sequences: Sequence[_Sequence]) -> None:
        """End sequences in the middle of a clip, so that the server keeps no states for them."""
        blank = blank_frame(self._runner.spec)
        open_ones = [one for one in sequences if 0 < one.seen < self._runner.spec.segments]
        if open_ones and not self._lost:
            with suppress(BackendError):  # then the server forgets them after a while
                self._connection.run([self._request(one, blank, end=True) for one in open_ones], GOODBYE_S)

    def _request(self, sequence: _Sequence, frame: NDArray[Any], *, end: bool) -> Request:
        start = sequence.seen == 0
        return Request(STEP_GRAPH, np.asarray(frame)[None], STEP_OUTPUTS, sequence.number, start=start, end=end)


class RemoteSteps:
    """The glimpse loop over N clips of a served model, one frame of each at a time.

    Args:
        lanes: of the model, without streams.
        clips: N.
    """

    def __init__(self, lanes: RemoteLanes, clips: int) -> None:
        self._lanes = lanes
        self._streams = [lanes.join() for _ in range(clips)]

    def reset(self) -> None:
        """Start every clip again with the next step."""
        for stream in self._streams:
            self._lanes.restart(stream)

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Glimpse:
        """Run one step with one frame of each clip."""
        made = self._lanes.step(dict(zip(self._streams, frames, strict=True)))
        origins, logits = zip(*((made[one].origins, made[one].logits) for one in self._streams), strict=True)
        return Glimpse(np.concatenate(origins), np.concatenate(logits))
