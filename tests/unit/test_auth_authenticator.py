"""The authenticator, with a clock that tests move: which keys it trusts, how long, and how many."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.auth import authenticator as module
from app.auth.authenticator import Authenticator
from app.keys.service import Issued, Keys, Wanted
from core.backends import Access, open_access
from core.domain.api_keys import KEY_CACHE_SECONDS, USE_NOTE_INTERVAL
from core.domain.principals import ALL_SCOPES, Principal, Scope
from core.domain.rate_limits import DAY, Rate
from core.errors import Forbidden, RateLimited, Unauthenticated, Unavailable
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.faults import Watched
from tests.support.settings import isolated_settings


@dataclass
class Setup:
    """An authenticator, its key store as another process sees it, and its clocks.

    `calls` counts the calls of the stores; those in `hanging` never return.
    """

    settings: Settings
    clock: MovableClock = field(default_factory=MovableClock)
    time: list[float] = field(default_factory=lambda: [1000.0])
    calls: Counter[str] = field(default_factory=Counter)
    hanging: set[str] = field(default_factory=set)

    def start(self, access: Access) -> None:
        ports: dict[str, Any] = {
            name: Watched(name, getattr(access, name), self._called)
            for name in ("keys", "allowances", "usage")
        }
        self.access = replace(access, **ports)
        self.authenticator = self.another()
        self.keys = Keys(access.keys, self.authenticator.hasher, self.clock)

    def another(self) -> Authenticator:
        return Authenticator(self.access, self.settings, self.clock, lambda: self.time[0])

    async def _called(self, call: str, after: bool) -> None:
        if not after:
            self.calls[call] += 1
            await asyncio.sleep(0)
            if call in self.hanging:
                await asyncio.get_running_loop().create_future()

    def move(self, seconds: float) -> None:
        self.clock.move(seconds)
        self.time[0] += seconds

    async def issue(self, **changes: Any) -> Issued:
        return await self.keys.create(
            Wanted(**{"tenant": "acme", "name": "x", "scopes": ALL_SCOPES, **changes})
        )

    async def authenticate(self, issued: Issued, required: Scope = Scope.READ) -> Principal:
        headers = [(b"host", b"a"), (b"x-api-key", issued.text.encode())]
        scope = {"type": "http", "headers": headers}
        return await self.authenticator.authenticate(scope, required)

    async def assert_refused(self, issued: Issued) -> None:
        with pytest.raises(Unauthenticated):
            await self.authenticate(issued)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    settings = isolated_settings(data_dir=tmp_path, api_keys="required", rate_limit="off")
    setup = Setup(settings)
    async with open_access(settings, setup.clock) as access:
        setup.start(access)
        yield setup


async def test_caller_is_the_principal_of_its_key(setup: Setup) -> None:
    issued = await setup.issue(scopes=frozenset({Scope.READ}))
    expected = Principal("acme", issued.key.id, frozenset({Scope.READ}))
    assert await setup.authenticate(issued) == expected
    with pytest.raises(Forbidden):
        await setup.authenticate(issued, Scope.ADMIN)


async def test_revoked_key_is_trusted_for_the_configured_time(setup: Setup) -> None:
    issued = await setup.issue()
    await setup.authenticate(issued)
    await setup.keys.revoke(issued.key.id)
    setup.move(29.9)
    await setup.authenticate(issued)
    setup.move(0.1)
    await setup.assert_refused(issued)


async def test_key_is_never_trusted_beyond_its_expiry(setup: Setup) -> None:
    issued = await setup.issue(expires_at=setup.clock() + timedelta(seconds=10))
    await setup.authenticate(issued)
    setup.move(9.9)
    await setup.authenticate(issued)
    setup.move(0.1)
    await setup.assert_refused(issued)


async def test_previous_text_is_valid_for_the_overlap(setup: Setup) -> None:
    old = await setup.issue()
    new = await setup.keys.rotate(old.key.id, timedelta(seconds=40))
    assert await setup.authenticate(old) == await setup.authenticate(new)
    setup.move(39.9)
    await setup.authenticate(old)
    setup.move(0.1)
    await setup.assert_refused(old)
    await setup.authenticate(new)


async def test_refused_key_is_looked_up_once_in_the_cache_time(setup: Setup) -> None:
    issued = await setup.issue()
    await setup.keys.revoke(issued.key.id)
    for _ in range(3):
        await setup.assert_refused(issued)
    assert setup.calls["keys.get"] == 1
    setup.move(KEY_CACHE_SECONDS)
    await setup.assert_refused(issued)
    assert setup.calls["keys.get"] == 2


async def test_concurrent_requests_with_one_key_share_a_lookup(setup: Setup) -> None:
    """A cancelled request does not cancel the lookup for the others."""
    issued = await setup.issue()
    callers = [asyncio.create_task(setup.authenticate(issued)) for _ in range(50)]
    await asyncio.sleep(0)
    callers[0].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert all(isinstance(outcome, Principal) for outcome in outcomes[1:])
    assert setup.calls["keys.get"] == 1
    assert not setup.authenticator._lookups


async def test_limits_continue_after_rotation_and_cache_expiry(setup: Setup) -> None:
    issued = await setup.issue(rate=Rate(3, 3600))
    await setup.authenticate(issued)
    new = await setup.keys.rotate(issued.key.id)
    setup.move(31)
    await setup.authenticate(issued)
    await setup.authenticate(new)
    for text in (issued, new):
        with pytest.raises(RateLimited):
            await setup.authenticate(text)


async def test_text_of_a_key_is_not_kept(setup: Setup) -> None:
    issued = await setup.issue()
    await setup.authenticate(issued)
    assert issued.text.encode() not in setup.authenticator._verified
    assert all(len(digest) == 32 for digest in setup.authenticator._verified)


# --- Bounds ---------------------------------------------------------------------------------------


async def test_number_of_verified_keys_is_bounded(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The oldest is dropped; its next request looks it up again."""
    monkeypatch.setattr(module, "MAX_VERIFIED_KEYS", 3)
    issued = [await setup.issue() for _ in range(5)]
    for each in issued:
        await setup.authenticate(each)
    assert len(setup.authenticator._verified) == 3
    assert setup.calls["keys.get"] == 5
    await setup.authenticate(issued[4])
    assert setup.calls["keys.get"] == 5
    await setup.authenticate(issued[0])
    assert setup.calls["keys.get"] == 6


