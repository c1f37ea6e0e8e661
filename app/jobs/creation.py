"""From a batch to a job: the promise behind its 202.

job -> items -> records -> seal -> publish. Everything may be repeated: whoever creates a job under
the same Idempotency-Key goes on where a crash has stopped, and a job that was never sealed is
deleted by the scheduler. Its images are stored before.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial

import structlog

from app.batches.limits import BatchImage
from app.batches.reader import Batch
from app.images.lookup import look_up
from app.images.submission import untouched
from app.jobs.options import JobOptions
from core.backends import Backend
from core.clock import Clock, rfc3339, utc_now
from core.concurrency import for_each
from core.domain import jobs
from core.domain.jobs import ItemState, Job, JobItem, JobKey, check_count
from core.domain.messages import RunJob
from core.domain.policy import MAX_JOB_ITEMS, DeliveryPolicy, JobPolicy
from core.domain.principals import Principal
from core.domain.priority import Priority
from core.domain.records import Record, RecordError, RecordKey, Status, new_record, retry, touch
from core.errors import GlimpseError, IdempotencyKeyReused, InvalidRequest, NotUploaded, Unavailable
from core.services.job_images import ask_for
from core.services.publishing import publish

log = structlog.get_logger(__name__)

AT_ONCE = 16  # records that are written at once
DEFAULT_DELIVERY = DeliveryPolicy()


@dataclass(frozen=True, slots=True)
class Wanted:
    """An image that a job shall have, or why it has none."""

    image_hash: str
    name: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    error: GlimpseError | None = None


@dataclass(frozen=True, slots=True)
class JobOrder:
    """What a client asks for: `images`, and after them what was `fetched` from `gs_prefix`."""

    principal: Principal
    model: str
    images: Sequence[Wanted]
    options: JobOptions
    gs_prefix: str = ""
    fetched: Sequence[Wanted] = ()

    def __post_init__(self) -> None:
        """Raises InvalidRequest where there are no images, BatchTooLarge where too many."""
        if not self.images and not self.gs_prefix:
            raise InvalidRequest("The batch has no images.")
        check_count(len(self.images) + len(self.fetched), MAX_JOB_ITEMS)

    @property
    def all_images(self) -> Sequence[Wanted]:
        return [*self.images, *self.fetched]

    @property
    def said(self) -> str:
        """Of what the client has said; nothing that we know ourselves, so that it never changes."""
        options = self.options
        said: list[object] = [
            _contents(self.images),
            options.priority,
            options.not_before and rfc3339(options.not_before),
            options.notify_email,
            options.cancel_after and options.cancel_after.total_seconds(),
        ]
        if self.gs_prefix:
            said.append(self.gs_prefix)
        return _digest(said)

    @property
    def fingerprint(self) -> str:
        """`said`, and behind a dot what was fetched, which is the bucket's and may change."""
        if not self.gs_prefix:
            return self.said
        names = [each.name for each in self.fetched]
        return f"{self.said}.{_digest([_contents(self.fetched), names])}"


@dataclass(frozen=True, slots=True)
class Created:
    """A job, and by their hashes the images that it was created for, with the record of each.

    As that was before. No images where the job was there already, and none that are not stored.
    """

    job: Job
    images: Mapping[str, Record | None] = field(default_factory=dict)


def wanted_images(batch: Batch) -> list[Wanted]:
    """What the manifest lists, in its order, then what came with the request and is not listed."""
    came = {image.image_hash: image for image in reversed(batch.images) if image.image_hash}
    listed: list[Wanted] = []
    for entry in batch.manifest.image_hashes:
        image = came.get(entry.image_hash)
        name, error = ("", None) if image is None else (image.name, image.error)
        listed.append(Wanted(entry.image_hash, name, entry.metadata, error))
    hashes = {each.image_hash for each in listed}
    others = (each for each in batch.images if each.image_hash not in hashes)
    return [*listed, *as_wanted(others)]


def as_wanted(images: Iterable[BatchImage]) -> list[Wanted]:
    return [Wanted(each.image_hash, each.name, error=each.error) for each in images]


