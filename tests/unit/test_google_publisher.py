"""The publisher against a Pub/Sub that refuses, hangs and answers wrongly; the emulator does not.

https://cloud.google.com/pubsub/docs/reference/error-codes
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from typing import Any

import grpc.aio
import pytest
from google.pubsub_v1.types import PublishRequest, PublishResponse

from core.backends.google import publisher as module
from core.backends.google.publisher import BATCH, SENDERS, PubSubPublisher
from core.domain.messages import ClassifyImage
from core.domain.records import RecordKey
from core.errors import Unavailable
from tests.support.scripted_worker import until

RETRIED = ("UNAVAILABLE", "ABORTED", "INTERNAL", "RESOURCE_EXHAUSTED")


def message(number: int) -> ClassifyImage:
    return ClassifyImage(RecordKey("public", f"{number:064x}", "colours@0123456789ab"))


def id_of(number: int) -> str:
    """The id that the scripted Pub/Sub gives to `message(number)`."""
    return f"id-{number:064x}"


class ScriptedPubSub:
    """Pub/Sub's `Publish`. `requests` lists the numbers of the messages of each request."""

    def __init__(self) -> None:
        self.requests: list[list[int]] = []
        self.refusals: deque[grpc.StatusCode] = deque()  # one for each request, until empty
        self.ids_left_out = 0
        self.answering = asyncio.Event()
        self.answering.set()

    async def publish(self, raw: bytes, context: Any) -> bytes:
        request = PublishRequest.deserialize(raw)
        hashes = [message.attributes["image_hash"] for message in request.messages]
        self.requests.append([int(each, 16) for each in hashes])
        await self.answering.wait()
        if self.refusals:
            await context.abort(self.refusals.popleft(), "scripted")
        ids = [f"id-{each}" for each in hashes]
        response = PublishResponse(message_ids=ids[self.ids_left_out :])
        return bytes(PublishResponse.serialize(response))

    def refuse(self, *statuses: str) -> None:
        self.refusals.extend(grpc.StatusCode[status] for status in statuses)


@pytest.fixture
async def pubsub() -> ScriptedPubSub:
    return ScriptedPubSub()


@pytest.fixture
async def publisher(pubsub: ScriptedPubSub) -> AsyncIterator[PubSubPublisher]:
    server = grpc.aio.server()
    handler = grpc.unary_unary_rpc_method_handler(pubsub.publish)
    server.add_generic_rpc_handlers(
        (grpc.method_handlers_generic_handler("google.pubsub.v1.Publisher", {"Publish": handler}),)
    )
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        opened = PubSubPublisher(channel, "demo", "glimpse")
        yield opened
        pubsub.answering.set()
        await opened.close()
    await server.stop(None)


async def held(pubsub: ScriptedPubSub, publisher: PubSubPublisher) -> list[asyncio.Task[str]]:
    """Publishes messages 0 to `SENDERS` - 1, each in a request that Pub/Sub does not answer yet.

    What is published next waits for a sender.
    """
    pubsub.answering.clear()
    calls = []
    for number in range(SENDERS):
        calls.append(publishing(publisher, number))
        await until(lambda: len(pubsub.requests) == len(calls))
    return calls


def publishing(publisher: PubSubPublisher, number: int) -> asyncio.Task[str]:
    return asyncio.create_task(publisher.publish(message(number)))


async def outcomes(calls: list[asyncio.Task[str]]) -> list[str | BaseException]:
    """What each call returns or raises; all of them end well below `PUBLISH` seconds."""
    async with asyncio.timeout(module.PUBLISH / 2):
        return await asyncio.gather(*calls, return_exceptions=True)


@pytest.mark.parametrize("status", RETRIED)
async def test_a_passing_failure_is_retried(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher, status: str
) -> None:
    pubsub.refuse(status)
    assert await publisher.publish(message(1)) == id_of(1)
    assert pubsub.requests == [[1], [1]]


@pytest.mark.parametrize("status", ["NOT_FOUND", "PERMISSION_DENIED", "INVALID_ARGUMENT"])
async def test_a_lasting_failure_is_not_retried(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher, status: str
) -> None:
    pubsub.refuse(status)
    with pytest.raises(Unavailable, match="message queue"):
        await publisher.publish(message(1))
    assert pubsub.requests == [[1]]
    assert await publisher.publish(message(2)) == id_of(2)


