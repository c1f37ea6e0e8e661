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
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import structlog
import uvloop

from core.backends.data_folder import usable
from core.backends.embedded import open_queue_store
from core.backends.embedded.queue_store import (
    EXPIRED,
    PREFIX,
    PROJECT,
    Acknowledged,
    GivenUp,
    Message,
    Outcome,
    QueueStore,
    Refused,
    Room,
    Unreached,
)
from core.backends.local_scheduler import running_scheduler
from core.backends.push_client import NoAnswer, NotReached, PushClient
from core.clock import Clock, rfc3339, utc_now
from core.concurrency import in_background
from core.domain.channels import ALL_CHANNELS, CHANNELS, DEAD_LETTERS, Channel, Lane
from core.domain.policy import ACKNOWLEDGING_STATUS, NOTIFICATION_CONCURRENCY, DeliveryPolicy
from core.domain.priority import service_order
from core.errors import Unavailable
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings

log = structlog.get_logger(__name__)

CHANNELS_OF = {
    lane: tuple(channel for channel in ALL_CHANNELS if channel.lane is lane) for lane in Lane
}
POLL = 0.01  # seconds between looks for publications of other processes
LONGEST_BLIND = 0.05  # seconds without a look, where pushes end so often that there is no pause
FIRST_PROBE = 0.1  # seconds until an unreachable worker is tried again; doubles each time
LAST_PROBE = 5.0
EXPIRY_CHECK = 60.0
RETRY_SECONDS = 1.0  # between two tries to use a database that does not answer


Policies = Callable[[Channel], DeliveryPolicy]


def lane_sizes(images: int, notifications: int) -> dict[Lane, int]:
    """How many deliveries of each lane may be in flight."""
    return {
        Lane.IMAGES: images,
        Lane.JOBS: 2,
        Lane.NOTIFICATIONS: notifications,
        Lane.DEAD_LETTERS: 4,
    }


