"""What an AVIF file says about itself where Pillow does not look: frames, and their coded sizes.

libavif believes its container. It makes a table of all the frames that are announced, a hundred
bytes each, while Python's other threads wait; and a frame that is larger than the container says it
decodes whole, and scales then. So a few bytes can cost gigabytes, within any limit on what the
container says. Boxes are those of ISO/IEC 14496-12 and 23008-12, the bitstream is AV1's
(https://aomediacodec.github.io/av1-spec/).
"""

from collections.abc import Iterator
from typing import NamedTuple

from core.bounded_reads import TooManyReads
from core.errors import InvalidImage

MAX_FRAMES = 10_000  # five minutes of them
MAX_PARTS = 10_000  # boxes, items and units of the bitstream that are looked at
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"meta", b"iinf")
_SPLIT_BYTES = 4096  # of a bitstream in several places, that count as a part
_SEQUENCE_HEADER = 1  # the type of an OBU


class Size(NamedTuple):
    width: int
    height: int


class Announced(NamedTuple):
    """`frames` of all tracks, 0 for a still picture; `sizes` are those that frames are coded in."""

    frames: int
    sizes: tuple[Size, ...]


class _Span(NamedTuple):
    """Where some bytes lie: `size` of them, or 0 for all there are."""

    begin: int
    size: int


class _Box(NamedTuple):
    kind: bytes
    begin: int  # of what is in it
    end: int


def is_avif_container(data: bytes | bytearray) -> bool:
    """Whether the file begins as AVIF and its relatives do."""
    return data[4:8] == b"ftyp"


def check_announced(data: bytes | bytearray, max_pixels: int) -> None:
    """Raise InvalidImage where a file announces more than a decoder should be led into."""
    try:
        found = announced(data, MAX_PARTS)
    except TooManyReads:
        raise InvalidImage("The file has too many parts before its picture.") from None
    if found.frames > MAX_FRAMES:
        raise InvalidImage(f"The file announces more than {MAX_FRAMES} frames.")
    for width, height in found.sizes:
        if width * height > max_pixels:
            raise InvalidImage(
                f"The picture is coded in {width} x {height} pixels, more than {max_pixels}.",
                extra={"width": width, "height": height, "max_pixels": max_pixels},
            )


def announced(data: bytes | bytearray, most_parts: int) -> Announced:
    """What is announced in the boxes of `data`.

    A size that cannot be read is left out: the decoder cannot read it either. Raises TooManyReads
    where there are more than `most_parts` parts to look at.
    """
    reader = _Reader(data, most_parts)
    frames, coded, idats = 0, set[int](), list[int]()
    streams = list[tuple[_Span, ...]]()
    located = list[tuple[int, int, tuple[_Span, ...]]]()  # item, what its offsets count from, spans
    for box in reader.boxes():
        if box.kind == b"stbl":
            count, firsts = reader.samples(box)
            frames += count
            streams += ((first,) for first in firsts)
        elif box.kind == b"infe":
            coded |= reader.coded_item(box)
        elif box.kind == b"iloc":
            located += reader.locations(box)
        elif box.kind == b"idat":
            idats.append(box.begin)
    for item, method, spans in located:
        if item in coded and method in (0, 1):
            for base in idats if method else (0,):
                reader.spend()
                streams.append(tuple(_Span(base + begin, size) for begin, size in spans))
    # Tiles that look alike may be one stream.
    sizes = [size for spans in dict.fromkeys(streams) for size in reader.coded_sizes(spans)]
    return Announced(frames, tuple(sizes))


