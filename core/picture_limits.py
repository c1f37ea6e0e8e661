"""Bounds on pictures that no setting changes."""

# The longest side, JPEG's and GIF's own. Pillow keeps a pointer for each row of each picture that
# it makes on the way: one pixel by millions takes several times the memory of a square.
MAX_SIDE = 65_535  # pixels

# Of a PNG's compressed profile or text, unpacked; Pillow's own, 1 MiB, refuses honest profiles.
MAX_TEXT_CHUNK = 4 * 2**20  # bytes
