"""Every method of the KeyStore port, each change and each refusal."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta

import pytest

from core.backends import Access, open_access
from core.domain import api_keys
from core.domain.api_keys import ApiKey
from core.domain.principals import ALL_SCOPES, Scope
from core.domain.rate_limits import Rate, TenantLimits
from core.ports import KeyStore
from core.settings import Settings
from tests.support.clock import MovableClock

HOUR = timedelta(hours=1)
FIRST, SECOND, THIRD = bytes([1]) * 32, bytes([2]) * 32, bytes([3]) * 32


@pytest.fixture
def keys(access: Access) -> KeyStore:
    return access.keys


def new_key(clock: MovableClock, number: int = 1, **changes: object) -> ApiKey:
    plain = ApiKey(
        id=f"key{number:09}",
        tenant="acme",
        name="The laptop, é",
        scopes=frozenset({Scope.CLASSIFY, Scope.READ}),
        digest=FIRST,
        created_at=clock(),
    )
    return replace(plain, **changes)  # type: ignore[arg-type]


async def stored(keys: KeyStore, key_id: str) -> ApiKey:
    key = await keys.get(key_id)
    assert key is not None
    return key


def good(key: ApiKey, digest: bytes, at: datetime) -> bool:
    return key.good_until([digest], at) is not None


async def test_unknown_key_is_none_and_refuses_changes(keys: KeyStore, clock: MovableClock) -> None:
    assert await keys.get("key000000001") is None
    assert await keys.keys() == []
    assert await keys.change("key000000001", api_keys.rotate(SECOND, HOUR)) is None
    assert not await keys.change("key000000001", api_keys.revoke())
    assert not await keys.change("key000000001", api_keys.note_use(clock()))


async def test_key_is_returned_unchanged(keys: KeyStore, clock: MovableClock) -> None:
    plain = new_key(clock)
    full = new_key(
        clock,
        2,
        scopes=ALL_SCOPES,
        expires_at=clock() + HOUR,
        revoked_at=clock() + 2 * HOUR,
        last_used_at=clock() + 3 * HOUR,
        rotated_at=clock() + 4 * HOUR,
        previous_digest=SECOND,
        previous_expires_at=clock() + 5 * HOUR,
        rate=Rate(7, 3600),
        daily_quota=0,
    )
    for key in (plain, full):
        assert await keys.create(key)
        assert await keys.get(key.id) == key


async def test_one_of_concurrent_creates_succeeds(keys: KeyStore, clock: MovableClock) -> None:
    contenders = [new_key(clock, name=f"number {n}") for n in range(4)]
    won = await asyncio.gather(*(keys.create(key) for key in contenders))
    assert won.count(True) == 1
    assert await keys.get("key000000001") == contenders[won.index(True)]


async def test_keys_are_listed_by_tenant_oldest_first(keys: KeyStore, clock: MovableClock) -> None:
    made = []
    for number, tenant in ((3, "acme"), (1, "other"), (2, "acme")):
        made.append(new_key(clock, number, tenant=tenant))
        assert await keys.create(made[-1])
        clock.move(1)
    assert [key.id for key in await keys.keys("acme")] == ["key000000003", "key000000002"]
    assert await keys.keys("other") == [made[1]]
    assert await keys.keys("unknown") == []
    assert await keys.keys() == made


async def test_both_secrets_are_valid_during_the_overlap_of_a_rotation(
    keys: KeyStore, clock: MovableClock
) -> None:
    await keys.create(new_key(clock))
    rotated_at = clock.move(10)
    after = await keys.change("key000000001", api_keys.rotate(SECOND, HOUR))
    assert after is not None
    assert after == await stored(keys, after.id)
    assert (after.rotated_at, after.previous_expires_at) == (rotated_at, rotated_at + HOUR)
    assert good(after, FIRST, clock()) and good(after, SECOND, clock())
    clock.move(3599.999)
    assert good(after, FIRST, clock())
    clock.move(0.001)
    assert not good(after, FIRST, clock())
    assert good(after, SECOND, clock())


async def test_second_rotation_ends_the_first_secret(keys: KeyStore, clock: MovableClock) -> None:
    await keys.create(new_key(clock))
    await keys.change("key000000001", api_keys.rotate(SECOND, HOUR))
    after = await keys.change("key000000001", api_keys.rotate(THIRD, HOUR))
    assert after is not None
    assert [good(after, each, clock()) for each in (FIRST, SECOND, THIRD)] == [False, True, True]


async def test_rotation_without_overlap_ends_the_old_secret_at_once(
    keys: KeyStore, clock: MovableClock
) -> None:
    await keys.create(new_key(clock))
    after = await keys.change("key000000001", api_keys.rotate(SECOND, timedelta()))
    assert after is not None
    assert not good(after, FIRST, clock())


async def test_revocation_ends_every_secret(keys: KeyStore, clock: MovableClock) -> None:
    await keys.create(new_key(clock))
    await keys.change("key000000001", api_keys.rotate(SECOND, HOUR))
    clock.move(1)
    assert await keys.change("key000000001", api_keys.revoke())
    after = await stored(keys, "key000000001")
    assert after.revoked_at == clock()
    assert not good(after, FIRST, clock())
    assert not good(after, SECOND, clock())
    assert not await keys.change("key000000001", api_keys.revoke())
    assert await keys.change("key000000001", api_keys.rotate(THIRD, HOUR)) is None


async def test_expired_key_cannot_be_rotated(keys: KeyStore, clock: MovableClock) -> None:
    await keys.create(new_key(clock, expires_at=clock() + HOUR))
    clock.move(3600)
    assert await keys.change("key000000001", api_keys.rotate(SECOND, HOUR)) is None
    assert not good(await stored(keys, "key000000001"), FIRST, clock())


async def test_use_is_noted_once_a_minute(keys: KeyStore, clock: MovableClock) -> None:
    await keys.create(new_key(clock))
    first = clock.move(5)
    assert await keys.change("key000000001", api_keys.note_use(first))
    assert not await keys.change("key000000001", api_keys.note_use(clock.move(59)))
    assert (await stored(keys, "key000000001")).last_used_at == first
    second = clock.move(1)
    assert await keys.change("key000000001", api_keys.note_use(second))
    assert (await stored(keys, "key000000001")).last_used_at == second


async def test_concurrent_use_and_revocation_are_both_stored(
    keys: KeyStore, clock: MovableClock
) -> None:
    """A late note of a use must not undo the revocation."""
    await keys.create(new_key(clock))
    done = await asyncio.gather(
        keys.change("key000000001", api_keys.note_use(clock())),
        keys.change("key000000001", api_keys.revoke()),
    )
    assert all(done)
    after = await stored(keys, "key000000001")
    assert after.revoked_at == clock() == after.last_used_at


async def test_two_processes_share_one_store(
    access: Access, settings: Settings, clock: MovableClock
) -> None:
    async with open_access(settings, clock) as other:
        await access.keys.create(new_key(clock))
        assert await other.keys.get("key000000001") == new_key(clock)
        assert other.secrets[0] == access.secrets[0]
        await other.keys.change("key000000001", api_keys.revoke())
        assert (await stored(access.keys, "key000000001")).revoked_at is not None


async def test_limits_of_a_tenant_are_replaced_and_belong_to_it(
    access: Access, settings: Settings
) -> None:
    assert await access.keys.limits("acme") == TenantLimits()
    await access.keys.set_limits("acme", TenantLimits(Rate(5, 60), 100))
    async with open_access(settings) as other:
        assert await other.keys.limits("acme") == TenantLimits(Rate(5, 60), 100)
        await other.keys.set_limits("acme", TenantLimits(daily_quota=0))
    assert await access.keys.limits("acme") == TenantLimits(None, 0)
    assert await access.keys.limits("other") == TenantLimits()
