"""Writes AVIF files whose AV1 sequence header and boxes declare any colours.

The coded pixels are those of Pillow's encoder. ISO/IEC 14496-12, 23008-12; AV1, 5.5.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass, replace

from PIL import Image

from tests.support.pictures import encode

SIZE = (64, 64)  # the smallest tile of a grid
LAYOUTS = ("4:0:0", "4:2:0", "4:2:2", "4:4:4")
_SRGB = (1, 13, 0)  # primaries, transfer and matrix, which imply 4:4:4 and full range

Points = tuple[int, int, int]  # primaries, transfer and matrix (ITU-T H.273)


@dataclass(frozen=True)
class Coded:
    """An image in AV1: its sequence header as bits, and the units before and after it."""

    before: bytes
    header: str
    after: bytes
    layout: str

    @classmethod
    def of(cls, layout: str) -> "Coded":
        """Smooth colours with this subsampling, as Pillow encodes them."""
        image = Image.linear_gradient("L").resize(SIZE).convert("RGB")
        data = encode(image, "AVIF", quality=80, subsampling=layout, speed=10)
        begin = data.index(b"mdat") + 4
        sample = data[begin : begin - 8 + int.from_bytes(data[begin - 8 : begin - 4], "big")]
        for at, kind, content in _units(sample):
            if kind == 1:
                header = "".join(f"{byte:08b}" for byte in content)
                end = at + 2 + len(content)
                return cls(sample[:at], header, sample[end:], layout)
        raise AssertionError("Pillow's encoder writes a sequence header")

    def with_colours(
        self, points: Points | None, *, full_range: bool = True, depth: int = 8
    ) -> "Coded":
        """The same coded pixels, declared to have other colours and another depth."""
        sides = 8 + int(self.header[10:14], 2) + int(self.header[14:18], 2) + 2
        fixed = self.header[3 : 10 + sides + 6]  # up to the filters
        mono, twelve = self.layout == "4:0:0", depth == 12
        profile = {"4:4:4": 1, "4:2:2": 2}.get(self.layout, 0) if not twelve else 2
        bits = f"{profile:03b}{fixed}{int(depth > 8)}"
        if profile == 2 and depth > 8:
            bits += str(int(twelve))
        if profile != 1:
            bits += str(int(mono))
        bits += "0" if points is None else "1" + "".join(f"{each:08b}" for each in points)
        if mono:
            bits += str(int(full_range))
        elif points == _SRGB:
            bits += "0"
        else:
            bits += str(int(full_range))
            if twelve:
                bits += {"4:2:0": "11", "4:2:2": "10", "4:4:4": "0"}[self.layout]
            bits += "00" if self.layout == "4:2:0" else ""  # the position of the colour samples
            bits += "0"
        return replace(self, header=bits + "01")  # no film grain, and the end

    def unit(self) -> bytes:
        """The sequence header as an open bitstream unit."""
        padded = self.header + "0" * (-len(self.header) % 8)
        content = int(padded, 2).to_bytes(len(padded) // 8, "big")
        return b"\x0a" + bytes((len(content),)) + content

    def sample(self) -> bytes:
        return self.before + self.unit() + self.after

    def configuration(self) -> bytes:
        """The content of `av1C`, without a sequence header."""
        sampling = {"4:0:0": 0x1C, "4:2:0": 0x0C, "4:2:2": 0x08, "4:4:4": 0}[self.layout]
        profile = int(self.header[:3], 2)
        sides = 8 + int(self.header[10:14], 2) + int(self.header[14:18], 2) + 2
        depth = self.header[10 + sides + 6 :]
        high = int(depth[0])
        twelve = int(depth[1]) if profile == 2 and high else 0
        return bytes((0x81, profile << 5, high << 6 | twelve << 5 | sampling, 0))


def _units(sample: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Offset, type and content of each unit with fewer than 128 bytes, up to a larger one."""
    at = 0
    while at + 2 <= len(sample) and sample[at + 1] < 0x80:
        size = sample[at + 1]
        yield at, sample[at] >> 3 & 15, sample[at + 2 : at + 2 + size]
        at += 2 + size


def box(kind: bytes, *contents: bytes) -> bytes:
    content = b"".join(contents)
    return struct.pack(">I4s", 8 + len(content), kind) + content


def full_box(kind: bytes, version: int, *contents: bytes) -> bytes:
    return box(kind, struct.pack(">I", version << 24), *contents)


def nclx(points: Points, *, full_range: bool = True) -> bytes:
    return box(b"colr", b"nclx", struct.pack(">HHHB", *points, full_range << 7))


def avif_of(
    coded: Coded, *properties: bytes, method: int = 0, tiles: int = 0, extents: int = 1
) -> bytes:
    """An AVIF of one coded image, or of a grid with this many of it side by side.

    `properties` are boxes of the primary image. Its data lie in `mdat`, or with the construction
    method 1 in `idat`, in this many parts.
    """
    width, height = SIZE
    sample = coded.sample()
    grid = struct.pack(">BBBBHH", 0, 0, 0, tiles - 1, width * tiles, height) if tiles else b""
    # The grid is item 1, and its tiles follow. Each tile has the same data.
    items = range(2, 2 + tiles) if tiles else (1,)
    stored = grid + (sample if method else b"")
    whole = full_box(b"ispe", 0, struct.pack(">II", width * max(1, tiles), height))
    one = full_box(b"ispe", 0, struct.pack(">II", width, height))
    boxes = [whole, one, box(b"av1C", coded.configuration()), *properties]
    of_primary = [1, *([] if tiles else [3]), *range(4, 4 + len(properties))]
    associations = [(1, of_primary), *((item, [2, 3]) for item in items if tiles)]
    ipma = struct.pack(">I", len(associations)) + b"".join(
        struct.pack(">HB", item, len(indices)) + bytes(indices) for item, indices in associations
    )
    names = [(1, b"grid" if tiles else b"av01"), *((item, b"av01") for item in items if tiles)]
    infos = [full_box(b"infe", 2, struct.pack(">HH", item, 0), kind, b"\0") for item, kind in names]
    cells = struct.pack(f">HH{tiles}H", 1, tiles, *items) if tiles else b""
    references = [full_box(b"iref", 0, box(b"dimg", cells))] if tiles else []

    def meta(start: int) -> bytes:
        step = -(-len(sample) // extents)
        parts = [(at, min(step, len(sample) - at)) for at in range(0, len(sample), step)]
        places = [(1, 1, [(0, len(grid))])] if tiles else []
        places += [(each, method, [(start + at, size) for at, size in parts]) for each in items]
        iloc = struct.pack(">HH", 0x4400, len(places)) + b"".join(
            struct.pack(">HHHH", item, how, 0, len(each))
            + b"".join(struct.pack(">II", *part) for part in each)
            for item, how, each in places
        )
        return full_box(
            b"meta",
            0,
            full_box(b"hdlr", 0, bytes(4), b"pict", bytes(13)),
            full_box(b"pitm", 0, struct.pack(">H", 1)),
            full_box(b"iloc", 1, iloc),
            full_box(b"iinf", 0, struct.pack(">H", len(names)), *infos),
            *references,
            box(b"iprp", box(b"ipco", *boxes), full_box(b"ipma", 0, ipma)),
            box(b"idat", stored) if stored else b"",
        )

    head = box(b"ftyp", b"avif", bytes(4), b"avifmif1miaf")
    start = len(grid) if method else len(head) + len(meta(0)) + 8
    return head + meta(start) + (b"" if method else box(b"mdat", sample))