class PushQueue:
    """Leases what is due, pushes it, and records how each push ended.

    At most `sizes[lane]` pushes of a lane are in flight; what fills one lane delays no other. One
    task leases and settles, in one transaction a turn, so that a busy queue costs one commit for
    many messages.
    """

    def __init__(
        self,
        store: QueueStore,
        client: PushClient,
        policies: Policies,
        sizes: Mapping[Lane, int],
        clock: Clock = utc_now,
    ) -> None:
        self._store = store
        self._client = client
        self._policies = policies
        self._sizes = sizes
        self._clock = clock
        self._in_flight: Counter[Lane] = Counter()
        self._turns = 0
        self._wake = asyncio.Event()
        self._stopping = False
        self._pushes: set[asyncio.Task[None]] = set()
        self._outcomes: list[Outcome] = []
        self._seen = -1
        self._due: dict[Channel, datetime] = {}
        self._looked_at = 0.0  # on the loop's clock
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
        try:
            async with in_background(self._expire_regularly()):
                while not self._stopping:
                    try:
                        await self._turn()
                    except Unavailable as unavailable:
                        reason = unavailable.detail
                        log.error("queue database unavailable; retrying", reason=reason)
                        await asyncio.sleep(RETRY_SECONDS)
        finally:
            await self._finish(grace)

    # --- Leasing and settling ---------------------------------------------------------------------

    async def _turn(self) -> None:
        self._wake.clear()
        if self._due and asyncio.get_running_loop().time() - self._looked_at > LONGEST_BLIND:
            await self._look()
        rooms = self._rooms()
        if self._outcomes or rooms:
            leased = await self._settle_and_lease(rooms)
            for message in leased:
                self._in_flight[message.channel.lane] += 1
                task = asyncio.create_task(self._deliver(message))
                self._pushes.add(task)
                task.add_done_callback(self._pushes.discard)
            taken = Counter(message.channel.lane for message in leased)
            for room in rooms:
                lane = room.channels[0].lane
                if taken[lane] < room.size:
                    # It has no more: look when the next one is due.
                    self._seen = -1
                    for channel in CHANNELS_OF[lane]:
                        self._due.pop(channel, None)
        elif await self._woken():
            return
        else:
            await self._look()

    async def _settle_and_lease(self, rooms: Sequence[Room]) -> list[Message]:
        outcomes, self._outcomes = self._outcomes, []
        try:
            return await self._store.turn(outcomes, rooms, self._clock())
        except BaseException:
            self._outcomes = outcomes + self._outcomes  # not recorded: the next turn's
            raise

    def _rooms(self) -> list[Room]:
        """Where deliveries may begin now, of the lanes that have something due."""
        now = self._clock()
        due = [channel for channel in ALL_CHANNELS if channel in self._due]
        due = [channel for channel in due if self._due[channel] <= now]
        if not due:
            return []
        if self._unreached:
            # One message at a time finds out whether the worker is back.
            probing = bool(self._pushes) or asyncio.get_running_loop().time() < self._probe_at
            return [] if probing else [Room(1, CHANNELS_OF[due[0].lane])]
        waiting = {lane: [channel for channel in due if channel.lane is lane] for lane in Lane}
        free = {lane: self._sizes[lane] - self._in_flight[lane] for lane in Lane if waiting[lane]}
        if not any(free.values()):
            return []
        self._turns += 1
        return [Room(size, self._order(waiting[lane], lane)) for lane, size in free.items() if size]

    def _order(self, waiting: Sequence[Channel], lane: Lane) -> Sequence[Channel]:
        """The most urgent first, or in its turn another that has something.

        By now any may have something: what was found due may be from before that.
        """
        channels = CHANNELS_OF[lane]
        known = [each for each in channels if each is channels[0] or each in waiting]
        first = service_order(known, self._turns)[0]
        return (first, *(each for each in channels if each is not first))

    async def _woken(self) -> bool:
        """Wait until a push ends, or it is time to look; True where a push ended."""
        wait: float | None = POLL
        if self._unreached:
            # Nothing can begin, so there is nothing to look for.
            wait = None
            if not self._pushes:
                wait = max(0.0, self._probe_at - asyncio.get_running_loop().time())
                wait = max(wait, POLL)
        elif all(self._in_flight[lane] >= size for lane, size in self._sizes.items()):
            wait = None
        try:
            await asyncio.wait_for(self._wake.wait(), wait)
        except TimeoutError:
            return False
        return True

    async def _look(self) -> None:
        self._looked_at = asyncio.get_running_loop().time()
        version, due = await self._store.look(self._seen)
        if due is not None:
            self._seen, self._due = version, dict(due)

    async def _finish(self, grace: float) -> None:
        if self._pushes:
            await asyncio.wait(self._pushes, timeout=grace)
        for push in list(self._pushes):
            push.cancel()
        await asyncio.gather(*self._pushes, return_exceptions=True)
        # Those cut off stay leased; the next queue frees them.
        await self._settle_and_lease(())

    # --- One delivery -----------------------------------------------------------------------------

    async def _deliver(self, message: Message) -> None:
        try:
            status = await self._client.post(
                message.channel.path,
                envelope(message),
                self._policies(message.channel).ack_deadline,
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
        self._in_flight[message.channel.lane] -= 1
        self._outcomes.append(outcome)
        self._wake.set()

    def _refused(self, message: Message, reason: str) -> Outcome:
        policy = self._policies(message.channel)
        if message.channel is not DEAD_LETTERS and message.attempt >= policy.attempts:
            log.error("dead letter", **_names(message), reason=reason)
            return GivenUp(message.id, reason)
        wait = policy.backoff(message.attempt)
        log.warning("delivery refused", **_names(message), reason=reason, again_in=wait)
        return Refused(message.id, self._clock() + timedelta(seconds=wait))

    def _note_unreached(self, reason: str) -> None:
        if not self._unreached:
            log.warning("worker unreachable; messages wait for it", reason=reason)
        longest = self._policies(DEAD_LETTERS).max_backoff
        wait = min(LAST_PROBE, longest, FIRST_PROBE * 2.0**self._unreached)
        self._unreached = min(self._unreached + 1, 60)
        self._probe_at = asyncio.get_running_loop().time() + wait

    def _note_reached(self) -> None:
        if self._unreached:
            log.info("worker reachable again")
        self._unreached = 0

    # --- Retention --------------------------------------------------------------------------------

    async def _expire_regularly(self) -> None:
        # Not the dead letters': what is there is the only trace of them.
        kept = {channel: self._policies(channel).retention for channel in CHANNELS}
        waits = {
            channel: timedelta(seconds=self._policies(channel).max_backoff)
            for channel in ALL_CHANNELS
        }
        while True:
            try:
                if hastened := await self._store.hasten(waits, self._clock()):
                    log.warning("the clock went back; messages wait no longer", messages=hastened)
                    self._seen = -1
                for channel, seconds in kept.items():
                    retention = timedelta(seconds=seconds)
                    for message in await self._store.expire(channel, retention, self._clock()):
                        log.error("dead letter", **_names(message), reason=EXPIRED)
            except Unavailable as unavailable:
                log.error("old messages cannot be given up", reason=unavailable.detail)
            await asyncio.sleep(min(EXPIRY_CHECK, min(kept.values()) / 4))


def envelope(message: Message) -> bytes:
    """The body that Pub/Sub would POST: https://cloud.google.com/pubsub/docs/push#receive_push

    `deliveryAttempt` is there only with a dead-letter policy, so not for dead letters.
    """
    published = rfc3339(message.published_at)
    body: dict[str, object] = {
        "subscription": f"projects/{PROJECT}/subscriptions/{message.channel.subscription(PREFIX)}",
        "message": {
            "messageId": str(message.id),
            "message_id": str(message.id),
            "publishTime": published,
            "publish_time": published,
            "data": base64.b64encode(message.data).decode(),
            "attributes": message.attributes,
        },
    }
    if message.channel is not DEAD_LETTERS:
        body["deliveryAttempt"] = message.attempt
    return json.dumps(body).encode()


def _names(message: Message) -> dict[str, object]:
    """What a log line says about a message."""
    return {
        "image_hash": message.attributes.get("image_hash", ""),
        "tenant": message.attributes.get("tenant", ""),
        "message_id": message.id,
        "channel": message.channel.name,
        "attempt": message.attempt,
    }


@contextmanager
def owning(data_dir: Path) -> Iterator[None]:
    """Hold the data folder's queue lock, or exit with a message where another process does.

    The kernel drops the lock when its holder dies, however it dies. Raises Unavailable where the
    folder cannot be used.
    """
    with usable(data_dir):
        lock = (data_dir / "queue.lock").open("a+")
    with lock as file:
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
        sizes = lane_sizes(settings.push_concurrency, NOTIFICATION_CONCURRENCY)
        queue = PushQueue(store, client, settings.channel_delivery, sizes)
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, queue.stop)
        log.info("queue delivers", to=settings.push_url, concurrency=settings.push_concurrency)
        try:
            async with running_scheduler(client, settings):
                await queue.run(settings.shutdown_seconds)
        finally:
            log.info("queue stopped")


def main() -> None:
    settings = load_settings()
    configure_logging("queue", settings.log_format, settings.log_level)
    try:
        with owning(settings.data_dir):
            uvloop.run(serve(settings))
    except Unavailable as unavailable:
        raise SystemExit(f"The queue cannot start: {unavailable.detail}") from None


if __name__ == "__main__":
    main()
