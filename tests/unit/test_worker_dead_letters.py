"""Messages that used up their deliveries (P4)."""

import base64
import sqlite3
from collections.abc import AsyncIterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import pytest

from core.clock import rfc3339
from core.domain.messages import ClassifyImage
from core.domain.records import Annotation, RecordError, RecordKey, Status, complete, release, retry
from tests.support.clock import MovableClock
from tests.support.faults import Once
from tests.support.pictures import picture
from tests.support.records import claimed, delete_image
from tests.support.worker import UNKNOWN_MODEL, RunningWorker, running_worker, settings_in


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_in(tmp_path)) as running:
        yield running


@pytest.mark.parametrize(
    ("deliveries", "told", "counted"),
    [
        ("7", "after 7 deliveries", 7),
        ("", "after all deliveries", 0),
        ("<b>", "after all deliveries", 0),
        ("٣", "after all deliveries", 0),
        ("1000000000", "after all deliveries", 0),
    ],
)
async def test_record_fails_with_a_retryable_error(
    worker: RunningWorker, deliveries: str, told: str, counted: int
) -> None:
    key = await worker.submit()
    assert (await worker.dead_letter(key, deliveries)).status_code == 204
    record = await worker.record(key)
    assert record.status is Status.ERROR
    assert record.error is not None
    assert record.error.code == "delivery_exhausted"
    assert record.error.retryable
    assert told in record.error.detail
    (letter,) = await worker.letters()
    assert (letter.attempts, letter.code) == (counted, "delivery_exhausted")


async def test_letter_is_kept_as_it_was_published(worker: RunningWorker) -> None:
    key = await worker.submit()
    message = ClassifyImage(key, f"00-{'a' * 32}-{'b' * 16}-01")
    died = worker.context.clock()
    payload = base64.b64encode(b"\x00\xff").decode()
    attributes = message.attributes() | {
        "CloudPubSubDeadLetterSourceDeliveryCount": "10",
        "CloudPubSubDeadLetterSourceSubscription": "classify",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "local",
        "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-20T23:59:59.125Z",
    }
    await worker.dead_letter(key, attributes=attributes, data=payload, publishTime=died.isoformat())
    (letter,) = await worker.letters()
    assert letter.attributes == message.attributes()
    assert (letter.payload, letter.payload_size, letter.attempts) == (b"\x00\xff", 2, 10)
    assert letter.published_at == datetime(2026, 11, 20, 23, 59, 59, 125_000, tzinfo=UTC)
    assert (letter.died_at, letter.resolved_at) == (died, None)


