"""Pictures that are generated at run time, so that none needs a licence."""

import hashlib
import io
import random
import struct
import zlib
from importlib.resources import files

import numpy as np
from PIL import Image


def picture(
    seed: int = 0,
    colour: tuple[int, int, int] = (200, 30, 30),
    size: tuple[int, int] = (96, 64),
    format_: str = "JPEG",
) -> bytes:
    """An encoded picture of one colour with faint noise: each seed gives other bytes."""
    noise = np.random.default_rng(seed).integers(-12, 13, (size[1], size[0], 3))
    pixels = np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)
    return encode(Image.fromarray(pixels), format_)


def photo(number: int) -> bytes:
    """A JPEG photo of about 110 KB: a random part of a scikit-image photograph."""
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "motorcycle_left.png")
    draw = random.Random(number)
    with Image.open(io.BytesIO((files("skimage.data") / names[number % 5]).read_bytes())) as source:
        image = source.convert("RGB")
    left, top = draw.randrange(image.width // 4), draw.randrange(image.height // 4)
    box = (left, top, left + 3 * image.width // 4, top + 3 * image.height // 4)
    return encode(image.crop(box).resize((800, 600)), "JPEG", quality=88)


def encode(image: Image.Image, format_: str, **options: object) -> bytes:
    """`image` as the bytes of a file in `format_`."""
    buffer = io.BytesIO()
    image.save(buffer, format_, **options)
    return buffer.getvalue()


def png(size: tuple[int, int], packed: bytes, *others: tuple[bytes, bytes]) -> bytes:
    """A PNG in RGB with the compressed pixels `packed`, after other named chunks."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, 8, 2, 0, 0, 0))
    more = b"".join(chunk(kind, data) for kind, data in others)
    return b"\x89PNG\r\n\x1a\n" + head + more + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def png_header(width: int, height: int) -> bytes:
    """A well-formed PNG that declares a size and contains almost no data."""
    return png((width, height), zlib.compress(bytes(1000)))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