async def test_retries_end_before_the_caller_gives_up(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    pubsub.refuse(*["UNAVAILABLE"] * 1000)
    (outcome,) = await outcomes([publishing(publisher, 1)])
    assert isinstance(outcome, Unavailable)
    assert 1 < len(pubsub.requests) < 50


async def test_messages_that_wait_share_a_request(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    calls = await held(pubsub, publisher)
    total = SENDERS + BATCH + 5
    calls.append(publishing(publisher, SENDERS))
    for _ in range(10):
        await asyncio.sleep(0)  # a free sender would take it now
    calls += [publishing(publisher, number) for number in range(SENDERS + 1, total)]
    await asyncio.sleep(0)
    pubsub.answering.set()
    assert await outcomes(calls) == [id_of(number) for number in range(total)]
    assert [len(each) for each in pubsub.requests] == [1] * SENDERS + [BATCH, 5]
    assert [number for each in pubsub.requests for number in each] == list(range(total))


async def test_every_caller_of_a_failed_request_fails_at_once(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    calls = await held(pubsub, publisher)
    calls += [publishing(publisher, number) for number in range(100, 110)]
    await asyncio.sleep(0)
    pubsub.refuse(*["PERMISSION_DENIED"] * (SENDERS + 1))
    pubsub.answering.set()
    assert {type(each) for each in await outcomes(calls)} == {Unavailable}
    assert pubsub.requests[SENDERS:] == [list(range(100, 110))]


async def test_an_answer_with_too_few_ids_fails_every_caller(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    """The ids cannot be assigned to messages: no caller gets another's, and none waits."""
    calls = await held(pubsub, publisher)
    batch = [publishing(publisher, number) for number in range(100, 103)]
    await asyncio.sleep(0)
    pubsub.ids_left_out = 1
    pubsub.answering.set()
    assert all(isinstance(each, Exception) for each in await outcomes(calls + batch))


@pytest.mark.parametrize(("name", "senders_busy"), [("REQUEST", 0), ("PUBLISH", 0), ("PUBLISH", 1)])
async def test_a_caller_does_not_wait_for_a_pubsub_that_hangs(
    pubsub: ScriptedPubSub,
    publisher: PubSubPublisher,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    senders_busy: bool,
) -> None:
    """Each limit alone ends the call, whether it waits for an answer or for a sender."""
    monkeypatch.setattr(module, "REQUEST", 60.0)
    pubsub.answering.clear()
    earlier = await held(pubsub, publisher) if senders_busy else []
    monkeypatch.setattr(module, "PUBLISH", 60.0)
    monkeypatch.setattr(module, name, 0.1)
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await publisher.publish(message(1000))
    pubsub.answering.set()
    await asyncio.gather(*earlier)


async def test_a_message_whose_caller_has_gone_is_not_sent(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    calls = await held(pubsub, publisher)
    calls += [publishing(publisher, number) for number in (SENDERS, SENDERS + 1)]
    await asyncio.sleep(0)
    calls[0].cancel()  # its message is on the way
    calls[SENDERS].cancel()
    await asyncio.sleep(0)
    pubsub.answering.set()
    ended = await outcomes(calls)
    assert pubsub.requests[SENDERS:] == [[SENDERS + 1]]
    gone = [n for n, each in enumerate(ended) if isinstance(each, asyncio.CancelledError)]
    assert gone == [0, SENDERS]


async def test_a_caller_that_goes_leaves_the_others_of_its_request_alone(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    pubsub.answering.clear()
    calls = [publishing(publisher, number) for number in range(3)]
    await until(lambda: pubsub.requests == [[0, 1, 2]])
    calls[0].cancel()
    await asyncio.sleep(0)
    pubsub.answering.set()
    gone, *others = await outcomes(calls)
    assert isinstance(gone, asyncio.CancelledError)
    assert others == [id_of(1), id_of(2)]


async def test_close_sends_what_waits_and_takes_no_more(
    pubsub: ScriptedPubSub, publisher: PubSubPublisher
) -> None:
    calls = await held(pubsub, publisher)
    calls += [publishing(publisher, number) for number in (SENDERS, SENDERS + 1)]
    await asyncio.sleep(0)
    closing = asyncio.create_task(publisher.close())
    await asyncio.sleep(0)
    with pytest.raises(Unavailable, match="closed"):
        await publisher.publish(message(1000))
    assert not closing.done()
    pubsub.answering.set()
    await closing
    assert pubsub.requests[SENDERS:] == [[SENDERS, SENDERS + 1]]
    assert await outcomes(calls) == [id_of(number) for number in range(SENDERS + 2)]
