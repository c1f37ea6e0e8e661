"""Checks an image's header before the image is stored. Nothing is decoded."""

from core.errors import InvalidImage, UnsupportedImage
from core.imaging.encoded import TooManyParts, broken_header
from core.imaging.formats import check_size, read_header
from core.imaging.limits import PixelLimits


def inspect_header(
    data: bytes | bytearray, content_type: str, max_pixels: PixelLimits | int
) -> None:
    """Check an image's header without decoding a pixel. Blocks.

    Raises InvalidImage if the header is broken or declares more than `max_pixels`, and
    UnsupportedImage for a variety of the format that is not decoded.
    """
    try:
        image = read_header(data, content_type)
    except (InvalidImage, UnsupportedImage):
        raise
    except TooManyParts:
        raise InvalidImage("The file has too many parts before its image data.") from None
    except Exception:  # noqa: BLE001 - a hostile header makes a parser raise anything
        raise broken_header(content_type.removeprefix("image/").upper()) from None
    check_size(image, max_pixels)
