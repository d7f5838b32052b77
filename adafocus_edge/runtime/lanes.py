"""Many streams that step together as one batch, each with its own state."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.device.memory import HostDevice
from adafocus_edge.backends.device.runner import DeviceRunner, StepLoop
from adafocus_edge.errors import BackendError, UsageError
from adafocus_edge.media.frames import blank_frame, check_frames
from adafocus_edge.model.spec import GRAPHS, Glimpse

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.backends.base import ServerLanes, Session
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.backends.tensors import Buffer


WARM_STEPS = 2
"""Steps on each set of tensors to prepare a batch size: the first allocates, the second may be captured."""


class Lanes:
    """Streams as rows of a batch.

    Streams join and leave at any time. The batch size is the smallest of 1, 2, 4 ... that holds all streams; each size
    is captured once, when it is first needed, and kept. A stream without a frame skips a step: it keeps its state and
    its row, and the others do not wait for it. When a stream leaves, the last row takes its place.

    Args:
        model: a model loaded on any backend.
        most: maximum number of streams.

    Raises:
        UsageError: ``most`` is less than 1, or more than the engines of the model were built for.

    Example::

        lanes = Lanes(model, most=64)
        front, yard = lanes.join(), lanes.join()
        seen = lanes.step({front: frame, yard: other})  # {stream: Glimpse of float32 [1, 2] and [1, C]}
        lanes.leave(yard)
    """

    def __init__(self, model: LoadedModel, most: int) -> None:
        if most < 1:
            raise UsageError(f"streams: expected at least 1, found {most}")
        self._most = most
        self._resident = model.resident or _on_host(model)
        largest = self._resident.largest_batch
        if largest is not None and most > largest:
            raise UsageError(f"{most} streams: the engines take at most {largest}: build them with --streams {most}")
        self._loops: dict[int, StepLoop] = {}
        self._rows: list[int] = []  # the stream of each row
        self._fresh: set[int] = set()
        self._steps: deque[tuple[StepLoop, list[tuple[int, int]]]] = deque()
        self._count = 0
        self._loop: StepLoop | None = None

    @property
    def streams(self) -> tuple[int, ...]:
        """Return the numbers of all streams."""
        return tuple(self._rows)

    def prepare(self) -> Iterator[int]:
        """Prepare every batch size that may be needed, largest first, so that no later step has to wait for that.

        A size is prepared when the iterator is advanced, so a caller can report each size, and stop early.

        Yields:
            Each size, before it is prepared. Raises ``BackendError`` if the device fails or its memory is exhausted.
        """
        blank = blank_frame(self._resident.spec)
        for size in self._sizes():
            yield size
            loop = self._loop_of(size)
            for _ in range(2 * WARM_STEPS):  # two sets of tensors alternate
                loop.submit([blank] * size)
                loop.collect()
            loop.reset()

    def join(self) -> int:
        """Add a stream, at the beginning of a clip; return its number. Raises ``UsageError`` if there is no room."""
        if len(self._rows) == self._most:
            raise UsageError(f"{self._most} streams have joined, which is the maximum")
        stream, self._count = self._count, self._count + 1
        self._rows.append(stream)
        self._fresh.add(stream)
        try:
            self._fit()
        except BaseException:  # no memory for a larger batch: the other streams continue
            self._rows.remove(stream)
            self._fresh.discard(stream)
            raise
        return stream

    def leave(self, stream: int) -> None:
        """Remove a stream from the batch. :meth:`collect` still returns its steps under way."""
        row, last = self._rows.index(stream), len(self._rows) - 1
        loop = self._loop
        if row != last and loop is not None:
            loop.move(last, loop, row)
        self._rows[row] = self._rows[last]
        self._rows.pop()
        self._fresh.discard(stream)
        self._fit()

    def restart(self, stream: int) -> None:
        """Start a new clip of a stream with its next frame."""
        if stream not in self._rows:
            raise ValueError(f"no such stream: {stream}")
        self._fresh.add(stream)

    def submit(self, frames: Mapping[int, NDArray[Any] | Buffer]) -> None:
        """Queue a step with one frame of some of the streams; up to two steps may be under way.

        Args:
            frames: by stream, as :func:`adafocus_edge.runtime.glimpse.see_clip` takes them, on the host or on the
                device.

        Raises:
            BackendError: the device failed, or two steps are under way.
            FrameError: the model would misread a frame.
        """
        check_frames(list(frames.values()), self._resident.spec)
        unknown = [stream for stream in frames if stream not in self._rows]
        if unknown or not frames:
            raise ValueError(f"no such stream: {unknown[0]}" if unknown else "a step needs a frame")
        assert self._loop is not None
        rows = {stream: row for row, stream in enumerate(self._rows)}
        batch: list[Any] = [None] * len(rows)
        for stream, frame in frames.items():
            batch[rows[stream]] = frame
        self._loop.submit(batch, [rows[stream] for stream in self._fresh.intersection(frames)])
        self._fresh.difference_update(frames)
        self._steps.append((self._loop, [(stream, rows[stream]) for stream in frames]))

    def collect(self) -> dict[int, Glimpse]:
        """Wait for the oldest step under way; return the glimpse of each stream with a frame in it."""
        loop, seen = self._steps.popleft()
        made = loop.collect()
        return {stream: Glimpse(made.origins[row : row + 1], made.logits[row : row + 1]) for stream, row in seen}

    def step(self, frames: Mapping[int, NDArray[Any] | Buffer]) -> dict[int, Glimpse]:
        """Run a step and wait for it. Raises ``BackendError`` while other steps are under way."""
        if self._steps:
            raise BackendError("earlier steps are still running: collect their results first")
        self.submit(frames)
        return self.collect()

    def _fit(self) -> None:
        """Use the loop of the smallest batch that holds all streams, and move their states to it."""
        if not self._rows:
            return
        size = next(size for size in reversed(self._sizes()) if size >= len(self._rows))
        before = self._loop
        if before is not None and before.clips == size:
            return
        self._loop = loop = self._loop_of(size)
        if before is not None:
            for row in range(min(len(self._rows), before.clips)):
                before.move(row, loop, row)

    def _sizes(self) -> list[int]:
        """Return all batch sizes, largest first."""
        powers = (1 << power for power in range((self._most - 1).bit_length()))
        return sorted({*powers, self._most}, reverse=True)

    def _loop_of(self, size: int) -> StepLoop:
        if size not in self._loops:
            self._loops[size] = self._resident.steps(size)
        return self._loops[size]


class HostLanes:
    """The counterpart of :class:`Lanes` for a model of plain sessions, which on a CPU gain nothing from large batches.

    Streams with the same frame object share its glance, and those that look at the same patch of it share the focus:
    several staggered windows over one source cost little more than one. No graph gets more than ``model.batch`` rows at
    once: ONNX Runtime never frees the memory of its largest batch, about 9 MB a frame with the default model, and the
    step in which all sources have a frame may come after hours. The interface is that of :class:`Lanes`.

    Args:
        model: on a backend that keeps no tensors on a device.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._states: dict[int, tuple[Any, Any]] = {}
        self._count = 0

    @property
    def streams(self) -> tuple[int, ...]:
        """Return the numbers of all streams."""
        return tuple(self._states)

    def prepare(self) -> Iterator[int]:
        """Run one step with a blank frame, so that the first real one need not allocate; see :class:`Lanes`."""
        yield 1
        stream = self.join()
        try:
            self.step({stream: blank_frame(self._model.spec)})
        finally:
            self.leave(stream)

    def join(self) -> int:
        """Add a stream, at the beginning of a clip; return its number."""
        stream, self._count = self._count, self._count + 1
        self.restart(stream)
        return stream

    def leave(self, stream: int) -> None:
        """Remove a stream."""
        del self._states[stream]

    def restart(self, stream: int) -> None:
        """Start a new clip of a stream with its next frame."""
        spec = self._model.spec
        zeros = (np.zeros((1, length), np.float32) for length in (spec.policy_state, spec.classifier_state))
        self._states[stream] = (next(zeros), next(zeros))

    def step(self, frames: Mapping[int, NDArray[Any]]) -> dict[int, Glimpse]:
        """Run a step with one frame of some of the streams; return the glimpse of each. Raises ``FrameError``."""
        model, streams = self._model, list(frames)
        check_frames(list(frames.values()), model.spec)
        distinct = {id(frame): frame for frame in frames.values()}
        numbers = {key: number for number, key in enumerate(distinct)}
        rows = [numbers[id(frames[stream])] for stream in streams]
        stacked = np.stack(list(distinct.values()))
        policy_state, state = (np.concatenate(kept) for kept in zip(*map(self._states.get, streams), strict=True))

        glance = self._run(model.glancer, {"frame": stacked})
        choice = self._run(model.policy, {"feature_map": glance["feature_map"][rows], "policy_state": policy_state})
        origin = choice["origin"]
        places = {(row, *place.tolist()): lane for lane, (row, place) in enumerate(zip(rows, origin, strict=True))}
        looked = {key: number for number, key in enumerate(places)}
        lanes = list(places.values())
        focus = self._run(model.focuser, {"frame": stacked[[rows[lane] for lane in lanes]], "origin": origin[lanes]})
        shared = [looked[(row, *place.tolist())] for row, place in zip(rows, origin, strict=True)]
        feeds = {"focus": focus["focus"][shared], "state": state}
        if model.spec.with_glancer:
            feeds["glance"] = glance["glance"][rows]
        verdict = self._run(model.classifier, feeds)

        made: dict[int, Glimpse] = {}
        for lane, stream in enumerate(streams):
            row = slice(lane, lane + 1)
            self._states[stream] = (choice["policy_state_out"][row], verdict["state_out"][row])
            made[stream] = Glimpse(origin[row], verdict["logits"][row])
        return made

    def _run(self, session: Session, feeds: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a graph on pieces of a batch, and join their outputs."""
        count, most = len(next(iter(feeds.values()))), self._model.batch
        pieces = [
            session.run({name: rows[start : start + most] for name, rows in feeds.items()})
            for start in range(0, count, most)
        ]
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def lanes_of(model: LoadedModel, most: int) -> Lanes | HostLanes | ServerLanes:
    """Return lanes for up to ``most`` streams of a model: on its device, on its server, or on the host.

    Raises ``UsageError``.
    """
    if model.remote is not None:
        return model.remote.lanes()
    return Lanes(model, most) if model.on_device else HostLanes(model)


def _on_host(model: LoadedModel) -> DeviceRunner:
    """Return a runner of a model's CPU sessions with the CPU as the device; the model still owns the sessions."""
    programs: dict[str, Any] = {graph: getattr(model, graph) for graph in GRAPHS}
    if not all(hasattr(program, "bind") for program in programs.values()):
        raise BackendError(f"{model.backend} runs one clip at a time")
    return DeviceRunner(model.spec, programs, HostDevice())
