"""Handle messages that used up their deliveries: keep the dead letter, then end what waits for it.

The record of an image ends as `error`, and its item of a job with it. A job that could not run ends
as `failed`. The worker acknowledges last: if it stops between two steps, the queue delivers the
dead letter again, and every step tolerates the repetition.
"""

from datetime import UTC, datetime

import structlog

from core.domain.dead_letters import MAX_PAYLOAD, DeadLetter, letter_id, resolve, tenant_of
from core.domain.jobs import JobKey, JobStatus
from core.domain.messages import (
    DEAD_LETTER_ATTRIBUTES,
    DEAD_LETTER_DELIVERY_COUNT,
    DEAD_LETTER_PUBLISH_TIME,
    DEAD_LETTER_REASON,
    ClassifyImage,
    EmbedImage,
    FitModel,
    MakeThumbnail,
    Message,
    Notify,
    PushEnvelope,
    RunJob,
)
from core.domain.records import Record, RecordError, Status, fail_unleased
from core.domain.webhooks import WEBHOOK_ID, WebhookKey
from core.errors import MalformedEnvelope, Unavailable
from core.observability.tracing import span
from core.services.job_completion import fail
from worker.context import WorkerContext
from worker.metrics import DELETED_IMAGE
from worker.notifications.notifier import WEBHOOK
from worker.tasks.classify_image import DELETED
from worker.tasks.embed_image import complete_embedding
from worker.tasks.job_items import complete_item

log = structlog.get_logger(__name__)

# Why a dead letter ended no record and no job.
UNREADABLE, UNKNOWN_IMAGE, FINISHED_IMAGE = "unreadable", "unknown_image", "finished_image"
FINISHED_JOB, BEGUN_JOB = "finished_job", "begun_job"

EXHAUSTED, RECEIVER_REFUSED = "delivery_exhausted", "receiver_refused"
MAX_REASON = 200  # characters of the queue's reason
_MIN_TIME, _MAX_TIME = datetime(1970, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)


async def handle_dead_letter(message: Message, envelope: PushEnvelope, ctx: WorkerContext) -> None:
    """Keep the dead letter and end what waits for its message. Return means: acknowledge it.

    Raises Unavailable to ask for another delivery.
    """
    match message:
        case ClassifyImage():
            error = await _handle_image(message, envelope, ctx)
            if message.job:
                job = JobKey(message.tenant, message.job)
                await complete_item(job, message.position, error, ctx)
        case EmbedImage():
            await handle_embedding(message, envelope, ctx)
        case RunJob() | FitModel():
            await _handle_job(message, envelope, ctx)
        case Notify() | MakeThumbnail():
            reason = await _receiver_reason(message, ctx) or _queue_reason(envelope)
            letter = letter_of(envelope, reason, ctx.clock())
            await ctx.backend.dead_letters.add(letter)
            _report(letter, reason, ctx)


async def keep_unreadable(
    envelope: PushEnvelope, error: MalformedEnvelope, ctx: WorkerContext
) -> None:
    """Keep a dead letter that is no message of Glimpse, for an operator to inspect."""
    reason = RecordError(error.code, error.detail, retryable=True)
    letter = letter_of(envelope, reason, ctx.clock())
    await ctx.backend.dead_letters.add(letter)
    ctx.metrics.dead_letter(UNREADABLE)
    log.error("dead letter unreadable", letter=letter.id, detail=error.detail)


