"""One image: claim its record, read its bytes, classify them, store the result.

The lease and the fencing token of the claim make duplicates and late deliveries harmless: one
claimant at a time works, and only the current one can finish the record.
"""

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from core.errors import InvalidImage, ModelUnavailable, NotFound, Unavailable
from core.messages import ClassifyImage
from core.records import UPLOAD_LOST, Annotation, Claim, Record, RecordError, RecordKey
from worker.workbench import Workbench

if TYPE_CHECKING:
    # ONNX Runtime and NumPy are imported by the thread that loads the first model.
    from worker.classifier import Classifier
from worker.errors import InferenceFailed

log = structlog.get_logger(__name__)

FIRST_POLL, LAST_POLL = 0.02, 0.25  # seconds between looks at a record that another works on


async def classify(message: ClassifyImage, bench: Workbench) -> None:
    """Bring the message's record to its end, or find it there. Returning acknowledges the message.

    Faults of the image end the record as `error`. Raises NotFound where there is no record.
    Unavailable, ModelUnavailable and InferenceFailed ask for another delivery; the record is free
    for it by then.
    """
    key, began = message.key, time.perf_counter()
    try:
        # Before the claim: a worker without the model must not hold up one that has it.
        classifier = await bench.models.classifier(key.model)
    except ModelUnavailable:
        if (await _existing(key, bench)).status.terminal:
            return
        raise
    patience_ends: float | None = None
    while True:
        async with bench.places, bench.claimed(key) as claim:
            if claim is not None:
                await _work(claim, classifier, bench, began)
                return
        patience_ends = patience_ends or time.monotonic() + bench.settings.duplicate_wait_seconds
        if await _ended_elsewhere(key, bench, patience_ends):
            return


async def _work(claim: Claim, classifier: "Classifier", bench: Workbench, began: float) -> None:
    """The claimed part. `began` is when the message came in, in `time.perf_counter` seconds."""
    records = bench.backend.records
    outcome = await _outcome(claim.key, classifier, bench)
    if isinstance(outcome, RecordError):
        stored = await records.fail(claim, outcome)
    else:
        stored = await records.complete(claim, outcome)
    timing = {
        "attempt": claim.attempt,
        "milliseconds": round(1000 * (time.perf_counter() - began), 1),
    }
    if not stored:
        log.warning("lease lost", **timing)
        if not (await _existing(claim.key, bench)).status.terminal:
            raise Unavailable("Another worker has taken the image over.")
    elif isinstance(outcome, RecordError):
        log.warning("image refused", code=outcome.code, detail=outcome.detail, **timing)
    else:
        log.info("classified", label=outcome[0].label, **timing)


async def _outcome(
    key: RecordKey, classifier: "Classifier", bench: Workbench
) -> tuple[Annotation, ...] | RecordError:
    """The labels of the image, or the fault of it that every delivery would meet."""
    try:
        data = await bench.backend.blobs.get(key.blob_name)
    except NotFound:
        return RecordError("image_missing", "The stored image is gone: upload it again.", True)
    try:
        # Decoding and inference in one hop, so that `threads` bounds both.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(bench.threads, classifier.annotate, data)
    except InvalidImage as error:
        return RecordError(error.code, error.detail, False)
    except InferenceFailed:
        log.exception("inference failed", model=key.model)
        raise


async def _ended_elsewhere(key: RecordKey, bench: Workbench, patience_ends: float) -> bool:
    """Wait for the worker that owns the record: True when it is finished, False when it is free.

    Raises Unavailable when neither comes before `patience_ends` (`time.monotonic` seconds). Waiting
    is worth it: a refused delivery slows the whole subscription down.
    """
    pause = FIRST_POLL
    while True:
        record = await _existing(key, bench)
        if record.error is not None and record.error.code == UPLOAD_LOST:
            # Its message is here, so the upload was only slow: the image is there by now.
            return not await bench.backend.records.retry(key)
        if record.status.terminal:
            log.info("finished by another delivery", status=record.status)
            return True
        left = patience_ends - time.monotonic()
        if left <= 0:
            raise Unavailable("Another worker is classifying this image.")
        await asyncio.sleep(min(pause, left))
        if not record.leased(bench.clock()):
            return False
        pause = min(2 * pause, LAST_POLL)


async def _existing(key: RecordKey, bench: Workbench) -> Record:
    record = await bench.backend.records.get(key)
    if record is None:
        raise NotFound("There is no record of this image under this model.")
    return record
