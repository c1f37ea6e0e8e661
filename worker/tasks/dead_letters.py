"""A message that used up its deliveries: the letter is kept, then what waited for it ends.

An image's record ends as `error`, a job's item with it; a job that could not be run as `failed`.
In this order, and acknowledged last: whatever dies in between, the queue delivers the letter again,
and every step finds what it did before.
"""

from datetime import UTC, datetime

import structlog

from core.domain.dead_letters import PAYLOAD_KEPT, DeadLetter, letter_id, tenant_of
from core.domain.jobs import JobKey, JobStatus
from core.domain.messages import (
    DEAD_LETTER_ATTRIBUTES,
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_PUBLISH_TIME,
    DEAD_LETTER_REASON,
    ClassifyImage,
    Notify,
    PushEnvelope,
    RunJob,
    message_of,
)
from core.domain.records import Record, RecordError, Status, fail_unleased
from core.errors import MalformedEnvelope, Unavailable
from core.observability.tracing import span
from core.services.job_completion import fail
from worker.context import Workbench
from worker.tasks.job_items import settle

# Why a letter ended nothing.
UNREADABLE, UNKNOWN_IMAGE, FINISHED_IMAGE = "unreadable", "unknown_image", "finished_image"
FINISHED_JOB, BEGUN_JOB = "finished_job", "begun_job"

log = structlog.get_logger(__name__)

EXHAUSTED = "delivery_exhausted"
REASON_KEPT = 200  # characters of what the queue says
_EPOCH, _END = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


async def bury(envelope: PushEnvelope, bench: Workbench) -> None:
    """Keep the letter and end what waited for its message. Returning acknowledges it.

    Raises Unavailable where that is to be tried again.
    """
    try:
        message = message_of(envelope.message.attributes)
    except MalformedEnvelope as unreadable:
        # It names nothing, and nothing would make it readable: somebody has to look at it.
        reason = RecordError(unreadable.code, unreadable.detail, retryable=True)
        letter = letter_of(envelope, reason, bench.clock())
        await bench.backend.dead_letters.add(letter)
        bench.metrics.buried(UNREADABLE)
        log.error("dead letter unreadable", letter=letter.id, detail=unreadable.detail)
        return
    match message:
        case ClassifyImage():
            error = await _bury_image(message, envelope, bench)
            if message.job:
                await settle(JobKey(message.tenant, message.job), message.position, error, bench)
        case RunJob():
            await _bury_run(message, envelope, bench)
        case Notify():
            await _bury_notice(envelope, bench)


async def _bury_image(
    message: ClassifyImage, envelope: PushEnvelope, bench: Workbench
) -> RecordError | None:
    """End the record, unless it succeeded: its error, or None.

    Raises Unavailable while a worker still owns the record: that one may yet succeed.
    """
    records, letters = bench.backend.records, bench.backend.dead_letters
    record = await records.get(message.key)
    if record is not None and record.leased(bench.clock()):
        raise Unavailable("A worker is still classifying this image.")
    reason = _reason(message, envelope.message.attributes, record, bench)
    letter = letter_of(envelope, reason, bench.clock())
    if record is not None and record.status is Status.SUCCESS:
        await letters.resolve(letter.tenant, letter.id)
        bench.metrics.buried(FINISHED_IMAGE)
        log.info("dead letter for a finished image", status=record.status)
        return None
    with span("keep dead letter"):
        await letters.add(letter)
    error = _exhausted("The image was not classified", reason, letter)
    # A later attempt is another message's business: this one may be delivered late, or again.
    with span("fail record"):
        end = fail_unleased(error, submitted_by=letter.died_at)
        failed = await records.change(message.key, end)
    if failed is not None:
        bench.metrics.buried(error.code)
        log.error("dead letter", letter=letter.id, code=error.code, detail=error.detail)
        return error
    record = await records.get(message.key)
    if record is None:
        bench.metrics.buried(UNKNOWN_IMAGE)
        log.error("dead letter for an unknown image", letter=letter.id, model=message.key.model)
        return reason
    if record.status.terminal or record.submitted_at > letter.died_at:
        bench.metrics.buried(FINISHED_IMAGE)
        log.info("dead letter of an earlier attempt", letter=letter.id, status=record.status)
        return record.error if record.status.terminal else error
    raise Unavailable("A worker is still classifying this image.")


