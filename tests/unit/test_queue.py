"""The push queue against a real HTTP server: what acknowledges, what repeats, what dies (P4)."""

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from core.backends.embedded import database, open_queue_store, queue
from core.backends.embedded.queue import PushQueue, lane_sizes
from core.backends.embedded.queue_store import (
    Acknowledged,
    GivenUp,
    Outcome,
    QueueStore,
    Refused,
    Room,
    Unreached,
)
from core.backends.push_client import PushClient
from core.clock import utc_now
from core.domain.channels import ALL_CHANNELS, DEAD_LETTERS, IMAGES, NOTIFICATIONS, Channel, Lane
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
ROOM = [Room(10, ALL_CHANNELS)]


@pytest.fixture
def settings(worker: ScriptedWorker, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        worker_port=worker.port,
        delivery_attempts=3,
        max_backoff_seconds=3,
        lease_seconds=1,
        ack_deadline_seconds=20,
        push_concurrency=4,
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
        queue = PushQueue(store, client, policy, sizes_of(settings))
        task = asyncio.create_task(queue.run(grace))
        try:
            yield queue
        finally:
            queue.stop()
            await task


def sizes_of(settings: Settings) -> dict[Lane, int]:
    return lane_sizes(settings.push_concurrency, NOTIFICATION_CONCURRENCY)


async def publish(
    store: QueueStore, number: int = 1, channel: Channel = HIGH, age: timedelta = timedelta(0)
) -> str:
    return await store.publish(channel, message(number).attributes(), b"", utc_now() - age)


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


async def test_a_push_is_pubsubs(
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
    assert PushEnvelope.parse(delivery.body).classify_image() == message(1)


@pytest.mark.parametrize("status", [200, 201, 202, 204])
async def test_an_acknowledged_message_is_done(
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
async def test_every_other_answer_leads_to_another_delivery(
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


async def test_refusals_are_repeated_with_growing_pauses(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    worker.answer = always(503)
    await publish(store)
    async with running(store, settings):
        await until(lambda: len(worker.to(CLASSIFY_PATH)) == 3)
    times = [delivery.at for delivery in worker.to(CLASSIFY_PATH)]
    assert times[1] - times[0] >= settings.delivery.backoff(1)
    assert times[2] - times[1] >= settings.delivery.backoff(2)


async def test_no_answer_by_the_deadline_is_a_refusal(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    hurried = settings.model_copy(update={"ack_deadline_seconds": 0.3, "lease_seconds": 0.3})

    async def slow_at_first(delivery: Delivery) -> int:
        if delivery.attempt == 1:
            await asyncio.sleep(60)
        return 204

    worker.answer = slow_at_first
    await publish(store)
    async with running(store, hurried):
        await until(lambda: len(worker.deliveries) >= 2)
        worker.answer = always(204)
        await emptied(store)
    assert worker.deliveries[1].attempt == 2


async def test_a_connection_broken_by_the_worker_is_a_refusal(
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


async def test_there_are_no_dead_letters_of_dead_letters(
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


async def test_the_most_urgent_goes_first(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """One of high priority behind a thousand of low priority is among the next few."""
    for number in range(1000):
        await publish(store, number, LOW)
    gate = asyncio.Event()

    async def wait_at_the_gate(delivery: Delivery) -> int:
        await gate.wait()
        return 204

    worker.answer = wait_at_the_gate
    async with running(store, settings):
        await until(lambda: worker.in_flight == 4)
        await publish(store, 5000)
        gate.set()
        await until(lambda: len(worker.deliveries) >= 100)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    # Behind the four that were in flight, and one turn in which the least urgent goes first.
    assert order.index(5000) < 4 + 8


@pytest.mark.parametrize(
    ("crowds", "lonely"),
    [((HIGH,), LOW), ((HIGH, LOW), NORMAL)],
    ids=["the least urgent", "the middle"],
)
async def test_who_is_less_urgent_moves_as_well(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    crowds: Sequence[Channel],
    lonely: Channel,
) -> None:
    for number in range(200):
        for place, channel in enumerate(crowds):
            await publish(store, 1000 * place + number, channel)
    await publish(store, 5000, lonely)
    async with running(store, settings):
        await emptied(store)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    assert order.index(5000) < 150


@pytest.mark.parametrize("channel", [LOW, NOTIFICATIONS], ids=["less urgent", "another lane"])
async def test_a_busy_queue_notices_new_messages(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    channel: Channel,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The queue also looks for new messages while pushes end all the time and leave no pause."""

    async def be_quick(delivery: Delivery) -> int:
        await asyncio.sleep(0.002)
        return 204

    def arrived() -> bool:
        return any(int(delivery.image_hash, 16) == 5000 for delivery in worker.deliveries)

    worker.answer = be_quick
    for number in range(500):
        await publish(store, number)
    async with running(store, settings):
        await until(lambda: len(worker.deliveries) >= 20)
        monkeypatch.setattr(queue, "POLL", 60.0)  # a slow machine has pauses that others lack
        await publish(store, 5000, channel)
        await until(arrived, seconds=20)
    order = [int(delivery.image_hash, 16) for delivery in worker.deliveries]
    assert order.index(5000) < 400


async def test_what_was_published_before_the_clock_went_back_is_delivered(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    await publish(store, 1, age=-timedelta(hours=2))
    await publish(store, 2, NOTIFICATIONS, age=-timedelta(hours=2))
    async with running(store, settings):
        await emptied(store)
    assert len(worker.deliveries) == 2


async def test_lanes_do_not_wait_for_each_other(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    """Receivers of notifications that never answer hold up no image."""

    async def hang(delivery: Delivery) -> int:
        if delivery.path == NOTIFICATIONS_PATH:
            await asyncio.sleep(60)
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


async def test_channels_have_policies_of_their_own(
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
    """The real client, and how often it was used."""

    posts = 0

    async def post(self, path: str, body: bytes, seconds: float) -> int:
        self.posts += 1
        return await super().post(path, body, seconds)


async def test_a_push_that_never_arrived_does_not_count(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    await worker.__aexit__(None, None, None)
    for number in range(20):
        await publish(store, number)
    patient = settings.model_copy(update={"max_backoff_seconds": 0.3})
    async with CountingClient(settings.worker_url) as client:
        queue = PushQueue(store, client, patient.channel_delivery, sizes_of(patient))
        task = asyncio.create_task(queue.run(20))
        # Four went out together; from then on there is one probe at a time, after 0.1, 0.2, 0.3,
        # 0.3... seconds: about eight in the two seconds below, where hammering makes hundreds.
        began = asyncio.get_running_loop().time()
        await until(lambda: client.posts >= 6)
        await asyncio.sleep(1.5)
        assert client.posts <= 8 + (asyncio.get_running_loop().time() - began) / 0.3
        assert len(await waiting(store)) == 20
        await worker.__aenter__()
        await emptied(store)
        queue.stop()
        await task
    assert len(worker.deliveries) == 20
    assert {delivery.attempt for delivery in worker.deliveries} == {1}


async def test_no_more_pushes_are_in_flight_than_allowed(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    gate = asyncio.Event()

    async def wait_at_the_gate(delivery: Delivery) -> int:
        await gate.wait()
        await asyncio.sleep(0.01)
        return 204

    worker.answer = wait_at_the_gate
    for number in range(30):
        await publish(store, number)
    async with running(store, settings):
        await until(lambda: worker.in_flight == 4)
        await asyncio.sleep(0.2)
        assert len(worker.deliveries) == 4
        gate.set()
        await emptied(store)
    assert worker.most_in_flight == 4
    assert len({delivery.image_hash for delivery in worker.deliveries}) == 30
    assert len(worker.deliveries) == 30


async def test_a_refused_message_holds_up_no_other(
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


async def test_the_queue_itself_looks_for_old_messages(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    await worker.__aexit__(None, None, None)  # also while the worker is down
    await publish(store, 1, age=timedelta(days=8))

    async def given_up() -> bool:
        return [channel for channel, _, _ in await waiting(store)] == [DEAD_LETTERS.name]

    async with running(store, settings):
        await until(given_up)
    # The only trace of a dead letter does not age: nobody has it until the worker does.
    brief = DeliveryPolicy(attempts=1, min_backoff=0, max_backoff=0, retention=1e-9)
    async with running(store, settings, dead_letters=brief):
        await asyncio.sleep(0.2)
    assert await given_up()


async def test_a_stopping_queue_lets_deliveries_end_and_begins_none(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    gate = asyncio.Event()

    async def wait_at_the_gate(delivery: Delivery) -> int:
        await gate.wait()
        return 204

    worker.answer = wait_at_the_gate
    for number in range(10):
        await publish(store, number)
    async with running(store, settings) as queue:
        await until(lambda: worker.in_flight == 4)
        queue.stop()
        await asyncio.sleep(0.05)
        gate.set()
    assert len(worker.deliveries) == 4
    assert [row[1:] for row in await waiting(store)] == [(0, 0)] * 6


async def test_a_delivery_cut_off_by_the_stop_is_repeated(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async def hang(delivery: Delivery) -> int:
        await asyncio.sleep(60)
        return 204

    worker.answer = hang
    await publish(store)
    async with asyncio.timeout(settings.ack_deadline_seconds / 2):
        async with running(store, settings, grace=0.05):
            await until(lambda: worker.in_flight == 1)
    worker.answer = always(204)
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]


# --- A database that does not answer for a while --------------------------------------------------


@contextmanager
def write_lock_held(settings: Settings) -> Iterator[None]:
    """Locks the queue's database against writers, as a process that hangs in a transaction does."""
    with closing(sqlite3.connect(settings.data_dir / "queue.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        yield


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """The queue gives up waiting for a lock, and retries, at once."""
    monkeypatch.setattr(database, "BUSY_SECONDS", 0.01)
    monkeypatch.setattr(queue, "RETRY_SECONDS", 0.01)


@pytest.mark.usefixtures("impatient")
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
            await until(lambda: len(worker.deliveries) >= 6, seconds=10)
            await emptied(store)
            await publish(store, 4)
            await until(lambda: len(worker.deliveries) >= 7, seconds=10)
    deliveries = sorted((int(d.image_hash, 16), d.attempt) for d in worker.deliveries)
    assert deliveries == [(0, 1), (1, 1), (1, 2), (2, 1), (3, 1), (3, 2), (4, 1)]


@pytest.mark.usefixtures("impatient")
async def test_expiry_continues_after_a_database_that_does_not_answer(
    store: QueueStore,
    settings: Settings,
    worker: ScriptedWorker,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(queue, "EXPIRY_CHECK", 0.01)
    slow = settings.model_copy(update={"min_backoff_seconds": 100, "max_backoff_seconds": 100})

    async def refuse_images(delivery: Delivery) -> int:
        return 503 if delivery.path == CLASSIFY_PATH else 204

    worker.answer = refuse_images
    with capture_logs() as lines:
        async with running(store, slow):
            await publish(store, 1, age=timedelta(hours=2))
            await until(lambda: len(worker.to(DEAD_LETTER_PATH)) == 1)
            with write_lock_held(settings):
                failed = "old messages cannot be given up"
                await until(lambda: failed in [line["event"] for line in lines])
            await publish(store, 2, age=timedelta(hours=2))
            await until(lambda: len(worker.to(DEAD_LETTER_PATH)) == 2, seconds=10)


async def test_a_message_in_flight_does_not_expire(store: QueueStore) -> None:
    """The worker still works on it: its answer decides, not its age."""
    await publish(store, 1, age=timedelta(hours=2))
    (leased,) = await store.turn([], ROOM, utc_now())
    assert await store.expire(HIGH, timedelta(hours=1), utc_now()) == []
    assert await waiting(store) == [(HIGH.name, 1, 1)]
    assert await store.turn([Acknowledged(leased.id)], ROOM, utc_now()) == []
    assert await waiting(store) == []


async def test_a_clock_that_goes_back_leaves_leases_alone(store: QueueStore) -> None:
    await publish(store, 1, age=-timedelta(hours=2))
    (leased,) = await store.turn([], ROOM, utc_now() + timedelta(hours=2))
    assert await store.hasten({HIGH: timedelta(minutes=1)}, utc_now()) == 0
    assert await store.turn([], ROOM, utc_now() + timedelta(hours=3)) == []
    assert (
        await store.turn([Refused(leased.id, utc_now() + timedelta(hours=2))], [], utc_now()) == []
    )
    assert await store.hasten({HIGH: timedelta(minutes=1)}, utc_now()) == 1


@pytest.mark.parametrize(
    "gone",
    [Acknowledged(999), Refused(999, utc_now()), Unreached(999), GivenUp(999, "HTTP 503")],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_an_outcome_for_a_missing_message_changes_nothing(
    store: QueueStore, gone: Outcome
) -> None:
    await publish(store)
    (leased,) = await store.turn([gone], ROOM, utc_now())
    assert leased.attempt == 1
    assert await store.turn([], ROOM, utc_now()) == []  # it is leased
    assert await store.void_leases() == 1
    (again,) = await store.turn([], ROOM, utc_now())
    assert (again.id, again.attempt) == (leased.id, 2)
