"""Reads the header of a BMP file."""

import io

from PIL.BmpImagePlugin import BmpImageFile

from core.errors import UnsupportedImage
from core.imaging.encoded import EncodedImage, Part, broken_header

# The sizes of the headers that follow the file header, which begin with the width and the height.
HEADER_SIZES = frozenset({12, 16, 40, 52, 56, 64, 108, 124})

_BIT_FIELDS = (3, 6)
_RUN_LENGTHS = {1: 8, 2: 4}  # the bits a pixel of the compressions RLE8 and RLE4
_HEADER_BYTES = 4_096  # the longest header, with its colours
_COMPRESSIONS = {4: "JPEG", 5: "PNG", 11: "CMYK", 12: "CMYK", 13: "CMYK"}


def is_bmp(data: bytes | bytearray) -> bool:
    return data[:2] == b"BM" and int.from_bytes(data[14:18], "little") in HEADER_SIZES


def read_bmp(data: bytes | bytearray) -> EncodedImage:
    """Raises InvalidImage, and UnsupportedImage for varieties that are not decoded."""
    head = bytes(data[:_HEADER_BYTES])
    short = head[14] < 40  # without a compression and a number of colours
    bits = int.from_bytes(head[24:26] if head[14] == 12 else head[28:30], "little")
    compression = 0 if short else int.from_bytes(head[30:34], "little")
    if name := _COMPRESSIONS.get(compression):
        raise UnsupportedImage(f"The BMP contains {name} data, which is not supported.")
    if bits != _RUN_LENGTHS.get(compression, bits):
        raise _unsupported(bits, compression)
    parts: tuple[Part, ...] = ((0, len(data)),)
    if not short and bits <= 8 and int.from_bytes(head[46:50], "little") > 1 << bits:
        most = (1 << bits).to_bytes(4, "little")  # browsers ignore the further colours as well
        head, parts = head[:46] + most + head[50:], ((0, 46), most, (50, len(data)))
    try:
        with BmpImageFile(io.BytesIO(head)) as image:
            size = image.size
    except OSError as error:
        if "Unsupported" in str(error):
            raise _unsupported(bits, compression) from None
        raise broken_header("BMP") from None
    except Exception:  # noqa: BLE001 - a hostile header makes a parser raise anything
        raise broken_header("BMP") from None
    return EncodedImage(size=size, parts=parts, run_lengths=compression in _RUN_LENGTHS)


def _unsupported(bits: int, compression: int) -> UnsupportedImage:
    fields = ", with bit fields of an unusual layout," if compression in _BIT_FIELDS else ""
    return UnsupportedImage(
        f"The BMP has {bits} bits a pixel{fields} and compression {compression}, which is not "
        "supported."
    )
