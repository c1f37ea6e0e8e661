"""What the first bytes of an image say: its type, and whether its header can be a picture."""

import io
from collections.abc import Callable

from PIL import Image, ImageFile, PngImagePlugin
from PIL.AvifImagePlugin import AvifImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.WebPImagePlugin import WebPImageFile

from core.errors import InvalidImage, UnsupportedImage
from core.imaging.avif import check_announced
from core.imaging.bounded_reader import BoundedReads, TooManyReads
from core.imaging.limits import MAX_TEXT_CHUNK, check_sides

PngImagePlugin.MAX_TEXT_CHUNK = MAX_TEXT_CHUNK

# Opened by class, not with Image.open: that would load every plugin there is, and warn about a
# pixel limit that is not ours.
_READERS: dict[str, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "image/jpeg": JpegImageFile,
    "image/png": PngImageFile,
    "image/webp": WebPImageFile,
    "image/gif": GifImageFile,
    "image/avif": AvifImageFile,
}
ACCEPTED = tuple(_READERS)
# Reads that a header may take. JPEG's largest honest one, ten megabytes of ICC profile, takes 650.
_MAX_READS = 4_000
_AVIF_BRANDS = (b"avif", b"avis")


def sniff(data: bytes | bytearray) -> str | None:
    """The content type that the first bytes prove, or None where it is not an accepted one."""
    if data.startswith(b"\xff\xd8\xff"):
        return "image/jpeg"
    if data.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "image/webp"
    if data.startswith((b"GIF87a", b"GIF89a")):
        return "image/gif"
    if data[4:8] == b"ftyp" and _is_avif(data):
        return "image/avif"
    return None


def accepted_type(data: bytes | bytearray) -> str:
    """The content type of an image that Glimpse takes. Raises UnsupportedImage."""
    content_type = sniff(data)
    if content_type is None:
        raise UnsupportedImage(
            "The bytes are not a JPEG, PNG, WebP, GIF or AVIF image.",
            extra={"accepted": ACCEPTED},
        )
    return content_type


def inspect_header(data: bytes | bytearray, content_type: str, max_pixels: int) -> None:
    """Raise InvalidImage unless the header can be parsed and stays within `max_pixels`.

    No pixel is decoded, so a small file that claims to be a huge picture costs nothing. Blocks.
    """
    name = content_type.removeprefix("image/").upper()
    if content_type == "image/avif":
        check_announced(data, max_pixels)
    try:
        with _READERS[content_type](BoundedReads(data, _MAX_READS)) as image:
            width, height = image.size
    except Image.DecompressionBombError:
        raise InvalidImage(f"The picture has more than {max_pixels} pixels.") from None
    except TooManyReads:
        raise InvalidImage("The file has too many parts before its picture.") from None
    except Exception:  # noqa: BLE001 - a hostile header makes a parser raise anything
        raise InvalidImage(f"The file begins like {name}, but its header is broken.") from None
    if width < 1 or height < 1:
        raise InvalidImage(f"The picture is {width} x {height} pixels: there is nothing to see.")
    check_sides(width, height)
    if width * height > max_pixels:
        raise InvalidImage(
            f"The picture is {width} x {height} pixels, more than {max_pixels} in all.",
            extra={"width": width, "height": height, "max_pixels": max_pixels},
        )


def _is_avif(data: bytes | bytearray) -> bool:
    """Whether the file type box lists an AVIF brand: major brand, version, compatible brands."""
    size = min(int.from_bytes(data[:4], "big"), 256)
    brands = [data[8:12], *(data[i : i + 4] for i in range(16, size - 3, 4))]
    return any(brand in _AVIF_BRANDS for brand in brands)
