"""Replay of dead letters on every backend (P3, P4): one new attempt for any number of replays."""

import argparse
import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from app.dead_letters.__main__ import run
from core.backends import Backend, open_backend
from core.domain.dead_letters import DeadLetter, LetterFilter, letter_id
from core.domain.jobs import JobItem, JobKey, JobStatus, cancel, new_job, new_job_id, seal, start
from core.domain.jobs import fail as fail_job
from core.domain.messages import ClassifyImage, Message, Notify, RunJob
from core.domain.priority import Priority
from core.domain.records import (
    Annotation,
    Record,
    RecordError,
    RecordKey,
    Status,
    advance,
    complete,
    fail,
    fail_unleased,
    new_record,
    retry,
)
from core.errors import NotFound, Unavailable
from core.services.dead_letter_replay import Replay, replay, replay_all
from core.settings import Settings
from tests.contract.test_reconciliation import Counting
from tests.support.clock import MovableClock
from tests.support.pictures import picture, sha256
from tests.support.records import claimed, delete_image

MODEL = "m@0123456789ab"
ERROR = RecordError("delivery_exhausted", "Last failure: inference_failed", retryable=True)


@pytest.fixture
def counting(backend: Backend) -> Counting:
    return Counting(backend.publisher)


@pytest.fixture
def counted(backend: Backend, counting: Counting) -> Backend:
    return replace(backend, publisher=counting)


async def died(
    backend: Backend, clock: MovableClock, number: int = 1, *, buried: bool = True
) -> tuple[RecordKey, DeadLetter]:
    """An image whose message used up its deliveries a moment ago.

    Not `buried`: the letter is kept and its record has not ended yet.
    """
    image = picture(number)
    key = RecordKey("public", sha256(image), MODEL)
    await backend.records.create(new_record(key, clock()))
    await backend.blobs.put(key.blob_name, image, "image/jpeg")
    await backend.records.change(key, advance(Status.PENDING, Status.QUEUED))
    clock.move(60)
    letter = await kept(backend, clock, ClassifyImage(key))
    if buried:
        assert await backend.records.change(key, fail_unleased(ERROR, submitted_by=letter.died_at))
    clock.move(60)
    return key, letter


async def kept(backend: Backend, clock: MovableClock, message: Message) -> DeadLetter:
    """The letter of a message that used up its deliveries at this moment."""
    attributes = message.attributes()
    letter = DeadLetter(
        id=letter_id(attributes, b"", "1"),
        tenant="public",
        attributes=attributes,
        payload=b"",
        payload_size=0,
        attempts=10,
        code="inference_failed",
        detail="The model failed.",
        published_at=clock(),
        died_at=clock(),
    )
    assert await backend.dead_letters.add(letter)
    return letter


async def record_of(backend: Backend, key: RecordKey) -> Record:
    record = await backend.records.get(key)
    assert record is not None
    return record


async def resolved(backend: Backend, letter: DeadLetter) -> bool:
    kept = await backend.dead_letters.get(letter.key)
    assert kept is not None
    return kept.resolved_at is not None


async def succeed(backend: Backend, settings: Settings, key: RecordKey) -> None:
    claim = await claimed(backend.records, key, settings.lease)
    assert claim is not None
    assert await backend.records.change(claim.key, complete(claim, [Annotation(1, "red", 1.0)]))


@pytest.mark.parametrize("buried", [True, False])
async def test_replay_starts_a_new_attempt_and_publishes_a_message(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock, buried: bool
) -> None:
    key, letter = await died(counted, clock, buried=buried)
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    record = await record_of(counted, key)
    assert (record.status, record.error, record.submitted_at) == (Status.QUEUED, None, clock())
    assert counting.published == [key]
    assert await resolved(counted, letter)
    # A late or repeated dead letter does not affect the new attempt.
    assert not await counted.records.change(key, fail_unleased(ERROR, submitted_by=letter.died_at))
    # Nor does another replay.
    assert await replay(counted, "public", letter.id) is Replay.RESOLVED
    assert counting.published == [key]
    await succeed(counted, settings, key)


