"""Thumbnails: their size, their content, and what they leave out."""

import io
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms

from tests.support.pictures import encode
from tests.unit.test_preprocessing import BLUE, RED, manifest, scene
from worker.inference.preprocessing import Preprocessor


def made(data: bytes, **changes: Any) -> Image.Image:
    _, thumbnail = Preprocessor(manifest(**changes), 10**7).prepare(data, thumbnail=True)
    image = Image.open(io.BytesIO(thumbnail))
    image.load()
    assert (image.format, image.mode) == ("WEBP", "RGB")
    return image


@pytest.mark.parametrize(
    ("size", "expected"),
    [
        ((1024, 512), (256, 128)),
        ((300, 1200), (64, 256)),
        ((100, 40), (100, 40)),
        ((256, 256), (256, 256)),
        ((3000, 2), (256, 1)),
    ],
)
def test_thumbnail_is_small_and_keeps_the_proportions(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    whole = {"resize": {"method": "crop", "short_side": 272}, "height": 240, "width": 240}
    assert made(encode(scene(size), "PNG"), **whole).size == expected


def test_thumbnail_shows_the_whole_upright_image() -> None:
    """It includes the margins that the network does not see."""
    image = Image.new("RGB", (600, 300), BLUE)
    image.paste(RED, (0, 0, 100, 300))
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # turn by 90 degrees clockwise
    small = made(encode(image, "JPEG", exif=exif))
    assert small.width * 2 == small.height
    pixels = np.asarray(small).astype(int)
    assert np.abs(pixels[5, 10] - RED).max() < 25
    assert np.abs(pixels[-5, 10] - BLUE).max() < 25


def test_thumbnail_has_no_metadata() -> None:
    """The position where a photo was taken must not leave the service with its thumbnail."""
    exif = Image.Exif()
    exif[ExifTags.Base.ImageDescription] = "SECRET PLACE"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    data = encode(
        scene(), "JPEG", exif=exif, icc_profile=profile, comment=b"SECRET PLACE", dpi=(300, 300)
    )
    assert b"SECRET PLACE" in data
    _, thumbnail = Preprocessor(manifest(), 10**7).prepare(data, thumbnail=True)
    assert b"SECRET" not in thumbnail
    small = Image.open(io.BytesIO(thumbnail))
    assert not small.getexif() and "icc_profile" not in small.info and "xmp" not in small.info


@pytest.mark.parametrize("format_", ["JPEG", "PNG"])
def test_result_does_not_depend_on_thumbnails(format_: str) -> None:
    data = encode(scene((900, 700)), format_)
    plain, nothing = Preprocessor(manifest(), 10**7).prepare(data)
    tensor, thumbnail = Preprocessor(manifest(), 10**7).prepare(data, thumbnail=True)
    assert np.array_equal(plain, tensor)
    assert nothing == b"" and thumbnail


def test_transparent_pixels_are_white() -> None:
    assert made(encode(Image.new("RGBA", (64, 64), (255, 0, 0, 0)), "PNG")).getpixel((5, 5)) == (
        255,
        255,
        255,
    )
