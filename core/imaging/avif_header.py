"""Reads the dimensions and the colours that an AVIF file declares, without a native parser.

libavif allocates whatever the boxes of a file announce: six kilobytes of `iloc` cost it a gigabyte
and four seconds, during which the process does nothing else. The API therefore reads only what it
needs: the dimensions of each image item, and how the primary image codes its colours.
"""

import contextlib
import itertools
from typing import NamedTuple

from core.errors import UnsupportedImage
from core.imaging.av1_header import ColourConfig, read_colour_config
from core.imaging.avif_items import (
    FULL_BOX,
    BoxReader,
    Items,
    TooManyBoxes,
    coded_data,
    read_items,
)
from core.imaging.code_points import profile_of
from core.imaging.encoded import EncodedImage, Part, broken_header

_BRANDS = (b"avif", b"avis")
_SEQUENCE_BRAND = b"avis"


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
    reader = BoxReader(data)
    sizes, tracks = list[tuple[int, int]](), False
    for kind, begin, end in reader.boxes(0, len(data)):
        tracks = tracks or kind == b"moov"
        if kind == b"meta":
            sizes += reader.image_sizes(begin + FULL_BOX, end)
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
    items = read_items(data)
    profile: bytes | None = None
    if items is not None and items.primary is not None:
        config = read_colour_config(coded_data(items)) if is_avif(data) else None
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


class _CodePoints(NamedTuple):
    """Code points of ITU-T H.273, and whether an ICC profile comes before them."""

    primaries: int
    transfer: int
    matrix: int
    full_range: bool
    overridden: bool

    def profile(self) -> bytes | None:
        return None if self.overridden else profile_of(self.primaries, self.transfer)


def _code_points(items: Items, config: ColourConfig | None) -> _CodePoints | None:
    """Those of the primary image: of its `nclx` box, or else of its AV1 sequence header."""
    data, other_profile = items.data, False
    points: tuple[int, int, int, bool] | None = None
    if config is not None:
        points = config.primaries, config.transfer, config.matrix, config.full_range
    for kind, begin, end in items.properties_of(items.primary or 0):
        if kind != b"colr":
            continue
        if data[begin : begin + 4] != b"nclx":
            other_profile = True
        elif end - begin >= 11:
            numbers = (int.from_bytes(data[at : at + 2], "big") for at in range(begin + 4, end, 2))
            primaries, transfer, matrix = itertools.islice(numbers, 3)
            points = primaries, transfer, matrix, bool(data[begin + 10] & _FULL_RANGE)
    return None if points is None else _CodePoints(*points, overridden=other_profile)


def _check_matrix(items: Items, config: ColourConfig | None, points: _CodePoints | None) -> None:
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


def _subsampled(items: Items, config: ColourConfig | None) -> bool:
    """Whether the coded colours have fewer samples than pixels (AV1 in ISOBMFF, `av1C`)."""
    if config is not None:
        return config.subsampled
    flags = items.configuration(items.primary or 0)
    return not flags & 0x10 and bool(flags & 0x0C)  # not monochrome, and chroma_subsampling_x or _y


def _repaired(data: bytes | bytearray, items: Items | None) -> tuple[Part, ...]:
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


def _replaced(data: bytes | bytearray, items: Items | None) -> dict[int, bytes]:
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
    reader = BoxReader(data)
    with contextlib.suppress(TooManyBoxes):
        for kind, begin, _ in reader.boxes(at + FULL_BOX + (4 if data[at] else 2), end):
            type_at = begin + FULL_BOX + (4 if reader.number(begin, 1) < 3 else 6)
            if kind == b"infe" and bytes(data[type_at : type_at + 4]) in _METADATA_ITEMS:
                replaced[type_at] = b"skip"
    # libavif refuses a file whose `pixi` names other depths than its `av1C`.
    for item in items.of_item:
        found = items.find(item, b"pixi")
        if found is not None and items.find(item, b"av1C") is not None:
            _, begin, end = found
            if set(data[begin + FULL_BOX + 1 : end]) - {items.depth(item)}:
                replaced[begin - 4] = b"skip"
    return replaced


def _with_alpha_sizes(items: Items, replaced: dict[int, bytes]) -> bytes | None:
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
        and bytes(data[aux[1] + FULL_BOX : aux[2]]).startswith(_ALPHA)
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
