"""An uploaded image: read from the request within limits, and hashed while it arrives."""

import hashlib
from dataclasses import dataclass
from functools import partial

from starlette.requests import Request

from app.uploads.disposition import PartName
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import FormParser, is_form
from core.errors import HashMismatch, ImageTooLarge, InvalidRequest, UnsupportedMediaType
from core.settings import FORM_OVERHEAD

FIELD = "img"
MAX_PARTS = 32


@dataclass(frozen=True, slots=True)
class Upload:
    """The bytes of one image, which are not checked yet. `image_hash` is SHA-256 in hex."""

    data: bytearray
    image_hash: str
    slot: UploadSlot

    def release(self) -> None:
        """Free the bytes and the slot."""
        self.data.clear()
        self.slot.close()


class ImageBuffer:
    """Collects the bytes of one image, at most `max_bytes`, and hashes them as they arrive."""

    __slots__ = ("_digest", "_max_bytes", "data")

    def __init__(self, max_bytes: int) -> None:
        self.data = bytearray()
        self._digest = hashlib.sha256()
        self._max_bytes = max_bytes

    def add(self, part: bytes | memoryview) -> None:
        """Raises ImageTooLarge."""
        if len(self.data) + len(part) > self._max_bytes:
            raise image_too_large(self._max_bytes)
        self.data += part
        self._digest.update(part)

    def image_hash(self) -> str:
        return self._digest.hexdigest()


async def read_upload(
    request: Request, max_bytes: int, slot: UploadSlot, *, form_only: bool = False
) -> Upload:
    """Read the image from the field `img` of a form, or from a raw body of any other type.

    Holds at most `max_bytes` in memory. Raises ImageTooLarge as soon as that is known,
    MalformedBody for a form that cannot be parsed, InvalidRequest if there is no image or more than
    one (or, with `form_only`, no form), and what `UploadSlot.read` raises.
    """
    content_type = request.headers.get("content-type", "")
    too_large = partial(image_too_large, max_bytes)
    if is_form(content_type):
        form = _ImageForm(content_type, request.headers.get("user-agent", ""), max_bytes)
        async for chunk in slot.read(request, max_bytes + FORM_OVERHEAD, too_large):
            form.feed(chunk)
        image = form.image()
    elif form_only:
        raise InvalidRequest(
            f"Send the image as multipart/form-data, in the field {FIELD!r}.",
            extra={"field": FIELD},
        )
    else:
        image = ImageBuffer(max_bytes)
        async for chunk in slot.read(request, max_bytes, too_large):
            image.add(chunk)
        if not image.data:
            raise InvalidRequest("The body is empty. Send the image's bytes.")
    return Upload(image.data, image.image_hash(), slot)


async def read_named_upload(
    request: Request, max_bytes: int, slot: UploadSlot, image_hash: str
) -> Upload:
    """Read an image that the client sends as a raw body under its hash.

    Raises UnsupportedMediaType for a form, HashMismatch if the bytes have another hash, and what
    `read_upload` raises for a raw body.
    """
    if is_form(request.headers.get("content-type", "")):
        raise UnsupportedMediaType(
            "Send the bytes of the image as they are, not a form.",
            extra={"accepted": ["application/octet-stream"]},
        )
    upload = await read_upload(request, max_bytes, slot)
    if upload.image_hash != image_hash:
        raise HashMismatch(
            "The SHA-256 of the body is not the hash in the path.",
            extra={"field": "image_hash", "computed_hash": upload.image_hash},
        )
    return upload


class _ImageForm(FormParser):
    """Keeps the one part named `img`, and counts and discards the others."""

    def __init__(self, content_type: str, user_agent: str, max_bytes: int) -> None:
        super().__init__(content_type, user_agent)
        self._image: ImageBuffer | None = None
        self._max_bytes = max_bytes
        self._in_image = False
        self._parts = 0
        self._discarded = 0

    def image(self) -> ImageBuffer:
        """The image of the complete form. Raises MalformedBody, InvalidRequest."""
        self.close()
        if self._image is None:
            raise InvalidRequest(f"The form has no field {FIELD!r}.", extra={"field": FIELD})
        if not self._image.data:
            raise InvalidRequest(
                f"The field {FIELD!r} is empty. No file was chosen.", extra={"field": FIELD}
            )
        return self._image

    def part_begins(self, name: PartName) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise InvalidRequest(f"The form has more than {MAX_PARTS} parts.")
        # The name of the image's file is ignored.
        self._in_image = name.field == FIELD
        if not self._in_image:
            if name.file:
                raise misplaced_file(name.field, FIELD)
            return
        if self._image is not None:
            raise InvalidRequest(
                f"The form has more than one field {FIELD!r}. Send one image per request.",
                extra={"field": FIELD},
            )
        self._image = ImageBuffer(self._max_bytes)

    def part_data(self, data: bytes) -> None:
        if self._in_image:
            assert self._image is not None
            self._image.add(data)
            return
        self._discarded += len(data)
        if self._discarded > FORM_OVERHEAD:
            raise ImageTooLarge("The form's other fields are too large. Only 'img' is read.")


def misplaced_file(field: str, wanted: str) -> InvalidRequest:
    """A file is in a field that is not read, whatever its size."""
    return InvalidRequest(
        f"The form has a file in the field {field[:100]!r}. Send it in the field {wanted!r}.",
        extra={"field": wanted},
    )


def image_too_large(max_bytes: int) -> ImageTooLarge:
    return ImageTooLarge(
        f"The image is larger than {max_bytes} bytes.", extra={"max_bytes": max_bytes}
    )
