"""Decoding and resizing: every kind of picture, against a plain reference, and under limits."""

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from app.images.header import inspect_header
from core.bundles.bundle import BundleManifest
from core.errors import BundleError, InvalidImage, UndecodableImage
from core.imaging.avif_header import read_avif_header
from tests.abuse.containers import avif_declared_smaller
from tests.support.pictures import encode, picture, png
from worker.inference.memory_limit import memory_limit
from worker.inference.preprocessing import Preprocessor

linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")

RED, BLUE, GREEN, WHITE = (220, 20, 20), (20, 20, 220), (20, 200, 20), (255, 255, 255)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def manifest(
    height: int = 32,
    width: int = 32,
    layout: str = "NCHW",
    resize: dict[str, Any] | None = None,
    **changes: object,
) -> BundleManifest:
    return BundleManifest.model_validate(
        {
            "name": "test",
            "input": {"name": "pixels", "layout": layout, "height": height, "width": width},
            "resize": resize or {"method": "stretch"},
            "mean": MEAN,
            "std": STD,
            "outputs": {"scores": "logits", "kind": "logits"},
            "opset": 18,
            **changes,
        }
    )


def preprocessor(max_pixels: int = 1_000_000, **changes: Any) -> Preprocessor:
    return Preprocessor(manifest(**changes), max_pixels)


def seen(data: bytes, **changes: Any) -> NDArray[np.int16]:
    """The pixels that the network gets to see, height x width x 3."""
    return np.asarray(preprocessor(**changes).picture(data)).astype(np.int16)


