"""Replays dead letters: gives the record a new attempt, and publishes a message for it.

An item of a job failed when its message became a dead letter. A replay publishes the message again,
and the item succeeds if its image does. A job that failed because its message became a dead letter
begins a new attempt. Notifications are published as they were.

A crash may follow any step, and two processes may replay the same letter: the next replay continues
where the last one stopped. The letter is resolved last, so none is lost.
"""

from collections import Counter
from dataclasses import dataclass, replace
from enum import StrEnum

import structlog

from core.backends import Backend
from core.domain import jobs, records
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey, resolve
from core.domain.jobs import ItemState, JobKey
from core.domain.messages import (
    ClassifyImage,
    EmbedImage,
    FitModel,
    MakeThumbnail,
    Notify,
    RunJob,
    message_of,
)
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.records import RecordError, Status
from core.errors import MalformedEnvelope, NotFound
from core.observability.logs import message_context
from core.services.publishing import publish

log = structlog.get_logger(__name__)


class Replay(StrEnum):
    """The outcome of a replay.

    - `replayed`: a message for a new attempt is published.
    - `resolved`: there is nothing to do. The record is a success, cannot be retried or is already
      being retried, its image is deleted, or the job is over.
    - `busy`: a worker holds the lease of the record. Retry later.
    - `unreadable`: the letter does not contain a message of Glimpse.
    """

    REPLAYED = "replayed"
    RESOLVED = "resolved"
    BUSY = "busy"
    UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Replays:
    """The number of replays by outcome. `after` is the next cursor, empty at the end."""

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

    Raises Unavailable. Letters that were replayed before the error stay replayed.
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
            case EmbedImage():
                outcome = Replay.RESOLVED  # the job's fit goes on without the image
            case RunJob() | FitModel():
                outcome = await _run_again(backend, message)
            case Notify() | MakeThumbnail():
                await publish(backend.publisher, replace(message, traceparent=""))
                outcome = Replay.REPLAYED
        if outcome in (Replay.REPLAYED, Replay.RESOLVED):
            await backend.dead_letters.change(letter.key, resolve())
        log.info("dead letter replayed", letter=letter.id, outcome=outcome)
    return outcome


async def _run_again(backend: Backend, message: RunJob | FitModel) -> Replay:
    key = JobKey(message.tenant, message.job)
    if await backend.jobs.change(key, jobs.retry()) is not None:
        # It fits its model, if it has one, when its items have ended.
        message = RunJob(message.tenant, message.job)
    job = await backend.jobs.get(key)
    if job is None or job.status.terminal:
        return Replay.RESOLVED
    await publish(backend.publisher, replace(message, traceparent=""))
    return Replay.REPLAYED


async def _new_attempt(backend: Backend, letter: DeadLetter, message: ClassifyImage) -> Replay:
    key, store = message.key, backend.records
    # First end the record, if the handler of the dead letter has not done so yet: it would end the
    # new attempt later.
    error = RecordError(letter.code, letter.detail, retryable=True)
    await store.change(key, records.fail_unleased(error, submitted_by=letter.died_at))
    if not await backend.blobs.exists(key.blob_name):
        return Replay.RESOLVED
    retried = await store.change(key, records.retry(message.priority))
    record = await store.get(key)
    if record is None or record.status is Status.ERROR:
        return Replay.RESOLVED
    if record.status is Status.PENDING:
        # Publish even if another call retried the record, because its process may have died since.
        # A duplicate message is harmless. Without a message, the reconciler would have to publish.
        for each in await _messages(backend, message):
            await publish(backend.publisher, each)
        await store.change(key, records.advance(Status.PENDING, Status.QUEUED))
        return Replay.REPLAYED
    old = retried is None and record.submitted_at <= letter.died_at
    if old and not record.status.terminal:
        return Replay.BUSY
    if not message.job:
        return Replay.RESOLVED
    # Another request began the new attempt. Its message does not complete the items of this job.
    for each in await _messages(backend, message):
        await publish(backend.publisher, each)
    return Replay.REPLAYED


async def _messages(backend: Backend, message: ClassifyImage) -> list[ClassifyImage]:
    """The messages of a new attempt: one for each item of the job that has not succeeded with it.

    Open items are included: a worker may be about to end one with the error of the old attempt.
    """
    message = replace(message, traceparent="")
    if not message.job:
        return [message]
    job = JobKey(message.tenant, message.job)
    positions = {
        each.position
        for each in await backend.jobs.items(job, MAX_JOB_ITEMS)
        if each.image_hash == message.key.image_hash and each.state is not ItemState.SUCCEEDED
    }
    return [replace(message, position=each) for each in sorted(positions | {message.position})]
