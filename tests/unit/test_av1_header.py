"""The API accepts the colours of an AVIF if the decoder converts them, wherever they are declared.

The decoder is the one that the worker uses.
"""

import io
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

import pytest
from PIL import Image

from app.images.header import inspect_header
from core.errors import InvalidImage, UnsupportedImage
from core.imaging.av1_header import ColourConfig, read_colour_config
from core.imaging.formats import read_header
from tests.support.avif import LAYOUTS, SIZE, Coded, Points, avif_of, box, nclx
from tests.support.pictures import encode

LIMIT = 10**6
MATRICES = (*range(20), 255)
RANGES = (True, False)
USUAL: Points = (1, 13, 6)

coded = cache(Coded.of)


def decoded(data: bytes) -> bool:
    try:
        with Image.open(io.BytesIO(data), formats=["AVIF"]) as image:
            image.load()
    except (OSError, RuntimeError):
        return False
    return True


def refusal(data: bytes) -> str | None:
    try:
        inspect_header(data, "image/avif", LIMIT)
    except UnsupportedImage as refused:
        return refused.detail
    return None


def compare(files: Iterator[tuple[str, bytes]]) -> None:
    """Compare the API's decision on each file with the decoder's."""
    results = {name: (refusal(data), decoded(data)) for name, data in files}
    assert results
    assert not {name: each for name, each in results.items() if (each[0] is None) != each[1]}
    assert all("matrix coefficients are" in reason for reason, _ in results.values() if reason)


@pytest.mark.parametrize("depth", [8, 10, 12])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_api_and_decoder_agree_on_each_matrix(layout: str, depth: int) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        for matrix in MATRICES:
            for full in RANGES:
                for primaries in (1, 9):
                    points = (primaries, 13, matrix)
                    if points == (1, 13, 0) and depth == 12 and layout in ("4:2:0", "4:2:2"):
                        continue  # it declares 4:4:4, as which the pixels are not coded
                    other = coded(layout).with_colours(USUAL, full_range=full, depth=depth)
                    same = coded(layout).with_colours(points, full_range=full, depth=depth)
                    name = f"{points}, full range: {full}"
                    yield f"header alone, {name}", avif_of(same)
                    yield f"box alone, {name}", avif_of(other, nclx(points, full_range=full))
                    yield f"both differ, {name}", avif_of(same, nclx(USUAL))

    compare(files())


@pytest.mark.parametrize("layout", ["4:2:0", "4:4:4"])
def test_api_and_decoder_agree_on_the_matrix_of_a_grid(layout: str) -> None:
    def files() -> Iterator[tuple[str, bytes]]:
        for matrix in MATRICES:
            points = (9, 13, matrix)
            same = coded(layout).with_colours(points)
            yield f"tiles, {matrix}", avif_of(same, tiles=2)
            yield f"grid, {matrix}", avif_of(coded(layout), nclx(points), tiles=2)
            yield f"both differ, {matrix}", avif_of(same, nclx(USUAL), tiles=2)

    compare(files())


@pytest.mark.parametrize("method", [0, 1])
@pytest.mark.parametrize("extents", [1, 60])
def test_header_is_found_wherever_the_data_of_the_image_lie(method: int, extents: int) -> None:
    data = avif_of(coded("4:2:0").with_colours((9, 16, 14)), method=method, extents=extents)
    assert "ICtCp" in str(refusal(data))
    assert not decoded(data)


def test_header_behind_other_units_is_found() -> None:
    image = coded("4:2:0").with_colours((9, 16, 11))
    metadata = b"\x2a\x81\1\4" + bytes(128)  # a size in two bytes
    assert "2085" in str(refusal(avif_of(Coded(metadata, image.header, image.after, image.layout))))


def test_depth_and_layout_are_those_of_the_header_and_not_of_its_summary() -> None:
    image = coded("4:2:0").with_colours(USUAL)
    data = avif_of(image, nclx((9, 13, 0)))
    at = data.index(b"av1C") + 6
    claimed = data[:at] + b"\0" + data[at + 1 :]  # 4:4:4
    assert "identity" in str(refusal(claimed))
    assert not decoded(claimed)


def test_primaries_of_the_header_give_the_profile_unless_a_box_does() -> None:
    p3 = coded("4:4:4").with_colours((12, 13, 6))
    assert read_header(avif_of(p3), "image/avif").profile
    assert read_header(avif_of(p3, nclx(USUAL)), "image/avif").profile is None
    other = box(b"colr", b"prof" + bytes(128))  # Pillow reads this one
    assert read_header(avif_of(p3, other), "image/avif").profile is None
    assert read_header(avif_of(coded("4:4:4")), "image/avif").profile is None


