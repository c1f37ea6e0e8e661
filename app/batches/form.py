"""A batch as a form: the field `imgs`, repeated, and an optional field `manifest`.

An image that is not accepted is an item with an error. An invalid form is refused as a whole.
"""

from collections.abc import Awaitable, Callable, Mapping

from starlette.requests import Request

from app.batches.item import BatchItem, display_name
from app.batches.limits import BatchLimits
from app.uploads.limiter import UploadSlot
from app.uploads.multipart import FormParser
from core.domain.jobs import check_count
from core.errors import BatchTooLarge, InvalidRequest

FIELD, MANIFEST_FIELD = "imgs", "manifest"
MAX_MANIFEST_BYTES = 1024 * 1024  # 1,000 hashes, and metadata of half a kilobyte each

# Stores an item, and releases its bytes from the slot.
Store = Callable[[BatchItem], Awaitable[None]]


async def read_form(request: Request, slot: UploadSlot, limits: BatchLimits, store: Store) -> bytes:
    """Pass each image of the form to `store`, in order. Returns the field `manifest`, or b"".

    Raises MalformedBody, InvalidRequest, BatchTooLarge, and what `UploadSlot.read` raises.
    """
    form = BatchForm(request.headers.get("content-type", ""), limits)
    body = slot.read(request, limits.max_bytes, limits.too_large, buffered=limits.max_image_bytes)
    async for chunk in body:
        kept = form.kept
        form.feed(chunk)
        slot.release(len(chunk) - (form.kept - kept))
        for item in form.take_items():
            await store(item)
    form.close()
    return bytes(form.manifest)


class BatchForm(FormParser):
    """Collects items and the manifest. `kept` counts the bytes of both, without discarded ones."""

    def __init__(self, content_type: str, limits: BatchLimits) -> None:
        super().__init__(content_type)
        self.manifest = bytearray()
        self.kept = 0
        self._limits = limits
        self._complete: list[BatchItem] = []
        self._item: BatchItem | None = None  # the image that is being read
        self._images = self._manifests = 0

    def take_items(self) -> list[BatchItem]:
        """The items that are complete since the last call."""
        items, self._complete = self._complete, []
        return items

    def part_begins(self, options: Mapping[bytes, bytes]) -> None:
        name = options.get(b"name", b"")
        if name == FIELD.encode():
            self._images += 1
            check_count(self._images, self._limits.max_items)
            file_name = options.get(b"filename", b"").decode(errors="replace")
            self._item = BatchItem.empty(display_name(file_name), self._limits.max_image_bytes)
        elif name == MANIFEST_FIELD.encode():
            self._manifests += 1
            if self._manifests > 1:
                raise InvalidRequest(
                    f"The form has more than one field {MANIFEST_FIELD!r}.",
                    extra={"field": MANIFEST_FIELD},
                )
        else:
            # An option that is sent as a field would have no effect.
            raise InvalidRequest(
                f"A form may have the fields {FIELD!r} and {MANIFEST_FIELD!r}, and no others."
            )

    def part_data(self, data: memoryview) -> None:
        if self._item is not None:
            before = len(self._item.data)
            self._item.add(data)
            self.kept += len(self._item.data) - before
            return
        self.manifest += data
        self.kept += len(data)
        if len(self.manifest) > MAX_MANIFEST_BYTES:
            raise BatchTooLarge(f"The manifest is larger than {MAX_MANIFEST_BYTES} bytes.")

    def part_ends(self) -> None:
        if self._item is not None:
            self._complete.append(self._item.finish())
            self._item = None