async def _handle_image(
    message: ClassifyImage, envelope: PushEnvelope, ctx: WorkerContext
) -> RecordError | None:
    """Fail the record, unless it succeeded. Returns its error, or None for success.

    Raises Unavailable while a worker owns the record, because that worker may still succeed.
    """
    records, letters = ctx.backend.records, ctx.backend.dead_letters
    record = await records.get(message.key)
    if record is not None and record.leased(ctx.clock()):
        raise Unavailable("A worker is still classifying this image.")
    if record is None and await records.deletion(message.key.image) is not None:
        # A later upload publishes its own message: no replay of this one would do anything.
        ctx.metrics.dead_letter(DELETED_IMAGE)
        log.info("dead letter of a deleted image")
        return DELETED
    reason = _image_reason(message, envelope, record, ctx)
    letter = letter_of(envelope, reason, ctx.clock())
    if record is not None and record.status is Status.SUCCESS:
        await letters.change(letter.key, resolve())
        ctx.metrics.dead_letter(FINISHED_IMAGE)
        log.info("dead letter of a finished image", status=record.status)
        return None
    with span("keep dead letter"):
        letter = await _keep(letter, ctx)
    error = _exhausted("The image was not classified", reason, letter)
    # This delivery may be late or repeated, and must not fail an attempt that started later: for
    # example by a replay, as soon as the letter is kept. The clock of the queue may be ahead.
    latest = letter.died_at if record is None else min(letter.died_at, record.submitted_at)
    failed = None
    if letter.resolved_at is None:
        with span("fail record"):
            end = fail_unleased(error, submitted_by=latest)
            failed = await records.change(message.key, end)
    if failed is not None:
        _report(letter, error, ctx)
        return error
    record = await records.get(message.key)
    if record is None:
        ctx.metrics.dead_letter(UNKNOWN_IMAGE)
        log.error("dead letter of an unknown image", letter=letter.id, model=message.key.model)
        return reason
    later = letter.resolved_at is not None or record.submitted_at > letter.died_at
    if record.status.terminal or later:
        ctx.metrics.dead_letter(FINISHED_IMAGE)
        log.info("dead letter of an earlier attempt", letter=letter.id, status=record.status)
        return record.error if record.status.terminal else error
    raise Unavailable("A worker is still classifying this image.")


async def handle_embedding(message: EmbedImage, envelope: PushEnvelope, ctx: WorkerContext) -> None:
    """Fail the item, so that the fit goes on without the image."""
    reason = _queue_reason(envelope)
    letter = letter_of(envelope, reason, ctx.clock())
    await ctx.backend.dead_letters.add(letter)
    error = _exhausted("The image was not embedded", reason, letter)
    await complete_embedding(message, error, ctx)
    _report(letter, error, ctx)


async def _handle_job(
    message: RunJob | FitModel, envelope: PushEnvelope, ctx: WorkerContext
) -> None:
    """Fail the job, unless it has ended or a later message has started it."""
    backend, key = ctx.backend, JobKey(message.tenant, message.job)
    reason = _queue_reason(envelope)
    letter = letter_of(envelope, reason, ctx.clock())
    letter = await backend.dead_letters.get(letter.key) or letter
    job = await backend.jobs.get(key)
    outcome = ""
    if job is None or job.status in (JobStatus.COMPLETED, JobStatus.CANCELLED):
        outcome = FINISHED_JOB
    elif letter.resolved_at is not None:
        outcome = BEGUN_JOB  # by a replay
    elif job.started_at is not None and job.started_at > letter.died_at:
        outcome = BEGUN_JOB  # by a later message of the scheduler
    if outcome:
        await backend.dead_letters.change(letter.key, resolve())
        ctx.metrics.dead_letter(outcome)
        log.info("dead letter of a job that has moved on", letter=letter.id, outcome=outcome)
        return
    error = _exhausted("The job was not run", reason, letter)
    # First, because a replay may start the job again as soon as the letter is kept.
    job = await fail(backend, key, ctx.job_policy, error)
    if job is not None:
        ctx.metrics.job_ended(job.status)
    await backend.dead_letters.add(letter)
    _report(letter, error, ctx)


async def _keep(letter: DeadLetter, ctx: WorkerContext) -> DeadLetter:
    """Store the letter; the stored one.

    A queue may deliver a letter again, or make it again of the same message, after a replay of the
    first one has begun a new attempt. Therefore the first time of death counts.
    """
    if await ctx.backend.dead_letters.add(letter):
        return letter
    return await ctx.backend.dead_letters.get(letter.key) or letter


