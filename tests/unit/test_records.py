"""The transitions under random interleavings of claimants, on pure records and in SQLite.

Promise P2: one stored result. Promise P3: the status only moves forward, an old token ends nothing,
and a terminal status stays, except by a new attempt after a retryable error.
"""

import asyncio
import tempfile
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
)

from core.backends.embedded.database import Database
from core.backends.embedded.records import SCHEMA, SqliteRecordStore
from core.domain import records
from core.domain.policy import MAX_ACK_DEADLINE
from core.domain.records import Annotation, Claim, Record, RecordError, RecordKey, Status
from core.domain.transitions import Transition
from tests.support.clock import MovableClock

T = TypeVar("T")

KEY = RecordKey("public", "ab" * 32, "colours@0123456789ab")
LEASE = timedelta(seconds=30)
ORDER = {
    Status.PENDING: 0,
    Status.QUEUED: 1,
    Status.RUNNING: 2,
    Status.SUCCESS: 3,
    Status.ERROR: 3,
}


class PureStore:
    """One record in memory."""

    def __init__(self, clock: MovableClock) -> None:
        self.clock = clock
        self.record: Record | None = None

    async def get(self, key: RecordKey) -> Record | None:
        return self.record

    async def create(self, record: Record) -> bool:
        if self.record is not None:
            return False
        self.record = record
        return True

    async def change(self, key: RecordKey, transition: Transition[Record]) -> Record | None:
        assert self.record is not None
        after = transition(self.record, self.clock())
        self.record = after or self.record
        return after


class Transitions(RuleBasedStateMachine):
    """Claimants act in any order, with old and new claims, over time.

    Each rule reads the record before and after its step and holds the step to the promises. The
    model is the history that the rules themselves saw: the claims that were granted.
    """

    claims: Bundle[Claim] = Bundle("claims")

    def __init__(self) -> None:
        super().__init__()
        self.clock = MovableClock()
        self.granted: list[Claim] = []
        self.store: PureStore | SqliteRecordStore = self.open()
        self.seen: Record
        self.results = 0

    def open(self) -> PureStore | SqliteRecordStore:
        return PureStore(self.clock)

    def wait(self, step: Coroutine[Any, Any, T]) -> T:
        try:
            step.send(None)
        except StopIteration as stop:
            result: T = stop.value
            return result
        raise AssertionError("a step on a pure record waited for something")

    def current(self) -> Record:
        record = self.wait(self.store.get(KEY))
        assert record is not None
        return record

    def change(self, transition: Transition[Record]) -> tuple[Record, bool, Record]:
        """The record before, whether the transition was granted, and the record after."""
        before = self.current()
        outcome = self.wait(self.store.change(KEY, transition))
        after = self.current()
        assert after == (before if outcome is None else outcome)
        assert after.token >= before.token
        assert after.attempts >= before.attempts
        return before, outcome is not None, after

    @initialize()
    def create(self) -> None:
        assert self.wait(self.store.create(records.new_record(KEY, self.clock())))
        self.seen = self.current()

    @rule(seconds=st.sampled_from([0.001, 1, 29.999, 30, 31, 600]))
    def time_passes(self, seconds: float) -> None:
        self.clock.move(seconds)

    @rule()
    def create_again(self) -> None:
        before = self.current()
        assert not self.wait(self.store.create(records.new_record(KEY, self.clock())))
        assert self.current() == before

    @rule()
    def mark_queued(self) -> None:
        before, moved, after = self.change(records.advance(Status.PENDING, Status.QUEUED))
        assert moved == (before.status is Status.PENDING)
        assert not moved or after.status is Status.QUEUED

    @rule(target=claims, lease=st.sampled_from([1, 30]))
    def claim(self, lease: int) -> Any:
        before, granted, after = self.change(records.claim(timedelta(seconds=lease)))
        free = not before.status.terminal and not before.leased(self.clock())
        assert granted == free
        if not granted:
            return multiple()
        claim = records.claim_of(after)
        assert after.status is Status.RUNNING
        assert all(claim.token > earlier.token for earlier in self.granted), (
            "a token was granted twice"
        )
        self.granted.append(claim)
        return claim

    def current_claim(self, claim: Claim, before: Record) -> bool:
        return claim == self.granted[-1] and before.status is Status.RUNNING

    @rule(claim=claims, confidence=st.floats(0, 1))
    def complete(self, claim: Claim, confidence: float) -> None:
        result = (Annotation(1, "red", confidence),)
        before, done, after = self.change(records.complete(claim, result))
        assert done == self.current_claim(claim, before)
        if done:
            self.results += 1
            assert (after.status, after.annotations) == (Status.SUCCESS, result)

    @rule(claim=claims, retryable=st.booleans())
    def fail(self, claim: Claim, retryable: bool) -> None:
        error = RecordError("failed", "It failed.", retryable)
        before, done, after = self.change(records.fail(claim, error))
        assert done == self.current_claim(claim, before)
        assert not done or (after.status, after.error) == (Status.ERROR, error)

    @rule(retryable=st.booleans())
    def fail_by_key(self, retryable: bool) -> None:
        error = RecordError("delivery_exhausted", "Ten deliveries failed.", retryable)
        before, done, _ = self.change(records.fail_unleased(error))
        assert done == (not before.status.terminal and not before.leased(self.clock()))

    @rule(claim=claims)
    def release(self, claim: Claim) -> None:
        before, done, after = self.change(records.release(claim))
        assert done == self.current_claim(claim, before)
        assert not done or not after.leased(self.clock())

    @rule(claim=consumes(claims))
    def claimant_dies(self, claim: Claim) -> None:
        """The claim is not used again."""

    @rule(age=st.sampled_from([0, 10, 60]))
    def touch(self, age: float) -> None:
        now = self.clock()
        before, done, after = self.change(records.touch(now - timedelta(seconds=age)))
        assert not done or (after.status, after.updated_at) == (before.status, now)
        assert not (done and before.leased(now))

    @rule()
    def retry(self) -> None:
        before, done, after = self.change(records.retry())
        assert done == (
            before.status is Status.ERROR and before.error is not None and before.error.retryable
        )
        if done:
            assert (after.status, after.error) == (Status.PENDING, None)
            self.seen = after  # the only way back

    @invariant()
    def status_only_moves_forward(self) -> None:
        if not hasattr(self, "seen"):
            return
        now = self.current()
        assert ORDER[now.status] >= ORDER[self.seen.status]
        if self.seen.status.terminal:
            assert now == self.seen, "a terminal record changed"
        self.seen = now

    @invariant()
    def at_most_one_result(self) -> None:
        assert self.results <= 1

    @invariant()
    def attempts_count_the_claims(self) -> None:
        if hasattr(self, "seen"):
            assert self.current().attempts == len(self.granted)


