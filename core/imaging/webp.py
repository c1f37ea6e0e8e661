"""Reads the chunks of a WebP file (RFC 9649)."""

from collections.abc import Iterator

from core.imaging.encoded import EncodedImage, Part, TooManyParts, broken_header, orientation_of

MAX_CHUNKS = 10_000

_LOSSY, _LOSSLESS, _ALPHA, _FRAME = b"VP8 ", b"VP8L", b"ALPH", b"ANMF"
_Chunk = tuple[int, int]  # begin and end, with the header
_HAS_ALPHA = 0x10  # of the flags in VP8X


def read_webp(data: bytes | bytearray, *, header_only: bool = False) -> EncodedImage:
    """The first image of the file. With `header_only`, chunks behind it are not read.

    Raises InvalidImage if the file has no image, and TooManyParts.
    """
    walk = _Walk(data)
    canvas: tuple[int, int] | None = None
    profile = exif = xmp = None
    origin = (0, 0)
    image: _Chunk | None = None
    alpha: _Chunk | None = None
    for kind, begin, end in walk.chunks(12, len(data)):
        if kind == b"VP8X" and canvas is None and end - begin >= 10:
            canvas = _number(data, begin + 4, 3) + 1, _number(data, begin + 7, 3) + 1
        elif kind == b"ICCP":
            profile = profile or bytes(data[begin:end])
        elif kind == b"EXIF":
            exif = exif or bytes(data[begin:end])
        elif kind == b"XMP ":
            xmp = xmp or bytes(data[begin:end])
        elif image is None and kind in (_ALPHA, _LOSSY, _LOSSLESS):
            image, alpha = _with(kind, (begin - 8, end), alpha)
        elif image is None and kind == _FRAME and end - begin >= 16:
            origin = 2 * _number(data, begin, 3), 2 * _number(data, begin + 3, 3)
            alpha = None
            for inner, at, inner_end in walk.chunks(begin + 16, end):
                if image is None:
                    image, alpha = _with(inner, (at - 8, inner_end), alpha)
        if image is not None and header_only:
            break
    if image is None:
        raise broken_header("WEBP")
    width, height = _sides(data, *image)
    right, bottom = origin[0] + width, origin[1] + height
    size = (right, bottom) if canvas is None else (max(canvas[0], right), max(canvas[1], bottom))
    frame = (*origin, right, bottom)
    return EncodedImage(
        size=size,
        parts=_still(data, image, alpha, (width, height)),
        frame=None if frame == (0, 0, *size) else frame,
        profile=profile,
        orientation=orientation_of((exif or b"").removeprefix(b"Exif\0\0"), xmp),
    )


def _with(kind: bytes, chunk: _Chunk, alpha: _Chunk | None) -> tuple[_Chunk | None, _Chunk | None]:
    """The image and its alpha channel, as far as they are known with one more chunk."""
    if kind == _ALPHA:
        return None, chunk
    return chunk if kind in (_LOSSY, _LOSSLESS) else None, alpha


class _Walk:
    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._left = MAX_CHUNKS

    def chunks(self, at: int, end: int) -> Iterator[tuple[bytes, int, int]]:
        """The kind of each chunk between two offsets, and where its content begins and ends."""
        while at + 8 <= end:
            self._left -= 1
            if self._left < 0:
                raise TooManyParts
            size = _number(self._data, at + 4, 4)
            yield bytes(self._data[at : at + 4]), at + 8, min(at + 8 + size, end)
            at += 8 + size + size % 2


def _sides(data: bytes | bytearray, begin: int, end: int) -> tuple[int, int]:
    """The size that an image chunk declares. Raises InvalidImage."""
    at = begin + 8
    if data[begin : begin + 4] == _LOSSLESS and data[at : at + 1] == b"\x2f" and end - at >= 5:
        bits = _number(data, at + 1, 4)
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    lossy = data[begin : begin + 4] == _LOSSY and data[at + 3 : at + 6] == b"\x9d\x01\x2a"
    if lossy and end - at >= 10:
        return _number(data, at + 6, 2) & 0x3FFF, _number(data, at + 8, 2) & 0x3FFF
    raise broken_header("WEBP")


def _still(
    data: bytes | bytearray,
    image: tuple[int, int],
    alpha: tuple[int, int] | None,
    sides: tuple[int, int],
) -> tuple[Part, ...]:
    """The parts of a file that holds one image and nothing else."""
    chunks: list[Part] = []
    lossy = data[image[0] : image[0] + 4] == _LOSSY
    if alpha is not None and lossy:
        width, height = ((side - 1).to_bytes(3, "little") for side in sides)
        chunks.append(b"VP8X\x0a\0\0\0" + bytes((_HAS_ALPHA, 0, 0, 0)) + width + height)
        chunks += _padded(alpha)
    chunks += _padded(image)
    size = sum(len(part) if isinstance(part, bytes) else part[1] - part[0] for part in chunks)
    return (b"RIFF" + (size + 4).to_bytes(4, "little") + b"WEBP", *chunks)


def _padded(chunk: tuple[int, int]) -> list[Part]:
    return [chunk, b"\0"] if (chunk[1] - chunk[0]) % 2 else [chunk]


def _number(data: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "little")
