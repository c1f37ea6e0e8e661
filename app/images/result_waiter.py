"""Waiting for a result, for a bounded time, without asking the store once a waiter."""

import asyncio
from dataclasses import dataclass

import structlog
from starlette.types import Receive

from core.domain.records import Record, RecordKey
from core.errors import Unavailable
from core.ports import RecordStore

log = structlog.get_logger(__name__)

FIRST_PAUSE, LONGEST_PAUSE, GROWTH = 0.01, 0.25, 1.5  # seconds, seconds, factor


@dataclass(slots=True)
class _Poll:
    task: "asyncio.Task[Record | None]"
    waiters: int = 0


class ResultWaiter:
    """One poll of the store for each image that is waited for, shared by all who wait for it."""

    def __init__(self, records: RecordStore) -> None:
        self._records = records
        self._polls: dict[RecordKey, _Poll] = {}
        self._stopping = asyncio.Event()

    @property
    def polls(self) -> int:
        """How many images are being waited for."""
        return len(self._polls)

    async def until_terminal(
        self, key: RecordKey, seconds: float, receive: Receive | None = None
    ) -> Record | None:
        """The record once it has ended; None when time is up, it is gone, or we are stopping.

        Nor does it go on for a client that has left, as a request's `receive` tells whose body has
        been read.
        """
        if self._stopping.is_set() or seconds <= 0:
            return None
        poll = self._polls.get(key)
        if poll is None:
            poll = _Poll(asyncio.create_task(self._poll(key)))
            self._polls[key] = poll
        poll.waiters += 1
        left = asyncio.create_task(_left(receive)) if receive else None
        try:
            await asyncio.wait(
                {poll.task, left} if left else {poll.task},
                timeout=seconds,
                return_when=asyncio.FIRST_COMPLETED,
            )
            return poll.task.result() if poll.task.done() else None
        finally:
            if left:
                left.cancel()
            poll.waiters -= 1
            if poll.waiters == 0:
                poll.task.cancel()
            if self._polls.get(key) is poll and (poll.task.done() or poll.waiters == 0):
                del self._polls[key]

    def stop(self) -> None:
        """Let everyone who waits answer now with what is known."""
        self._stopping.set()

    async def _poll(self, key: RecordKey) -> Record | None:
        pause = FIRST_PAUSE
        while True:
            try:
                record = await self._records.get(key)
                if record is None or record.status.terminal:
                    return record
            except Unavailable as error:
                # Whoever waits loses nothing by waiting on.
                log.warning("cannot look for a result", detail=error.detail)
            if await self._stopped_within(pause):
                return None
            pause = min(pause * GROWTH, LONGEST_PAUSE)

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), seconds)
        except TimeoutError:
            return False
        return True


async def _left(receive: Receive) -> None:
    """Return once the client has gone."""
    while (await receive())["type"] != "http.disconnect":
        pass
