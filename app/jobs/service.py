"""Creates, finds, lists and cancels jobs. The routes translate HTTP to these calls."""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request

from app.auth.requires import reserve_email, spend_images
from app.batches.bucket import BatchSize, ObjectPrefix
from app.batches.item import BatchItem
from app.batches.reader import BatchKind, BatchReader
from app.jobs.creation import Created, JobCreator, JobOrder, all_items
from app.jobs.options import JobOptions, options_of, webhook_options, with_manifest
from app.metrics import ApiMetrics
from app.models.catalogue import ModelCatalogue
from app.uploads.limiter import UploadSlot
from core.backends import Backend
from core.clock import Clock
from core.domain.jobs import Job, JobFilter, JobItem, JobKey, JobStatus
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.principals import Principal, Scope
from core.domain.records import Record, RecordKey
from core.errors import Conflict, Forbidden, InvalidRequest, NotFound
from core.outbound.http_client import CHECK_SECONDS, PrivateAddress, PublicResolver
from core.outbound.mail_address import check_address
from core.services import job_completion
from core.settings import Settings

NO_SUCH_JOB = "There is no such job."
PAGE = 200  # items that `all_results` reads at a time


@dataclass(frozen=True, slots=True)
class ItemResult:
    """An item, and the record of its image, if there is one."""

    item: JobItem
    record: Record | None


