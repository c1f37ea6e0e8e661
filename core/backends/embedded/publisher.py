"""Publishing: an fsynced row in the queue's database, whether or not the queue is running."""

from core.backends.embedded.queue_store import QueueStore
from core.clock import Clock, utc_now
from core.messages import ClassifyImage


class SqlitePublisher:
    """`core.ports.Publisher`."""

    def __init__(self, store: QueueStore, clock: Clock = utc_now) -> None:
        self._store = store
        self._clock = clock

    async def publish(self, message: ClassifyImage) -> str:
        return await self._store.publish(message.attributes(), b"", self._clock())

    async def ping(self) -> None:
        await self._store.ping()
