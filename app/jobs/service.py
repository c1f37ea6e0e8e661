"""What one API process does about jobs; the routes only translate HTTP to this and back."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request

from app.batches.bucket import ObjectPrefix, Taken
from app.batches.reader import Batches
from app.jobs.creation import Created, JobCreation, JobOrder, as_wanted, wanted_images
from app.jobs.options import JobOptions, options_of, with_manifest
from app.metrics import ApiMetrics
from app.uploads.limiter import UploadSlot
from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain.jobs import Job, JobFilter, JobItem, JobKey, JobStatus
from core.domain.principals import Principal, Scope
from core.domain.records import Record, RecordKey
from core.errors import Conflict, Forbidden, NotFound
from core.outbound.mail_address import check_address
from core.services import job_completion
from core.settings import Settings

NO_SUCH_JOB = "There is no such job."
PAGE = 200  # items that are read at once where all of them are


@dataclass(frozen=True, slots=True)
class ItemResult:
    """An item, and its image's record as far as there is one."""

    item: JobItem
    record: Record | None


class JobService:
    """Create, find, read and cancel jobs under one model."""

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        model: str,
        metrics: ApiMetrics,
        clock: Clock = utc_now,
    ) -> None:
        self._email_domains = settings.email_domains
        self._backend = backend
        self._model = model
        self._metrics = metrics
        self._clock = clock
        self._policy = settings.jobs
        self._batches = Batches(settings, backend)
        self._creation = JobCreation(backend, clock, settings.jobs, settings.delivery)

    async def create(
        self,
        request: Request,
        principal: Principal,
        slot: UploadSlot,
        count: Callable[[int], None],
    ) -> Created:
        """The job that the request asks for. `count` is called with the size of each image.

        Raises what `options_of`, `check_address`, `Batches` and `JobCreation.create` do.
        """
        now = self._clock()
        asked = options_of(request, now)
        self._check_email(asked)
        batch = await self._batches.read(request, principal.tenant, slot, count)
        options = with_manifest(asked, batch.manifest, now)
        self._check_email(options)
        images, prefix = wanted_images(batch), batch.manifest.gs_prefix
        order = JobOrder(principal, self._model, images, options, prefix or "")
        if prefix:
            where = ObjectPrefix.parse(prefix)
            self._batches.check_import(where)
            there = await self._creation.created_before(order)
            if there is not None:
                return Created(there)
            before = Taken(len(images), batch.bytes_)
            fetched = await self._batches.fetch(where, before, principal.tenant, slot, count)
            order = replace(order, fetched=as_wanted(fetched))
        slot.release()
        return await self._creation.create(order)

    def _check_email(self, options: JobOptions) -> None:
        if options.notify_email:
            check_address(options.notify_email, self._email_domains)

    async def find(self, principal: Principal, job_id: str) -> Job:
        """Raises NotFound, also for another tenant's, and Forbidden for another key's."""
        try:
            key = JobKey(principal.tenant, job_id)
        except ValueError:
            raise _no_such_job() from None
        job = await self._backend.jobs.get(key)
        if job is None or not job.sealed:
            raise _no_such_job()
        if job.owner != principal.key_id and Scope.ADMIN not in principal.scopes:
            raise Forbidden("The job belongs to another key.")
        return job

    async def list(
        self, principal: Principal, status: str, type_: str, limit: int, after: str
    ) -> Sequence[Job]:
        """Those of the caller's key, or for an administrator those of the tenant."""
        owner = None if Scope.ADMIN in principal.scopes else principal.key_id
        wanted = JobFilter(principal.tenant, status, type_, owner)
        return await self._backend.jobs.list(wanted, limit, after)

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        """The job, cancelled; nothing of it begins any more. Raises Conflict where it has ended."""
        job = await self.find(principal, job_id)
        after = await job_completion.cancel(self._backend, job.key, self._policy)
        if after is None:
            job = await self.find(principal, job_id)
            if job.status is not JobStatus.CANCELLED:
                raise Conflict(f"The job has ended: it is {job.status}.")
            return job
        self._metrics.job_cancelled()
        # With what was counted for the announcement.
        return await self._backend.jobs.get(job.key) or after

    async def results(self, job: Job, limit: int, after: int = -1) -> Sequence[ItemResult]:
        """At most `limit` items behind the position `after`, with their records."""
        items = await self._backend.jobs.items(job.key, limit, after)
        keys = {
            item.image_hash: RecordKey(job.key.tenant, item.image_hash, job.model)
            for item in items
            if item.image_hash
        }
        records = await self._backend.records.get_many(list(keys.values()))
        return [
            ItemResult(item, records.get(keys[item.image_hash]) if item.image_hash else None)
            for item in items
        ]

    async def all_results(self, job: Job) -> AsyncIterator[Sequence[ItemResult]]:
        """Every item in order, a page at a time."""
        after = -1
        while page := await self.results(job, PAGE, after):
            yield page
            if len(page) < PAGE:
                return
            after = page[-1].item.position


def _no_such_job() -> NotFound:
    return NotFound(NO_SUCH_JOB)
