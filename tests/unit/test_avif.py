"""What an AVIF file announces is judged before a decoder believes it (P7)."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image

from app.images.header import inspect_header
from core.errors import InvalidImage
from core.imaging.avif import Size, announced, check_announced, is_avif_container
from core.imaging.bounded_reader import TooManyReads
from tests.unit.test_preprocessing import preprocessor

BOXES = 1000


def still(size: tuple[int, int], mode: str = "RGB", **options: Any) -> bytes:
    file = io.BytesIO()
    Image.new(mode, size, 90 if mode == "L" else (200, 30, 60, 128)[: len(mode)]).save(
        file, "AVIF", **options
    )
    return file.getvalue()


def animation(frames: int | None = None) -> bytes:
    """An AVIF sequence of three frames, or one that announces `frames` of a byte each."""
    file = io.BytesIO()
    first, *rest = (Image.new("RGB", (16, 16), (80 * n, 0, 0)) for n in range(3))
    first.save(file, "AVIF", save_all=True, append_images=rest)
    if frames is None:
        return file.getvalue()
    head, box, tail = file.getvalue().partition(b"stsz")
    # Version and flags, the size that all have, how many there are.
    return head + box + tail[:4] + (1).to_bytes(4, "big") + frames.to_bytes(4, "big") + tail[12:]


def modest(data: bytes, size: tuple[int, int]) -> bytes:
    """The file, with a container that says 64 by 64 pixels of it."""
    honest = b"".join(side.to_bytes(4, "big") for side in size)
    assert honest in data
    return data.replace(honest, (64).to_bytes(4, "big") * 2)


@pytest.mark.parametrize("size", [(1, 1), (12, 9), (65, 64), (640, 481), (1920, 1080)])
@pytest.mark.parametrize(
    ("mode", "options"),
    [
        ("RGB", {}),
        ("RGB", {"subsampling": "4:4:4", "quality": 100}),
        ("RGB", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"}),
        ("RGBA", {}),
        ("L", {"range": "limited"}),
    ],
)
def test_a_picture_is_coded_in_its_own_size(
    size: tuple[int, int], mode: str, options: dict[str, Any]
) -> None:
    data = still(size, mode, **options)
    found = announced(data, BOXES)
    assert found.frames == 0
    assert set(found.sizes) == {Size(*size)}  # of the colours, and of what is transparent
    check_announced(data, max_pixels=size[0] * size[1])


def test_an_animation_has_frames_of_its_size() -> None:
    found = announced(animation(), BOXES)
    assert found.frames == 3
    assert set(found.sizes) == {Size(16, 16)}
    inspect_header(animation(), "image/avif", 10**6)
    preprocessor(10**6).picture(animation())


ENTRANCES: dict[str, Callable[[bytes], object]] = {
    "API": lambda data: inspect_header(data, "image/avif", 10**6),
    "worker": lambda data: preprocessor(10**6).picture(data),
}


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_an_animation_of_millions_of_frames_is_refused_before_it_is_opened(
    enter: Callable[[bytes], object],
) -> None:
    with pytest.raises(InvalidImage, match="more than 10000 frames"):
        enter(animation(2_592_000))


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_a_picture_that_is_larger_than_its_container_says_is_refused(
    enter: Callable[[bytes], object],
) -> None:
    enter(modest(still((1000, 999)), (1000, 999)))
    with pytest.raises(InvalidImage, match="coded in 1200 x 900 pixels"):
        enter(modest(still((1200, 900)), (1200, 900)))


def sequence_header(data: bytes) -> bytes:
    """The unit of a still picture's bitstream that says its size, with its own head."""
    begin = data.index(b"mdat") + 4 + 2  # behind a temporal delimiter, which is empty
    assert data[begin] == 0x0A  # a sequence header that tells its length
    return data[begin : begin + 2 + data[begin + 1]]


def with_payload(data: bytes, payload: bytes, pieces: Sequence[tuple[int, int]] = ()) -> bytes:
    """A still picture with another bitstream, or with `pieces` of it (begin, size) as its own."""
    boxes = data.partition(b"mdat")[0][:-4]
    location = boxes.index(b"iloc") - 4
    old_size = int.from_bytes(boxes[location : location + 4], "big")
    pieces = pieces or [(0, len(payload))]
    size = 8 + 14 + 8 * len(pieces)
    begin = len(boxes) + size - old_size + 8
    iloc = size.to_bytes(4, "big") + b"iloc" + bytes(4) + b"\x44\0\0\x01" + b"\0\x01\0\0"
    iloc += len(pieces).to_bytes(2, "big")
    for at, length in pieces:
        iloc += (begin + at).to_bytes(4, "big") + length.to_bytes(4, "big")
    meta = boxes.index(b"meta") - 4
    meta_size = int.from_bytes(boxes[meta : meta + 4], "big") + size - old_size
    return b"".join((
        boxes[:meta], meta_size.to_bytes(4, "big"), boxes[meta + 4 : location], iloc,
        boxes[location + old_size :], (len(payload) + 8).to_bytes(4, "big"), b"mdat", payload,
    ))  # fmt: skip


