"""The glimpse loop: glance, pick a patch, focus on it, classify, and stop as soon as the model is sure.

Paper: arXiv 2105.03245, section 3.1. One model runs on two schedules with the same result. The policy never needs
the focuser, so a clip's frames can be glanced at together and its patches focused on together (``see_clip``); a live
stream is seen one frame at a time (``GlimpseStream``).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from adafocus_edge.backends.base import SplitSession
from adafocus_edge.errors import FrameError
from adafocus_edge.media.frames import check_frames
from adafocus_edge.model.spec import STATES, Glimpse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from numpy.typing import NDArray

    from adafocus_edge.backends.base import Runner, Session
    from adafocus_edge.backends.loaded import LoadedModel
    from adafocus_edge.model.spec import ModelSpec, Patch


AHEAD = 32
"""Frames of a clip that are glanced at before the first patch is chosen, at most: feature maps are 250 KB each."""


def see_clip(model: LoadedModel, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
    """Run a whole clip on the clip schedule.

    Args:
        model: the four sessions.
        frames: T model frames, as ``adafocus_edge.media.preprocess`` makes them; if the model sees RGB, also plain
            arrays uint8 [S, S, 3] or [T, S, S, 3]; if it keeps its tensors on a device, frames may be there.

    Yields:
        One glimpse per frame, for a batch of one. Raises ``FrameError`` for frames that the model would misread.
    """
    check_frames(frames, model.spec)
    yield from runner_of(model).see_clip(frames)


class GlimpseClip:
    """The clip schedule for a clip that may end early: its frames are seen some at a time.

    Args:
        model: a loaded model.

    Example::

        clip = GlimpseClip(model)
        for frames in pieces:  # of one clip
            for glimpse in clip.see(frames):  # .origins float32 [1, 2], .logits float32 [1, C]
                ...
    """

    def __init__(self, model: LoadedModel) -> None:
        self._spec = model.spec
        self._pieces = runner_of(model).pieces()

    def reset(self) -> None:
        """Start a new clip with the next frames."""
        self._pieces.reset()

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """See the clip's next frames, as for :func:`see_clip`; yield one glimpse for each."""
        check_frames(frames, self._spec)
        yield from self._pieces.see(frames)


class GlimpseStream:
    """The stream schedule: N clips that advance together, one frame of each per step.

    Args:
        model: a loaded model.
        clips: N, the number of clips.

    Example::

        stream = GlimpseStream(model)
        for index, frame in sampled_frames(clip, bundle.spec):
            glimpse = stream.see([frame])  # .origins float32 [1, 2], .logits float32 [1, C]
    """

    def __init__(self, model: LoadedModel, clips: int = 1) -> None:
        self._model = model
        self._clips = clips
        self._steps = runner_of(model).steps(clips)
        self.reset()

    def reset(self) -> None:
        """Start new clips: set both states to zero."""
        self._steps.reset()

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Glimpse:
        """Run one step with one frame of each clip.

        Args:
            frames: N model frames, uint8 [S, S, 3] each, as for :func:`see_clip`.

        Returns:
            ``origins`` float32 [N, 2] and ``logits`` float32 [N, C], after all frames of each clip so far.

        Raises:
            FrameError: the number of frames is not N, or the model would misread one.
            BackendError: the backend failed, or another thread is using the model.
        """
        check_frames(frames, self._model.spec)
        if len(frames) != self._clips:
            raise FrameError(f"{len(frames)} frames for {self._clips} clips: pass one frame of each")
        return self._steps.see(frames)


def runner_of(model: LoadedModel) -> Runner:
    """Return the runner of a model: on its device, on its server, or session by session on the host."""
    return model.resident or model.remote or HostRunner(model)


