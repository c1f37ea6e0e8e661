"""Turns: one at a time for each key, and no longer than somebody needs them."""

import asyncio
import gc

import pytest

from core.backends.google.entity_locks import Turns


async def test_one_at_a_time_for_a_key_and_others_beside_it() -> None:
    turns, inside = Turns(), dict.fromkeys("ab", 0)

    async def work(key: str) -> None:
        async with turns.turn(key, 10):
            inside[key] += 1
            assert inside[key] == 1
            assert turns.taken(key)
            await asyncio.sleep(0)
            inside[key] -= 1

    async with turns.turn("a", 10):
        await asyncio.gather(*(work("b") for _ in range(5)))  # does not wait for a's
    await asyncio.gather(*(work(key) for key in "ab" * 5))
    assert not turns.taken("a")


async def test_nobody_waits_for_ever() -> None:
    turns = Turns()
    async with turns.turn("a", 10):
        with pytest.raises(TimeoutError):
            async with turns.turn("a", 0.01):
                pytest.fail("two at once")
    async with turns.turn("a", 0.01):
        pass  # the one that gave up holds nothing


async def test_a_turn_that_fails_is_over() -> None:
    turns = Turns()
    with pytest.raises(ValueError, match="mine"):
        async with turns.turn("a", 1):
            raise ValueError("mine")
    assert not turns.taken("a")


async def test_nothing_is_kept_of_what_is_over() -> None:
    turns = Turns()
    for key in range(100):
        async with turns.turn(key, 1):
            pass
    gc.collect()
    assert len(turns) == 0
