"""Creates a job from a batch: what the 202 of a job promises.

The steps are job, items, records, seal, publish. Each can be repeated: a request with the same
Idempotency-Key continues where a crash stopped, and the scheduler deletes a job that is not sealed.
The images are stored before.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import structlog

from app.batches.item import BatchItem
from app.batches.reader import Batch
from app.images.lookup import look_up
from app.images.submission import untouched
from app.jobs.options import JobOptions
from core.backends import Backend
from core.clock import Clock, rfc3339
from core.concurrency import for_each
from core.domain import jobs
from core.domain.jobs import (
    FIT_NAME,
    ItemState,
    Job,
    JobItem,
    JobKey,
    JobWebhook,
    Training,
    check_count,
)
from core.domain.messages import RunJob
from core.domain.policy import MAX_JOB_ITEMS, DeliveryPolicy, JobPolicy
from core.domain.principals import Principal
from core.domain.priority import Priority
from core.domain.records import Record, RecordError, RecordKey, Status, new_record, retry, touch
from core.domain.webhooks import new_secret, secret_text
from core.errors import GlimpseError, IdempotencyKeyReused, InvalidRequest, NotUploaded, Unavailable
from core.services.job_images import request_image
from core.services.publishing import publish

log = structlog.get_logger(__name__)

AT_ONCE = 16  # records that are written concurrently
ATTEMPTS = 4  # attempts to change a record that others change


@dataclass(frozen=True, slots=True)
class JobOrder:
    """The job that a client requests: `items`, and after them `imported` from `gs_prefix`.

    `model` is the id of the model that classifies them. `retry_of` is the id of the job whose items
    it tries again. One retry of a job exists for each caller, so a repeated request finds it.
    """

    principal: Principal
    model: str
    items: Sequence[BatchItem]
    options: JobOptions
    gs_prefix: str = ""
    imported: Sequence[BatchItem] = ()
    retry_of: str = ""

    def __post_init__(self) -> None:
        """Raises InvalidRequest if there are no images, and BatchTooLarge if there are too many."""
        if not self.items and not self.gs_prefix:
            raise InvalidRequest("The batch has no images.")
        check_count(len(self.items) + len(self.imported), MAX_JOB_ITEMS)

    @property
    def all_items(self) -> Sequence[BatchItem]:
        return [*self.items, *self.imported]

    @property
    def total(self) -> int:
        """The number of the job's items."""
        return len(self.all_items)

    @property
    def training(self) -> Training | None:
        """The model that the job trains, if it does."""
        return None

    @property
    def request_fingerprint(self) -> str:
        """Depends on what the client sent, and on nothing that the service knows."""
        options = self.options
        sent: list[object] = [
            _contents(self.items),
            options.priority,
            options.not_before and rfc3339(options.not_before),
            options.notify_email,
            options.cancel_after and options.cancel_after.total_seconds(),
        ]
        if self.gs_prefix:
            sent.append(self.gs_prefix)
        if options.name:  # absent otherwise, as in requests to earlier versions
            sent.append({"name": options.name})
        if options.model:
            sent.append({"model": options.model})
        if options.webhook:
            sent.append(
                {"webhook": options.webhook, "events": sorted(options.webhook_events or ())}
            )
        return _digest(sent)

    @property
    def fingerprint(self) -> str:
        """`request_fingerprint`, then a dot and a digest of the imported objects."""
        if not self.gs_prefix:
            return self.request_fingerprint
        names = [item.name for item in self.imported]
        return f"{self.request_fingerprint}.{_digest([_contents(self.imported), names])}"


@dataclass(frozen=True, slots=True)
class Created:
    """A job, and the images that it was created for by their hashes.

    Each image has the record that it had before. There are none if the job existed already, and
    none for images that are not stored. `skipped` counts the files of the request that are no
    images but lie beside them.
    """

    job: Job
    images: Mapping[str, Record | None] = field(default_factory=dict)
    skipped: int = 0


def all_items(batch: Batch) -> list[BatchItem]:
    """The images that the manifest lists, in its order, then those that only the request has."""
    sent = {item.image_hash: item for item in reversed(batch.items) if item.image_hash}
    listed: list[BatchItem] = []
    for entry in batch.manifest.image_hashes:
        item = sent.get(entry.image_hash, BatchItem())
        listed.append(BatchItem(item.name, entry.image_hash, entry.metadata, item.error))
    hashes = {item.image_hash for item in listed}
    return [*listed, *(item for item in batch.items if item.image_hash not in hashes)]


