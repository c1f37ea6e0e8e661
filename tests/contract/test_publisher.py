"""Every method of the Publisher port. What becomes of a message: `tests/unit/test_queue*.py`."""

import asyncio

from core.backends import Backend, open_backend
from core.messages import ClassifyImage
from core.records import RecordKey
from core.settings import Settings


def message(number: int) -> ClassifyImage:
    return ClassifyImage(RecordKey("public", f"{number:064x}", "colours@0123456789ab"))


async def test_each_publication_has_an_id_of_its_own(backend: Backend) -> None:
    ids = await asyncio.gather(*(backend.publisher.publish(message(n % 10)) for n in range(100)))
    assert all(ids)
    assert len(set(ids)) == 100


async def test_two_processes_worth_of_backends_share_one_queue(
    backend: Backend, settings: Settings
) -> None:
    async with open_backend(settings) as other:
        ids = await asyncio.gather(
            *(publisher.publish(message(1)) for publisher in (backend.publisher, other.publisher))
        )
    assert len(set(ids)) == 2


async def test_the_queues_depth_is_known_or_left_to_others(backend: Backend) -> None:
    before = await backend.publisher.backlog()
    await asyncio.gather(*(backend.publisher.publish(message(n)) for n in range(3)))
    after = await backend.publisher.backlog()
    if before is None:
        assert after is None
    else:
        assert after is not None
        assert (before.messages, before.oldest_age) == (0, 0)
        assert after.messages == 3
        assert after.oldest_age >= 0


async def test_ping(backend: Backend) -> None:
    await backend.publisher.ping()
