"""Turns an uploaded image into a record and a message: what the 202 of an upload promises.

The steps are look up, create as `pending`, store the blob, publish. The service accepts the image
only after it has stored the bytes and published the message. An upload that finds a `pending`
record repeats both steps, so after a failure or crash the next upload continues.
"""

import asyncio
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime

import structlog

from app.images.header import inspect_header
from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain import records
from core.domain.messages import ClassifyImage
from core.domain.policy import DeliveryPolicy
from core.domain.priority import Priority
from core.domain.records import Record, RecordKey, Status, new_record
from core.errors import GlimpseError, NotFound, Unavailable
from core.imaging.limits import PixelLimits
from core.observability.logs import image_context
from core.observability.tracing import span
from core.services.image_deletion import wait_for_deletion
from core.services.publishing import publish

log = structlog.get_logger(__name__)

ADVANCE_TIMEOUT = 5.0  # seconds
NOT_STORED = "The service has no image with this hash. Upload the image."
ATTEMPTS = 4  # attempts to submit an image whose record others change
DEFAULT_POLICY = DeliveryPolicy()

_Shared = tuple[RecordKey, bool]  # an image, and whether its bytes are submitted


@dataclass(frozen=True, slots=True)
class SubmittedImage:
    """The bytes of an image. `content_type` was detected from them.

    `data` is None if the image is stored already, and was checked then.
    """

    key: RecordKey
    data: bytes | bytearray | None
    content_type: str = ""


async def submit(
    backend: Backend,
    image: SubmittedImage,
    max_pixels: PixelLimits | int,
    clock: Clock = utc_now,
    policy: DeliveryPolicy = DEFAULT_POLICY,
) -> Record:
    """The image's record. Unless it has ended, the bytes are stored and a message is published.

    Raises InvalidImage if the header of a new image is refused, and NotFound if an image without
    `data` is not stored; then nothing changes. Raises Unavailable if a port fails; then another
    upload continues.
    """
    for _ in range(ATTEMPTS):
        token: int | None = None
        if image.data is None:
            token = await wait_for_deletion(backend, image.key.image, clock)
            await _check_known(backend, image.key)
        record, wanted = await ensure_record(backend, image, max_pixels, clock, policy)
        unpublished = wanted or record.status is Status.PENDING
        if not unpublished and await is_stored(backend, record):
            return record
        if token is None:
            token = await wait_for_deletion(backend, image.key.image, clock)
        if image.data is not None:
            with span("store image"):
                await backend.blobs.put(image.key.blob_name, image.data, image.content_type)
        # The reconciler may have read the record of a slow upload before the bytes were stored, and
        # may be about to declare the image lost. If the record cannot be touched, it has done so.
        if untouched(record, clock(), policy) and not await _touch(backend, image.key, clock):
            continue
        message_id = await publish(backend.publisher, ClassifyImage(image.key))
        # Another process may have deleted the image in between, and what this upload has stored.
        stored, deletion = await backend.records.get_with_deletion(image.key)
        if stored is not None and token == (0 if deletion is None else deletion.token):
            log.info(
                "accepted",
                bytes=len(image.data or b""),
                type=image.content_type,
                message=message_id,
            )
            return record
    raise _changed_concurrently()


async def _touch(backend: Backend, key: RecordKey, clock: Clock) -> bool:
    """Keep the reconciler from ending the record for now. Returns whether this was in time."""
    return await backend.records.change(key, records.touch(clock())) is not None


async def _check_known(backend: Backend, key: RecordKey) -> None:
    """Raise NotFound unless the image has a final result, or its bytes are stored."""
    record = await backend.records.get(key)
    final = record is not None and record.status.terminal and not record.may_retry
    if not final and not await backend.blobs.exists(key.blob_name):
        raise NotFound(NOT_STORED)


async def is_stored(backend: Backend, record: Record) -> bool:
    """Whether the bytes need not be stored again.

    `running` does not prove that they are: a message that is older than the image's deletion lets a
    worker claim the record of a new upload before that upload has stored its bytes.
    """
    return record.status.terminal or await backend.blobs.exists(record.key.blob_name)


async def ensure_record(
    backend: Backend,
    image: SubmittedImage,
    max_pixels: PixelLimits | int,
    clock: Clock = utc_now,
    policy: DeliveryPolicy = DEFAULT_POLICY,
) -> tuple[Record, bool]:
    """The image's record: the present one, a new one, or one that begins a new attempt.

    Also returns whether the caller must publish a message although one was published before: the
    earlier one was less urgent, or belonged to a job, which can be cancelled.
    """
    for _ in range(ATTEMPTS):
        with span("look up record"):
            record = await backend.records.get(image.key)
        if record is None:
            if image.data is not None:
                await asyncio.to_thread(inspect_header, image.data, image.content_type, max_pixels)
            record = new_record(image.key, clock())
            with span("create record"):
                created = await backend.records.create(record)
            if created:
                return record, False
        elif record.may_retry:
            await backend.records.change(image.key, records.retry())
        elif not record.serves(Priority.HIGH):
            if await backend.records.change(image.key, records.want(Priority.HIGH)) is not None:
                return record, True
        elif record.status is Status.PENDING and untouched(record, clock(), policy):
            # The reconciler may be about to declare lost the image that this upload stores.
            await _touch(backend, image.key, clock)
        else:
            return record, False
        # Another process has created the record, or this one has changed it. Look again.
    raise _changed_concurrently()