@dataclass(frozen=True, slots=True)
class JobCreator:
    """Creates the jobs of one process."""

    backend: Backend
    clock: Clock
    policy: JobPolicy
    delivery: DeliveryPolicy

    async def create(self, order: JobOrder) -> Created:
        """The job, sealed: it will run even if this process ends now.

        Raises IdempotencyKeyReused, and Unavailable, after which the same request continues.
        """
        now, options = self.clock(), order.options
        key = JobKey(order.principal.tenant, _job_id(order))
        job = jobs.new_job(
            key,
            order.principal.key_id,
            order.model,
            order.total,
            now,
            priority=options.priority or Priority.NORMAL,
            fingerprint=order.fingerprint,
            not_before=_if_future(options.not_before, now),
            deadline=None if options.cancel_after is None else now + options.cancel_after,
            notify_email=options.notify_email,
            name=options.name,
            retry_of=order.retry_of,
            webhook=_webhook(options),
            training=order.training,
            policy=self.policy,
        )
        if await self.backend.jobs.create(job):
            return await self._complete(job, order)
        existing = await self.backend.jobs.get(key)
        if existing is None:
            raise Unavailable("The job is being deleted. Try again.")
        if (created := _created(existing, order)) is not None:
            return Created(created)
        if existing.status.terminal:
            raise Unavailable("The job is being deleted. Try again.")
        if existing.fingerprint != job.fingerprint:
            # Its items are the objects of that time.
            raise IdempotencyKeyReused(
                "The objects of gs_prefix have changed since this Idempotency-Key began a job. "
                "Use a new key.",
                extra={"job_id": key.id},
            )
        # Another request was interrupted, or is about to seal the job.
        items = await self.backend.jobs.items(key, existing.counts.total)
        return await self._complete(existing, order, items)

    async def find_created(self, order: JobOrder) -> Job | None:
        """The sealed job that the same request under the same Idempotency-Key has created.

        Raises IdempotencyKeyReused if another request has used the key, and Unavailable.
        """
        if not (order.options.idempotency_key or order.retry_of):
            return None
        existing = await self.backend.jobs.get(JobKey(order.principal.tenant, _job_id(order)))
        return None if existing is None else _created(existing, order)

    async def _complete(
        self, job: Job, order: JobOrder, existing: Sequence[JobItem] = ()
    ) -> Created:
        """Add items and records, seal the job, and publish it. `existing` are items it has."""
        records: dict[RecordKey, Record | None] = {}
        if order.training is not None:
            items = _training_items(order)
        else:
            items, records = await self._items(job, order, existing)
        await self.backend.jobs.add_items(job.key, items)
        request = partial(self._request_image, job)
        await for_each(records.items(), lambda found: request(*found), AT_ONCE)
        sealed = await self.backend.jobs.change(job.key, jobs.seal(self.policy))
        if sealed is None:  # another request with the same key has sealed it
            sealed = await self.backend.jobs.get(job.key)
        if sealed is None or not sealed.sealed:
            raise Unavailable("The job took too long to create. Try again.")
        log.info("job accepted", job=job.key.id, images=len(items), priority=job.priority)
        await self._start(sealed, items)
        return Created(sealed, {key.image_hash: record for key, record in records.items()})

    async def _start(self, job: Job, items: Sequence[JobItem]) -> None:
        """If this fails, the scheduler starts the job, because it is sealed."""
        try:
            if job.not_before is None:
                await publish(self.backend.publisher, RunJob(job.key.tenant, job.key.id))
            elif 0 < sum(item.state is ItemState.FAILED for item in items) < len(items):
                # The job may start much later.
                await self.backend.jobs.refresh_counts(job.key)
        except GlimpseError as error:
            log.warning("job starts later", job=job.key.id, reason=error.detail)

    async def _items(
        self, job: Job, order: JobOrder, existing: Sequence[JobItem]
    ) -> tuple[list[JobItem], dict[RecordKey, Record | None]]:
        """The items, and the present record of each image that is to be classified."""
        tenant = job.key.tenant
        keys = {
            item.image_hash: RecordKey(tenant, item.image_hash, job.model)
            for item in order.all_items
            if item.image_hash and item.error is None
        }
        present = await look_up(self.backend, list(keys.values()))
        stored = {item.position: item for item in existing}
        items: list[JobItem] = []
        records: dict[RecordKey, Record | None] = {}
        for position, each in enumerate(order.all_items):
            item = JobItem(position, each.image_hash, each.name, each.metadata)
            key, error = keys.get(each.image_hash), each.error
            if key is not None and not present[key].known:
                error = NotUploaded("The service has no image with this hash. Upload the image.")
            if error is not None:
                failure = RecordError(error.code, error.detail, isinstance(error, NotUploaded))
                item = replace(item, state=ItemState.FAILED, error=failure)
            item = stored.get(position, item)
            if key is not None and error is None and item.state is ItemState.OPEN:
                records[key] = present[key].record
            items.append(item)
        return items, records

    async def _request_image(self, job: Job, key: RecordKey, record: Record | None) -> None:
        """Ensure that the image has a record which the job's message can bring to its end."""
        store = self.backend.records
        for _ in range(ATTEMPTS):
            now = self.clock()
            if record is None:
                done = await store.create(new_record(key, now, job.priority, job.key.id))
            elif job.not_before is not None:
                # The job requests the image when it starts. Until then, it must not make the image
                # more urgent for others: an image that two jobs want belongs to neither of them,
                # and the reconciler has it classified.
                return
            elif record.may_retry:
                again = retry(job.priority, job.key.id)
                done = await store.change(key, again) is not None
            elif not record.serves(job.priority, job.key.id):
                done = await request_image(self.backend, record, job, now)
            elif record.status is Status.PENDING and untouched(record, now, self.delivery):
                # The reconciler may be about to declare the image lost.
                done = await store.change(key, touch(now)) is not None
            else:
                return
            if done:
                return
            record = await store.get(key)  # another process has changed it
        raise Unavailable("Other requests are changing an image of the batch. Try again.")


