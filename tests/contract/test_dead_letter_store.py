"""Every method of the DeadLetterStore port, on every backend."""

import asyncio
from dataclasses import replace
from datetime import timedelta

import pytest

from core.backends import Backend
from core.domain.dead_letters import DeadLetter, LetterFilter, LetterKey, letter_id, resolve
from core.ports import DeadLetterStore
from tests.support.clock import MovableClock

PUBLIC = LetterFilter("public")


@pytest.fixture
def letters(backend: Backend) -> DeadLetterStore:
    return backend.dead_letters


def letter(
    clock: MovableClock, number: int, *, tenant: str = "public", code: str = "inference_failed"
) -> DeadLetter:
    """A letter that dies now; letters with different numbers are distinct."""
    attributes = {"image_hash": f"{number:064x}", "model": "m@0123456789ab", "tenant": tenant}
    return DeadLetter(
        id=letter_id(attributes, b"", "1"),
        tenant=tenant,
        attributes=attributes,
        payload=b"\x00\xffbytes",
        payload_size=7,
        attempts=10,
        code=code,
        detail="The model failed on this image, zweimal: ä.",
        published_at=clock() - timedelta(minutes=5),
        died_at=clock(),
    )


async def aged(
    letters: DeadLetterStore, clock: MovableClock, count: int, **changes: str
) -> list[DeadLetter]:
    """Store letters that died one second apart; newest first."""
    made = []
    for number in range(count):
        made.append(letter(clock, number, **changes))
        assert await letters.add(made[-1])
        clock.move(1)
    return made[::-1]


async def test_letter_is_returned_unchanged(letters: DeadLetterStore, clock: MovableClock) -> None:
    kept = letter(clock, 1)
    assert await letters.get(kept.key) is None
    assert await letters.add(kept)
    assert await letters.get(kept.key) == kept
    assert await letters.list(PUBLIC, 10) == [kept]


async def test_largest_letter_is_stored(letters: DeadLetterStore, clock: MovableClock) -> None:
    attributes = {f"name-{n}": "ä" * 500 for n in range(100)}
    large = replace(letter(clock, 1), attributes=attributes, payload=bytes(256 * 1024))
    assert await letters.add(large)
    assert await letters.get(large.key) == large


async def test_repeated_add_changes_nothing(letters: DeadLetterStore, clock: MovableClock) -> None:
    kept = letter(clock, 1)
    assert await letters.add(kept)
    clock.move(60)
    assert not await letters.add(replace(kept, died_at=clock(), code="other"))
    assert await letters.list(PUBLIC, 10) == [kept]


async def test_one_of_concurrent_adds_succeeds(
    letters: DeadLetterStore, clock: MovableClock
) -> None:
    kept = letter(clock, 1)
    added = await asyncio.gather(*(letters.add(kept) for _ in range(10)))
    assert added.count(True) == 1
    assert await letters.list(PUBLIC, 10) == [kept]


async def test_list_continues_after_a_sort_key(
    letters: DeadLetterStore, clock: MovableClock
) -> None:
    made = await aged(letters, clock, 7)
    seen: list[DeadLetter] = []
    while page := await letters.list(PUBLIC, 3, seen[-1].sort_key if seen else ""):
        assert len(page) <= 3
        seen += page
        # A letter that is added meanwhile is newer, so it does not move the others.
        assert await letters.add(letter(clock, 100 + len(seen)))
        clock.move(1)
    assert seen == made


async def test_letters_with_equal_times_are_all_listed(
    letters: DeadLetterStore, clock: MovableClock
) -> None:
    made = [letter(clock, number) for number in range(5)]
    for each in made:
        await letters.add(each)
    seen: list[DeadLetter] = []
    while page := await letters.list(PUBLIC, 2, seen[-1].sort_key if seen else ""):
        seen += page
    assert sorted(each.id for each in seen) == sorted(each.id for each in made)


async def test_filters_select_letters(letters: DeadLetterStore, clock: MovableClock) -> None:
    made = await aged(letters, clock, 4)
    other = letter(clock, 50, code="unavailable")
    await letters.add(other)

    async def listed(**changes: object) -> list[DeadLetter]:
        return list(await letters.list(replace(PUBLIC, **changes), 10))  # type: ignore[arg-type]

    assert await listed() == [other, *made]
    assert await listed(code="unavailable") == [other]
    assert await listed(code="inference_failed") == made
    assert await listed(code="inference") == []
    # `since` includes, `before` excludes.
    assert await listed(since=made[1].died_at) == [other, *made[:2]]
    assert await listed(before=made[1].died_at) == made[2:]
    assert await listed(since=made[2].died_at, before=made[0].died_at) == made[1:3]
    assert await listed(since=made[2].died_at, code="inference_failed") == made[:3]
    within = replace(PUBLIC, code="inference_failed", before=made[0].died_at)
    assert list(await letters.list(within, 10, made[1].sort_key)) == made[2:]


async def test_resolved_letter_is_listed_on_demand(
    letters: DeadLetterStore, clock: MovableClock
) -> None:
    young, old = await aged(letters, clock, 2)
    assert await letters.change(old.key, resolve())
    resolved = replace(old, resolved_at=clock())
    clock.move(5)
    assert not await letters.change(old.key, resolve())
    assert not await letters.change(LetterKey("public", "ab" * 16), resolve())
    assert await letters.get(old.key) == resolved
    assert await letters.list(PUBLIC, 10) == [young]
    assert await letters.list(replace(PUBLIC, code=old.code), 10) == [young]
    everything = replace(PUBLIC, resolved=True)
    assert await letters.list(everything, 10) == [young, resolved]
    assert await letters.list(replace(everything, code=old.code), 10) == [young, resolved]
    assert not await letters.add(old)  # a repeated notice does not open the letter again
    assert await letters.list(PUBLIC, 10) == [young]


async def test_delete_takes_it_away_once(letters: DeadLetterStore, clock: MovableClock) -> None:
    kept, gone = await aged(letters, clock, 2)
    assert await letters.delete(gone.key)
    assert not await letters.delete(gone.key)
    assert await letters.get(gone.key) is None
    assert await letters.list(PUBLIC, 10) == [kept]


async def test_purge_deletes_old_letters_of_all_tenants_up_to_its_limit(
    letters: DeadLetterStore, clock: MovableClock
) -> None:
    ours = await aged(letters, clock, 3)
    theirs = await aged(letters, clock, 3, tenant="acme")
    await letters.change(LetterKey("public", ours[2].id), resolve())
    before = theirs[0].died_at
    assert await letters.purge(before, 2) == 2
    assert await letters.purge(before, 10) == 3
    assert await letters.purge(before, 10) == 0
    assert await letters.list(replace(PUBLIC, resolved=True), 10) == []
    assert await letters.list(LetterFilter("acme"), 10) == theirs[:1]


async def test_tenants_are_separate(letters: DeadLetterStore, clock: MovableClock) -> None:
    mine, theirs = letter(clock, 1), letter(clock, 1, tenant="acme")
    await letters.add(mine)
    assert await letters.get(LetterKey("acme", mine.id)) is None
    assert not await letters.change(LetterKey("acme", mine.id), resolve())
    assert not await letters.delete(LetterKey("acme", mine.id))
    assert await letters.list(LetterFilter("acme"), 10) == []
    # Letters of two tenants may have the same id.
    assert await letters.add(replace(theirs, id=mine.id))
    assert await letters.get(LetterKey("public", mine.id)) == mine
