"""Every method of the RecordStore port, each transition and each refusal (P2, P3)."""

import asyncio
import json
from datetime import timedelta

import pytest

from core.backends import Backend
from core.domain import records
from core.domain.priority import Priority
from core.domain.record_lists import RecordFilter
from core.domain.records import (
    Annotation,
    Claim,
    Record,
    RecordError,
    RecordKey,
    Status,
    new_record,
)
from core.errors import NotFound, Unavailable
from core.ports import RecordStore
from tests.support.clock import MovableClock
from tests.support.records import claimed, delete_image

LEASE = timedelta(seconds=30)
RESULT = (Annotation(1, "Egyptian cat", 0.1 + 0.2), Annotation(2, 'school "bus" é', 1e-17))
RETRYABLE = RecordError("delivery_exhausted", "Ten deliveries failed.", retryable=True)
PERMANENT = RecordError("undecodable_image", "The image is truncated.", retryable=False)
CANCELLED = RecordError("cancelled", "The job was cancelled.", retryable=True)
JOB = "5" * 32
MODEL = "colours@0123456789ab"


def key_of(number: int = 1, *, tenant: str = "public", model: str = MODEL) -> RecordKey:
    return RecordKey(tenant, f"{number:064x}", model)


@pytest.fixture
def store(backend: Backend) -> RecordStore:
    return backend.records


async def stored(store: RecordStore, key: RecordKey) -> Record:
    record = await store.get(key)
    assert record is not None
    return record


async def created(store: RecordStore, clock: MovableClock, key: RecordKey) -> Record:
    record = new_record(key, clock())
    assert await store.create(record)
    return record


async def created_and_claimed(store: RecordStore, clock: MovableClock, key: RecordKey) -> Claim:
    await created(store, clock, key)
    claim = await claimed(store, key, LEASE)
    assert claim is not None
    return claim


async def test_unknown_record_is_none_and_refuses_changes(
    store: RecordStore, clock: MovableClock
) -> None:
    key = key_of()
    claim = Claim(key, 1, 1, clock() + LEASE, clock())
    assert await store.get(key) is None
    assert not await store.change(key, records.advance(Status.PENDING, Status.QUEUED))
    assert await claimed(store, key, LEASE) is None
    assert not await store.change(claim.key, records.complete(claim, RESULT))
    assert not await store.change(key, records.fail_unleased(PERMANENT))
    assert not await store.change(claim.key, records.fail(claim, PERMANENT))
    assert not await store.change(claim.key, records.release(claim))
    assert not await store.change(key, records.retry())
    assert not await store.change(key, records.want(Priority.HIGH))
    assert not await store.change(key, records.touch(clock.move(1)))
    with pytest.raises(NotFound):
        await store.begin_deletion(key.image, "owner", has_blob=False)
    assert await store.deletion(key.image) is None
    assert await store.get_with_deletion(key) == (None, None)
    assert await store.stale(clock.move(1), 10) == []


async def test_created_record_is_returned_unchanged(
    store: RecordStore, clock: MovableClock
) -> None:
    record = await created(store, clock, key_of())
    assert await store.get(record.key) == record


async def test_get_many_returns_existing_records_of_any_tenant_and_model(
    store: RecordStore, clock: MovableClock
) -> None:
    keys = [key_of(), key_of(2), key_of(tenant="acme"), key_of(model="vit@abcdef012345")]
    there = {key: await created(store, clock, key) for key in keys}
    claim = await claimed(store, key_of(2), LEASE)
    assert claim is not None
    assert await store.change(claim.key, records.complete(claim, RESULT))
    there[key_of(2)] = await stored(store, key_of(2))
    others = [key_of(3), key_of(2, tenant="acme"), key_of(tenant="empty")]
    assert await store.get_many([*keys, *others, key_of()]) == there
    assert await store.get_many(others) == {}
    assert await store.get_many([]) == {}


async def test_get_many_accepts_more_keys_than_one_request(
    store: RecordStore, clock: MovableClock
) -> None:
    there = [key_of(number) for number in range(1, 2600, 25)]
    for start in range(0, len(there), 20):
        await asyncio.gather(*(created(store, clock, key) for key in there[start : start + 20]))
    asked = [key_of(number) for number in range(2600)]
    assert sorted(await store.get_many(asked), key=str) == sorted(there, key=str)


