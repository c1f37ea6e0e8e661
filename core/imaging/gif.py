"""Reads the blocks of a GIF file (GIF89a specification) up to its first frame."""

from core.imaging.encoded import EncodedImage, Part, TooManyParts, broken_header

MAX_BLOCKS = 100_000  # a comment of 20 MB has 82,000

_EXTENSION, _IMAGE, _TRAILER = 0x21, 0x2C, 0x3B
_GRAPHIC_CONTROL = b"\xf9\x04"  # with the size of its data
# Adobe's XMP is no sequence of blocks: a trailer leads every reader to its end (XMP specification,
# part 3, 1.1.2).
_XMP = b"\xff\x0bXMP DataXMP"
_XMP_TRAILER = bytes(range(255, -1, -1)) + b"\0"


def read_gif(data: bytes | bytearray) -> EncodedImage:
    """Raises InvalidImage if the file has no frame, and TooManyParts."""
    broken = broken_header("GIF")
    if len(data) < 13:
        raise broken
    at, parts = _first_frame(data, 13 + _colours(data[10]))
    if not 0 <= at <= len(data) - 10:
        raise broken
    x, y, width, height = (
        int.from_bytes(data[at + offset : at + offset + 2], "little") for offset in (1, 3, 5, 7)
    )
    if not width or not height:
        raise broken
    # Browsers enlarge a canvas that is smaller than its first frame.
    canvas = (
        max(int.from_bytes(data[6:8], "little"), x + width),
        max(int.from_bytes(data[8:10], "little"), y + height),
    )
    sides = bytes(data[at + 5 : at + 9])
    covers = (x, y, width, height) == (0, 0, *canvas)
    return EncodedImage(
        size=canvas,
        parts=(
            bytes(data[:6]) + sides,
            (10, 13 + _colours(data[10])),
            *parts,
            b",\0\0\0\0" + sides,
            (at + 9, len(data)),
        ),
        frame=None if covers else (x, y, x + width, y + height),
    )


def _first_frame(data: bytes | bytearray, at: int) -> tuple[int, list[Part]]:
    """Where the first frame begins, -1 if there is none, and the extension that controls it."""
    control: list[Part] = []
    left = MAX_BLOCKS
    while at < len(data) and data[at] != _TRAILER:
        left -= 1
        if left < 0:
            raise TooManyParts
        if data[at] == _IMAGE:
            return at, control
        if data[at] != _EXTENSION:
            at += 1
            continue
        if data[at + 1 : at + 3] == _GRAPHIC_CONTROL:
            control = [bytes(data[at : at + 7]) + b"\0"]
        if data[at + 1 : at + 14] == _XMP and (end := data.find(_XMP_TRAILER, at + 14)) >= 0:
            at = end + len(_XMP_TRAILER)
            continue
        at += 2
        while at < len(data) and data[at]:
            left -= 1
            if left < 0:
                raise TooManyParts
            at += 1 + data[at]
        at += 1
    return -1, control


def _colours(flags: int) -> int:
    """The bytes of a colour table."""
    return 3 << (flags & 7) + 1 if flags & 0x80 else 0
