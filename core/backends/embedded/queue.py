"""The push queue's process: `python -m core.backends.embedded.queue`.

It treats the worker as a Pub/Sub push subscription does: at-least-once, the same envelope, the same
acknowledging answers, backoff, ack deadline and dead letters. One process owns a data folder.
"""

import asyncio
import base64
import fcntl
import json
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import structlog
import uvloop

from core.backends.embedded import open_queue_store
from core.backends.embedded.push_client import NoAnswer, NotReached, PushClient
from core.backends.embedded.queue_store import (
    CLASSIFY,
    DEAD_LETTER,
    EXPIRED,
    PROJECT,
    Acknowledged,
    GivenUp,
    Message,
    Outcome,
    QueueStore,
    Refused,
    Unreached,
)
from core.backends.embedded.scheduler import reconcile_regularly
from core.clock import Clock, rfc3339, utc_now
from core.errors import Unavailable
from core.policy import ACKNOWLEDGING_STATUS, CLASSIFY_PATH, DEAD_LETTER_PATH, DeliveryPolicy
from core.settings import Settings, load_settings
from core.telemetry import configure_logging

log = structlog.get_logger(__name__)

PATHS = {CLASSIFY: CLASSIFY_PATH, DEAD_LETTER: DEAD_LETTER_PATH}
POLL = 0.01  # seconds between looks for publications of other processes
FIRST_PROBE = 0.1  # seconds until an unreachable worker is tried again; doubles each time
LAST_PROBE = 5.0
EXPIRY_CHECK = 60.0


