"""An uploaded image: read from the request within a bound, and hashed while it arrives."""

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from starlette.requests import ClientDisconnect, Request

from app.uploads.limiter import UploadSlot
from app.uploads.multipart import FormParser, is_form
from core.errors import ImageTooLarge, InvalidRequest
from core.http.content_length import announced_bytes
from core.settings import FORM_OVERHEAD

FIELD = "img"
MAX_PARTS = 32
# The loop handles this much at once before anything else gets a turn.
CHUNK = 64 * 1024


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of one image, not yet known to be one. `image_hash` is SHA-256 in hex."""

    data: bytearray
    image_hash: str
    slot: UploadSlot

    def release(self) -> None:
        """Let go of the bytes, and of the slot."""
        self.data.clear()
        self.slot.release()


async def read_upload(
    request: Request, max_bytes: int, slot: UploadSlot, *, form_only: bool = False
) -> Upload:
    """Read the image out of a form's field `img`, or out of a raw body of any other type.

    Holds at most `max_bytes` in memory. Raises ImageTooLarge as soon as that is known,
    MalformedBody for a form that cannot be parsed, InvalidRequest where there is no image or more
    than one (or no form, under `form_only`), Overloaded where `slot` has no room, UploadTooSlow,
    and ClientDisconnect where the sender goes away.
    """
    content_type = request.headers.get("content-type", "")
    if is_form(content_type):
        form = _Form(content_type, max_bytes)
        await _receive(request, form.feed, slot, max_bytes, max_bytes + FORM_OVERHEAD)
        return form.upload(slot)
    if form_only:
        raise InvalidRequest(
            f"Send the image as multipart/form-data, in the field {FIELD!r}.",
            extra={"field": FIELD},
        )
    body = _Bytes(max_bytes)
    await _receive(request, body.feed, slot, max_bytes, max_bytes)
    return body.upload(slot, "The body is empty: send the image's bytes.")


class _Bytes:
    """Bytes that are counted and hashed as they come."""

    __slots__ = ("_data", "_digest", "_max")

    def __init__(self, max_bytes: int) -> None:
        self._data = bytearray()
        self._digest = hashlib.sha256()
        self._max = max_bytes

    def feed(self, part: bytes | memoryview) -> None:
        if len(self._data) + len(part) > self._max:
            raise too_large(self._max)
        self._data += part
        self._digest.update(part)

    def upload(self, slot: UploadSlot, when_empty: str) -> Upload:
        if not self._data:
            raise InvalidRequest(when_empty)
        return Upload(self._data, self._digest.hexdigest(), slot)


class _Form(FormParser):
    """Keeps the one part named `img`, counts and drops the others."""

    def __init__(self, content_type: str, max_bytes: int) -> None:
        super().__init__(content_type)
        self._image: _Bytes | None = None
        self._max = max_bytes
        self._in_image = False
        self._parts = 0
        self._dropped = 0

    def upload(self, slot: UploadSlot) -> Upload:
        self.close()
        if self._image is None:
            raise InvalidRequest(f"The form has no field {FIELD!r}.", extra={"field": FIELD})
        return self._image.upload(slot, f"The field {FIELD!r} is empty.")

    def part_begins(self, options: Mapping[bytes, bytes]) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        # The file name is the sender's business: nothing here looks at it.
        self._in_image = options.get(b"name") == FIELD.encode()
        if not self._in_image:
            return
        if self._image is not None:
            raise InvalidRequest(
                f"The form has more than one field {FIELD!r}; send one image a request.",
                extra={"field": FIELD},
            )
        self._image = _Bytes(self._max)

    def part_data(self, data: memoryview) -> None:
        if self._in_image:
            assert self._image is not None
            self._image.feed(data)
            return
        self._dropped += len(data)
        if self._dropped > FORM_OVERHEAD:
            raise ImageTooLarge("The form's other fields are too large; only 'img' is read.")


async def _receive(
    request: Request,
    feed: Callable[[bytes], None],
    slot: UploadSlot,
    max_bytes: int,
    max_body: int,
) -> None:
    announced = announced_bytes(request)
    if announced is not None:
        if announced > max_body:
            raise too_large(max_bytes)
        slot.expect(announced)
    await slot.reading(_read(request, feed, slot, max_bytes, max_body))


async def _read(
    request: Request,
    feed: Callable[[bytes], None],
    slot: UploadSlot,
    max_bytes: int,
    max_body: int,
) -> None:
    receive = request.receive
    received = 0
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        chunk: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(chunk)
        if received > max_body:
            raise too_large(max_bytes)
        slot.hold(len(chunk))
        if len(chunk) <= CHUNK:
            feed(chunk)
            continue
        for begin in range(0, len(chunk), CHUNK):
            feed(chunk[begin : begin + CHUNK])
            await asyncio.sleep(0)


def too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"The image is larger than {max_bytes} bytes.", extra={"max_bytes": max_bytes}
    )
