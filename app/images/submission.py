"""From an uploaded image to a record with a message on its way: the promise behind a 202.

look up -> create `pending` -> put the blob -> publish. The bytes are stored and the message is
published before anybody is told that the image is accepted. Both may be repeated, so whoever finds
a `pending` record repeats them, and a failure or crash in between costs nothing but an upload.
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
from core.errors import GlimpseError, Unavailable
from core.observability.logs import image_context
from core.observability.tracing import span
from core.services.publishing import publish

log = structlog.get_logger(__name__)

ADVANCE_TIMEOUT = 5.0  # seconds
ATTEMPTS = 4  # at an image that others change meanwhile
DEFAULT_POLICY = DeliveryPolicy()


@dataclass(frozen=True, slots=True)
class Candidate:
    """An image that was offered. `content_type` was sniffed."""

    key: RecordKey
    data: bytes | bytearray
    content_type: str


async def submit(
    backend: Backend,
    image: Candidate,
    max_pixels: int,
    clock: Clock = utc_now,
    policy: DeliveryPolicy = DEFAULT_POLICY,
) -> Record:
    """The image's record. Unless it has ended, its bytes are stored and its message is published.

    Raises InvalidImage where a new image's header is refused (and then nothing was stored), and
    Unavailable where a port fails (and then another upload continues where this one stopped).
    """
    for _ in range(ATTEMPTS):
        record, asked_anew = await record_of(backend, image, max_pixels, clock, policy)
        unpublished = asked_anew or record.status is Status.PENDING
        if not unpublished and await stored(backend, record):
            return record
        with span("store image"):
            await backend.blobs.put(image.key.blob_name, image.data, image.content_type)
        message_id = await publish(backend.publisher, ClassifyImage(image.key))
        # Another process may have deleted it under our hands, and with it what the message is for.
        if await backend.records.get(image.key) is not None:
            log.info("accepted", bytes=len(image.data), type=image.content_type, message=message_id)
            return record
    raise _changed_by_others()


async def stored(backend: Backend, record: Record) -> bool:
    """Whether the bytes need not be put again.

    `running` is no proof of them: a message that outlived the image's deletion lets a worker claim
    the record of a new upload before that has stored anything.
    """
    return record.status.terminal or await backend.blobs.exists(record.key.blob_name)


async def record_of(
    backend: Backend,
    image: Candidate,
    max_pixels: int,
    clock: Clock = utc_now,
    policy: DeliveryPolicy = DEFAULT_POLICY,
) -> tuple[Record, bool]:
    """The record as it stands, created or set to try again where that is due.

    And whether whoever asks has to publish a message of its own, although it was asked for before:
    that one was less urgent, or a job's, which can be cancelled.
    """
    for _ in range(ATTEMPTS):
        with span("look up record"):
            record = await backend.records.get(image.key)
        if record is None:
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
            # The reconciler may be about to call its image lost, which we are about to put there.
            await backend.records.change(image.key, records.touch(clock()))
        else:
            return record, False
        # Somebody else created it, or it may try again: what stands there now?
    raise _changed_by_others()


def untouched(record: Record, now: datetime, policy: DeliveryPolicy) -> bool:
    """Whether nobody has moved the record for so long that the reconciler may soon look at it."""
    return (now - record.updated_at).total_seconds() > policy.touch_after


def _changed_by_others() -> Unavailable:
    return Unavailable("The image is being changed by others; try again.")


class Submissions:
    """Submits each image once at a time, however many upload it at once.

    Only a saving: `submit` is right without it. What runs for all who wait belongs to none of
    them, so one client's disconnect cancels nothing for the others. Nobody shares what was done
    before the image was deleted.
    """

    def __init__(
        self,
        backend: Backend,
        max_pixels: int,
        clock: Clock = utc_now,
        policy: DeliveryPolicy = DEFAULT_POLICY,
    ) -> None:
        self._backend = backend
        self._max_pixels = max_pixels
        self._clock = clock
        self._policy = policy
        self._running: dict[RecordKey, asyncio.Task[Record]] = {}
        self._afterwards: set[asyncio.Task[None]] = set()
        # By blob name; held by whoever submits the image or deletes it.
        self._locks = weakref.WeakValueDictionary[str, asyncio.Lock]()

    async def submit(self, image: Candidate) -> Record:
        """As the function `submit`, shared with everyone who offers the same image meanwhile."""
        while (task := self._running.get(image.key)) is not None and task.done():
            # It is over but for the note that it is: another process may have deleted it since, or
            # a worker have failed at it.
            record = await self._backend.records.get(image.key)
            same = record is not None and record.submitted_at == task.result().submitted_at
            if record is not None and same and not record.may_retry:
                return record
            self._end(image.key, task)
        if task is None:
            task = asyncio.create_task(self._submit(image))
            self._running[image.key] = task
            task.add_done_callback(lambda done: self._after(image.key, done))
        return await asyncio.shield(task)

    @asynccontextmanager
    async def deleting(self, blob_name: str) -> AsyncIterator[None]:
        """While it is open, nobody submits the image; what was submitted before is forgotten."""
        async with self._lock(blob_name):
            try:
                yield
            finally:  # where it failed, the bytes may be gone all the same
                # Those that are not done wait for the lock, and begin after this.
                for key, task in list(self._running.items()):
                    if key.blob_name == blob_name and task.done():
                        self._end(key, task)

    async def close(self) -> None:
        """Wait for what is under way."""
        while pending := [*self._running.values(), *self._afterwards]:
            await asyncio.wait(pending)
            await asyncio.sleep(0)  # the callbacks of what has just ended

    async def _submit(self, image: Candidate) -> Record:
        async with self._lock(image.key.blob_name):
            with image_context(image.key):
                return await submit(
                    self._backend, image, self._max_pixels, self._clock, self._policy
                )

    def _lock(self, blob_name: str) -> asyncio.Lock:
        return self._locks.setdefault(blob_name, asyncio.Lock())

    def _after(self, key: RecordKey, done: "asyncio.Task[Record]") -> None:
        if done.cancelled() or done.exception() or done.result().status is not Status.PENDING:
            self._end(key, done)
            return
        # Until the record says `queued`, those who come next take this submission for theirs.
        advance = asyncio.create_task(self._advance(key, done))
        self._afterwards.add(advance)
        advance.add_done_callback(self._afterwards.discard)

    async def _advance(self, key: RecordKey, done: "asyncio.Task[Record]") -> None:
        """Note that the message is out. Losing this is harmless: the worker claims either state."""
        try:
            with span("mark queued"):
                async with asyncio.timeout(ADVANCE_TIMEOUT):
                    await self._backend.records.change(
                        key, records.advance(Status.PENDING, Status.QUEUED)
                    )
        except (GlimpseError, TimeoutError) as error:
            log.warning("record stays pending", image_hash=key.image_hash, reason=str(error))
        finally:
            self._end(key, done)

    def _end(self, key: RecordKey, done: "asyncio.Task[Record]") -> None:
        if self._running.get(key) is done:  # and not forgotten, or followed by another
            del self._running[key]
