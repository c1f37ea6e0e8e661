"""The push queue's process: `python -m core.backends.embedded.queue`.

It behaves like a Pub/Sub push subscription: at-least-once delivery, the same envelope, the same
acknowledging status codes, backoff, ack deadline and dead letters. A data folder has one such
process.
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

from core.backends.data_folder import opened_folder
from core.backends.embedded import open_queue_store
from core.backends.embedded.queue_store import (
    EXPIRED,
    PREFIX,
    PROJECT,
    Acknowledged,
    DeadLettered,
    Message,
    Outcome,
    QueueStore,
    Refused,
    Slots,
    Unreachable,
)
from core.backends.embedded.wake_up import receiving
from core.backends.local_scheduler import running_scheduler
from core.backends.push_client import ConnectFailed, NoResponse, PushClient
from core.backends.push_secret import local_push_secret
from core.clock import Clock, rfc3339, utc_now
from core.concurrency import in_background
from core.domain.channels import ALL_CHANNELS, CHANNELS, DEAD_LETTERS, Channel, Lane
from core.domain.policy import (
    ACKNOWLEDGING_STATUS,
    NOTIFICATION_CONCURRENCY,
    SHUTDOWN_SECONDS,
    DeliveryPolicy,
)
from core.domain.priority import service_order
from core.errors import Unavailable
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings

log = structlog.get_logger(__name__)

CHANNELS_OF = {
    lane: tuple(channel for channel in ALL_CHANNELS if channel.lane is lane) for lane in Lane
}
# All in seconds.
POLL_INTERVAL = 0.01  # between two looks for publications of other processes
IDLE_POLL_INTERVAL = 1.0  # if publishers wake the queue. Then it is a safety net
MAX_POLL_INTERVAL = 0.05  # when pushes end so often that the queue is never idle
MIN_PROBE_DELAY = 0.1  # before an unreachable worker is tried again; it doubles each time
MAX_PROBE_DELAY = 5.0
EXPIRY_INTERVAL = 60.0
RETRY_DELAY = 1.0  # before a database that does not answer is tried again


Policies = Callable[[Channel], DeliveryPolicy]


def image_pushes(classifier_processes: int) -> int:
    """How many images to deliver at once: each process has a second one to continue with."""
    return max(16, 2 * classifier_processes)


def lane_sizes(images: int) -> dict[Lane, int]:
    """How many deliveries of each lane may be in flight."""
    return {
        Lane.IMAGES: images,
        Lane.JOBS: 2,
        Lane.NOTIFICATIONS: NOTIFICATION_CONCURRENCY,
        Lane.DEAD_LETTERS: 4,
    }


class PushQueue:
    """Leases due messages, pushes them, and records how each push ended.

    At most `sizes[lane]` pushes of a lane are in flight, so a full lane delays no other. One task
    records outcomes and leases messages in the same transaction, so a busy queue makes one commit
    for many messages.
    """

    def __init__(
        self,
        store: QueueStore,
        client: PushClient,
        policies: Policies,
        sizes: Mapping[Lane, int],
        clock: Clock = utc_now,
    ) -> None:
        self.idle_poll_interval = POLL_INTERVAL
        self._store = store
        self._client = client
        self._policies = policies
        self._sizes = sizes
        self._clock = clock
        self._in_flight: Counter[Lane] = Counter()
        self._rounds = 0  # in which messages were leased, for `service_order`
        self._woken = True  # a poll is due
        self._event = asyncio.Event()  # a push has ended, or a message was published
        self._stopping = False
        self._pushes: set[asyncio.Task[None]] = set()
        self._outcomes: list[Outcome] = []
        self._version = -1  # of the database at the last poll
        self._due: dict[Channel, datetime] = {}
        self._polled_at = 0.0  # on the loop's clock
        self._failed_connects = 0  # in a row
        self._probe_at = 0.0  # on the loop's clock

    def stop(self) -> None:
        """Begin no more deliveries. `run` returns when those in flight have ended."""
        self._stopping = True
        self._event.set()

    def wake(self) -> None:
        """Poll soon: there may be new messages."""
        self._woken = True
        self._event.set()

    async def run(self, grace: float) -> None:
        """Deliver until `stop`, then wait up to `grace` seconds for the pushes in flight.

        Raises Unavailable if the queue's database cannot be read at the start.
        """
        released = await self._store.release_leases()
        if released:
            log.info("leases of an earlier queue released", messages=released)
        try:
            async with in_background(self._expire_messages()):
                while not self._stopping:
                    try:
                        await self._step()
                    except Unavailable as unavailable:
                        reason = unavailable.detail
                        log.error("queue database unavailable; retrying", reason=reason)
                        await asyncio.sleep(RETRY_DELAY)
        finally:
            await self._finish(grace)

    # --- Leasing messages and recording outcomes --------------------------------------------------

    async def _step(self) -> None:
        self._event.clear()
        since_poll = asyncio.get_running_loop().time() - self._polled_at
        longest = MAX_POLL_INTERVAL if self._due else self.idle_poll_interval
        if since_poll > max(longest, MAX_POLL_INTERVAL) or (
            self._woken and since_poll > POLL_INTERVAL
        ):
            await self._poll()
        slots = self._free_slots()
        if self._outcomes or slots:
            leased = await self._record_and_lease(slots)
            for message in leased:
                self._in_flight[message.channel.lane] += 1
                task = asyncio.create_task(self._deliver(message))
                self._pushes.add(task)
                task.add_done_callback(self._pushes.discard)
            taken = Counter(message.channel.lane for message in leased)
            for each in slots:
                lane = each.channels[0].lane
                if taken[lane] < each.count:
                    # The lane has no more due messages: poll for the next due time.
                    self._version, self._woken = -1, True
                    for channel in CHANNELS_OF[lane]:
                        self._due.pop(channel, None)
        elif not await self._wait_for_event():
            await self._poll()

    async def _record_and_lease(self, slots: Sequence[Slots]) -> list[Message]:
        outcomes, self._outcomes = self._outcomes, []
        try:
            leased = await self._store.record_and_lease(outcomes, slots, self._clock())
        except BaseException:
            self._outcomes = outcomes + self._outcomes  # for the next step
            raise
        if not all(isinstance(outcome, Acknowledged) for outcome in outcomes):
            self._woken = True  # refused messages have new due times
        return leased

    def _free_slots(self) -> list[Slots]:
        """The deliveries that may begin now, for lanes that have due messages."""
        now = self._clock()
        waiting: dict[Lane, list[Channel]] = {}
        for channel in ALL_CHANNELS:
            due = self._due.get(channel)
            if due is not None and due <= now:
                waiting.setdefault(channel.lane, []).append(channel)
        if not waiting:
            return []
        if self._failed_connects:
            # One message at a time probes whether the worker is back.
            probing = bool(self._pushes) or asyncio.get_running_loop().time() < self._probe_at
            return [] if probing else [Slots(1, CHANNELS_OF[next(iter(waiting))])]
        free = {lane: self._sizes[lane] - self._in_flight[lane] for lane in waiting}
        if not any(free.values()):
            return []
        self._rounds += 1
        return [Slots(n, self._order(waiting[lane], lane)) for lane, n in free.items() if n]

    def _order(self, waiting: Sequence[Channel], lane: Lane) -> Sequence[Channel]:
        """All channels of the lane, the most urgent first, or by turns another that has messages.

        Channels that had no due message at the last poll may have one by now.
        """
        channels = CHANNELS_OF[lane]
        known = [each for each in channels if each is channels[0] or each in waiting]
        first = service_order(known, self._rounds)[0]
        return (first, *(each for each in channels if each is not first))

    async def _wait_for_event(self) -> bool:
        """Wait for a push to end or for a wake-up. Return False when it is time to poll instead."""
        seconds: float | None = self._seconds_to_poll()
        if self._failed_connects:
            # No delivery may begin, so there is no need to poll.
            seconds = None
            if not self._pushes:
                seconds = max(0.0, self._probe_at - asyncio.get_running_loop().time())
                seconds = max(seconds, POLL_INTERVAL)
        elif all(self._in_flight[lane] >= size for lane, size in self._sizes.items()):
            seconds = None
        try:
            # Not `wait_for`, which creates a task for each call.
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return False
        return True

    def _seconds_to_poll(self) -> float:
        """The time until the next poll or the next message that is due, whichever is first."""
        if self._woken:
            return POLL_INTERVAL
        if not self._due:
            return self.idle_poll_interval
        wait = (min(self._due.values()) - self._clock()).total_seconds()
        # A message that is due already waits for a slot of its lane, which the end of a push frees.
        return min(max(wait, POLL_INTERVAL), self.idle_poll_interval)

    async def _poll(self) -> None:
        self._woken = False
        self._polled_at = asyncio.get_running_loop().time()
        version, due = await self._store.due_times(self._version)
        if due is not None:
            self._version, self._due = version, dict(due)

    async def _finish(self, grace: float) -> None:
        if self._pushes:
            await asyncio.wait(self._pushes, timeout=grace)
        for push in list(self._pushes):
            push.cancel()
        await asyncio.gather(*self._pushes, return_exceptions=True)
        # Cancelled pushes keep their leases. The next queue process releases them.
        try:
            await self._record_and_lease(())
        except Unavailable as unavailable:
            # At-least-once delivery: the next queue process delivers these messages again.
            unrecorded = len(self._outcomes)
            log.error("outcomes not recorded", messages=unrecorded, reason=unavailable.detail)

    # --- One delivery -----------------------------------------------------------------------------

    async def _deliver(self, message: Message) -> None:
        try:
            status = await self._client.post(
                message.channel.path,
                envelope(message),
                self._policies(message.channel).ack_deadline,
            )
        except ConnectFailed as error:
            self._connect_failed(str(error))
            outcome: Outcome = Unreachable(message.id)
        except NoResponse as error:
            self._connected()
            outcome = self._refused(message, str(error))
        else:
            self._connected()
            if status in ACKNOWLEDGING_STATUS:
                log.debug("delivered", **_fields(message), status=status)
                outcome = Acknowledged(message.id)
            else:
                outcome = self._refused(message, f"HTTP {status}")
        self._in_flight[message.channel.lane] -= 1
        self._outcomes.append(outcome)
        self._event.set()

    def _refused(self, message: Message, reason: str) -> Outcome:
        policy = self._policies(message.channel)
        if message.channel is not DEAD_LETTERS and message.attempt >= policy.attempts:
            log.error("dead letter", **_fields(message), reason=reason)
            return DeadLettered(message.id, reason)
        delay = policy.backoff(message.attempt)
        log.warning("delivery refused", **_fields(message), reason=reason, retry_in=delay)
        return Refused(message.id, self._clock() + timedelta(seconds=delay))

    def _connect_failed(self, reason: str) -> None:
        if not self._failed_connects:
            log.warning("worker unreachable; messages wait for it", reason=reason)
        longest = min(MAX_PROBE_DELAY, self._policies(DEAD_LETTERS).max_backoff)
        delay = min(longest, MIN_PROBE_DELAY * 2.0**self._failed_connects)
        self._failed_connects = min(self._failed_connects + 1, 60)
        self._probe_at = asyncio.get_running_loop().time() + delay

    def _connected(self) -> None:
        if self._failed_connects:
            log.info("worker reachable again")
        self._failed_connects = 0

    # --- Retention --------------------------------------------------------------------------------

    async def _expire_messages(self) -> None:
        # Dead letters do not expire here: the queue has the only copy until the worker stores it.
        retention = {channel: self._policies(channel).retention for channel in CHANNELS}
        longest = {
            channel: timedelta(seconds=self._policies(channel).max_backoff)
            for channel in ALL_CHANNELS
        }
        while True:
            try:
                if hastened := await self._store.limit_delays(longest, self._clock()):
                    log.warning("clock set back; delayed messages are due now", messages=hastened)
                    self._version = -1
                for channel, seconds in retention.items():
                    age = timedelta(seconds=seconds)
                    for message in await self._store.expire(channel, age, self._clock()):
                        log.error("dead letter", **_fields(message), reason=EXPIRED)
            except Unavailable as unavailable:
                log.error("message expiry failed", reason=unavailable.detail)
            await asyncio.sleep(min(EXPIRY_INTERVAL, min(retention.values()) / 4))


def envelope(message: Message) -> bytes:
    """The body that Pub/Sub POSTs: https://cloud.google.com/pubsub/docs/push#receive_push

    It has `deliveryAttempt` only on a subscription with a dead-letter policy, so not for dead
    letters.
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


