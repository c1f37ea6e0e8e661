"""Assembles invalid and extreme image files that no encoder writes."""

import base64
import io
import struct
import zlib
from collections.abc import Callable, Iterator

from PIL import Image

PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_AVIF_PARENTS = (b"meta", b"iprp", b"ipco", b"iinf", b"moov", b"trak", b"mdia", b"minf", b"stbl")


# --- PNG: https://www.w3.org/TR/png-3/ ------------------------------------------------------------


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    """The type and the content of each chunk of a complete PNG."""
    found, at = [], len(PNG_SIGNATURE)
    while at < len(data):
        (size,) = struct.unpack_from(">I", data, at)
        found.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    return found


def png_of(chunks: list[tuple[bytes, bytes]]) -> bytes:
    return PNG_SIGNATURE + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_changed(data: bytes, kind: bytes, change: Callable[[bytes], bytes]) -> bytes:
    """`data`, with other content in its chunks of one kind, and right checksums."""
    return png_of(
        [(k, change(content) if k == kind else content) for k, content in png_chunks(data)]
    )


def png_of_size(
    width: int, height: int, rows: int, *, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    """A PNG that declares `width` x `height` and contains `rows` rows of zeros."""
    samples = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * depth * samples + 7) // 8  # bytes
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    palette = [(b"PLTE", bytes(3))] if colour == 3 else []
    pixels = compressed_zeros(row * rows)
    return png_of([(b"IHDR", head), *palette, (b"IDAT", pixels), (b"IEND", b"")])


