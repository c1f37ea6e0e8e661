"""Odd pictures that people really have, drawn by code: by format and feature.

Cameras, editors and converters write files that are valid in an unusual way, or damaged beside
their pixels. Each one here comes with what a viewer shows of it, or with the status of its refusal.
"""

import io
import struct
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial

import numpy as np
from PIL import Image, ImageCms, TiffImagePlugin

from tests.abuse import containers as c
from tests.support import avif
from tests.support.pictures import encode

SIZE = (96, 72)


@dataclass(frozen=True)
class Odd:
    """`make` draws the file. `shown` is what a viewer shows, on white; None if it is refused.

    `status` is the response to an upload: 415 or 422 if it is refused.
    """

    name: str
    make: Callable[[], bytes]
    shown: Callable[[], Image.Image] | None
    status: int = 202

    def __str__(self) -> str:
        return self.name


def odd_pictures() -> Iterator[Odd]:
    """Every odd picture, in a fixed order."""
    for family in (jpegs, pngs, gifs, webps, avifs, bmps, tiffs, others):
        yield from family()


@cache
def scene(size: tuple[int, int] = SIZE) -> Image.Image:
    """Smooth colours that differ in every direction."""
    x, y = np.meshgrid(np.linspace(0, 1, size[0]), np.linspace(0, 1, size[1]))
    bands = np.stack([230 * x, 230 * y, 120 + 100 * np.sin(6 * x + 3 * y)], axis=-1)
    return Image.fromarray(bands.astype(np.uint8))


def _plain(format_: str, **options: object) -> bytes:
    return encode(scene(), format_, **options)


def _grey(format_: str, **options: object) -> bytes:
    return encode(scene().convert("L"), format_, **options)


def _with_hole(mode: str = "RGBA") -> Image.Image:
    """The scene with a transparent middle."""
    image = scene().convert("RGBA")
    image.paste((0, 0, 0, 0), (24, 18, 72, 54))
    return image.convert(mode)


def _hole_shown() -> Image.Image:
    image = scene().copy()
    image.paste("white", (24, 18, 72, 54))
    return image


def _on_white(box: tuple[int, int], size: tuple[int, int]) -> Image.Image:
    page = Image.new("RGB", size, "white")
    page.paste(scene(), box)
    return page


# --- Colour profiles (ICC.1) ----------------------------------------------------------------------

_PRIMARIES = {  # adapted to D50, in XYZ
    "srgb": ((0.4361, 0.2225, 0.0139), (0.3851, 0.7169, 0.0971), (0.1431, 0.0606, 0.7142)),
    "display p3": ((0.5151, 0.2412, -0.0011), (0.2920, 0.6922, 0.0419), (0.1571, 0.0666, 0.7841)),
    "adobe rgb": ((0.6097, 0.3111, 0.0195), (0.2053, 0.6257, 0.0609), (0.1492, 0.0632, 0.7446)),
}


def profile(primaries: str = "srgb", *, gamma: float = 2.2, swapped: bool = False) -> bytes:
    """A profile of three primaries and an exponent. `swapped` exchanges red and blue."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(value * 65536) for value in values))

    red, green, blue = _PRIMARIES[primaries]
    if swapped:
        red, blue = blue, red
    curve = b"para" + bytes(8) + fixed(gamma)
    text = b"mluc" + bytes(4) + struct.pack(">II", 1, 12) + b"enUS" + struct.pack(">II", 8, 28)
    text += "test".encode("utf-16-be")
    tags = {
        **dict.fromkeys((b"desc", b"cprt"), text),
        **dict.fromkeys((b"rTRC", b"gTRC", b"bTRC"), curve),
        b"wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1, 0.8249),
        b"rXYZ": b"XYZ " + bytes(4) + fixed(*red),
        b"gXYZ": b"XYZ " + bytes(4) + fixed(*green),
        b"bXYZ": b"XYZ " + bytes(4) + fixed(*blue),
    }
    table, data, at = struct.pack(">I", len(tags)), b"", 132 + 12 * len(tags)
    for name, content in tags.items():
        padded = content + bytes(-len(content) % 4)
        table += name + struct.pack(">II", at + len(data), len(content))
        data += padded
    size = 128 + len(table) + len(data)
    head = struct.pack(">I4sI4s4s4s", size, bytes(4), 0x04000000, b"mntr", b"RGB ", b"XYZ ")
    head += struct.pack(">6H", 2026, 1, 1, 0, 0, 0) + b"acsp" + bytes(28)
    return (head + fixed(0.9642, 1, 0.8249)).ljust(128, b"\0") + table + data


def _converted(icc: bytes, image: Image.Image | None = None) -> Image.Image:
    source = ImageCms.ImageCmsProfile(io.BytesIO(icc))
    shown = ImageCms.profileToProfile(
        image or scene(), source, ImageCms.createProfile("sRGB"), outputMode="RGB"
    )
    assert shown is not None
    return shown


# --- JPEG -----------------------------------------------------------------------------------------


def lossless_jpeg(width: int, height: int) -> bytes:
    """Process 14 of ITU-T T.81: predictor 1, 8 bits, grey, one Huffman code for each category."""
    pixels = np.asarray(scene((width, height)).convert("L")).astype(np.int16)
    before = np.empty_like(pixels)
    before[:, 1:], before[1:, 0], before[0, 0] = pixels[:, :-1], pixels[:-1, 0], 128
    codes = []
    for difference in (pixels - before).ravel().tolist():
        category = abs(difference).bit_length()
        codes.append(f"{category:05b}")
        if category:
            value = difference if difference > 0 else difference + (1 << category) - 1
            codes.append(f"{value:0{category}b}")
    text = "".join(codes)
    text += "1" * (-len(text) % 8)
    coded = int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")
    return b"".join(
        (
            b"\xff\xd8",
            c.jpeg_segment(0xC3, struct.pack(">BHHB", 8, height, width, 1) + b"\1\x11\0"),
            c.jpeg_segment(0xC4, bytes((0, 0, 0, 0, 0, 17)) + bytes(11) + bytes(range(17))),
            c.jpeg_segment(0xDA, b"\1\1\0\1\0\0"),
            coded,
            b"\xff\xd9",
        )
    )


def _jpeg_frame(*changes: tuple[int, int]) -> bytes:
    """A JPEG with other bytes at these offsets from its frame's marker."""
    data = bytearray(_plain("JPEG", quality=90))
    start = c.jpeg_frame(bytes(data)) - 5
    for offset, value in changes:
        data[start + offset] = value
    return bytes(data)