async def test_replay_of_an_item_publishes_its_message(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    """The record no longer belongs to the job, whose cancellation would end it."""
    image, job = picture(1), new_job_id()
    key = RecordKey("public", sha256(image), MODEL)
    await counted.records.create(new_record(key, clock(), Priority.LOW, job))
    await counted.blobs.put(key.blob_name, image, "image/jpeg")
    letter = await kept(counted, clock, ClassifyImage(key, "", Priority.LOW, job, 7))
    assert await counted.records.change(key, fail_unleased(ERROR))
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    assert [replace(each, traceparent="") for each in counting.messages] == [
        ClassifyImage(key, "", Priority.LOW, job, 7)
    ]
    record = await record_of(counted, key)
    assert (record.status, record.job, record.priority) == (Status.QUEUED, "", Priority.LOW)


@pytest.mark.parametrize("begun", ["by the replay", "by a client", "and ended"])
async def test_replay_repairs_every_item_of_the_image(
    counted: Backend, counting: Counting, clock: MovableClock, begun: str
) -> None:
    """Another request may have begun the new attempt, or the image may have succeeded since."""
    key, _ = await died(counted, clock)
    job = JobKey("public", new_job_id())
    await counted.jobs.create(new_job(job, "", MODEL, 4, clock()))
    hashes = [key.image_hash, "b" * 64, key.image_hash, key.image_hash]
    await counted.jobs.add_items(job, [JobItem(n, each) for n, each in enumerate(hashes)])
    await counted.jobs.complete_items(job, {0: ERROR, 1: ERROR, 2: ERROR})
    letter = await kept(counted, clock, ClassifyImage(key, job=job.id))
    clock.move(1)
    if begun != "by the replay":
        assert await counted.records.change(key, retry())
        assert await counted.records.change(key, advance(Status.PENDING, Status.QUEUED))
    if begun == "and ended":
        claim = await claimed(counted.records, key, timedelta(minutes=1))
        assert claim is not None
        assert await counted.records.change(key, complete(claim, [Annotation(1, "red", 1.0)]))
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    assert [replace(each, traceparent="") for each in counting.messages] == [
        ClassifyImage(key, job=job.id, position=position) for position in (0, 2, 3)
    ]
    assert await resolved(counted, letter)


async def test_replay_reaches_an_item_that_fails_by_the_old_attempt_afterwards(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock
) -> None:
    """A worker has read the record's error for it, and stores that after the replay."""
    key, _ = await died(counted, clock)
    job = JobKey("public", new_job_id())
    await counted.jobs.create(new_job(job, "", MODEL, 2, clock()))
    await counted.jobs.add_items(job, [JobItem(n, key.image_hash) for n in range(2)])
    assert await counted.jobs.change(job, seal())
    letter = await kept(counted, clock, ClassifyImage(key, job=job.id, position=0))
    await counted.jobs.complete_item(job, 0, ERROR, timedelta())
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    await counted.jobs.complete_item(job, 1, ERROR, timedelta())
    await succeed(counted, settings, key)
    for message in counting.messages:
        assert isinstance(message, ClassifyImage)
        await counted.jobs.complete_item(job, message.position, None, timedelta())
    after = await counted.jobs.refresh_counts(job) or await counted.jobs.get(job)
    assert after is not None
    assert (after.counts.succeeded, after.counts.failed) == (2, 0)


async def test_replay_of_a_job_that_could_not_run_begins_a_new_attempt(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    key = JobKey("public", new_job_id())
    await counted.jobs.create(new_job(key, "", MODEL, 1, clock()))
    assert await counted.jobs.change(key, seal())
    letter = await kept(counted, clock, RunJob("public", key.id))
    assert await counted.jobs.change(key, fail_job(ERROR))
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    job = await counted.jobs.get(key)
    assert job is not None
    assert (job.status, job.error, job.completed_at) == (JobStatus.PENDING, None, None)
    assert [replace(each, traceparent="") for each in counting.messages] == [
        RunJob("public", key.id)
    ]
    assert await resolved(counted, letter)
    assert await counted.jobs.change(key, start()) is not None


async def test_replay_runs_a_job_again_unless_it_has_ended(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    key = JobKey("public", new_job_id())
    await counted.jobs.create(new_job(key, "", MODEL, 1, clock()))
    assert await counted.jobs.change(key, seal())
    letter = await kept(counted, clock, RunJob("public", key.id))
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    assert await resolved(counted, letter)
    assert await counted.jobs.change(key, cancel())
    clock.move(1)
    late = await kept(counted, clock, RunJob("public", key.id, f"00-{'a' * 32}-{'b' * 16}-01"))
    assert await replay(counted, "public", late.id) is Replay.RESOLVED
    assert await resolved(counted, late)
    assert [replace(each, traceparent="") for each in counting.messages] == [
        RunJob("public", key.id)
    ]


async def test_replay_publishes_a_notification_unchanged(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    message = Notify("public", new_job_id(), "job.completed", "email")
    letter = await kept(counted, clock, message)
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    assert [replace(each, traceparent="") for each in counting.messages] == [message]
    assert await resolved(counted, letter)


async def test_concurrent_replays_start_one_attempt(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    """Each may publish, which is harmless. One retries the record, and the letter is resolved."""
    key, letter = await died(counted, clock)
    outcomes = await asyncio.gather(
        *(replay(counted, "public", letter.id) for _ in range(3)), return_exceptions=True
    )
    # A store with locks may answer Unavailable; the caller repeats the request.
    done = [outcome for outcome in outcomes if not isinstance(outcome, Unavailable)]
    done.append(await replay(counted, "public", letter.id))
    assert set(done) <= {Replay.REPLAYED, Replay.RESOLVED}
    assert {key} == set(counting.published)
    assert 1 <= len(counting.published) <= 3
    assert (await record_of(counted, key)).status is Status.QUEUED
    assert await resolved(counted, letter)


async def test_next_replay_finishes_one_that_could_not_publish(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock
) -> None:
    key, letter = await died(counted, clock)
    async with open_backend(settings, clock) as closed:
        pass
    broken = replace(counted, publisher=closed.publisher)
    with pytest.raises(Unavailable):
        await replay(broken, "public", letter.id)
    assert (await record_of(counted, key)).status is Status.PENDING
    assert not await resolved(counted, letter)
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED
    assert counting.published == [key]
    assert await resolved(counted, letter)


async def test_replay_resolves_a_letter_with_nothing_left_to_do(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock
) -> None:
    async def outcome(letter: DeadLetter) -> Replay:
        found = await replay(counted, "public", letter.id)
        assert await resolved(counted, letter) is (found is Replay.RESOLVED)
        return found

    # A new upload has made the record succeed.
    key, letter = await died(counted, clock, 1)
    await counted.records.change(key, retry())
    await succeed(counted, settings, key)
    assert await outcome(letter) is Replay.RESOLVED
    assert (await record_of(counted, key)).status is Status.SUCCESS

    # A new upload has started an attempt.
    key, letter = await died(counted, clock, 2)
    await counted.records.change(key, retry())
    await counted.records.change(key, advance(Status.PENDING, Status.QUEUED))
    assert await outcome(letter) is Replay.RESOLVED

    # The record failed with an error that is not retryable.
    key, letter = await died(counted, clock, 3)
    await counted.records.change(key, retry())
    claim = await claimed(counted.records, key, settings.lease)
    assert claim is not None
    await counted.records.change(
        claim.key, fail(claim, RecordError("undecodable_image", "Torn.", retryable=False))
    )
    assert await outcome(letter) is Replay.RESOLVED
    assert (await record_of(counted, key)).status is Status.ERROR

    # The image was deleted, with or without its record.
    key, letter = await died(counted, clock, 4)
    await counted.blobs.delete(key.blob_name)
    assert await outcome(letter) is Replay.RESOLVED
    assert (await record_of(counted, key)).status is Status.ERROR
    key, letter = await died(counted, clock, 5)
    await counted.blobs.delete(key.blob_name)
    await delete_image(counted.records, key.image)
    assert await outcome(letter) is Replay.RESOLVED
    assert counting.published == []


async def test_replay_leaves_a_leased_record_to_its_worker(
    counted: Backend, counting: Counting, settings: Settings, clock: MovableClock
) -> None:
    key, letter = await died(counted, clock, buried=False)
    assert await claimed(counted.records, key, settings.lease) is not None
    assert await replay(counted, "public", letter.id) is Replay.BUSY
    assert (counting.published, await resolved(counted, letter)) == ([], False)
    clock.move(settings.lease_seconds + 1)  # the worker has died
    assert await replay(counted, "public", letter.id) is Replay.REPLAYED


async def test_unknown_letter_is_not_found(counted: Backend, clock: MovableClock) -> None:
    _, letter = await died(counted, clock)
    with pytest.raises(NotFound):
        await replay(counted, "public", "ab" * 16)
    with pytest.raises(NotFound):
        await replay(counted, "acme", letter.id)


async def test_letters_are_replayed_in_pages(
    counted: Backend, counting: Counting, clock: MovableClock
) -> None:
    made = [await died(counted, clock, number) for number in range(5)]
    imageless = replace(made[0][1], id="ab" * 16, attributes={"tenant": "public"}, died_at=clock())
    await counted.dead_letters.add(imageless)
    wanted, after, total = LetterFilter("public"), "", 0
    while True:
        done = await replay_all(counted, wanted, 2, after)
        total += done.counts[Replay.REPLAYED]
        if not done.after:
            break
        assert sum(done.counts.values()) == 2
        after = done.after
    assert total == 5
    assert {key.image_hash for key in counting.published} == {key.image_hash for key, _ in made}
    assert await counted.dead_letters.list(wanted, 10) == [imageless]  # a letter without an image
    assert (await replay_all(counted, wanted, 2)).counts == {Replay.UNREADABLE: 1}


async def test_command_lists_replays_and_purges(
    backend: Backend, settings: Settings, clock: MovableClock
) -> None:
    key, letter = await died(backend, clock, 1)
    _, other = await died(backend, clock, 2)

    async def command(name: str, **values: object) -> str:
        known = {"tenant": "public", "code": "", "all": False, "ids": [], "days": 0.0}
        return await run(settings, argparse.Namespace(command=name, **known | values))

    listed = await command("list")
    heading, first, second = listed.splitlines()
    assert heading.split() == [
        "ID", "IMAGE/JOB", "MODEL", "DELIVERIES", "DIED", "RESOLVED", "REASON",
    ]  # fmt: skip
    assert first.index("inference_failed: The model failed.") == heading.index("REASON")
    assert other.id in first
    assert letter.id in second
    assert key.image_hash[:12] in second
    assert await command("list", code="unavailable") == "No dead letters."
    assert await command("replay", ids=[letter.id, "ab" * 16]) == "1 replayed, 1 unknown."
    assert await command("replay", ids=[letter.id]) == "1 resolved."
    assert len((await command("list")).splitlines()) == 2
    assert len((await command("list", all=True)).splitlines()) == 3
    assert await command("replay") == "1 replayed."
    assert await command("replay") == "No dead letters."
    assert await command("purge", days=-1e5) == "2 deleted."
    assert await command("list", all=True) == "No dead letters."
