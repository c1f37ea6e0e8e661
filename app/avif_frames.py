"""How many frames an AVIF file announces, without a decoder.

libavif makes a table of all of them, a hundred bytes each, before it says anything about the file,
and Python's other threads wait meanwhile. A few bytes can announce millions.
"""

from core.bounded_reads import TooManyReads

_CONTAINERS = (b"moov", b"trak", b"mdia", b"minf", b"stbl")
_SAMPLE_SIZES = b"stsz"


def announced_frames(data: bytes | bytearray, most_boxes: int) -> int:
    """The samples of all tracks (`stsz`, ISO/IEC 14496-12, 8.7.3), 0 for a still picture.

    Raises TooManyReads where there are more than `most_boxes` boxes to look at.
    """
    frames, boxes, spans = 0, 0, [(0, len(data))]
    while spans:
        at, end = spans.pop()
        while at + 8 <= end:
            boxes += 1
            if boxes > most_boxes:
                raise TooManyReads
            size, head = _number(data, at, 4), 8
            if size == 1:  # the size proper is a longer number
                size, head = _number(data, at + 8, 8), 16
            elif size == 0:  # to the end
                size = end - at
            if size < head:
                break
            kind = data[at + 4 : at + 8]
            if kind in _CONTAINERS:
                spans.append((at + head, min(end, at + size)))
            elif kind == _SAMPLE_SIZES:
                frames += _number(data, at + head + 8, 4)
            at += size
    return frames


def _number(data: bytes | bytearray, at: int, size: int) -> int:
    return int.from_bytes(data[at : at + size], "big")