def jpegs() -> Iterator[Odd]:
    good = partial(_plain, "JPEG", quality=92)

    def shown(data: Callable[[], bytes] = good) -> Callable[[], Image.Image]:
        return lambda: Image.open(io.BytesIO(data())).convert("RGB")

    def with_jfif_length(length: int) -> bytes:
        return c.patched(good(), 4, struct.pack(">H", length))

    def with_segment(marker: int, content: bytes) -> Callable[[], bytes]:
        return lambda: c.jpeg_with(good(), c.jpeg_segment(marker, content))

    def first_segment(content: bytes) -> bytes:
        return good()[:2] + c.jpeg_segment(0xE0, content) + good()[20:]

    for width, height in ((40, 30), (900, 700)):
        yield Odd(
            f"jpeg lossless {width} x {height}",
            partial(lossless_jpeg, width, height),
            lambda size=(width, height): scene(size).convert("L").convert("RGB"),  # type: ignore[misc]
        )
    for missing in (1, 2):
        yield Odd(f"jpeg without its last {missing} bytes", lambda n=missing: good()[:-n], shown())  # type: ignore[misc]
    for width, height in ((333, 217), (999, 777)):
        for options in ({}, {"progressive": True}, {"restart_marker_blocks": 3}):
            draw = partial(encode, scene((width, height)), "JPEG", quality=92, **options)
            yield Odd(
                f"jpeg of {width} x {height} without its end, {options}",
                lambda draw=draw: draw()[:-2],  # type: ignore[misc]
                shown(draw),
            )
    progressive = partial(_plain, "JPEG", quality=92, progressive=True)
    yield Odd("jpeg progressive without its end", lambda: progressive()[:-2], shown(progressive))
    grey = partial(_grey, "JPEG", quality=92)
    yield Odd("jpeg grey without its end", lambda: grey()[:-2], shown(grey))
    for name, content in (("a short JFIF segment", b"JFIF\0"), ("an empty APP0", b"")):
        yield Odd(f"jpeg with {name}", partial(first_segment, content), shown())
    for name, marker, content in (
        ("a short Adobe segment", 0xEE, b"Adobe\0"),
        ("a long comment", 0xFE, b"c" * 65_000),
        ("a broken EXIF segment", 0xE1, b"Exif\0\0II*\0\xff\xff\xff\xff"),
        ("an EXIF segment of one byte", 0xE1, b"E"),
        ("a broken profile", 0xE2, b"ICC_PROFILE\0\1\1" + b"x" * 300),
        ("a part of a profile", 0xE2, b"ICC_PROFILE\0\1\2" + profile(swapped=True)[:200]),
        ("an empty FlashPix segment", 0xE2, b""),
        ("a broken multi-picture segment", 0xE2, b"MPF\0MM\0*\0\0\0\x08\xff\xff"),
        ("a broken Photoshop segment", 0xED, b"Photoshop 3.0\x008BIM\xff\xff\xff"),
    ):
        yield Odd(f"jpeg with {name}", with_segment(marker, content), shown())
    for length in (0, 1):
        yield Odd(
            f"jpeg whose JFIF segment declares {length} bytes",
            partial(with_jfif_length, length),
            shown(),
        )
    yield Odd("jpeg with fill bytes", lambda: c.jpeg_with(good(), b"\xff" * 30), shown())
    yield Odd(
        "jpeg with bytes between segments", lambda: good()[:20] + b"abc" + good()[20:], shown()
    )
    yield Odd("jpeg with bytes behind its end", lambda: good() + bytes(5000), shown())
    for kind in ("display p3", "adobe rgb"):
        icc = profile(kind)
        yield Odd(
            f"jpeg in {kind}",
            partial(_plain, "JPEG", quality=95, subsampling=0, icc_profile=icc),
            partial(_converted, icc),
        )
    swapped = profile(swapped=True)
    yield Odd(
        "jpeg with red and blue exchanged by its profile",
        partial(_plain, "JPEG", quality=95, subsampling=0, icc_profile=swapped),
        partial(_converted, swapped),
    )
    linear = profile(gamma=1.0)
    yield Odd(
        "jpeg with linear samples",
        partial(_plain, "JPEG", quality=98, subsampling=0, icc_profile=linear),
        partial(_converted, linear),
    )
    yield Odd(
        "jpeg grey with a profile of colours",
        lambda: encode(scene().convert("L"), "JPEG", quality=95, icc_profile=swapped),
        lambda: scene().convert("L").convert("RGB"),
    )
    yield Odd(
        "jpeg in CMYK",
        lambda: encode(scene().convert("CMYK"), "JPEG", quality=95, subsampling=0),
        lambda: scene().convert("CMYK").convert("RGB"),
    )
    for name, changes in (
        ("12 bits", ((4, 12),)),
        ("JPEG-LS", ((1, 0xF7),)),
        ("hierarchical frames", ((1, 0xC5),)),
        ("a height behind the pixels", ((5, 0), (6, 0))),
    ):
        yield Odd(f"jpeg with {name}", partial(_jpeg_frame, *changes), None, 415)


# --- PNG ------------------------------------------------------------------------------------------


def _mask(size: int = 96) -> "np.ndarray[tuple[int, ...], np.dtype[np.bool_]]":
    y, x = np.mgrid[:size, :size]
    return np.asarray((x - 48) ** 2 + (y - 48) ** 2 < 900)