class _Reader:
    def __init__(self, data: bytes | bytearray, most_parts: int) -> None:
        self._data = data
        self._left = most_parts

    def spend(self, parts: int = 1) -> None:
        self._left -= parts
        if self._left < 0:
            raise TooManyReads

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")

    def boxes(self) -> Iterator[_Box]:
        """Every box, and those inside the boxes that may lead to what we look for."""
        spans = [(0, len(self._data))]
        while spans:
            for box in self._boxes_in(*spans.pop()):
                yield box
                if box.kind in _CONTAINERS:
                    spans.append((box.begin + self._skipped(box), box.end))

    def _boxes_in(self, at: int, end: int) -> Iterator[_Box]:
        while at + 8 <= end:
            self.spend()
            size, head = self.number(at, 4), 8
            if size == 1:  # the size proper is a longer number
                size, head = self.number(at + 8, 8), 16
            elif size == 0:  # to the end
                size = end - at
            if size < head:
                break
            yield _Box(bytes(self._data[at + 4 : at + 8]), at + head, min(end, at + size))
            at += size

    def _skipped(self, box: _Box) -> int:
        """Bytes between a container's head and its boxes: version and flags, and a count."""
        if box.kind == b"meta":
            return 4
        if box.kind == b"iinf":
            return 6 if self.number(box.begin, 1) == 0 else 8
        return 0

    def samples(self, table: _Box) -> tuple[int, list[_Span]]:
        """How many frames a track's table has, and where the first of them may lie."""
        count, size, starts = 0, 0, list[int]()
        for box in self._boxes_in(table.begin, table.end):
            if box.kind == b"stsz":
                count += self.number(box.begin + 8, 4)
                # That of all frames, or else a list.
                first = self.number(box.begin + 4, 4) or self.number(box.begin + 12, 4)
                size = max(size, first)
            elif box.kind in (b"stco", b"co64"):
                starts.append(self.number(box.begin + 8, 4 if box.kind == b"stco" else 8))
        return count, [_Span(start, size) for start in starts]

    def coded_item(self, box: _Box) -> set[int]:
        """The id of an item that is AV1, from its `infe`; of any other, nothing."""
        wide = self.number(box.begin, 1) > 2
        kind = box.begin + (10 if wide else 8)
        if self._data[kind : kind + 4] != b"av01":
            return set()
        return {self.number(box.begin + 4, 4 if wide else 2)}

    def locations(self, box: _Box) -> Iterator[tuple[int, int, tuple[_Span, ...]]]:
        """Item, construction method and where its extents lie, from an `iloc`."""
        version, at = self.number(box.begin, 1), box.begin + 4
        sizes = self.number(at, 2)
        offset_size, length_size, base_size, index_size = (
            (sizes >> shift) & 15 for shift in (12, 8, 4, 0)
        )
        id_size = 2 if version < 2 else 4
        count, at = self.number(at + 2, id_size), at + 2 + id_size
        for _ in range(count):
            self.spend()
            if at >= box.end:
                return
            item, at = self.number(at, id_size), at + id_size
            method = 0
            if version:
                method, at = self.number(at, 2) & 15, at + 2
            base, at = self.number(at + 2, base_size), at + 2 + base_size
            extents, at = self.number(at, 2), at + 2
            index = index_size if version else 0
            spans = list[_Span]()
            for _ in range(extents):
                self.spend()
                if at >= box.end:
                    return
                begin, at = base + self.number(at + index, offset_size), at + index + offset_size
                size, at = self.number(at, length_size), at + length_size
                spans.append(_Span(begin, size))
            yield item, method, tuple(spans)

    def coded_sizes(self, spans: tuple[_Span, ...]) -> Iterator[Size]:
        """The largest size that each sequence of the bitstream in `spans` may have (AV1 5.3).

        All are looked at: a decoder goes by the last.
        """
        data, at, end = self._stream(spans)
        while at < end:
            self.spend()
            head = data[at]
            at += 2 if head & 4 else 1
            size = end - at
            if head & 2:
                size, at = _leb128(data, at)
            if head >> 3 & 15 == _SEQUENCE_HEADER:
                yield _size_in_sequence_header(_Bits(data[at : at + min(size, 256)]))
            at += size

    def _stream(self, spans: tuple[_Span, ...]) -> tuple[bytes | bytearray, int, int]:
        """What is in `spans`, as a part of some bytes: of the file's where it is in one place."""
        whole, found = len(self._data), bytearray()
        for begin, size in spans:
            end = min(whole, begin + size) if size else whole
            if len(spans) == 1:
                return self._data, begin, end
            self.spend(max(0, end - begin) // _SPLIT_BYTES)
            found += self._data[begin:end]
        return found, 0, len(found)


def _leb128(data: bytes | bytearray, at: int) -> tuple[int, int]:
    """A number (4.10.5) and where it ends."""
    value = 0
    for shift in range(0, 56, 7):
        byte = data[at + shift // 7] if at + shift // 7 < len(data) else 0
        value |= (byte & 127) << shift
        if not byte & 128:
            return value, at + shift // 7 + 1
    return value, at + 8


class _Bits:
    """Numbers of any count of bits, the highest first; zeros behind the end."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._value = int.from_bytes(data, "big")
        self._left = 8 * len(data)

    def take(self, count: int) -> int:
        self._left -= count
        mask = (1 << count) - 1
        if self._left < 0:
            return (self._value << -self._left) & mask
        return (self._value >> self._left) & mask

    def skip_uvlc(self) -> None:
        zeros = 0
        while self._left > 0 and not self.take(1):
            zeros += 1
        if zeros < 32:
            self.take(zeros)


def _size_in_sequence_header(bits: _Bits) -> Size:
    """`max_frame_width` and `max_frame_height` (5.5.1): no frame is larger."""
    bits.take(3 + 1)  # seq_profile, still_picture
    if bits.take(1):  # reduced_still_picture_header
        bits.take(5)
    else:
        _skip_operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    return Size(bits.take(width_bits) + 1, bits.take(height_bits) + 1)


def _skip_operating_points(bits: _Bits) -> None:
    delay_bits = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(32 + 32)
        if bits.take(1):  # equal_picture_interval
            bits.skip_uvlc()
        if bits.take(1):  # decoder_model_info_present_flag
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5 + 5)
    initial_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # the level
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if initial_display_delay and bits.take(1):
            bits.take(4)
