"""Which of several video tracks holds the main picture, as FFmpeg's command line chooses it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import av
from av.stream import Disposition

from adafocus_edge.errors import SourceError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.container import InputContainer
    from av.video.stream import VideoStream

DEFAULT_BONUS = 5_000_000
"""What a track that is marked as the default counts for, in pixels of a frame (FFmpeg's ``ffmpeg_mux_init.c``)."""


def ranked_tracks(container: InputContainer) -> list[VideoStream]:
    """Return the tracks that may hold the main picture, best first: no cover pictures; a track with no frames last.

    A large picture wins, and the default track, unless another has over five million pixels more; of equals the first.
    """
    tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    counted = any(stream.frames for stream in tracks)

    def rank(stream: VideoStream) -> tuple[bool, int]:
        if not stream.width:  # no decoder, or a track in which nothing was found
            return False, -1
        area = stream.width * stream.height
        has_frames = stream.frames > 0 or len(stream.index_entries) > 0 or not counted
        return has_frames, area + DEFAULT_BONUS * bool(stream.disposition & Disposition.default)

    return sorted(tracks, key=rank, reverse=True)


def asked_track(container: InputContainer, name: str, number: int) -> VideoStream:
    """Return video track ``number``, counted from 0 as in FFmpeg's ``v:NUMBER``. Raises ``SourceError``."""
    tracks = container.streams.video
    if number >= len(tracks):
        raise SourceError(f"{name}: no video track {number}: it has {len(tracks)}, counted from 0")
    if tracks[number].disposition & Disposition.attached_pic:
        raise SourceError(f"{name}: video track {number} is a cover picture, not a video")
    return tracks[number]


def describe_track(container: InputContainer, taken: VideoStream) -> str:
    """Say which of several video tracks was taken; empty where there is no choice."""
    tracks = container.streams.video
    others = [
        track
        for track in tracks
        if track is not taken and track.width and not track.disposition & Disposition.attached_pic
    ]
    if not others:
        return ""
    sizes = ", ".join(f"{tracks.index(track)} ({track.width} x {track.height})" for track in others)
    return (
        f"has {len(others) + 1} video tracks: took {tracks.index(taken)} ({taken.width} x {taken.height}), "
        f"left out {sizes}; --video-track takes another"
    )


def read_only(container: InputContainer, wanted: Sequence[av.stream.Stream]) -> None:
    """Let the container skip what is not wanted: other variants of an HLS stream are then not even fetched."""
    discard = getattr(av.stream, "Discard", None)  # since PyAV 18; before, the packets are read and thrown away
    if discard is None:
        return
    kept = {stream.index for stream in wanted}
    for stream in container.streams:
        stream.discard = discard.default if stream.index in kept else discard.all
