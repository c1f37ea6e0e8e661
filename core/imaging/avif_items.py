"""Reads the boxes of an AVIF or HEIC file, and where its image items lie.

Boxes are those of ISO/IEC 14496-12 and 23008-12.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from core.imaging.av1_header import SEARCHED_BYTES
from core.imaging.encoded import TooManyParts

MAX_BOXES = 1_000  # libavif's own files have about 20
FULL_BOX = 4  # bytes of version and flags at the start of `meta`, `ispe` and others
_PROPERTIES = (b"iprp", b"ipco")  # the boxes in `meta` that lead to `ispe`


class TooManyBoxes(TooManyParts):
    """The file has more than `MAX_BOXES` boxes before the end of its image's properties."""


class BoxReader:
    """Iterates over boxes. Raises TooManyBoxes after `MAX_BOXES` of them."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._left = MAX_BOXES
        self.start = 0  # where the box that `boxes` returned last begins

    def boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The type of each box between two offsets, and where its content begins and ends."""
        while at + 8 <= end:
            self._left -= 1
            if self._left < 0:
                raise TooManyBoxes
            size, header = self.number(at, 4), 8
            if size == 1:  # a 64-bit size follows the type
                size, header = self.number(at + 8, 8), 16
            elif size == 0:  # the box extends to the end
                size = end - at
            if size < header:
                return
            self.start = at
            yield bytes(self._data[at + 4 : at + 8]), at + header, min(end, at + size)
            at += size

    def image_sizes(
        self, begin: int, end: int, path: tuple[bytes, ...] = _PROPERTIES
    ) -> list[tuple[int, int]]:
        """The dimensions in each `ispe` box that `path` leads to."""
        found = list[tuple[int, int]]()
        for kind, inner, inner_end in self.boxes(begin, end):
            if path and kind == path[0]:
                found += self.image_sizes(inner, inner_end, path[1:])
            elif not path and kind == b"ispe" and inner + FULL_BOX + 8 <= inner_end:
                at = inner + FULL_BOX
                found.append((self.number(at, 4), self.number(at + 4, 4)))
        return found

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")


@dataclass(slots=True)
class Items:
    """The image items of a file. A property is its type and the offsets of its content.

    `meta` holds the offsets of the box `meta` with its header.
    """

    data: bytes | bytearray
    meta: tuple[int, int]
    primary: int | None = None
    properties: list[tuple[bytes, int, int]] = field(default_factory=list)
    of_item: dict[int, list[int]] = field(default_factory=dict)  # indices of properties, from 1
    ends: dict[int, int] = field(default_factory=dict)  # where an item's associations end
    counts: dict[int, int] = field(default_factory=dict)  # where their number is
    wide: bool = False  # whether an index takes two bytes
    parents: tuple[tuple[int, int], ...] = ()  # offsets of the boxes that contain `ipma`
    boxes: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # content of those in `meta`

    def properties_of(self, item: int) -> Iterator[tuple[bytes, int, int]]:
        """The type and the offsets of an item's properties."""
        for index in self.of_item.get(item, ()):
            if 0 < index <= len(self.properties):
                yield self.properties[index - 1]

    def configuration(self, item: int) -> int:
        """The flags in the third byte of an item's `av1C`; 0 if it has none."""
        found = self.find(item, b"av1C")
        return 0 if found is None or found[2] - found[1] < 3 else self.data[found[1] + 2]

    def depth(self, item: int) -> int:
        """The bits of an item's samples, as its `av1C` declares them."""
        flags = self.configuration(item)
        return 8 if not flags & 0x40 else 12 if flags & 0x20 else 10

    def find(self, item: int, kind: bytes) -> tuple[int, int, int] | None:
        """The index and the offsets of an item's first property of a type."""
        for index in self.of_item.get(item, ()):
            if 0 < index <= len(self.properties) and self.properties[index - 1][0] == kind:
                return index, *self.properties[index - 1][1:]
        return None


