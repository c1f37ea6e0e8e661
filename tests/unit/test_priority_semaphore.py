"""A semaphore that serves waiters by priority."""

import asyncio
from collections.abc import Sequence

import pytest

from core.domain.priority import FAIRNESS_INTERVAL, Priority
from worker.priority_semaphore import PrioritySemaphore

HIGH, NORMAL, LOW = Priority


async def served(arrivals: Sequence[Priority], capacity: int = 1) -> list[int]:
    """The order in which waiters of these priorities get a slot. All arrive before a release."""
    semaphore, order = PrioritySemaphore(lambda: capacity), list[int]()
    release = asyncio.Event()

    async def hold() -> None:
        async with semaphore.slot(HIGH):
            await release.wait()

    async def enter(number: int, priority: Priority) -> None:
        async with semaphore.slot(priority):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(hold()) for _ in range(capacity)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(enter(n, each)) for n, each in enumerate(arrivals)]
    await asyncio.sleep(0)
    assert order == []
    release.set()
    await asyncio.gather(*tasks)
    return order


async def test_order_is_by_priority_and_then_by_arrival() -> None:
    assert await served([LOW, NORMAL, HIGH, LOW, HIGH]) == [2, 4, 1, 0, 3]


async def test_urgent_waiter_passes_a_thousand_others() -> None:
    assert (await served([LOW] * 1000 + [HIGH])).index(1000) == 0


async def test_low_priority_gets_every_eighth_slot() -> None:
    order = await served([HIGH] * 100 + [LOW] * 3)
    turns = [order.index(100 + n) + 1 for n in range(3)]
    assert turns == [FAIRNESS_INTERVAL, 2 * FAIRNESS_INTERVAL, 3 * FAIRNESS_INTERVAL]


async def test_normal_priority_is_served_between_high_and_low() -> None:
    order = await served([HIGH] * 100 + [LOW] * 100 + [NORMAL] * 3)
    assert order.index(202) < 3 * 2 * FAIRNESS_INTERVAL


@pytest.mark.parametrize("capacity", [1, 3])
async def test_capacity_is_used_and_never_exceeded(capacity: int) -> None:
    semaphore, inside, most = PrioritySemaphore(lambda: capacity), 0, 0

    async def enter(priority: Priority) -> None:
        nonlocal inside, most
        async with semaphore.slot(priority):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter(priority) for priority in list(Priority) * 20))
    assert most == capacity


@pytest.mark.parametrize("granted", [False, True], ids=["in the queue", "after the grant"])
async def test_cancelled_waiter_keeps_no_slot(granted: bool) -> None:
    semaphore, release = PrioritySemaphore(lambda: 1), asyncio.Event()

    async def hold() -> None:
        async with semaphore.slot(HIGH):
            await release.wait()

    async def enter() -> str:
        async with semaphore.slot(LOW):
            return "entered"

    holder = asyncio.create_task(hold())
    await asyncio.sleep(0)
    cancelled, next_one = asyncio.create_task(enter()), asyncio.create_task(enter())
    await asyncio.sleep(0)
    if granted:
        release.set()
        await asyncio.sleep(0)  # the holder grants its slot to a task that has not run yet
    cancelled.cancel()
    release.set()
    async with asyncio.timeout(30):
        await holder
        assert await next_one == "entered"
    with pytest.raises(asyncio.CancelledError):
        await cancelled
    async with asyncio.timeout(30), semaphore.slot(LOW):
        pass


async def test_capacity_may_change() -> None:
    capacity = 1
    semaphore, inside = PrioritySemaphore(lambda: capacity), set[int]()
    leave = [asyncio.Event() for _ in range(8)]

    async def enter(number: int) -> None:
        async with semaphore.slot(HIGH):
            inside.add(number)
            await leave[number].wait()
        inside.remove(number)

    async def inside_after(*leaving: int) -> set[int]:
        for number in leaving:
            leave[number].set()
        for _ in range(5):
            await asyncio.sleep(0)
        return inside

    tasks = [asyncio.create_task(enter(number)) for number in range(8)]
    assert await inside_after() == {0}
    capacity = 3
    assert await inside_after() == {0}, "only a release admits more"
    assert await inside_after(0) == {1, 2, 3}
    capacity = 2
    assert await inside_after(1) == {2, 3}
    assert await inside_after(2) == {3, 4}
    assert await inside_after(3, 4) == {5, 6}
    await inside_after(5, 6, 7)
    await asyncio.gather(*tasks)


async def test_newcomer_does_not_pass_waiters_when_the_capacity_grows() -> None:
    capacity, order = 1, list[int]()
    semaphore, release = PrioritySemaphore(lambda: capacity), asyncio.Event()

    async def enter(number: int) -> None:
        async with semaphore.slot(HIGH):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(enter(number)) for number in range(2)]
    await asyncio.sleep(0)
    capacity = 2
    tasks.append(asyncio.create_task(enter(2)))
    await asyncio.sleep(0)
    assert order == [0]
    release.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
