"""Real video files of many kinds, encoded for a test from the frames of a real clip."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from adafocus_edge.media.containers import OPEN_OPTIONS
from tests.conftest import CLIPS

CLIP = CLIPS / "R6llTwEh07w.mp4"


@contextmanager
def usual_scheduling() -> Iterator[None]:
    """Give this thread back its scheduling policy.

    SVT-AV1, where root runs it, makes the thread that opens an encoder a real-time one of the highest priority, and all
    that this thread starts afterwards: a busy loop in a page of Chromium then takes a core from everything else.
    """
    policy, priority = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        yield
    finally:
        os.sched_setscheduler(0, policy, priority)


def encode(path: Path, frames: int = 120, codec: str = "libx264", options: Any = None, **more: Any) -> Path:
    """Encode frames of a real clip: ``more`` sets ``pix_fmt``, ``pts`` (a list), ``rate`` and ``size``."""
    with usual_scheduling(), av.open(str(CLIP)) as source, av.open(f"file:{path}", "w") as target:
        rate = more.get("rate", 30)
        stream = target.add_stream(codec, rate=rate, options=options or {})
        stream.width, stream.height = more.get("size", (320, 240))
        stream.pix_fmt = more.get("pix_fmt", "yuv420p")
        for number, frame in enumerate(source.decode(video=0)):
            if number == frames:
                break
            image = frame.reformat(stream.width, stream.height, stream.pix_fmt)
            image.pts = more["pts"][number] if "pts" in more else number
            image.time_base = Fraction(1, rate)
            target.mux(stream.encode(image))
        target.mux(stream.encode(None))
    return path


def ffmpeg_frames(path: Path | str, *options: str, size: tuple[int, int] = (64, 64)) -> np.ndarray:
    """Decode a whole file with FFmpeg's own command line: uint8 [frames, H, W, 3] of frames of that width, height."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), *options, "-fps_mode", "passthrough", "-f", "rawvideo"]
    done = subprocess.run([*command, "-pix_fmt", "rgb24", "-"], check=True, capture_output=True)
    return np.frombuffer(done.stdout, np.uint8).reshape(-1, size[1], size[0], 3)


def ffmpeg_size(path: Path | str) -> tuple[int, int]:
    """Return width and height of the track that FFmpeg's own command line takes."""
    command = ["ffmpeg", "-v", "error", "-i", str(path), "-an", "-f", "framemd5", "-"]
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    width, height = re.search(r"#dimensions 0: (\d+)x(\d+)", printed).groups()  # type: ignore[union-attr]
    return int(width), int(height)


