"""Valid and invalid batches, and what the service reads of them."""

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest
from starlette.requests import Request

from app.batches.archive import ZipSpool, read_zip
from app.batches.form import read_form
from app.batches.item import BatchItem
from app.batches.limits import BatchLimits
from app.uploads.limiter import UploadLimiter, UploadLimits, UploadSlot
from core.errors import GlimpseError
from tests.support.sender import Sender

BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, name: str = "imgs", filename: bytes = b"a.jpg") -> bytes:
    """A part of a form. A field that is no file has no `filename`."""
    file = b'; filename="' + filename + b'"' if filename else b""
    disposition = b'Content-Disposition: form-data; name="' + name.encode() + b'"' + file
    return disposition + b"\r\n\r\n" + content


def manifest(text: bytes) -> bytes:
    return part(text, "manifest", b"")


def form(*parts: bytes, end: bytes = b"--\r\n") -> bytes:
    delimiter = b"--" + BOUNDARY.encode()
    return b"".join(delimiter + b"\r\n" + each + b"\r\n" for each in parts) + delimiter + end


def archive(
    entries: Mapping[str, bytes] | Iterable[tuple[str, bytes]],
    method: int = zipfile.ZIP_DEFLATED,
) -> bytes:
    """A zip of these files, in this order."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as out:
        for name, data in entries.items() if isinstance(entries, Mapping) else entries:
            # By name alone, the entry would carry the time: it must be the same in every worker.
            out.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def patched(data: bytes, signature: bytes, offset: int, form_: str, *values: int) -> bytes:
    """`data` with numbers overwritten in the first header that has this signature."""
    out = bytearray(data)
    struct.pack_into(form_, out, data.index(signature) + offset, *values)
    return bytes(out)


def nameless() -> bytes:
    """A zip of one file without a name: its name is declared as an extra field."""
    named = archive({"a": b"x"})
    return patched(patched(named, b"PK\x03\x04", 26, "<HH", 0, 1), b"PK\x01\x02", 28, "<HH", 0, 1)


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[begin : begin + size] for begin in range(0, len(body), size)] or [b""]


def request(sender: Sender, content_type: str, **headers: str) -> Request:
    named = {"content-type": content_type, **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, sender)


ZIP = "application/zip"
LIMITS = BatchLimits(max_bytes=100_000, max_image_bytes=1000, max_items=5)
UPLOADS = UploadLimits(max_bytes=2**30, min_bytes_per_second=1)


class Stored:
    """Keeps what it stores, and releases the bytes from the slot as `BatchStorer` does."""

    def __init__(self, slot: UploadSlot) -> None:
        self.slot = slot
        self.items: list[BatchItem] = []
        self.bytes: list[bytes] = []
        self.most_reserved = 0
        self.skipped = 0

    async def __call__(self, item: BatchItem) -> None:
        self.most_reserved = max(self.most_reserved, self.slot.bytes_reserved)
        self.items.append(item)
        self.bytes.append(bytes(item.data))
        self.slot.release(len(item.data))
        item.discard()

    @property
    def codes(self) -> list[str]:
        return [item.error.code if item.error else "" for item in self.items]


async def read_batch(
    body: bytes | Sender,
    folder: Path,
    content_type: str = FORM,
    limits: BatchLimits = LIMITS,
    uploads: UploadLimiter | None = None,
    length: str | None = None,
    user_agent: str = "",
) -> tuple[Stored, bytes]:
    """The images of a form or zip, and the form's manifest. Spools zips in `folder`."""
    sender = body if isinstance(body, Sender) else Sender(cut(body, 64))
    headers = {} if length is None else {"content_length": length}
    batch = request(sender, content_type, user_agent=user_agent, **headers)
    manifest = b""
    with (uploads or UploadLimiter(UPLOADS)).slot() as slot:
        stored = Stored(slot)
        if content_type == ZIP:
            stored.skipped = await read_zip(batch, slot, limits, ZipSpool(folder / "spool"), stored)
        else:
            form = await read_form(batch, slot, limits, ZipSpool(folder / "spool"), stored)
            manifest, stored.skipped = form.manifest, form.skipped
        assert slot.bytes_reserved == len(manifest)
    return stored, manifest


async def refused_batch(
    body: bytes | Sender,
    folder: Path,
    content_type: str = FORM,
    limits: BatchLimits = LIMITS,
    length: str | None = None,
) -> GlimpseError:
    with pytest.raises(GlimpseError) as refused:
        await read_batch(body, folder, content_type, limits, length=length)
    return refused.value