class TransitionsInSqlite(Transitions):
    """The same in SQLite, with transactions, rows and threads."""

    def open(self) -> SqliteRecordStore:
        self.folder = tempfile.TemporaryDirectory()
        self.runner = asyncio.Runner()
        self.database = self.runner.run(
            Database.open(Path(self.folder.name) / "records.db", SCHEMA)
        )
        return SqliteRecordStore(self.database, self.clock)

    def wait(self, step: Coroutine[Any, Any, T]) -> T:
        return self.runner.run(step)

    def teardown(self) -> None:
        self.runner.run(self.database.close())
        self.runner.close()
        self.folder.cleanup()


# No deadlines: timings vary on a shared machine.
_SETTINGS = settings(deadline=None, suppress_health_check=list(HealthCheck))
TestTransitions = Transitions.TestCase
TestTransitions.settings = settings(_SETTINGS, max_examples=100, stateful_step_count=40)
TestTransitionsInSqlite = TransitionsInSqlite.TestCase
TestTransitionsInSqlite.settings = settings(_SETTINGS, max_examples=25, stateful_step_count=40)


@pytest.mark.parametrize(
    ("tenant", "image_hash", "model"),
    [
        ("", "ab" * 32, "m@0123456789ab"),
        ("Public", "ab" * 32, "m@0123456789ab"),
        ("-public", "ab" * 32, "m@0123456789ab"),
        ("public/..", "ab" * 32, "m@0123456789ab"),
        ("public", "AB" * 32, "m@0123456789ab"),
        ("public", "ab" * 31, "m@0123456789ab"),
        ("public", "ab" * 32 + "\n", "m@0123456789ab"),
        ("public", "../" + "a" * 61, "m@0123456789ab"),
        ("public", "ab" * 32, "m"),
        ("public", "ab" * 32, "m@0123456789AB"),
        ("public", "ab" * 32, "a/b@0123456789ab"),
    ],
)
def test_malformed_key_is_refused(tenant: str, image_hash: str, model: str) -> None:
    with pytest.raises(ValueError, match="malformed"):
        RecordKey(tenant, image_hash, model)


def test_touch_is_refused_for_leased_ended_and_recent_records() -> None:
    clock = MovableClock()
    fresh = records.new_record(KEY, clock())
    later = clock.move(60)
    assert records.touch(later)(fresh, later) == replace(fresh, updated_at=later)
    assert records.touch(fresh.updated_at)(fresh, later) is None
    owned = records.claim(LEASE)(fresh, later)
    assert owned is not None
    assert records.touch(clock.move(1))(owned, clock()) is None
    assert records.touch(clock.move(60))(owned, clock()) is not None
    ended = records.complete(records.claim_of(owned), ())(owned, clock())
    assert ended is not None
    assert records.touch(clock.move(60))(ended, clock()) is None


def test_longest_lease_holds_on_a_machine_whose_clock_is_behind() -> None:
    clock = MovableClock()
    longest = timedelta(seconds=MAX_ACK_DEADLINE)
    owned = records.claim(longest)(records.new_record(KEY, clock()), clock())
    assert owned is not None
    assert records.claim(longest)(owned, clock.move(-5)) is None
