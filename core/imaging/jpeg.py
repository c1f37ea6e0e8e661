"""Reads the segments of a JPEG file (ITU-T T.81, annex B) up to its first scan."""

from core.errors import UnsupportedImage
from core.imaging.encoded import EncodedImage, Part, TooManyParts, broken_header, orientation_of

MAX_SEGMENTS = 4_000  # a JPEG with 10 MB of colour profile has 160
END_OF_IMAGE = b"\xff\xd9"

_START_OF_SCAN, _END = 0xDA, 0xD9
_STANDALONE = frozenset({0x00, 0x01, *range(0xD0, 0xD9)})  # markers without a length
_APP0, _APP1, _APP2, _APP14 = 0xE0, 0xE1, 0xE2, 0xEE
_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
_LOSSLESS = 0xC3
_FRAMES = frozenset({0xC0, 0xC1, 0xC2, _LOSSLESS, 0xC9, 0xCA})
_OTHER_FRAMES = {
    **dict.fromkeys((0xC5, 0xC6, 0xC7, 0xCD, 0xCE, 0xCF), "a hierarchical JPEG"),
    0xCB: "a lossless JPEG with arithmetic coding",
    0xF7: "a JPEG-LS image",
}
# What libjpeg reads of these two decides how it converts colours.
_JFIF = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00"
_ADOBE_SIZE = 12
_ADOBE_RGB = b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00\x00"
_EXIF, _XMP, _ICC = b"Exif\0\0", b"http://ns.adobe.com/xap/1.0/\0", b"ICC_PROFILE\0"


def read_jpeg(data: bytes | bytearray) -> EncodedImage:
    """Raises InvalidImage, UnsupportedImage for varieties that are not decoded, TooManyParts."""
    broken = broken_header("JPEG")
    parts: list[Part] = [data[:2].ljust(2, b"\0") if isinstance(data, bytes) else bytes(data[:2])]
    metadata = _Metadata()
    frame: tuple[int, int, int] | None = None  # marker, begin and end of its parameters
    at = 2
    for _ in range(MAX_SEGMENTS):
        at = data.find(b"\xff", at)
        if at < 0 or at + 1 >= len(data):
            raise broken
        marker = data[at + 1]
        if marker == 0xFF:  # a fill byte
            at += 1
            continue
        if marker in _STANDALONE:
            at += 2
            continue
        begin, end = at + 4, at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        end = max(end, begin) if marker in _METADATA else end  # libjpeg reads lengths below 2 as 2
        if marker == _END or end < begin or end > len(data):
            raise broken
        if marker == _START_OF_SCAN:
            break
        if marker in _METADATA:
            metadata.add(marker, bytes(data[begin:end]))
        elif frame is not None and (marker in _FRAMES or marker in _OTHER_FRAMES):
            raise broken
        else:
            if marker in _FRAMES or marker in _OTHER_FRAMES:
                frame = (marker, begin, end)
            parts.append((at, end))
        at = end
    else:
        raise TooManyParts
    if frame is None:
        raise broken
    marker, begin, end = frame
    width, height = _checked_frame(marker, bytes(data[begin:end]))
    lossless = marker == _LOSSLESS
    parts[1:1] = metadata.colour_segments(lossless=lossless, components=data[begin + 5])
    parts.append((at, len(data)))
    return EncodedImage(
        size=(width, height),
        parts=tuple(parts),
        profile=metadata.profile(),
        orientation=orientation_of(metadata.exif, metadata.xmp),
        reducible=not lossless,
        lossless_jpeg=lossless,
        jfif=metadata.jfif,
    )