def test_code_points_of_srgb_without_a_matrix_imply_full_range() -> None:
    unit = coded("4:4:4").with_colours((1, 13, 0)).unit()
    assert read_colour_config(unit) == ColourConfig(1, 13, 0, True, 8, False, False, True)


def _bits(*fields: tuple[int, int]) -> bytes:
    """A sequence header of (width, value) fields as an open bitstream unit."""
    text = "".join(f"{value:0{width}b}" for width, value in fields) + "1"
    text += "0" * (-len(text) % 8)
    content = int(text, 2).to_bytes(len(text) // 8, "big")
    return b"\x0a" + bytes((len(content),)) + content


_SIDES = ((4, 5), (4, 5), (6, 63), (6, 63))
_COLOURS = ((1, 1), (1, 0), (1, 1), (8, 9), (8, 16), (8, 9), (1, 0), (2, 1), (1, 0), (1, 0))
_ONE_POINT = ((1, 0), (5, 0), (12, 0), (5, 8), (1, 0))  # no display delay; level 8 has a tier
_TOOLS = ((1, 0), (3, 7), (4, 15), (1, 1), (2, 3), (1, 1), (1, 1), (3, 6), (3, 7))
_PLAIN_TOOLS = ((1, 0), (3, 7), (4, 15), (1, 0), (1, 0), (1, 0), (3, 7))
_FORCED_TOOLS = ((1, 1), (7, 0), (3, 7), (4, 15), (1, 0), (1, 0), (1, 1), (1, 0), (1, 1), (3, 7))
_TIMING = ((1, 1), (32, 1), (32, 30), (1, 1), (3, 0b010), (1, 1), (5, 9), (32, 1), (10, 99))
_TWO_POINTS = (
    *((1, 1), (5, 1)),
    *((12, 0), (5, 8), (1, 1), (1, 1), (10, 1), (10, 2), (1, 0), (1, 1), (4, 3)),
    *((12, 0), (5, 7), (1, 0), (1, 0)),
)


@pytest.mark.parametrize(
    "fields",
    [
        ((3, 0), (1, 1), (1, 1), (5, 8), *_SIDES, (6, 63), *_COLOURS),
        ((3, 0), (2, 0), (1, 0), *_ONE_POINT, *_SIDES, *_TOOLS, *_COLOURS),
        ((3, 0), (2, 0), (1, 0), *_ONE_POINT, *_SIDES, *_PLAIN_TOOLS, *_COLOURS),
        ((3, 0), (2, 0), (1, 0), *_ONE_POINT, *_SIDES, *_FORCED_TOOLS, *_COLOURS),
        ((3, 0), (2, 0), *_TIMING, *_TWO_POINTS, *_SIDES, *_TOOLS, *_COLOURS),
    ],
    ids=["reduced", "video", "few tools", "forced tools", "timing and two operating points"],
)
def test_each_form_of_the_header_is_read(fields: tuple[tuple[int, int], ...]) -> None:
    unit = _bits(*fields)
    expected = ColourConfig(9, 16, 9, False, 10, False, True, True)
    assert read_colour_config(unit) == expected
    for end in range(len(unit) - 1):
        assert read_colour_config(unit[:end]) is None
    extended = b"\x0e\0" + unit[1:]
    unsized = b"\x08" + unit[2:]
    assert read_colour_config(extended) == read_colour_config(unsized) == expected


def test_headers_of_pillows_video_are_read() -> None:
    frames = [Image.new("RGB", SIZE, (80 * number, 0, 0)) for number in range(2)]
    data = encode(frames[0], "AVIF", save_all=True, append_images=frames[1:])
    at = data.index(b"mdat") + 4
    config = read_colour_config(data[at : at + 4_096])
    assert config == ColourConfig(1, 13, 6, True, 8, False, True, True)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x0a",
        b"\x80\0",
        b"\x0a" + b"\xff" * 9,
        b"\x12\0" * 5_000,
        b"\x0a\x05\xff\xff\xff\xff\xff",
        b"\x0a\x7f" + b"\xff" * 600,
    ],
)
def test_data_without_a_header_is_left_to_the_decoder(data: bytes) -> None:
    assert read_colour_config(data) is None


def test_damaged_files_raise_only_refusals() -> None:
    for data in (avif_of(coded("4:2:0")), avif_of(coded("4:2:0"), tiles=2, method=1)):
        end = data.index(b"mdat") + 20 if b"mdat" in data else len(data)
        for at in range(24, min(end, 600)):
            for value in (0, 0xFF, data[at] ^ 1):
                with suppress(InvalidImage):
                    refusal(data[:at] + bytes((value,)) + data[at + 1 :])
