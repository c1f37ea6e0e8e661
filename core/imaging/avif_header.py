"""Reads the dimensions that an AVIF file declares, without a native parser.

libavif allocates whatever the boxes of a file announce: six kilobytes of `iloc` cost it a gigabyte
and four seconds, during which the process does nothing else. The API therefore reads only what it
needs: `ispe`, the dimensions of each image item. Boxes are those of ISO/IEC 14496-12 and 23008-12.
"""

from collections.abc import Iterator
from typing import NamedTuple

MAX_BOXES = 1_000  # libavif's own files have about 20
_BRANDS = (b"avif", b"avis")
_SEQUENCE_BRAND = b"avis"
_PROPERTIES = (b"iprp", b"ipco")  # the boxes in `meta` that lead to `ispe`
_FULL_BOX = 4  # bytes of version and flags at the start of `meta` and `ispe`


class TooManyBoxes(Exception):
    """The file has more than `MAX_BOXES` boxes before the end of its image's properties."""


class AvifHeader(NamedTuple):
    """`sizes` holds (width, height) in pixels of each image item, as declared.

    `tracks` tells whether the file has a movie box, that is, a sequence of frames.
    """

    sizes: tuple[tuple[int, int], ...]
    tracks: bool


def is_avif(data: bytes | bytearray) -> bool:
    """Whether the file type box lists an AVIF brand."""
    return any(brand in _BRANDS for brand in _brands(data))


def is_avif_sequence(data: bytes | bytearray) -> bool:
    """Whether the file type box says that the file holds a sequence of frames."""
    return _SEQUENCE_BRAND in _brands(data)


def read_avif_header(data: bytes | bytearray) -> AvifHeader:
    """What the boxes of `data` declare. Broken boxes are skipped. Raises TooManyBoxes."""
    reader = _BoxReader(data)
    sizes, tracks = list[tuple[int, int]](), False
    for kind, begin, end in reader.boxes(0, len(data)):
        tracks = tracks or kind == b"moov"
        if kind == b"meta":
            sizes += reader.image_sizes(begin + _FULL_BOX, end)
    return AvifHeader(tuple(sizes), tracks)


def _brands(data: bytes | bytearray) -> list[bytes]:
    """Major and compatible brands of a file type box; none if the file starts with another box."""
    if data[4:8] != b"ftyp":
        return []
    size = min(int.from_bytes(data[:4], "big"), 256)
    # The minor version lies between the major brand and the compatible ones.
    return [bytes(data[at : at + 4]) for at in (8, *range(16, size - 3, 4))]


class _BoxReader:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._left = MAX_BOXES

    def boxes(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The type of each box between two offsets, and where its content begins and ends."""
        while at + 8 <= end:
            self._left -= 1
            if self._left < 0:
                raise TooManyBoxes
            size, header = self._number(at, 4), 8
            if size == 1:  # a 64-bit size follows the type
                size, header = self._number(at + 8, 8), 16
            elif size == 0:  # the box extends to the end
                size = end - at
            if size < header:
                return
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
                found.append((self._number(at, 4), self._number(at + 4, 4)))
        return found

    def _number(self, at: int, size: int) -> int:
        return int.from_bytes(self._data[at : at + size], "big")