class HostRunner:
    """The glimpse loop over a model's four sessions, whose tensors are on the host: the :class:`Runner` of the CPU.

    Args:
        model: the four sessions.
    """

    largest_batch = None

    def __init__(self, model: LoadedModel) -> None:
        self._model = model

    def steps(self, clips: int) -> HostSteps:
        """Return a new loop over the steps of N clips at once."""
        return HostSteps(self._model, clips)

    def see_clip(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Run a whole clip."""
        clip = self.pieces()
        for start in range(0, len(frames), AHEAD):
            yield from clip.see(frames[start : start + AHEAD])

    def pieces(self) -> HostPieces:
        """Return a new loop over one clip, some frames at a time."""
        return HostPieces(self._model)


class HostPieces:
    """The glimpse loop over one clip, some frames at a time; both states are kept between them.

    Args:
        model: the four sessions.
    """

    def __init__(self, model: LoadedModel) -> None:
        self._model = model
        self._choices = _Recurrence(model.policy, STATES["policy"], model.spec.policy_state)
        self._verdicts = _Recurrence(model.classifier, STATES["classifier"], model.spec.classifier_state)

    def reset(self) -> None:
        """Set both states to zero."""
        self._choices.reset()
        self._verdicts.reset()

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Iterator[Glimpse]:
        """Glance at all frames, choose their patches, focus on all of them, then classify; see :class:`Pieces`."""
        model, frames = self._model, np.asarray(frames)
        glances = self._in_batches(model.glancer, {"frame": frames})
        choices = self._choices.over({"feature_map": glances["feature_map"]})
        origins = np.concatenate([np.asarray(choice["origin"]) for choice in choices])
        seen = self._in_batches(model.focuser, {"frame": frames, "origin": origins})
        if model.spec.with_glancer:
            seen["glance"] = glances["glance"]
        for step, verdict in enumerate(self._verdicts.over(seen)):
            yield Glimpse(origins[step : step + 1], np.asarray(verdict["logits"]))

    def _in_batches(self, session: Session, feeds: Mapping[str, Any]) -> dict[str, Any]:
        """Run a graph on as many frames at a time as the model computes fastest."""
        batch, count = self._model.batch, len(next(iter(feeds.values())))
        rows = [slice(start, start + batch) for start in range(0, count, batch)]
        made = [session.run({name: value[part] for name, value in feeds.items()}) for part in rows]
        return made[0] if len(made) == 1 else {name: np.concatenate([each[name] for each in made]) for name in made[0]}


class _Recurrence:
    """A recurrent graph over the frames of one clip, with its state.

    Args:
        session: the graph.
        state: name of the state that it reads.
        length: of the state.
    """

    def __init__(self, session: Session, state: str, length: int) -> None:
        self._session, self._state, self._length = session, state, length
        self.reset()

    def reset(self) -> None:
        """Set the state to zero."""
        self._value: Any = np.zeros((1, self._length), np.float32)

    def over(self, feeds: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the graph's outputs for one row of the feeds after another; what no state decides is computed first."""
        session, run = self._session, self._session.run
        if isinstance(session, SplitSession):
            feeds, run = session.ahead(feeds), session.follow
        for row in range(len(next(iter(feeds.values())))):
            made = run({**{name: value[row : row + 1] for name, value in feeds.items()}, self._state: self._value})
            self._value = made[f"{self._state}_out"]
            yield made


class HostSteps:
    """The glimpse loop over N clips, one frame of each at a time.

    Args:
        model: the four sessions.
        clips: N.
    """

    def __init__(self, model: LoadedModel, clips: int) -> None:
        self._model = model
        self._clips = clips
        self.reset()

    def reset(self) -> None:
        """Set both states to zero."""
        self._policy_state: Any = np.zeros((self._clips, self._model.spec.policy_state), np.float32)
        self._state: Any = np.zeros((self._clips, self._model.spec.classifier_state), np.float32)

    def see(self, frames: Sequence[Any] | NDArray[np.uint8]) -> Glimpse:
        """Run one step: glance, choose a patch, focus on it, classify."""
        model, frames = self._model, np.asarray(frames)
        glance = model.glancer.run({"frame": frames})
        choice = model.policy.run({"feature_map": glance["feature_map"], "policy_state": self._policy_state})
        focus = model.focuser.run({"frame": frames, "origin": choice["origin"]})
        feeds = {"focus": focus["focus"], "state": self._state}
        if model.spec.with_glancer:
            feeds["glance"] = glance["glance"]
        verdict = model.classifier.run(feeds)
        self._policy_state, self._state = choice["policy_state_out"], verdict["state_out"]
        return Glimpse(np.asarray(choice["origin"]), np.asarray(verdict["logits"]))


def patch_of(spec: ModelSpec, origin: NDArray[np.float32]) -> Patch:
    """Return a patch as (y, x, size) in pixels of the S x S frame, computed in float32, as in the graph.

    A cell's corner is rounded down to whole pixels; a point's is rounded to two decimals, for display only.
    """
    corner = origin * np.float32(spec.frame_size - spec.patch_size)
    if spec.choice == "point":
        y, x = (round(float(value), 2) for value in corner)
        return y, x, spec.patch_size
    y, x = np.floor(corner).astype(int).tolist()
    return y, x, spec.patch_size
