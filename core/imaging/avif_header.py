"""Reads the dimensions that an AVIF file declares, without a native parser.

libavif allocates whatever the boxes of a file announce: six kilobytes of `iloc` cost it a gigabyte
and four seconds, during which the process does nothing else. The API therefore reads only what it
needs: `ispe`, the dimensions of each image item. Boxes are those of ISO/IEC 14496-12 and 23008-12.
"""

import contextlib
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from core.errors import UnsupportedImage
from core.imaging.av1_header import SEARCHED_BYTES, ColourConfig, read_colour_config
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
    profile: bytes | None = None
    if items is not None and items.primary is not None:
        config = read_colour_config(_coded_data(items)) if is_avif(data) else None
        points = _code_points(items, config)
        if is_avif(data):
            _check_matrix(items, config, points)
        profile = None if points is None else points.profile()
    image = EncodedImage(
        size=max(header.sizes, key=lambda size: size[0] * size[1] or 2**64),
        parts=_repaired(data, items),
        profile=profile,
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
    17: "YCgCo-Ro",  # the decoder gives 8 bits a sample, for which it takes 9
}
_IDENTITY, _YCGCO, _YCGCO_RE, _FIRST_UNKNOWN = 0, 8, 16, 18
_YCGCO_RE_DEPTH = 10  # for 8 bits a sample
_SUBSAMPLED_IDENTITY = "identity with subsampled colours"
_FULL_RANGE = 0x80
_MAJOR_BRANDS = frozenset({*_BRANDS, b"mif1", b"msf1"})  # those that Pillow knows
_METADATA_ITEMS = frozenset({b"Exif", b"mime"})
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
    boxes: dict[bytes, tuple[int, int]] = field(default_factory=dict)  # content of those in `meta`

    def each(self, item: int) -> Iterator[tuple[bytes, int, int]]:
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


def _read_items(data: bytes | bytearray) -> _Items | None:
    """None if the boxes are not as expected: the decoder then decides."""
    reader = _BoxReader(data)
    for kind, begin, end in reader.boxes(0, len(data)):
        if kind != b"meta":
            continue
        items = _Items(data, (reader.start, end))
        for inner, at, inner_end in reader.boxes(begin + _FULL_BOX, end):
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