def ffprobe(path: Path | str, entry: str, *options: str) -> list[str]:
    """Return what ffprobe says of a file's first video stream, or with ``options`` of what they select."""
    select = options or ("-select_streams", "v:0")
    command = ["ffprobe", "-v", "error", *select, "-show_entries", entry, "-of", "csv=p=0", str(path)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.split()


def ffmpeg(*arguments: object) -> None:
    """Run FFmpeg's command line."""
    subprocess.run(["ffmpeg", "-v", "error", "-y", *map(str, arguments)], check=True, capture_output=True)


def all_frames(path: Path) -> list[np.ndarray]:
    """Decode a whole file from its start, with a plain loop of PyAV's own."""
    with av.open(f"file:{path}", **OPEN_OPTIONS) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def set_matrix(path: Path, a: int, b: int, c: int, d: int) -> None:
    """Set an MP4's display matrix: the stored pixel (x, y) is shown at (a x + c y, b x + d y), moved into view."""
    content = bytearray(path.read_bytes())
    at = content.index(b"tkhd") + 4
    assert content[at] == 0, "version 0 of the box"
    matrix = at + 40
    one = 1 << 16
    content[matrix : matrix + 36] = struct.pack(">9i", a * one, b * one, 0, c * one, d * one, 0, 0, 0, 1 << 30)
    path.write_bytes(content)


def rotate_clockwise(path: Path) -> None:
    """Set an MP4's display matrix as a phone held upright does: 90 degrees clockwise."""
    set_matrix(path, 0, 1, -1, 0)


class _BitWriter:
    """Writes bits as ITU-T H.264 codes them."""

    def __init__(self) -> None:
        self._bits = ""

    def u(self, count: int, value: int) -> _BitWriter:
        self._bits += f"{value:0{count}b}"
        return self

    def ue(self, *values: int) -> _BitWriter:
        for value in values:
            code = f"{value + 1:b}"
            self._bits += "0" * (len(code) - 1) + code
        return self

    def pcm(self, samples: bytes) -> None:
        self._bits += "0" * (-len(self._bits) % 8) + "".join(f"{sample:08b}" for sample in samples)

    def unit(self, head: int) -> bytes:
        """Return the NAL unit, with its start code and the bytes that keep other start codes out."""
        bits = self._bits + "1"
        bits += "0" * (-len(bits) % 8)
        content, zeros = bytearray(), 0
        for byte in int(bits, 2).to_bytes(len(bits) // 8, "big"):
            if zeros >= 2 and byte <= 3:
                content.append(3)
                zeros = 0
            content.append(byte)
            zeros = zeros + 1 if byte == 0 else 0
        return b"\0\0\0\1" + bytes([head]) + bytes(content)


def field_pictures(pattern: str, *, width: int = 64, height: int = 64) -> list[tuple[bytes, int]]:
    """Encode an H.264 stream by hand, a picture a letter, for no encoder here writes fields.

    Args:
        pattern: ``F`` a frame; ``tb`` or ``bt`` two fields, of which the second repeats the first; ``TB`` or ``BT`` two
            of their own. Frame n has the luminance 40 + 3 n, a second field of its own 20 more.

    Returns:
        each access unit with its time in half frames.
    """
    across, down = width // 16, height // 32
    parameters = _BitWriter().u(8, 77).u(8, 0).u(8, 30).ue(0, 0, 2, 1).u(1, 0).ue(across - 1, down - 1)
    parameters.u(1, 0).u(1, 0).u(1, 1).u(1, 0).u(1, 0)  # fields, no pairs of macroblocks, direct 8x8, no crop, no VUI
    pictures = _BitWriter().ue(0, 0).u(1, 0).u(1, 0).ue(0, 0, 0).u(1, 0).u(2, 0).ue(0, 0, 0).u(1, 1).u(1, 0).u(1, 0)
    head = parameters.unit(0x67) + pictures.unit(0x68)
    units: list[tuple[bytes, int]] = []
    frame, half, first = 0, 0, True
    for letter in pattern:
        is_field, is_second = letter in "tTbB", letter in "tTbB" and not first
        copies = is_second and letter.islower()
        bits = _BitWriter().ue(0, 5 if copies else 7, 0).u(4, frame % 16).u(1, is_field)
        if is_field:
            bits.u(1, letter in "bB")
        is_idr = frame == 0 and not is_second
        if is_idr:
            bits.ue(0)
        if copies:
            bits.u(1, 0).u(1, 0)
        bits.u(2, 0) if is_idr else bits.u(1, 0)
        bits.ue(0, 1)  # the usual quantiser, no deblocking
        macroblocks = across * down * (1 if is_field else 2)
        if copies:
            bits.ue(macroblocks)  # all skipped
        else:
            for _ in range(macroblocks):
                bits.ue(25)
                bits.pcm(bytes([40 + 3 * frame + 20 * is_second]) * 256 + bytes([128]) * 128)
        units.append(((head if is_idr else b"") + bits.unit(0x65 if is_idr else 0x61), half))
        done = not is_field or is_second
        half += 1 if is_field else 2
        first = done
        frame += done
    return units


def mux_fields(path: Path, pattern: str, *, rate: int = 25) -> Path:
    """Write :func:`field_pictures` into a container, an access unit a packet, each with its time."""
    units = field_pictures(pattern)
    raw = path.with_suffix(".h264")
    raw.write_bytes(b"".join(unit for unit, _ in units))
    with av.open(str(raw)) as source, av.open(str(path), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for content, half in units:
            packet = av.Packet(content)
            packet.stream, packet.time_base = stream, Fraction(1, 2 * rate)
            packet.pts = packet.dts = half
            packet.is_keyframe = half == 0
            target.mux(packet)
    if raw != path:
        raw.unlink()
    return path
