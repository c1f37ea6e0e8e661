"""Recognises a file's format by its first bytes, whatever its name or its declared type."""

from collections.abc import Callable
from functools import partial

from core.errors import InvalidImage, UnsupportedImage
from core.imaging.avif_header import brands, read_avif
from core.imaging.bmp import is_bmp, read_bmp
from core.imaging.encoded import EncodedImage
from core.imaging.gif import read_gif
from core.imaging.heic import HEIC, heic_decoder_installed
from core.imaging.jpeg import read_jpeg
from core.imaging.limits import PixelLimits, check_sides
from core.imaging.png import read_png
from core.imaging.tiff import check_tiff, read_tiff
from core.imaging.webp import read_webp

JPEG, PNG, WEBP, GIF, AVIF = "image/jpeg", "image/png", "image/webp", "image/gif", "image/avif"
BMP, TIFF = "image/bmp", "image/tiff"
# What every installation accepts. HEIC needs an optional decoder.
ALWAYS_ACCEPTED = (JPEG, PNG, WEBP, GIF, AVIF, BMP, TIFF)

_AVIF_BRANDS, _AVIF_SEQUENCE = frozenset({b"avif", b"avis"}), b"avis"
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_STARTS = (
    (b"\xff\xd8\xff", JPEG),
    (b"\x89PNG\r\n\x1a\n", PNG),
    ((b"GIF87a", b"GIF89a"), GIF),
    ((b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"), TIFF),
)
# Formats that people send and that are not accepted, by how they begin.
_OTHERS = (
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\0\0\0\x0cJXL ", "JPEG XL"),
    (0, b"\0\0\0\x0cjP  ", "JPEG 2000"),
    (0, b"\xff\x4f\xff\x51", "JPEG 2000"),
    (0, b"8BPS", "Photoshop (PSD)"),
    (0, b"%PDF", "PDF"),
    (0, b"\0\0\1\0", "icon (ICO)"),
    (0, b"qoif", "QOI"),
    (0, b"\x76\x2f\x31\x01", "OpenEXR"),
    (0, b"#?RADIANCE", "Radiance HDR"),
    (0, b"DDS ", "DirectDraw Surface (DDS)"),
    (0, b"II\xbc\x01", "JPEG XR"),
    (0, b"IIU\0", "camera raw"),
    (0, b"IIRO", "camera raw"),
    (0, b"FUJIFILMCCD-RAW", "camera raw"),
    (0, b"PK\3\4", "zip"),
    (0, b"\x1f\x8b", "gzip"),
    (0, b"\x1aE\xdf\xa3", "Matroska or WebM video"),
    (0, b"<!DOCTYPE html", "HTML"),
    (0, b"<html", "HTML"),
    (0, b"{", "JSON"),
    (4, b"ftypcrx ", "camera raw (CR3)"),
    (4, b"ftyp", "MP4 or QuickTime video"),
    (8, b"WAVE", "WAV"),
)
_VECTOR = (b"<svg", b"<?xml")


def sniff(data: bytes | bytearray) -> str | None:
    """The content type that the first bytes prove, or None if it is not an accepted one."""
    for start, content_type in _STARTS:
        if data.startswith(start):
            return content_type
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return WEBP
    if is_bmp(data):
        return BMP
    named = brands(data)
    if not _AVIF_BRANDS.isdisjoint(named):
        return AVIF
    heic = heic_decoder_installed() and not _HEIC_BRANDS.isdisjoint(named)
    return HEIC if heic else None


def accepted_types() -> tuple[str, ...]:
    """The content types that this installation accepts."""
    return (*ALWAYS_ACCEPTED, HEIC) if heic_decoder_installed() else ALWAYS_ACCEPTED


def accepted_type(data: bytes | bytearray) -> str:
    """The content type of an accepted image. Raises UnsupportedImage, which names the format."""
    content_type = sniff(data)
    if content_type is None:
        raise UnsupportedImage(_refusal(data), extra={"accepted": accepted_types()})
    if content_type == AVIF and _AVIF_SEQUENCE in brands(data):
        raise avif_sequence()
    return content_type


def read_header(data: bytes | bytearray, content_type: str) -> EncodedImage:
    """What the container declares, read without its pixels.

    Raises InvalidImage, UnsupportedImage for varieties that are not decoded, and TooManyParts.
    """
    return _HEADER_READERS[content_type](data)


def read_image(data: bytes | bytearray) -> EncodedImage:
    """The image and its metadata, for decoding. Raises as `read_header` does."""
    content_type = sniff(data)
    if content_type is None:
        raise UnsupportedImage(_refusal(data))
    return (_READERS.get(content_type) or _HEADER_READERS[content_type])(data)


def check_size(image: EncodedImage, max_pixels: PixelLimits | int) -> None:
    """Raise InvalidImage if a side is zero or too long, or if the image has too many pixels."""
    width, height = image.size
    if width < 1 or height < 1:
        raise InvalidImage(f"The image is {width} x {height} pixels. It has no pixels.")
    check_sides(width, height)
    if isinstance(max_pixels, int):
        limit = max_pixels
    else:
        limit = max_pixels.jpeg if image.reducible else max_pixels.other
    if width * height > limit:
        raise InvalidImage(
            f"The image is {width} x {height} pixels. The limit is {limit} in total.",
            extra={"width": width, "height": height, "max_pixels": limit},
        )


def avif_sequence() -> UnsupportedImage:
    return UnsupportedImage(
        "The file is an AVIF sequence. Only still AVIF images are accepted.",
        extra={"accepted": accepted_types()},
    )


def _check_still(data: bytes | bytearray) -> EncodedImage:
    image, tracks = read_avif(data)
    if tracks:
        raise avif_sequence()
    return image


_Reader = Callable[[bytes | bytearray], EncodedImage]
_HEADER_READERS: dict[str, _Reader] = {
    JPEG: read_jpeg,
    PNG: partial(read_png, header_only=True),
    WEBP: partial(read_webp, header_only=True),
    GIF: read_gif,
    AVIF: _check_still,
    BMP: read_bmp,
    TIFF: check_tiff,
    HEIC: _check_still,
}
# Of the formats for which decoding needs more than the header.
_READERS: dict[str, _Reader] = {
    PNG: read_png,
    WEBP: read_webp,
    TIFF: read_tiff,
    AVIF: lambda data: read_avif(data)[0],
}


def _refusal(data: bytes | bytearray) -> str:
    if not _HEIC_BRANDS.isdisjoint(brands(data)):
        return (
            "The file is a HEIC image. This installation has no decoder for HEIC. Send a JPEG, or "
            "install pillow-heif (docs/pictures.md)."
        )
    start = bytes(data[:256]).lstrip(b"\xef\xbb\xbf \t\r\n")
    name = "SVG" if start.startswith(_VECTOR) else None
    for offset, signature, format_ in _OTHERS:
        if name is None and data[offset : offset + len(signature)] == signature:
            name = format_
    accepted = "JPEG, PNG, WebP, GIF, AVIF, BMP and TIFF"
    if name is None:
        return f"The bytes are not an image of an accepted format: {accepted}."
    return f"The file is {name}. Accepted formats are {accepted}."
