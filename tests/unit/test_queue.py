"""The push queue against a real HTTP server: acknowledgements, retries, dead letters (P4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, closing, contextmanager
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.backends.embedded import database, open_queue_store, queue
from core.backends.embedded.queue import PushQueue, image_pushes, lane_sizes
from core.backends.embedded.queue_store import (
    Acknowledged,
    DeadLettered,
    Message,
    Outcome,
    QueueStore,
    Refused,
    Slots,
    Unreachable,
)
from core.backends.push_client import PushClient
from core.clock import utc_now
from core.domain.channels import ALL_CHANNELS, DEAD_LETTERS, IMAGES, NOTIFICATIONS, Channel
from core.domain.messages import ClassifyImage, PushEnvelope
from core.domain.policy import (
    CLASSIFY_PATH,
    DEAD_LETTER_PATH,
    NOTIFICATION_CONCURRENCY,
    NOTIFICATIONS_PATH,
    DeliveryPolicy,
)
from core.domain.priority import Priority
from core.domain.records import RecordKey
from core.settings import Settings
from tests.support.clock import turns
from tests.support.scripted_worker import Delivery, ScriptedWorker, always, first_then, until

MODEL = "colours@0123456789ab"


def key_of(number: int) -> RecordKey:
    return RecordKey("public", f"{number:064x}", MODEL)


def message(number: int) -> ClassifyImage:
    return ClassifyImage(key_of(number), f"00-{'a' * 32}-{'b' * 16}-01")


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as listening:
        yield listening


HIGH, NORMAL, LOW = (IMAGES[priority] for priority in Priority)
SUBSCRIPTIONS = "projects/local/subscriptions"
SLOTS = [Slots(10, ALL_CHANNELS)]


@pytest.fixture
def settings(worker: ScriptedWorker, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        worker_port=worker.port,
        delivery_attempts=3,
        max_backoff_seconds=3,
        lease_seconds=10,
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[QueueStore]:
    async with open_queue_store(settings) as opened:
        yield opened


@asynccontextmanager
async def running(
    store: QueueStore, settings: Settings, grace: float = 20, **policies: DeliveryPolicy
) -> AsyncIterator[PushQueue]:
    """`policies` replace those of the settings, by the name of the channel."""

    def policy(channel: Channel) -> DeliveryPolicy:
        return policies.get(channel.name.replace("-", "_")) or settings.channel_delivery(channel)

    async with PushClient(settings.worker_url) as client:
        queue = PushQueue(store, client, policy, lane_sizes(4))
        task = asyncio.create_task(queue.run(grace))
        try:
            yield queue
        finally:
            queue.stop()
            await task


@pytest.mark.parametrize(("processes", "images"), [(1, 16), (8, 16), (9, 18), (64, 128)])
def test_every_classifier_process_has_a_next_image(processes: int, images: int) -> None:
    assert image_pushes(processes) == images


async def publish(
    store: QueueStore, number: int = 1, channel: Channel = HIGH, age: timedelta = timedelta(0)
) -> str:
    return await store.publish(channel, message(number).attributes(), b"", utc_now() - age)


def _polled_after(queue: PushQueue, moment: float) -> bool:
    return queue._polled_at > moment


async def polled(queue: PushQueue, times: int) -> None:
    """Wait until the queue has looked for messages this many times."""
    for _ in range(times):
        before = queue._polled_at
        await until(partial(_polled_after, queue, before))


async def emptied(store: QueueStore) -> None:
    """Wait until no message is left on any channel."""

    async def empty() -> bool:
        return not await waiting(store)

    await until(empty)


async def waiting(store: QueueStore) -> list[tuple[str, int, int]]:
    return await store._database.read(
        lambda connection: connection.execute(
            "SELECT channel, attempts, leased FROM messages ORDER BY id"
        ).fetchall()
    )


async def test_a_push_has_the_form_of_a_pubsub_push(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    id_ = await publish(store)
    async with running(store, settings):
        await emptied(store)
    (delivery,) = worker.deliveries
    assert delivery.path == CLASSIFY_PATH
    assert delivery.headers["content-type"] == "application/json"
    assert set(delivery.envelope) == {"subscription", "message", "deliveryAttempt"}
    assert delivery.envelope["subscription"] == f"{SUBSCRIPTIONS}/glimpse-images-high-push"
    assert delivery.envelope["deliveryAttempt"] == 1
    pushed = delivery.envelope["message"]
    assert pushed["messageId"] == pushed["message_id"] == id_
    assert pushed["publishTime"] == pushed["publish_time"]
    assert pushed["publishTime"].endswith("Z")
    assert (pushed["data"], pushed["attributes"]) == ("", message(1).attributes())
    assert PushEnvelope.parse(delivery.body).image_message() == message(1)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_an_acknowledged_message_is_not_delivered_again(
    store: QueueStore, settings: Settings, worker: ScriptedWorker, status: int
) -> None:
    worker.answer = always(status)
    await publish(store)
    async with running(store, settings):
        await emptied(store)
    assert len(worker.deliveries) == 1


@pytest.mark.parametrize(
    "status", [203, 205, 206, 301, 307, 304, 400, 401, 404, 409, 429, 500, 503]
)
async def test_any_other_status_leads_to_another_delivery(
    store: QueueStore, settings: Settings, worker: ScriptedWorker, status: int
) -> None:
    worker.answer = first_then(status, 204)
    await publish(store)
    async with running(store, settings):
        await emptied(store)
    assert [(d.path, d.attempt) for d in worker.deliveries] == [
        (CLASSIFY_PATH, 1),
        (CLASSIFY_PATH, 2),
    ]


async def test_refused_messages_are_retried_with_backoff(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    worker.answer = always(503)
    await publish(store)
    async with running(store, settings):
        await until(lambda: len(worker.to(CLASSIFY_PATH)) == 3)
    times = [delivery.at for delivery in worker.to(CLASSIFY_PATH)]
    assert times[1] - times[0] >= settings.delivery.backoff(1)
    assert times[2] - times[1] >= settings.delivery.backoff(2)


async def test_a_missed_ack_deadline_is_a_refusal(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    short = replace(settings.delivery, ack_deadline=0.3, lease=0.3)

    async def slow_at_first(delivery: Delivery) -> int:
        if delivery.attempt == 1:
            await asyncio.Event().wait()
        return 204

    worker.answer = slow_at_first
    await publish(store)
    async with running(store, settings, images_high=short):
        await until(lambda: len(worker.deliveries) >= 2)
        worker.answer = always(204)
        await emptied(store)
    assert worker.deliveries[1].attempt == 2


async def test_a_broken_connection_is_a_refusal(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async def break_at_first(delivery: Delivery) -> int:
        if delivery.attempt == 1:
            raise ConnectionError
        return 204

    worker.answer = break_at_first
    await publish(store)
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]


async def test_a_message_that_always_fails_becomes_a_dead_letter(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async def answer(delivery: Delivery) -> int:
        return 503 if delivery.path == CLASSIFY_PATH else 204

    worker.answer = answer
    id_ = await publish(store)
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.to(CLASSIFY_PATH)] == [1, 2, 3]

    (notice,) = worker.to(DEAD_LETTER_PATH)
    assert notice.envelope["subscription"] == f"{SUBSCRIPTIONS}/glimpse-dead-letters-push"
    assert notice.attempt is None
    pushed = notice.envelope["message"]
    assert pushed["messageId"] != id_
    assert pushed["attributes"] == message(1).attributes() | {
        "CloudPubSubDeadLetterSourceDeliveryCount": "3",
        "CloudPubSubDeadLetterSourceSubscription": "glimpse-images-high-push",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "local",
        "CloudPubSubDeadLetterSourceTopicPublishTime": worker.deliveries[0].envelope["message"][
            "publishTime"
        ],
        "GlimpseDeadLetterSourceReason": "HTTP 503",
    }


async def test_dead_letters_are_retried_without_limit(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async def answer(delivery: Delivery) -> int:
        dead = len(worker.to(DEAD_LETTER_PATH))
        return 204 if delivery.path == DEAD_LETTER_PATH and dead > 5 else 503

    worker.answer = answer
    await publish(store)
    async with running(store, settings):
        await emptied(store)
    assert len(worker.to(DEAD_LETTER_PATH)) == 6  # more than the policy's attempts
    notices = [delivery.envelope["message"] for delivery in worker.to(DEAD_LETTER_PATH)]
    assert len({(notice["messageId"], notice["publishTime"]) for notice in notices}) == 1


async def test_the_highest_priority_is_delivered_first(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """A message of high priority overtakes a thousand of low priority."""
    for number in range(1000):
        await publish(store, number, LOW)
    gate = asyncio.Event()

    async def answer_when_open(delivery: Delivery) -> int:
        await gate.wait()
        return 204

    worker.answer = answer_when_open
    async with running(store, settings):
        await until(lambda: worker.in_flight == 4)
        await publish(store, 5000)
        gate.set()
        await until(lambda: len(worker.deliveries) >= 100)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    # It waits for the four in flight, and for one round in which low priority goes first.
    assert order.index(5000) < 4 + 8


@pytest.mark.parametrize(
    ("busy", "single"),
    [((HIGH,), LOW), ((HIGH, LOW), NORMAL)],
    ids=["low", "normal"],
)
async def test_lower_priorities_do_not_starve(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    busy: Sequence[Channel],
    single: Channel,
) -> None:
    for number in range(200):
        for index, channel in enumerate(busy):
            await publish(store, 1000 * index + number, channel)
    await publish(store, 5000, single)
    async with running(store, settings):
        await emptied(store)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    assert order.index(5000) < 150


@pytest.mark.parametrize("channel", [LOW, NOTIFICATIONS], ids=["lower priority", "another lane"])
async def test_a_busy_queue_notices_new_messages(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    channel: Channel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The queue polls for new messages although pushes end so often that it is never idle."""

    async def answer_soon(delivery: Delivery) -> int:
        await asyncio.sleep(0)
        return 204

    def arrived() -> bool:
        return any(int(delivery.image_hash, 16) == 5000 for delivery in worker.deliveries)

    worker.answer = answer_soon
    for number in range(500):
        await publish(store, number)
    async with running(store, settings):
        await until(lambda: len(worker.deliveries) >= 20)
        # On a slow machine the queue is idle now and then, and would poll then.
        monkeypatch.setattr(queue, "POLL_INTERVAL", 60.0)
        await publish(store, 5000, channel)
        await until(arrived, seconds=20)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    assert order.index(5000) < 400


