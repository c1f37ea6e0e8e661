"""Waits for results. All clients that wait for one image share one poll of the store."""

import asyncio
from collections import Counter
from dataclasses import dataclass

import structlog
from starlette.types import Receive

from core.domain.records import Record, RecordKey
from core.errors import Unavailable
from core.ports import RecordStore

log = structlog.get_logger(__name__)

MAX_WAITS_PER_KEY = 250  # concurrent, in one process
FIRST_INTERVAL, LONGEST_INTERVAL, GROWTH = 0.01, 0.25, 1.5  # seconds, seconds, factor


@dataclass(frozen=True, slots=True)
class Wait:
    """How long a client waits for a result, in seconds.

    `receive` is that of its request, whose body has been read. `key_id` is its API key, if any.
    """

    seconds: float = 0
    receive: Receive | None = None
    key_id: str = ""


@dataclass(slots=True)
class _Poll:
    task: "asyncio.Task[Record | None]"
    waiters: int = 0


class ResultWaiter:
    """The polls of one process, one for each image that clients wait for."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._polls: dict[RecordKey, _Poll] = {}
        self._by_key: Counter[str] = Counter()
        self._stopping = asyncio.Event()

    @property
    def polls(self) -> int:
        """The number of images that clients wait for."""
        return len(self._polls)

    async def until_terminal(
        self, key: RecordKey, seconds: float, receive: Receive | None = None, key_id: str = ""
    ) -> Record | None:
        """The record, once its status is terminal.

        None after `seconds`, if the record is deleted, after `stop`, if the client disconnects, or
        at once if the API key `key_id` has `MAX_WAITS_PER_KEY` waits.
        `receive` is that of a request whose body has been read.
        """
        if self._stopping.is_set() or seconds <= 0:
            return None
        if key_id and self._by_key[key_id] >= MAX_WAITS_PER_KEY:
            return None
        poll = self._polls.get(key)
        if poll is None:
            poll = _Poll(asyncio.create_task(self._poll(key)))
            self._polls[key] = poll
        poll.waiters += 1
        self._by_key[key_id] += 1
        disconnect = asyncio.create_task(_until_disconnect(receive)) if receive else None
        try:
            await asyncio.wait(
                {poll.task, disconnect} if disconnect else {poll.task},
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return poll.task.result() if poll.task.done() else None
        finally:
            if disconnect:
                disconnect.cancel()
            poll.waiters -= 1
            self._by_key[key_id] -= 1
            if not self._by_key[key_id]:
                del self._by_key[key_id]
            if poll.waiters == 0:
                poll.task.cancel()
            if self._polls.get(key) is poll and (poll.task.done() or poll.waiters == 0):
                del self._polls[key]

    def stop(self) -> None:
        """End all waits now."""
        self._stopping.set()

    async def _poll(self, key: RecordKey) -> Record | None:
        interval = FIRST_INTERVAL
        while True:
            try:
                record = await self._records.get(key)
                if record is None or record.status.terminal:
                    return record
            except Unavailable as error:
                # The store may answer before the waits end.
                log.warning("poll for a result failed", detail=error.detail)
            if await self._stopped_within(interval):
                return None
            interval = min(interval * GROWTH, LONGEST_INTERVAL)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


async def _until_disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