@dataclass(frozen=True, slots=True)
class JobService:
    """Jobs, each under one model."""

    settings: Settings
    backend: Backend
    models: ModelCatalogue
    metrics: ApiMetrics
    batches: BatchReader
    creator: JobCreator
    resolver: PublicResolver
    clock: Clock

    async def create(
        self,
        request: Request,
        principal: Principal,
        slot: UploadSlot,
        kind: BatchKind | None = None,
    ) -> Created:
        """The job that the request asks for. `kind` is the only kind of body that it may have.

        Raises what `options_of`, `check_address`, `BatchReader` and `JobCreator.create` raise.
        """
        now = self.clock()
        options = options_of(request, now)
        await self._check_receivers(options)
        await self.models.resolve(principal.tenant, options.model)  # before images are stored
        batch = await self.batches.read(request, principal.tenant, slot, kind)
        options = with_manifest(options, batch.manifest, now)
        await self._check_receivers(options)
        items, prefix = all_items(batch), batch.manifest.gs_prefix
        model = await self.models.resolve(principal.tenant, options.model)
        order = JobOrder(principal, model.id, items, options, prefix or "")
        if prefix:
            where = ObjectPrefix.parse(prefix)
            self.batches.check_import(where)
        existing = await self.creator.find_created(order)
        if existing is not None:
            return Created(existing, skipped=batch.skipped)
        if prefix:
            before = BatchSize(len(items), sum(slot.image_sizes))
            imported = await self.batches.fetch(where, before, principal.tenant, slot)
            order = replace(order, imported=imported)
        slot.close()
        await reserve_email(request, options.notify_email)
        await spend_images(request, principal, len(order.all_items))
        return replace(await self.creator.create(order), skipped=batch.skipped)

    async def upload_options(self, request: Request) -> JobOptions | None:
        """The options of the job that an upload with a webhook is as well; None without one.

        Raises InvalidRequest and PrivateAddress.
        """
        options = webhook_options(request)
        if options is not None:
            await self._check_receivers(options)
        return options

    async def create_for_upload(
        self, principal: Principal, image_hash: str, model: str, options: JobOptions
    ) -> Job:
        """A job of one image that is stored, which notifies the webhook in `options`.

        Under an Idempotency-Key, the same upload gets the same job. Raises IdempotencyKeyReused,
        Unavailable.
        """
        order = JobOrder(principal, model, [BatchItem("", image_hash)], options)
        return (await self.creator.create(order)).job

    async def check_upload(
        self, principal: Principal, image_hash: str, model: str, options: JobOptions
    ) -> None:
        """Raise IdempotencyKeyReused if another upload or job has used the key in `options`."""
        order = JobOrder(principal, model, [BatchItem("", image_hash)], options)
        await self.creator.find_created(order)

    async def _check_receivers(self, options: JobOptions) -> None:
        """Raise InvalidRequest or PrivateAddress for an address that may not be notified."""
        if options.notify_email:
            check_address(options.notify_email, self.settings.email_domains)
        if options.webhook:
            try:
                await self.resolver.check(options.webhook, CHECK_SECONDS)
            except (InvalidRequest, PrivateAddress) as error:
                raise type(error)(error.detail, extra={"field": "webhook"}) from None

    async def find(self, principal: Principal, job_id: str) -> Job:
        """Raises NotFound, also if another tenant has the job, and Forbidden if another key has."""
        try:
            key = JobKey(principal.tenant, job_id)
        except ValueError:
            raise _no_such_job() from None
        job = await self.backend.jobs.get(key)
        if job is None or not job.sealed:
            raise _no_such_job()
        if job.owner != principal.key_id and Scope.ADMIN not in principal.scopes:
            raise Forbidden("The job belongs to another key.")
        return job

    async def list(
        self, principal: Principal, status: str, type_: str, limit: int, after: str
    ) -> Sequence[Job]:
        """The jobs of the caller's key, or, for an administrator, of the tenant."""
        owner = None if Scope.ADMIN in principal.scopes else principal.key_id
        filter_ = JobFilter(principal.tenant, status, type_, owner)
        return await self.backend.jobs.list(filter_, limit, after)

    async def cancel(self, principal: Principal, job_id: str) -> Job:
        """The job, cancelled: no more images begin. Raises Conflict if it ended otherwise."""
        job = await self.find(principal, job_id)
        after = await job_completion.cancel(self.backend, job.key, self.settings.jobs)
        if after is None:
            job = await self.find(principal, job_id)
            if job.status is not JobStatus.CANCELLED:
                ended = "has ended" if job.status.terminal else "is storing its model"
                raise Conflict(f"The job {ended}. Its status is {job.status}.")
            return job
        self.metrics.job_cancelled()
        # Cancelling has updated the counts, for the notification.
        return await self.backend.jobs.get(job.key) or after

    async def retry(self, request: Request, principal: Principal, job_id: str) -> Created:
        """A new job for the items of an ended job that did not begin, or that may succeed now.

        It has the model, the priority and the name of that job. The same call again returns the
        same job. Raises Conflict if the job has not ended, or no item may be retried, and
        RateLimited.
        """
        job = await self.find(principal, job_id)
        if not job.status.terminal:
            raise Conflict(f"The job has not ended. Its status is {job.status}.")
        if job.training is not None:
            raise Conflict("A training cannot be retried. Train again: its embeddings are kept.")
        found = await self.backend.jobs.items(job.key, MAX_JOB_ITEMS)
        again = [
            BatchItem(item.name, item.image_hash, item.metadata) for item in found if item.may_retry
        ]
        if not again:
            raise Conflict("No image of the job can be retried: each succeeded, or is at fault.")
        options = JobOptions(priority=job.priority, name=job.name)
        order = JobOrder(principal, job.model, again, options, retry_of=job.key.id)
        existing = await self.creator.find_created(order)
        if existing is not None:
            return Created(existing)
        await spend_images(request, principal, len(again))
        return await self.creator.create(order)

    async def results(self, job: Job, limit: int, after: int = -1) -> Sequence[ItemResult]:
        """At most `limit` items after the position `after`, with their records."""
        items = await self.backend.jobs.items(job.key, limit, after)
        keys = {
            item.image_hash: RecordKey(job.key.tenant, item.image_hash, job.model)
            for item in items
            if item.image_hash
        }
        records = await self.backend.records.get_many(list(keys.values()))
        return [
            ItemResult(item, records.get(keys[item.image_hash]) if item.image_hash else None)
            for item in items
        ]

    async def selected_results(
        self,
        job: Job,
        includes: Callable[[Job, ItemResult], bool] | None,
        limit: int,
        after: int = -1,
    ) -> Sequence[ItemResult]:
        """At most `limit` items after the position `after` for which `includes` is true.

        None includes every item.
        """
        if includes is None:
            return await self.results(job, limit, after)
        found: list[ItemResult] = []
        while page := await self.results(job, max(limit, PAGE), after):
            found += [each for each in page if includes(job, each)]
            if len(found) >= limit or len(page) < max(limit, PAGE):
                break
            after = page[-1].item.position
        return found[:limit]

    async def all_results(self, job: Job) -> AsyncIterator[Sequence[ItemResult]]:
        """Every item in order, in pages."""
        after = -1
        while page := await self.results(job, PAGE, after):
            yield page
            if len(page) < PAGE:
                return
            after = page[-1].item.position


def _no_such_job() -> NotFound:
    return NotFound(NO_SUCH_JOB)