def compressed_zeros(count: int) -> bytes:
    """A zlib stream (RFC 1950) of `count` zeros, made of one compressed block again and again.

    Compressing half a gigabyte takes seconds.
    """
    size = 2**20
    packer = zlib.compressobj(9, wbits=-15)
    block = packer.compress(bytes(size)) + packer.flush(zlib.Z_FULL_FLUSH)
    end = packer.compress(bytes(count % size)) + packer.flush()
    adler32 = count % 65_521 << 16 | 1
    return b"\x78\xda" + block * (count // size) + end + struct.pack(">I", adler32)


def png_with(data: bytes, *extra: tuple[bytes, bytes], last: bool = False) -> bytes:
    """The PNG with further chunks after its header, or before its end."""
    chunks = png_chunks(data)
    at = len(chunks) - 1 if last else 1
    return png_of([*chunks[:at], *extra, *chunks[at:]])


# --- JPEG: ITU-T T.81, annex B --------------------------------------------------------------------


def jpeg_segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + struct.pack(">H", len(data) + 2) + data


def jpeg_with(data: bytes, extra: bytes) -> bytes:
    """The JPEG with `extra` after its first marker."""
    return data[:2] + extra + data[2:]


def jpeg_frame(data: bytes) -> int:
    """The offset of the height in the first frame header. The width follows."""
    at = 2
    while data[at + 1] not in (0xC0, 0xC1, 0xC2):
        at += 2 + int(struct.unpack_from(">H", data, at + 2)[0])
    return at + 5


# --- GIF: GIF89a specification --------------------------------------------------------------------


def gif_blocks(data: bytes) -> bytes:
    """`data` as a chain of sub-blocks."""
    parts = (data[at : at + 255] for at in range(0, len(data), 255))
    return b"".join(bytes((len(part),)) + part for part in parts) + b"\0"


def gif(
    size: tuple[int, int], *blocks: bytes, palette: bytes = b"\0\0\0\xff\xff\xff", end: bytes = b";"
) -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", *size, 0x80, 0, 0) + palette + b"".join(blocks) + end


def gif_frame(x: int, y: int, width: int, height: int, code_size: int = 2) -> bytes:
    """A frame with one black pixel that declares any size."""
    return b"," + struct.pack("<HHHHB", x, y, width, height, 0) + bytes((code_size, 2, 0x44, 1, 0))


# --- WebP: RFC 9649 -------------------------------------------------------------------------------


def riff_chunk(kind: bytes, data: bytes) -> bytes:
    return kind + struct.pack("<I", len(data)) + data + bytes(len(data) % 2)


def riff_chunks(data: bytes) -> list[tuple[bytes, bytes]]:
    found, at = [], 12
    while at + 8 <= len(data):
        (size,) = struct.unpack_from("<I", data, at + 4)
        found.append((data[at : at + 4], data[at + 8 : at + 8 + size]))
        at += 8 + size + size % 2
    return found


def webp_of(*chunks: bytes) -> bytes:
    body = b"WEBP" + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", len(body)) + body


def webp_canvas(width: int, height: int, flags: int) -> bytes:
    sides = struct.pack("<I", width - 1)[:3] + struct.pack("<I", height - 1)[:3]
    return riff_chunk(b"VP8X", bytes((flags, 0, 0, 0)) + sides)


def webp_animation(
    still: bytes, canvas: tuple[int, int], frames: int, *, offset: int = 0, loops: int = 0
) -> bytes:
    """An animation that repeats a still WebP `frames` times, on a canvas of any size."""
    (kind, picture), *_ = [c for c in riff_chunks(still) if c[0] in (b"VP8 ", b"VP8L")]
    place = struct.pack("<I", offset // 2)[:3]
    side = struct.pack("<I", 15)[:3]
    head = place + place + side + side + bytes(4)
    frame = riff_chunk(b"ANMF", head + riff_chunk(kind, picture))
    control = riff_chunk(b"ANIM", bytes(4) + struct.pack("<H", loops))
    return webp_of(webp_canvas(*canvas, 0x02), control, *(frame for _ in range(frames)))


# --- AVIF: ISO/IEC 14496-12, 23008-12 -------------------------------------------------------------


def boxes(data: bytes, begin: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The offset and type of each box, including nested boxes."""
    at, end = begin, len(data) if end is None else end
    while at + 8 <= end:
        size, kind = struct.unpack_from(">I4s", data, at)
        yield at, kind
        size = size or end - at
        if kind in _AVIF_PARENTS:
            inner = at + 8 + {b"meta": 4, b"iinf": 6}.get(kind, 0)
            yield from boxes(data, inner, min(at + size, end))
        at += max(size, 8)


def avif_declared_smaller(size: tuple[int, int], **options: str) -> bytes:
    """An AVIF that declares 64 by 64 pixels and is encoded with `size`."""
    file = io.BytesIO()
    Image.new("RGB", size, (9, 99, 200)).save(file, "AVIF", speed=10, **options)
    data, declared = file.getvalue(), struct.pack(">II", *size)
    assert declared in data
    return data.replace(declared, struct.pack(">II", 64, 64))


# `avif_declared_smaller((16_000, 16_000))`, compressed: encoding it takes nine seconds.
_COMPRESSED_AVIF = (
    "c-muNU{FXasVqn=%S>Yc0uY^>nP!-qnV9D5Xy^nKdYzkElE?r7iWw<6MNl?FL1uCZ0~+8f$SlbPvlxL`E;A=T8N_h`"
    "@fjhajKT~IJX3*ejm*rvG`LzRASaax%1bOWFm%q($p_n&m03_!0HnP$3zGAJv`A)gK`PWf2PhUO$gIc&2{3bTZ~!Tu"
    "#4<zYMtL5PkZ^K-PElTRP6g0pUIw-XppbZGK`zWsK!>p~GBvXRHO<XUNh}d!;Nq75URVF~?;<8CUJj#XNdcwg!-tI;"
    "Sp@tQfSMD}p9@^86}@%iBvS^{D@T$~b!IehY|OpCeQI3(3l%}RsRqhU&o^-8PJD6Nh+88t&C~9Pz&qb(@eG}b&NpY5"
    "WbB^(%X9Vm4$B7-j#(Dp6(_Q}6dw0m@yqG+;)~7+szyad_YIQIpNlAG`tG%3pWBTiVzMf4Hw1~k=$$^Hu<csWcloxX"
    "8$4zjDFo-nE53;C-<4#(b6fw-O&vyUf=ZU{lOH~A%gS6KJTq+06u(oKR>}T-Kg-}MJ9Bxtfi9zk)79fI-R51WJ+UJA"
    "0bMLfBFmC#EM97t*PLE|MP}x^g3ukZjoM2Y`YyKp*8BA2^W+utI#zPJ_<fx^PkqJXc*fv{;S*Y;Q8F4Oqfs&%C8JR?"
    "8YQDqG8!d=HA<ps=#eKw*Kpc}d<Ot)xPwI"
)


def avif_of_256_megapixels() -> bytes:
    """An AVIF that declares 64 by 64 pixels and is encoded with 16,000 by 16,000."""
    return zlib.decompress(base64.b85decode(_COMPRESSED_AVIF))


def avif_of_empty_extents(items: int = 3_000) -> bytes:
    """An AVIF whose items declare 65,535 empty extents each: libavif allocates a table."""
    file = io.BytesIO()
    Image.new("RGB", (64, 48)).save(file, "AVIF", speed=10)
    data = file.getvalue()
    begins = {kind: at for at, kind in boxes(data)}
    meta, at = begins[b"meta"], begins[b"iloc"]
    end = at + int.from_bytes(data[at : at + 4], "big")
    body = bytes(4) + b"\0\0" + struct.pack(">H", items)  # version, widths of 0 bytes, count
    body += b"".join(struct.pack(">HHH", item, 0, 65_535) for item in range(2, 2 + items))
    iloc = struct.pack(">I4s", 8 + len(body), b"iloc") + body
    size = int.from_bytes(data[meta : meta + 4], "big") + len(iloc) - (end - at)
    return data[:meta] + struct.pack(">I", size) + data[meta + 4 : at] + iloc + data[end:]


def patched(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


# --- EXIF: a TIFF of one directory ----------------------------------------------------------------


def exif(
    entries: list[tuple[int, int, int, bytes]], *, order: str = "<", following: int = 0
) -> bytes:
    """A TIFF directory of entries (tag, type, count, value or offset).

    `following` is the declared offset of the next directory: 8 is this one.
    """
    directory = struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        directory += struct.pack(order + "HHI", tag, kind, count & 0xFFFFFFFF) + value[:4].ljust(
            4, b"\0"
        )
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", 8) + directory + struct.pack(order + "I", following)
