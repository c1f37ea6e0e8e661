"""The gate by itself, with a clock that tests move: for how long a key is trusted, and by what."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from app.auth.authenticator import MOST_KNOWN, Gate
from app.keys.service import Issued, Keys, Wanted
from core.backends import open_access
from core.domain.principals import ALL_SCOPES, Principal, Scope
from core.domain.rate_limits import Rate
from core.errors import Forbidden, RateLimited, Unauthenticated
from core.settings import Settings
from tests.support.clock import MovableClock


@dataclass
class Door:
    """A gate, the store behind it as another process sees it, and both of its clocks."""

    gate: Gate
    keys: Keys
    clock: MovableClock
    time: list[float] = field(default_factory=lambda: [1000.0])

    def move(self, seconds: float) -> None:
        self.clock.move(seconds)
        self.time[0] += seconds

    async def issue(self, **changes: Any) -> Issued:
        return await self.keys.create(
            Wanted(**{"tenant": "acme", "name": "x", "scopes": ALL_SCOPES, **changes})
        )

    async def admit(self, issued: Issued, needed: Scope = Scope.READ) -> Principal:
        headers = [(b"host", b"a"), (b"x-api-key", issued.text.encode())]
        return await self.gate.admit({"type": "http", "headers": headers}, needed)


@pytest.fixture
async def door(tmp_path: Path) -> AsyncIterator[Door]:
    settings = Settings(_env_file=None, data_dir=tmp_path, api_keys="required", rate_limit="off")
    clock, time = MovableClock(), [1000.0]
    async with open_access(settings, clock) as access:
        gate = Gate(access, settings, clock, lambda: time[0])
        yield Door(gate, Keys(access.keys, gate.hasher, clock), clock, time)


async def test_a_caller_is_its_keys_principal(door: Door) -> None:
    issued = await door.issue(scopes=frozenset({Scope.READ}))
    assert await door.admit(issued) == Principal("acme", issued.key.id, frozenset({Scope.READ}))
    with pytest.raises(Forbidden):
        await door.admit(issued, Scope.ADMIN)


async def test_a_revoked_key_is_trusted_for_as_long_as_the_setting_says(door: Door) -> None:
    issued = await door.issue()
    await door.admit(issued)
    await door.keys.revoke(issued.key.id)
    door.move(29.9)
    await door.admit(issued)
    door.move(0.1)
    with pytest.raises(Unauthenticated):
        await door.admit(issued)


async def test_a_key_is_never_trusted_beyond_its_end(door: Door) -> None:
    issued = await door.issue(expires_at=door.clock() + timedelta(seconds=10))
    await door.admit(issued)
    door.move(9.9)
    await door.admit(issued)
    door.move(0.1)
    with pytest.raises(Unauthenticated):
        await door.admit(issued)


async def test_an_old_text_is_good_for_the_overlap_and_no_longer(door: Door) -> None:
    old = await door.issue()
    new = await door.keys.rotate(old.key.id, timedelta(seconds=40))
    assert await door.admit(old) == await door.admit(new)
    door.move(39.9)
    await door.admit(old)
    door.move(0.1)
    with pytest.raises(Unauthenticated):
        await door.admit(old)
    await door.admit(new)


async def test_a_key_that_was_refused_is_refused_without_a_look_up(door: Door) -> None:
    """However often it comes; and what is remembered of such keys has a bound."""
    issued = await door.issue()
    await door.keys.revoke(issued.key.id)
    with pytest.raises(Unauthenticated):
        await door.admit(issued)
    await door.gate.access.keys._database.close()  # type: ignore[attr-defined]
    for _ in range(3):
        with pytest.raises(Unauthenticated):
            await door.admit(issued)
    assert door.gate._refused.maxsize < 10_000


async def test_many_who_bring_one_key_at_once_are_all_let_in(door: Door) -> None:
    """One of them leaving early cancels nothing for the others."""
    issued = await door.issue()
    callers = [asyncio.create_task(door.admit(issued)) for _ in range(50)]
    await asyncio.sleep(0)
    callers[0].cancel()
    outcomes = await asyncio.gather(*callers, return_exceptions=True)
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert all(isinstance(outcome, Principal) for outcome in outcomes[1:])
    assert not door.gate._lookups


async def test_limits_go_on_where_a_rotation_and_the_cache_come_between(door: Door) -> None:
    issued = await door.issue(rate=Rate(3, 3600))
    await door.admit(issued)
    new = await door.keys.rotate(issued.key.id)
    door.move(31)
    await door.admit(issued)
    await door.admit(new)
    for text in (issued, new):
        with pytest.raises(RateLimited):
            await door.admit(text)


async def test_what_it_remembers_has_a_bound(door: Door) -> None:
    assert MOST_KNOWN <= 100_000
    issued = await door.issue()
    await door.admit(issued)
    assert len(door.gate._known) == 1
    door.move(31)
    await door.gate.write()
    assert not door.gate._known


async def test_the_text_of_a_key_is_not_kept(door: Door) -> None:
    issued = await door.issue()
    await door.admit(issued)
    assert issued.text.encode() not in door.gate._known
    assert all(len(digest) == 32 for digest in door.gate._known)