def _webhook(options: JobOptions) -> JobWebhook | None:
    """The job's own webhook, with a new secret."""
    if not options.webhook:
        return None
    events = frozenset(map(str, options.webhook_events or ()))
    return JobWebhook(options.webhook, events, secret_text(new_secret()))


def _training_items(order: JobOrder) -> list[JobItem]:
    """The items of a training: the images, then the fit. An image may have failed already."""
    items = []
    for position, each in enumerate(order.all_items):
        item = JobItem(position, each.image_hash, each.name, each.metadata)
        if each.error is not None:
            error = RecordError(each.error.code, each.error.detail, False)
            item = replace(item, state=ItemState.FAILED, error=error)
        items.append(item)
    return [*items, JobItem(len(items), "", FIT_NAME)]


def _job_id(order: JobOrder) -> str:
    key = order.options.idempotency_key
    if order.retry_of:
        key = f"retry\n{order.retry_of}"  # no Idempotency-Key has a line break
    if not key:
        return jobs.new_job_id()
    return jobs.job_id_for(order.principal.tenant, order.principal.key_id, key)


def _created(existing: Job, order: JobOrder) -> Job | None:
    """The existing job, or None if it is not sealed. Raises IdempotencyKeyReused, Unavailable."""
    if not (order.retry_of and existing.sealed):  # items of the other job may have ended since
        _check_request(existing, order)
    return existing if existing.sealed else None


def _check_request(existing: Job, order: JobOrder) -> None:
    if existing.fingerprint.partition(".")[0] != order.request_fingerprint:
        if order.retry_of:
            raise Unavailable("The retry is being created. Try again.")
        raise IdempotencyKeyReused(
            "This Idempotency-Key has created another job. Use a new key.",
            extra={"job_id": existing.key.id},
        )


def _contents(items: Iterable[BatchItem]) -> list[object]:
    return [
        [item.image_hash or f"{item.error and item.error.code} {item.name}", item.metadata]
        for item in items
    ]


def _digest(document: object) -> str:
    text = json.dumps(document, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _if_future(moment: datetime | None, now: datetime) -> datetime | None:
    return moment if moment is not None and moment > now else None
