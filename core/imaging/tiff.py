"""Reads the first page of a TIFF file (TIFF 6.0, and BigTIFF), and rewrites its directory.

A decoder gets a directory that holds nothing but the tags of the pixels: broken metadata, further
pages and loops of directories do not reach it.
"""

import io
from typing import Literal, NamedTuple

from PIL import Image
from PIL.TiffImagePlugin import TiffImageFile

from core.errors import UnsupportedImage
from core.imaging.encoded import EncodedImage, TooManyParts, broken_header

MAX_TAGS = 4_096
MAX_VALUES = 400_000  # of one tag: an image of 65,535 rows has four strips a row at most

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _ORIENTATION = 256, 257, 258, 259, 274
_PHOTOMETRIC, _SAMPLES, _SAMPLE_FORMAT = 262, 277, 339
_FILL_ORDER, _ROWS_PER_STRIP, _PLANAR, _PREDICTOR, _SUBSAMPLING = 266, 278, 284, 317, 530
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB = 0, 1, 2  # of the photometric interpretation
_SIGNED, _FLOAT = 2, 3  # of the sample format
_SHORT = 3  # the type of a field
_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES = 273, 279, 324, 325
_SUBFILE, _SUB_DIRECTORIES, _PROFILE, _DNG_VERSION = 254, 330, 34_675, 50_706
_PIXEL_TAGS = frozenset(
    {
        *(_WIDTH, _HEIGHT, 258, _COMPRESSION, 262, 266, _STRIP_OFFSETS, 277, 278, _STRIP_SIZES),
        *(284, 292, 293, 297, 301, 317, 318, 319, 320, 322, 323, _TILE_OFFSETS, _TILE_SIZES),
        *(332, 334, 338, 339, 347, *range(512, 522), 529, 530, 531, 532),
    }
)
# Tags with one value. libtiff reads none of a file in which one of them has several.
_SINGLE = frozenset(
    {
        *(_WIDTH, _HEIGHT, _COMPRESSION, _PHOTOMETRIC, _FILL_ORDER, _SAMPLES, _ROWS_PER_STRIP),
        *(_PLANAR, 292, 293, _PREDICTOR, 322, 323),
    }
)
# Values that TIFF 6.0 does not define, or that are larger than any image. The default holds.
_VALID = {_FILL_ORDER: range(1, 3), _PLANAR: range(1, 3), _ROWS_PER_STRIP: range(1, 2**32)}
_FAX = frozenset({2, 3, 4})  # compressions of 1 bit a sample
_PREDICTED = frozenset({5, 8, 32_946, 34_925, 50_000})  # compressions that allow a predictor
_DIFFERENCES, _FLOAT_DIFFERENCES = 2, 3  # the predictors
_LONG_LISTS = frozenset({_STRIP_OFFSETS, _STRIP_SIZES, _TILE_OFFSETS, _TILE_SIZES})
_TYPE_SIZES = {
    **dict.fromkeys((1, 2, 6, 7), 1),
    **dict.fromkeys((3, 8), 2),
    **dict.fromkeys((4, 9, 11, 13), 4),
    **dict.fromkeys((5, 10, 12, 16, 17, 18), 8),
}
_COMPRESSIONS = {
    34712: "JPEG 2000",
    50001: "WebP",
    50002: "JPEG XL",
    52546: "JPEG XL",
    34892: "lossy JPEG",
    34661: "JBIG",
    34713: "Nikon's NEF",
    32767: "Sony's ARW",
    65535: "Pentax's PEF",
}

_Order = Literal["little", "big"]


class _Entry(NamedTuple):
    """A tag's type, the number of its values, and the values as stored."""

    tag: int
    kind: int
    values: int
    value: bytes


class _Layout(NamedTuple):
    """The sizes of a directory's fields, in bytes."""

    order: _Order
    count_size: int
    entry_size: int
    field: int  # of an offset, and of a number of values


