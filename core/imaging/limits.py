"""Limits on image files. No setting changes those that are constants."""

from typing import NamedTuple, Self

from core.errors import InvalidImage

# The longest side in pixels: the maximum of JPEG and GIF. Pillow keeps one pointer for each row of
# each intermediate image, so an image one pixel wide takes several times the memory of a square
# with as many pixels.
MAX_SIDE = 65_535

# The uncompressed size, in bytes, of a PNG's colour profile or metadata.
MAX_TEXT_CHUNK = 4 * 2**20


class PixelLimits(NamedTuple):
    """The largest images, in pixels (width times height).

    `jpeg` is the limit of a JPEG, which is reduced while it is decoded. `other` is that of other
    formats.
    """

    other: int
    jpeg: int

    @classmethod
    def of(cls, pixels: int) -> Self:
        """At most `pixels`, or 15/8 as many in a JPEG, which needs half the memory for each."""
        return cls(other=pixels, jpeg=pixels * 15 // 8)


def check_sides(width: int, height: int) -> None:
    """Raise InvalidImage if a side has more than `MAX_SIDE` pixels."""
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(
            f"The image is {width} x {height} pixels. The limit for one side is {MAX_SIDE}.",
            extra={"width": width, "height": height, "max_side": MAX_SIDE},
        )
