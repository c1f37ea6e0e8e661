"""The push queue against a real HTTP server: what acknowledges, what repeats, what dies (P4)."""

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from core.backends.embedded import open_queue_store, queue_store
from core.backends.embedded.database import Database, Schema
from core.backends.embedded.push_client import PushClient
from core.backends.embedded.queue import PushQueue
from core.backends.embedded.queue_store import Outcome, QueueStore, Refused
from core.backends.embedded.times import to_micros
from core.clock import utc_now
from core.messages import ClassifyImage, PushEnvelope
from core.policy import CLASSIFY_PATH, DEAD_LETTER_PATH
from core.records import RecordKey
from core.settings import Settings
from tests.unit.scripted_worker import Delivery, ScriptedWorker, always, first_then, until

MODEL = "colours@0123456789ab"


def key_of(number: int) -> RecordKey:
    return RecordKey("public", f"{number:064x}", MODEL)


def message(number: int) -> ClassifyImage:
    return ClassifyImage(key_of(number), f"00-{'a' * 32}-{'b' * 16}-01")


@pytest.fixture
async def worker() -> AsyncIterator[ScriptedWorker]:
    async with ScriptedWorker() as listening:
        yield listening


@pytest.fixture
def settings(worker: ScriptedWorker, tmp_path: Path) -> Settings:
    return Settings(
        data_dir=tmp_path / "data",
        worker_port=worker.port,
        delivery_attempts=3,
        min_backoff_seconds=0.05,
        max_backoff_seconds=0.2,
        lease_seconds=1,
        ack_deadline_seconds=20,
        retention_seconds=3600,
        push_concurrency=4,
    )


@pytest.fixture
async def store(settings: Settings) -> AsyncIterator[QueueStore]:
    async with open_queue_store(settings) as opened:
        yield opened


@asynccontextmanager
async def running(
    store: QueueStore, settings: Settings, grace: float = 20
) -> AsyncIterator[PushQueue]:
    async with PushClient(settings.worker_url) as client:
        queue = PushQueue(store, client, settings.delivery, settings.push_concurrency)
        task = asyncio.create_task(queue.run(grace))
        try:
            yield queue
        finally:
            queue.stop()
            await task


async def publish(store: QueueStore, number: int = 1) -> str:
    return await store.publish(message(number).attributes(), b"", utc_now())


async def emptied(store: QueueStore) -> None:
    """Wait until no message is left on either subscription."""

    async def empty() -> bool:
        return not await waiting(store)

    await until(empty)


