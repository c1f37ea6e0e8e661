"""What an AVIF file says about itself where Pillow does not look: frames, and their coded sizes.

libavif believes its container. It makes a table of all the frames that are announced, a hundred
bytes each, while Python's other threads wait; and a frame that is larger than the container says it
decodes whole, and scales then. So a few bytes can cost gigabytes, within any limit on what the
container says. Boxes are those of ISO/IEC 14496-12 and 23008-12, the bitstream is AV1's
(https://aomediacodec.github.io/av1-spec/).
"""

from collections.abc import Iterator
from typing import NamedTuple

from core.errors import InvalidImage
from core.imaging.bounded_reader import TooManyReads

MAX_FRAMES = 10_000  # five minutes of them
MAX_PARTS = 10_000  # boxes, items and units of the bitstream that are looked at
_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"meta", b"iinf")
_HEADER_BYTES = 512  # of a unit of the bitstream: the longest header that we read has fewer
_SPLIT_BYTES = 4096  # of a bitstream in several places, that count as a part
_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME = 1, 3, 6  # types of an OBU
_KEY_FRAME, _SWITCH_FRAME = 0, 3
_SELECTED = 2  # by each frame: what a sequence header may leave to them


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
        """The sizes that frames of the bitstream in `spans` may have (AV1 5.3).

        All are looked at: a decoder goes by the last.
        """
        data, at, end = self._stream(spans)
        sequence: _Sequence | None = None
        while at < end:
            self.spend()
            head = data[at]
            at += 2 if head & 4 else 1
            size = end - at
            if head & 2:
                size, at = _leb128(data, at)
            kind, begin, at = head >> 3 & 15, at, at + size
            if kind in (_SEQUENCE_HEADER, _FRAME_HEADER, _FRAME):
                bits = _Bits(data[begin : begin + min(size, _HEADER_BYTES)])
                if kind == _SEQUENCE_HEADER:
                    sequence = _sequence_header(bits)
                    yield sequence.size
                elif sequence and _has_own_size(sequence, bits):
                    yield sequence.largest

    def _stream(self, spans: tuple[_Span, ...]) -> tuple[bytes | bytearray, int, int]:
        """What is in `spans`, as a part of some bytes: of the file's where it is in one place."""
        whole = len(self._data)
        places = [(begin, min(whole, begin + size) if size else whole) for begin, size in spans]
        if len(places) == 1:
            return self._data, *places[0]
        found = bytearray()
        for begin, end in places:
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


class _Sequence(NamedTuple):
    """What a sequence header says (5.5.1), as far as the sizes of its frames depend on it."""

    reduced: bool
    time_bits: int  # of when a frame is shown
    size: Size  # of frames that have none of their own
    largest: Size  # that a frame can have of its own: decoders let it be more than `size`
    id_bits: int
    screen_tools: int
    integer_mv: int


def _sequence_header(bits: _Bits) -> _Sequence:
    bits.take(3 + 1)  # seq_profile, still_picture
    reduced, time_bits = bool(bits.take(1)), 0  # reduced_still_picture_header
    if reduced:
        bits.take(5)
    else:
        time_bits = _operating_points(bits)
    width_bits, height_bits = bits.take(4) + 1, bits.take(4) + 1
    size = Size(bits.take(width_bits) + 1, bits.take(height_bits) + 1)
    id_bits, screen_tools, integer_mv = 0, _SELECTED, _SELECTED
    if not reduced:
        if bits.take(1):  # frame_id_numbers_present_flag
            id_bits = bits.take(4) + 2 + bits.take(3) + 1
        bits.take(3 + 4)  # from use_128x128_superblock to enable_dual_filter
        if bits.take(1):  # enable_order_hint
            bits.take(2)
        if not bits.take(1):  # seq_choose_screen_content_tools
            screen_tools = bits.take(1)
        if screen_tools and not bits.take(1):  # seq_choose_integer_mv
            integer_mv = bits.take(1)
    largest = Size(1 << width_bits, 1 << height_bits)
    return _Sequence(reduced, time_bits, size, largest, id_bits, screen_tools, integer_mv)


def _has_own_size(sequence: _Sequence, bits: _Bits) -> bool:
    """Whether a frame's header has `frame_size_override_flag` (5.9.2)."""
    if sequence.reduced or bits.take(1):  # show_existing_frame
        return False
    kind, shown = bits.take(2), bits.take(1)
    if kind == _SWITCH_FRAME:
        return True
    bits.take(sequence.time_bits if shown else 1)
    if not (kind == _KEY_FRAME and shown):
        bits.take(1)  # error_resilient_mode
    bits.take(1)  # disable_cdf_update
    tools = bits.take(1) if sequence.screen_tools == _SELECTED else sequence.screen_tools
    if tools and sequence.integer_mv == _SELECTED:
        bits.take(1)
    bits.take(sequence.id_bits)
    return bool(bits.take(1))


def _operating_points(bits: _Bits) -> int:
    """Read up to the frames' size; how many bits of a frame say when it is shown."""
    delay_bits = time_bits = 0
    if bits.take(1):  # timing_info_present_flag
        bits.take(32 + 32)
        equal = bits.take(1)  # equal_picture_interval
        if equal:
            bits.skip_uvlc()
        if bits.take(1):  # decoder_model_info_present_flag
            delay_bits = bits.take(5) + 1
            bits.take(32 + 5)
            length = bits.take(5) + 1  # frame_presentation_time_length_minus_1
            time_bits = 0 if equal else length
    initial_display_delay = bits.take(1)
    for _ in range(bits.take(5) + 1):
        bits.take(12)
        if bits.take(5) > 7:  # the level
            bits.take(1)
        if delay_bits and bits.take(1):
            bits.take(2 * delay_bits + 1)
        if initial_display_delay and bits.take(1):
            bits.take(4)
    return time_bits