def read_items(data: bytes | bytearray) -> Items | None:
    """The items. None if the boxes are not as expected: the decoder then decides."""
    reader = BoxReader(data)
    for kind, begin, end in reader.boxes(0, len(data)):
        if kind != b"meta":
            continue
        items = Items(data, (reader.start, end))
        for inner, at, inner_end in reader.boxes(begin + FULL_BOX, end):
            items.boxes.setdefault(inner, (at, inner_end))
            if inner == b"pitm":
                items.primary = reader.number(at + 4, 2 if reader.number(at, 1) == 0 else 4)
            elif inner == b"iprp":
                iprp = (reader.start, inner_end)
                for each, each_at, each_end in reader.boxes(at, inner_end):
                    if each == b"ipco":
                        items.properties = list(reader.boxes(each_at, each_end))
                    elif each == b"ipma" and not items.of_item:
                        items.parents = (items.meta, iprp, (reader.start, each_end))
                        _read_associations(reader, items, each_at, each_end)
        return items
    return None


def _read_associations(reader: BoxReader, items: Items, at: int, end: int) -> None:
    """Read the box `ipma` (ISO/IEC 14496-12, 8.11.14)."""
    id_size = 2 if reader.number(at, 1) < 1 else 4
    items.wide = bool(reader.number(at + 3, 1) & 1)
    size, mask = (2, 0x7FFF) if items.wide else (1, 0x7F)
    count, at = reader.number(at + 4, 4), at + 8
    for _ in range(min(count, MAX_BOXES)):
        item, count_at = reader.number(at, id_size), at + id_size
        at = count_at + 1 + size * reader.number(count_at, 1)
        if at > end:
            return
        items.of_item[item] = [
            reader.number(each, size) & mask for each in range(count_at + 1, at, size)
        ]
        items.counts[item], items.ends[item] = count_at, at


def coded_data(items: Items) -> bytes:
    """The first bytes of the primary image's data, or of its first tile's if it is a grid.

    Empty if they are not where they are expected: the decoder then decides.
    """
    reader = BoxReader(items.data)
    item = items.primary or 0
    at, end = items.boxes.get(b"iref", (0, 0))
    id_size = 2 if reader.number(at, 1) == 0 else 4
    with contextlib.suppress(TooManyBoxes):
        for kind, begin, _ in reader.boxes(at + FULL_BOX, end):
            if kind == b"dimg" and reader.number(begin, id_size) == items.primary:
                item = reader.number(begin + id_size + 2, id_size)  # behind their number
                break
    coded = bytearray()
    for begin, size in _extents(reader, items, item):
        coded += items.data[begin : begin + min(size, SEARCHED_BYTES - len(coded))]
        if len(coded) >= SEARCHED_BYTES:
            break
    return bytes(coded)


def _extents(reader: BoxReader, items: Items, wanted: int) -> Iterator[tuple[int, int]]:
    """Offset and size of the parts of an item's data (ISO/IEC 14496-12, 8.11.3, `iloc`)."""
    at, end = items.boxes.get(b"iloc", (0, 0))
    version = reader.number(at, 1)
    id_size = 2 if version < 2 else 4
    widths = reader.number(at + 4, 2)
    offset_size, size_size, base_size = widths >> 12, widths >> 8 & 15, widths >> 4 & 15
    index_size = 0 if version == 0 else widths & 15
    count, at = reader.number(at + 6, id_size), at + 6 + id_size
    for _ in range(min(count, MAX_BOXES)):
        item, at = reader.number(at, id_size), at + id_size
        method = 0 if version == 0 else reader.number(at, 2) & 15
        at += 2 if version == 0 else 4
        base, at = reader.number(at, base_size), at + base_size
        parts, at = reader.number(at, 2), at + 2
        if at > end or item == wanted:
            break
        at += parts * (index_size + offset_size + size_size)
    else:
        return
    start, stop = (0, len(items.data)) if method == 0 else items.boxes.get(b"idat", (0, 0))
    if item != wanted or method > 1:
        return
    for _ in range(min(parts, MAX_BOXES)):
        at += index_size
        begin = start + base + reader.number(at, offset_size)
        size = reader.number(at + offset_size, size_size) or stop
        yield begin, max(0, min(size, stop - begin))
        at += offset_size + size_size
