"""The glimpse loop on a device: frames are uploaded, one launch runs a step or a clip, patches and logits come back."""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.base import Program, StepPieces
from adafocus_edge.backends.device.memory import aligned
from adafocus_edge.backends.tensors import Buffer
from adafocus_edge.errors import BackendError, BusyError
from adafocus_edge.model.spec import GRAPHS, STEP_GRAPH, Glimpse, ModelSpec, TensorSpec, contract

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from adafocus_edge.backends.tensors import Device, Work

STATES = {"policy_state": "policy_state_out", "state": "state_out"}
"""The states that a step takes from the step before: input and output."""
RESULTS = ("origin", "logits")
"""The outputs that are copied to the host."""
AHEAD = 2
"""Steps that may be under way: one computes while the frames of the next are uploaded."""


class DeviceSession:
    """One graph as a session: feeds are uploaded unless they are on the device, and outputs stay there."""

    def __init__(self, program: Program, device: Device) -> None:
        self.inputs = program.inputs
        self.outputs = program.outputs
        self._program = program
        self._device = device

    def run(self, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run the graph once."""
        device = self._device
        with device.use():
            tensors: dict[str, Buffer] = {}
            for spec in self.inputs:
                feed = feeds[spec.name]
                tensors[spec.name] = aligned(feed) if isinstance(feed, Buffer) else device.store(_checked(feed, spec))
            batch = tensors[self.inputs[0].name].shape[0]
            made = {spec.name: device.empty(shape_of(spec, batch), spec.dtype) for spec in self.outputs}
            self._program.bind({**tensors, **made}, fixed=False)()
            return made

    def close(self) -> None:
        """Close the program, once its work is done."""
        with suppress(BackendError):
            self._device.finish()
        self._program.close()


class DeviceRunner:
    """A model's graphs on a device, and the loops over them: the :class:`Runner` of a device.

    Args:
        spec: the model's shapes and names.
        programs: the four graphs, and optionally the joined step and the graph of pixels.
        device: where they run; closed with the runner.
    """

    def __init__(self, spec: ModelSpec, programs: Mapping[str, Program], device: Device) -> None:
        self.spec = spec
        self.programs = programs
        self.device = device
        self._clips: dict[int, ClipLoop] = {}
        self._loops: weakref.WeakSet[StepLoop | ClipLoop] = weakref.WeakSet()
        self._closing: list[Work] = []

    def steps(self, clips: int) -> StepLoop:
        """Return a new loop over the steps of N clips at once, with states of its own."""
        loop = StepLoop(self, clips)
        self._loops.add(loop)
        return loop

    def pieces(self) -> StepPieces:
        """Return a new loop over one clip: step by step, which a device does about as fast as some frames at a time."""
        return StepPieces(self.steps(1))

    def see_clip(self, frames: Sequence[NDArray[np.uint8] | Buffer] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Run a whole clip in one launch; see :class:`Runner`."""
        seen = self.clip(len(frames)).see(list(frames))
        for step in range(len(frames)):
            yield Glimpse(seen.origins[step : step + 1], seen.logits[step : step + 1])

    def clip(self, frames: int) -> ClipLoop:
        """Return the loop over whole clips of this many frames."""
        if frames not in self._clips:
            self._clips[frames] = ClipLoop(self, frames)
            self._loops.add(self._clips[frames])
        return self._clips[frames]

    @property
    def largest_batch(self) -> int | None:
        """Return how many clips can step together at most, or None for no limit."""
        return min((rows for program in self.programs.values() if (rows := program.largest_batch)), default=None)

    def on_close(self, work: Work) -> None:
        """Call ``work`` when the runner is closed, before the device is closed."""
        self._closing.append(work)

    def release(self) -> None:
        """Release the tensors and bindings of every loop. Raises ``BusyError`` if another thread runs one of them."""
        try:
            with self.device.use():
                self.device.finish()
        except BusyError:
            raise
        except BackendError:
            pass  # a device that failed, or was closed before, is released all the same
        for loop in list(self._loops):
            loop.release()
        self._clips.clear()

    def close(self) -> None:
        """Free everything. The four sessions have closed their programs before."""
        with ExitStack() as stack:
            stack.callback(self.device.close)
            for work in self._closing:
                stack.callback(work)
            for graph, program in self.programs.items():
                if graph not in GRAPHS:
                    stack.callback(program.close)


@dataclass(frozen=True)
class _Phase:
    """One of the two sets of tensors that steps use alternately.

    Attributes:
        host_frame: pinned, uint8 [N, S, S, 3].
        tensors: on the device, by name.
        host: pinned results, by name.
        step: queues one step: the graphs, and copying the results to the host.
    """

    host_frame: NDArray[np.uint8]
    tensors: dict[str, Buffer]
    host: dict[str, NDArray[np.float32]]
    step: Work


class StepLoop:
    """N clips, one frame of each at a time; both states stay on the device.

    Two sets of tensors alternate: a step reads the states that the previous one has written, and its frames may be
    uploaded while that one still computes. Each set's step is captured once and replayed. A clip without a frame waits:
    the batch computes it too, but its states are carried over unchanged.

    Args:
        resident: graphs and device.
        clips: N.
    """

    def __init__(self, resident: DeviceRunner, clips: int) -> None:
        self.clips = clips
        self._device = device = resident.device
        self._next = 0
        # With the tensors that a step still copies from: other queues overwrite theirs once they are freed.
        self._under_way: deque[tuple[_Phase, Any, list[Buffer]]] = deque()
        self._fresh: set[int] = set(range(clips))
        with device.use():
            device.finish()  # the new memory may come from a loop that was dropped with a step under way
            self._phases: tuple[_Phase, ...] = _phases(resident, clips)
            device.finish()

    def submit(self, frames: Sequence[NDArray[np.uint8] | Buffer | None], fresh: Collection[int] = ()) -> None:
        """Queue a step; :meth:`collect` returns its results. At most two steps may be under way.

        Args:
            frames: for each clip uint8 [S, S, 3], on the host or on the device, or None to let it wait. Missing
                rows at the end are unused: they are computed, and their states have no meaning.
            fresh: clips that start again with this step.

        Raises:
            BackendError: the device failed, or two steps are under way.
        """
        if len(frames) > self.clips:
            raise ValueError(f"{len(frames)} frames for {self.clips} clips")
        if len(self._under_way) == AHEAD:
            raise BackendError(f"{AHEAD} steps are under way: collect the results of the first")
        device = self._device
        with device.use():
            phase = self._phase()
            self._bring(phase, frames)
            for first, last in _runs(sorted(self._fresh.union(fresh))):
                for name in STATES:
                    device.zero(phase.tensors[name][first : last + 1])
            phase.step()
            for first, last in _runs([row for row, frame in enumerate(frames) if frame is None]):
                for name, out in STATES.items():
                    device.copy(phase.tensors[out][first : last + 1], phase.tensors[name][first : last + 1])
            self._under_way.append((phase, device.mark(), [frame for frame in frames if isinstance(frame, Buffer)]))
        self._fresh.clear()
        self._next = 1 - self._next

    def collect(self) -> Glimpse:
        """Wait for the oldest step under way and return its result; rows of waiting clips have no meaning."""
        with self._device.use():
            phase, mark, _held = self._under_way.popleft()
            self._device.wait(mark)
            return Glimpse(*(phase.host[name].copy() for name in RESULTS))

    def see(self, frames: Sequence[NDArray[np.uint8] | Buffer] | NDArray[np.uint8]) -> Glimpse:
        """Run a step with one frame of each clip, and wait for its results."""
        self.submit(list(frames))
        return self.collect()

    def _phase(self) -> _Phase:
        if not self._phases:
            raise BackendError("the model is closed")
        return self._phases[self._next]

    @property
    def under_way(self) -> int:
        """Return how many steps are queued and not collected."""
        return len(self._under_way)

    def reset(self) -> None:
        """Start every clip again with the next step; discard the steps under way."""
        while self._under_way:
            self.collect()
        self._fresh = set(range(self.clips))

    def release(self) -> None:
        """Release tensors and bindings; the loop cannot be used after that."""
        self._under_way.clear()
        self._phases = ()

    def move(self, source: int, other: StepLoop, target: int) -> None:
        """Move a clip to a row of another loop (or of this one), with its states."""
        if source in self._fresh:
            other._fresh.add(target)
            return
        other._fresh.discard(target)
        mine, theirs = (loop._phase().tensors for loop in (self, other))
        with self._device.use():
            for name in STATES:
                self._device.copy(theirs[name][target : target + 1], mine[name][source : source + 1])

    def _bring(self, phase: _Phase, frames: Sequence[NDArray[np.uint8] | Buffer | None]) -> None:
        """Copy a step's frames to the device."""
        device, target = self._device, phase.tensors["frame"]
        on_host = []
        for row, frame in enumerate(frames):
            if isinstance(frame, np.ndarray):
                phase.host_frame[row] = frame
                on_host.append(row)
        for first, last in _runs(on_host):
            device.upload(target[first : last + 1], phase.host_frame[first : last + 1])
        if on_host:
            device.after_uploads()
        for row, frame in enumerate(frames):
            if isinstance(frame, Buffer):
                device.copy(target[row : row + 1], frame)


class ClipLoop:
    """A whole clip in one launch: glance at all frames, choose all patches, focus on all of them, classify.

    Args:
        resident: graphs and device.
        frames: T.
    """

    def __init__(self, resident: DeviceRunner, frames: int) -> None:
        self.frames = frames
        self._device = device = resident.device
        programs = resident.programs
        glancer, policy, focuser, classifier = (programs[graph] for graph in GRAPHS)
        with device.use():
            device.finish()  # see StepLoop
            self._tensors = clip = _tensors(resident, frames)
            # The recurrent graphs always run on the same tensors of a single row: inputs are copied in and outputs are
            # copied out. Rows of the clip's tensors would have addresses that are not aligned.
            row = _tensors(resident, 1)

            def bound(program: Program, tensors: Mapping[str, Buffer]) -> Work:
                return program.bind({t.name: tensors[t.name] for t in (*program.inputs, *program.outputs)}, fixed=True)

            glance, choose, focus, classify = (
                bound(glancer, clip), bound(policy, row), bound(focuser, clip), bound(classifier, row)
            )  # fmt: skip

            def step(number: int, work: Work, inputs: Sequence[str], outputs: Sequence[str], state: str) -> None:
                for name in inputs:
                    device.copy(row[name], clip[name][number : number + 1])
                work()
                for name in outputs:
                    device.copy(clip[name][number : number + 1], row[name])
                device.copy(row[state], row[STATES[state]])

            seen = [spec.name for spec in classifier.inputs if spec.name != "state"]
            self._host_frames = device.pinned(clip["frame"].shape, np.uint8)
            self._host = {name: device.pinned(clip[name].shape, np.float32) for name in RESULTS}

            def run() -> None:
                for state in STATES:
                    device.zero(row[state])
                glance()
                for number in range(frames):
                    step(number, choose, ["feature_map"], ["origin"], "policy_state")
                focus()
                for number in range(frames):
                    step(number, classify, seen, ["logits"], "state")
                for name in RESULTS:
                    device.download(self._host[name], clip[name])

            self._run: Work | None = _captured(device, run, [glancer, policy, focuser, classifier])
            device.finish()

    def release(self) -> None:
        """Release tensors and bindings; the loop cannot be used after that."""
        self._run = None
        self._tensors = {}

    def see(self, frames: Sequence[NDArray[np.uint8] | Buffer]) -> Glimpse:
        """Run a clip.

        Args:
            frames: T of uint8 [S, S, 3], on the host or on the device.

        Returns:
            Origins [T, 2] and logits [T, C] of all its steps.
        """
        device = self._device
        with device.use():
            if self._run is None:
                raise BackendError("the model is closed")
            target = self._tensors["frame"]
            for row, frame in enumerate(frames):
                if isinstance(frame, Buffer):
                    device.copy(target[row : row + 1], frame)
                else:
                    self._host_frames[row] = frame
                    device.upload(target[row : row + 1], self._host_frames[row : row + 1])
            device.after_uploads()
            self._run()
            device.wait(device.mark())
            return Glimpse(*(self._host[name].copy() for name in RESULTS))


def _checked(feed: Any, spec: TensorSpec) -> NDArray[Any]:
    """Return a feed as an array. Raises ``BackendError`` for another type, since converting would lose values."""
    array = np.asarray(feed)
    if array.dtype != spec.dtype:
        raise BackendError(f"{spec.name}: expected {spec.dtype}, found {array.dtype}")
    return array


def shape_of(spec: TensorSpec, batch: int) -> tuple[int, ...]:
    """Return a tensor's shape for a batch size."""
    return tuple(batch if side == "N" else int(side) for side in spec.shape)


def _tensors(resident: DeviceRunner, batch: int) -> dict[str, Buffer]:
    """Allocate every tensor of the contract once."""
    specs = {t.name: t for graph in GRAPHS for side in contract(resident.spec, graph) for t in side}
    return {name: resident.device.empty(shape_of(spec, batch), spec.dtype) for name, spec in specs.items()}


def _phases(resident: DeviceRunner, clips: int) -> tuple[_Phase, _Phase]:
    device, programs = resident.device, resident.programs
    chain = [programs[STEP_GRAPH]] if STEP_GRAPH in programs else [programs[graph] for graph in GRAPHS]
    shared = _tensors(resident, clips)

    def phase(tensors: dict[str, Buffer]) -> _Phase:
        work = [
            program.bind({t.name: tensors[t.name] for t in (*program.inputs, *program.outputs)}, fixed=True)
            for program in chain
        ]
        host = {name: device.pinned(tensors[name].shape, np.float32) for name in RESULTS}

        def step() -> None:
            for one in work:
                one()
            for name in RESULTS:
                device.download(host[name], tensors[name])

        for name in ("frame", *STATES):
            device.zero(tensors[name])
        host_frame = device.pinned(tensors["frame"].shape, np.uint8)
        return _Phase(host_frame, tensors, host, _captured(device, step, chain))

    again = {name: device.empty(shared[name].shape, shared[name].dtype) for name in ("frame", *RESULTS)}
    turned = {name: shared[out] for name, out in STATES.items()} | {out: shared[name] for name, out in STATES.items()}
    return phase(shared), phase({**shared, **again, **turned})


def _captured(device: Device, work: Work, programs: Sequence[Program]) -> Work:
    """Run work once, so that libraries allocate their memory, then capture it if all programs can be captured."""
    work()
    device.finish()
    return device.capture(work) if all(program.capturable for program in programs) else work


def _runs(rows: Sequence[int]) -> list[tuple[int, int]]:
    """Return ascending row numbers as (first, last) of each range without a gap."""
    runs: list[tuple[int, int]] = []
    for row in rows:
        if runs and row == runs[-1][1] + 1:
            runs[-1] = (runs[-1][0], row)
        else:
            runs.append((row, row))
    return runs