async def _bury_run(message: RunJob, envelope: PushEnvelope, bench: Workbench) -> None:
    """End the job as failed, unless it has ended, or a later message has begun it."""
    backend, key = bench.backend, JobKey(message.tenant, message.job)
    reason = _told(envelope.message.attributes)
    letter = letter_of(envelope, reason, bench.clock())
    job = await backend.jobs.get(key)
    if job is None or job.status in (JobStatus.COMPLETED, JobStatus.CANCELLED):
        await backend.dead_letters.resolve(letter.tenant, letter.id)
        bench.metrics.buried(FINISHED_JOB)
        log.info("dead letter for a job that is over", letter=letter.id)
        return
    if job.started_at is not None and job.started_at > letter.died_at:
        # The scheduler has asked for it again meanwhile, and nothing waits for this message.
        await backend.dead_letters.resolve(letter.tenant, letter.id)
        bench.metrics.buried(BEGUN_JOB)
        log.info("dead letter for a job that was begun since", letter=letter.id)
        return
    await backend.dead_letters.add(letter)
    error = _exhausted("The job was not run", reason, letter)
    job = await fail(backend, key, bench.jobs, error)
    if job is not None:
        bench.metrics.job_ended(job.status)
    bench.metrics.buried(error.code)
    log.error("dead letter", letter=letter.id, code=error.code, detail=error.detail)


async def _bury_notice(envelope: PushEnvelope, bench: Workbench) -> None:
    """Nothing waits for it but whoever it was meant for."""
    reason = _told(envelope.message.attributes)
    letter = letter_of(envelope, reason, bench.clock())
    await bench.backend.dead_letters.add(letter)
    bench.metrics.buried(reason.code)
    log.error("dead letter", letter=letter.id, code=reason.code, detail=reason.detail)


def _reason(
    message: ClassifyImage, attributes: dict[str, str], record: Record | None, bench: Workbench
) -> RecordError:
    """The last failure, by the best witness there is."""
    model = message.key.model
    if model not in bench.models.identities:
        return RecordError("model_unavailable", f"No worker has the model {model}.", retryable=True)
    if record is None:
        return RecordError("not_found", "There is no record of this image.", retryable=True)
    if record.error is not None:
        return record.error
    return _told(attributes)


def _told(attributes: dict[str, str]) -> RecordError:
    """What the queue says: shown to clients, so plain text and not much of it."""
    told = attributes.get(DEAD_LETTER_REASON, "")[:REASON_KEPT]
    detail = told if told.isprintable() and told else "The queue does not say why."
    return RecordError(EXHAUSTED, detail, retryable=True)


def _exhausted(what: str, reason: RecordError, letter: DeadLetter) -> RecordError:
    """What the record or the job says of it."""
    if reason.code == "model_unavailable":
        return reason
    after = f"{letter.attempts} deliveries" if letter.attempts else "its deliveries"
    last = reason.detail if reason.code == EXHAUSTED else f"{reason.code}: {reason.detail}"
    return RecordError(EXHAUSTED, f"{what} after {after}. Last failure: {last}", True)


def letter_of(envelope: PushEnvelope, reason: RecordError, now: datetime) -> DeadLetter:
    """The message as a letter; `now` is when it died, where the queue does not say."""
    message = envelope.message
    attributes = {
        name: value
        for name, value in message.attributes.items()
        if name not in DEAD_LETTER_ATTRIBUTES
    }
    payload = message.payload()
    count = message.attributes.get(DEAD_LETTER_DELIVERY_COUNT, "")
    published = message.attributes.get(DEAD_LETTER_PUBLISH_TIME, "")
    died_at = _moment(message.publishTime) or now
    return DeadLetter(
        id=letter_id(attributes, payload, published or message.messageId),
        tenant=tenant_of(attributes),
        attributes=attributes,
        payload=payload[:PAYLOAD_KEPT],
        payload_size=len(payload),
        # Shown to clients: only a number may stand there.
        attempts=int(count) if count.isascii() and count.isdecimal() and len(count) < 10 else 0,
        code=reason.code,
        detail=reason.detail,
        published_at=_moment(published) or died_at,
        died_at=died_at,
    )


def _moment(text: str) -> datetime | None:
    """A time of the queue's, or None where it is none."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return moment.astimezone(UTC) if _EPOCH < moment < _END else None
