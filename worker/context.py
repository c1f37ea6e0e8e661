"""What one worker process classifies with, and the claims it has in hand."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import structlog
from cachetools import LRUCache

from core.backends import Backend
from core.clock import Clock, utc_now
from core.domain import records
from core.domain.records import Claim, RecordError, RecordKey
from core.errors import Unavailable
from core.observability.tracing import span
from core.ports import UsageStore
from core.settings import Settings
from worker.errors import last_failure
from worker.inference.model_registry import ModelRegistry
from worker.metrics import WorkerMetrics
from worker.priority_semaphore import PriorityPlaces

log = structlog.get_logger(__name__)

# An image that has taken down this many classifiers is not given to another by a redelivery.
LOST_CLASSIFIERS = 3
REMEMBERED_LOSSES = 10_000  # images


class Workbench:
    """Opened once a process, inside its event loop.

    `places` admits as many images as `at_hand` says, the most urgent first: Pub/Sub pushes the
    messages of every priority at once. An image is claimed only once admitted: no lease runs down
    in a line of unknown length. `jobs` says what becomes of jobs when. Of what the API keeps about
    keys a worker has the counts alone, `usage`, to clear the old ones away.
    """

    def __init__(
        self,
        settings: Settings,
        backend: Backend,
        models: ModelRegistry,
        metrics: WorkerMetrics,
        *,
        at_hand: Callable[[], int],
        usage: UsageStore,
        clock: Clock = utc_now,
    ) -> None:
        self.settings = settings
        self.backend = backend
        self.usage = usage
        self.models = models
        self.metrics = metrics
        self.clock = clock
        self.places = PriorityPlaces(at_hand)
        self.jobs = settings.jobs
        self.refresh_interval = timedelta(seconds=self.jobs.refresh_interval)
        self._losses: LRUCache[RecordKey, int] = LRUCache(REMEMBERED_LOSSES)
        self._in_hand = 0
        self._emptied = asyncio.Event()
        self._emptied.set()

    @asynccontextmanager
    async def reading(self, key: RecordKey) -> AsyncIterator[Awaitable[bytes | Path]]:
        """The image's bytes, on their way while the claim is: most claims are granted.

        Where blobs are files here, the file: who classifies it reads it.
        """
        image: asyncio.Future[bytes | Path]
        file = self.backend.blobs.file(key.blob_name)
        if file is not None:
            image = asyncio.get_running_loop().create_future()
            image.set_result(file)
            yield image
            return
        image = asyncio.ensure_future(self._read(key))
        image.add_done_callback(_retrieved)
        try:
            yield image
        finally:
            image.cancel()  # only where the claim was refused

    @asynccontextmanager
    async def claimed(self, key: RecordKey) -> AsyncIterator[Claim | None]:
        """The claim on `key`, or None where it is refused.

        Given up if the work inside does not reach its end, whatever the reason, so that the next
        delivery need not wait for the lease to run out.
        """
        claiming = asyncio.ensure_future(self._claim(key))
        self._in_hand += 1
        self._emptied.clear()
        try:
            # Shielded: a claim that is granted to a cancelled task must be given up all the same.
            yield await asyncio.shield(claiming)
        except BaseException as error:
            giving_up = asyncio.ensure_future(self._give_up(claiming, last_failure(error)))
            giving_up.add_done_callback(lambda _: self._ended())
            await asyncio.shield(giving_up)
            raise
        else:
            self._ended()

    def blamed(self, key: RecordKey) -> bool:
        """Note that a classifier was lost over this image; whether it has taken enough of them.

        Each worker counts for itself: the attempts on the record have many other reasons.
        """
        self._losses[key] = self._losses.get(key, 0) + 1
        return self._losses[key] >= LOST_CLASSIFIERS

    async def emptied(self) -> None:
        """Return once no claim is in hand."""
        await self._emptied.wait()

    def _ended(self) -> None:
        self._in_hand -= 1
        if not self._in_hand:
            self._emptied.set()

    async def _read(self, key: RecordKey) -> bytes | Path:
        with span("read image"):
            return await self.backend.blobs.get(key.blob_name)

    async def _claim(self, key: RecordKey) -> Claim | None:
        with span("claim record"):
            record = await self.backend.records.change(key, records.claim(self.settings.lease))
        return None if record is None else records.claim_of(record)

    async def _give_up(self, claiming: "asyncio.Future[Claim | None]", reason: RecordError) -> None:
        """Release the claim. The record keeps `reason`, should this have been the last delivery."""
        try:
            claim = await claiming
            if claim is not None:
                release = records.release(claim, reason)
                released = await self.backend.records.change(claim.key, release) is not None
                log.warning(
                    "claim given up", attempt=claim.attempt, released=released, code=reason.code
                )
        except Unavailable as error:
            log.warning("claim not given up", reason=error.detail)


def _retrieved(image: "asyncio.Future[bytes | Path]") -> None:
    """A failure to read matters to none but a claimant, who hears of it by waiting."""
    if not image.cancelled():
        image.exception()
