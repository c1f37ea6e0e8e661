"""One image: claim its record, read its bytes, classify them, store the result.

The lease and the fencing token of the claim make duplicates and late deliveries harmless: one
claimant at a time works, and only the current one can finish the record. Whose job is over is asked
between the claim and the work, so nothing begins once a cancellation was answered. A message of a
job is acknowledged after its item was settled; until then it comes again and finds that to do.
"""

import asyncio
import time
from collections.abc import Awaitable
from pathlib import Path

import structlog

from core.domain import records
from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage
from core.domain.records import UPLOAD_LOST, Annotation, Claim, Record, RecordError, RecordKey
from core.errors import InvalidImage, ModelUnavailable, NotFound, Unavailable
from core.observability.tracing import Step, current, span
from core.services.job_images import CANCELLED, is_over
from worker.context import Workbench
from worker.errors import ClassifierLost, InferenceFailed
from worker.inference.pool import RemoteClassifier
from worker.inference.protocol import READ
from worker.metrics import DUPLICATE, LEASE_LOST, SUCCESS
from worker.tasks.job_items import settle

log = structlog.get_logger(__name__)

FIRST_POLL, LAST_POLL = 0.02, 0.25  # seconds between looks at a record that another works on
DUPLICATE_WAIT_SECONDS = 5.0  # how long a duplicate delivery waits for the result of the first
DELETED = RecordError("image_missing", "The image was deleted: upload it again.", True)


async def classify(message: ClassifyImage, bench: Workbench) -> None:
    """Bring the message's record to its end, or find it there. Returning acknowledges the message.

    Faults of the image end the record as `error`. The item of a job is settled as the record ended,
    or stays open where its job is over. Raises NotFound where there is no record, and no job.
    Unavailable, ModelUnavailable and InferenceFailed ask for another delivery; the record is free
    for it by then.
    """
    if not message.job:
        await _end(message, bench)
        return
    job = JobKey(message.tenant, message.job)
    try:
        error = await _end(message, bench)
        while error is not None and error.code == CANCELLED.code:
            if await is_over(bench.backend.jobs, job, bench.clock()):
                return
            # Another job's end took the record along, and this one still wants the image.
            again = records.retry(message.priority, message.job)
            await bench.backend.records.change(message.key, again)
            error = await _end(message, bench)
    except NotFound:
        error = DELETED
        log.info("image of a job deleted")
    with span("settle item"):
        await settle(job, message.position, error, bench)


async def _end(message: ClassifyImage, bench: Workbench) -> RecordError | None:
    """Bring the record to its end, or find it there: its error, or None where it succeeded."""
    key, began = message.key, time.perf_counter()
    try:
        # Before the claim: a worker without the model must not hold up one that has it.
        classifier = await bench.models.classifier(key.model)
    except ModelUnavailable:
        found = await _existing(key, bench)
        if found.status.terminal:
            bench.metrics.ended(DUPLICATE)
            return found.error
        raise
    patience_ends: float | None = None
    while True:
        async with (
            bench.places.at(message.priority),
            bench.reading(key) as image,
            bench.claimed(key) as claim,
        ):
            if claim is not None:
                return await _work(claim, image, classifier, bench, began)
        patience_ends = patience_ends or time.monotonic() + DUPLICATE_WAIT_SECONDS
        record = await _ended_elsewhere(message, bench, patience_ends)
        if record is not None:
            bench.metrics.ended(DUPLICATE)
            return record.error


async def _work(
    claim: Claim,
    image: Awaitable[bytes | Path],
    classifier: RemoteClassifier,
    bench: Workbench,
    began: float,
) -> RecordError | None:
    """The claimed part. `began` is when the message came in, in `time.perf_counter` seconds."""
    if claim.job and await _cancelled(claim, bench):
        bench.metrics.ended(CANCELLED.code)
        return CANCELLED
    bench.metrics.claimed(claim, bench.clock())
    outcome = await _outcome(claim, image, classifier, bench)
    with span("store result"):
        if isinstance(outcome, RecordError):
            end = records.fail(claim, outcome)
        else:
            end = records.complete(claim, outcome)
        stored = await bench.backend.records.change(claim.key, end)
    timing = {
        "attempt": claim.attempt,
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }
    if stored is None:
        log.warning("lease lost", **timing)
        record = await _existing(claim.key, bench)
        if not record.status.terminal:
            raise Unavailable("Another worker has taken the image over.")
        bench.metrics.ended(LEASE_LOST)
        return record.error
    if isinstance(outcome, RecordError):
        bench.metrics.ended(outcome.code)
        log.warning("image refused", code=outcome.code, detail=outcome.detail, **timing)
        return outcome
    bench.metrics.ended(SUCCESS)
    log.info("classified", label=outcome[0].label, **timing)
    return None


async def _cancelled(claim: Claim, bench: Workbench) -> bool:
    """End the record unclassified where the one job that asked for the image is over.

    Refused where anybody else has asked meanwhile: then it is classified.
    """
    with span("look up job"):
        job = JobKey(claim.key.tenant, claim.job)
        if not await is_over(bench.backend.jobs, job, bench.clock()):
            return False
    cancel = records.fail(claim, CANCELLED, only_for=claim.job)
    return await bench.backend.records.change(claim.key, cancel) is not None


async def _outcome(
    claim: Claim, image: Awaitable[bytes | Path], classifier: RemoteClassifier, bench: Workbench
) -> tuple[Annotation, ...] | RecordError:
    """The labels of the image, or the fault of it that every delivery would meet."""
    steps: list[Step] = []
    try:
        return await classifier.annotate(await image, steps)
    except NotFound:
        return RecordError(
            "image_missing", "The stored image is gone or damaged: upload it again.", True
        )
    except InvalidImage as error:
        return RecordError(error.code, error.detail, False)
    except InferenceFailed as error:
        cause = "\n".join(getattr(error, "__notes__", ()))
        log.error("inference failed", model=claim.key.model, cause=cause)
        raise
    except ClassifierLost as error:
        if not bench.blamed(claim.key):
            raise
        return RecordError(error.code, error.detail, True)
    finally:
        for step in steps:
            current().past(step)
        work = [(step.ended - step.began) / step.images for step in steps if step.name != READ]
        if work:
            bench.metrics.inference.observe(sum(work) / 1e9)


async def _ended_elsewhere(
    message: ClassifyImage, bench: Workbench, patience_ends: float
) -> Record | None:
    """Wait for the worker that owns the record: the record when it is finished, None when free.

    Raises Unavailable when neither comes before `patience_ends` (`time.monotonic` seconds). Waiting
    is worth it: a refused delivery slows the whole subscription down.
    """
    pause = FIRST_POLL
    while True:
        record = await _existing(message.key, bench)
        if record.error is not None and record.error.code == UPLOAD_LOST:
            # Its message is here, so the upload was only slow: the image is there by now.
            again = records.retry(message.priority, message.job)
            await bench.backend.records.change(message.key, again)
            return None
        if record.status.terminal:
            log.info("finished by another delivery", status=record.status)
            return record
        left = patience_ends - time.monotonic()
        if left <= 0:
            raise Unavailable("Another worker is classifying this image.")
        await asyncio.sleep(min(pause, left))
        if not record.leased(bench.clock()):
            return None
        pause = min(2 * pause, LAST_POLL)


async def _existing(key: RecordKey, bench: Workbench) -> Record:
    record = await bench.backend.records.get(key)
    if record is None:
        raise NotFound("There is no record of this image under this model.")
    return record
