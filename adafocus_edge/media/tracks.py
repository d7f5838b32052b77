"""Choosing among several video tracks the one with the main picture, as FFmpeg's command line does."""

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
"""Pixels of a frame that a track's default flag is worth (FFmpeg's ``ffmpeg_mux_init.c``)."""


def ranked_tracks(container: InputContainer) -> list[VideoStream]:
    """Return the tracks that may hold the main picture, best first, without cover pictures; tracks without frames last.

    The largest picture wins; the default track counts as five million pixels larger; of equal tracks, the first wins.
    """
    tracks = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    counted = any(stream.frames for stream in tracks)

    def rank(stream: VideoStream) -> tuple[bool, int]:
        if not stream.width:  # no decoder, or a track without recognisable content
            return False, -1
        area = stream.width * stream.height
        has_frames = stream.frames > 0 or len(stream.index_entries) > 0 or not counted
        return has_frames, area + DEFAULT_BONUS * bool(stream.disposition & Disposition.default)

    return sorted(tracks, key=rank, reverse=True)


def requested_track(container: InputContainer, name: str, number: int) -> VideoStream:
    """Return video track ``number``, counted from 0 as in FFmpeg's ``v:NUMBER``.

    Raises ``SourceError`` if there is no such track, or if it is a cover picture.
    """
    tracks = container.streams.video
    if number >= len(tracks):
        raise SourceError(f"{name}: no video track {number}: it has {len(tracks)}, counted from 0")
    if tracks[number].disposition & Disposition.attached_pic:
        raise SourceError(f"{name}: video track {number} is a cover picture, not a video")
    return tracks[number]


def describe_track(container: InputContainer, taken: VideoStream) -> str:
    """Return a note on which of several video tracks was selected; empty if there is only one."""
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
        f"has {len(others) + 1} video tracks: using {tracks.index(taken)} ({taken.width} x {taken.height}), "
        f"ignoring {sizes}; select another with --video-track"
    )


def read_only(container: InputContainer, wanted: Sequence[av.stream.Stream]) -> None:
    """Make the container skip all other tracks; other variants of an HLS stream are then not even downloaded."""
    discard = getattr(av.stream, "Discard", None)  # since PyAV 18; before, packets are read and dropped
    if discard is None:
        return
    kept = {stream.index for stream in wanted}
    for stream in container.streams:
        stream.discard = discard.default if stream.index in kept else discard.all
