"""Reads the colours that an AV1 sequence header declares (AV1 specification, 5.5).

libavif takes them from there if an AVIF has no `nclx` box.
"""

from typing import NamedTuple

# libavif looks for the sequence header in as many bytes of the image's data.
SEARCHED_BYTES = 4_096

_SEQUENCE_HEADER = 1  # the type of an open bitstream unit (OBU)
_MAX_UNITS = 64
_MAX_BYTES = 512  # a header with 32 operating points has fewer
_LAST_PROFILE = 2
_UNSPECIFIED = 2
_SRGB = (1, 13, 0)  # primaries, transfer and matrix, which imply 4:4:4 and full range


class ColourConfig(NamedTuple):
    """`primaries`, `transfer` and `matrix` are code points of ITU-T H.273; 2 is unspecified.

    A sample has `depth` bits. `subsampled` tells whether there are fewer colour samples than
    pixels. `valid` is false if the profile does not allow the layout that the matrix implies.
    """

    primaries: int
    transfer: int
    matrix: int
    full_range: bool
    depth: int
    monochrome: bool
    subsampled: bool
    valid: bool


def read_colour_config(data: bytes) -> ColourConfig | None:
    """What the first sequence header in `data` declares, which begins with an OBU.

    None if there is no such header, or if it is damaged or cut: the decoder then decides.
    """
    at = 0
    for _ in range(_MAX_UNITS):
        if at >= len(data) or data[at] & 0x80:
            return None
        kind, extended, sized = data[at] >> 3 & 15, data[at] >> 2 & 1, data[at] & 2
        at += 1 + extended
        size, length = _leb128(data[at : at + 8]) if sized else (len(data) - at, 0)
        at += length
        if kind == _SEQUENCE_HEADER:
            try:
                return _sequence_header(_Bits(data[at : at + min(size, _MAX_BYTES)]))
            except EOFError:
                return None
        at += size
    return None


def _leb128(data: bytes) -> tuple[int, int]:
    """A number in 7 bits a byte, and how many bytes it takes (4.10.5)."""
    value = 0
    for number, byte in enumerate(data):
        value |= (byte & 0x7F) << 7 * number
        if byte < 0x80:
            return value, number + 1
    return value, len(data)


class _Bits:
    def __init__(self, data: bytes) -> None:
        self._value, self._left = int.from_bytes(data, "big"), 8 * len(data)

    def read(self, count: int) -> int:
        """The next `count` bits. Raises EOFError."""
        self._left -= count
        if self._left < 0:
            raise EOFError
        return self._value >> self._left & (1 << count) - 1


def _sequence_header(bits: _Bits) -> ColourConfig | None:
    """Read `sequence_header_obu` (5.5.1); None for a reserved profile. Raises EOFError."""
    read = bits.read
    profile, _, reduced = read(3), read(1), read(1)
    if profile > _LAST_PROFILE:
        return None
    if reduced:
        read(5)  # the level
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = read(4) + 1, read(4) + 1
    read(width_bits + height_bits)
    if not reduced and read(1):  # frame identifiers
        read(7)
    read(3)  # superblocks, and the tools of intra prediction
    if not reduced:
        read(4)
        ordered = read(1)
        if ordered:
            read(2)
        screen_content = read(1) or read(1)
        if screen_content and not read(1):
            read(1)
        if ordered:
            read(3)
    read(3)  # super resolution and filters
    return _colour_config(bits, profile)


def _skip_operating_points(bits: _Bits) -> None:
    read = bits.read
    delay_bits = 0
    if read(1):  # timing_info (5.5.3)
        read(64)
        if read(1):
            zeros = 0
            while not read(1):
                zeros += 1
            read(zeros)
        if read(1):  # decoder_model_info (5.5.4)
            delay_bits = read(5) + 1
            read(42)
    display_delay = read(1)
    for _ in range(read(5) + 1):
        read(12)
        if read(5) > 7:
            read(1)  # the tier
        if delay_bits and read(1):
            read(2 * delay_bits + 1)
        if display_delay and read(1):
            read(4)


def _colour_config(bits: _Bits, profile: int) -> ColourConfig:
    """Read `color_config` (5.5.2) up to the subsampling. Raises EOFError."""
    read = bits.read
    high = read(1)
    twelve = bool(profile == 2 and high and read(1))
    depth = 12 if twelve else 10 if high else 8
    monochrome = bool(profile != 1 and read(1))
    points = (read(8), read(8), read(8)) if read(1) else (_UNSPECIFIED,) * 3
    implied = points == _SRGB and not monochrome
    full_range = implied or bool(read(1))
    if twelve and not implied and not monochrome:
        subsampled = bool(read(1))
    else:
        subsampled = profile != 1 and not implied and not monochrome
    return ColourConfig(
        *points,
        full_range=full_range,
        depth=depth,
        monochrome=monochrome,
        subsampled=subsampled,
        valid=not implied or profile == 1 or twelve,
    )
