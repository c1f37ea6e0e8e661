"""The dimensions that an AVIF declares are read without a native parser, in bounded time (P7)."""

import io
import struct
from itertools import pairwise
from typing import Any

import pytest
from PIL import Image

from app.images.header import inspect_header
from core.errors import InvalidImage, UnsupportedImage
from core.imaging.avif_header import is_avif, is_avif_sequence, read_avif_header
from core.imaging.avif_items import MAX_BOXES
from core.imaging.formats import accepted_type
from tests.abuse.containers import avif_of_empty_extents, boxes

LIMIT = 10**6


def still(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    colour = 90 if mode == "L" else (200, 30, 60, 128)[: len(mode)]
    Image.new(mode, size, colour).save(file, "AVIF", **options)
    return file.getvalue()


def sequence() -> bytes:
    file = io.BytesIO()
    first, *rest = (Image.new("RGB", (16, 16), (80 * n, 0, 0)) for n in range(3))
    first.save(file, "AVIF", save_all=True, append_images=rest)
    return file.getvalue()


@pytest.mark.parametrize("size", [(1, 1), (12, 9), (640, 481)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
        ("RGBA", {}),
        ("L", {"range": "limited"}),
    ],
)
def test_declared_size_is_read(size: tuple[int, int], mode: str, options: dict[str, Any]) -> None:
    data = still(size, mode, **options)
    header = read_avif_header(data)
    assert set(header.sizes) == {size}
    assert not header.tracks
    inspect_header(data, accepted_type(data), size[0] * size[1])
    if size != (1, 1):
        with pytest.raises(InvalidImage, match=f"{size[0]} x {size[1]} pixels"):
            inspect_header(data, "image/avif", size[0] * size[1] - 1)


@pytest.mark.parametrize("size", [(0, 9), (9, 0), (1001, 1000), (70_000, 1), (2**32 - 1, 1)])
def test_impossible_declared_size_is_refused(size: tuple[int, int]) -> None:
    data = still((12, 9)).replace(struct.pack(">II", 12, 9), struct.pack(">II", *size))
    with pytest.raises(InvalidImage):
        inspect_header(data, "image/avif", LIMIT)


def test_sequence_is_unsupported_by_its_brand() -> None:
    data = sequence()
    assert is_avif_sequence(data)
    with pytest.raises(UnsupportedImage, match="AVIF sequence"):
        accepted_type(data)


def test_sequence_with_brands_of_a_still_image_is_unsupported_by_its_tracks() -> None:
    data = sequence().replace(b"avis", b"mif1")
    assert accepted_type(data) == "image/avif"
    with pytest.raises(UnsupportedImage, match="AVIF sequence"):
        inspect_header(data, "image/avif", LIMIT)


def test_still_image_is_not_a_sequence() -> None:
    assert is_avif(still((8, 8)))
    assert not is_avif_sequence(still((8, 8)))
    assert not is_avif(b"\x89PNG\r\n\x1a\navifavif")


def test_boxes_that_libavif_spends_gigabytes_on_are_not_parsed() -> None:
    assert read_avif_header(avif_of_empty_extents()).sizes == ((64, 48),)


@pytest.mark.parametrize("where", range(8))
def test_damaged_header_raises_only_refusals(where: int) -> None:
    data = still((64, 48), "RGBA")
    step = len(data) // 8
    for at in range(where * step, (where + 1) * step):
        flipped = bytearray(data)
        flipped[at] ^= 0xFF
        for damaged in (bytes(flipped), data[:at]):
            try:
                inspect_header(damaged, accepted_type(damaged), LIMIT)
            except (InvalidImage, UnsupportedImage) as refused:
                assert refused.detail


@pytest.mark.parametrize(
    "data", [b"", b"\0\0\0\x08meta" * 200, b"\0\0\0\0free", b"\0\0\0\1free", b"\0\0\0\7free"]
)
def test_boxes_without_an_image_end(data: bytes) -> None:
    assert read_avif_header(data).sizes == ()
    with pytest.raises(InvalidImage, match="broken"):
        inspect_header(data, "image/avif", LIMIT)


def test_too_many_boxes_are_refused() -> None:
    data = still((64, 48))
    (first, _), (second, _) = next(pairwise(boxes(data)))
    for count, refused in ((MAX_BOXES // 2, False), (MAX_BOXES, True)):
        padded = data[first:second] + b"\0\0\0\x08free" * count + data[second:]
        if refused:
            with pytest.raises(InvalidImage, match="too many parts"):
                inspect_header(padded, "image/avif", LIMIT)
        else:
            inspect_header(padded, "image/avif", LIMIT)
