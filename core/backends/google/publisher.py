"""Publishing to Pub/Sub, in batches that nobody waits for.

A message goes out at once. Those that come while `SENDERS` requests are under way go together with
the next one: batches grow with the load and cost no delay without it.
"""

import asyncio
from collections import deque

import grpc.aio
from google.api_core.exceptions import (
    Aborted,
    InternalServerError,
    ServiceUnavailable,
    TooManyRequests,
)
from google.api_core.retry import AsyncRetry, if_exception_type
from google.pubsub_v1 import PublisherAsyncClient
from google.pubsub_v1.services.publisher.transports import PublisherGrpcAsyncIOTransport
from google.pubsub_v1.types import GetTopicRequest, PublishRequest, PublishResponse, PubsubMessage

from core.backends.google.errors import translated
from core.domain.channels import CHANNELS, Channel
from core.domain.messages import Message
from core.errors import Unavailable

PART = "message queue"
SENDERS = 8  # requests at once
BATCH = 100  # messages in a request; Pub/Sub allows 1,000 and 10 MB
# Seconds. One try may take REQUEST, all of them and the wait for a sender at most PUBLISH: then the
# client hears 503 and comes again. A message that went out all the same is a harmless duplicate.
REQUEST, PUBLISH, PING = 3.0, 5.0, 2.0
_RETRY = AsyncRetry(
    predicate=if_exception_type(Aborted, InternalServerError, ServiceUnavailable, TooManyRequests),
    initial=0.05,
    maximum=0.5,
    multiplier=2.0,
    timeout=2.0,
)


class PubSubPublisher:
    """`core.ports.Publisher` on the topics whose names begin with `prefix`."""

    def __init__(self, channel: grpc.aio.Channel, project: str, prefix: str) -> None:
        self._client = PublisherAsyncClient(
            transport=PublisherGrpcAsyncIOTransport(channel=channel)
        )
        self.system = "gcp_pubsub"
        self._prefix = prefix
        self._topics = {
            each: _Topic(self._client, f"projects/{project}/topics/{each.topic(prefix)}")
            for each in CHANNELS
        }
        self._closed = False

    def topic(self, channel: Channel) -> str:
        return channel.topic(self._prefix)

    async def publish(self, message: Message) -> str:
        """The message's id, once Pub/Sub has it. Raises Unavailable, within `PUBLISH` seconds."""
        if self._closed:
            raise Unavailable("The message queue is closed.")
        return await self._topics[message.channel].publish(message)

    async def ping(self) -> None:
        await asyncio.gather(*(topic.ping() for topic in self._topics.values()))

    async def backlog(self) -> None:
        """Not known here: `subscription/num_undelivered_messages` in Cloud Monitoring is."""

    async def close(self) -> None:
        """Send what waits."""
        self._closed = True
        await asyncio.gather(*(topic.emptied() for topic in self._topics.values()))


class _Topic:
    """What waits for one topic, and who sends it."""

    def __init__(self, client: PublisherAsyncClient, name: str) -> None:
        self._client = client
        self._name = name
        self._waiting: deque[tuple[object, asyncio.Future[str]]] = deque()
        self._senders: set[asyncio.Task[None]] = set()

    async def publish(self, message: Message) -> str:
        future: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._waiting.append((PubsubMessage.pb()(attributes=message.attributes()), future))
        if len(self._senders) < SENDERS:
            sender = asyncio.create_task(self._send_all())
            self._senders.add(sender)
            sender.add_done_callback(self._senders.discard)
        with translated(PART):
            async with asyncio.timeout(PUBLISH):
                return await future

    async def ping(self) -> None:
        with translated(PART):
            request = GetTopicRequest(topic=self._name)
            await self._client.get_topic(request=request, retry=None, timeout=PING)

    async def emptied(self) -> None:
        """Return once everything is sent."""
        while self._senders:
            await asyncio.wait(self._senders)

    async def _send_all(self) -> None:
        while self._waiting:
            batch: list[tuple[object, asyncio.Future[str]]] = []
            while self._waiting and len(batch) < BATCH:
                message, future = self._waiting.popleft()
                if not future.done():  # its caller gave up
                    batch.append((message, future))
            if batch:
                await self._send(batch)

    async def _send(self, batch: list[tuple[object, asyncio.Future[str]]]) -> None:
        raw = PublishRequest.pb()(topic=self._name, messages=[message for message, _ in batch])
        try:
            response = await self._client.publish(
                request=PublishRequest.wrap(raw), retry=_RETRY, timeout=REQUEST
            )
            ids = PublishResponse.pb(response).message_ids
            outcomes = dict(zip((future for _, future in batch), ids, strict=True))
        except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to the callers
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for future, message_id in outcomes.items():
            if not future.done():
                future.set_result(message_id)
