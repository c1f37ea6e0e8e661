"""The AllowanceStore port: shares never add up to more than the limit."""

import asyncio

import pytest

from core.backends import Access, open_access
from core.domain.rate_limits import DAY, Limit
from core.ports import AllowanceStore
from core.settings import Settings
from tests.support.clock import MovableClock

LIMIT = Limit("rate", 100, 60)


@pytest.fixture
def allowances(access: Access) -> AllowanceStore:
    return access.allowances


async def taken(store: AllowanceStore, limit: Limit, key_id: str = "key1") -> list[int]:
    """The shares until the limit is reached."""
    shares = []
    while (grant := await store.reserve(key_id, limit)).count:
        shares.append(grant.count)
        assert grant.left == limit.quota - sum(shares)
        assert grant.window == limit.window(grant.window)
    return shares


async def test_shares_add_up_to_the_limit_and_shrink(allowances: AllowanceStore) -> None:
    shares = await taken(allowances, LIMIT)
    assert sum(shares) == 100
    assert shares[0] == 12
    assert shares[-8:] == [1] * 8
    assert (await allowances.reserve("key1", LIMIT)).count == 0


async def test_keys_and_limits_have_separate_allowances(allowances: AllowanceStore) -> None:
    assert sum(await taken(allowances, Limit("rate", 3, 60))) == 3
    assert sum(await taken(allowances, Limit("rate", 3, 60), "key2")) == 3
    assert sum(await taken(allowances, Limit("day", 2, DAY))) == 2


async def test_new_window_has_the_whole_quota(
    allowances: AllowanceStore, clock: MovableClock
) -> None:
    limit = Limit("rate", 3, 60)
    first = (await allowances.reserve("key1", limit)).window
    while (await allowances.reserve("key1", limit)).count:
        pass
    clock.move(60)
    grant = await allowances.reserve("key1", limit)
    assert (grant.window, grant.count, grant.left) == (first + 60, 1, 2)


async def test_concurrent_processes_never_exceed_the_limit(
    access: Access, settings: Settings, clock: MovableClock
) -> None:
    limit = Limit("rate", 10, 60)
    async with open_access(settings, clock) as other:
        counts = []
        for _ in range(7):
            grants = await asyncio.gather(
                access.allowances.reserve("key1", limit), other.allowances.reserve("key1", limit)
            )
            counts += [grant.count for grant in grants]
    assert sum(counts) == 10


async def test_spent_units_beyond_a_rate_count_in_the_next_windows(
    allowances: AllowanceStore, clock: MovableClock
) -> None:
    limit = Limit("rate", 10, 60)
    grant = await allowances.reserve("key1", limit, 25)
    assert (grant.count, grant.left, grant.owed, grant.refused) == (0, 0, 15, False)
    clock.move(60)
    grant = await allowances.reserve("key1", limit)
    assert (grant.count, grant.left, grant.owed) == (0, 0, 5)
    clock.move(60)
    grants = [await allowances.reserve("key1", limit) for _ in range(6)]
    assert [grant.count for grant in grants] == [1, 1, 1, 1, 1, 0]
    clock.move(120)
    assert sum(await taken(allowances, limit)) == 10


async def test_strict_limit_refuses_more_than_what_is_left_and_counts_nothing(
    allowances: AllowanceStore,
) -> None:
    quota = Limit("day", 10, DAY, strict=True)
    grant = await allowances.reserve("key1", quota, 11)
    assert (grant.refused, grant.left) == (True, 10)
    grant = await allowances.reserve("key1", quota, 9)
    assert (grant.refused, grant.count, grant.left) == (False, 1, 0)
    assert (await allowances.reserve("key1", quota, 1)).refused
