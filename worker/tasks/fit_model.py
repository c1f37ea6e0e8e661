"""Fit the model of a training job, whose images are embedded, and add it as a version.

The steps are fit, store head and report, decide, add the version, complete the item. The decision
is a transition of the job: before it the job can be cancelled or fail, and nothing refers to what
is stored; after it every delivery continues with the version that was decided. So the model
appears once or not at all, whenever a process ends.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass

import structlog

from core.clock import Clock
from core.concurrency import for_each
from core.domain import jobs, trained_models
from core.domain.jobs import ItemState, Job, JobItem, JobKey, JobStatus
from core.domain.messages import EmbedImage, FitModel
from core.domain.records import (
    RecordError,
    RecordKey,
    embedding_name,
    head_name,
    report_name,
)
from core.domain.trained_models import ModelKey, ModelVersion, new_model
from core.domain.training_report import TrainingReport, report_of_bytes
from core.errors import NotFound, Unavailable
from core.services.job_completion import fail
from worker.context import WorkerContext
from worker.inference.head_file import MEDIA_TYPE, identity_of_head
from worker.tasks.embed_image import ensure_embedding
from worker.tasks.job_items import complete_item
from worker.training.wire import header_of, image_of, result_of

log = structlog.get_logger(__name__)

PAGE_SIZE = 500  # items
AT_ONCE = 16  # embeddings that are read concurrently
CHUNK = 64  # embeddings in memory
FEWEST = 2  # images of a label, so that one can be left out
REPLY_SECONDS = 5.0  # the answer is sent this long before the ack deadline, while the fit goes on


class _TooFewImages(Exception):
    """Images were deleted while the fit read their embeddings."""

    def __init__(self, error: RecordError) -> None:
        self.error = error


@dataclass(frozen=True, slots=True)
class Example:
    """An embedded image of a training job."""

    image_hash: str
    label: str


async def fit_model(message: FitModel, ctx: WorkerContext) -> None:
    """Fit the model of the job and complete the job. Return means: acknowledge.

    Does nothing if the job is over, or if images are not embedded yet. All deliveries of one job in
    this process share one fit. Raises Unavailable while it goes on after the ack deadline.
    """
    key = JobKey(message.tenant, message.job)
    task = ctx.fits.get(key)
    if task is None:
        task = ctx.fits[key] = asyncio.create_task(_fit_job(key, ctx))
        task.add_done_callback(lambda done: _forget(done, key, ctx))
    seconds = max(1.0, ctx.settings.delivery.ack_deadline - REPLY_SECONDS)
    done, _ = await asyncio.wait((task,), timeout=seconds)
    if not done:
        raise Unavailable("The model is still being fitted.")
    await task


def _forget(done: asyncio.Task[None], key: JobKey, ctx: WorkerContext) -> None:
    ctx.fits.pop(key, None)
    if not done.cancelled():
        done.exception()  # retrieved, so that asyncio does not log it if no delivery waits


async def _fit_job(key: JobKey, ctx: WorkerContext) -> None:
    job = await ctx.backend.jobs.get(key)
    if job is None or job.training is None or job.over(ctx.clock()):
        return
    if job.status is not JobStatus.RUNNING:
        return
    if not job.decided:
        items = await _items(job, ctx)
        if any(item.state is ItemState.OPEN for item in items):
            log.info("fit postponed", job=key.id)
            return  # the last embedding publishes it again
        decided = await _fit_and_decide(job, items, ctx)
        if decided is None:
            return
        job = decided
    await _add_version(job, ctx)
    await complete_item(key, job.fit_position, None, ctx)


async def _items(job: Job, ctx: WorkerContext) -> list[JobItem]:
    """The items of the images, in order."""
    items: list[JobItem] = []
    while True:
        after = items[-1].position if items else -1
        page = await ctx.backend.jobs.items(job.key, PAGE_SIZE, after)
        items += page
        if len(page) < PAGE_SIZE:
            return [item for item in items if item.position != job.fit_position]


async def _fit_and_decide(job: Job, items: Sequence[JobItem], ctx: WorkerContext) -> Job | None:
    """Fit a head and decide on it. Returns the job, or None if it is over."""
    assert job.training is not None
    examples = [
        Example(item.image_hash, str(item.metadata["label"]))
        for item in items
        if item.state is ItemState.SUCCEEDED
    ]
    labels = sorted({str(item.metadata["label"]) for item in items})
    error = await _refusal(job, labels, examples, ctx)
    if error is not None:
        await _fail(job, error, ctx)
        return None
    fitted = _Fitting(job, labels, examples, ctx)
    try:
        output = await ctx.fit(fitted.chunks())
    except _TooFewImages as few:
        await _fail(job, few.error, ctx)
        return None
    head, report = result_of(output)
    model = identity_of_head(job.training.name, head)
    blobs, tenant = ctx.backend.blobs, job.key.tenant
    await blobs.put(head_name(tenant, model), head, MEDIA_TYPE)
    await blobs.put(report_name(tenant, model), report, "application/json")
    accuracy = report_of_bytes(report).accuracy
    decided = await ctx.backend.jobs.change(job.key, jobs.decide_model(model, accuracy))
    if decided is not None:
        log.info("model fitted", job=job.key.id, model=model, accuracy=round(accuracy, 4))
        return decided
    now = await ctx.backend.jobs.get(job.key)
    if now is None or now.training is None or now.training.model != model:
        await _discard(tenant, model, ctx)
    return now if now is not None and now.decided else None


class _Fitting:
    """What a fit reads: the embeddings of the examples, a few at a time.

    An image that was deleted since it was embedded is left out.
    """

    def __init__(
        self, job: Job, labels: Sequence[str], examples: Sequence[Example], ctx: WorkerContext
    ) -> None:
        self._job = job
        self._labels = list(labels)
        self._examples = examples
        self._ctx = ctx
        self._used: Counter[str] = Counter()

    async def chunks(self) -> AsyncIterator[bytes]:
        """Raises _TooFewImages if the images that are left are too few, and Unavailable."""
        number = {label: index for index, label in enumerate(self._labels)}
        yield header_of(self._job.model, self._labels, len(self._examples))
        for begin in range(0, len(self._examples), CHUNK):
            chunk = self._examples[begin : begin + CHUNK]
            found = await for_each(chunk, self._embedding, AT_ONCE)
            for example, embedding in zip(chunk, found, strict=True):
                if embedding is not None:
                    self._used[example.label] += 1
                    yield image_of(example.image_hash, number[example.label], embedding)
        error = _too_few(self._labels, self._used)
        if error is not None:
            raise _TooFewImages(error)

    async def _embedding(self, example: Example) -> bytes | None:
        tenant, base, ctx = self._job.key.tenant, self._job.model, self._ctx
        name = embedding_name(tenant, base, example.image_hash)
        for _ in range(2):
            try:
                return await ctx.backend.blobs.get(name)
            except NotFound:
                key = RecordKey(tenant, example.image_hash, base)
                message = EmbedImage(key, self._job.key.id, 0, self._job.priority)
                if await ensure_embedding(key, message, ctx) is not None:
                    return None
        return None


async def _refusal(
    job: Job, labels: Sequence[str], examples: Sequence[Example], ctx: WorkerContext
) -> RecordError | None:
    """Why the job cannot have a model, if it cannot."""
    assert job.training is not None
    model = await ctx.backend.models.get(ModelKey(job.key.tenant, job.training.name))
    if model is not None and model.full:
        detail = f"The model has {trained_models.MAX_VERSIONS} versions. Delete one of them."
        return RecordError("too_many_versions", detail, True)
    return _too_few(labels, Counter(each.label for each in examples))


def _too_few(labels: Sequence[str], counts: Counter[str]) -> RecordError | None:
    few = [f"{label!r} has {counts[label]}" for label in labels if counts[label] < FEWEST]
    if not few:
        return None
    detail = f"A label needs at least {FEWEST} images that can be read: {', '.join(few[:10])}."
    return RecordError("too_few_images", detail, False)


async def _fail(job: Job, error: RecordError, ctx: WorkerContext) -> None:
    failed = await fail(ctx.backend, job.key, ctx.job_policy, error)
    if failed is not None:
        ctx.metrics.job_ended(failed.status)


async def _discard(tenant: str, model: str, ctx: WorkerContext) -> None:
    """Delete what was stored for a version, unless an earlier training made the same version."""
    known = await ctx.backend.models.get(ModelKey(tenant, trained_models.name_of(model)))
    if known is None or known.version(model) is None:
        await ctx.backend.blobs.delete(head_name(tenant, model))
        await ctx.backend.blobs.delete(report_name(tenant, model))


async def _add_version(job: Job, ctx: WorkerContext) -> None:
    """Add the version that the job has decided on. Repeating it changes nothing."""
    assert job.training is not None
    store, training = ctx.backend.models, job.training
    key = ModelKey(job.key.tenant, training.name)
    data = await ctx.backend.blobs.get(report_name(key.tenant, training.model))
    version = _version(job, report_of_bytes(data), ctx.clock)
    if await store.get(key) is None:
        await store.create(new_model(key, ctx.clock()))
    add = trained_models.add_version(version, activate=training.activate)
    if await store.change(key, add) is not None:
        log.info("version added", model=version.id, job=job.key.id, tenant=key.tenant)


def _version(job: Job, report: TrainingReport, clock: Clock) -> ModelVersion:
    assert job.training is not None
    return ModelVersion(
        id=job.training.model,
        job=job.key.id,
        base=job.model,
        created_at=clock(),
        images=report.images,
        labels=len(report.labels),
        accuracy=report.accuracy,
        accuracy_interval=report.accuracy_interval,
        macro_f1=report.macro_f1,
    )