def _fields(message: Message) -> dict[str, object]:
    """The fields of a log line about a message."""
    return {
        "image_hash": message.attributes.get("image_hash", ""),
        "tenant": message.attributes.get("tenant", ""),
        "message_id": message.id,
        "channel": message.channel.name,
        "attempt": message.attempt,
    }


@contextmanager
def queue_lock(data_dir: Path) -> Iterator[None]:
    """Hold the lock that lets one queue process use a data folder.

    Exits with a message if another process holds it. The kernel releases the lock when its holder
    ends for any reason. Raises Unavailable if the folder cannot be used.
    """
    with opened_folder(data_dir):
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
    secret = await asyncio.to_thread(local_push_secret, settings)
    async with (
        open_queue_store(settings) as store,
        PushClient(settings.push_url, secret) as client,
    ):
        sizes = lane_sizes(image_pushes(settings.classifier_processes))
        queue = PushQueue(store, client, settings.channel_delivery, sizes)
        for signal_ in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(signal_, queue.stop)
        log.info("queue started", to=settings.push_url, concurrency=sizes[Lane.IMAGES])
        try:
            with receiving(settings.data_dir, queue.wake) as woken:
                if woken:
                    queue.idle_poll_interval = IDLE_POLL_INTERVAL
                async with running_scheduler(client, settings):
                    await queue.run(SHUTDOWN_SECONDS)
        finally:
            log.info("queue stopped")


def main() -> None:
    settings = load_settings()
    configure_logging("queue", settings.log_format, settings.log_level)
    try:
        with queue_lock(settings.data_dir):
            uvloop.run(serve(settings))
    except Unavailable as unavailable:
        raise SystemExit(f"The queue cannot start: {unavailable.detail}") from None


if __name__ == "__main__":
    main()
