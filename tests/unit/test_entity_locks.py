"""Entity locks: one holder per key, released after an error, and dropped when unused."""

import asyncio
import gc

import pytest

from core.backends.google.entity_locks import EntityLocks


async def test_lock_has_one_holder_per_key() -> None:
    locks, inside = EntityLocks(), dict.fromkeys("ab", 0)

    async def work(key: str) -> None:
        async with locks.lock(key, 10):
            inside[key] += 1
            assert inside[key] == 1
            assert locks.locked(key)
            await asyncio.sleep(0)
            inside[key] -= 1

    async with locks.lock("a", 10):
        await asyncio.gather(*(work("b") for _ in range(5)))  # does not wait for the lock of "a"
    await asyncio.gather(*(work(key) for key in "ab" * 5))
    assert not locks.locked("a")


async def test_waiting_for_a_lock_times_out() -> None:
    locks = EntityLocks()
    async with locks.lock("a", 10):
        with pytest.raises(TimeoutError):
            async with locks.lock("a", 0.01):
                pytest.fail("two holders at once")
    async with locks.lock("a", 0.01):
        pass  # the caller that timed out holds nothing


async def test_lock_is_released_after_an_error() -> None:
    locks = EntityLocks()
    with pytest.raises(ValueError, match="mine"):
        async with locks.lock("a", 1):
            raise ValueError("mine")
    assert not locks.locked("a")


async def test_unused_locks_are_dropped() -> None:
    locks = EntityLocks()
    for key in range(100):
        async with locks.lock(key, 1):
            pass
    gc.collect()
    assert len(locks) == 0
