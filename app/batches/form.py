"""A batch as it was sent: its images one at a time, in order, with few of them in memory.

A batch is a form with the field `imgs` repeated, a zip, or a JSON document that names images by
their hashes. A bad image is an item that failed; a bad request is refused as a whole.
"""

import asyncio
import hashlib
from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import ClientDisconnect, Request

from app.batches.limits import BatchImage, BatchLimits, display_name, empty, too_many_bytes
from app.uploads.image_upload import CHUNK, too_large
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import FormParser
from core.domain.jobs import check_count
from core.errors import BatchTooLarge, InvalidRequest
from core.http.content_length import announced_bytes

FIELD, MANIFEST_FIELD = "imgs", "manifest"
MAX_MANIFEST_BYTES = 1024 * 1024  # 1,000 hashes, and metadata of half a kilobyte each


Take = Callable[[BatchImage], Awaitable[None]]


async def read_form(request: Request, slot: UploadSlot, limits: BatchLimits, take: Take) -> bytes:
    """Hand each image of a form to `take`, in order; the field `manifest`, empty where not there.

    `take` owns the bytes, which `slot` holds, and lets them go. Raises MalformedBody,
    InvalidRequest, BatchTooLarge, Overloaded, UploadTooSlow, and ClientDisconnect.
    """
    form = BatchForm(request.headers.get("content-type", ""), limits)

    async def feed(chunk: bytes) -> None:
        kept = form.kept
        form.feed(chunk)
        slot.let_go(len(chunk) - (form.kept - kept))
        ready, form.ready = form.ready, []
        for image in ready:
            await take(image)

    await read_body(request, slot, limits, feed)
    form.close()
    return bytes(form.manifest)


class BatchForm(FormParser):
    """Collects `ready` images and the `manifest`; `kept` counts the bytes of both, ever."""

    def __init__(self, content_type: str, limits: BatchLimits) -> None:
        super().__init__(content_type)
        self.ready: list[BatchImage] = []
        self.manifest = bytearray()
        self.kept = 0
        self._limits = limits
        self._image: BatchImage | None = None
        self._digest = hashlib.sha256()
        self._images = self._manifests = 0

    def part_begins(self, options: Mapping[bytes, bytes]) -> None:
        name = options.get(b"name", b"")
        if name == FIELD.encode():
            self._images += 1
            check_count(self._images, self._limits.items)
            self._image = BatchImage(
                display_name(options.get(b"filename", b"").decode(errors="replace"))
            )
            self._digest = hashlib.sha256()
        elif name == MANIFEST_FIELD.encode():
            self._manifests += 1
            if self._manifests > 1:
                raise InvalidRequest(
                    f"The form has more than one field {MANIFEST_FIELD!r}.",
                    extra={"field": MANIFEST_FIELD},
                )
        else:
            # Whoever sends an option in here should not believe that it was heard.
            raise InvalidRequest(
                f"A form may have the fields {FIELD!r} and {MANIFEST_FIELD!r}, and no others."
            )

    def part_data(self, data: memoryview) -> None:
        image = self._image
        if image is None:
            self.manifest += data
            self.kept += len(data)
            if len(self.manifest) > MAX_MANIFEST_BYTES:
                raise BatchTooLarge(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.")
        elif image.error is not None:
            return
        elif len(image.data) + len(data) > self._limits.image_bytes:
            self.kept -= len(image.data)
            image.data.clear()
            image.error = too_large(self._limits.image_bytes)
        else:
            image.data += data
            self.kept += len(data)
            self._digest.update(data)

    def part_ends(self) -> None:
        image, self._image = self._image, None
        if image is None:
            return
        if not image.data and image.error is None:
            image.error = empty()
        if image.error is None:
            image.image_hash = self._digest.hexdigest()
        self.ready.append(image)


async def read_body(
    request: Request,
    slot: UploadSlot,
    limits: BatchLimits,
    feed: Callable[[bytes], Awaitable[None]],
) -> None:
    """Hand the body to `feed`, at most `CHUNK` bytes a call; `slot` holds them then.

    Raises BatchTooLarge as soon as that is known, Overloaded, UploadTooSlow, ClientDisconnect.
    """
    announced = announced_bytes(request)
    if announced is not None:
        if announced > limits.bytes_:
            raise too_many_bytes(limits)
        slot.expect(min(announced, limits.image_bytes))
    await slot.reading(_read(request, slot, limits, feed))


async def _read(
    request: Request,
    slot: UploadSlot,
    limits: BatchLimits,
    feed: Callable[[bytes], Awaitable[None]],
) -> None:
    received = 0
    more = True
    while more:
        message = await request.receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        body: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        received += len(body)
        if received > limits.bytes_:
            raise too_many_bytes(limits)
        for begin in range(0, len(body), CHUNK):
            chunk = body[begin : begin + CHUNK]
            slot.hold(len(chunk))
            await feed(chunk)
            if len(body) > CHUNK:
                await asyncio.sleep(0)