def scene(size: tuple[int, int] = (320, 240)) -> Image.Image:
    """Smooth and asymmetric in every direction, so that a wrong turn or crop shows."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    bands = np.stack([255 * x, 255 * y, 127 + 127 * np.sin(9 * x + 5 * y)], axis=-1)
    return Image.fromarray(bands.astype(np.uint8))


def halves(size: tuple[int, int] = (120, 80)) -> Image.Image:
    """Red on the left, blue on the right, with a green top left corner."""
    image = Image.new("RGB", size, RED)
    draw = ImageDraw.Draw(image)
    draw.rectangle((size[0] // 2, 0, *size), fill=BLUE)
    draw.rectangle((0, 0, size[0] // 4, size[1] // 4), fill=GREEN)
    return image


def near(pixels: NDArray[np.int16], colour: tuple[int, int, int], within: int = 12) -> bool:
    return bool((abs(pixels - np.array(colour)) <= within).all())


# --- Against the reference -----------------------------------------------------------------------


def reference(image: Image.Image, spec: BundleManifest) -> NDArray[np.float64]:
    """What the manifest says, word for word, slowly, for an upright RGB picture."""
    height, width = spec.input.height, spec.input.width
    resample = Image.Resampling[spec.resize.resample.upper()]
    if spec.resize.method == "stretch":
        image = image.resize((width, height), resample)
    else:
        short = spec.resize.short_side
        assert short is not None
        scale = short / min(image.size)
        whole = tuple(short if s == min(image.size) else int(s * scale) for s in image.size)
        left, top = (whole[0] - width) // 2, (whole[1] - height) // 2
        image = image.resize((whole[0], whole[1]), resample)
        image = image.crop((left, top, left + width, top + height))
    values: NDArray[np.float64] = np.asarray(image).astype(np.float64)
    values = (values * spec.rescale - np.array(spec.mean)) / np.array(spec.std)
    return (values.transpose(2, 0, 1) if spec.input.layout == "NCHW" else values)[np.newaxis]


RULES = [
    {"method": "stretch", "resample": "bilinear"},
    {"method": "stretch", "resample": "bicubic"},
    {"method": "stretch", "resample": "lanczos"},
    {"method": "stretch", "resample": "box"},
    {"method": "crop", "short_side": 32, "resample": "bilinear"},
    {"method": "crop", "short_side": 40, "resample": "bicubic"},
]


@pytest.mark.parametrize("size", [(320, 240), (240, 321), (32, 32), (17, 11), (37, 900)])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
def test_tensor_matches_a_plain_implementation_of_the_manifest(
    size: tuple[int, int], rule: dict[str, Any], layout: str
) -> None:
    spec = manifest(layout=layout, resize=rule, rescale=1 / 127.5)
    image = scene(size)
    tensor = Preprocessor(spec, 10**6).tensor(encode(image, "PNG"))
    assert tensor.dtype == np.float32
    assert tensor.flags.c_contiguous
    # Two of 255 steps, in units of the normalised tensor: reducing in two stages rounds twice.
    step = spec.rescale / min(spec.std)
    np.testing.assert_allclose(tensor, reference(image, spec), atol=2.01 * step)


def test_normalisation_is_exact_to_float32() -> None:
    spec = manifest(height=24, width=32)
    image = scene((32, 24))
    tensor = Preprocessor(spec, 10**6).tensor(encode(image, "PNG"))
    np.testing.assert_allclose(tensor, reference(image, spec), atol=1e-6)


@pytest.mark.parametrize("rule", [RULES[0], RULES[4]], ids=["stretch", "crop"])
def test_scaled_jpeg_decoding_stays_close_to_a_plain_resize(rule: dict[str, Any]) -> None:
    spec = manifest(resize=rule)
    data = encode(scene((1201, 803)), "JPEG", quality=92)
    full = Image.open(io.BytesIO(data)).convert("RGB")
    difference = abs(Preprocessor(spec, 10**6).tensor(data) - reference(full, spec)) * min(STD)
    assert difference.mean() * 255 < 1
    assert difference.max() * 255 < 6


def test_height_and_width_are_not_confused() -> None:
    assert preprocessor(height=20, width=40).tensor(picture()).shape == (1, 3, 20, 40)
    assert preprocessor(height=20, width=40, layout="NHWC").tensor(picture()).shape == (
        1,
        20,
        40,
        3,
    )


@pytest.mark.parametrize(
    "changes",
    [
        {"resize": {"method": "crop"}},
        {"resize": {"method": "crop", "short_side": 31}},
        {"std": (1.0, 0.0, 1.0)},
    ],
)
def test_contradictory_manifest_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError):
        preprocessor(**changes)


# --- Every kind of picture -----------------------------------------------------------------------


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
def test_every_accepted_format_decodes(format_: str) -> None:
    pixels = seen(encode(halves(), format_))
    assert near(pixels[20:, 2:12], RED, 30)
    assert near(pixels[:, 20:30], BLUE, 30)


@pytest.mark.parametrize("format_", ["PPM", "ICO", "TGA", "DDS"])
def test_other_formats_are_not_opened(format_: str) -> None:
    with pytest.raises(UndecodableImage):
        seen(encode(Image.new("RGB", (16, 16)), format_))


# What a camera held in each of the eight ways stores for one and the same view.
STORED = {
    1: None,
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "AVIF"])
@pytest.mark.parametrize(
    "rule", [{"method": "stretch"}, {"method": "crop", "short_side": 32}], ids=["stretch", "crop"]
)
def test_exif_orientation_is_undone(orientation: int, format_: str, rule: dict[str, Any]) -> None:
    image = scene((400, 280))
    way = STORED[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(image.transpose(way) if way is not None else image, format_, exif=exif.tobytes())
    pixels = seen(data, resize=rule, height=24, width=32)
    upright = seen(encode(image, "PNG"), resize=rule, height=24, width=32)
    assert abs(pixels - upright).mean() < 4


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_invalid_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    assert near(seen(encode(halves(), "JPEG", exif=exif.tobytes()))[:, 20:30], BLUE, 30)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")  # Pillow's remark, and no more than that
def test_broken_exif_is_ignored() -> None:
    data = encode(halves(), "JPEG", exif=b"Exif\0\0" + b"II*\0" + b"\xff" * 50)
    assert near(seen(data)[:, 20:30], BLUE, 30)


@pytest.mark.parametrize(
    ("ink", "colour"),
    [((0, 255, 255, 0), (255, 0, 0)), ((0, 0, 0, 0), WHITE), ((0, 0, 0, 255), (0, 0, 0))],
)
def test_cmyk_of_adobe_is_converted(
    ink: tuple[int, int, int, int], colour: tuple[int, int, int]
) -> None:
    data = encode(Image.new("CMYK", (64, 64), ink), "JPEG", quality=95)
    assert b"Adobe" in data  # stored inverted, and marked so
    assert near(seen(data), colour)


def test_palette_is_converted() -> None:
    assert near(seen(encode(halves().quantize(8), "PNG"))[:, 20:30], BLUE, 20)


def test_bilevel_is_converted() -> None:
    pixels = seen(encode(Image.new("1", (40, 40), 1), "PNG"))
    assert near(pixels, WHITE)


# A GIF has one transparent colour, a PNG an opacity for each.
@pytest.mark.parametrize(
    ("format_", "transparency"), [("GIF", 0), ("PNG", 0), ("PNG", b"\x00\xff")]
)
def test_transparent_palette_becomes_white(format_: str, transparency: int | bytes) -> None:
    image = Image.new("P", (40, 40), 0)
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.paste(1, (20, 0, 40, 40))
    pixels = seen(encode(image, format_, transparency=transparency))
    assert near(pixels[:, :14], WHITE)
    assert near(pixels[:, 18:], (0, 0, 200))


@pytest.mark.parametrize("format_", ["PNG", "WEBP", "AVIF"])
def test_alpha_is_composited_on_white(format_: str) -> None:
    image = Image.new("RGBA", (64, 64), (200, 0, 0, 255))
    image.paste((0, 0, 0, 0), (32, 0, 64, 64))  # invisible black
    pixels = seen(encode(image, format_))
    assert near(pixels[:, :12], (200, 0, 0), 16)
    assert near(pixels[:, 20:], WHITE, 16)


def test_half_transparent_is_half_white() -> None:
    data = encode(Image.new("RGBA", (64, 64), (200, 0, 0, 128)), "PNG")
    assert near(seen(data), (227, 127, 127), 2)


def test_colour_key_is_transparent() -> None:
    image = halves()
    assert near(seen(encode(image, "PNG", transparency=BLUE))[:, 20:], WHITE, 40)


def test_grey_with_alpha_is_composited() -> None:
    image = Image.new("LA", (32, 32), (60, 255))
    image.paste((60, 0), (16, 0, 32, 32))
    pixels = seen(encode(image, "PNG"))
    assert near(pixels[:, :14], (60, 60, 60), 2)
    assert near(pixels[:, 18:], WHITE, 2)


def test_greyscale_is_converted() -> None:
    for format_ in ("PNG", "JPEG", "WEBP"):
        assert near(seen(encode(Image.new("L", (40, 40), 77), format_)), (77, 77, 77), 3)


def test_16_bit_greyscale_is_scaled_and_not_clipped() -> None:
    ramp = np.tile(np.linspace(0, 65535, 64).astype(np.uint16), (64, 1))
    image = Image.fromarray(ramp)
    data = encode(image, "PNG")
    assert Image.open(io.BytesIO(data)).mode.startswith("I")
    pixels = seen(data)[0, :, 0]
    np.testing.assert_allclose(pixels, np.linspace(2, 253, 32), atol=3)


def test_16_bit_colour_is_converted() -> None:
    rows = b"".join(b"\0" + struct.pack(">HHH", 0xC800, 0x1000, 0x2000) * 8 for _ in range(8))
    assert near(seen(_png(8, 8, 16, 2, zlib.compress(rows))), (0xC8, 0x10, 0x20), 1)


@pytest.mark.parametrize("format_", ["GIF", "PNG", "WEBP", "AVIF"])
def test_first_frame_of_an_animation_is_used(format_: str) -> None:
    frames = [Image.new("RGB", (40, 40), colour) for colour in (RED, BLUE, GREEN)]
    data = encode(frames[0], format_, save_all=True, append_images=frames[1:], duration=100)
    assert near(seen(data), RED, 16)


def test_embedded_second_image_is_ignored() -> None:
    data = encode(halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (9, 9))])
    assert near(seen(data)[:, 20:30], BLUE, 30)


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 2)])
@pytest.mark.parametrize("rule", [RULES[0], RULES[4]], ids=["stretch", "crop"])
def test_extreme_aspect_ratios_decode(size: tuple[int, int], rule: dict[str, Any]) -> None:
    for format_ in ("PNG", "JPEG"):
        data = encode(Image.new("RGB", size, RED), format_)
        assert near(seen(data, resize=rule), RED, 16)


# --- Limits and damage ---------------------------------------------------------------------------


def _png(width: int, height: int, bits: int, colour: int, compressed: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return b"".join(
        (
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", header),
            chunk(b"IDAT", compressed),
            chunk(b"IEND", b""),
        )
    )


def test_the_pixel_limit_is_checked_before_decoding() -> None:
    """What follows this header would not decode, so it is the header that is refused."""
    bomb = _png(20_000, 20_000, 8, 2, b"never looked at")
    with pytest.raises(InvalidImage) as refused:
        seen(bomb, max_pixels=50_000_000)
    assert not isinstance(refused.value, UndecodableImage)
    assert "20000 x 20000" in refused.value.detail


def test_image_at_the_pixel_limit_is_allowed() -> None:
    data = encode(Image.new("L", (100, 100), 90), "PNG")
    assert near(seen(data, max_pixels=10_000), (90, 90, 90))
    with pytest.raises(InvalidImage):
        seen(data, max_pixels=9_999)
    with pytest.raises(UndecodableImage):  # not InvalidImage: it got as far as the decoder
        seen(_png(20_000, 20_000, 8, 0, b"\0"), max_pixels=400_000_000)


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.7, 0.95])
def test_truncated_file_is_undecodable(format_: str, kept: float) -> None:
    data = picture(3, size=(300, 200), format_=format_)
    with pytest.raises(UndecodableImage):
        seen(data[: int(len(data) * kept)])


@pytest.mark.parametrize("format_", ["JPEG", "PNG", "WEBP", "GIF", "AVIF", "BMP", "TIFF"])
def test_damaged_file_decodes_or_is_undecodable(format_: str) -> None:
    data = picture(5, size=(60, 40), format_=format_)
    random = np.random.default_rng(11)
    for _ in range(150):
        damaged = bytearray(data)
        for place in random.integers(0, len(data), 1 + random.integers(6)):
            damaged[place] = random.integers(256)
        try:
            assert seen(bytes(damaged)).shape == (32, 32, 3)
        except InvalidImage as error:
            assert error.code in ("undecodable_image", "invalid_image")


@pytest.mark.parametrize("data", [b"", b"\0", b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBP", b"GIF89a"])
def test_header_without_pixels_is_undecodable(data: bytes) -> None:
    with pytest.raises(UndecodableImage):
        seen(data)


def test_svg_is_undecodable() -> None:
    with pytest.raises(UndecodableImage):
        seen(b'<svg xmlns="http://www.w3.org/2000/svg"/>')


# --- Damaged pixels ------------------------------------------------------------------------------


ROWS = b"".join(b"\0" + bytes(RED) * 64 for _ in range(64))
DAMAGED = {
    "no zlib": b"nonsense" * 50,
    "no such filter": zlib.compress(ROWS.replace(b"\0", b"\x63", 1)),
    "zlib that breaks off in the middle": zlib.compress(ROWS, 0)[:6000] + b"\xff" * 6000,
}


@pytest.mark.parametrize("packed", DAMAGED.values(), ids=DAMAGED.keys())
def test_png_with_damaged_pixels_is_undecodable(packed: bytes) -> None:
    """Looking for its orientation decodes it, and must not forgive what is found."""
    assert near(seen(png((64, 64), zlib.compress(ROWS))), RED)
    with pytest.raises(UndecodableImage):
        seen(png((64, 64), packed))


def test_png_with_a_large_profile_decodes() -> None:
    profile = zlib.compress(bytes(3 * 2**20))
    data = png((64, 64), zlib.compress(ROWS), (b"iCCP", b"display\0\0" + profile))
    inspect_header(data, "image/png", 10**6)
    assert near(seen(data), RED)


@pytest.mark.parametrize("size", [(1, 65_536), (65_536, 1)])
def test_side_above_the_limit_is_refused(size: tuple[int, int]) -> None:
    packed = zlib.compress((b"\0" + bytes(RED) * size[0]) * size[1])
    with pytest.raises(InvalidImage, match="65535"):
        seen(png(size, packed))
    with pytest.raises(InvalidImage, match="65535"):
        inspect_header(png(size, packed), "image/png", 10**6)


@linux
def test_avif_coded_larger_than_declared_exceeds_the_memory_limit() -> None:
    """libavif would decode all 64 megapixels before it scales them down."""
    data = avif_declared_smaller((8_000, 8_000), subsampling="4:4:4")
    assert read_avif_header(data).sizes == ((64, 64),)
    with pytest.raises(InvalidImage):
        Preprocessor(manifest(), 50_000_000, memory_limit).picture(data)


@linux
@pytest.mark.parametrize(
    ("format_", "mode", "options"),
    [
        ("JPEG", "CMYK", {"progressive": True, "subsampling": 0}),
        ("JPEG", "RGB", {"progressive": True}),
        ("BMP", "RGB", {}),
        ("TIFF", "CMYK", {"compression": "tiff_lzw"}),
        ("TIFF", "RGBA", {"compression": "tiff_adobe_deflate"}),
        ("PNG", "RGBA", {}),
        ("PNG", "I;16", {}),
        ("PNG", "LA", {}),
        ("GIF", "P", {}),
        ("WEBP", "RGBA", {"lossless": True, "method": 0}),
        ("AVIF", "RGBA", {"speed": 10, "subsampling": "4:4:4"}),
    ],
)
def test_valid_image_decodes_within_the_memory_limit(
    format_: str, mode: str, options: dict[str, Any]
) -> None:
    data = encode(Image.new(mode, (4000, 3000)), format_, **options)
    limited = Preprocessor(manifest(), 12_000_000, memory_limit)
    assert limited.picture(data).size == (32, 32)


@pytest.mark.parametrize("step", ["open", "resize"])
def test_too_little_memory_is_a_fault_of_the_image(
    step: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object, **named: object) -> None:
        raise MemoryError

    monkeypatch.setattr(*{"open": (Image, "open"), "resize": (Image.Image, "resize")}[step], full)
    with pytest.raises(InvalidImage, match="more memory"):
        seen(picture())


@pytest.mark.parametrize(
    "changes",
    [{"mean": (float("nan"), 0, 0)}, {"rescale": float("nan")}, {"std": (1e-320, 1, 1)}],
    ids=["mean", "rescale", "std"],
)
def test_manifest_numbers_that_are_not_finite_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="finite"):
        preprocessor(**changes)
