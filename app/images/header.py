"""Recognises an image's format by its first bytes, and checks its header before any decoding."""

import io
from collections.abc import Callable

from PIL import Image, ImageFile, PngImagePlugin
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from core.errors import InvalidImage, UnsupportedImage
from core.imaging.avif_header import TooManyBoxes, is_avif, is_avif_sequence, read_avif_header
from core.imaging.bounded_reader import BoundedReader, TooManyReads
from core.imaging.limits import MAX_TEXT_CHUNK, check_sides

PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_CHUNK

# Image.open would import every plugin and warn about Pillow's own pixel limit.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
}
_AVIF = "image/avif"
ACCEPTED = (*_READERS, _AVIF)
# The largest valid JPEG header, with 10 MB of colour profile, takes 650 reads.
_MAX_READS = 4_000


def sniff(data: bytes | bytearray) -> str | None:
    """The content type that the first bytes prove, or None if it is not an accepted one."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if is_avif(data):
        return _AVIF
    return None


def accepted_type(data: bytes | bytearray) -> str:
    """The content type of an accepted image. Raises UnsupportedImage."""
    content_type = sniff(data)
    if content_type is None:
        raise UnsupportedImage(
            "The bytes are not a JPEG, PNG, WebP, GIF or AVIF image.",
            extra={"accepted": ACCEPTED},
        )
    if content_type == _AVIF and is_avif_sequence(data):
        raise _avif_sequence()
    return content_type


def inspect_header(data: bytes | bytearray, content_type: str, max_pixels: int) -> None:
    """Check an image's header without decoding a pixel. Blocks.

    Raises InvalidImage if the header is broken or declares more than `max_pixels`, and
    UnsupportedImage for an AVIF sequence whose file type box does not mention it.
    """
    for width, height in _declared_sizes(data, content_type, max_pixels):
        if width < 1 or height < 1:
            raise InvalidImage(f"The image is {width} x {height} pixels. It has no pixels.")
        check_sides(width, height)
        if width * height > max_pixels:
            raise InvalidImage(
                f"The image is {width} x {height} pixels. The limit is {max_pixels} in total.",
                extra={"width": width, "height": height, "max_pixels": max_pixels},
            )


def _declared_sizes(
    data: bytes | bytearray, content_type: str, max_pixels: int
) -> tuple[tuple[int, int], ...]:
    """Width and height of the image; for AVIF, of each image item. Always at least one."""
    broken = InvalidImage(
        f"The file starts like {content_type.removeprefix('image/').upper()}, but its header is "
        "broken."
    )
    try:
        if content_type == _AVIF:
            header = read_avif_header(data)
            if header.tracks:
                raise _avif_sequence()
            if not header.sizes:
                raise broken
            return header.sizes
        with _READERS[content_type](BoundedReader(data, _MAX_READS)) as image:
            return (image.size,)
    except (InvalidImage, UnsupportedImage):
        raise
    except Image.DecompressionBombError:
        raise InvalidImage(f"The image has more than {max_pixels} pixels.") from None
    except (TooManyReads, TooManyBoxes):
        raise InvalidImage("The file has too many parts before its image data.") from None
    except Exception:  # noqa: BLE001 - a hostile header makes a parser raise anything
        raise broken from None


def _avif_sequence() -> UnsupportedImage:
    return UnsupportedImage(
        "The file is an AVIF sequence. Only still AVIF images are accepted.",
        extra={"accepted": ACCEPTED},
    )