class JobCreation:
    """Creates the jobs of one process."""

    def __init__(
        self,
        backend: Backend,
        clock: Clock = utc_now,
        policy: JobPolicy = jobs.POLICY,
        delivery: DeliveryPolicy = DEFAULT_DELIVERY,
    ) -> None:
        self._backend = backend
        self._clock = clock
        self._policy = policy
        self._delivery = delivery

    async def create(self, order: JobOrder) -> Created:
        """The job, sealed: it will run, whatever becomes of this process.

        Raises IdempotencyKeyReused, and Unavailable, after which the same request goes on.
        """
        now, options = self._clock(), order.options
        key = JobKey(order.principal.tenant, _job_id(order))
        job = jobs.new_job(
            key,
            order.principal.key_id,
            order.model,
            len(order.all_images),
            now,
            priority=options.priority or Priority.NORMAL,
            fingerprint=order.fingerprint,
            not_before=_ahead(options.not_before, now),
            deadline=None if options.cancel_after is None else now + options.cancel_after,
            notify_email=options.notify_email,
            policy=self._policy,
        )
        if not await self._backend.jobs.create(job):
            there = await self._backend.jobs.get(key)
            if there is None:
                raise Unavailable("The job is being deleted; try again.")
            _check_said(there, order)
            if there.sealed:
                return Created(there)
            if there.status.terminal:
                raise Unavailable("The job is being deleted; try again.")
            if there.fingerprint != job.fingerprint:
                # Its items are of what was there then.
                raise IdempotencyKeyReused(
                    "What gs_prefix names has changed since this Idempotency-Key began a job; "
                    "use a new one.",
                    extra={"job_id": key.id},
                )
            job = there  # somebody has not finished that, or is just about it
            before = await self._backend.jobs.items(key, MAX_JOB_ITEMS)
            return await self._fill(job, order, before)
        return await self._fill(job, order)

    async def created_before(self, order: JobOrder) -> Job | None:
        """The job, sealed, that the same words under the same Idempotency-Key have created.

        Raises IdempotencyKeyReused where other words have.
        """
        if not order.options.idempotency_key:
            return None
        there = await self._backend.jobs.get(JobKey(order.principal.tenant, _job_id(order)))
        if there is None:
            return None
        _check_said(there, order)
        return there if there.sealed else None

    async def _fill(self, job: Job, order: JobOrder, before: Sequence[JobItem] = ()) -> Created:
        """`before` are the items that are there already."""
        items, records = await self._items(job, order, before)
        await self._backend.jobs.add_items(job.key, items)
        adopt = partial(self._adopt, job)
        await for_each(records.items(), lambda found: adopt(*found), AT_ONCE)
        sealed = await self._backend.jobs.change(
            job.key, lambda job, now: jobs.sealed(job, now, self._policy)
        )
        if sealed is None:  # by another request with the same key
            sealed = await self._backend.jobs.get(job.key)
        if sealed is None or not sealed.sealed:
            raise Unavailable("The job took too long to create; try again.")
        log.info("job accepted", job=job.key.id, images=len(items), priority=job.priority)
        await self._begin(sealed, items)
        return Created(sealed, {key.image_hash: record for key, record in records.items()})

    async def _begin(self, job: Job, items: Sequence[JobItem]) -> None:
        """The scheduler does it where we fail to: the job is sealed."""
        try:
            if job.not_before is None:
                await publish(self._backend.publisher, RunJob(job.key.tenant, job.key.id))
            elif 0 < sum(item.state is ItemState.FAILED for item in items) < len(items):
                await self._backend.jobs.refresh(job.key)  # it may be long before anybody counts
        except GlimpseError as error:
            log.warning("job starts later", job=job.key.id, reason=error.detail)

    async def _items(
        self, job: Job, order: JobOrder, before: Sequence[JobItem]
    ) -> tuple[list[JobItem], dict[RecordKey, Record | None]]:
        """The items, and the record, if there is one, of each image that is to be worked on."""
        tenant = job.key.tenant
        keys = {
            each.image_hash: RecordKey(tenant, each.image_hash, job.model)
            for each in order.all_images
            if each.image_hash and each.error is None
        }
        present = await look_up(self._backend, list(keys.values()))
        # What was missing at first stays so, or a twin would wait for an item that has failed.
        missing = {each.image_hash for each in before if each.state is ItemState.FAILED}
        items: list[JobItem] = []
        first: dict[str, int] = {}
        records: dict[RecordKey, Record | None] = {}
        for position, each in enumerate(order.all_images):
            item = JobItem(position, each.image_hash, each.name, each.metadata)
            key, error = keys.get(each.image_hash), each.error
            if key is not None and (each.image_hash in missing or not present[key].known):
                error = NotUploaded("The service has no image with this hash: upload it.")
            if error is not None:
                failure = RecordError(error.code, error.detail, isinstance(error, NotUploaded))
                item = replace(item, state=ItemState.FAILED, error=failure)
            elif each.image_hash in first:
                primary = first[each.image_hash]
                item = replace(item, twin_of=primary)
                items[primary] = replace(items[primary], twins=(*items[primary].twins, position))
            else:
                assert key is not None
                first[each.image_hash] = position
                records[key] = present[key].record
            items.append(item)
        return items, records

    async def _adopt(self, job: Job, key: RecordKey, record: Record | None) -> None:
        """See that there is a record which the job's message can bring to its end."""
        store = self._backend.records
        for _ in range(4):
            now = self._clock()
            if record is None:
                done = await store.create(new_record(key, now, job.priority, job.key.id))
            elif job.not_before is not None:
                # It asks when it begins. Whoever else waits must not seem to be in a hurry: what
                # two jobs want is everybody's, and the reconciler has it classified.
                return
            elif record.may_retry:
                again = retry(job.priority, job.key.id)
                done = await store.change(key, again) is not None
            elif not record.serves(job.priority, job.key.id):
                done = await ask_for(self._backend, record, job, now)
            elif record.status is Status.PENDING and untouched(record, now, self._delivery):
                # The reconciler may be about to call its image lost.
                done = await store.change(key, touch(now)) is not None
            else:
                return
            if done:
                return
            record = await store.get(key)  # somebody was faster
        raise Unavailable("An image is being changed by others; try again.")


def _job_id(order: JobOrder) -> str:
    key = order.options.idempotency_key
    if not key:
        return jobs.new_job_id()
    return jobs.job_id_for(order.principal.tenant, order.principal.key_id, key)


def _check_said(there: Job, order: JobOrder) -> None:
    if there.fingerprint.partition(".")[0] != order.said:
        raise IdempotencyKeyReused(
            "This Idempotency-Key has created another job; use a new one.",
            extra={"job_id": there.key.id},
        )


def _contents(images: Iterable[Wanted]) -> list[object]:
    return [
        [each.image_hash or f"{each.error and each.error.code} {each.name}", each.metadata]
        for each in images
    ]


def _digest(things: object) -> str:
    text = json.dumps(things, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def _ahead(moment: datetime | None, now: datetime) -> datetime | None:
    return moment if moment is not None and moment > now else None
