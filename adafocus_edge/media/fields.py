"""Field-coded H.264: detecting packets that hold the second field of a picture instead of a frame of their own."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.codec.context import CodecContext
    from av.packet import Packet

SLICES = (1, 5)
"""Types of NAL units that hold a slice of a picture (ITU-T H.264, table 7-1); 5 refers to no earlier picture."""
SPS = 7
"""Type of the NAL unit that holds a sequence parameter set."""
HIGH_PROFILES = frozenset((100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135))
"""Profiles whose sequence parameter sets hold more fields about colour (section 7.3.2.1.1)."""
CHROMA_444 = 3
HEADER_BYTES = 64
"""Bytes of a slice that hold every field of its header that is read here."""
START_CODE = b"\0\0\1"


class _Bits:
    """Reads the bits of a NAL unit, without its emulation prevention bytes."""

    def __init__(self, unit: bytes) -> None:
        payload = unit.replace(b"\0\0\3", b"\0\0")
        self._value = int.from_bytes(payload, "big")
        self._left = 8 * len(payload)

    def read(self, count: int) -> int:
        """Read an unsigned number of ``count`` bits. Raises ``EOFError``."""
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & ((1 << count) - 1)

    def read_golomb(self) -> int:
        """Read an unsigned Exp-Golomb number. Raises ``EOFError``."""
        zeros = 0
        while not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def read_signed(self) -> int:
        """Read a signed Exp-Golomb number. Raises ``EOFError``."""
        number = self.read_golomb()
        return (number + 1) // 2 if number % 2 else -number // 2


class FieldPairs:
    """Distinguishes second fields from frames in one H.264 stream, packet by packet.

    Source: ITU-T H.264, sections 7.3.2.1.1 (sequence parameter set), 7.3.3 (slice header) and 7.4.1.2.4 (pictures).

    Args:
        codec: the stream's decoder, with the stream's parameter sets.

    Attributes:
        possible: whether the stream may hold fields at all; False for a progressive stream.
        found: whether a second field was found.
    """

    def __init__(self, codec: CodecContext) -> None:
        self.possible = self.found = False
        self._frame_num_bits = 0
        self._has_planes = False
        self._open_field: tuple[int, int] | None = None
        extradata = bytes(codec.extradata or b"") if codec.name == "h264" else b""
        self._length_bytes = 0
        if extradata[:1] == b"\1" and len(extradata) > 6:  # as MP4 and Matroska store it (ISO/IEC 14496-15)
            self._length_bytes = (extradata[4] & 3) + 1
            units: Iterator[bytes] = _by_length(extradata[6:], 2)
        else:
            units = _by_start_code(extradata)
        for unit in units:
            if unit[0] & 31 == SPS:
                self._read_parameters(unit)
                break

    def is_second(self, packet: Packet[Any]) -> bool:
        """Return whether a packet completes the frame of the previous packet. Call it in decoding order."""
        content = memoryview(packet)
        units = _by_length(content, self._length_bytes) if self._length_bytes else _by_start_code(bytes(content))
        for unit in units:
            kind = unit[0] & 31
            if kind == SPS:
                self._read_parameters(unit)
            elif kind in SLICES:
                return self._is_second_field(unit)
        return False

    def _is_second_field(self, unit: bytes) -> bool:
        before, self._open_field = self._open_field, None
        if not self.possible:
            return False
        bits = _Bits(unit[1:HEADER_BYTES])
        try:
            for _ in ("first_mb_in_slice", "slice_type", "pic_parameter_set_id"):
                bits.read_golomb()
            if self._has_planes:
                bits.read(2)
            number = bits.read(self._frame_num_bits)
            is_field = bits.read(1)
            is_bottom = bits.read(1) if is_field else 0
        except EOFError:  # damaged: the decoder will report it
            return False
        if not is_field:
            return False
        if before == (number, 1 - is_bottom):
            self.found = True
            return True
        self._open_field = number, is_bottom
        return False

    def _read_parameters(self, unit: bytes) -> None:
        bits = _Bits(unit[1:])
        try:
            profile = bits.read(8)
            bits.read(16)  # constraints and level
            bits.read_golomb()  # seq_parameter_set_id
            self._has_planes = profile in HIGH_PROFILES and self._skip_colour(bits)
            self._frame_num_bits = bits.read_golomb() + 4
            order = bits.read_golomb()
            if order == 0:
                bits.read_golomb()
            elif order == 1:
                bits.read(1)
                bits.read_signed()
                bits.read_signed()
                for _ in range(bits.read_golomb()):
                    bits.read_signed()
            bits.read_golomb()  # max_num_ref_frames
            bits.read(1)  # gaps_in_frame_num_value_allowed_flag
            bits.read_golomb()  # width
            bits.read_golomb()  # height
            self.possible = not bits.read(1)  # frame_mbs_only_flag
        except EOFError:
            self.possible = False

    @staticmethod
    def _skip_colour(bits: _Bits) -> bool:
        """Skip the colour fields of high profiles; return whether the colour planes are coded separately."""
        chroma = bits.read_golomb()
        has_planes = chroma == CHROMA_444 and bool(bits.read(1))
        bits.read_golomb()
        bits.read_golomb()
        bits.read(1)
        if bits.read(1):  # scaling matrices
            for number in range(12 if chroma == CHROMA_444 else 8):
                if bits.read(1):
                    last = following = 8
                    for _ in range(16 if number < 6 else 64):
                        if following:
                            following = (last + bits.read_signed()) % 256
                        last = following or last
        return has_planes


def _by_length(content: bytes | memoryview, length_bytes: int) -> Iterator[bytes]:
    """Yield the beginning of each NAL unit in content where each unit is preceded by its length."""
    at = 0
    while at + length_bytes < len(content):
        length = int.from_bytes(content[at : at + length_bytes], "big")
        at += length_bytes
        if length:
            yield bytes(content[at : at + min(length, 8 * HEADER_BYTES)])
        at += length


def _by_start_code(content: bytes) -> Iterator[bytes]:
    """Yield the beginning of each NAL unit in content where each unit is preceded by a start code."""
    at = content.find(START_CODE)
    while at >= 0:
        at += len(START_CODE)
        after = content.find(START_CODE, at)
        unit = content[at : at + 8 * HEADER_BYTES] if after < 0 else content[at : min(after, at + 8 * HEADER_BYTES)]
        if unit:
            yield unit
        at = after