def _report(letter: DeadLetter, error: RecordError, ctx: WorkerContext) -> None:
    ctx.metrics.dead_letter(error.code)
    log.error("dead letter", letter=letter.id, code=error.code, detail=error.detail)


def _image_reason(
    message: ClassifyImage, envelope: PushEnvelope, record: Record | None, ctx: WorkerContext
) -> RecordError:
    """Why the last delivery failed, by the most precise source."""
    model = message.key.model
    if model not in ctx.models.identities:
        return RecordError("model_unavailable", f"No worker has the model {model}.", retryable=True)
    if record is None:
        return RecordError("not_found", "There is no record of this image.", retryable=True)
    return record.error or _queue_reason(envelope)


async def _receiver_reason(
    message: Notify | MakeThumbnail, ctx: WorkerContext
) -> RecordError | None:
    """What the receiver of a webhook answered last, which the queue does not know."""
    if not isinstance(message, Notify):
        return None
    if message.target == WEBHOOK:
        job = await ctx.backend.jobs.get(JobKey(message.tenant, message.job))
        status = job.webhook.status if job is not None and job.webhook is not None else None
    elif WEBHOOK_ID.fullmatch(message.target):
        webhook = await ctx.backend.webhooks.get(WebhookKey(message.tenant, message.target))
        delivery = webhook.last_delivery if webhook is not None else None
        known = delivery is not None and delivery.event == message.event
        status = delivery.status if delivery is not None and known else None
    else:
        return None
    if status is None:
        return None
    return RecordError(RECEIVER_REFUSED, f"The receiver answered {status}.", retryable=True)


def _queue_reason(envelope: PushEnvelope) -> RecordError:
    """The queue's reason. Clients see it, so it is short and printable."""
    text = envelope.message.attributes.get(DEAD_LETTER_REASON, "")[:MAX_REASON]
    detail = text if text.isprintable() and text else "The queue gives no reason."
    return RecordError(EXHAUSTED, detail, retryable=True)


def _exhausted(what: str, reason: RecordError, letter: DeadLetter) -> RecordError:
    """The error of the record or job; `what` says what did not happen."""
    if reason.code == "model_unavailable":
        return reason
    after = f"{letter.attempts} deliveries" if letter.attempts else "all deliveries"
    last = reason.detail if reason.code == EXHAUSTED else f"{reason.code}: {reason.detail}"
    return RecordError(EXHAUSTED, f"{what} after {after}. Last failure: {last}", True)


def letter_of(envelope: PushEnvelope, reason: RecordError, now: datetime) -> DeadLetter:
    """The message as a dead letter; it died `now` unless the envelope has a time."""
    message = envelope.message
    attributes = {
        name: value
        for name, value in message.attributes.items()
        if name not in DEAD_LETTER_ATTRIBUTES
    }
    payload = message.payload()
    count = message.attributes.get(DEAD_LETTER_DELIVERY_COUNT, "")
    published = message.attributes.get(DEAD_LETTER_PUBLISH_TIME, "")
    died_at = _parse_time(message.publishTime) or now
    return DeadLetter(
        id=letter_id(attributes, payload, published or message.messageId),
        tenant=tenant_of(attributes),
        attributes=attributes,
        payload=payload[:MAX_PAYLOAD],
        payload_size=len(payload),
        # Clients see the number, so other text in its place is dropped.
        attempts=int(count) if count.isascii() and count.isdecimal() and len(count) < 10 else 0,
        code=reason.code,
        detail=reason.detail,
        published_at=_parse_time(published) or died_at,
        died_at=died_at,
    )


def _parse_time(text: str) -> datetime | None:
    """The queue's time in UTC, or None if the text is no plausible time."""
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    time = time if time.tzinfo else time.replace(tzinfo=UTC)
    return time.astimezone(UTC) if _MIN_TIME < time < _MAX_TIME else None