@pytest.mark.parametrize("method", ["due_times", "record_and_lease"])
@pytest.mark.parametrize("when", ["before", "after"])
async def test_wake_up_during_a_step_is_not_lost(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    when: str,
    method: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A message that is published while the queue reads or writes does not wait for a poll."""
    step = getattr(store, method)
    async with running(store, settings) as queue:
        queue.idle_poll_interval = 3600.0
        published = False

        async def publish_once() -> None:
            nonlocal published
            if not published:
                published = True
                await publish(store, 2)
                queue.wake()

        async def interleaved(*arguments: object) -> object:
            if when == "before":
                await publish_once()
            result = await step(*arguments)
            if when == "after":
                await publish_once()
            return result

        monkeypatch.setattr(store, method, interleaved)
        # A step that leases needs a message. A look-up finds none.
        expected = 1
        if method == "record_and_lease":
            await publish(store, 1)
            expected = 2
        queue.wake()
        await until(lambda: len(worker.deliveries) == expected, seconds=20)


async def test_messages_from_before_the_clock_was_set_back_are_delivered(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    await publish(store, 1, age=-timedelta(hours=2))
    await publish(store, 2, NOTIFICATIONS, age=-timedelta(hours=2))
    async with running(store, settings):
        await emptied(store)
    assert len(worker.deliveries) == 2


async def test_a_full_lane_does_not_delay_another(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """Notifications that never get a response do not delay images."""

    async def hang(delivery: Delivery) -> int:
        if delivery.path == NOTIFICATIONS_PATH:
            await asyncio.Event().wait()
        return 204

    worker.answer = hang
    for number in range(NOTIFICATION_CONCURRENCY + 10):
        await publish(store, number, NOTIFICATIONS)
    async with running(store, settings, grace=0.05):
        await until(lambda: len(worker.to(NOTIFICATIONS_PATH)) == NOTIFICATION_CONCURRENCY)
        for number in range(20):
            await publish(store, number)
        await until(lambda: len(worker.to(CLASSIFY_PATH)) == 20)
        assert len(worker.to(NOTIFICATIONS_PATH)) == NOTIFICATION_CONCURRENCY


async def test_each_channel_has_its_own_policy(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    patient = DeliveryPolicy(attempts=5, min_backoff=0.01, max_backoff=0.02)

    async def answer(delivery: Delivery) -> int:
        return 204 if delivery.path == DEAD_LETTER_PATH else 503

    worker.answer = answer
    await publish(store, 1, NOTIFICATIONS)
    await publish(store, 2)
    async with running(store, settings, notifications=patient):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.to(NOTIFICATIONS_PATH)] == [1, 2, 3, 4, 5]
    assert [delivery.attempt for delivery in worker.to(CLASSIFY_PATH)] == [1, 2, 3]
    sources = {
        d.envelope["message"]["attributes"]["CloudPubSubDeadLetterSourceSubscription"]
        for d in worker.to(DEAD_LETTER_PATH)
    }
    assert sources == {"glimpse-notifications-push", "glimpse-images-high-push"}


class CountingClient(PushClient):
    """The real client, which counts its requests."""

    posts = 0

    async def post(self, path: str, body: bytes, seconds: float) -> int:
        self.posts += 1
        return await super().post(path, body, seconds)


async def test_a_push_that_cannot_connect_does_not_count_as_an_attempt(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await worker.__aexit__(None, None, None)
    for number in range(20):
        await publish(store, number)
    monkeypatch.setattr("core.backends.embedded.queue.MIN_PROBE_DELAY", 0.02)
    patient = settings.model_copy(update={"max_backoff_seconds": 0.06})
    async with CountingClient(settings.worker_url) as client:
        queue = PushQueue(store, client, patient.channel_delivery, lane_sizes(4))
        task = asyncio.create_task(queue.run(20))
        # Four pushes begin together. Then there is one probe at a time, after 20, 40, 60, 60 …
        # milliseconds. Without delays that grow, twelve requests would take less time.
        began = asyncio.get_running_loop().time()
        await until(lambda: client.posts >= 12)
        assert client.posts <= 8 + (asyncio.get_running_loop().time() - began) / 0.06
        assert len(await waiting(store)) == 20
        await worker.__aenter__()
        await emptied(store)
        queue.stop()
        await task
    assert len(worker.deliveries) == 20
    assert {delivery.attempt for delivery in worker.deliveries} == {1}


async def test_pushes_in_flight_are_limited(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    gate = asyncio.Event()

    async def answer_when_open(delivery: Delivery) -> int:
        await gate.wait()
        await asyncio.sleep(0)
        return 204

    worker.answer = answer_when_open
    for number in range(30):
        await publish(store, number)
    async with running(store, settings) as queue:
        await until(lambda: worker.in_flight == 4)
        await polled(queue, 5)
        assert len(worker.deliveries) == 4
        gate.set()
        await emptied(store)
    assert worker.most_in_flight == 4
    assert len({delivery.image_hash for delivery in worker.deliveries}) == 30
    assert len(worker.deliveries) == 30


async def test_a_refused_message_does_not_delay_others(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    slow = DeliveryPolicy(min_backoff=100, max_backoff=100)

    async def refuse_low_numbers(delivery: Delivery) -> int:
        return 503 if int(delivery.image_hash, 16) < 10 else 204

    worker.answer = refuse_low_numbers
    for number in range(20):
        await publish(store, number)
    async with running(store, settings, images_high=slow):
        await until(lambda: len(worker.deliveries) == 20)
    assert len(await waiting(store)) == 10


async def test_a_message_older_than_the_retention_becomes_a_dead_letter(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    old = await publish(store, 1, age=timedelta(hours=2))
    await publish(store, 2)
    expired = await store.expire(HIGH, timedelta(hours=1), utc_now())
    assert [str(message.id) for message in expired] == [old]
    async with running(store, settings):
        await emptied(store)
    assert [delivery.image_hash for delivery in worker.to(CLASSIFY_PATH)] == [key_of(2).image_hash]
    (notice,) = worker.to(DEAD_LETTER_PATH)
    assert notice.image_hash == key_of(1).image_hash
    reason = notice.envelope["message"]["attributes"]["GlimpseDeadLetterSourceReason"]
    assert reason == "older than the retention"


async def test_the_queue_expires_old_messages(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The message is in flight at times, and is then left to the next expiry.
    monkeypatch.setattr(queue, "EXPIRY_INTERVAL", 0.01)
    await worker.__aexit__(None, None, None)  # expiry does not need the worker
    await publish(store, 1, age=timedelta(days=8))

    async def expired() -> bool:
        return [channel for channel, _, _ in await waiting(store)] == [DEAD_LETTERS.name]

    async with running(store, settings):
        await until(expired)
    # A dead letter does not expire: the queue has the only copy until the worker stores it.
    brief = DeliveryPolicy(attempts=1, min_backoff=0, max_backoff=0, retention=1e-9)
    expiries = 0
    expire = store.expire

    async def counted(channel: Channel, age: timedelta, now: datetime) -> Sequence[Message]:
        nonlocal expiries
        expiries += 1
        return await expire(channel, age, now)

    monkeypatch.setattr(store, "expire", counted)
    async with running(store, settings, dead_letters=brief):
        await until(lambda: expiries >= 5 * len(ALL_CHANNELS))
    assert await expired()


async def test_a_stopping_queue_waits_for_deliveries_and_begins_none(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    gate = asyncio.Event()

    async def answer_when_open(delivery: Delivery) -> int:
        await gate.wait()
        return 204

    worker.answer = answer_when_open
    for number in range(10):
        await publish(store, number)
    async with running(store, settings) as queue:
        await until(lambda: worker.in_flight == 4)
        queue.stop()
        await turns()
        gate.set()
    assert len(worker.deliveries) == 4
    assert [row[1:] for row in await waiting(store)] == [(0, 0)] * 6


async def test_a_delivery_cancelled_by_the_stop_is_repeated(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async def hang(delivery: Delivery) -> int:
        await asyncio.Event().wait()
        return 204

    worker.answer = hang
    await publish(store)
    async with asyncio.timeout(settings.delivery.ack_deadline / 2):
        async with running(store, settings, grace=0.05):
            await until(lambda: worker.in_flight == 1)
    worker.answer = always(204)
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]


# --- A database that does not answer --------------------------------------------------------------


@contextmanager
def write_lock_held(settings: Settings) -> Iterator[None]:
    """Lock the queue's database against writers, as a process that hangs in a transaction does."""
    with closing(sqlite3.connect(settings.data_dir / "queue.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the database nor the queue waits long for a lock."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(queue, "RETRY_DELAY", 0.01)


@pytest.mark.usefixtures("short_waits")
async def test_outcomes_survive_a_database_that_does_not_answer(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """The queue records each outcome once the database answers again."""
    gate = asyncio.Event()

    async def refuse_odd_numbers_once(delivery: Delivery) -> int:
        await gate.wait()
        return 503 if int(delivery.image_hash, 16) % 2 and delivery.attempt == 1 else 204

    worker.answer = refuse_odd_numbers_once
    for number in range(4):
        await publish(store, number)
    with capture_logs() as lines:
        async with running(store, settings):
            await until(lambda: worker.in_flight == 4)
            with write_lock_held(settings):
                gate.set()
                failed = "queue database unavailable; retrying"
                await until(lambda: [line["event"] for line in lines].count(failed) >= 2)
                assert worker.in_flight == 0
            await until(lambda: len(worker.deliveries) >= 6)
            await emptied(store)
            await publish(store, 4)
            await until(lambda: len(worker.deliveries) >= 7)
    deliveries = sorted((int(d.image_hash, 16), d.attempt) for d in worker.deliveries)
    assert deliveries == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]


@pytest.mark.usefixtures("short_waits")
async def test_outcomes_not_recorded_at_the_stop_are_delivered_again(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    gate = asyncio.Event()

    async def answer_when_open(delivery: Delivery) -> int:
        await gate.wait()
        return 204

    worker.answer = answer_when_open
    await publish(store)
    with capture_logs() as lines, ExitStack() as stack:
        async with running(store, settings) as queue:
            await until(lambda: worker.in_flight == 1)
            queue.stop()
            stack.enter_context(write_lock_held(settings))
            gate.set()
    assert lines[-1]["event"] == "outcomes not recorded"
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]


@pytest.mark.usefixtures("short_waits")
async def test_expiry_continues_after_a_database_that_does_not_answer(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "EXPIRY_INTERVAL", 0.01)
    brief = DeliveryPolicy(attempts=3, min_backoff=100, max_backoff=100, retention=3600)

    async def refuse_images(delivery: Delivery) -> int:
        return 503 if delivery.path == CLASSIFY_PATH else 204

    worker.answer = refuse_images
    with capture_logs() as lines:
        async with running(store, settings, images_high=brief):
            await publish(store, 1, age=timedelta(hours=2))
            await until(lambda: len(worker.to(DEAD_LETTER_PATH)) == 1)
            with write_lock_held(settings):
                failed = "message expiry failed"
                await until(lambda: failed in [line["event"] for line in lines])
            await publish(store, 2, age=timedelta(hours=2))
            await until(lambda: len(worker.to(DEAD_LETTER_PATH)) == 2)
    reasons = {line["reason"] for line in lines if line["event"] == "dead letter"}
    assert reasons == {"older than the retention"}


async def test_a_message_in_flight_does_not_expire(store: QueueStore) -> None:
    """The worker still works on it: its answer decides, not its age."""
    await publish(store, 1, age=timedelta(hours=2))
    (leased,) = await store.record_and_lease([], SLOTS, utc_now())
    assert await store.expire(HIGH, timedelta(hours=1), utc_now()) == []
    assert await waiting(store) == [(HIGH.name, 1, 1)]
    assert await store.record_and_lease([Acknowledged(leased.id)], SLOTS, utc_now()) == []
    assert await waiting(store) == []


async def test_a_clock_that_is_set_back_does_not_affect_leases(store: QueueStore) -> None:
    await publish(store, 1, age=-timedelta(hours=2))
    (leased,) = await store.record_and_lease([], SLOTS, utc_now() + timedelta(hours=2))
    assert await store.limit_delays({HIGH: timedelta(minutes=1)}, utc_now()) == 0
    assert await store.record_and_lease([], SLOTS, utc_now() + timedelta(hours=3)) == []
    refused = Refused(leased.id, utc_now() + timedelta(hours=2))
    assert await store.record_and_lease([refused], [], utc_now()) == []
    assert await store.limit_delays({HIGH: timedelta(minutes=1)}, utc_now()) == 1


@pytest.mark.parametrize(
    "gone",
    [Acknowledged(999), Refused(999, utc_now()), Unreachable(999), DeadLettered(999, "HTTP 503")],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_an_outcome_for_a_missing_message_changes_nothing(
    store: QueueStore, gone: Outcome
) -> None:
    await publish(store)
    (leased,) = await store.record_and_lease([gone], SLOTS, utc_now())
    assert leased.attempt == 1
    assert await store.record_and_lease([], SLOTS, utc_now()) == []  # it is leased
    assert await store.release_leases() == 1
    (again,) = await store.record_and_lease([], SLOTS, utc_now())
    assert (again.id, again.attempt) == (leased.id, 2)
