"""An image file split into what its pixels need and what describes them.

Decoders refuse whole files because of damage beside the pixels: a wrong checksum of a comment, a
short JFIF segment, a broken animation. The readers of this package therefore walk the containers
themselves, cheaply and without decoding, and pass on only what the pixels need.
"""

import re
from dataclasses import dataclass
from typing import Literal

from core.errors import InvalidImage

# A part of a file without metadata: the offsets of a slice of the file, or bytes to insert.
Part = tuple[int, int] | bytes

# Adobe's metadata names the orientation if EXIF does not.
_XMP_ORIENTATION = re.compile(rb"tiff:Orientation(?:=[\"']|>)([1-8])")
_ORIENTATION_TAG = 0x0112  # https://exiftool.org/TagNames/EXIF.html
_MAX_TAGS = 1_000


class TooManyParts(Exception):
    """The file has more segments, chunks or boxes than any valid one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    """What the container of an image file says.

    `size` is the width and height of the canvas in pixels, as stored. `frame` is the first frame's
    box (left, top, right, bottom) in it, and None if the frame covers the canvas. `parts`, joined,
    are a file without metadata that decodes to the same pixels. A sample has `depth` bits. In a
    TIFF, samples may be `signed`, and the smallest may be white (`white_is_zero`). `colour_key` is
    the colour that is transparent. `profile` is an ICC profile, which may be broken.
    `orientation` is that of EXIF (1 to 8), and None if the decoder knows it. `reducible` tells
    whether the decoder can reduce the image while it decodes. `run_lengths` tells that it is a BMP
    in RLE8 or RLE4.
    """

    size: tuple[int, int]
    parts: tuple[Part, ...]
    frame: tuple[int, int, int, int] | None = None
    colour_key: tuple[int, ...] | None = None
    depth: int = 8
    signed: bool = False
    white_is_zero: bool = False
    profile: bytes | None = None
    gamma: float | None = None
    orientation: int | None = 1
    reducible: bool = False
    lossless_jpeg: bool = False
    run_lengths: bool = False
    jfif: bool = False

    def without_metadata(self, data: bytes | bytearray) -> bytes:
        """The file that a decoder gets. `data` is the file that this was read from."""
        with memoryview(data) as view:
            return b"".join(
                part if isinstance(part, bytes) else view[part[0] : part[1]] for part in self.parts
            )


def broken_header(format_: str) -> InvalidImage:
    return InvalidImage(f"The file starts like {format_}, but its header is broken.")


def orientation_of(exif: bytes | None, xmp: bytes | None = None) -> int:
    """The orientation that metadata declare, 1 to 8; 1 if they declare none or are broken.

    `exif` begins with a TIFF header (EXIF 2.32, 4.5.2).
    """
    if exif and exif[:2] in (b"II", b"MM"):
        order: Literal["little", "big"] = "little" if exif[:2] == b"II" else "big"
        at = int.from_bytes(exif[4:8], order)
        count = int.from_bytes(exif[at : at + 2], order)
        for entry in range(at + 2, at + 2 + 12 * min(count, _MAX_TAGS), 12):
            if int.from_bytes(exif[entry : entry + 2], order) == _ORIENTATION_TAG:
                value = int.from_bytes(exif[entry + 8 : entry + 10], order)
                return value if 1 <= value <= 8 else 1
    if xmp and (found := _XMP_ORIENTATION.search(xmp)):
        return int(found[1])
    return 1
