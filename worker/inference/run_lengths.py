"""Decodes the run lengths of BMP files.

Pillow decodes them in Python, at a megabyte a second, and refuses a file that leaves pixels out.
Microsoft, "Bitmap Compression": https://learn.microsoft.com/windows/win32/gdi/bitmap-compression
"""

import struct

import numpy as np
from numpy.typing import NDArray

MAX_ESCAPES = 400_000  # not counting the ends of rows; so many take a few seconds

_INFO = struct.Struct("<IiiHHIIiiII")
_FILE_HEADER = 14
_FOUR_BITS = 2  # the compression RLE4
_END_OF_ROW, _END, _DELTA = 0, 1, 2  # the codes that follow a count of zero


def without_run_lengths(data: bytes) -> bytes:
    """A BMP with the same pixels, uncompressed, with 8 bits a pixel.

    `data` is a BMP with compression 1 (RLE8) or 2 (RLE4). Pixels that it leaves out have the first
    colour. Raises ValueError if the file is not complete, or has more than `MAX_ESCAPES`.
    """
    (offset,) = struct.unpack_from("<I", data, 10)
    size, width, height, _, bits, compression, *_, used, _ = _INFO.unpack_from(data, _FILE_HEADER)
    colours_at = _FILE_HEADER + size
    count = min(used or 1 << bits, 256, (offset - colours_at) // 4)
    colours = data[colours_at : colours_at + 4 * max(0, count)].ljust(1024, b"\0")
    indices = _indices(data[offset:], width, height, four_bits=compression == _FOUR_BITS)
    rows = np.pad(indices, ((0, 0), (0, -width % 4)))
    head = _INFO.pack(40, width, height, 1, 8, 0, rows.size, 0, 0, 256, 0)
    begin = _FILE_HEADER + len(head) + len(colours)
    start = b"BM" + struct.pack("<IHHI", begin + rows.size, 0, 0, begin)
    return b"".join((start, head, colours, rows.tobytes()))


def _indices(body: bytes, width: int, height: int, *, four_bits: bool) -> NDArray[np.uint8]:
    """The index of each pixel's colour, with the lowest row first: `height` x `width`."""
    if width < 1 or height < 1:
        raise ValueError("run lengths need rows from the bottom")
    pixels = np.zeros((height, width), np.uint8)
    # Everything is aligned to two bytes: a count and a value, or zero and an escape.
    pairs = np.frombuffer(body, np.uint8, len(body) // 2 * 2).reshape(-1, 2)
    escapes = np.flatnonzero(pairs[:, 0] == 0)
    x = y = at = 0
    left = MAX_ESCAPES + height
    while at < len(pairs) and y < height:
        left -= 1
        if left < 0:
            raise ValueError("too many escapes")
        following = int(np.searchsorted(escapes, at))
        stop = int(escapes[following]) if following < len(escapes) else len(pairs)
        if stop > at:
            # A run has at least one pixel: what lies beyond the row is not expanded.
            run = pairs[at : min(stop, at + max(0, width - x))]
            x = _put(pixels[y], x, _expanded(run, four_bits=four_bits))
            at = stop
            continue
        code, at = int(pairs[at, 1]), at + 1
        if code == _END:
            return pixels
        if code == _END_OF_ROW:
            x, y = 0, y + 1
        elif code == _DELTA:
            if at < len(pairs):
                x, y = x + int(pairs[at, 0]), y + int(pairs[at, 1])
            at += 1
        else:
            length = (code + 1) // 2 if four_bits else code
            words = (length + 1) // 2
            literal = pairs[at : at + words].reshape(-1)[:length]
            if four_bits:
                literal = np.stack([literal >> 4, literal & 15], axis=-1).reshape(-1)[:code]
            x = _put(pixels[y], x, literal)
            at += words
    if y < height - 1:
        raise ValueError("the rows end early")
    return pixels


def _expanded(run: NDArray[np.uint8], *, four_bits: bool) -> NDArray[np.uint8]:
    """The pixels of encoded pairs. With four bits, a run alternates between two colours."""
    counts = run[:, 0].astype(np.int64)
    values = np.repeat(run[:, 1], counts)
    if not four_bits:
        return values
    starts = np.repeat(np.cumsum(counts) - counts, counts)
    odd = (np.arange(len(values)) - starts) & 1
    return np.where(odd, values & 15, values >> 4).astype(np.uint8)


def _put(row: NDArray[np.uint8], x: int, values: NDArray[np.uint8]) -> int:
    """Write `values` into a row from `x` on, as far as it reaches. Returns where they end."""
    end = min(x + len(values), len(row))
    if end > x:
        row[x:end] = values[: end - x]
    return x + len(values)