class PushQueue:
    """Leases what is due, pushes it, and records how each push ended.

    `concurrency` pushes are in flight at most. One task leases and settles, in one transaction
    a turn, so that a busy queue costs one commit for many messages.
    """

    def __init__(
        self,
        store: QueueStore,
        client: PushClient,
        policy: DeliveryPolicy,
        concurrency: int,
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._client = client
        self._policy = policy
        self._concurrency = concurrency
        self._clock = clock
        self._wake = asyncio.Event()
        self._stopping = False
        self._pushes: set[asyncio.Task[None]] = set()
        self._outcomes: list[Outcome] = []
        self._seen = -1
        self._next_due: datetime | None = None
        self._unreached = 0  # tries in a row that did not reach the worker
        self._probe_at = 0.0  # on the loop's clock

    def stop(self) -> None:
        """Begin no more deliveries; `run` returns once those in flight have ended."""
        self._stopping = True
        self._wake.set()

    async def run(self, grace: float) -> None:
        """Deliver until `stop`, then give the pushes in flight `grace` seconds to end.

        Raises Unavailable where the queue's database cannot be read at the start.
        """
        freed = await self._store.void_leases()
        if freed:
            log.info("a queue died before this one: its deliveries are repeated", messages=freed)
        expiry = asyncio.create_task(self._expire_regularly())
        try:
            while not self._stopping:
                try:
                    await self._turn()
                except Unavailable as unavailable:
                    log.error("the queue cannot work; it tries again", reason=unavailable.detail)
                    await asyncio.sleep(1)
        finally:
            expiry.cancel()
            await asyncio.gather(expiry, return_exceptions=True)
            await self._finish(grace)

    # --- Leasing and settling ---------------------------------------------------------------------

    async def _turn(self) -> None:
        self._wake.clear()
        room = self._room()
        if self._outcomes or (room and self._due()):
            leased = await self._settle_and_lease(room)
            for message in leased:
                task = asyncio.create_task(self._deliver(message))
                self._pushes.add(task)
                task.add_done_callback(self._pushes.discard)
            if len(leased) == room:
                self._next_due = self._clock()  # there may be more
            else:
                self._seen, self._next_due = -1, None  # look when the next one is due
        elif await self._woken(room):
            return
        else:
            await self._look()

    async def _settle_and_lease(self, room: int) -> list[Message]:
        outcomes, self._outcomes = self._outcomes, []
        try:
            return await self._store.turn(outcomes, room, self._clock())
        except BaseException:
            self._outcomes = outcomes + self._outcomes  # not recorded: the next turn's
            raise

    def _room(self) -> int:
        """How many deliveries may begin now."""
        if self._unreached:
            # One message at a time finds out whether the worker is back.
            probing = bool(self._pushes) or asyncio.get_running_loop().time() < self._probe_at
            return 0 if probing else 1
        return self._concurrency - len(self._pushes)

    def _due(self) -> bool:
        return self._next_due is not None and self._next_due <= self._clock()

    async def _woken(self, room: int) -> bool:
        """Wait until a push ends, or it is time to look; True where a push ended."""
        wait: float | None = POLL
        if not room:
            # Nothing can begin, so there is nothing to look for.
            wait = None
            if self._unreached and not self._pushes:
                wait = max(0.0, self._probe_at - asyncio.get_running_loop().time())
        try:
            await asyncio.wait_for(self._wake.wait(), wait)
        except TimeoutError:
            return False
        return True

    async def _look(self) -> None:
        version, due = await self._store.look(self._seen)
        if version != self._seen:
            self._seen, self._next_due = version, due

    async def _finish(self, grace: float) -> None:
        if self._pushes:
            await asyncio.wait(self._pushes, timeout=grace)
        for push in list(self._pushes):
            push.cancel()
        await asyncio.gather(*self._pushes, return_exceptions=True)
        # Those cut off stay leased; the next queue frees them.
        await self._settle_and_lease(0)

    # --- One delivery -----------------------------------------------------------------------------

    async def _deliver(self, message: Message) -> None:
        try:
            status = await self._client.post(
                PATHS[message.subscription], envelope(message), self._policy.ack_deadline
            )
        except NotReached as error:
            self._note_unreached(str(error))
            outcome: Outcome = Unreached(message.id)
        except NoAnswer as error:
            self._note_reached()
            outcome = self._refused(message, str(error))
        else:
            self._note_reached()
            if status in ACKNOWLEDGING_STATUS:
                log.debug("delivered", **_names(message), status=status)
                outcome = Acknowledged(message.id)
            else:
                outcome = self._refused(message, f"HTTP {status}")
        self._outcomes.append(outcome)
        self._wake.set()

    def _refused(self, message: Message, reason: str) -> Outcome:
        if message.subscription == CLASSIFY and message.attempt >= self._policy.attempts:
            log.error("dead letter", **_names(message), reason=reason)
            return GivenUp(message.id, reason)
        wait = self._policy.backoff(message.attempt)
        log.warning("delivery refused", **_names(message), reason=reason, again_in=wait)
        return Refused(message.id, self._clock() + timedelta(seconds=wait))

    def _note_unreached(self, reason: str) -> None:
        if not self._unreached:
            log.warning("worker unreachable; messages wait for it", reason=reason)
        wait = min(LAST_PROBE, self._policy.max_backoff, FIRST_PROBE * 2.0**self._unreached)
        self._unreached = min(self._unreached + 1, 60)
        self._probe_at = asyncio.get_running_loop().time() + wait

    def _note_reached(self) -> None:
        if self._unreached:
            log.info("worker reachable again")
        self._unreached = 0

    # --- Retention --------------------------------------------------------------------------------

    async def _expire_regularly(self) -> None:
        retention = timedelta(seconds=self._policy.retention)
        while True:
            try:
                for message in await self._store.expire(retention, self._clock()):
                    log.error("dead letter", **_names(message), reason=EXPIRED)
            except Unavailable as unavailable:
                log.error("old messages cannot be given up", reason=unavailable.detail)
            await asyncio.sleep(min(EXPIRY_CHECK, self._policy.retention / 4))


def envelope(message: Message) -> bytes:
    """The body that Pub/Sub would POST: https://cloud.google.com/pubsub/docs/push#receive_push

    `deliveryAttempt` is there only with a dead-letter policy, so not on the dead-letter
    subscription.
    """
    published = rfc3339(message.published_at)
    body: dict[str, object] = {
        "subscription": f"projects/{PROJECT}/subscriptions/{message.subscription}",
        "message": {
            "messageId": str(message.id),
            "message_id": str(message.id),
            "publishTime": published,
            "publish_time": published,
            "data": base64.b64encode(message.data).decode(),
            "attributes": message.attributes,
        },
    }
    if message.subscription == CLASSIFY:
        body["deliveryAttempt"] = message.attempt
    return json.dumps(body).encode()


def _names(message: Message) -> dict[str, object]:
    """What a log line says about a message."""
    return {
        "image_hash": message.attributes.get("image_hash", ""),
        "tenant": message.attributes.get("tenant", ""),
        "message_id": message.id,
        "subscription": message.subscription,
        "attempt": message.attempt,
    }


@contextmanager
def owning(data_dir: Path) -> Iterator[None]:
    """Hold the data folder's queue lock, or exit with a message where another process does.

    The kernel drops the lock when its holder dies, however it dies.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = data_dir / "queue.lock"
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            raise SystemExit(
                f"Another queue (process {holder}) serves {data_dir.resolve()} already."
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield


async def serve(settings: Settings) -> None:
    """Run the queue and the scheduler until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    async with (
        open_queue_store(settings) as store,
        PushClient(settings.push_url) as client,
    ):
        queue = PushQueue(store, client, settings.delivery, settings.push_concurrency)
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, queue.stop)
        scheduler = asyncio.create_task(
            reconcile_regularly(client, settings.delivery.reconcile_interval)
        )
        log.info("queue delivers", to=settings.push_url, concurrency=settings.push_concurrency)
        try:
            await queue.run(settings.shutdown_seconds)
        finally:
            scheduler.cancel()
            await asyncio.gather(scheduler, return_exceptions=True)
            log.info("queue stopped")


def main() -> None:
    settings = load_settings()
    configure_logging("queue", settings.log_format, settings.log_level)
    with owning(settings.data_dir):
        try:
            uvloop.run(serve(settings))
        except Unavailable as unavailable:
            raise SystemExit(f"The queue cannot start: {unavailable.detail}") from None


if __name__ == "__main__":
    main()
