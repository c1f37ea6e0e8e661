"""Images that somebody made to hurt: drawn by code, the same ones for the same seed."""

import functools
import io
import itertools
import random
import struct
import zipfile
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from PIL import Image

from tests.abuse import containers as c
from tests.support.pictures import encode, picture

FORMATS = ("JPEG", "PNG", "GIF", "WEBP", "AVIF")
MEGABYTE = 1_000_000
LIMIT_SIDE = 7_071  # its square is just below the default limit of 50 megapixels
FILL = ("flipped header", "flipped body", "spliced")


@dataclass(frozen=True)
class Hostile:
    """One input. `make` draws it anew each time: thousands of them need not be in memory."""

    family: str
    name: str
    make: Callable[[], bytes]


def hostile_images(count: int, seed: int) -> Iterator[Hostile]:
    """`count` inputs of every family, in an order drawn from `seed`.

    Each crafted one comes once where `count` allows it, seeded damage makes up the rest. A smaller
    `count` takes of each family in turn.
    """
    draw = random.Random(seed)
    families: dict[str, list[Hostile]] = defaultdict(list)
    for each in crafted():
        families[each.family].append(each)
    for members in families.values():
        draw.shuffle(members)
    chosen: list[Hostile] = []
    for layer in itertools.zip_longest(*families.values()):
        chosen += [each for each in layer if each is not None]
    del chosen[count * 2 // 3 :]
    chosen += itertools.islice(damaged(seed), count - len(chosen))
    draw.shuffle(chosen)
    yield from chosen


def crafted() -> Iterator[Hostile]:
    """Everything that is not drawn by chance."""
    for family, make in (
        ("bomb", bombs),
        ("truncated", truncated),
        ("polyglot", polyglots),
        ("metadata", metadata),
        ("exif", exifs),
        ("animation", animations),
        ("dimensions", dimensions),
        ("boxes", lying_boxes),
    ):
        for name, data in make():
            yield Hostile(family, name, data)


Made = Iterator[tuple[str, Callable[[], bytes]]]


@functools.cache
def sample(format_: str, side: int = 32) -> bytes:
    """An honest picture."""
    return picture(seed=side, size=(side, side), format_=format_)


@functools.cache
def animated(format_: str) -> bytes:
    frames = [Image.new("RGB", (16, 16), (n * 30, 90, 20)) for n in range(8)]
    return encode(frames[0], format_, save_all=True, append_images=frames[1:], duration=40)


# --- Small files, large pictures ------------------------------------------------------------------


def bombs() -> Made:
    side = LIMIT_SIDE
    for depth, colour in ((1, 0), (8, 0), (8, 2), (8, 3), (8, 6), (16, 0), (16, 4), (16, 6)):
        at_limit = partial(
            c.png_of_size, side, side, side, depth=depth, colour=colour, interlaced=0
        )
        yield f"png {depth} bit of kind {colour} at the limit", at_limit
        above = partial(c.png_of_size, 60_000, 60_000, 4, depth=depth, colour=colour)
        yield f"png {depth} bit of kind {colour} above", above
    yield (
        "png interlaced at the limit",
        partial(c.png_of_size, side, side, side + side // 2, interlaced=1),
    )
    yield "png wide", partial(c.png_of_size, 2**31 - 1, 1, 0)
    yield "png one pixel high at the limit", partial(c.png_of_size, 49_000_000, 1, 1)
    yield "png one pixel wide at the limit", partial(c.png_of_size, 1, 49_000_000, 9)
    yield "png more rows than it claims", partial(c.png_of_size, 4_000, 4, 20_000)

    def still(format_: str, mode: str, sides: tuple[int, int], **options: object) -> bytes:
        return encode(Image.new(mode, sides), format_, **options)

    for mode in ("L", "RGB", "CMYK"):
        yield f"jpeg {mode} at the limit", partial(still, "JPEG", mode, (side, side))
    yield (
        "jpeg progressive at the limit",
        partial(still, "JPEG", "RGB", (side, side), progressive=True),
    )
    yield "jpeg narrow", partial(still, "JPEG", "L", (1, 65_500))
    yield "jpeg wide", partial(still, "JPEG", "L", (65_500, 1))
    yield "gif at the limit", partial(still, "GIF", "P", (side, side))
    yield "gif empty canvas at the limit", lambda: c.gif((side, side), c.gif_frame(0, 0, 1, 1))
    yield "gif empty canvas above", lambda: c.gif((65_535, 65_535), c.gif_frame(0, 0, 1, 1))
    yield "gif frame above", lambda: c.gif((4, 4), c.gif_frame(0, 0, 65_535, 65_535))
    yield (
        "webp lossless at the limit",
        partial(still, "WEBP", "RGBA", (side, side), lossless=True, method=0),
    )
    yield "webp lossy", partial(still, "WEBP", "RGB", (5_000, 5_000), method=0)
    yield "avif large", partial(still, "AVIF", "RGB", (3_000, 3_000), speed=10)
    yield "avif coded larger than it declares", partial(c.avif_declared_smaller, (16_000, 16_000))
    for canvas in ((side, side), (16_383, 16_383), (2**24, 2**8)):
        name = f"webp animation on a canvas of {canvas[0]} x {canvas[1]}"
        yield name, partial(_webp_animation, canvas, 3)


# --- Cut off --------------------------------------------------------------------------------------


def truncated() -> Made:
    """At every per cent of the length."""

    def cut(whole: Callable[[], bytes], percent: int) -> bytes:
        data = whole()
        return data[: len(data) * percent // 100]

    for format_, percent in itertools.product(FORMATS, range(1, 100)):
        for kind, whole in (
            ("still", partial(sample, format_)),
            ("larger", partial(sample, format_, 96)),
            ("animated", partial(animated, format_)),
        ):
            if kind == "animated" and format_ == "JPEG":
                continue
            yield f"{format_} {kind} at {percent} %", partial(cut, whole, percent)
    progressive = functools.cache(
        lambda: encode(Image.open(io.BytesIO(sample("PNG", 96))), "JPEG", progressive=True)
    )
    for percent in range(1, 100):
        yield f"JPEG progressive at {percent} %", partial(cut, progressive, percent)


# --- Two things at once ---------------------------------------------------------------------------


@functools.cache
def _archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("../../evil.sh", "echo " * 200)
        file.writestr("zeros", bytes(MEGABYTE))
    return buffer.getvalue()


_HTML = b"<html><script>alert(document.domain)</script><!--"
_PDF = b"%PDF-1.7\n1 0 obj<</Type/Catalog/OpenAction 2 0 R>>endobj\ntrailer<</Root 1 0 R>>\n%%EOF\n"
_SVG = b'<svg xmlns="http://www.w3.org/2000/svg" onload="alert(1)"/>'
_PHP = b"<?php system($_GET['c']); ?>"
_SHELL = b"#!/bin/sh\nrm -rf /\n"


def polyglots() -> Made:
    def joined(format_: str, before: bytes, after: bytes) -> bytes:
        return before + sample(format_) + after

    others = {
        "zip": _archive(),
        "html": _HTML,
        "pdf": _PDF,
        "svg": _SVG,
        "php": _PHP,
        "shell": _SHELL,
        "zeros": bytes(50_000),
    }
    for format_, (name, other) in itertools.product(FORMATS, others.items()):
        yield f"{name} behind {format_}", partial(joined, format_, b"", other)
        yield f"{name} before {format_}", partial(joined, format_, other, b"")
    for one, two in itertools.product(FORMATS, FORMATS):
        yield f"{one} and {two}", partial(lambda one, two: sample(one) + sample(two), one, two)
    for name, other in others.items():
        comment = c.jpeg_segment(0xFE, other[:60_000])
        yield (
            f"{name} in a JPEG comment",
            partial(lambda x: c.jpeg_with(sample("JPEG"), x), comment),
        )
        text = (b"tEXt", b"Comment\0" + other)
        yield f"{name} in a PNG text", partial(lambda x: c.png_with(sample("PNG"), x), text)
        block = b"\x21\xfe" + c.gif_blocks(other)
        yield (
            f"{name} in a GIF comment",
            partial(lambda x: c.gif((1, 1), x, c.gif_frame(0, 0, 1, 1)), block),
        )
        chunk = c.riff_chunk(b"XMP ", other)
        yield f"{name} in a WebP chunk", partial(lambda x: _webp_extended(x, 0x04), chunk)
    script = b"GIF89a/*" + sample("GIF")[8:] + b"*/=alert(1);"
    yield "a script that begins like a GIF", lambda: script


# --- Metadata without end -------------------------------------------------------------------------


def metadata() -> Made:
    jpeg, png = sample("JPEG"), sample("PNG")

    def segments(marker: int, data: bytes, total: int) -> bytes:
        segment = c.jpeg_segment(marker, data)
        return c.jpeg_with(jpeg, segment * (total // len(segment)))

    many = 8 * MEGABYTE
    yield "jpeg of empty segments", partial(segments, 0xE5, b"", many)
    yield "jpeg of tiny EXIF segments", partial(segments, 0xE1, b"Exif\0\0a", many)
    yield "jpeg of tiny comments", partial(segments, 0xFE, b"a", many)
    yield "jpeg of fill bytes", lambda: c.jpeg_with(jpeg, b"\xff" * many)
    yield "jpeg of junk between markers", lambda: c.jpeg_with(jpeg, b"\xff\0" * (many // 2))
    large = bytes(60_000)
    for marker, prefix in (
        (0xE1, b"Exif\0\0II*\0\x08\0\0\0"),
        (0xE1, b"http://ns.adobe.com/xap/1.0/\0"),
        (0xE2, b"ICC_PROFILE\0\x01\x01"),
        (0xE2, b"MPF\0II*\0\x08\0\0\0"),
        (0xED, b"Photoshop 3.0\0008BIM\x04\x04\0\0\0\0\xff\xff"),
        (0xEE, b"Adobe\0\x64"),
        (0xFE, b""),
        (0xDB, b""),
        (0xC4, b""),
    ):
        for total in (60_020, MEGABYTE, many):
            name = f"jpeg of {total} bytes of {prefix[:8]!r} {marker:x}"
            yield name, partial(segments, marker, prefix + large, max(total, 60_100))

    def chunks(kind: bytes, data: bytes, total: int, last: bool) -> bytes:
        # Built at once: joining hundreds of thousands of chunks one by one would take a minute.
        chunk = c.png_chunk(kind, data)
        at = 33 if not last else len(png) - 12
        return png[:at] + chunk * (total // len(chunk)) + png[at:]

    bomb = zlib.compress(bytes(50 * MEGABYTE), 9)
    small_bomb = zlib.compress(bytes(MEGABYTE - 1), 9)
    for last in (False, True):
        where = "behind" if last else "before"
        for kind, data in (
            (b"tEXt", b"k\0v"),
            (b"teSt", b""),
            (b"zTXt", b"k\0\0" + zlib.compress(b"v")),
            (b"iTXt", b"k\0\0\0\0\0v"),
            (b"fdAT", bytes(4)),
            (b"pHYs", bytes(9)),
            (b"IHDR", png[16:29]),
            (b"PLTE", bytes(3)),
        ):
            name = f"png of many {kind.decode()} {where} the pixels"
            yield name, partial(chunks, kind, data, many, last)
        for kind, data in (
            (b"zTXt", b"k\0\0" + bomb),
            (b"iTXt", b"k\0\x01\0\0\0" + bomb),
            (b"iCCP", b"p\0\0" + bomb),
            (b"zTXt", b"k\0\0" + small_bomb),
            (b"iTXt", b"k\0\x01\0\0\0" + small_bomb),
            (b"tEXt", b"k\0" + b"v" * 900_000),
            (b"tEXt", b"Raw profile type exif\0\nexif\n 400000\n" + b"00" * 400_000),
            (b"eXIf", b"II*\0\x08\0\0\0" + bytes(900_000)),
        ):
            for times in (1, 60):
                total = min(times * (len(data) + 12), many)
                name = f"png of {times} x {kind.decode()} of {len(data)} bytes {where}"
                yield name, partial(chunks, kind, data, max(total, len(data) + 12), last)
    for kind in (b"IHDR", b"IDAT", b"PLTE", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"acTL", b"eXIf"):
        for data in (b"", b"\0", bytes(70_000)):
            yield (
                f"png with a {kind.decode()} of {len(data)} bytes",
                partial(lambda kind, data: c.png_with(png, (kind, data)), kind, data),
            )

    frame = c.gif_frame(0, 0, 4, 4)
    for label in (b"\xfe", b"\xff", b"\xf9", b"\x01", b"\x77"):
        for size, piece in ((255, many // 256), (1, many // 4)):
            block = bytes((size,)) + b"a" * size
            yield (
                f"gif of {size}-byte blocks in an extension {label!r}",
                partial(
                    lambda label, block, piece: c.gif(
                        (4, 4), b"\x21" + label + block * piece + b"\0", frame
                    ),
                    label,
                    block,
                    piece,
                ),
            )
    xmp = b"\x21\xff\x0bXMP DataXMP" + c.gif_blocks(b"<x/>" * 500_000)
    yield "gif of much XMP", lambda: c.gif((4, 4), xmp, frame)
    yield (
        "gif of many comments",
        lambda: c.gif((4, 4), (b"\x21\xfe\1a\0") * (many // 5), frame),
    )
    yield "gif without an end", lambda: c.gif((4, 4), b"\x21\xfe\1a\0" * 500, end=b"")
    for kind, flag in ((b"EXIF", 0x08), (b"XMP ", 0x04), (b"ICCP", 0x20), (b"JUNK", 0)):
        for size in (0, 1, MEGABYTE, many):
            yield (
                f"webp with {size} bytes of {kind.decode()}",
                partial(
                    lambda kind, flag, size: _webp_extended(c.riff_chunk(kind, bytes(size)), flag),
                    kind,
                    flag,
                    size,
                ),
            )
        yield (
            f"webp of many empty {kind.decode()}",
            partial(
                lambda kind, flag: _webp_extended(c.riff_chunk(kind, b"") * (many // 8), flag),
                kind,
                flag,
            ),
        )
    avif = sample("AVIF")
    empty = struct.pack(">I4s", 8, b"free")
    yield "avif of empty boxes", lambda: _avif_with(avif, empty * (many // 8))
    yield (
        "avif of one free box",
        lambda: _avif_with(avif, struct.pack(">I4s", many, b"free") + bytes(many)),
    )


def _avif_with(avif: bytes, extra: bytes) -> bytes:
    (head,) = struct.unpack_from(">I", avif)
    return avif[:head] + extra + avif[head:]


def _webp_extended(extra: bytes, flags: int) -> bytes:
    pixels = [x for x in c.riff_chunks(sample("WEBP")) if x[0] in (b"VP8 ", b"VP8L")]
    return c.webp_of(c.webp_canvas(32, 32, flags), c.riff_chunk(*pixels[0]), extra)


# --- EXIF that cannot be --------------------------------------------------------------------------


def exifs() -> Made:
    blocks: dict[str, bytes] = {}
    for order, orientation in itertools.product("<>", (0, 2, 5, 8, 9, 255, 65_535)):
        value = struct.pack(order + "H", orientation)
        name = f"orientation {orientation} ({order})"
        blocks[name] = c.exif([(0x0112, 3, 1, value)], order=order)
    for kind, count in itertools.product((0, 1, 2, 5, 7, 12, 13, 65_535), (0, 1, 2**20, 2**32 - 1)):
        block = c.exif([(0x0112, kind, count, b"\6\0\0\0")])
        blocks[f"orientation of type {kind}, {count} times"] = block
    blocks["cyclic"] = c.exif([(0x0112, 3, 1, b"\1\0")], following=8)
    blocks["cyclic by its pointers"] = c.exif(
        [(tag, 4, 1, b"\x08\0\0\0") for tag in (0x8769, 0x8825, 0xA005, 0x014A)]
    )
    blocks["next far away"] = c.exif([(0x0112, 3, 1, b"\1\0")], following=2**32 - 1)
    blocks["many entries"] = c.exif([(tag, 3, 1, b"\1\0") for tag in range(4_000)])
    blocks["one tag many times"] = c.exif([(0x0112, 3, 1, b"\6\0")] * 4_000)
    blocks["values far away"] = c.exif([(0x010F, 2, 2**31, b"\xff\xff\xff\x7f")] * 50)
    blocks["count of entries lies"] = b"II*\0\x08\0\0\0\xff\xff" + bytes(40)
    blocks["directory out of bounds"] = b"II*\0\xff\xff\xff\xff"
    blocks["empty"] = b""
    blocks["no TIFF"] = b"nonsense" * 20
    blocks["huge TIFF"] = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2**63) + bytes(20)
    for name, block in blocks.items():
        jpeg = c.jpeg_segment(0xE1, b"Exif\0\0" + block)
        yield f"jpeg: {name}", partial(lambda x: c.jpeg_with(sample("JPEG"), x), jpeg)
        yield f"png: {name}", partial(lambda x: c.png_with(sample("PNG"), (b"eXIf", x)), block)
        chunk = c.riff_chunk(b"EXIF", block)
        yield f"webp: {name}", partial(lambda x: _webp_extended(x, 0x08), chunk)
        if block:
            yield f"avif: {name}", partial(_avif_with_exif, block)


def _avif_with_exif(block: bytes) -> bytes:
    # Pillow writes only what it can read, so the block takes the place of a harmless one.
    harmless = c.exif([]).ljust(len(block), b"#")
    small = Image.new("RGB", (16, 16))
    data = encode(small, "AVIF", exif=b"Exif\0\0" + harmless, speed=10)
    assert harmless in data
    return data.replace(harmless, block.ljust(len(harmless), b"\0"))


# --- Animations without end -----------------------------------------------------------------------


def _webp_animation(canvas: tuple[int, int], frames: int, offset: int = 0) -> bytes:
    return c.webp_animation(sample("WEBP", 16), canvas, frames, offset=offset)


def animations() -> Made:
    for frames in (1_000, 20_000, 300_000):
        yield (
            f"gif of {frames} frames",
            partial(lambda n: c.gif((4, 4), c.gif_frame(0, 0, 4, 4) * n), frames),
        )
        yield (
            f"gif of {frames} control blocks",
            partial(
                lambda n: c.gif((4, 4), b"\x21\xf9\4\x0c\1\0\0\0" * n, c.gif_frame(0, 0, 4, 4)),
                frames,
            ),
        )
    for x, y, width, height in (
        (60_000, 60_000, 5_000, 5_000),
        (0, 0, 0, 0),
        (4, 4, 1, 1),
        (0, 0, 65_535, 1),
        (65_535, 0, 4, 4),
    ):
        yield (
            f"gif frame of {width} x {height} at {x}, {y}",
            partial(lambda a: c.gif((4, 4), c.gif_frame(*a)), (x, y, width, height)),
        )
    for size in (0, 1, 8, 9, 12, 13, 255):
        yield (
            f"gif code size {size}",
            partial(lambda n: c.gif((64, 64), c.gif_frame(0, 0, 64, 64, code_size=n)), size),
        )
    yield "gif that never ends", lambda: c.gif((4, 4), c.gif_frame(0, 0, 4, 4) * 900, end=b"")
    yield "gif without a frame", lambda: c.gif((4, 4))

    png = sample("PNG")
    control = struct.pack(">IIIIIHHBB", 0, 32, 32, 0, 0, 1, 100, 0, 0)
    for frames in (0, 1, 2**31 - 1, 2**32 - 1):
        yield (
            f"apng that claims {frames} frames",
            partial(
                lambda n: c.png_with(png, (b"acTL", struct.pack(">II", n, 0)), (b"fcTL", control)),
                frames,
            ),
        )
    for count in (1_000, 30_000):
        piece = (c.png_chunk(b"fcTL", control) + c.png_chunk(b"fdAT", bytes(8))) * count
        yield (
            f"apng of {count} frames",
            partial(
                lambda p: (
                    c.png_with(png, (b"acTL", struct.pack(">II", 9, 0)))[:-12] + p + png[-12:]
                ),
                piece,
            ),
        )
    for place in ((0, 0, 0, 0), (2**31, 2**31, 0, 0), (32, 32, 2**31, 2**31), (33, 33, 1, 1)):
        frame = struct.pack(">IIIIIHHBB", 0, *place, 1, 0, 255, 255)
        yield (
            f"apng frame {place}",
            partial(
                lambda f: c.png_with(
                    png, (b"acTL", struct.pack(">II", 2, 0)), (b"fcTL", f), (b"fcTL", f)
                ),
                frame,
            ),
        )

    for frames in (1_000, 10_000, 60_000):
        name = f"webp of {frames} frames"
        yield name, partial(_webp_animation, (16, 16), frames)
    for canvas, offset in (((1, 1), 0), ((16, 16), 2**24), ((4_000, 4_000), 3_000), ((16, 16), 8)):
        name = f"webp frame at {offset} of {canvas}"
        yield name, partial(_webp_animation, canvas, 5, offset)
    yield "webp without a frame", lambda: c.webp_of(c.webp_canvas(16, 16, 0x02))
    yield (
        "webp that only claims an animation",
        lambda: c.webp_of(c.webp_canvas(16, 16, 0x3E), *(c.riff_chunk(b"ANMF", b""),) * 50),
    )
    moving = animated("AVIF")
    for at, kind in c.boxes(moving):
        if kind in (b"stts", b"stsz", b"stsc", b"stco", b"co64", b"mdhd", b"mvhd"):
            for value in (0, 1, 2**16, 2**31 - 1, 2**32 - 1):
                yield (
                    f"avif {kind.decode()} counts {value}",
                    partial(
                        lambda at, v: c.patched(moving, at + 12, struct.pack(">I", v)), at, value
                    ),
                )


# --- Sizes that are not ---------------------------------------------------------------------------


def dimensions() -> Made:
    jpeg, webp, avif = sample("JPEG"), sample("WEBP"), sample("AVIF")
    frame = c.jpeg_frame(jpeg)
    (vp8,) = (webp.index(kind) for kind in (b"VP8 ",))
    ispe = avif.index(b"ispe") + 8
    for width, height in itertools.product((0, 1, 31, 33, 4_000, 16_383, 65_535), repeat=2):
        sides = f"{width} x {height}"
        yield (
            f"jpeg of {sides}",
            partial(lambda w, h: c.patched(jpeg, frame, struct.pack(">HH", h, w)), width, height),
        )
        yield (
            f"gif of {sides}",
            partial(
                lambda w, h: c.patched(sample("GIF"), 6, struct.pack("<HH", w, h)), width, height
            ),
        )
        yield (
            f"webp of {sides}",
            partial(
                lambda w, h: c.patched(webp, vp8 + 14, struct.pack("<HH", w, h)), width, height
            ),
        )
    for width, height in itertools.product((0, 1, 33, 60_000, 2**31 - 1, 2**32 - 1), repeat=2):
        sides = f"{width} x {height}"
        yield (
            f"png of {sides}",
            partial(_png_claiming, width, height),
        )
        yield (
            f"avif of {sides}",
            partial(lambda w, h: c.patched(avif, ispe, struct.pack(">II", w, h)), width, height),
        )
    for depth, colour in itertools.product((0, 1, 3, 8, 16, 255), (0, 1, 2, 3, 4, 5, 6, 255)):
        yield (
            f"png of depth {depth} and kind {colour}",
            partial(lambda d, k: _png_claiming(32, 32, d, k), depth, colour),
        )
    for components in (0, 1, 2, 5, 255):
        yield (
            f"jpeg of {components} components",
            partial(lambda n: c.patched(jpeg, frame + 4, bytes((n,))), components),
        )
    for sampling in (0x00, 0x01, 0x10, 0x44, 0xFF):
        yield (
            f"jpeg sampled {sampling:x}",
            partial(lambda n: c.patched(jpeg, frame + 6, bytes((n,))), sampling),
        )


def _png_claiming(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    (_, head), *rest = c.png_chunks(sample("PNG"))
    claim = struct.pack(">IIBB", width, height, depth, colour) + head[10:]
    return c.png_of([(b"IHDR", claim), *rest])


# --- AVIF's boxes ---------------------------------------------------------------------------------


def lying_boxes() -> Made:
    for kind, avif in (("still", sample("AVIF")), ("moving", animated("AVIF"))):
        for at, box in c.boxes(avif):
            for size in (0, 1, 7, 8, 2**16, 2**31 - 1, 2**32 - 1):
                yield (
                    f"avif {kind} {box!r} of {size} bytes",
                    partial(
                        lambda a, at, n: c.patched(a, at, struct.pack(">I", n)), avif, at, size
                    ),
                )
            yield (
                f"avif {kind} {box!r} renamed",
                partial(lambda a, at: c.patched(a, at + 4, b"free"), avif, at),
            )
            yield (
                f"avif {kind} {box!r} twice",
                partial(_avif_doubled, avif, at),
            )
    yield "avif of items with countless empty extents", c.avif_of_empty_extents
    still = sample("AVIF")
    for brand in (b"heic", b"heix", b"mif1", b"msf1", b"crx ", b"jxl "):
        yield f"brand {brand.decode()}", partial(lambda b: c.patched(still, 8, b), brand)
    deep = b""
    for _ in range(3_000):
        deep = struct.pack(">I4s", len(deep) + 8, b"moov") + deep
    nested = deep
    yield "avif of boxes in boxes", lambda: _avif_with(still, nested)
    for at in range(still.index(b"iloc"), still.index(b"iloc") + 24):
        yield f"avif iloc {at}", partial(lambda at: c.patched(still, at, b"\xff"), at)


def _avif_doubled(avif: bytes, at: int) -> bytes:
    size = int.from_bytes(avif[at : at + 4], "big") or len(avif) - at
    return avif[: at + size] + avif[at : at + size] + avif[at + size :]


# --- Damage by chance -----------------------------------------------------------------------------


def damaged(seed: int) -> Iterator[Hostile]:
    """Without end: bits flipped in headers and bodies, and pictures spliced together."""
    for number in itertools.count():
        family = FILL[number % len(FILL)]
        format_ = FORMATS[number // len(FILL) % len(FORMATS)]
        make = partial(_damage, family, format_, seed * 1_000_003 + number)
        yield Hostile(family, f"{format_} {number} of seed {seed}", make)


def _damage(family: str, format_: str, seed: int) -> bytes:
    draw = random.Random(seed)
    source = draw.choice((sample(format_), sample(format_, 96)))
    if format_ != "JPEG" and draw.random() < 0.3:
        source = animated(format_)
    if family == "spliced":
        return _spliced(source, draw)
    head = min(len(source), 400)
    first, last = (0, head) if family == "flipped header" else (head // 2, len(source))
    data = bytearray(source)
    for _ in range(draw.choice((1, 1, 2, 4, 16, 64))):
        data[draw.randrange(first, last)] ^= 1 << draw.randrange(8)
    if format_ == "PNG" and draw.random() < 0.7:
        return _with_right_sums(bytes(data))
    return bytes(data)


def _with_right_sums(data: bytes) -> bytes:
    """A damaged PNG whose checksums fit, so that the damage gets past them."""
    try:
        return c.png_of(c.png_chunks(data))
    except struct.error:
        return data


def _spliced(source: bytes, draw: random.Random) -> bytes:
    other = sample(draw.choice(FORMATS), draw.choice((32, 96)))
    begin, end = sorted(draw.randrange(len(source)) for _ in range(2))
    piece = other[draw.randrange(len(other)) :][: draw.randrange(1, 2_000)]
    return draw.choice(
        (
            source[:begin] + piece + source[end:],  # something else in the middle
            source[:end] + source[begin:],  # a part twice
            source[:begin] + source[end:],  # a part missing
            source[:begin] + bytes(end - begin) + source[end:],  # a part blank
        )
    )