async def test_one_of_twenty_concurrent_creates_succeeds(
    store: RecordStore, clock: MovableClock
) -> None:
    contenders = [new_record(key_of(), clock.move(0.001)) for _ in range(20)]
    won = await asyncio.gather(*(store.create(record) for record in contenders))
    assert won.count(True) == 1
    assert await store.get(key_of()) == contenders[won.index(True)]


async def test_create_does_not_overwrite_a_record(store: RecordStore, clock: MovableClock) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.complete(claim, RESULT))
    before = await store.get(key_of())
    clock.move(1)
    assert not await store.create(new_record(key_of(), clock()))
    assert await store.get(key_of()) == before


async def test_advance_moves_pending_to_queued_once(
    store: RecordStore, clock: MovableClock
) -> None:
    await created(store, clock, key_of())
    moved = clock.move(1)
    assert await store.change(key_of(), records.advance(Status.PENDING, Status.QUEUED))
    after = await stored(store, key_of())
    assert (after.status, after.updated_at) == (Status.QUEUED, moved)
    assert not await store.change(key_of(), records.advance(Status.PENDING, Status.QUEUED))


async def test_advance_refuses_other_steps(store: RecordStore, clock: MovableClock) -> None:
    await created(store, clock, key_of())
    with pytest.raises(ValueError, match="no transition"):
        await store.change(key_of(), records.advance(Status.PENDING, Status.SUCCESS))
    assert (await stored(store, key_of())).status is Status.PENDING


