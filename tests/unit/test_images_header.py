"""Types are read from the bytes; headers are refused before anything is decoded (P7)."""

import io
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from app.images.header import inspect_header
from core.errors import InvalidImage, UnsupportedImage
from core.imaging.formats import ALWAYS_ACCEPTED as ACCEPTED
from core.imaging.formats import accepted_type, sniff
from core.imaging.limits import PixelLimits
from tests.abuse.odd import lossless_jpeg
from tests.support.pictures import encode, picture, png_header

LIMIT = 50_000_000
FORMATS = {
    "JPEG": "image/jpeg",
    "PNG": "image/png",
    "WEBP": "image/webp",
    "GIF": "image/gif",
    "AVIF": "image/avif",
    "BMP": "image/bmp",
    "TIFF": "image/tiff",
}


@pytest.mark.parametrize(("format_", "content_type"), FORMATS.items())
def test_accepted_formats_are_recognised_and_pass(format_: str, content_type: str) -> None:
    data = picture(format_=format_)
    assert accepted_type(data) == content_type
    inspect_header(data, content_type, LIMIT)


def test_every_accepted_type_is_tested() -> None:
    assert set(FORMATS.values()) == set(ACCEPTED)


@pytest.mark.parametrize(
    ("mode", "format_", "options"),
    [
        ("CMYK", "JPEG", {}),
        ("L", "JPEG", {"progressive": True}),
        ("P", "PNG", {}),
        ("I;16", "PNG", {}),
        ("1", "PNG", {}),
        ("LA", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True}),
        ("P", "GIF", {}),
    ],
)
def test_unusual_modes_pass(mode: str, format_: str, options: dict[str, Any]) -> None:
    data = encode(Image.new(mode, (33, 17)), format_, **options)
    inspect_header(data, accepted_type(data), LIMIT)


@pytest.mark.parametrize("format_", ["GIF", "WEBP"])
def test_animations_pass(format_: str) -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "green", "blue")]
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:])
    inspect_header(data, accepted_type(data), LIMIT)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"x",
        b"just text, renamed .jpg",
        b"%PDF-1.7\n...",
        b'<svg xmlns="http://www.w3.org/2000/svg"></svg>',
        b"<?xml version='1.0'?><svg/>",
        b"BM" + bytes(60),
        b"\x00\x00\x00\x18ftypmp42\x00\x00\x00\x00mp42isom" + bytes(60),
        b"RIFF\x00\x00\x00\x00WAVE" + bytes(60),
        b"\xff\xd8",
        b"\x89PNG",
    ],
)
def test_other_formats_are_unsupported(data: bytes) -> None:
    with pytest.raises(UnsupportedImage) as refused:
        accepted_type(data)
    assert "AVIF" in refused.value.detail


@pytest.mark.parametrize("brand", [b"heic", b"heix", b"hevc"])
def test_heic_without_a_decoder_is_named(brand: bytes) -> None:
    with pytest.raises(UnsupportedImage, match="HEIC"):
        accepted_type(b"\0\0\0\x18ftyp" + brand + b"\0\0\0\0mif1" + brand + bytes(60))


@pytest.mark.parametrize(
    ("data", "name"),
    [
        (b"\xff\x0a" + bytes(60), "JPEG XL"),
        (b"\0\0\0\x0cjP  \r\n\x87\n", "JPEG 2000"),
        (b"%PDF-1.7", "PDF"),
        (b"\n<svg/>", "SVG"),
        (b"8BPS\0\1", "PSD"),
        (b"\0\0\0\x18ftypqt  ", "video"),
    ],
)
def test_format_that_is_not_accepted_is_named(data: bytes, name: str) -> None:
    with pytest.raises(UnsupportedImage, match=name):
        accepted_type(data)


def test_jpeg_has_a_separate_limit() -> None:
    """A JPEG is reduced while it is decoded. A lossless one is not."""
    limits = PixelLimits(other=20 * 20, jpeg=40 * 40)
    inspect_header(picture(size=(40, 40)), "image/jpeg", limits)
    for data, format_ in ((picture(size=(41, 40)), "JPEG"), (lossless_jpeg(40, 40), "JPEG")):
        with pytest.raises(InvalidImage, match="limit"):
            inspect_header(data, FORMATS[format_], limits)
    inspect_header(picture(size=(20, 20), format_="PNG"), "image/png", limits)
    with pytest.raises(InvalidImage, match="400 in total"):
        inspect_header(picture(size=(21, 20), format_="PNG"), "image/png", limits)


def test_avif_is_recognised_by_a_compatible_brand() -> None:
    data = b"\x00\x00\x00\x1cftypmif1\x00\x00\x00\x00mif1avifmiaf"
    assert sniff(data) == "image/avif"


@pytest.mark.parametrize("format_", ["PNG", "GIF", "WEBP", "AVIF", "JPEG", "TIFF"])
def test_signature_followed_by_garbage_is_invalid(format_: str) -> None:
    data = picture(format_=format_)
    keep = {"PNG": 8, "GIF": 6, "WEBP": 12, "AVIF": 32, "JPEG": 3, "TIFF": 4}[format_]
    garbage = data[:keep] + b"\x9a garbage \x07" * 20
    with pytest.raises(InvalidImage):
        inspect_header(garbage, FORMATS[format_], LIMIT)


def test_truncated_jpeg_passes_because_its_header_is_complete() -> None:
    data = picture(size=(640, 480))
    inspect_header(data[: len(data) // 2], "image/jpeg", LIMIT)


def test_limit_above_pillows_own_is_applied_without_a_warning() -> None:
    # Pillow warns from 89 megapixels and refuses from 178: neither is our limit.
    inspect_header(png_header(15_000, 15_000), "image/png", 15_000 * 15_000)
    with pytest.raises(InvalidImage):
        inspect_header(png_header(15_000, 15_000), "image/png", 15_000 * 15_000 - 1)


def test_image_without_pixels_is_invalid() -> None:
    with pytest.raises(InvalidImage):
        inspect_header(png_header(0, 5), "image/png", LIMIT)


@given(st.sampled_from(sorted(FORMATS)), st.data())
def test_damaged_file_passes_or_is_refused(format_: str, data: st.DataObject) -> None:
    damaged = bytearray(_SMALL[format_])
    for _ in range(data.draw(st.integers(1, 6))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(1, len(damaged)))
    content_type = sniff(damaged[:end])
    if content_type is None:
        return
    try:
        inspect_header(bytes(damaged[:end]), content_type, LIMIT)
    except (InvalidImage, UnsupportedImage) as refused:
        assert refused.detail  # either outcome is right, any other error is not


_SMALL = {format_: picture(size=(12, 9), format_=format_) for format_ in FORMATS}


def test_generated_avif_has_the_size_asked_for() -> None:
    assert Image.open(io.BytesIO(_SMALL["AVIF"])).size == (12, 9)
