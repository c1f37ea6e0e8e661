"""Files of endless tiny parts are given up, honest large ones are not (P6, P7)."""

import io
import os
from pathlib import Path

import pytest
from PIL import Image

from app.images.header import inspect_header
from core.bundles.bundle import read_bundle
from core.errors import InvalidImage, UndecodableImage
from core.imaging.bounded_reader import BoundedReader, TooManyReads
from tests.abuse import containers as c
from tests.support.bundles import write_colour_bundle
from tests.support.pictures import encode, picture
from worker.inference.preprocessing import Preprocessor

LIMIT = 50_000_000
SIZE = 8_000_000


def test_read_beyond_the_limit_raises() -> None:
    file = BoundedReader(b"abc", 2)
    assert (file.read(1), file.read()) == (b"a", b"bc")
    with pytest.raises(TooManyReads):
        file.read(1)


@pytest.mark.parametrize(
    ("content_type", "data"),
    [
        ("image/jpeg", c.jpeg_with(picture(), c.jpeg_segment(0xE5, b"") * (SIZE // 4))),
        ("image/jpeg", c.jpeg_with(picture(), b"\xff" * SIZE)),
        ("image/png", picture(format_="PNG")[:33] + c.png_chunk(b"teSt", b"") * (SIZE // 12)),
        ("image/gif", c.gif((4, 4), b"\x21\xfe" + b"\1a" * (SIZE // 2))),
    ],
    ids=["jpeg segments", "jpeg fill bytes", "png chunks", "gif blocks"],
)
def test_header_with_millions_of_parts_is_refused(content_type: str, data: bytes) -> None:
    with pytest.raises(InvalidImage) as refused:
        inspect_header(data, content_type, LIMIT)
    assert "too many parts" in refused.value.detail


def test_colour_profile_of_10_mb_passes() -> None:
    profile = os.urandom(10_000_000)
    data = encode(Image.new("RGB", (8, 8)), "JPEG", icc_profile=profile)
    inspect_header(data, "image/jpeg", LIMIT)


@pytest.fixture
def preprocessor(tmp_path: Path) -> Preprocessor:
    return Preprocessor(read_bundle(str(write_colour_bundle(tmp_path / "model"))).manifest, LIMIT)


def test_large_png_in_small_chunks_decodes(preprocessor: Preprocessor) -> None:
    noise = Image.frombytes("RGB", (1800, 1800), os.urandom(1800 * 1800 * 3))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG", compress_level=1)
    chunks = c.png_chunks(buffer.getvalue())
    pixels = b"".join(data for kind, data in chunks if kind == b"IDAT")
    parts = [(b"IDAT", pixels[at : at + 1024]) for at in range(0, len(pixels), 1024)]
    data = c.png_of([chunks[0], *parts, chunks[-1]])
    assert len(data) > 9_700_000
    assert preprocessor.picture(data).size == (8, 8)


def test_decoding_millions_of_chunks_is_refused(preprocessor: Preprocessor) -> None:
    png = picture(format_="PNG")
    data = png[:33] + c.png_chunk(b"tEXt", b"k\0v") * (SIZE // 15) + png[33:]
    with pytest.raises(UndecodableImage):
        preprocessor.picture(data)