async def test_late_advance_does_not_overwrite_success(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert not await store.change(key_of(), records.advance(Status.PENDING, Status.QUEUED))
    assert await store.change(claim.key, records.complete(claim, RESULT))
    assert not await store.change(key_of(), records.advance(Status.PENDING, Status.QUEUED))
    assert (await stored(store, key_of())).status is Status.SUCCESS


async def test_claim_holds_the_record_until_its_lease_ends(
    store: RecordStore, clock: MovableClock
) -> None:
    first = await created_and_claimed(store, clock, key_of())
    assert (first.token, first.attempt, first.expires_at) == (1, 1, clock() + LEASE)
    running = await stored(store, key_of())
    assert (running.status, running.attempts) == (Status.RUNNING, 1)
    assert running.leased(clock())

    clock.move(29.999)
    assert await claimed(store, key_of(), LEASE) is None
    clock.move(0.001)
    second = await claimed(store, key_of(), LEASE)
    assert second is not None
    assert (second.token, second.attempt) == (2, 2)


async def test_one_of_concurrent_claims_succeeds(store: RecordStore, clock: MovableClock) -> None:
    await created(store, clock, key_of())
    answers = await asyncio.gather(
        *(claimed(store, key_of(), LEASE) for _ in range(5)), return_exceptions=True
    )
    assert sum(isinstance(answer, Claim) for answer in answers) == 1
    # A store with locks may answer Unavailable, but never grants a second claim.
    assert all(answer is None or isinstance(answer, Claim | Unavailable) for answer in answers), (
        answers
    )


async def test_complete_stores_the_result_at_full_precision(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    ended = clock.move(1)
    assert await store.change(claim.key, records.complete(claim, RESULT))
    done = await stored(store, key_of())
    assert done.status is Status.SUCCESS
    assert done.annotations == RESULT
    assert done.updated_at == ended
    assert (done.error, done.lease_expires_at) == (None, None)
    assert not await store.change(claim.key, records.complete(claim, RESULT[:1]))
    assert (await stored(store, key_of())).annotations == RESULT


@pytest.mark.parametrize("confident", [True, False])
async def test_complete_stores_categories_and_confidence(
    store: RecordStore, clock: MovableClock, confident: bool
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    before = await stored(store, key_of())
    assert (before.categories, before.confident) == ((), None)
    categories = (Annotation(1, "cat", 0.9), Annotation(2, "animal", 0.1 + 0.2))
    output = json.dumps({"text": "ä" * 30_000})
    step = records.complete(
        claim, RESULT, categories=categories, confident=confident, output=output
    )
    assert await store.change(claim.key, step)
    done = await stored(store, key_of())
    assert (done.annotations, done.categories, done.confident) == (RESULT, categories, confident)
    assert done.output == output
    assert (await store.get_many([key_of()]))[key_of()] == done


async def test_result_without_categories_and_confidence_is_stored(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.complete(claim, RESULT))
    done = await stored(store, key_of())
    assert (done.categories, done.confident, done.output) == ((), None, "")


async def test_old_token_is_refused(store: RecordStore, clock: MovableClock) -> None:
    old = await created_and_claimed(store, clock, key_of())
    clock.move(31)
    new = await claimed(store, key_of(), LEASE)
    assert new is not None
    assert not await store.change(old.key, records.complete(old, RESULT))
    assert not await store.change(old.key, records.fail(old, PERMANENT))
    assert not await store.change(old.key, records.release(old))
    assert (await stored(store, key_of())).status is Status.RUNNING
    assert await store.change(new.key, records.complete(new, RESULT))


async def test_expired_claim_can_complete_unless_another_was_granted(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    clock.move(31)
    assert await store.change(claim.key, records.complete(claim, RESULT))


async def test_fail_under_a_claim_is_final(store: RecordStore, clock: MovableClock) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.fail(claim, PERMANENT))
    failed = await stored(store, key_of())
    assert (failed.status, failed.error) == (Status.ERROR, PERMANENT)
    assert not await store.change(claim.key, records.complete(claim, RESULT))
    assert await claimed(store, key_of(), LEASE) is None
    assert not await store.change(key_of(), records.fail_unleased(RETRYABLE))
    assert (await stored(store, key_of())).error == PERMANENT


async def test_fail_unleased_is_refused_during_a_lease(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert not await store.change(key_of(), records.fail_unleased(RETRYABLE))
    clock.move(31)
    assert await store.change(key_of(), records.fail_unleased(RETRYABLE))
    assert not await store.change(claim.key, records.complete(claim, RESULT))

    await created(store, clock, key_of(2))
    assert await store.change(key_of(2), records.fail_unleased(RETRYABLE))


async def test_fail_unleased_does_not_overwrite_success(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.complete(claim, RESULT))
    assert not await store.change(key_of(), records.fail_unleased(RETRYABLE))
    assert (await stored(store, key_of())).status is Status.SUCCESS


async def test_fail_unleased_is_bound_to_the_state_that_its_caller_read(
    store: RecordStore, clock: MovableClock
) -> None:
    """A dead letter or a reconciler may act when the next attempt has started."""
    record = await created(store, clock, key_of())
    clock.move(10)
    died = clock()
    assert await store.change(key_of(), records.fail_unleased(RETRYABLE, submitted_by=died))
    clock.move(10)
    assert await store.change(key_of(), records.retry())
    assert not await store.change(key_of(), records.fail_unleased(RETRYABLE, submitted_by=died))
    assert (await stored(store, key_of())).status is Status.PENDING
    # `submitted_by` includes its moment, and so does `untouched_since`.
    submitted = (await stored(store, key_of())).submitted_at
    assert submitted > record.submitted_at
    assert not await store.change(
        key_of(), records.fail_unleased(RETRYABLE, untouched_since=submitted)
    )
    assert await store.change(key_of(), records.fail_unleased(RETRYABLE, submitted_by=submitted))

    await created(store, clock, key_of(2))
    looked = clock.move(10)
    assert await store.change(key_of(2), records.touch(looked))
    assert not await store.change(
        key_of(2), records.fail_unleased(RETRYABLE, untouched_since=looked)
    )
    assert await store.change(
        key_of(2), records.fail_unleased(RETRYABLE, untouched_since=clock.move(1))
    )


async def test_release_keeps_its_reason_until_the_record_ends(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.release(claim, RETRYABLE))
    assert (await stored(store, key_of())).error == RETRYABLE
    again = await claimed(store, key_of(), LEASE)
    assert again is not None
    assert await store.change(
        again.key, records.release(again)
    )  # without a reason: the last one stays
    record = await stored(store, key_of())
    assert (record.status, record.error) == (Status.RUNNING, RETRYABLE)
    assert not await store.change(key_of(), records.retry())  # it has not ended
    last = await claimed(store, key_of(), LEASE)
    assert last is not None
    assert await store.change(last.key, records.complete(last, RESULT))
    assert (await stored(store, key_of())).error is None


async def test_claims_count_unless_they_are_released_for_another_reason(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert claim.claims == 1
    assert await store.change(claim.key, records.release(claim))
    for number in (1, 2):
        again = await claimed(store, key_of(), LEASE)
        assert again is not None
        assert again.claims == number
        assert await store.change(again.key, records.release(again, RETRYABLE, counts=True))
    died = await claimed(store, key_of(), LEASE)
    assert died is not None
    assert died.last_error == RETRYABLE
    clock.move(LEASE.total_seconds())
    last = await claimed(store, key_of(), LEASE)
    assert last is not None
    assert (last.claims, (await stored(store, key_of())).attempts) == (4, 5)
    assert await store.change(last.key, records.fail(last, RETRYABLE))
    assert (await stored(store, key_of())).claims == 4
    assert await store.change(key_of(), records.retry())
    assert (await stored(store, key_of())).claims == 0


async def test_record_is_republished_at_doubling_intervals_of_its_attempt(
    store: RecordStore, clock: MovableClock
) -> None:
    """Of concurrent reconcilers, only one may republish."""
    key, stale_after = key_of(), timedelta(seconds=600)
    await created(store, clock, key)
    assert (await stored(store, key)).republished_at is None
    for age in (600, 1200, 2400):
        began = (await stored(store, key)).submitted_at
        clock.now = began + timedelta(seconds=age - 1)
        early = records.republish(clock(), stale_after)
        assert age == 600 or await store.change(key, early) is None
        clock.move(1)
        again = records.republish(clock(), stale_after)
        granted = await asyncio.gather(*(store.change(key, again) for _ in range(4)))
        assert [each is not None for each in granted].count(True) == 1
        record = await stored(store, key)
        assert (record.republished_at, record.updated_at) == (clock(), clock())
    clock.move(LEASE.total_seconds())
    claim = await claimed(store, key, LEASE)
    assert claim is not None
    assert await store.change(key, records.republish(clock.move(9000), stale_after))
    claim = await claimed(store, key, LEASE)
    assert claim is not None
    assert await store.change(key, records.republish(clock.move(1), stale_after)) is None  # leased
    assert await store.change(key, records.fail(claim, RETRYABLE))
    assert await store.change(key, records.retry())
    assert (await stored(store, key)).republished_at is None


async def test_released_record_can_be_claimed_at_once(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.release(claim))
    assert not (await stored(store, key_of())).leased(clock())
    again = await claimed(store, key_of(), LEASE)
    assert again is not None
    assert again.token == 2
    assert not await store.change(claim.key, records.release(claim))
    assert await store.change(again.key, records.complete(again, RESULT))
    assert not await store.change(again.key, records.release(again))


async def test_retry_is_refused_except_after_a_retryable_error(
    store: RecordStore, clock: MovableClock
) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert not await store.change(key_of(), records.retry())  # running
    assert await store.change(claim.key, records.fail(claim, RETRYABLE))
    assert await store.change(key_of(), records.retry())
    retried = await stored(store, key_of())
    assert (retried.status, retried.error) == (Status.PENDING, None)
    assert not await store.change(key_of(), records.retry())  # pending
    second = await claimed(store, key_of(), LEASE)
    assert second is not None
    assert second.token == 2  # tokens rise across attempts
    assert not await store.change(claim.key, records.complete(claim, RESULT))
    assert await store.change(second.key, records.fail(second, PERMANENT))
    assert not await store.change(key_of(), records.retry())  # permanent
    assert (await stored(store, key_of())).error == PERMANENT


async def test_record_keeps_its_priority_and_job(store: RecordStore, clock: MovableClock) -> None:
    plain = await created(store, clock, key_of())
    assert (plain.priority, plain.job) == (Priority.HIGH, "")
    wanted = new_record(key_of(2), clock(), Priority.LOW, JOB)
    assert await store.create(wanted)
    assert await store.get(wanted.key) == wanted
    assert await store.change(wanted.key, records.advance(Status.PENDING, Status.QUEUED))
    claim = await claimed(store, wanted.key, LEASE)
    assert claim is not None
    assert claim.job == JOB
    running = await stored(store, wanted.key)
    assert (running.priority, running.job) == (Priority.LOW, JOB)
    assert await store.change(claim.key, records.complete(claim, RESULT))
    ended = await stored(store, wanted.key)
    assert (ended.priority, ended.job) == (Priority.LOW, JOB)


async def test_want_raises_the_priority_and_clears_the_job(
    store: RecordStore, clock: MovableClock
) -> None:
    key, other_job = key_of(), "0" * 32
    assert not await store.change(key, records.want(Priority.HIGH))  # unknown
    assert await store.create(new_record(key, clock(), Priority.LOW, JOB))
    clock.move(1)
    assert not await store.change(key, records.want(Priority.LOW, JOB))
    assert await store.change(key, records.want(Priority.NORMAL, JOB))
    first = await stored(store, key)
    assert (first.priority, first.job) == (Priority.NORMAL, JOB)
    assert first.updated_at < clock()  # a request is no progress
    assert await store.change(key, records.want(Priority.LOW, other_job))
    shared = await stored(store, key)
    assert (shared.priority, shared.job) == (Priority.NORMAL, "")
    assert not await store.change(key, records.want(Priority.NORMAL, JOB))
    assert await store.change(key, records.want(Priority.HIGH))
    assert not await store.change(key, records.want(Priority.HIGH))
    claim = await claimed(store, key, LEASE)
    assert claim is not None
    assert (claim.job, (await stored(store, key)).priority) == ("", Priority.HIGH)
    assert await store.change(claim.key, records.complete(claim, RESULT))
    assert not await store.change(key, records.want(Priority.HIGH, JOB))  # terminal


async def test_claimed_record_can_be_requested(store: RecordStore, clock: MovableClock) -> None:
    assert await store.create(new_record(key_of(), clock(), Priority.LOW, JOB))
    claim = await claimed(store, key_of(), LEASE)
    assert claim is not None
    assert await store.change(key_of(), records.want(Priority.HIGH))
    assert not await store.change(claim.key, records.fail(claim, CANCELLED, only_for=JOB))
    assert await store.change(claim.key, records.complete(claim, RESULT))  # the claim is unchanged


async def test_fail_for_one_job_only(store: RecordStore, clock: MovableClock) -> None:
    key = key_of()
    assert await store.create(new_record(key, clock(), Priority.LOW, JOB))
    assert not await store.change(key, records.fail_unleased(CANCELLED, only_for="0" * 32))
    claim = await claimed(store, key, LEASE)
    assert claim is not None
    assert not await store.change(claim.key, records.fail(claim, CANCELLED, only_for="0" * 32))
    assert await store.change(claim.key, records.fail(claim, CANCELLED, only_for=JOB))
    assert (await stored(store, key)).error == CANCELLED
    assert await store.create(new_record(key_of(2), clock(), Priority.LOW, JOB))
    assert await store.change(key_of(2), records.fail_unleased(CANCELLED, only_for=JOB))
    await created(store, clock, key_of(3))
    assert not await store.change(
        key_of(3), records.fail_unleased(CANCELLED, only_for=JOB)
    )  # requested by a client


async def test_one_of_a_concurrent_request_and_cancellation_is_refused(
    store: RecordStore, clock: MovableClock
) -> None:
    """A client whose request is granted gets a result; otherwise it asks for a new attempt."""
    for number in range(1, 4):
        key = key_of(number)
        assert await store.create(new_record(key, clock(), Priority.LOW, JOB))
        claim = await claimed(store, key, LEASE)
        assert claim is not None
        wanted, failed = await asyncio.gather(
            store.change(key, records.want(Priority.HIGH)),
            store.change(claim.key, records.fail(claim, CANCELLED, only_for=JOB)),
        )
        assert (wanted is None) is not (failed is None)
        assert (await stored(store, key)).status is (Status.ERROR if failed else Status.RUNNING)


async def test_retry_sets_the_priority_and_job(store: RecordStore, clock: MovableClock) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    assert await store.change(claim.key, records.fail(claim, RETRYABLE))
    assert await store.change(key_of(), records.retry(Priority.LOW, JOB))
    retried = await stored(store, key_of())
    assert (retried.priority, retried.job) == (Priority.LOW, JOB)
    second = await claimed(store, key_of(), LEASE)
    assert second is not None
    assert second.job == JOB
    assert await store.change(second.key, records.fail(second, RETRYABLE, only_for=JOB))
    assert await store.change(key_of(), records.retry())
    last = await stored(store, key_of())
    assert (last.priority, last.job) == (Priority.HIGH, "")


async def test_touch_updates_a_stale_record(store: RecordStore, clock: MovableClock) -> None:
    created_at = (await created(store, clock, key_of())).created_at
    later = clock.move(10)
    assert not await store.change(
        key_of(), records.touch(created_at)
    )  # it was updated at that moment
    assert await store.change(key_of(), records.touch(later))
    assert (await stored(store, key_of())).updated_at == later
    assert not await store.change(key_of(), records.touch(later))  # one of two reconcilers

    claim = await claimed(store, key_of(), LEASE)
    assert claim is not None
    assert not await store.change(key_of(), records.touch(clock.move(1)))  # leased
    assert await store.change(claim.key, records.complete(claim, RESULT))
    assert not await store.change(key_of(), records.touch(clock.move(100)))  # terminal


async def test_stale_returns_unfinished_records_oldest_first(
    store: RecordStore, clock: MovableClock
) -> None:
    for number in (3, 1, 2, 4, 5, 6):
        await created(store, clock, key_of(number))
        clock.move(1)
    running = await claimed(store, key_of(5), LEASE)
    ended = await claimed(store, key_of(1), LEASE)
    assert running is not None
    assert ended is not None
    assert await store.change(ended.key, records.complete(ended, RESULT))
    assert await store.change(key_of(2), records.fail_unleased(RETRYABLE))
    assert await store.change(key_of(4), records.advance(Status.PENDING, Status.QUEUED))

    found = await store.stale(clock.move(1), 10)
    assert [record.key for record in found[:2]] == [key_of(3), key_of(6)]
    assert {record.key for record in found[2:]} == {key_of(4), key_of(5)}
    assert found[0] == await store.get(key_of(3))
    assert [record.key for record in await store.stale(clock(), 1)] == [key_of(3)]
    oldest = found[0].updated_at
    assert await store.stale(oldest, 10) == []
    assert [r.key for r in await store.stale(oldest + timedelta(microseconds=1), 10)] == [key_of(3)]


async def test_delete_image_removes_all_models_of_one_tenant(
    store: RecordStore, clock: MovableClock
) -> None:
    other_model, other_tenant = key_of(model="vit@abcdef012345"), key_of(tenant="acme")
    for key in (key_of(), other_model, other_tenant, key_of(2)):
        await created(store, clock, key)
    deletion = await delete_image(store, key_of().image)
    assert await store.get(key_of()) is None
    assert await store.get(other_model) is None
    assert await store.get(other_tenant) is not None
    assert await store.get(key_of(2)) is not None
    assert (await delete_image(store, key_of().image)).token == deletion.token + 1
    assert await store.deletion(other_tenant.image) is None


async def test_claimed_record_is_discarded_if_one_job_alone_asked_for_it(
    store: RecordStore, clock: MovableClock
) -> None:
    mine, shared, clients = key_of(1), key_of(2), key_of(3)
    for key, job in ((mine, JOB), (shared, JOB), (clients, "")):
        assert await store.create(new_record(key, clock(), job=job))
    claims = {key: await claimed(store, key, LEASE) for key in (mine, shared, clients)}
    assert await store.change(shared, records.want(Priority.HIGH))
    discarded = {key: await store.discard(claim) for key, claim in claims.items() if claim}
    assert discarded == {mine: True, shared: False, clients: False}
    assert await store.get(mine) is None
    claim = claims[mine]
    assert claim is not None
    assert not await store.discard(claim)
    assert await store.create(new_record(mine, clock.move(1), job=JOB))
    assert await claimed(store, mine, LEASE)
    assert not await store.discard(claim)  # the claim of the earlier record


async def test_delete_model_removes_the_results_of_one_model_of_one_tenant(
    store: RecordStore, clock: MovableClock
) -> None:
    deleted = [key_of(number, model="birds@abcdef012345") for number in range(1, 4)]
    kept = [
        key_of(),
        key_of(model="birds@abcdef012346"),
        key_of(model="bird@abcdef012345"),
        key_of(tenant="acme", model="birds@abcdef012345"),
    ]
    for key in (*deleted, *kept):
        await created(store, clock, key)
    claim = await claimed(store, deleted[0], LEASE)
    assert claim is not None
    assert await store.change(claim.key, records.complete(claim, RESULT))
    assert await store.delete_model("public", "birds@abcdef012345", limit=2) == 2
    assert await store.delete_model("public", "birds@abcdef012345", limit=2) == 1
    assert await store.delete_model("public", "birds@abcdef012345", limit=2) == 0
    assert await store.get_many(deleted) == {}
    assert set(await store.get_many(kept)) == set(kept)
    found = await store.list(RecordFilter("public"), 10)
    assert {record.key for record in found.records} == set(kept[:3])


async def test_records_of_an_image_are_those_of_one_tenant_under_every_model(
    store: RecordStore, clock: MovableClock
) -> None:
    other_model = key_of(model="vit@abcdef012345")
    for key in (key_of(), other_model, key_of(tenant="acme"), key_of(2)):
        await created(store, clock, key)
    found = await store.of_image("public", key_of().image_hash)
    assert sorted(found, key=lambda record: record.key.model) == [
        await store.get(key) for key in (key_of(), other_model)
    ]
    assert await store.of_image("public", "f" * 64) == []


async def test_deletion_ends_the_claim(store: RecordStore, clock: MovableClock) -> None:
    claim = await created_and_claimed(store, clock, key_of())
    await delete_image(store, key_of().image)
    assert not await store.change(claim.key, records.complete(claim, RESULT))
    assert await store.get(key_of()) is None


async def test_claim_cannot_end_another_record(store: RecordStore, clock: MovableClock) -> None:
    claims = [await created_and_claimed(store, clock, key_of(number)) for number in (1, 2)]
    for claim, key in ((claims[0], key_of(2)), (claims[1], key_of(1))):
        assert await store.change(key, records.complete(claim, RESULT)) is None
        assert await store.change(key, records.fail(claim, PERMANENT)) is None
        assert await store.change(key, records.release(claim)) is None
        assert (await stored(store, key)).status is Status.RUNNING


async def test_claim_cannot_end_a_record_that_was_deleted_and_created_again(
    store: RecordStore, clock: MovableClock
) -> None:
    old = await created_and_claimed(store, clock, key_of())
    await delete_image(store, key_of().image)
    clock.move(1)
    new = await created_and_claimed(store, clock, key_of())
    assert (old.token, old.key) == (new.token, new.key)
    assert not await store.change(old.key, records.complete(old, RESULT))
    assert not await store.change(old.key, records.fail(old, PERMANENT))
    assert not await store.change(old.key, records.release(old))
    assert await store.change(new.key, records.complete(new, RESULT))


async def test_lease_from_before_the_clock_was_set_back_is_ignored(
    store: RecordStore, clock: MovableClock
) -> None:
    old = await created_and_claimed(store, clock, key_of())
    clock.move(-3600)
    new = await claimed(store, key_of(), LEASE)
    assert new is not None
    assert not await store.change(old.key, records.complete(old, RESULT))
    assert await store.change(new.key, records.complete(new, RESULT))


async def test_tenants_and_models_are_separate(store: RecordStore, clock: MovableClock) -> None:
    keys = [key_of(), key_of(tenant="acme"), key_of(model="vit@abcdef012345")]
    for key in keys:
        await created(store, clock, key)
    claim = await claimed(store, keys[0], LEASE)
    assert claim is not None
    assert await store.change(claim.key, records.complete(claim, RESULT))
    statuses = [(await stored(store, key)).status for key in keys]
    assert statuses == [Status.SUCCESS, Status.PENDING, Status.PENDING]


async def test_cancelled_caller_does_not_affect_others(
    store: RecordStore, clock: MovableClock
) -> None:
    callers = [asyncio.create_task(created(store, clock, key_of(n))) for n in range(1, 21)]
    await asyncio.sleep(0)
    for caller in callers[::2]:
        caller.cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes[::2])
    for number in range(2, 21, 2):
        assert await store.get(key_of(number)) is not None


async def test_ping(store: RecordStore) -> None:
    await store.ping()
