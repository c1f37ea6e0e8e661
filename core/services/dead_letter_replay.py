"""Replaying dead letters: a new attempt of the record, and a new message for it.

An item of a job was settled when its message died, so its image is tried again for itself alone.
What runs a job or notifies of one is published as it was.

Any step may be the last one before a crash, and anybody may do the same at once: whoever comes
next finds how far it got. A letter is resolved last, so none is lost.
"""

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from core.backends import Backend
from core.domain import records
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey, resolve
from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage, Notify, RunJob, message_of
from core.domain.records import RecordError, Status
from core.errors import MalformedEnvelope, NotFound
from core.observability.logs import message_context
from core.services.publishing import publish

log = structlog.get_logger(__name__)


class Replay(StrEnum):
    """How a replay ended.

    `replayed`: a new attempt is on its way. `resolved`: nothing to do, since the record has
    succeeded, cannot be tried again, is being tried again already, or its image is gone, or since
    the job is over. `busy`: a worker still owns the record; later. `unreadable`: the letter is
    none of our messages.
    """

    REPLAYED = "replayed"
    RESOLVED = "resolved"
    BUSY = "busy"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Replays:
    """How many replays ended how; `after` is where the next call goes on, empty at the end."""

    counts: Counter[Replay]
    after: str


async def replay(backend: Backend, tenant: str, id_: str) -> Replay:
    """Replay one letter. Replaying it again changes nothing. Raises NotFound, Unavailable."""
    letter = await backend.dead_letters.get(LetterKey(tenant, id_))
    if letter is None:
        raise NotFound("There is no such dead letter.")
    return await _replay(backend, letter)


async def replay_all(
    backend: Backend, wanted: LetterFilter, limit: int, after: str = ""
) -> Replays:
    """Replay at most `limit` of the letters that `wanted` selects, newest first.

    Raises Unavailable, after which those that were replayed are.
    """
    letters = await backend.dead_letters.list(wanted, limit, after)
    counts: Counter[Replay] = Counter()
    for letter in letters:
        counts[await _replay(backend, letter)] += 1
    return Replays(counts, letters[-1].sort_key if len(letters) == limit else "")


async def _replay(backend: Backend, letter: DeadLetter) -> Replay:
    if letter.resolved_at is not None:
        return Replay.RESOLVED
    try:
        message = message_of(letter.attributes)
    except MalformedEnvelope:
        return Replay.UNREADABLE
    with message_context(message):
        match message:
            case ClassifyImage():
                outcome = await _new_attempt(backend, letter, message)
            case RunJob():
                outcome = await _run_again(backend, message)
            case Notify():
                await publish(backend.publisher, replace(message, traceparent=""))
                outcome = Replay.REPLAYED
        if outcome in (Replay.REPLAYED, Replay.RESOLVED):
            await backend.dead_letters.change(letter.key, resolve())
        log.info("dead letter replayed", letter=letter.id, outcome=outcome)
    return outcome


async def _run_again(backend: Backend, message: RunJob) -> Replay:
    job = await backend.jobs.get(JobKey(message.tenant, message.job))
    if job is None or job.status.terminal:
        return Replay.RESOLVED
    await publish(backend.publisher, replace(message, traceparent=""))
    return Replay.REPLAYED


async def _new_attempt(backend: Backend, letter: DeadLetter, message: ClassifyImage) -> Replay:
    key, store = message.key, backend.records
    # First what the letter's burial may not have come to yet: it would end the new attempt.
    error = RecordError(letter.code, letter.detail, retryable=True)
    await store.change(key, records.fail_unleased(error, submitted_by=letter.died_at))
    if not await backend.blobs.exists(key.blob_name):
        return Replay.RESOLVED
    retried = await store.change(key, records.retry(message.priority))
    record = await store.get(key)
    if record is None or record.status.terminal:
        return Replay.RESOLVED
    if record.status is Status.PENDING:
        # Also where another call has set it free and may have died since: publishing twice is
        # harmless, not publishing would leave it to the reconciler.
        await publish(backend.publisher, ClassifyImage(key, priority=message.priority))
        await store.change(key, records.advance(Status.PENDING, Status.QUEUED))
        return Replay.REPLAYED
    if retried is not None or record.submitted_at > letter.died_at:
        return Replay.RESOLVED
    return Replay.BUSY