# The key frame of libaom's animation of 1200 x 900 red pixels, but that the sequence header says 64
# by 64, and the frame's that it has a size of its own (AV1 5.9.5).
OF_ITS_OWN_SIZE = bytes.fromhex(
    "12000a0e00000042a41f87e657c880868342327e120257f06681000000400000001b03ce12730c2a5cb0"
    "432bca2d0881a3e230fadfc33dc6828f6cbd26a01a03ce12730c2a5cb0432bca2d0881a3f7e058e7c33d"
    "c6828f6cbd301b03ce12730c2a5cb0432bca2d0881a3e230fadfc33dc6828f6ca10db603ce12730c2a5c"
    "b0432bca2d0881a3f7e058e7c33dc6828f657f9e"
)


def two_sequences(size: tuple[int, int]) -> bytes:
    """A picture that says first that it is another's size."""
    data = still(size)
    picture = data.partition(b"mdat")[2]
    return with_payload(data, sequence_header(still((64, 64))) + picture)


def two_pieces(size: tuple[int, int]) -> bytes:
    """A picture whose first piece is followed by what is no part of it."""
    data = still(size)
    picture = data.partition(b"mdat")[2]
    other = sequence_header(still((64, 64)))
    spread = picture[:2] + other + picture[2:]
    return with_payload(data, spread, [(0, 2), (2 + len(other), len(picture) - 2)])


def longest_header(size: tuple[int, int]) -> bytes:
    """A sequence header with all the operating points and delays that one can have (AV1 5.5)."""
    point = "0" * 12 + "01000" + "1" + "1" + "0" * 65 + "1" + "0000"
    bits = "00000" + "1" + "0" * 64 + "1" + "0" * 31 + "1" * 32  # as far as a tick's length
    bits += "1" + "11111" + "0" * 42 + "1" + "11111" + point * 32
    bits += "11111111" + "".join(f"{side - 1:016b}" for side in size)
    unit = int(bits + "0" * (-len(bits) % 8), 2).to_bytes((len(bits) + 7) // 8, "big")
    return b"\x0a" + bytes([128 | len(unit) % 128, len(unit) // 128]) + unit


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_a_size_at_the_end_of_the_longest_header_is_found(
    enter: Callable[[bytes], object],
) -> None:
    data = with_payload(still((64, 64)), longest_header((1200, 900)))
    with pytest.raises(InvalidImage, match="coded in 1200 x 900 pixels"):
        enter(data)


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
@pytest.mark.parametrize("made", [two_sequences, two_pieces])
def test_a_size_that_is_said_later_or_elsewhere_is_found(
    made: Callable[[tuple[int, int]], bytes], enter: Callable[[bytes], object]
) -> None:
    honest = made((1000, 999))
    assert Image.open(io.BytesIO(honest)).convert("RGB").getpixel((9, 9)) == pytest.approx(
        (200, 30, 60), abs=4
    )
    enter(honest)
    enter(modest(honest, (1000, 999)))
    with pytest.raises(InvalidImage, match="coded in 1200 x 900 pixels"):
        enter(modest(made((1200, 900)), (1200, 900)))


@pytest.mark.parametrize("enter", ENTRANCES.values(), ids=ENTRANCES.keys())
def test_a_frame_that_is_larger_than_its_sequence_is_refused(
    enter: Callable[[bytes], object],
) -> None:
    """Though it may not be, a decoder lets it."""
    data = with_payload(still((1200, 900)), OF_ITS_OWN_SIZE)
    with Image.open(io.BytesIO(data)) as image:
        assert image.getpixel((1000, 800)) == pytest.approx((200, 30, 60), abs=4)
    with pytest.raises(InvalidImage, match="coded in 2048 x 1024 pixels"):
        enter(modest(data, (1200, 900)))


@pytest.mark.parametrize("where", range(40))
def test_what_is_broken_off_or_flipped_raises_nothing_else(where: int) -> None:
    data = bytearray(still((64, 48), "RGBA"))
    step = len(data) // 40
    announced(data[: where * step], BOXES)
    for at in range(where * step, (where + 1) * step):
        flipped = bytearray(data)
        flipped[at] ^= 0xFF
        try:
            announced(flipped, BOXES)
        except TooManyReads:
            continue


@pytest.mark.parametrize("data", [b"", b"\0\0\0\x08moov" * 2000, b"\0\0\0\0free", b"\0\0\0\1free"])
def test_boxes_that_lead_nowhere_end(data: bytes) -> None:
    assert announced(data, 5000) == (0, ())
    if len(data) > 10_000:
        with pytest.raises(TooManyReads):
            announced(data, 100)
        with pytest.raises(InvalidImage, match="too many parts"):
            check_announced(data * 6, 10**6)


def test_a_bitstream_of_nothing_but_padding_ends() -> None:
    # Temporal delimiters, which are empty.
    data = with_payload(still((64, 48)), b"\x12\0" * 20_000)
    with pytest.raises(TooManyReads):
        announced(data, 10_000)
    with pytest.raises(InvalidImage, match="too many parts"):
        check_announced(data, 10**6)


def test_pieces_that_lie_over_each_other_end() -> None:
    payload = bytes(2**20)
    data = with_payload(still((64, 48)), payload, [(0, len(payload))] * 1000)
    with pytest.raises(InvalidImage, match="too many parts"):
        check_announced(data, 10**6)


def test_only_files_of_that_family_are_looked_at() -> None:
    assert is_avif_container(still((8, 8)))
    assert not is_avif_container(b"\x89PNG\r\n\x1a\n")
