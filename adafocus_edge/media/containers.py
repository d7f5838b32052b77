"""Opening video containers with PyAV: which formats are accepted, how much memory they may use, and clear errors."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import av

from adafocus_edge.errors import ShortageError, SourceError
from adafocus_edge.media.images import LARGEST_IMAGE
from adafocus_edge.media.tracks import ranked_tracks, read_only
from adafocus_edge.system.addresses import conceal, encoding_hint, shown_argument
from adafocus_edge.system.cpu import usable_cores

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.stream import VideoStream

ADDRESS_LISTS = frozenset(("concat", "vobsub", "webm_dash_manifest", "dash", "imf"))
FILE_LISTS = ADDRESS_LISTS | {"hls", "sdp", "rtsp", "rtp", "sap"}
"""Demuxers that open other files named by their input. The first set is refused everywhere; the second for files only,
because live streams need some of these demuxers.
"""
OPEN_OPTIONS: dict[str, Any] = {"metadata_errors": "replace"} if int(av.__version__.split(".")[0]) < 19 else {}
"""Titles in old files are often not UTF-8, and nothing here reads them. PyAV 19 accepts them by default."""
NOT_VIDEO = frozenset(("tty", "image2", "bin", "xbin", "adf", "idf"))
"""Demuxers that accept any text, or a single picture, as a video."""
READ_TIMEOUT_S = 20.0
"""Time within which the server of a file must answer."""


def pixel_aspect(aspect: Fraction | None, sideways: bool) -> Fraction:
    """Return the width of a displayed pixel over its height.

    Args:
        aspect: the aspect of a stored pixel, as the stream declares it; None or 0 if it declares none.
        sideways: whether the picture is displayed with its rows as columns.
    """
    if not aspect or aspect < 0:
        return Fraction(1)
    return 1 / aspect if sideways else aspect


def limits(lists: frozenset[str]) -> dict[str, str]:
    """Return FFmpeg options that refuse some demuxers, and pictures large enough to exhaust memory.

    Args:
        lists: the demuxers to refuse: :data:`ADDRESS_LISTS` or :data:`FILE_LISTS`.
    """
    allowed = sorted(av.formats_available - lists)
    return {"format_whitelist": ",".join(allowed), "max_pixels": str(LARGEST_IMAGE)}


def use_threads(stream: VideoStream) -> None:
    """Let a stream's decoder use as many threads as this process may use cores.

    By itself, FFmpeg starts one per core of the machine.
    """
    stream.thread_type = "AUTO"
    if not stream.codec_context.is_open:
        stream.codec_context.thread_count = 1 if usable_cores() == 1 else 0


def limit_pictures(stream: VideoStream) -> None:
    """Make a stream's decoder refuse pictures large enough to exhaust memory: a small file may hold them."""
    if not stream.codec_context.is_open:
        stream.codec_context.options = {"max_pixels": str(LARGEST_IMAGE)}


def skip_loop_filter(stream: VideoStream) -> None:
    """Make a stream's decoder, not open yet, skip its loop filter: later frames build on those small errors."""
    stream.codec_context.options = {**stream.codec_context.options, "skip_loop_filter": "all"}


def open_container(address: str, name: str) -> InputContainer:
    """Open a video file, or the HTTP address of one.

    Args:
        address: the path or address.
        name: what error messages call it.

    Raises:
        SourceError: it does not exist, is empty, is not a video, or cannot be opened.
        ShortageError: this machine is short of memory, threads or open files.
    """
    if "://" not in address:
        _check_file(Path(address), name)
    try:
        if "://" in address:
            container = av.open(address, options=limits(ADDRESS_LISTS), timeout=READ_TIMEOUT_S, **OPEN_OPTIONS)
        else:  # the prefix keeps a colon in the name from being read as a protocol
            container = av.open(f"file:{address}", options=limits(FILE_LISTS), **OPEN_OPTIONS)
        if container.format.name in NOT_VIDEO or container.format.name.endswith("_pipe"):
            container.close()
            raise SourceError(f"{name}: not a video (put images into a folder: a folder of frames is one clip)")
        return cast("InputContainer", container)
    except av.error.PermissionError:
        raise SourceError(f"{name}: no permission to read it{encoding_hint(address)}") from None
    except av.error.ArgumentError:
        hint = encoding_hint(address) or " (files that list other files are not followed: name the listed files)"
        raise SourceError(f"{name}: not a video that can be read{hint}") from None
    except av.error.ExitError:
        raise SourceError(f"{name}: no answer for {READ_TIMEOUT_S:.0f} s{encoding_hint(address)}") from None
    except (av.error.FFmpegError, ValueError, OSError) as error:
        if "://" not in address:
            ShortageError.check(name, error)
        reason = getattr(error, "strerror", None) or conceal(str(error), address)
        hint = encoding_hint(address)
        raise SourceError(f"{name}: not a video that can be read, or cut short ({reason}){hint}") from None


def _check_file(path: Path, name: str) -> None:
    """Raise ``SourceError`` unless a path leads to a regular file that is not empty."""
    try:
        exists = path.exists()
    except OSError as error:  # the name is too long, for instance
        raise SourceError(f"{name}: {error.strerror}") from None
    if not exists:
        raise SourceError(f"{shown_argument(name)}: no such file")
    if not path.is_file():
        raise SourceError(f"{name}: not seekable (a pipe or a device): save it to a file first")
    if path.stat().st_size == 0:
        raise SourceError(f"{name}: the file is empty")


def reading_error(address: str, name: str, error: av.error.FFmpegError) -> SourceError:
    """Return the error for reading or decoding that failed after the container was opened.

    Raises ``ShortageError`` if this machine, not the video, is the cause.
    """
    if "://" in address:
        return SourceError(
            f"{name}: reading stopped ({error.strerror}): the server may not support partial requests (HTTP ranges); "
            "download the file and classify the copy"
        )
    ShortageError.check(name, error)
    return SourceError(f"{name}: damaged or cut short ({error.strerror})")


def open_track(container: InputContainer, name: str, index: int) -> VideoStream:
    """Return one track of a container that was just opened, and make the container skip all others.

    Args:
        container: the opened container.
        name: what error messages call it.
        index: the track's number among all of the container's tracks.

    Raises:
        SourceError: FFmpeg has no decoder for it, or its pictures are too large.
    """
    stream = cast("VideoStream", container.streams[index])
    if stream.codec_context is None:
        raise SourceError(f"{name}: this FFmpeg has no decoder for its video codec")
    if stream.width * stream.height > LARGEST_IMAGE:
        raise SourceError(
            f"{name}: frames of {stream.width} x {stream.height} pixels are too large: at most {LARGEST_IMAGE} pixels"
        )
    limit_pictures(stream)
    read_only(container, [stream])
    return stream


def rough_shape(path: str) -> tuple[int, int, int]:
    """Return about how many frames a video file has, their width and their height, from its header.

    Decodes nothing and reads few packets. Returns zeros if the file cannot be read.
    """
    try:
        with av.open(f"file:{path}", options=limits(FILE_LISTS), **OPEN_OPTIONS) as container:
            stream = next(iter(ranked_tracks(cast("InputContainer", container))), None)
            if stream is None or stream.codec_context is None:
                return 0, 0, 0
            rate = stream.average_rate or stream.guessed_rate or 0
            duration_s = (container.duration or 0) / av.time_base
            # Some containers index key frames only, and few store the number of frames.
            count = stream.frames or max(len(stream.index_entries), round(duration_s * rate))
            return count, stream.width, stream.height
    except (av.error.FFmpegError, ValueError, OSError):
        return 0, 0, 0
