"""Publishes to Pub/Sub in batches, without waiting for a batch to fill.

A message is sent at once. While `SENDERS` requests are in flight, messages wait and then share the
next request: batches grow with the load, and add no delay without it.
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
SENDERS = 8  # requests in flight for each topic
BATCH = 100  # messages in a request. Pub/Sub allows 1,000, and 10 MB
# In seconds: for one try, for all tries and the wait for a sender, and for a ping. After PUBLISH
# the client gets a 503 and retries. If the message was sent after all, it is a duplicate, which
# does no harm.
REQUEST, PUBLISH, PING = 3.0, 5.0, 2.0
_RETRY = AsyncRetry(
    predicate=if_exception_type(Aborted, InternalServerError, ServiceUnavailable, TooManyRequests),
    initial=0.05,
    maximum=0.5,
    multiplier=2.0,
    timeout=2.0,
)


class PubSubPublisher:
    """`core.ports.Publisher` on the topics whose names start with `prefix`."""

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
        """Publish, and return the message's id. Raises Unavailable within `PUBLISH` seconds."""
        if self._closed:
            raise Unavailable("The message queue is closed.")
        return await self._topics[message.channel].publish(message)

    async def ping(self) -> None:
        await asyncio.gather(*(topic.ping() for topic in self._topics.values()))

    async def backlog(self) -> None:
        """Unknown. Cloud Monitoring has it: `subscription/num_undelivered_messages`."""

    async def close(self) -> None:
        """Send the messages that wait."""
        self._closed = True
        await asyncio.gather(*(topic.flush() for topic in self._topics.values()))


class _Topic:
    """The messages that wait for one topic, and the tasks that send them."""

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

    async def flush(self) -> None:
        """Return when no message waits and no request is in flight."""
        while self._senders:
            await asyncio.wait(self._senders)

    async def _send_all(self) -> None:
        while self._waiting:
            batch: list[tuple[object, asyncio.Future[str]]] = []
            while self._waiting and len(batch) < BATCH:
                message, future = self._waiting.popleft()
                if not future.done():  # otherwise its caller has gone
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
        except Exception as error:  # noqa: BLE001 - the callers raise it
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for future, message_id in outcomes.items():
            if not future.done():
                future.set_result(message_id)
