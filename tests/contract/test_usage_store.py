"""Every method of the UsageStore port: counts of all processes add up."""

import asyncio
from datetime import date

from core.backends import Access, open_access, open_usage
from core.domain.usage import Usage, UsageBatch
from core.ports import UsageStore
from core.settings import Settings

DAY, NEXT, LATER = date(2026, 11, 20), date(2026, 11, 21), date(2026, 11, 22)


async def add(store: UsageStore, *counts: Usage) -> None:
    for usage in counts:
        await store.add(UsageBatch(usage))


async def test_counts_of_a_day_add_up(access: Access) -> None:
    await add(access.usage, Usage("acme", "key1", DAY, 3, 2, 2_000_000_000, 1))
    await add(access.usage, Usage("acme", "key1", DAY, 1, 1, 2_000_000_000, 0))
    assert await access.usage.read("acme", DAY) == [
        Usage("acme", "key1", DAY, 4, 3, 4_000_000_000, 1)
    ]


async def test_read_starts_at_a_day_and_returns_one_tenant(access: Access) -> None:
    mine = [Usage("acme", "key2", DAY, 1), Usage("acme", "key1", NEXT, 2)]
    mine.append(Usage("acme", "key2", NEXT, 3))
    await add(access.usage, *reversed(mine), Usage("other", "key3", NEXT, 4))
    assert await access.usage.read("acme", DAY) == mine
    assert await access.usage.read("acme", NEXT) == mine[1:]
    assert await access.usage.read("other", DAY) == [Usage("other", "key3", NEXT, 4)]
    assert await access.usage.read("unknown", DAY) == []
    assert await access.usage.read("acme", LATER) == []


async def test_repeated_batch_counts_once(access: Access, settings: Settings) -> None:
    """The first response may be lost. Meanwhile, others may add to the same counts."""
    batch = UsageBatch(Usage("acme", "key1", DAY, 3, 2, 10, 1))
    await access.usage.add(batch)
    await add(access.usage, *(Usage("acme", "key1", DAY, 1) for _ in range(3)))
    await access.usage.add(batch)
    assert await access.usage.read("acme", DAY) == [Usage("acme", "key1", DAY, 6, 2, 10, 1)]


async def test_purge_deletes_old_days_of_all_tenants_up_to_its_limit(
    access: Access, settings: Settings
) -> None:
    """The worker opens the usage store alone. A tenant may have counts only."""
    old = [Usage("acme", f"key{n}", day, 1) for day in (DAY, NEXT) for n in range(3)]
    kept = Usage("acme", "key1", LATER, 2)
    await add(access.usage, *old, kept, Usage("other", "key9", DAY, 1))
    async with open_usage(settings) as usage:
        assert await usage.purge(DAY, 10) == 0
        assert await usage.purge(LATER, 2) == 2
        assert len(await access.usage.read("acme", DAY)) >= 5
        assert await usage.purge(LATER, 100) == 5
        assert await usage.purge(LATER, 100) == 0
    assert await access.usage.read("acme", DAY) == [kept]
    assert await access.usage.read("other", DAY) == []


async def test_concurrent_counts_of_two_processes_add_up(
    access: Access, settings: Settings
) -> None:
    async with open_access(settings) as other:
        # Two at a time: a store with locks takes seconds for each.
        for _ in range(2):
            counts = Usage("acme", "key1", DAY, 1, 1, 10, 0)
            await asyncio.gather(add(access.usage, counts), add(other.usage, counts))
    assert await access.usage.read("acme", DAY) == [Usage("acme", "key1", DAY, 4, 4, 40, 0)]