def keyed_png(depth: int, colour: int, *, near: bool = False) -> bytes:
    """A checkerboard with a disc in the transparent colour.

    `near` gives the disc a colour that differs from the key in its highest bits alone.
    """
    top = (1 << depth) - 1
    key = top // 3 if depth > 1 else 1
    y, x = np.mgrid[:96, :96]
    light = 0 if depth == 1 else top
    board = np.where((x // 12 + y // 12) % 2, light, 0)
    inside = key ^ (0x8000 if depth == 16 else 0) if near else key
    samples = np.where(_mask(), inside, board)
    if colour == 2:
        samples = np.repeat(samples[..., np.newaxis], 3, axis=2)
    if depth == 16:
        rows = samples.astype(">u2").reshape(96, -1).view(np.uint8)
    elif depth == 8:
        rows = samples.astype(np.uint8).reshape(96, -1)
    else:
        bits = np.unpackbits(samples.astype(np.uint8)[..., np.newaxis], axis=2)[..., -depth:]
        rows = np.packbits(bits.reshape(96, -1), axis=1)
    packed = zlib.compress(b"".join(b"\0" + row.tobytes() for row in rows))
    head = struct.pack(">IIBBBBB", 96, 96, depth, colour, 0, 0, 0)
    transparent = struct.pack(">H", key) * (3 if colour == 2 else 1)
    return c.png_of([(b"IHDR", head), (b"tRNS", transparent), (b"IDAT", packed), (b"IEND", b"")])


def _keyed_shown(depth: int, *, near: bool = False) -> Image.Image:
    y, x = np.mgrid[:96, :96]
    board = np.where((x // 12 + y // 12) % 2, 0 if depth == 1 else 255, 0)
    disc = (((1 << 16) // 3 ^ 0x8000) >> 8) if near else 255
    shades = np.where(_mask(), disc, board).astype(np.uint8)
    return Image.fromarray(shades).convert("RGB")


def pngs() -> Iterator[Odd]:
    good = partial(_plain, "PNG")

    def with_chunk(*chunks: tuple[bytes, bytes], last: bool = False) -> Callable[[], bytes]:
        return lambda: c.png_with(good(), *chunks, last=last)

    def raw(chunk: bytes) -> Callable[[], bytes]:
        return lambda: good()[:33] + chunk + good()[33:]

    for colour, depths in ((0, (1, 2, 4, 8, 16)), (2, (8, 16))):
        for depth in depths:
            yield Odd(
                f"png with a transparent colour, type {colour}, {depth} bits",
                partial(keyed_png, depth, colour),
                partial(_keyed_shown, depth),
            )
        yield Odd(
            f"png with a colour whose low byte is transparent, type {colour}",
            partial(keyed_png, 16, colour, near=True),
            partial(_keyed_shown, 16, near=True),
        )
    text = c.png_chunk(b"tEXt", b"key\0abc")
    broken_sum = struct.pack(">I", 4) + b"tEXt" + b"a\0bc" + b"nope"
    for name, chunk in (
        ("a wrong checksum of a text", broken_sum),
        ("a wrong checksum of a profile", struct.pack(">I", 4) + b"iCCP" + b"a\0\0c" + b"nope"),
        ("a wrong checksum of a transparent colour", struct.pack(">I", 6) + b"tRNS" + bytes(10)),
        ("a text that claims to be longer", struct.pack(">I", 90_000) + b"tEXt" + b"a\0bcdefg"),
        *(
            (f"a text that claims {length} of 7 bytes", struct.pack(">I", length) + text[4:])
            for length in (0, 3, 8, 12, 100, 2**31 - 1, 2**32 - 1)
        ),
        ("bytes between chunks", b"junk!"),
    ):
        yield Odd(f"png with {name}", raw(chunk), scene)
    for name, chunks in (
        ("a profile of unknown compression", [(b"iCCP", b"ICC\0\1" + zlib.compress(b"x" * 200))]),
        ("a profile that does not unpack", [(b"iCCP", b"ICC\0\0nonsense")]),
        ("a profile that is none", [(b"iCCP", b"ICC\0\0" + zlib.compress(b"x" * 200))]),
        ("an empty profile", [(b"iCCP", b"")]),
        ("a short gAMA", [(b"gAMA", b"\0")]),
        ("a short pHYs", [(b"pHYs", b"\0\0")]),
        ("a short cHRM", [(b"cHRM", b"\0\0\0")]),
        ("a short sRGB", [(b"sRGB", b"")]),
        ("a short tIME", [(b"tIME", b"\7")]),
        ("a broken EXIF", [(b"eXIf", b"II*\0\xff\xff\xff\xff")]),
        ("a text without an end", [(b"tEXt", b"x" * 200)]),
        ("a long text", [(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(9 * 2**20)))]),
        ("a broken international text", [(b"iTXt", b"XML:com.adobe.xmp\0\1\7")]),
        ("a broken animation", [(b"acTL", b"\0"), (b"fcTL", b"\0\0"), (b"fdAT", b"\0")]),
        ("an animation without frames", [(b"acTL", struct.pack(">II", 9, 0))]),
        ("2,000 texts", [(b"tEXt", b"k\0v")] * 2000),
    ):
        yield Odd(f"png with {name}", with_chunk(*chunks), scene)
    yield Odd("png with a broken last text", with_chunk((b"tEXt", b""), last=True), scene)
    yield Odd("png without its end", lambda: good()[:-12], scene)
    yield Odd("png with bytes behind its end", lambda: good() + b"junk" * 99, scene)
    yield from _odd_pixel_chunks(good)
    yield Odd(
        "png with a transparent palette",
        lambda: encode(_with_hole().quantize(64), "PNG"),
        lambda: _flattened(_with_hole().quantize(64).convert("RGBA")),
    )
    swapped = profile(swapped=True)
    yield Odd(
        "png with alpha and a profile",
        lambda: encode(_with_hole(), "PNG", icc_profile=swapped),
        lambda: _flattened(_converted_alpha(swapped)),
    )
    for name, points, icc in (
        ("display p3", b"\x0c\x04\0\1", profile("display p3")),
        ("linear samples", b"\1\x08\0\1", profile(gamma=1.0)),
    ):
        yield Odd(
            f"png in {name} (cICP), and with a profile of other colours",
            with_chunk((b"cICP", points), (b"iCCP", b"ICC\0\0" + zlib.compress(swapped))),
            partial(_converted, icc),
        )
    for name, transfer in (("PQ", 16), ("HLG", 18)):
        yield Odd(
            f"png in {name} (cICP)",
            partial(_in_high_range, transfer, b"\1" + bytes((transfer, 0, 1))),
            _bright_scene,
        )
    for name, points in (("unknown", b"\x63\x63\0\1"), ("short", b"\x0c")):
        yield Odd(f"png with {name} code points", with_chunk((b"cICP", points)), scene)
    yield Odd(
        "png with linear samples (gAMA)",
        with_chunk((b"gAMA", struct.pack(">I", 100_000))),
        partial(_converted, profile(gamma=1.0)),
    )


def _bright_scene() -> Image.Image:
    """The scene with a white part."""
    image = scene().copy()
    image.paste("white", (12, 12, 21, 21))
    return image


def _in_high_range(transfer: int, points: bytes) -> bytes:
    """The bright scene with these code points, whose white part is five times as bright."""
    values = np.asarray(_bright_scene()) / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    light = 203 * linear  # candela a square metre
    light[12:21, 12:21] *= 5
    if transfer == 16:  # SMPTE ST 2084
        power = (np.clip(light, 0, None) / 10_000) ** (1305 / 8192)
        signal = ((107 / 128 + 2413 / 128 * power) / (1 + 2392 / 128 * power)) ** (2523 / 32)
    else:  # BT.2100, table 5
        shade = np.clip(light / 1_000, 0, 1) ** (1 / 1.2)
        logarithm = 0.17883277 * np.log(np.maximum(12 * shade - 0.28466892, 1e-9)) + 0.55991073
        signal = np.where(shade <= 1 / 12, np.sqrt(3 * shade), logarithm)
    image = Image.fromarray(np.rint(signal * 255).clip(0, 255).astype(np.uint8))
    return c.png_with(encode(image, "PNG"), (b"cICP", points))


def _odd_pixel_chunks(good: Callable[[], bytes]) -> Iterator[Odd]:
    def pixels(
        change: Callable[[bytes], bytes], make: Callable[[], bytes] = good
    ) -> Callable[[], bytes]:
        """`make`, with other content in its chunk of pixels."""
        return lambda: c.png_changed(make(), b"IDAT", change)

    def paletted() -> bytes:
        return encode(scene().quantize(200), "PNG")

    def shown() -> Image.Image:
        return scene().quantize(200).convert("RGB")

    yield Odd("png with a wrong checksum of its pixels", pixels(lambda z: z[:-4] + b"nope"), scene)
    yield Odd("png without a checksum of its pixels", pixels(lambda z: z[:-4]), scene)
    yield Odd("png with bytes behind its pixels", pixels(lambda z: z + bytes(50)), scene)
    for name, change in (
        ("a palette of 300 colours", lambda colours: colours + bytes(900 - len(colours))),
        ("a palette that ends within a colour", lambda colours: colours + b"\0"),
    ):
        make = partial(c.png_changed, paletted(), b"PLTE", change)
        yield Odd(f"png with {name}", make, shown)
    at = paletted().index(b"PLTE")
    size = int.from_bytes(paletted()[at - 4 : at], "big")
    wrong_sum = c.patched(paletted(), at + 4 + size, b"nope")
    yield Odd("png with a wrong checksum of its palette", lambda: wrong_sum, shown)
    without = paletted()[: at - 4] + paletted()[at + 8 + size :]
    yield Odd("png without its palette", lambda: without, None, 422)


def _converted_alpha(icc: bytes) -> Image.Image:
    image = _with_hole()
    shown = _converted(icc, image.convert("RGB"))
    shown.putalpha(image.getchannel("A"))
    return shown


def _flattened(image: Image.Image) -> Image.Image:
    page = Image.new("RGB", image.size, "white")
    page.paste(image, mask=image.getchannel("A"))
    return page


# --- GIF and WebP ---------------------------------------------------------------------------------


def _gif_parts() -> tuple[bytes, bytes]:
    """The colour table and the frame (with its local data) of the scene."""
    data = encode(scene().quantize(256), "GIF")
    table = 3 << (data[10] & 7) + 1
    at = 13 + table
    while data[at] == 0x21:
        at += 2
        while data[at]:
            at += 1 + data[at]
        at += 1
    return data[13 : 13 + table], data[at + 9 : -1]


def _gif(
    canvas: tuple[int, int],
    corner: tuple[int, int] = (0, 0),
    blocks: bytes = b"",
    end: bytes = b";",
) -> bytes:
    table, frame = _gif_parts()
    head = b"GIF89a" + struct.pack("<HHBBB", *canvas, 0xF7, 0, 0) + table.ljust(768, b"\0")
    return head + blocks + b"," + struct.pack("<HHHH", *corner, *SIZE) + frame + end


def _gif_shown() -> Image.Image:
    return scene().quantize(256).convert("RGB")


def _gif_on(canvas: tuple[int, int], corner: tuple[int, int]) -> Image.Image:
    page = Image.new("RGB", canvas, "white")
    page.paste(_gif_shown(), corner)
    return page


def gifs() -> Iterator[Odd]:
    for name, canvas, corner in (
        ("a frame smaller than its canvas", (144, 120), (24, 30)),
        ("a frame in a corner", (120, 100), (0, 0)),
    ):
        yield Odd(
            f"gif with {name}", partial(_gif, canvas, corner), partial(_gif_on, canvas, corner)
        )
    for name, canvas in (("a canvas of no pixels", (0, 0)), ("a canvas below its frame", (9, 9))):
        yield Odd(f"gif with {name}", partial(_gif, canvas), _gif_shown)
    packet = b'<?xpacket begin="" id="x"?>' + b"<rdf:li>0123456789</rdf:li>" * 90_000
    xmp = b"\x21\xff\x0bXMP DataXMP" + packet + b"\1" + bytes(range(255, -1, -1)) + b"\0"
    for name, blocks in (
        ("megabytes of XMP", xmp),
        ("a long comment", b"\x21\xfe" + c.gif_blocks(b"c" * 2_000_000)),
        ("an unknown extension", b"\x21\x42" + c.gif_blocks(b"x" * 40)),
        ("a broken loop", b"\x21\xff\x0bNETSCAPE2.0\1\1\0"),
        ("zeros between its blocks", bytes(7)),
    ):
        yield Odd(f"gif with {name}", partial(_gif, SIZE, blocks=blocks), _gif_shown)
    yield Odd("gif without its end", partial(_gif, SIZE, end=b""), _gif_shown)
    yield Odd("gif with a broken second frame", partial(_gif, SIZE, end=b",\xff\xff"), _gif_shown)


def webps() -> Iterator[Odd]:
    lossless = partial(_plain, "WEBP", lossless=True)

    def with_chunks(*extra: bytes, flags: int = 0x2C) -> bytes:
        ((kind, data),) = [each for each in c.riff_chunks(lossless()) if each[0] == b"VP8L"]
        return c.webp_of(c.webp_canvas(*SIZE, flags), c.riff_chunk(kind, data), *extra)

    for name, extra in (
        ("broken EXIF", c.riff_chunk(b"EXIF", b"Exif\0\0II*\0\xff\xff\xff\xff")),
        ("EXIF that claims to be longer", b"EXIF" + struct.pack("<I", 5000) + b"II*\0"),
        ("an unknown part", c.riff_chunk(b"HUH?", b"x" * 33)),
        ("half a part", b"XMP "),
    ):
        yield Odd(f"webp with {name}", partial(with_chunks, extra), scene)
    yield Odd(
        "webp with a wrong total size",
        lambda: c.patched(lossless(), 4, struct.pack("<I", 10)),
        scene,
    )
    yield Odd(
        "webp in display p3",
        partial(_plain, "WEBP", lossless=True, icc_profile=profile("display p3")),
        partial(_converted, profile("display p3")),
    )
    yield Odd("webp with alpha", lambda: encode(_with_hole(), "WEBP", lossless=True), _hole_shown)

    def animation() -> bytes:
        frame = c.riff_chunk(*next(p for p in c.riff_chunks(lossless()) if p[0] == b"VP8L"))
        place = struct.pack("<I", 12)[:3] + struct.pack("<I", 15)[:3]
        sides = struct.pack("<I", SIZE[0] - 1)[:3] + struct.pack("<I", SIZE[1] - 1)[:3]
        control = c.riff_chunk(b"ANIM", bytes(6))
        first = c.riff_chunk(b"ANMF", place + sides + bytes(4) + frame)
        return c.webp_of(c.webp_canvas(144, 120, 0x02), control, first, b"ANMF\xff\xff\xff\xff")

    yield Odd(
        "webp with a frame smaller than its canvas, and a broken second one",
        animation,
        partial(_on_white, (24, 30), (144, 120)),
    )


# --- AVIF -----------------------------------------------------------------------------------------


def avif_with_matrix(number: int) -> bytes:
    """An AVIF that declares these matrix coefficients (ITU-T H.273)."""
    data = _plain("AVIF", quality=90)
    at = data.index(b"colrnclx") + 12
    return c.patched(data, at, struct.pack(">H", number))


def avif_in_display_p3() -> bytes:
    """An AVIF whose code points declare the primaries of P3 and the exponent 2.2."""
    data = _plain("AVIF", quality=95, subsampling="4:4:4")
    at = data.index(b"colrnclx") + 8
    return c.patched(data, at, struct.pack(">HH", 12, 4))


def _avif_in_av1(layout: str, points: avif.Points, *, tiles: int = 0, **options: bool) -> bytes:
    """An AVIF without `nclx`, whose sequence header declares these code points."""
    return avif.avif_of(avif.Coded.of(layout).with_colours(points, **options), tiles=tiles)


def _avif_with_lost_xmp() -> bytes:
    packet = b"<x:xmpmeta>" + bytes(500)
    data = _plain("AVIF", quality=95, subsampling="4:4:4", xmp=packet)
    place = struct.pack(">II", data.index(packet), len(packet))
    assert place in data
    return data.replace(place, struct.pack(">II", 2**30, len(packet)))


def avif_alpha_without_size() -> bytes:
    """The alpha image has no `ispe` of its own, as encoders wrote it until 2021."""
    data = bytearray(encode(_with_hole(), "AVIF", quality=95, subsampling="4:4:4"))
    begin = data.index(b"ipco") - 4
    end, at, kinds = begin + int.from_bytes(data[begin : begin + 4], "big"), begin + 8, []
    while at < end:
        kinds.append(bytes(data[at + 4 : at + 8]))
        at += int.from_bytes(data[at : at + 4], "big")
    at = data.index(b"ipma") + 8
    count, at = int.from_bytes(data[at : at + 4], "big"), at + 4
    for _ in range(count):
        item, length = int.from_bytes(data[at : at + 2], "big"), data[at + 2]
        for each in range(at + 3, at + 3 + length):
            if item == 2 and kinds[(data[each] & 127) - 1] == b"ispe":
                data[each] = data[each + 1]
        at += 3 + length
    return bytes(data)


def avifs() -> Iterator[Odd]:
    yield Odd("avif whose alpha has no size", avif_alpha_without_size, _hole_shown)
    for number in (0, 3, 10, 11, 13, 14, 99):
        yield Odd(f"avif with matrix {number}", partial(avif_with_matrix, number), None, 415)
    for number in (0, 3, 8, 10, 11, 13, 14, 16, 17, 99):
        points = (9, 13, number)
        yield Odd(
            f"avif with matrix {number} in its sequence header alone",
            partial(_avif_in_av1, "4:2:0", points, full_range=False),
            None,
            415,
        )
    yield Odd(
        "avif grid whose tiles alone declare a matrix",
        partial(_avif_in_av1, "4:2:0", (9, 13, 14), tiles=2),
        None,
        415,
    )
    yield Odd(
        "avif in display p3 by its sequence header",
        partial(_avif_in_av1, "4:4:4", (12, 4, 6)),
        lambda: _converted(
            profile("display p3"), Image.linear_gradient("L").resize(avif.SIZE).convert("RGB")
        ),
    )
    still = partial(_plain, "AVIF", quality=95, subsampling="4:4:4")

    def changed(before: bytes, after: bytes, **options: object) -> Callable[[], bytes]:
        data = still(**options)
        assert before in data
        return lambda: data.replace(before, after, 1)

    exif = b"Exif\0\0" + c.exif([(0x0131, 2, 4, b"abc\0")])
    for name, make in (
        ("another major brand", changed(b"ftypavif", b"ftypMA1B")),
        ("a wrong depth in its summary", changed(b"pixi\0\0\0\0\3\x08", b"pixi\0\0\0\0\3\x0a")),
        ("broken EXIF", changed(b"II*\0", b"JJJJ", exif=exif)),
        ("XMP outside of the file", _avif_with_lost_xmp),
    ):
        yield Odd(f"avif with {name}", make, scene)
    yield Odd(
        "avif in display p3 (nclx)", avif_in_display_p3, partial(_converted, profile("display p3"))
    )
    yield Odd(
        "avif in display p3",
        partial(_plain, "AVIF", quality=95, subsampling="4:4:4", icc_profile=profile("display p3")),
        partial(_converted, profile("display p3")),
    )


# --- BMP and TIFF ---------------------------------------------------------------------------------


def bmps() -> Iterator[Odd]:
    for mode in ("1", "L", "P", "RGB"):
        image = scene().quantize(200) if mode == "P" else scene().convert(mode)
        yield Odd(
            f"bmp in mode {mode}",
            partial(encode, image, "BMP"),
            lambda each=image: each.convert("RGB"),  # type: ignore[misc]
        )

    def fields(alpha: int) -> bytes:
        width, height = SIZE
        rows = np.asarray(scene())[::-1, :, ::-1]
        pixels = np.dstack([rows, np.full((height, width), alpha, np.uint8)]).tobytes()
        head = struct.pack("<IiiHHIIiiII", 124, width, height, 1, 32, 3, len(pixels), 0, 0, 0, 0)
        masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
        head = (head + masks).ljust(124, b"\0")
        return b"BM" + struct.pack("<IHHI", 138 + len(pixels), 0, 0, 138) + head + pixels

    for alpha in (0, 255):
        yield Odd(f"bmp of 32 bits with alpha {alpha}", partial(fields, alpha), scene)
    yield from _run_lengths()
    yield Odd(
        "bmp with more colours than its pixels can have",
        _bmp_with_300_colours,
        lambda: scene().quantize(200).convert("RGB"),
    )
    yield Odd(
        "bmp of runs with 24 bits",
        lambda: c.patched(encode(scene(), "BMP"), 30, b"\1\0\0\0"),
        None,
        415,
    )
    yield Odd(
        "bmp that contains a JPEG",
        lambda: c.patched(encode(scene(), "BMP"), 30, b"\4\0\0\0"),
        None,
        415,
    )
    yield Odd("bmp cut in its header", lambda: encode(scene(), "BMP")[:30], None, 422)


def _bmp_with_300_colours() -> bytes:
    data = encode(scene().quantize(200), "BMP")
    start = int.from_bytes(data[10:14], "little")
    more = bytes(4 * 300 - (start - 54))
    data = c.patched(data, 46, struct.pack("<I", 300))
    return c.patched(data, 10, struct.pack("<I", start + len(more)))[:start] + more + data[start:]


def run_length_bmp(size: int = 0) -> bytes:
    """RLE8, pixel by pixel: larger than without compression. It has at least `size` bytes."""
    image = scene((400, 300)).convert("L")
    rows = (
        b"".join(b"\1" + bytes((value,)) for value in row.tolist()) + b"\0\0"
        for row in np.asarray(image)[::-1]
    )
    return _coded_bmp(image, 1, (b"".join(rows) + b"\0\1").ljust(size, b"\0"))


def _coded_bmp(image: Image.Image, compression: int, body: bytes) -> bytes:
    """A BMP with these run lengths. `image` has shades, or a palette of 16 colours."""
    width, height = image.size
    bits = 8 if image.mode == "L" else 4
    palette = image.getpalette() or [level for shade in range(256) for level in (shade,) * 3]
    table = b"".join(
        bytes((*palette[3 * each : 3 * each + 3][::-1], 0)) for each in range(1 << bits)
    )
    head = struct.pack(
        "<IiiHHIIiiII", 40, width, height, 1, bits, compression, len(body), 0, 0, 0, 0
    )
    start = 14 + len(head) + len(table)
    return b"BM" + struct.pack("<IHHI", start + len(body), 0, 0, start) + head + table + body


def _run_lengths() -> Iterator[Odd]:
    shades, sixteen = scene().convert("L"), scene().quantize(16)
    lines = np.asarray(shades)[::-1]
    literal = b"".join(b"\0" + bytes((SIZE[0],)) + row.tobytes() + b"\0\0" for row in lines)
    nibbles = [row.reshape(-1, 2) for row in np.asarray(sixteen)[::-1]]
    packed = [(pairs[:, 0] << 4 | pairs[:, 1]).astype(np.uint8) for pairs in nibbles]
    four = b"".join(
        b"".join(b"\2" + bytes((value,)) for value in row.tolist()) + b"\0\0" for row in packed
    )
    four_literal = b"".join(b"\0" + bytes((SIZE[0],)) + row.tobytes() + b"\0\0" for row in packed)
    # 10 pixels of shade 200 from (20, 30), seen from the lower left; the rest is left out.
    sparse = Image.new("RGB", SIZE, "black")
    sparse.paste((200,) * 3, (20, SIZE[1] - 31, 30, SIZE[1] - 30))
    skipping = b"\0\2\x14\x1e\x0a\xc8\0\1"

    def grey() -> Image.Image:
        return shades.convert("RGB")

    for name, image, compression, body, shown in (
        ("literal runs", shades, 1, literal + b"\0\1", grey),
        ("runs without their end", shades, 1, literal[:-2], grey),
        ("runs that exceed their rows", shades, 1, literal.replace(b"\0\0", b"\x50\x07\0\0"), grey),
        ("runs of 4 bits", sixteen, 2, four + b"\0\1", lambda: sixteen.convert("RGB")),
        ("literal runs of 4 bits", sixteen, 2, four_literal, lambda: sixteen.convert("RGB")),
        ("runs that skip pixels", shades, 1, skipping, lambda: sparse),
    ):
        yield Odd(f"bmp of {name}", partial(_coded_bmp, image, compression, body), shown)
    for size in (0, 5 * 2**20):
        yield Odd(
            f"bmp of runs, at least {size} bytes",
            partial(run_length_bmp, size),
            lambda: scene((400, 300)).convert("L").convert("RGB"),
        )


def tiff(**options: object) -> bytes:
    image = options.pop("image", None) or scene()
    assert isinstance(image, Image.Image)
    return encode(image, "TIFF", **options)


def tiffs() -> Iterator[Odd]:
    large = (300, 20_000)
    yield Odd(
        "tiff with a strip for each of 20,000 rows",
        lambda: tiff(image=scene(large), strip_size=900),
        partial(scene, large),
    )
    for compression in ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"):
        yield Odd(f"tiff, {compression}", partial(tiff, compression=compression), scene)
    yield Odd("tiff, jpeg", partial(tiff, compression="jpeg", quality=95), scene)
    yield Odd("tiff, large offsets (BigTIFF)", partial(tiff, big_tiff=True), scene)
    fax = scene().convert("1")
    yield Odd(
        "tiff of a fax",
        partial(tiff, image=fax, compression="group4"),
        lambda: fax.convert("RGB"),
    )
    for mode in ("L", "CMYK", "P"):
        image = scene().quantize(200) if mode == "P" else scene().convert(mode)
        yield Odd(
            f"tiff in mode {mode}",
            partial(tiff, image=image),
            lambda each=image: each.convert("RGB"),  # type: ignore[misc]
        )
    yield Odd("tiff with alpha", partial(tiff, image=_with_hole()), _hole_shown)
    shades = np.asarray(scene().convert("L"))
    for name, samples in (
        ("16 bits", Image.fromarray(shades.astype(np.uint16) * 257)),
        ("floating-point samples", Image.fromarray((shades / 255).astype(np.float32))),
    ):
        yield Odd(
            f"tiff with {name}",
            partial(tiff, image=samples),
            lambda: scene().convert("L").convert("RGB"),
        )

    yield from _odd_samples()

    def turned() -> bytes:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[274] = 6
        return tiff(image=scene().transpose(Image.Transpose.ROTATE_90), tiffinfo=tags)

    yield Odd("tiff that is turned", turned, scene)

    def pages(following: int | None = None) -> bytes:
        data = tiff(save_all=True, append_images=[Image.new("RGB", SIZE, "red")])
        if following is None:
            return data
        at = int.from_bytes(data[4:8], "little")
        count = int.from_bytes(data[at : at + 2], "little")
        return c.patched(data, at + 2 + 12 * count, struct.pack("<I", following))

    yield Odd("tiff of two pages", pages, scene)
    yield Odd("tiff whose second page is outside of it", partial(pages, 2**31), scene)
    yield Odd("tiff whose second page is its first", lambda: pages(_directory(pages())), scene)

    def tagged(tag: int, value: object) -> bytes:
        tags = TiffImagePlugin.ImageFileDirectory_v2()
        tags[tag] = value
        return tiff(tiffinfo=tags)

    yield Odd("tiff with a broken EXIF directory", lambda: _with_exif_at(2**31), scene)
    yield Odd("tiff of a camera's raw image", partial(tagged, 50706, b"\1\4\0\0"), None, 415)
    yield Odd(
        "tiff in JPEG 2000",
        lambda: tiff().replace(
            struct.pack("<HHI", 259, 3, 1) + b"\1", struct.pack("<HHIH", 259, 3, 1, 34712)[:-1]
        ),
        None,
        415,
    )


def _tiff_of(strips: list[bytes], tags: "Mapping[int, _TagValue]") -> bytes:
    """A grey TIFF, unless `tags` say otherwise. The value -1 leaves a tag out."""
    width, height = SIZE
    values: dict[int, tuple[int, ...]] = {
        256: (width,), 257: (height,), 258: (8,), 259: (1,), 262: (1,), 277: (1,), 278: (height,),
    }  # fmt: skip
    for tag, value in tags.items():
        values[tag] = value if isinstance(value, tuple) else (value,)
    offsets = tuple(8 + sum(map(len, strips[:number])) for number in range(len(strips)))
    values |= {273: offsets, 279: tuple(map(len, strips))}
    values = {tag: value for tag, value in sorted(values.items()) if value != (-1,)}
    body = b"".join(strips)
    at = 8 + len(body)
    table, more, more_at = struct.pack("<H", len(values)), b"", at + 2 + 12 * len(values) + 4
    for tag, numbers in values.items():
        content = struct.pack(f"<{len(numbers)}I", *numbers)
        if len(content) > 4:
            content, more = struct.pack("<I", more_at + len(more)), more + content
        table += struct.pack("<HHI", tag, 4, len(numbers)) + content
    return b"II*\0" + struct.pack("<I", at) + body + table + bytes(4) + more


_TagValue = int | tuple[int, ...]


def _odd_samples() -> Iterator[Odd]:
    colours = np.asarray(scene())
    shades = np.asarray(scene().convert("L"))

    def shown() -> Image.Image:
        return scene().convert("L").convert("RGB")

    twelve = (shades.astype(np.uint16) << 4).reshape(-1, 2)
    high, low = twelve[:, 0], twelve[:, 1]
    packed = np.stack([high >> 4, (high & 15) << 4 | low >> 8, low & 255], axis=-1)
    wide = shades.astype("<u2") * 257
    for name, data, tags in (
        ("12 bits", packed.astype(np.uint8).tobytes(), {258: 12}),
        (
            "16 bits whose white is 0",
            (65_535 - wide).astype("<u2").tobytes(),
            {258: 16, 262: 0},
        ),
        ("8 bits whose white is 0", (255 - shades).tobytes(), {262: 0}),
        ("no colour space", shades.tobytes(), {262: -1}),
    ):
        yield Odd(f"tiff of {name}", partial(_tiff_of, [data], tags), shown)
    stretched = (shades / shades.max() * 255).astype(np.uint8)
    yield Odd(
        "tiff of 32 bits",
        partial(_tiff_of, [(stretched.astype("<u4") << 24 | 0xFFFFFF).tobytes()], {258: 32}),
        lambda: Image.fromarray(stretched).convert("RGB"),
    )
    three: dict[int, _TagValue] = {258: (8, 8, 8), 262: 2, 277: 3}
    planes = [(colours[..., plane].astype("<u2") * 257).tobytes() for plane in range(3)]
    yield Odd(
        "tiff of three planes with 16 bits",
        partial(_tiff_of, planes, three | {258: (16, 16, 16), 284: 2}),
        scene,
    )
    yield Odd(
        "tiff of colours with no colour space",
        partial(_tiff_of, [colours.tobytes()], three | {262: -1}),
        scene,
    )
    luma = np.asarray(scene().convert("YCbCr"))
    blocks = luma.reshape(SIZE[1] // 2, 2, SIZE[0] // 2, 2, 3)
    four = blocks[..., 0].transpose(0, 2, 1, 3).reshape(*blocks.shape[:1], blocks.shape[2], 4)
    mean = blocks[..., 1:].mean(axis=(1, 3)).astype(np.uint8)
    yield Odd(
        "tiff of YCbCr with fewer colour samples",
        partial(
            _tiff_of,
            [np.concatenate([four, mean], axis=-1).tobytes()],
            three | {262: 6, 530: (2, 2)},
        ),
        scene,
    )
    grey, packed_grey = shades.tobytes(), zlib.compress(shades.tobytes())
    for name, more in (
        ("two widths", {256: (SIZE[0], 1)}),
        ("strips of no rows", {278: 0}),
        ("an unknown arrangement of its planes", {284: 9}),
    ):
        yield Odd(f"tiff with {name}", partial(_tiff_of, [grey], more), shown)
    half = np.stack([shades // 2, np.full_like(shades, 128)], axis=-1)
    yield Odd(
        "tiff of shades multiplied by their alpha",
        partial(_tiff_of, [half.tobytes()], {258: (8, 8), 277: 2, 338: 1}),
        lambda: _flattened(
            Image.merge("LA", [scene().convert("L"), Image.new("L", SIZE, 128)]).convert("RGBA")
        ),
    )
    for name, more in (
        ("an unknown predictor", {259: 8, 317: 9}),
        ("a predictor for 1 bit", {258: 1, 259: 8, 317: 2}),
        ("a predictor of floating-point samples for integers", {259: 8, 317: 3}),
        ("the compression of a fax for 8 bits", {259: 4}),
    ):
        yield Odd(f"tiff with {name}", partial(_tiff_of, [packed_grey], more), None, 415)
    refused: dict[str, Mapping[int, _TagValue]] = {
        "samples of 64 bits": {258: 64, 339: 3},
        "WebP": three | {259: 50_001},
    }
    for name, unread in refused.items():
        yield Odd(f"tiff of {name}", partial(_tiff_of, [bytes(9)], unread), None, 415)
    yield Odd("tiff without a width", partial(_tiff_of, [bytes(9)], {256: 0}), None, 422)


def _directory(data: bytes) -> int:
    return int.from_bytes(data[4:8], "little")


def _with_exif_at(offset: int) -> bytes:
    """A TIFF whose tag for EXIF has this offset."""
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    tags[40_000] = 7
    data = tiff(tiffinfo=tags)
    entry = struct.pack("<HHI", 40_000, 3, 1)
    at = data.index(entry)
    return c.patched(data, at, struct.pack("<HHII", 34_665, 4, 1, offset))


# --- Formats that are not accepted ----------------------------------------------------------------


def others() -> Iterator[Odd]:
    for name, start in (
        ("HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic"),
        ("JPEG XL", b"\0\0\0\x0cJXL \r\n\x87\n"),
        ("JPEG 2000", b"\0\0\0\x0cjP  \r\n\x87\n"),
        ("PDF", b"%PDF-1.7\n"),
        ("SVG", b'\xef\xbb\xbf<?xml version="1.0"?><svg/>'),
        ("icon", b"\0\0\1\0\1\0\x10\x10"),
        ("video", b"\0\0\0\x18ftypmp42\0\0\0\0mp42isom"),
        ("Photoshop", b"8BPS\0\1"),
        ("camera raw", b"IIU\0\x18\0\0\0"),
    ):
        yield Odd(f"{name}", lambda data=start: data + bytes(200), None, 415)  # type: ignore[misc]
