"""Reads the dimensions that an AVIF file declares, without a native parser.

libavif allocates whatever the boxes of a file announce: six kilobytes of `iloc` cost it a gigabyte
and four seconds, during which the process does nothing else. The API therefore reads only what it
needs: `ispe`, the dimensions of each image item. Boxes are those of ISO/IEC 14496-12 and 23008-12.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from core.errors import UnsupportedImage
from core.imaging.code_points import profile_of
from core.imaging.encoded import EncodedImage, Part, TooManyParts, broken_header

MAX_BOXES = 1_000  # libavif's own files have about 20
_BRANDS = (b"avif", b"avis")
_SEQUENCE_BRAND = b"avis"
_PROPERTIES = (b"iprp", b"ipco")  # the boxes in `meta` that lead to `ispe`
_FULL_BOX = 4  # bytes of version and flags at the start of `meta` and `ispe`


class TooManyBoxes(TooManyParts):
    """The file has more than `MAX_BOXES` boxes before the end of its image's properties."""


class AvifHeader(NamedTuple):
    """`sizes` holds (width, height) in pixels of each image item, as declared.

    `tracks` tells whether the file has a movie box, that is, a sequence of frames.
    """

    sizes: tuple[tuple[int, int], ...]
    tracks: bool


def is_avif(data: bytes | bytearray) -> bool:
    """Whether the file type box lists an AVIF brand."""
    return any(brand in _BRANDS for brand in brands(data))


def is_avif_sequence(data: bytes | bytearray) -> bool:
    """Whether the file type box says that the file holds a sequence of frames."""
    return _SEQUENCE_BRAND in brands(data)


def read_avif_header(data: bytes | bytearray) -> AvifHeader:
    """What the boxes of `data` declare. Broken boxes are skipped. Raises TooManyBoxes."""
    reader = _BoxReader(data)
    sizes, tracks = list[tuple[int, int]](), False
    for kind, begin, end in reader.boxes(0, len(data)):
        tracks = tracks or kind == b"moov"
        if kind == b"meta":
            sizes += reader.image_sizes(begin + _FULL_BOX, end)
    return AvifHeader(tuple(sizes), tracks)


def brands(data: bytes | bytearray) -> list[bytes]:
    """Major and compatible brands of a file type box; none if the file starts with another box."""
    if data[4:8] != b"ftyp":
        return []
    size = min(int.from_bytes(data[:4], "big"), 256)
    # The minor version lies between the major brand and the compatible ones.
    return [bytes(data[at : at + 4]) for at in (8, *range(16, size - 3, 4))]


def read_avif(data: bytes | bytearray) -> tuple[EncodedImage, bool]:
    """The image of an AVIF or HEIC file, and whether the file has a movie box.

    Raises InvalidImage if no box declares a size, UnsupportedImage for what the decoder cannot
    convert, and TooManyBoxes. `size` is the largest of the image items: each is decoded.
    """
    header = read_avif_header(data)
    if not header.sizes:
        raise broken_header("AVIF" if is_avif(data) else "HEIC")
    items = _read_items(data)
    if items is not None and items.primary is not None:
        _check_matrix(items, items.primary)
    image = EncodedImage(
        size=max(header.sizes, key=lambda size: size[0] * size[1] or 2**64),
        parts=_repaired(data, items),
        profile=None if items is None else _code_points_profile(items),
        orientation=None,
    )
    return image, header.tracks


# Matrix coefficients (ITU-T H.273, table 4) that libavif does not convert to RGB.
_MATRICES = {
    3: "a reserved value",
    10: "BT.2020 with constant luminance",
    11: "SMPTE ST 2085",
    13: "chromaticity-derived with constant luminance",
    14: "ICtCp",
}
_IDENTITY, _YCGCO, _FIRST_UNKNOWN = 0, 8, 16
_FULL_RANGE = 0x80
_ALPHA = (b"urn:mpeg:mpegB:cicp:systems:auxiliary:alpha", b"urn:mpeg:hevc:2015:auxid:1")


@dataclass(slots=True)
class _Items:
    """The image items of a file. A property is its type and the offsets of its content.

    `meta` and `associations` are the offsets of the boxes `meta` and `ipma` with their headers.
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

    def find(self, item: int, kind: bytes) -> tuple[int, int, int] | None:
        """The index and the offsets of an item's first property of a type."""
        for index in self.of_item.get(item, ()):
            if 0 < index <= len(self.properties) and self.properties[index - 1][0] == kind:
                return index, *self.properties[index - 1][1:]
        return None