def read_tiff(data: bytes | bytearray, *, header_only: bool = False) -> EncodedImage:
    """The first page. With `header_only`, its pixels cannot be read from the parts.

    Raises InvalidImage, UnsupportedImage for varieties that are not decoded, and TooManyParts.
    """
    layout = _layout(data)
    entries = _entries(data, layout)
    numbers = {tag: _number(entry, layout.order) for tag, entry in entries.items()}
    if _DNG_VERSION in entries or bytes(data[8:10]) == b"CR":
        raise UnsupportedImage(_raw("The file is a camera's raw image"))
    if numbers.get(_SUBFILE, 0) & 1 and _SUB_DIRECTORIES in entries:
        raise UnsupportedImage(_raw("The first page of the file is a thumbnail"))
    compression = numbers.get(_COMPRESSION, 1)
    if compression in _COMPRESSIONS:
        raise UnsupportedImage(
            f"The TIFF is compressed with {_COMPRESSIONS[compression]}, which is not supported."
        )
    width, height = numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)
    orientation = numbers.get(_ORIENTATION, 1)
    profile = entries.get(_PROFILE)
    if _PHOTOMETRIC not in entries:  # libtiff assumes the same
        colours = _RGB if numbers.get(_SAMPLES, 1) >= 3 else _BLACK_IS_ZERO
        value = colours.to_bytes(2, layout.order)
        entries[_PHOTOMETRIC] = _Entry(_PHOTOMETRIC, _SHORT, 1, value)
    pixels = [
        _first_value(entry) if tag in _SINGLE else entry
        for tag, entry in sorted(entries.items())
        if tag in _PIXEL_TAGS and numbers.get(tag, 0) in _VALID.get(tag, range(2**64))
    ]
    if header_only:
        pixels = [_first_value(each) if each.tag in _LONG_LISTS else each for each in pixels]
    body_end = 0 if header_only else len(data)
    head, directory = _directory(data, layout, pixels, body_end)
    parts = (head, directory) if header_only else (head, (len(head), len(data)), directory)
    return EncodedImage(
        size=(width, height),
        parts=parts,
        depth=numbers.get(_BITS, 1),
        signed=numbers.get(_SAMPLE_FORMAT) == _SIGNED,
        white_is_zero=numbers.get(_PHOTOMETRIC) == _WHITE_IS_ZERO,
        profile=None if profile is None else profile.value,
        orientation=orientation if 1 <= orientation <= 8 else 1,
    )


def check_tiff(data: bytes | bytearray) -> EncodedImage:
    """The first page, whose variety the decoder knows. Raises as `read_tiff` does."""
    image = read_tiff(data, header_only=True)
    if 0 in image.size:
        return image
    if not _coding_known(data):
        raise UnsupportedImage(_variety(data))
    try:
        with TiffImageFile(io.BytesIO(image.without_metadata(data))):
            return image
    except Image.DecompressionBombError:
        return image
    except (KeyError, SyntaxError, OSError):
        raise UnsupportedImage(_variety(data)) from None
    except Exception:  # noqa: BLE001 - a hostile header makes a parser raise anything
        raise broken_header("TIFF") from None


def _coding_known(data: bytes | bytearray) -> bool:
    """Whether libtiff knows how the samples are coded. Pillow does not look at these tags."""
    numbers = _numbers(data)
    bits, compression = numbers.get(_BITS, 1), numbers.get(_COMPRESSION, 1)
    if compression in _FAX and bits != 1:
        return False
    if compression not in _PREDICTED:
        return True
    predictor = numbers.get(_PREDICTOR, 1)
    if predictor == _FLOAT_DIFFERENCES:
        return numbers.get(_SAMPLE_FORMAT) == _FLOAT
    return predictor == 1 or (predictor == _DIFFERENCES and bits in (8, 16, 32, 64))