class _CodePoints(NamedTuple):
    """Code points of ITU-T H.273, and whether an ICC profile comes before them."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool
    overridden: bool

    def profile(self) -> bytes | None:
        return None if self.overridden else profile_of(self.primaries, self.transfer)


def _code_points(items: _Items, config: ColourConfig | None) -> _CodePoints | None:
    """Those of the primary image: of its `nclx` box, or else of its AV1 sequence header."""
    data, other_profile = items.data, False
    points: tuple[int, int, int, bool] | None = None
    if config is not None:
        points = config.primaries, config.transfer, config.matrix, config.full_range
    for kind, begin, end in items.each(items.primary or 0):
        if kind != b"colr":
            continue
        if data[begin : begin + 4] != b"nclx":
            other_profile = True
        elif end - begin >= 11:
            numbers = (int.from_bytes(data[at : at + 2], "big") for at in range(begin + 4, end, 2))
            primaries, transfer, matrix = itertools.islice(numbers, 3)
            points = primaries, transfer, matrix, bool(data[begin + 10] & _FULL_RANGE)
    return None if points is None else _CodePoints(*points, overridden=other_profile)


def _check_matrix(items: _Items, config: ColourConfig | None, points: _CodePoints | None) -> None:
    """Raise UnsupportedImage if the colours are coded in a way that libavif cannot convert."""
    name: str | None = None
    depth = items.depth(items.primary or 0) if config is None else config.depth
    if points is not None:
        matrix = points.matrix
        name = _MATRICES.get(matrix)
        if matrix >= _FIRST_UNKNOWN:
            name = f"number {matrix}"
        elif matrix == _YCGCO and not points.full_range:
            name = "YCgCo with limited range"
        elif matrix == _YCGCO_RE and not (points.full_range and depth == _YCGCO_RE_DEPTH):
            name = "YCgCo-Re, not with 10 bits in full range"
        elif matrix == _IDENTITY and _subsampled(items, config):
            name = _SUBSAMPLED_IDENTITY
    if config is not None and not config.valid:
        name = _SUBSAMPLED_IDENTITY
    if name is not None:
        raise UnsupportedImage(
            f"The AVIF's matrix coefficients are {name}, which the decoder cannot convert."
        )


def _subsampled(items: _Items, config: ColourConfig | None) -> bool:
    """Whether the coded colours have fewer samples than pixels (AV1 in ISOBMFF, `av1C`)."""
    if config is not None:
        return config.subsampled
    flags = items.configuration(items.primary or 0)
    return not flags & 0x10 and bool(flags & 0x0C)  # not monochrome, and chroma_subsampling_x or _y


def _coded_data(items: _Items) -> bytes:
    """The first bytes of the primary image's data, or of its first tile's if it is a grid.

    Empty if they are not where they are expected: the decoder then decides.
    """
    reader = _BoxReader(items.data)
    item = items.primary or 0
    at, end = items.boxes.get(b"iref", (0, 0))
    id_size = 2 if reader.number(at, 1) == 0 else 4
    with contextlib.suppress(TooManyBoxes):
        for kind, begin, _ in reader.boxes(at + _FULL_BOX, end):
            if kind == b"dimg" and reader.number(begin, id_size) == items.primary:
                item = reader.number(begin + id_size + 2, id_size)  # behind their number
                break
    coded = bytearray()
    for begin, size in _extents(reader, items, item):
        coded += items.data[begin : begin + min(size, SEARCHED_BYTES - len(coded))]
        if len(coded) >= SEARCHED_BYTES:
            break
    return bytes(coded)


def _extents(reader: "_BoxReader", items: _Items, wanted: int) -> Iterator[tuple[int, int]]:
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


def _repaired(data: bytes | bytearray, items: _Items | None) -> tuple[Part, ...]:
    """The file, without what the decoder refuses although it is not needed for the pixels.

    Where an alpha image has no `ispe`, that of the primary image is added. Encoders left it out
    until 2021, and libavif refuses the file. The new `meta` goes to the end, so that the offsets in
    the file stay right.
    """
    replaced = _replaced(data, items)
    meta = b""
    if items is not None and (grown := _with_alpha_sizes(items, replaced)):
        meta = grown
        replaced[items.meta[0] + 4] = b"free"
    parts: list[Part] = []
    at = 0
    for begin in sorted(replaced):
        parts += [(at, begin), replaced[begin]]
        at = begin + len(replaced[begin])
    return (*parts, (at, len(data)), meta)


def _replaced(data: bytes | bytearray, items: _Items | None) -> dict[int, bytes]:
    """Bytes to replace, by their offset: the types of items and properties to ignore."""
    replaced: dict[int, bytes] = {}
    if not is_avif(data):
        return replaced
    if bytes(data[8:12]) not in _MAJOR_BRANDS:
        replaced[8] = _BRANDS[0]
    if items is None:
        return replaced
    # libavif reads EXIF and XMP, and refuses the file if they are broken. The orientation is not
    # taken from there, but from `irot` and `imir`.
    at, end = items.boxes.get(b"iinf", (0, 0))
    reader = _BoxReader(data)
    with contextlib.suppress(TooManyBoxes):
        for kind, begin, _ in reader.boxes(at + _FULL_BOX + (4 if data[at] else 2), end):
            type_at = begin + _FULL_BOX + (4 if reader.number(begin, 1) < 3 else 6)
            if kind == b"infe" and bytes(data[type_at : type_at + 4]) in _METADATA_ITEMS:
                replaced[type_at] = b"skip"
    # libavif refuses a file whose `pixi` names other depths than its `av1C`.
    for item in items.of_item:
        found = items.find(item, b"pixi")
        if found is not None and items.find(item, b"av1C") is not None:
            _, begin, end = found
            if set(data[begin + _FULL_BOX + 1 : end]) - {items.depth(item)}:
                replaced[begin - 4] = b"skip"
    return replaced


def _with_alpha_sizes(items: _Items, replaced: dict[int, bytes]) -> bytes | None:
    """`meta` with a size for each alpha image. None if all have one, or if it cannot be added."""
    data = items.data
    if items.primary is None:
        return None
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
        return None
    begin, end = items.meta
    entry = size[0].to_bytes(2 if items.wide else 1, "big")
    meta = bytearray(data[begin:end])
    for at, value in replaced.items():
        if begin <= at < end:
            meta[at - begin : at - begin + len(value)] = value
    for item in sorted(missing, key=lambda each: -items.ends[each]):  # from the end
        meta[items.counts[item] - begin] += 1
        meta[items.ends[item] - begin : items.ends[item] - begin] = entry
    grown = len(entry) * len(missing)
    for box, box_end in items.parents:
        if int.from_bytes(data[box : box + 4], "big") != box_end - box:
            return None  # a 64-bit size, or one that ends with the file
        meta[box - begin : box - begin + 4] = (box_end - box + grown).to_bytes(4, "big")
    return bytes(meta)


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
