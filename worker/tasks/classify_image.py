"""Classify one image: claim its record, read its bytes, run the model, store the result.

The lease and the fencing token of the claim make duplicate and late deliveries harmless: one
delivery works at a time, and only the current claim can finish the record. The worker checks
whether the job is over between the claim and the work, so that no work starts after a cancellation
was confirmed. A message of a job is acknowledged after its item is complete. Until then the queue
delivers it again, and the worker finds only the item left to complete.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from functools import partial
from pathlib import Path
from typing import TypeVar

import structlog

from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage
from core.domain.records import (
    GAVE_UP,
    UPLOAD_LOST,
    Claim,
    Classification,
    Record,
    RecordError,
    RecordKey,
    complete,
    fail,
    retry,
)
from core.errors import InvalidImage, ModelUnavailable, NotFound, Unavailable
from core.observability.tracing import add_past_span, span
from core.ports import RecordStore
from core.services.job_images import CANCELLED, is_over
from worker.context import WorkerContext
from worker.errors import ClassifierLost, InferenceFailed, PredictionFailed
from worker.inference.pool import RemoteClassifier
from worker.inference.protocol import READ
from worker.inference.steps import Step
from worker.inference.trained_models import TrainedClassifier
from worker.metrics import DELETED_IMAGE, DUPLICATE, LEASE_LOST, SUCCESS
from worker.tasks.embeddings import embedding_of
from worker.tasks.image_reader import reading
from worker.tasks.job_items import complete_item
from worker.tasks.make_thumbnail import keep_thumbnail

log = structlog.get_logger(__name__)

T = TypeVar("T")

MIN_POLL_SECONDS, MAX_POLL_SECONDS = 0.02, 0.25  # between reads of a record of another worker
# After an image has stopped this many classifier processes, its record ends as `error`.
MAX_LOST_CLASSIFIERS = 3
# After this many claims that the image itself may have ended, its record ends as `error`. Refused
# deliveries do not end it: a store or a full worker may be the reason for them.
MAX_CLAIMS = 10
DUPLICATE_WAIT_SECONDS = 5.0  # that a duplicate delivery waits for the result of the first
MISSING = RecordError(
    "image_missing", "The stored image is missing or damaged: upload it again.", True
)
DELETED = RecordError("image_missing", "The image was deleted: upload it again.", True)


async def classify_image(message: ClassifyImage, ctx: WorkerContext) -> None:
    """Bring the message's record to a terminal status. Return means: acknowledge the message.

    Errors of the image end the record as `error`. The message's item of a job ends as the record
    did, or stays open if its job is over. A message of a deleted image is acknowledged: a later
    upload publishes its own. Raises NotFound if there is no record, no deletion and no job.
    Unavailable, ModelUnavailable and InferenceFailed ask for another delivery, for which the record
    is free.
    """
    if not message.job:
        try:
            await _finish_record(message, ctx)
        except NotFound:
            if not await _is_deleted(message.key, ctx):
                raise
        return
    job = JobKey(message.tenant, message.job)
    try:
        error = await _finish_record(message, ctx)
        while error is not None and error.code == CANCELLED.code:
            if await is_over(ctx.backend.jobs, job, ctx.clock()):
                return
            # The end of another job cancelled the record, and this job still needs the image.
            await ctx.backend.records.change(message.key, retry(message.priority, message.job))
            error = await _finish_record(message, ctx)
    except NotFound:
        error = DELETED
        log.info("image of a job was deleted")
    with span("complete item"):
        await complete_item(job, message.position, error, ctx)


async def _is_deleted(key: RecordKey, ctx: WorkerContext) -> bool:
    """Whether the image was deleted lately, so that no worker will find what its message names."""
    if await ctx.backend.records.deletion(key.image) is None:
        return False
    ctx.metrics.classification_ended(DELETED_IMAGE)
    log.info("message of a deleted image acknowledged")
    return True


async def _finish_record(message: ClassifyImage, ctx: WorkerContext) -> RecordError | None:
    """Classify the image unless its record is terminal; its error, or None for success."""
    key, began = message.key, time.perf_counter()
    records = ctx.backend.records
    try:
        # Before the claim: a worker without the model must not block one that has it.
        classifier = await _classifier(key, ctx)
    except ModelUnavailable:
        record = await _get_record(key, records)
        if record.status.terminal:
            ctx.metrics.classification_ended(DUPLICATE)
            return record.error
        raise
    trained = isinstance(classifier, TrainedClassifier)
    deadline: float | None = None
    while True:
        async with (
            ctx.slots.slot(message.priority),
            reading(key, ctx.backend.blobs, lazy=trained) as image,
            ctx.claims.claim(records, key, ctx.settings.lease) as claim,
        ):
            if claim is not None:
                return await _classify_claimed(claim, image, classifier, ctx, began)
        deadline = deadline or time.monotonic() + DUPLICATE_WAIT_SECONDS
        finished = await _wait_for_other_worker(message, ctx, deadline)
        if finished is not None:
            ctx.metrics.classification_ended(DUPLICATE)
            return finished.error


async def _classifier(key: RecordKey, ctx: WorkerContext) -> RemoteClassifier | TrainedClassifier:
    """The model of the service, or of the tenant. Raises ModelUnavailable."""
    if key.model in ctx.models.identities:
        return await ctx.models.classifier(key.model)
    trained = await ctx.trained.find(key.tenant, key.model)
    if trained is None:
        return await ctx.models.classifier(key.model)  # which raises ModelUnavailable
    base = await ctx.models.classifier(trained.base)
    base_key = RecordKey(key.tenant, key.image_hash, trained.base)
    return TrainedClassifier(trained, base, partial(embedding_of, base_key, base, ctx))


async def _classify_claimed(
    claim: Claim,
    image: Awaitable[bytes | Path],
    classifier: RemoteClassifier | TrainedClassifier,
    ctx: WorkerContext,
    began: float,
) -> RecordError | None:
    """Classify and store the result; the record's error, or None for success.

    `began` is when the message arrived, in `time.perf_counter` seconds.
    """
    records = ctx.backend.records
    if claim.job and await _fail_if_cancelled(claim, ctx):
        ctx.metrics.classification_ended(CANCELLED.code)
        return CANCELLED
    ctx.metrics.claimed(claim, ctx.clock())
    outcome: Classification | RecordError
    if claim.claims > MAX_CLAIMS:
        outcome = _gave_up(claim)
    else:

        async def classify(steps: list[Step]) -> Classification:
            if isinstance(classifier, TrainedClassifier):
                return await classifier.classify(image, steps)
            return await classifier.classify(await image, steps)

        outcome = await infer(claim.key, classify, ctx)
    if outcome is MISSING and await records.deletion(claim.key.image) is not None:
        # A job created the record while the image was deleted, and nothing of the image is left.
        # Or the message is older than the deletion, and a new upload has created the record: it
        # stores the bytes and publishes its own message next. The claim is released.
        if await records.discard(claim):
            log.info("record of a deleted image discarded")
        raise NotFound(MISSING.detail)
    with span("store result"):
        if isinstance(outcome, RecordError):
            end = fail(claim, outcome)
        else:
            end = complete(
                claim,
                outcome.annotations,
                categories=outcome.categories,
                confident=outcome.confident,
                output=outcome.output,
            )
        found = b"" if isinstance(outcome, RecordError) else outcome.thumbnail
        if found:
            stored, _ = await asyncio.gather(
                records.change(claim.key, end), keep_thumbnail(claim.key, found, ctx.backend.blobs)
            )
        else:
            stored = await records.change(claim.key, end)
    timing = {
        "attempt": claim.attempt,
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }
    if stored is None:
        log.warning("lease lost", **timing)
        record = await _get_record(claim.key, records)
        if not record.status.terminal:
            raise Unavailable("Another worker claimed the image.")
        ctx.metrics.classification_ended(LEASE_LOST)
        return record.error
    if isinstance(outcome, RecordError):
        ctx.metrics.classification_ended(outcome.code)
        log.warning("image refused", code=outcome.code, detail=outcome.detail, **timing)
        return outcome
    ctx.metrics.classification_ended(SUCCESS)
    log.info("classified", label=outcome.best, **timing)
    return None


def _gave_up(claim: Claim) -> RecordError:
    """The error of an image whose earlier claims all ended without a result.

    This claim does no work: it may be the image that ends the worker.
    """
    detail = f"{claim.claims - 1} attempts to classify the image ended without a result."
    if claim.last_error is not None:
        detail += f" Last failure: {claim.last_error.code}: {claim.last_error.detail}"
    return RecordError(GAVE_UP, f"{detail} A new upload tries again.", True)


async def _fail_if_cancelled(claim: Claim, ctx: WorkerContext) -> bool:
    """End the record without classification if the only job that requested the image is over.

    The store refuses this if another request has arrived since: then the image is classified.
    """
    with span("look up job"):
        job = JobKey(claim.key.tenant, claim.job)
        if not await is_over(ctx.backend.jobs, job, ctx.clock()):
            return False
    cancel = fail(claim, CANCELLED, only_for=claim.job)
    return await ctx.backend.records.change(claim.key, cancel) is not None


async def infer(
    key: RecordKey, work: Callable[[list[Step]], Awaitable[T]], ctx: WorkerContext
) -> T | RecordError:
    """What `work` does with the image, or the error that every delivery of this image would meet.

    `work` appends to its argument the steps that it took.
    """
    steps: list[Step] = []
    try:
        return await work(steps)
    except NotFound:
        return MISSING
    except InvalidImage as error:
        return RecordError(error.code, error.detail, False)
    except PredictionFailed as error:
        # Another delivery would meet the same code: the client decides whether to try again.
        cause = "\n".join(getattr(error, "__notes__", ()))
        log.error("prediction failed", model=key.model, detail=error.detail, cause=cause)
        return RecordError(error.code, error.detail, True)
    except InferenceFailed as error:
        cause = "\n".join(getattr(error, "__notes__", ()))
        log.error("inference failed", model=key.model, cause=cause)
        raise
    except ClassifierLost as error:
        if not count_loss(key, ctx.losses):
            raise
        return RecordError(error.code, error.detail, True)
    finally:
        for step in steps:
            add_past_span(*step)
        times = [(step.ended - step.began) / step.images for step in steps if step.name != READ]
        if times:
            ctx.metrics.inference.observe(sum(times) / 1e9)


def count_loss(key: RecordKey, losses: MutableMapping[RecordKey, int]) -> bool:
    """Count a classifier process lost over this image; True if the image must not get another.

    Each worker counts separately. The record's attempts do not tell: they have many other causes.
    """
    losses[key] = losses.get(key, 0) + 1
    return losses[key] >= MAX_LOST_CLASSIFIERS


async def _wait_for_other_worker(
    message: ClassifyImage, ctx: WorkerContext, deadline: float
) -> Record | None:
    """Wait for the worker that owns the record: the terminal record, or None if it is free.

    Raises Unavailable at `deadline`, in `time.monotonic` seconds. Waiting is cheaper than an early
    refusal, because Pub/Sub slows down the whole subscription after each refusal.
    """
    records, pause = ctx.backend.records, MIN_POLL_SECONDS
    while True:
        record = await _get_record(message.key, records)
        if record.error is not None and record.error.code == UPLOAD_LOST:
            # The message proves that the upload was only slow, so its image is stored by now.
            await records.change(message.key, retry(message.priority, message.job))
            return None
        if record.status.terminal:
            log.info("finished by another delivery", status=record.status)
            return record
        remaining = deadline - time.monotonic()
        if remaining <= 0:
            raise Unavailable("Another worker is classifying this image.")
        await asyncio.sleep(min(pause, remaining))
        if not record.leased(ctx.clock()):
            return None
        pause = min(2 * pause, MAX_POLL_SECONDS)


async def _get_record(key: RecordKey, records: RecordStore) -> Record:
    record = await records.get(key)
    if record is None:
        raise NotFound("There is no record of this image for this model.")
    return record