def untouched(record: Record, now: datetime, policy: DeliveryPolicy) -> bool:
    """Whether the record has not changed for so long that the reconciler may soon handle it."""
    return (now - record.updated_at).total_seconds() > policy.touch_after


def _changed_concurrently() -> Unavailable:
    return Unavailable("Other requests are changing the image. Try again.")


class Submissions:
    """Coalesces concurrent submissions of the same image in one process.

    This saves work only: `submit` is correct without it. A submission is a task of its own, so a
    client that disconnects cancels nothing for the others. A submission from before a deletion of
    the image is not shared with uploads after it.
    """

    def __init__(
        self,
        backend: Backend,
        max_pixels: PixelLimits | int,
        clock: Clock = utc_now,
        policy: DeliveryPolicy = DEFAULT_POLICY,
    ) -> None:
        self._backend = backend
        self._max_pixels = max_pixels
        self._clock = clock
        self._policy = policy
        self._shared: dict[_Shared, asyncio.Task[Record]] = {}
        self._advances: set[asyncio.Task[None]] = set()
        # By blob name. Submissions and deletions of an image exclude each other.
        self._locks = weakref.WeakValueDictionary[str, asyncio.Lock]()

    async def submit(self, image: SubmittedImage) -> Record:
        """As the function `submit`. All concurrent callers with the same image share one call.

        Those with the bytes do not share the call of those without them, which may find nothing.
        """
        shared = (image.key, image.data is not None)
        while (task := self._shared.get(shared)) is not None and task.done():
            # Only the advance to `queued` is left. Another process may have deleted the image
            # since, or a worker may have failed.
            record = await self._backend.records.get(image.key)
            same = record is not None and record.submitted_at == task.result().submitted_at
            if record is not None and same and not record.may_retry:
                return record
            self._forget(shared, task)
        if task is None:
            task = asyncio.create_task(self._submit(image))
            self._shared[shared] = task
            task.add_done_callback(lambda done: self._submitted(shared, done))
        return await asyncio.shield(task)

    @property
    def in_flight(self) -> int:
        """The number of images that are being submitted."""
        return len(self._shared)

    @asynccontextmanager
    async def deleting(self, blob_name: str) -> AsyncIterator[None]:
        """Excludes submissions of the image, and forgets those that are complete."""
        async with self._lock(blob_name):
            try:
                yield
            finally:  # a failed deletion may have deleted the bytes
                # A submission that is not complete waits for the lock, and runs after this.
                for shared, task in list(self._shared.items()):
                    if shared[0].blob_name == blob_name and task.done():
                        self._forget(shared, task)

    async def close(self) -> None:
        """Wait for all submissions."""
        while pending := [*self._shared.values(), *self._advances]:
            await asyncio.wait(pending)
            await asyncio.sleep(0)  # let their callbacks run

    async def _submit(self, image: SubmittedImage) -> Record:
        async with self._lock(image.key.blob_name):
            with image_context(image.key):
                return await submit(
                    self._backend, image, self._max_pixels, self._clock, self._policy
                )

    def _lock(self, blob_name: str) -> asyncio.Lock:
        return self._locks.setdefault(blob_name, asyncio.Lock())

    def _submitted(self, shared: _Shared, done: "asyncio.Task[Record]") -> None:
        if done.cancelled() or done.exception() or done.result().status is not Status.PENDING:
            self._forget(shared, done)
            return
        # Until the record is `queued`, later uploads share this submission.
        advance = asyncio.create_task(self._advance(shared, done))
        self._advances.add(advance)
        advance.add_done_callback(self._advances.discard)

    async def _advance(self, shared: _Shared, done: "asyncio.Task[Record]") -> None:
        """Mark the record `queued`. A failure is harmless: workers claim `pending` records too."""
        key, _ = shared
        try:
            with span("mark queued"):
                async with asyncio.timeout(ADVANCE_TIMEOUT):
                    await self._backend.records.change(
                        key, records.advance(Status.PENDING, Status.QUEUED)
                    )
        except (GlimpseError, TimeoutError) as error:
            log.warning("record stays pending", image_hash=key.image_hash, reason=str(error))
        finally:
            self._forget(shared, done)

    def _forget(self, shared: _Shared, done: "asyncio.Task[Record]") -> None:
        if self._shared.get(shared) is done:  # not another submission that has begun since
            del self._shared[shared]
