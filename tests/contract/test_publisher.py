"""Every method of the Publisher port. `tests/unit/test_queue.py` tests the delivery of messages."""

import asyncio

import pytest

from core.backends import Backend, open_backend
from core.domain.channels import CHANNELS
from core.domain.messages import ClassifyImage, Message, Notify, RunJob, message_of
from core.domain.priority import Priority
from core.domain.records import RecordKey
from core.errors import Unavailable
from core.settings import Settings
from tests.contract.conftest import WITHOUT_FIRESTORE

JOB = "5" * 32


@pytest.fixture(params=WITHOUT_FIRESTORE)
def backend_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def message(number: int, priority: Priority = Priority.HIGH) -> ClassifyImage:
    key = RecordKey("public", f"{number:064x}", "colours@0123456789ab")
    return ClassifyImage(key, priority=priority)


def one_of_each() -> list[Message]:
    """One message for each channel, in the order of `CHANNELS`."""
    images = [message(number, priority) for number, priority in enumerate(Priority)]
    return [*images, RunJob("public", JOB), Notify("public", JOB, "job.completed")]


async def test_each_publication_has_a_unique_id(backend: Backend) -> None:
    ids = await asyncio.gather(*(backend.publisher.publish(message(n % 10)) for n in range(100)))
    assert all(ids)
    assert len(set(ids)) == 100


async def test_every_kind_of_message_has_a_channel_and_is_published(backend: Backend) -> None:
    messages = one_of_each()
    assert [each.channel for each in messages] == list(CHANNELS)
    ids = await asyncio.gather(*(backend.publisher.publish(each) for each in messages))
    assert all(ids)
    assert len(set(ids)) == len(CHANNELS)
    topics = [backend.publisher.topic(channel) for channel in CHANNELS]
    assert len(set(topics)) == len(CHANNELS)


async def test_each_channel_has_a_topic_on_pub_sub(emulator_settings: Settings) -> None:
    from core.backends.google.provision import provision
    from tests.support.emulators import first_messages

    await provision(emulator_settings, pushing=False)
    prefix = emulator_settings.topic_prefix
    async with (
        open_backend(emulator_settings) as backend,
        first_messages(emulator_settings, [each.topic(prefix) for each in CHANNELS]) as first,
    ):
        for each in one_of_each():
            await backend.publisher.publish(each)
        found = {topic: await first(topic) for topic in map(backend.publisher.topic, CHANNELS)}
    assert [message_of(attributes) for attributes in found.values()] == one_of_each()


async def test_publisher_is_not_ready_without_one_topic(
    emulator_settings: Settings,
) -> None:
    from core.backends.google.provision import provision
    from tests.support.emulators import delete_topic

    await provision(emulator_settings, pushing=False)
    async with open_backend(emulator_settings) as backend:
        await backend.publisher.ping()
        await delete_topic(emulator_settings, CHANNELS[-1].topic(emulator_settings.topic_prefix))
        with pytest.raises(Unavailable):
            await backend.publisher.ping()


async def test_two_backends_share_one_queue(backend: Backend, settings: Settings) -> None:
    async with open_backend(settings) as other:
        ids = await asyncio.gather(
            *(publisher.publish(message(1)) for publisher in (backend.publisher, other.publisher))
        )
    assert len(set(ids)) == 2


async def test_backlog_is_counted_or_left_to_cloud_monitoring(backend: Backend) -> None:
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
