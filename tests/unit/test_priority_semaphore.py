"""Places that the most urgent take first."""

import asyncio
from collections.abc import Sequence

import pytest

from core.domain.priority import FAIRNESS_INTERVAL, Priority
from worker.priority_semaphore import PrioritySemaphore

HIGH, NORMAL, LOW = Priority


async def served(arrivals: Sequence[Priority], size: int = 1) -> list[int]:
    """The order in which these, who all arrive while every place is taken, have their turns."""
    semaphore, order = PrioritySemaphore(lambda: size), list[int]()
    release = asyncio.Event()

    async def hold() -> None:
        async with semaphore.slot(HIGH):
            await release.wait()

    async def enter(number: int, priority: Priority) -> None:
        async with semaphore.slot(priority):
            order.append(number)
            await asyncio.sleep(0)

    tasks = [asyncio.create_task(hold()) for _ in range(size)]
    await asyncio.sleep(0)
    tasks += [asyncio.create_task(enter(n, each)) for n, each in enumerate(arrivals)]
    await asyncio.sleep(0)
    assert order == []
    release.set()
    await asyncio.gather(*tasks)
    return order


async def test_the_most_urgent_go_first_and_equals_in_turn() -> None:
    assert await served([LOW, NORMAL, HIGH, LOW, HIGH]) == [2, 4, 1, 0, 3]


async def test_an_urgent_one_behind_a_thousand_has_the_next_turn() -> None:
    assert (await served([LOW] * 1000 + [HIGH])).index(1000) == 0


async def test_the_least_urgent_move_as_well() -> None:
    order = await served([HIGH] * 100 + [LOW] * 3)
    places = [order.index(100 + n) + 1 for n in range(3)]
    assert places == [round_ * FAIRNESS_INTERVAL for round_ in (1, 2, 3)]


async def test_the_middle_moves_though_there_are_others_on_both_sides() -> None:
    order = await served([HIGH] * 100 + [LOW] * 100 + [NORMAL] * 3)
    assert order.index(202) < 3 * 2 * FAIRNESS_INTERVAL


@pytest.mark.parametrize("size", [1, 3])
async def test_no_more_are_inside_than_there_are_semaphore(size: int) -> None:
    semaphore, inside, most = PrioritySemaphore(lambda: size), 0, 0

    async def enter(priority: Priority) -> None:
        nonlocal inside, most
        async with semaphore.slot(priority):
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(enter(priority) for priority in list(Priority) * 20))
    assert most == size


async def test_who_gives_up_takes_no_place_along() -> None:
    """In the line, or in the very moment in which its turn comes."""
    semaphore = PrioritySemaphore(lambda: 1)
    release = asyncio.Event()

    async def hold(priority: Priority) -> None:
        async with semaphore.slot(priority):
            await release.wait()

    first, waits, handed = [asyncio.create_task(hold(each)) for each in (HIGH, LOW, NORMAL)]
    await asyncio.sleep(0)
    waits.cancel()
    first.cancel()
    await asyncio.gather(first, waits, return_exceptions=True)
    handed.cancel()  # it has the place by now, or is about to
    await asyncio.gather(handed, return_exceptions=True)
    async with asyncio.timeout(5), semaphore.slot(LOW):
        pass
    # Handed over and cancelled before it runs.
    keeper = asyncio.create_task(hold(HIGH))
    await asyncio.sleep(0)
    unlucky = asyncio.create_task(hold(LOW))
    await asyncio.sleep(0)
    release.set()
    await asyncio.sleep(0)  # the keeper leaves: the place is the other's, which has not run yet
    unlucky.cancel()
    await asyncio.gather(keeper, unlucky, return_exceptions=True)
    async with asyncio.timeout(5), semaphore.slot(LOW):
        pass


async def test_capacity_may_change() -> None:
    size = 1
    semaphore, inside = PrioritySemaphore(lambda: size), set[int]()
    leave = [asyncio.Event() for _ in range(8)]

    async def enter(number: int) -> None:
        async with semaphore.slot(HIGH):
            inside.add(number)
            await leave[number].wait()
        inside.remove(number)

    async def left(*numbers: int) -> set[int]:
        for number in numbers:
            leave[number].set()
        for _ in range(5):
            await asyncio.sleep(0)
        return inside

    tasks = [asyncio.create_task(enter(number)) for number in range(8)]
    assert await left() == {0}
    size = 3
    assert await left() == {0}
    assert await left(0) == {1, 2, 3}
    size = 2
    assert await left(1) == {2, 3}
    assert await left(2) == {3, 4}
    assert await left(3, 4) == {5, 6}
    await left(5, 6, 7)
    await asyncio.gather(*tasks)


async def test_who_comes_waits_behind_those_who_wait_though_a_place_is_free() -> None:
    size, order = 1, list[int]()
    semaphore, release = PrioritySemaphore(lambda: size), asyncio.Event()

    async def enter(number: int) -> None:
        async with semaphore.slot(HIGH):
            order.append(number)
            await release.wait()

    tasks = [asyncio.create_task(enter(number)) for number in range(2)]
    await asyncio.sleep(0)
    size = 2
    tasks.append(asyncio.create_task(enter(2)))
    await asyncio.sleep(0)
    assert order == [0]
    release.set()
    await asyncio.gather(*tasks)
    assert order == [0, 1, 2]
