"""Batches as clients would send them, right ones and wrong ones."""

import io
import struct
import zipfile
from collections.abc import Iterable, Mapping

from starlette.requests import Request

from tests.support.sender import Sender

BOUNDARY = "frontier"
FORM = f"multipart/form-data; boundary={BOUNDARY}"


def part(content: bytes, name: str = "imgs", filename: bytes = b"a.jpg") -> bytes:
    """A form's part. Parts of fields have no `filename`."""
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
    """A zip of one file without a name; what was the name is now an extra field."""
    named = archive({"a": b"x"})
    return patched(patched(named, b"PK\x03\x04", 26, "<HH", 0, 1), b"PK\x01\x02", 28, "<HH", 0, 1)


def cut(body: bytes, size: int) -> list[bytes]:
    return [body[begin : begin + size] for begin in range(0, len(body), size)] or [b""]


def request(sender: Sender, content_type: str, **headers: str) -> Request:
    named = {"content-type": content_type, **headers}
    raw = [(name.replace("_", "-").encode(), value.encode()) for name, value in named.items()]
    return Request({"type": "http", "method": "POST", "headers": raw}, sender)
