"""Where fuzzing begins: small inputs that reach deep, made by code, so that git holds none."""

import io
import itertools
import json
import zipfile

from PIL import Image

from core.domain.messages import ClassifyImage
from core.domain.records import RecordKey
from tests.abuse import containers as c
from tests.abuse.hostile import Hostile, crafted
from tests.fuzz.targets import BOUNDARY, TARGETS
from tests.support.batches import archive, nameless, patched
from tests.support.pictures import encode, picture

_LARGEST = 4_000  # bytes: a fuzzer learns from small inputs


def seeds(target: str) -> list[bytes]:
    """The inputs of one of `TARGETS`."""
    if target == "envelope":
        return _envelopes()
    made = {"multipart": _forms, "archive": _archives, "manifest": _manifests}
    return made.get(target, _pictures)()


def replayed(target: str) -> list[bytes]:
    """More than a fuzzer begins with: what a quick test goes through without one."""
    whole = seeds(target)
    cut = [data[: len(data) * share // 8] for data in whole for share in range(8)]
    flipped = [
        data[:at] + bytes((data[at] ^ 0x20,)) + data[at + 1 :]
        for data in whole
        for at in range(0, len(data), max(1, len(data) // 25))
    ]
    return [*whole, *cut, *flipped]


def _envelopes() -> list[bytes]:
    attributes = ClassifyImage(RecordKey("public", "ab" * 32, "m@0123456789ab")).attributes()
    message = {
        "messageId": "1",
        "publishTime": "2026-11-21T09:30:00Z",
        "attributes": attributes,
        "data": "aGVsbG8=",
    }
    whole = {"subscription": "projects/p/subscriptions/s", "deliveryAttempt": 1, "message": message}
    variants: list[object] = [
        whole,
        {"message": {"messageId": "1"}, "subscription": ""},
        {**whole, "message": {**message, "data": "a"}},
        {**whole, "message": {**message, "attributes": {**attributes, "tenant": "../x"}}},
        {**whole, "message": {**message, "attributes": {**attributes, "traceparent": "00-1-2-3"}}},
        {**whole, "deliveryAttempt": 10**400},
        [],
        None,
    ]
    return [json.dumps(each).encode() for each in variants] + [b"", b"{", b"\xff\xfe{}", b"[" * 500]


def _forms() -> list[bytes]:
    def part(head: str, body: bytes) -> bytes:
        return b"--" + BOUNDARY + b"\r\n" + head.encode() + b"\r\n\r\n" + body + b"\r\n"

    image = 'Content-Disposition: form-data; name="img"; filename="a.jpg"'
    other = 'Content-Disposition: form-data; name="other"'
    end = b"--" + BOUNDARY + b"--\r\n"
    forms = [
        part(image, b"bytes") + end,
        part(image, b"bytes"),
        part(other, b"1") + part(image, b"\r\n--edg\r\n") + end,
        part(image, b"a") * 2 + end,
        part(other, b"") * 40 + end,
        part("Content-Disposition: form-data; name*=UTF-8''img", b"a") + end,
        part(image + "\r\nContent-Transfer-Encoding: base64", b"YQ==") + end,
        part("X: " + "y" * 3_000, b"a") + end,
        end,
        b"",
        b"\r\n" * 20,
    ]
    return [bytes((size,)) + form for form, size in itertools.product(forms, (0, 15, 255))]


def _archives() -> list[bytes]:
    files = {"a.jpg": b"image " * 20, "folder/": b"", "folder/b.jpg": b"x", "__MACOSX/._a": b""}
    packed = [archive(files, method) for method in (zipfile.ZIP_DEFLATED, zipfile.ZIP_STORED)]
    streamed = io.BytesIO()
    with zipfile.ZipFile(streamed, "w") as out, out.open("ä.jpg", "w", force_zip64=True) as file:
        file.write(b"image")
    end = b"PK\x05\x06"
    return [
        *packed,
        archive(files, zipfile.ZIP_LZMA),
        nameless(),
        streamed.getvalue(),
        b"before" + packed[0],
        patched(packed[0], end, 12, "<I", 2**31),
        patched(packed[0], end, 16, "<I", 2**31),
        patched(packed[0], b"PK\x01\x02", 8, "<H", 0x801),
        patched(packed[0], b"PK\x01\x02", 20, "<II", 2**31, 2**31),
        end + bytes(18),
        b"",
    ]


def _manifests() -> list[bytes]:
    entry = {"image_hash": "ab" * 32, "metadata": {"shelf": [1, None, {"ä": 1e300}]}}
    options = {"priority": "low", "not_before": "2026-11-21T09:30:00Z", "notify_email": "a@b.org"}
    variants: list[object] = [
        {"image_hashes": [entry, "cd" * 32], **options},
        {"image_hashes": [{**entry, "metadata": {"a": "x" * 2100}}]},
        {"image_hashes": [[], 1, None, "x"]},
        {"gs_prefix": "gs://bucket/prefix"},
        {"image_hashes": {}, "more": 1},
        [],
    ]
    raw = [b"", b"{", b"\xff", b'{"image_hashes": ' + b"[" * 500, b'{"priority": NaN}']
    return [json.dumps(each).encode() for each in variants] + raw


def _pictures() -> list[bytes]:
    honest = [picture(size=(9, 7), format_=f) for f in ("JPEG", "PNG", "GIF", "WEBP", "AVIF")]
    modes = [
        encode(Image.new(mode, (9, 7)), format_, **options)
        for mode, format_, options in (
            ("CMYK", "JPEG", {}),
            ("L", "JPEG", {"progressive": True}),
            ("P", "PNG", {}),
            ("I;16", "PNG", {}),
            ("LA", "PNG", {}),
            ("RGBA", "WEBP", {"lossless": True}),
            ("RGBA", "AVIF", {}),
        )
    ]
    turned = c.jpeg_segment(0xE1, b"Exif\0\0" + c.exif([(0x0112, 3, 1, b"\6\0")]))
    hostile = (each for each in crafted() if each.family in ("animation", "exif", "dimensions"))
    few: list[Hostile] = list(itertools.islice(hostile, 0, None, 12))
    bad = [data for each in few if 0 < len(data := each.make()) <= _LARGEST]
    return [*honest, *modes, c.jpeg_with(honest[0], turned), *bad]


__all__ = ["TARGETS", "replayed", "seeds"]