def _read_items(data: bytes | bytearray) -> _Items | None:
    """None if the boxes are not as expected: the decoder then decides."""
    reader = _BoxReader(data)
    for kind, begin, end in reader.boxes(0, len(data)):
        if kind != b"meta":
            continue
        items = _Items(data, (reader.start, end))
        for inner, at, inner_end in reader.boxes(begin + _FULL_BOX, end):
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


def _read_associations(reader: "_BoxReader", items: _Items, at: int, end: int) -> None:
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


def _check_matrix(items: _Items, item: int) -> None:
    """Raise UnsupportedImage if the colours are coded in a way that libavif cannot convert."""
    data = items.data
    for index in items.of_item.get(item, ()):
        if not 0 < index <= len(items.properties):
            continue
        kind, begin, end = items.properties[index - 1]
        if kind != b"colr" or data[begin : begin + 4] != b"nclx" or end - begin < 11:
            continue
        matrix = int.from_bytes(data[begin + 8 : begin + 10], "big")
        full = bool(data[begin + 10] & _FULL_RANGE)
        name = _MATRICES.get(matrix)
        if matrix >= _FIRST_UNKNOWN:
            name = f"number {matrix}"
        elif matrix == _YCGCO and not full:
            name = "YCgCo with limited range"
        elif matrix == _IDENTITY and _subsampled(items, item):
            name = "identity with subsampled colours"
        if name is not None:
            raise UnsupportedImage(
                f"The AVIF's matrix coefficients are {name}, which the decoder cannot convert."
            )


def _code_points_profile(items: _Items) -> bytes | None:
    """A profile of the primary image's code points. An ICC profile, which Pillow reads, wins."""
    found: bytes | None = None
    for index in items.of_item.get(items.primary or 0, ()):
        if not 0 < index <= len(items.properties):
            continue
        kind, begin, end = items.properties[index - 1]
        if kind != b"colr":
            continue
        if items.data[begin : begin + 4] != b"nclx":
            return None
        if end - begin >= 8:
            numbers = (items.data[begin + 4 : begin + 6], items.data[begin + 6 : begin + 8])
            found = profile_of(*(int.from_bytes(each, "big") for each in numbers))
    return found


def _subsampled(items: _Items, item: int) -> bool:
    """Whether the coded colours have fewer samples than pixels (AV1 in ISOBMFF, `av1C`)."""
    found = items.find(item, b"av1C")
    if found is None or found[2] - found[1] < 3:
        return False
    flags = items.data[found[1] + 2]
    return not flags & 0x10 and bool(flags & 0x0C)  # not monochrome, and chroma_subsampling_x or _y


def _repaired(data: bytes | bytearray, items: _Items | None) -> tuple[Part, ...]:
    """The file. Where its alpha image has no `ispe`, that of the primary image is added.

    Encoders left it out until 2021, and libavif refuses the file. The new `meta` goes to the end,
    so that the offsets in the file stay right.
    """
    whole: tuple[Part, ...] = ((0, len(data)),)
    if items is None or items.primary is None:
        return whole
    size = items.find(items.primary, b"ispe")
    missing = [
        item
        for item in items.of_item
        if size is not None
        and (aux := items.find(item, b"auxC")) is not None
        and bytes(data[aux[1] + _FULL_BOX : aux[2]]).startswith(_ALPHA)
        and items.find(item, b"ispe") is None
        and items.data[items.counts[item]] < 255
    ]
    if size is None or not missing or (not items.wide and size[0] > 0x7F):
        return whole
    begin, end = items.meta
    entry = size[0].to_bytes(2 if items.wide else 1, "big")
    meta = bytearray(data[begin:end])
    for item in sorted(missing, key=lambda each: -items.ends[each]):  # from the end
        meta[items.counts[item] - begin] += 1
        meta[items.ends[item] - begin : items.ends[item] - begin] = entry
    grown = len(entry) * len(missing)
    for box, box_end in items.parents:
        if int.from_bytes(data[box : box + 4], "big") != box_end - box:
            return whole  # a 64-bit size, or one that ends with the file
        meta[box - begin : box - begin + 4] = (box_end - box + grown).to_bytes(4, "big")
    return ((0, begin + 4), b"free", (begin + 8, len(data)), bytes(meta))


class _BoxReader:
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
            elif not path and kind == b"ispe" and inner + _FULL_BOX + 8 <= inner_end:
                at = inner + _FULL_BOX
                found.append((self.number(at, 4), self.number(at + 4, 4)))
        return found

    def number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")
