"""Claims on records: one delivery owns an image at a time, and releases it if it cannot finish."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

import structlog

from core.domain import records as transitions
from core.domain.records import Claim, RecordKey
from core.errors import Unavailable
from core.observability.tracing import span
from core.ports import RecordStore
from worker.errors import may_be_the_image, release_reason

log = structlog.get_logger(__name__)


class Claims:
    """Acquires claims and counts those that this process holds, so that shutdown can wait."""

    def __init__(self) -> None:
        self._held = 0
        self._none_held = asyncio.Event()
        self._none_held.set()

    @asynccontextmanager
    async def claim(
        self, records: RecordStore, key: RecordKey, lease: timedelta
    ) -> AsyncIterator[Claim | None]:
        """Claim the record for the block. The claim is None if the store refuses it.

        Releases the claim if the block raises, so that the next delivery does not wait until the
        lease expires. The record keeps the reason, in case this was the last delivery.
        """
        claiming = asyncio.ensure_future(_claim(records, key, lease))
        self._held += 1
        self._none_held.clear()
        try:
            # The store may grant the claim after a cancellation, so the request must not stop.
            yield await asyncio.shield(claiming)
        except BaseException as error:
            releasing = asyncio.ensure_future(_release(records, claiming, error))
            releasing.add_done_callback(lambda _: self._end())
            await asyncio.shield(releasing)
            raise
        else:
            self._end()

    async def wait_until_released(self) -> None:
        """Return when this process holds no claim."""
        await self._none_held.wait()

    def _end(self) -> None:
        self._held -= 1
        if not self._held:
            self._none_held.set()


async def _claim(records: RecordStore, key: RecordKey, lease: timedelta) -> Claim | None:
    with span("claim record"):
        record = await records.change(key, transitions.claim(lease))
    return None if record is None else transitions.claim_of(record)


async def _release(
    records: RecordStore, claiming: "asyncio.Future[Claim | None]", error: BaseException
) -> None:
    reason = release_reason(error)
    try:
        claim = await claiming
        if claim is not None:
            release = transitions.release(claim, reason, counts=may_be_the_image(error))
            released = await records.change(claim.key, release)
            log.warning(
                "claim released",
                attempt=claim.attempt,
                released=released is not None,
                code=reason.code,
            )
    except Unavailable as unavailable:
        log.warning("claim not released", reason=unavailable.detail)