def _variety(data: bytes | bytearray) -> str:
    """Names the tags of a TIFF that the decoder refuses."""
    numbers = _numbers(data)
    kind = {_SIGNED: "signed ", _FLOAT: "floating-point "}.get(numbers.get(_SAMPLE_FORMAT, 1), "")
    return (
        f"The TIFF has {numbers.get(_SAMPLES, 1)} {kind}samples of {numbers.get(_BITS, 1)} bits a "
        f"pixel, colour space {numbers.get(_PHOTOMETRIC)}, compression "
        f"{numbers.get(_COMPRESSION, 1)}, and predictor {numbers.get(_PREDICTOR, 1)} (TIFF 6.0). "
        "This combination is not supported."
    )


def _numbers(data: bytes | bytearray) -> dict[int, int]:
    """The first value of each tag in the first directory."""
    layout = _layout(data)
    return {tag: _number(each, layout.order) for tag, each in _entries(data, layout).items()}


def _layout(data: bytes | bytearray) -> _Layout:
    order: _Order = "little" if data[:2] == b"II" else "big"
    if int.from_bytes(data[2:4], order) == 43:
        return _Layout(order, 8, 20, 8)
    return _Layout(order, 2, 12, 4)


def _entries(data: bytes | bytearray, layout: _Layout) -> dict[int, _Entry]:
    """The first directory by tag. Entries whose values lie outside of the file are left out."""
    order, field = layout.order, layout.field
    start = 8 if field == 8 else 4
    at = int.from_bytes(data[start : start + field], order)
    count = int.from_bytes(data[at : at + layout.count_size], order)
    at += layout.count_size
    if count > MAX_TAGS:
        raise TooManyParts
    if not count or at + count * layout.entry_size > len(data):
        raise broken_header("TIFF")
    entries: dict[int, _Entry] = {}
    for begin in range(at, at + count * layout.entry_size, layout.entry_size):
        tag = int.from_bytes(data[begin : begin + 2], order)
        kind = int.from_bytes(data[begin + 2 : begin + 4], order)
        values = int.from_bytes(data[begin + 4 : begin + 4 + field], order)
        size = _TYPE_SIZES.get(kind, 0) * values
        wanted = tag in _PIXEL_TAGS or tag in (
            *(_SUBFILE, _SUB_DIRECTORIES, _ORIENTATION, _PROFILE, _DNG_VERSION),
        )
        if not wanted or not size or tag in entries:
            continue
        if tag != _PROFILE and values > MAX_VALUES:
            raise TooManyParts
        value_at = begin + 4 + field
        if size > field:
            value_at = int.from_bytes(data[value_at : value_at + field], order)
        if value_at + size <= len(data):
            entries[tag] = _Entry(tag, kind, values, bytes(data[value_at : value_at + size]))
    return entries


def _number(entry: _Entry, order: _Order) -> int:
    return int.from_bytes(entry.value[: _TYPE_SIZES[entry.kind]], order)


def _first_value(entry: _Entry) -> _Entry:
    return entry._replace(values=1, value=entry.value[: _TYPE_SIZES[entry.kind]])


def _directory(
    data: bytes | bytearray, layout: _Layout, entries: list[_Entry], body_end: int
) -> tuple[bytes, bytes]:
    """The file's header, and a directory for the end of its `body_end` bytes."""
    order, field = layout.order, layout.field
    start = 8 if field == 8 else 4
    at = max(body_end, start + field)
    head = bytes(data[:start]) + at.to_bytes(field, order)
    values_at = at + layout.count_size + layout.entry_size * len(entries) + field
    table, values = len(entries).to_bytes(layout.count_size, order), b""
    for entry in entries:
        table += entry.tag.to_bytes(2, order) + entry.kind.to_bytes(2, order)
        table += entry.values.to_bytes(field, order)
        if len(entry.value) <= field:
            table += entry.value.ljust(field, b"\0")
        else:
            table += (values_at + len(values)).to_bytes(field, order)
            values += entry.value
    return head, table + bytes(field) + values


def _raw(reason: str) -> str:
    return f"{reason}. Camera raw files are not supported: send a JPEG."
