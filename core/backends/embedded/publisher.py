"""Publishes by an fsynced row in the queue's database, and wakes the queue process if it runs."""

from core.backends.embedded.queue_store import PREFIX, QueueStore
from core.backends.embedded.wake_up import WakeUpSender
from core.clock import Clock, utc_now
from core.domain.channels import Channel
from core.domain.messages import Message
from core.ports import Backlog


class SqlitePublisher:
    """`core.ports.Publisher`."""

    def __init__(self, store: QueueStore, wake_up: WakeUpSender, clock: Clock = utc_now) -> None:
        self.system = "glimpse"
        self._store = store
        self._wake_up = wake_up
        self._clock = clock

    def topic(self, channel: Channel) -> str:
        return channel.topic(PREFIX)

    async def publish(self, message: Message) -> str:
        now = self._clock()
        id_ = await self._store.publish(message.channel, message.attributes(), b"", now)
        self._wake_up.send_soon()
        return id_

    async def ping(self) -> None:
        await self._store.ping()

    async def backlog(self) -> Backlog:
        messages, oldest = await self._store.backlog()
        age = (self._clock() - oldest).total_seconds() if oldest else 0.0
        return Backlog(messages, max(0.0, age))
