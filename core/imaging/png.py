"""Reads the chunks of a PNG file (https://www.w3.org/TR/png-3/)."""

import contextlib
import re
import zlib
from collections.abc import Iterator

from core.errors import UnsupportedImage
from core.imaging.code_points import profile_of
from core.imaging.encoded import EncodedImage, Part, TooManyParts, broken_header, orientation_of
from core.imaging.limits import MAX_TEXT_CHUNK

MAX_HEADER_CHUNKS = 4_000  # before the pixels
MAX_CHUNKS = 100_000  # a PNG of 20 MB in chunks of 1 kB is valid

_GREY, _RGB, _PALETTE = 0, 2, 3
_DEPTHS = {_GREY: (1, 2, 4, 8, 16), _RGB: (8, 16), _PALETTE: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_ESSENTIAL = re.compile(rb"PLTE|IDAT")
_END = b"\0\0\0\0IEND\xae\x42\x60\x82"
_XMP_KEY = b"XML:com.adobe.xmp\0"
_RAW_EXIF_KEYS = (b"Raw profile type exif\0", b"Raw profile type APP1\0")
_READ = frozenset({b"tRNS", b"cICP", b"iCCP", b"sRGB", b"gAMA", b"eXIf"})
_COLOURS = frozenset({b"cICP", b"iCCP", b"sRGB"})  # each of them overrides gAMA
_TEXTS, _MAX_TEXTS = (b"iTXt", b"zTXt"), 64
_SRGB_GAMMA = 0.45455
_GAMMA_TOLERANCE = 0.05  # a difference that libpng does not correct


def read_png(data: bytes | bytearray, *, header_only: bool = False) -> EncodedImage:
    """Raises InvalidImage, UnsupportedImage for varieties that are not decoded, TooManyParts.

    With `header_only`, the parts end before the pixels.
    """
    if data[12:16] == b"CgBI":
        raise UnsupportedImage("The file is a PNG in Apple's CgBI variety, which is not supported.")
    width, height, depth, colour = _image_header(data)
    parts: list[Part] = [(0, 33)]
    chunks: dict[bytes, bytes] = {}
    texts: list[bytes] = []
    palette = b""
    pixels = False
    for kind, at, end in _chunks(data):
        if kind == b"IDAT":
            pixels = True
            if header_only:
                break
            _extend(parts, at, end)
        elif kind == b"PLTE" and not pixels and colour == _PALETTE:
            palette = bytes(data[at + 8 : end - 4])[: 3 << depth]
        elif kind in _TEXTS and len(texts) < _MAX_TEXTS:
            texts.append(bytes(data[at + 8 : end - 4]))
        elif kind in _READ and _intact(data, at, end) and (not pixels or kind == b"eXIf"):
            chunks.setdefault(kind, bytes(data[at + 8 : end - 4]))
    if not pixels or (colour == _PALETTE and len(palette) < 3):
        raise broken_header("PNG")
    transparency = chunks.get(b"tRNS")
    if colour == _PALETTE:
        parts.insert(1, _chunk(b"PLTE", palette[: len(palette) // 3 * 3]))
        if transparency:
            parts.insert(2, _chunk(b"tRNS", transparency[: len(palette) // 3]))
    return EncodedImage(
        size=(width, height),
        parts=(*parts, _END),
        colour_key=_colour_key(transparency, colour, depth),
        depth=depth,
        profile=_profile(chunks),
        gamma=None if chunks.keys() & _COLOURS else _gamma(chunks.get(b"gAMA")),
        orientation=orientation_of(_exif(chunks.get(b"eXIf"), texts), _xmp(texts)),
    )


def _chunks(data: bytes | bytearray) -> Iterator[tuple[bytes, int, int]]:
    """The kind of each chunk behind the header, and where it begins and ends."""
    at, pixels = 33, False
    search = _Search(data)
    for number in range(MAX_CHUNKS):
        if not pixels and number >= MAX_HEADER_CHUNKS:
            raise TooManyParts
        kind = bytes(data[at + 4 : at + 8])
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if len(kind) < 4 or kind == b"IEND":
            return
        if kind == b"IDAT":
            pixels = True
            yield kind, at, min(end, len(data))
        elif kind.isalpha() and _ends_at(data, at, end, search, pixels=pixels):
            yield kind, at, end
        else:  # a wrong length, or bytes between chunks
            hidden = search.next(at + 8 if kind.isalpha() else at, len(data))
            if hidden is None:
                if pixels:
                    return
                raise broken_header("PNG")
            end = hidden
        at = end
    raise TooManyParts


def _image_header(data: bytes | bytearray) -> tuple[int, int, int, int]:
    """Width, height, bit depth and colour type. Raises InvalidImage."""
    head = data[16:29]
    if data[8:16] != b"\0\0\0\rIHDR" or len(head) < 13 or not _intact(data, 8, 33):
        raise broken_header("PNG")
    width, height = int.from_bytes(head[:4], "big"), int.from_bytes(head[4:8], "big")
    depth, colour, compression, filtering, interlacing = head[8:13]
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlacing > 1:
        raise broken_header("PNG")
    return width, height, depth, colour


def _intact(data: bytes | bytearray, at: int, end: int) -> bool:
    """Whether the checksum of the chunk between these offsets is right."""
    with memoryview(data) as view:
        return zlib.crc32(view[at + 4 : end - 4]) == int.from_bytes(view[end - 4 : end], "big")


def _extend(parts: list[Part], begin: int, end: int) -> None:
    last = parts[-1]
    if isinstance(last, tuple) and last[1] == begin and last[0] != 0:
        parts[-1] = (last[0], end)
    else:
        parts.append((begin, end))


def _ends_at(
    data: bytes | bytearray, at: int, end: int, search: "_Search", *, pixels: bool
) -> bool:
    """Whether the length of the chunk at `at` is right. Its checksum may be wrong nevertheless.

    `pixels` tells whether the chunk follows pixels.
    """
    if end > len(data):
        return False
    if _intact(data, at, end):
        return True
    following = data[end + 4 : end + 8]
    if len(following) == 4 and not following.isalpha():
        return False
    # The type of the next chunk ends at `end + 8`.
    return pixels or search.next(at + 8, end + 7) is None


class _Search:
    """Finds palettes and pixels that a wrong length hides. Raises TooManyParts."""

    def __init__(self, data: bytes | bytearray) -> None:
        self._data = data
        self._left = MAX_HEADER_CHUNKS

    def next(self, begin: int, stop: int) -> int | None:
        """Where the next such chunk begins between two offsets, or None."""
        data = self._data
        for found in _ESSENTIAL.finditer(data, begin + 4, stop):
            self._left -= 1
            if self._left < 0:
                raise TooManyParts
            end = found.end() + 4 + int.from_bytes(data[found.start() - 4 : found.start()], "big")
            if end >= len(data) or data[end + 4 : end + 8].isalpha():
                return found.start() - 4
        return None


def without_checksum(data: bytes) -> bytes | None:
    """`data`, as `EncodedImage.without_metadata` returns it, without the checksum of its pixels.

    The decoder then returns the pixels of an encoder that writes a wrong one (RFC 1950, Adler-32).
    None if the checksum of a chunk says that the pixels were damaged later.
    """
    at, last = 33, None
    while at + 12 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        if data[at + 4 : at + 8] == b"IDAT":
            if end > len(data) or not _intact(data, at, end):
                return None
            last = at, end
        at = end
    if last is None or last[1] - last[0] < 12 + 4:
        return None
    at, end = last
    return data[:at] + _chunk(b"IDAT", data[at + 8 : end - 8]) + data[end:]


def _colour_key(content: bytes | None, colour: int, depth: int) -> tuple[int, ...] | None:
    count = {_GREY: 1, _RGB: 3}.get(colour)
    if content is None or count is None or len(content) < 2 * count:
        return None
    mask = (1 << depth) - 1  # of less than 16 bits, only the lowest count (11.3.1.1)
    return tuple(
        int.from_bytes(content[at : at + 2], "big") & mask for at in range(0, 2 * count, 2)
    )


def _profile(chunks: dict[bytes, bytes]) -> bytes | None:
    """The ICC profile, or None if its compression is unknown or broken.

    Code points (`cICP`) come before it (PNG, 4.3).
    """
    points = chunks.get(b"cICP", b"")
    if len(points) == 4 and points[2:] == b"\0\1":
        return profile_of(points[0], points[1])
    content = chunks.get(b"iCCP")
    if content is None:
        return None
    _, _, rest = content.partition(b"\0")
    return _inflated(rest[1:]) if rest[:1] == b"\0" else None


def _gamma(content: bytes | None) -> float | None:
    """The exponent of the file's samples, unless it is that of sRGB."""
    if content is None or len(content) != 4:
        return None
    gamma = int.from_bytes(content, "big") / 100_000
    if not 0.01 < gamma < 100 or abs(gamma / _SRGB_GAMMA - 1) < _GAMMA_TOLERANCE:
        return None
    return gamma


def _exif(content: bytes | None, texts: list[bytes]) -> bytes | None:
    """EXIF from its own chunk, or as ImageMagick writes it: hexadecimal, in a compressed text."""
    if content is not None:
        return content.removeprefix(b"Exif\0\0")
    for text in texts:
        for key in _RAW_EXIF_KEYS:
            if text.startswith(key) and (raw := _inflated(text[len(key) + 1 :])):
                with contextlib.suppress(ValueError):
                    digits = b"".join(raw.split()[2:]).decode("ascii", "replace")
                    return bytes.fromhex(digits).removeprefix(b"Exif\0\0")
    return None


def _xmp(texts: list[bytes]) -> bytes | None:
    for text in texts:
        if text.startswith(_XMP_KEY):
            return text[len(_XMP_KEY) :]
    return None


def _inflated(packed: bytes) -> bytes | None:
    try:
        return zlib.decompressobj().decompress(packed, MAX_TEXT_CHUNK)
    except zlib.error:
        return None


def _chunk(kind: bytes, content: bytes) -> bytes:
    return (
        len(content).to_bytes(4, "big")
        + kind
        + content
        + zlib.crc32(kind + content).to_bytes(4, "big")
    )
