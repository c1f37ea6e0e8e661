"""Bounds on pictures that no setting changes."""

from core.errors import InvalidImage

# The longest side, JPEG's and GIF's own. Pillow keeps a pointer for each row of each picture that
# it makes on the way: one pixel by millions takes several times the memory of a square.
MAX_SIDE = 65_535  # pixels

# Of a PNG's compressed profile or text, unpacked; Pillow's own, 1 MiB, refuses honest profiles.
MAX_TEXT_CHUNK = 4 * 2**20  # bytes


def check_sides(width: int, height: int) -> None:
    """Raise InvalidImage where a side has more than `MAX_SIDE` pixels."""
    if max(width, height) > MAX_SIDE:
        raise InvalidImage(
            f"The picture is {width} x {height} pixels: no side may have over {MAX_SIDE}.",
            extra={"width": width, "height": height, "max_side": MAX_SIDE},
        )