async def waiting(store: QueueStore) -> list[tuple[str, int, int]]:
    return await store._database.read(
        lambda connection: connection.execute(
            "SELECT subscription, attempts, leased FROM messages ORDER BY id"
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
    assert delivery.envelope["subscription"] == "projects/local/subscriptions/classify"
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
    assert notice.envelope["subscription"] == "projects/local/subscriptions/dead-letter"
    assert notice.attempt is None
    pushed = notice.envelope["message"]
    assert pushed["messageId"] != id_
    assert pushed["attributes"] == message(1).attributes() | {
        "CloudPubSubDeadLetterSourceDeliveryCount": "3",
        "CloudPubSubDeadLetterSourceSubscription": "classify",
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


async def test_dead_letters_of_version_1_are_handed_to_the_worker(
    settings: Settings, worker: ScriptedWorker
) -> None:
    """That version kept them in a table of its own, replayed or not, their notices told or not."""
    old = Schema(
        version=1,
        statements=(
            *queue_store.SCHEMA.statements,
            """
            CREATE TABLE dead_letters (
                id INTEGER PRIMARY KEY, attributes TEXT NOT NULL, data BLOB NOT NULL,
                published_at INTEGER NOT NULL, died_at INTEGER NOT NULL,
                attempts INTEGER NOT NULL, reason TEXT NOT NULL, notice_id INTEGER NOT NULL,
                replayed_at INTEGER
            )
            """,
        ),
    )
    died = datetime(2026, 11, 20, 10, 0, 0, 250_000, tzinfo=UTC)
    database = await Database.open(settings.data_dir / "queue.db", old)

    def fill(connection: sqlite3.Connection) -> None:
        connection.execute(
            "INSERT INTO messages (id, subscription, attributes, data, published_at, due_at)"
            " VALUES (20, 'dead-letter', ?, x'', 0, 0)",
            (json.dumps(message(2).attributes()),),
        )
        for number, notice, replayed in ((1, 10, None), (2, 20, None), (3, 30, 1)):
            connection.execute(
                "INSERT INTO dead_letters VALUES (?, ?, x'00ff', ?, ?, 3, 'HTTP 503', ?, ?)",
                (
                    number,
                    json.dumps(message(number).attributes()),
                    to_micros(died - timedelta(minutes=1)),
                    to_micros(died),
                    notice,
                    replayed,
                ),
            )

    await database.write(fill, durable=True)
    await database.close()
    async with open_queue_store(settings) as store, running(store, settings):
        await emptied(store)
    assert {delivery.path for delivery in worker.deliveries} == {DEAD_LETTER_PATH}
    notices = {d.image_hash: d.envelope["message"] for d in worker.deliveries}
    assert set(notices) == {key_of(1).image_hash, key_of(2).image_hash}
    first = notices[key_of(1).image_hash]
    assert (first["publishTime"], first["data"]) == ("2026-11-20T10:00:00.250Z", "AP8=")
    assert first["attributes"] == message(1).attributes() | {
        "CloudPubSubDeadLetterSourceDeliveryCount": "3",
        "CloudPubSubDeadLetterSourceSubscription": "classify",
        "CloudPubSubDeadLetterSourceSubscriptionProject": "local",
        "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-20T09:59:00.250Z",
        "GlimpseDeadLetterSourceReason": "HTTP 503",
    }


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
        queue = PushQueue(store, client, patient.delivery, concurrency=4)
        task = asyncio.create_task(queue.run(20))
        # Four went out together; from then on there is one probe at a time, after 0.1, 0.2, 0.3,
        # 0.3... seconds: about six in the 1.5 seconds below, where hammering makes hundreds.
        await asyncio.sleep(1.5)
        assert 5 <= client.posts <= 15
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
    slow = settings.model_copy(update={"min_backoff_seconds": 100, "max_backoff_seconds": 100})

    async def refuse_low_numbers(delivery: Delivery) -> int:
        return 503 if int(delivery.image_hash, 16) < 10 else 204

    worker.answer = refuse_low_numbers
    for number in range(20):
        await publish(store, number)
    async with running(store, slow):
        await until(lambda: len(worker.deliveries) == 20)
    assert len(await waiting(store)) == 10


async def test_a_message_older_than_the_retention_becomes_a_dead_letter(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    old = await store.publish(message(1).attributes(), b"", utc_now() - timedelta(hours=2))
    await publish(store, 2)
    expired = await store.expire(timedelta(hours=1), utc_now())
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
    await store.publish(message(1).attributes(), b"", utc_now() - timedelta(hours=2))

    async def given_up() -> bool:
        return [subscription for subscription, _, _ in await waiting(store)] == ["dead-letter"]

    async with running(store, settings):
        await until(given_up)
    # The only trace of a dead letter does not age: nobody has it until the worker does.
    assert await store.expire(timedelta(hours=1), utc_now() + timedelta(days=365)) == []
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
    async with running(store, settings, grace=0.05):
        await until(lambda: worker.in_flight == 1)
    worker.answer = always(204)
    async with running(store, settings):
        await emptied(store)
    assert [delivery.attempt for delivery in worker.deliveries] == [1, 2]


async def test_an_outcome_for_a_message_that_is_gone_changes_nothing(store: QueueStore) -> None:
    await publish(store)
    gone: list[Outcome] = [Refused(999, utc_now())]
    (leased,) = await store.turn(gone, 10, utc_now())
    assert leased.attempt == 1
    assert await store.turn([], 10, utc_now()) == []  # it is leased
    assert await store.void_leases() == 1
    (again,) = await store.turn([], 10, utc_now())
    assert (again.id, again.attempt) == (leased.id, 2)