def all_scans_present(data: bytes) -> bool:
    """Whether a file with several scans has one for every bit of every coefficient.

    The last one may be cut: that costs the lowest bits of some coefficients. False for a file with
    a single scan.
    """
    components: set[int] = set()
    covered: dict[int, set[int]] = {}
    scans, at = 0, 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 4 <= len(data):
        marker = data[at + 1]
        if marker == 0xFF or marker in _STANDALONE:
            at += 1 if marker == 0xFF else 2
            continue
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        content = data[at + 4 : end]
        if marker in _FRAMES and len(content) >= 6:
            components = set(content[6 : 6 + 3 * content[5] : 3])
        if marker == _START_OF_SCAN and len(content) >= 4 + 2 * content[0]:
            scans += 1
            count = content[0]
            first, last, bits = content[1 + 2 * count : 4 + 2 * count]
            if bits & 0x0F == 0:
                for component in content[1 : 1 + 2 * count : 2]:
                    covered.setdefault(component, set()).update(range(first, last + 1))
        at = max(end, at + 2)
    return scans > 1 and all(covered.get(each, set()) >= set(range(64)) for each in components)


def _checked_frame(marker: int, frame: bytes) -> tuple[int, int]:
    """Width and height that a frame header declares. Raises InvalidImage, UnsupportedImage."""
    if marker in _OTHER_FRAMES:
        raise _unsupported(_OTHER_FRAMES[marker])
    if len(frame) < 6 or len(frame) < 6 + 3 * frame[5]:
        raise broken_header("JPEG")
    bits, count = frame[0], frame[5]
    height, width = int.from_bytes(frame[1:3], "big"), int.from_bytes(frame[3:5], "big")
    if bits != 8:
        raise _unsupported(f"a JPEG with {bits} bits a sample")
    if count not in (1, 3, 4):
        raise _unsupported(f"a JPEG with {count} components")
    factors = [(each >> 4, each & 15) for each in frame[7 : 6 + 3 * count : 3]]
    if not all(1 <= factor <= 4 for pair in factors for factor in pair):
        raise broken_header("JPEG")
    for axis in (0, 1):
        most = max(pair[axis] for pair in factors)
        if any(most % pair[axis] for pair in factors):
            raise _unsupported("a JPEG with fractional sampling")
    if height == 0 and width > 0:
        raise _unsupported("a JPEG that declares its height after its pixels")
    return width, height


class _Metadata:
    """Collects what the application segments declare."""

    def __init__(self) -> None:
        self.jfif = False
        self.exif: bytes | None = None
        self.xmp: bytes | None = None
        self._adobe: bytes | None = None
        self._profile: dict[int, bytes] = {}
        self._profile_parts = 0

    def add(self, marker: int, data: bytes) -> None:
        if marker == _APP0:
            self.jfif = self.jfif or (data.startswith(b"JFIF\0") and len(data) >= 14)
        elif marker == _APP1 and data.startswith(_EXIF):
            self.exif = (self.exif or b"") + data[len(_EXIF) :]
        elif marker == _APP1 and data.startswith(_XMP):
            self.xmp = self.xmp or data[len(_XMP) :]
        elif marker == _APP2 and data.startswith(_ICC) and len(data) > len(_ICC) + 2:
            number, self._profile_parts = data[len(_ICC)], data[len(_ICC) + 1]
            self._profile[number] = data[len(_ICC) + 2 :]
        elif marker == _APP14 and data.startswith(b"Adobe") and len(data) >= _ADOBE_SIZE:
            self._adobe = data[:_ADOBE_SIZE]

    def profile(self) -> bytes | None:
        """The ICC profile, if all its parts are there (ICC.1, annex B.4)."""
        wanted = range(1, self._profile_parts + 1)
        if not wanted or any(number not in self._profile for number in wanted):
            return None
        return b"".join(self._profile[number] for number in wanted)

    def colour_segments(self, *, lossless: bool, components: int) -> list[Part]:
        segments: list[Part] = [_JFIF] if self.jfif else []
        if self._adobe is not None:
            length = (2 + _ADOBE_SIZE).to_bytes(2, "big")
            segments.append(b"\xff\xee" + length + self._adobe)
        elif lossless and components == 3 and not self.jfif:
            # libjpeg would assume YCbCr, which lossless files never hold without JFIF.
            segments.append(_ADOBE_RGB)
        return segments


def _unsupported(variety: str) -> UnsupportedImage:
    return UnsupportedImage(f"The file is {variety}, which is not supported.")