async def test_number_of_refused_keys_is_bounded(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_REFUSED_KEYS", 3)
    setup.authenticator = setup.another()
    for _ in range(5):
        issued = await setup.issue()
        await setup.keys.revoke(issued.key.id)
        await setup.assert_refused(issued)
    assert len(setup.authenticator._refused) == 3


async def test_expired_entries_are_dropped_with_the_next_write(setup: Setup) -> None:
    await setup.authenticate(await setup.issue())
    setup.move(31)
    await setup.authenticator.write_usage()
    assert not setup.authenticator._verified


async def test_states_of_unused_keys_are_dropped(setup: Setup) -> None:
    """Those that still count are kept: a window that is not over, a key that is trusted."""
    unlimited, limited = await setup.issue(), await setup.issue(daily_quota=5)
    for issued in (unlimited, limited):
        await setup.authenticate(issued)
    setup.move(3601)
    await setup.authenticate(unlimited)
    await setup.authenticator.write_usage()
    assert set(setup.authenticator._states) == {unlimited.key.id, limited.key.id}
    setup.move(3601)
    await setup.authenticator.write_usage()
    assert set(setup.authenticator._states) == {limited.key.id}
    await setup.authenticate(limited)
    setup.move(2 * DAY)
    await setup.authenticator.write_usage()
    assert not setup.authenticator._states
    await setup.authenticate(unlimited)


async def test_state_of_a_trusted_key_is_kept_however_long_it_is_unused(setup: Setup) -> None:
    """Its next request counts in that state."""
    setup.authenticator.trusted_seconds = 3 * DAY
    issued = await setup.issue()
    await setup.authenticate(issued)
    setup.move(2 * DAY)
    await setup.authenticator.write_usage()
    await setup.authenticate(issued)
    await setup.authenticator.write_usage()
    rows = await setup.access.usage.read("acme", setup.clock().date() - timedelta(days=30))
    assert sum(row.requests for row in rows) == 2


async def test_time_of_last_use_is_written_once_a_minute(setup: Setup) -> None:
    issued = await setup.issue()
    for _ in range(3):
        await setup.authenticate(issued)
        await setup.authenticator.write_usage()
        setup.move(1)
    assert setup.calls["keys.note_use"] == 1
    setup.move(USE_NOTE_INTERVAL.total_seconds())
    await setup.authenticate(issued)
    await setup.authenticator.write_usage()
    assert setup.calls["keys.note_use"] == 2


async def test_request_does_not_wait_long_for_a_hanging_store_of_limits(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SHARE_SECONDS", 0.01)
    setup.hanging.add("allowances.reserve")
    issued = await setup.issue(rate=Rate(2, 3600))
    async with asyncio.timeout(10):
        for _ in range(2):
            await setup.authenticate(issued)
        with pytest.raises(RateLimited):
            await setup.authenticate(issued)


async def test_closing_does_not_wait_long_for_a_hanging_store_of_usage(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CLOSE_SECONDS", 0.01)
    setup.hanging.add("usage.add")
    await setup.authenticate(await setup.issue())
    async with asyncio.timeout(10):
        await setup.authenticator.close()


async def test_usage_is_exact_if_some_counts_cannot_be_written(setup: Setup) -> None:
    """Those that were written are not written again."""
    first, second = await setup.issue(), await setup.issue()
    for issued in (first, second):
        await setup.authenticate(issued)
    added: list[str] = []

    async def lost(call: str, after: bool) -> None:
        added.append(call)
        if after and len(added) == 4:
            raise Unavailable("The response is lost.")

    setup.authenticator.access = replace(
        setup.access, usage=Watched("usage", setup.access.usage, lost)
    )
    with pytest.raises(Unavailable):
        await setup.authenticator.write_usage()
    setup.authenticator.access = setup.access
    await setup.authenticate(first)
    await setup.authenticator.write_usage()
    rows = await setup.access.usage.read("acme", setup.clock().date())
    assert {row.key_id: row.requests for row in rows} == {first.key.id: 2, second.key.id: 1}


async def test_keys_stay_valid_while_their_secret_is_listed(setup: Setup) -> None:
    old, new = b"o" * 32, b"n" * 32
    setup.access = replace(setup.access, secrets=(old,))
    setup.authenticator = setup.another()
    setup.keys = Keys(setup.access.keys, setup.authenticator.hasher, setup.clock)
    issued = await setup.issue()
    setup.access = replace(setup.access, secrets=(new, old))
    setup.authenticator = setup.another()
    await setup.authenticate(issued)
    keys = Keys(setup.access.keys, setup.authenticator.hasher, setup.clock)
    rotated = await keys.rotate(issued.key.id, timedelta(hours=1))
    await setup.authenticate(rotated)
    setup.access = replace(setup.access, secrets=(new,))
    setup.authenticator = setup.another()
    await setup.authenticate(rotated)
    await setup.assert_refused(issued)
