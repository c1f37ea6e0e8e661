"""Limits of concurrent deliveries: in total, for each receiver, and for receivers that fail."""

import asyncio
from contextlib import AsyncExitStack

import pytest

from core.errors import Overloaded, Unavailable
from worker.notifications.receiver_limits import MAX_FAILING, ReceiverLimits

BUSY = "Too many notifications"
FAILING = "last delivery to this receiver failed"


async def fail(limits: ReceiverLimits, name: str) -> None:
    """A delivery that fails."""
    with pytest.raises(Unavailable, match="dead"):
        async with limits.slot(name):
            raise Unavailable("dead")


async def refuses(limits: ReceiverLimits, name: str, reason: str) -> None:
    with pytest.raises(Overloaded, match=reason):
        async with limits.slot(name):
            raise AssertionError


async def test_slots_are_limited_in_total_and_for_each_receiver() -> None:
    limits = ReceiverLimits(total=2, per_receiver=1, wait_seconds=0.05)
    async with limits.slot("a"):
        await refuses(limits, "a", BUSY)
        async with limits.slot("b"):
            await refuses(limits, "c", BUSY)
    assert limits._receivers == {}
    async with limits.slot("a"), limits.slot("b"):
        pass


async def test_failing_receiver_gets_one_delivery_at_a_time_until_one_succeeds() -> None:
    limits = ReceiverLimits(total=9, per_receiver=2, wait_seconds=0.05)
    await fail(limits, "a")
    async with limits.slot("a"):
        await refuses(limits, "a", FAILING)
        async with limits.slot("b"):
            pass
    async with limits.slot("a"), limits.slot("a"):
        await refuses(limits, "a", BUSY)


async def test_delivery_that_waits_for_its_receiver_holds_no_slot_of_the_total() -> None:
    limits = ReceiverLimits(total=2, per_receiver=1, wait_seconds=60)
    async with AsyncExitStack() as waiting, limits.slot("slow"):
        queued = asyncio.create_task(waiting.enter_async_context(limits.slot("slow")))
        await asyncio.sleep(0)
        async with asyncio.timeout(30), limits.slot("fast"):
            assert not queued.done()
        queued.cancel()


async def test_delivery_cancelled_while_it_waits_for_the_total_returns_its_slot() -> None:
    limits = ReceiverLimits(total=1, per_receiver=1, wait_seconds=60)
    delivered = asyncio.Event()

    async def deliver() -> None:
        async with limits.slot("b"):
            delivered.set()

    async with limits.slot("a"):
        first, second = asyncio.create_task(deliver()), asyncio.create_task(deliver())
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(30):
        await second
    assert delivered.is_set()


async def test_memory_of_failing_receivers_is_bounded() -> None:
    limits = ReceiverLimits(total=1)
    for number in range(MAX_FAILING + 10):
        with pytest.raises(Unavailable):
            async with limits.slot(str(number)):
                raise Unavailable("dead")
    assert len(limits._failing) == MAX_FAILING