@pytest.mark.parametrize(
    ("time", "died"),
    [
        ("2026-11-20T10:00:00Z", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("2026-11-20T10:00:00+02:00", datetime(2026, 11, 20, 8, tzinfo=UTC)),
        ("2026-11-20T10:00:00", datetime(2026, 11, 20, 10, tzinfo=UTC)),
        ("yesterday", None),
        ("", None),
        ("1969-12-31T23:59:59Z", None),
        ("0001-01-01T00:00:00+23:00", None),
        ("9999-12-31T23:59:59-23:00", None),
    ],
)
async def test_implausible_time_of_death_is_replaced_by_now(
    tmp_path: Path, time: str, died: datetime | None
) -> None:
    clock = MovableClock()
    async with running_worker(settings_in(tmp_path), clock) as worker:
        key = await worker.submit()
        assert (await worker.dead_letter(key, publishTime=time)).status_code == 204
        (letter,) = await worker.letters()
    assert letter.died_at == (died or clock())


async def test_large_payload_is_truncated(worker: RunningWorker) -> None:
    key = await worker.submit()
    payload = bytes(range(256)) * 2048
    await worker.dead_letter(key, data=base64.b64encode(payload).decode())
    (letter,) = await worker.letters()
    assert (letter.payload, letter.payload_size) == (payload[: 256 * 1024], 512 * 1024)


async def test_repeated_delivery_is_one_letter(worker: RunningWorker) -> None:
    """The message id may differ, for example when Pub/Sub forwards a message twice."""
    key = await worker.submit()
    for id_ in ("1", "1", "2"):
        assert (await worker.dead_letter(key, messageId=id_)).status_code == 204
    assert len(await worker.letters()) == 1


async def test_record_and_letter_have_the_reason_of_the_last_failure(
    worker: RunningWorker,
) -> None:
    """The last delivery failed because the blob store did."""
    key = await worker.submit()
    folder = worker.context.settings.data_dir / "blobs" / "public" / key.image_hash[:2]
    blob = folder / key.image_hash
    blob.unlink()
    blob.mkdir()  # a read fails, for another reason than absence
    assert (await worker.push(key)).status_code == 503
    record = await worker.record(key)
    assert record.status is Status.RUNNING
    assert record.error is not None
    assert record.error.code == "unavailable"
    # A later failure without a reason keeps this one.
    claim = await claimed(worker.backend.records, key, timedelta(minutes=1))
    assert claim is not None
    assert await worker.backend.records.change(claim.key, release(claim))
    assert (await worker.dead_letter(key, reason="HTTP 503")).status_code == 204
    error = (await worker.record(key)).error
    assert error is not None
    assert (error.code, error.retryable) == ("delivery_exhausted", True)
    told = "unavailable: The image storage does not answer."
    assert error.detail.endswith(f"after 10 deliveries. Last failure: {told}")
    (letter,) = await worker.letters()
    assert f"{letter.code}: {letter.detail}" == told


async def test_reason_of_the_queue_is_used_without_one_of_the_worker(worker: RunningWorker) -> None:
    key, other = await worker.submit(), await worker.submit(picture(2))
    await worker.dead_letter(key, reason="no answer within 60 s")
    await worker.dead_letter(other, reason="\x1b[2J")
    told, silent = [(await worker.record(each)).error for each in (key, other)]
    assert told is not None
    assert told.detail.endswith("Last failure: no answer within 60 s")
    assert silent is not None
    assert silent.detail.endswith("The queue gives no reason.")


async def test_success_clears_earlier_failures(worker: RunningWorker) -> None:
    key = await worker.submit()
    claim = await claimed(worker.backend.records, key, timedelta(minutes=1))
    assert claim is not None
    await worker.backend.records.change(
        claim.key, release(claim, RecordError("unavailable", "No disk.", True))
    )
    assert (await worker.push(key)).status_code == 204
    record = await worker.record(key)
    assert (record.status, record.error) == (Status.SUCCESS, None)


async def test_unreadable_letter_is_kept(worker: RunningWorker) -> None:
    attributes = {
        "image_hash": "?",
        "tenant": "acme",
        "CloudPubSubDeadLetterSourceDeliveryCount": "3",
    }
    key = RecordKey("public", "cd" * 32, worker.model)
    assert (await worker.dead_letter(key, attributes=attributes)).status_code == 204
    (letter,) = await worker.letters("acme")
    assert (letter.code, letter.attempts) == ("malformed_envelope", 3)
    assert letter.attributes == {"image_hash": "?", "tenant": "acme"}
    assert (await worker.dead_letter(key, attributes={"tenant": "../etc"})).status_code == 204
    assert len(await worker.letters()) == 1


async def test_late_letter_does_not_fail_a_later_attempt(tmp_path: Path) -> None:
    """The queue may deliver the letter again after its replay."""
    clock = MovableClock()
    async with running_worker(settings_in(tmp_path), clock) as worker:
        key = await worker.submit()
        died = rfc3339(clock() + timedelta(milliseconds=1))
        assert (await worker.dead_letter(key, publishTime=died)).status_code == 204
        clock.move(0.005)
        assert await worker.backend.records.change(key, retry())
        assert (await worker.dead_letter(key, publishTime=died)).status_code == 204
        assert (await worker.record(key)).status is Status.PENDING
        assert len(await worker.letters()) == 1


async def test_letter_is_kept_before_its_record_fails(worker: RunningWorker) -> None:
    """If the worker stops in between, the next delivery fails the record."""
    key = await worker.submit()
    died = rfc3339(worker.context.clock() + timedelta(milliseconds=1))

    def refuse(connection: sqlite3.Connection) -> None:
        connection.execute(
            "CREATE TRIGGER refusal BEFORE UPDATE ON records BEGIN SELECT RAISE(ABORT, 'x'); END"
        )

    with closing(sqlite3.connect(worker.context.settings.data_dir / "records.db")) as connection:
        refuse(connection)
        connection.commit()
        assert (await worker.dead_letter(key, publishTime=died)).status_code == 503
        assert len(await worker.letters()) == 1
        connection.execute("DROP TRIGGER refusal")
        connection.commit()
    assert (await worker.dead_letter(key, publishTime=died)).status_code == 204
    assert (await worker.record(key)).status is Status.ERROR
    assert len(await worker.letters()) == 1


async def test_error_names_the_unknown_model(worker: RunningWorker) -> None:
    key = await worker.submit(model=UNKNOWN_MODEL)
    assert (await worker.dead_letter(key)).status_code == 204
    error = (await worker.record(key)).error
    assert error is not None
    assert (error.code, error.retryable) == ("model_unavailable", True)
    assert UNKNOWN_MODEL in error.detail


async def test_result_is_never_overwritten(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.push(key)
    before = await worker.record(key)
    assert (await worker.dead_letter(key)).status_code == 204
    assert await worker.record(key) == before
    assert await worker.letters() == []


async def test_letter_of_an_image_that_succeeded_later_is_resolved(
    worker: RunningWorker,
) -> None:
    """The queue delivers the letter again after a new upload has succeeded."""
    key = await worker.submit()
    died = rfc3339(worker.context.clock() + timedelta(milliseconds=1))
    assert (await worker.dead_letter(key, publishTime=died)).status_code == 204
    (letter,) = await worker.letters()
    assert await worker.backend.records.change(key, retry())
    assert (await worker.push(key)).status_code == 204
    assert len(await worker.letters()) == 1
    assert (await worker.dead_letter(key, publishTime=died)).status_code == 204
    assert await worker.letters() == []
    resolved = await worker.backend.dead_letters.get(letter.key)
    assert resolved is not None and resolved.resolved_at is not None


async def test_record_that_a_worker_claims_meanwhile_is_unchanged(
    worker: RunningWorker,
) -> None:
    """The claim comes after the record was read and before it fails."""
    key = await worker.submit()
    claim = partial(claimed, worker.backend.records, key, timedelta(minutes=1))
    with worker.watching(Once("records.fail_unleased", 1, claim)):
        assert (await worker.dead_letter(key)).status_code == 503
    assert (await worker.record(key)).status is Status.RUNNING


async def test_leased_record_is_unchanged(worker: RunningWorker) -> None:
    key = await worker.submit()
    claim = await claimed(worker.backend.records, key, timedelta(minutes=1))
    assert claim is not None
    answer = await worker.dead_letter(key)
    assert answer.status_code == 503
    assert "retry-after" in answer.headers
    assert await worker.letters() == []  # it may yet succeed
    assert await worker.backend.records.change(
        claim.key, complete(claim, [Annotation(1, "red", 1.0)])
    )
    assert (await worker.dead_letter(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS


async def test_record_with_an_expired_lease_fails(worker: RunningWorker) -> None:
    key = await worker.submit()
    await claimed(worker.backend.records, key, timedelta(microseconds=1))
    assert (await worker.dead_letter(key)).status_code == 204
    assert (await worker.record(key)).status is Status.ERROR


async def test_letter_of_a_deleted_image_is_not_kept(worker: RunningWorker) -> None:
    key = await worker.submit()
    await delete_image(worker.backend.records, key.image)
    assert (await worker.dead_letter(key)).status_code == 204
    assert await worker.letters() == []


async def test_letter_of_an_unknown_image_is_kept(worker: RunningWorker) -> None:
    key = RecordKey("public", "cd" * 32, worker.model)
    assert (await worker.dead_letter(key)).status_code == 204
    assert await worker.backend.records.get(key) is None
    (letter,) = await worker.letters()
    assert letter.code == "not_found"


async def test_retried_record_can_succeed(worker: RunningWorker) -> None:
    key = await worker.submit()
    await worker.dead_letter(key)
    assert await worker.backend.records.change(key, retry())
    assert (await worker.push(key)).status_code == 204
    assert (await worker.record(key)).status is Status.SUCCESS
