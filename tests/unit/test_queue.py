"""The push queue against a real HTTP server: what acknowledges, what repeats, what dies (P4)."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path

import pytest

from core.backends.embedded import open_queue_store, open_records
from core.backends.embedded.dead_letters import replay, table
from core.backends.embedded.push_client import PushClient
from core.backends.embedded.queue import PushQueue
from core.backends.embedded.queue_store import DeadLetter, Outcome, QueueStore, Refused
from core.clock import utc_now
from core.messages import ClassifyImage, PushEnvelope
from core.policy import CLASSIFY_PATH, DEAD_LETTER_PATH
from core.records import RecordError, RecordKey, Status, new_record
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
    assert await store.dead_letters() == []


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


async def test_a_message_that_always_fails_becomes_a_dead_letter_and_is_kept(
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
    }

    (letter,) = await store.dead_letters()
    assert (letter.id, letter.attempts, letter.reason) == (int(id_), 3, "HTTP 503")
    assert letter.attributes == message(1).attributes()


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
    assert len({d.envelope["message"]["messageId"] for d in worker.to(DEAD_LETTER_PATH)}) == 1
    assert len(await store.dead_letters()) == 1


async def dead_letter(store: QueueStore, number: int = 1) -> DeadLetter:
    """Let one message die of old age."""
    long_ago = utc_now() - timedelta(days=30)
    await store.publish(message(number).attributes(), b"", long_ago)
    (letter,) = await store.expire(timedelta(days=7), utc_now())
    return letter


async def test_a_replayed_dead_letter_is_a_new_message_for_a_free_record(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    async with open_records(settings, utc_now) as records:
        for number in (1, 2):
            assert await records.create(new_record(key_of(number), utc_now()))
            error = RecordError("delivery_exhausted", "Nobody answered.", retryable=True)
            assert await records.fail(key_of(number), error)
        first, second = await dead_letter(store, 1), await dead_letter(store, 2)

        assert await replay(store, records, [first.id, 999]) == [first.id]
        freed, untouched = await records.get(key_of(1)), await records.get(key_of(2))
        assert freed is not None
        assert untouched is not None
        assert (freed.status, untouched.status) == (Status.PENDING, Status.ERROR)
        assert [letter.id for letter in await store.dead_letters()] == [second.id]

        assert await replay(store, records, None) == [second.id]
        assert await replay(store, records, [first.id]) == []  # once only
        assert await store.dead_letters() == []
        assert len(await store.dead_letters(replayed=True)) == 2

    async with running(store, settings):
        await emptied(store)
    # The news of their deaths had not gone out, and must not: it would fail the new attempts.
    assert worker.to(DEAD_LETTER_PATH) == []
    assert [(d.image_hash, d.attempt) for d in worker.deliveries] == [
        (key_of(1).image_hash, 1),
        (key_of(2).image_hash, 1),
    ]


async def test_the_table_of_dead_letters_lines_up(store: QueueStore) -> None:
    letter = await dead_letter(store)
    heading, line = table([letter]).splitlines()
    assert heading.split() == [
        "ID", "IMAGE", "MODEL", "DELIVERIES", "DIED", "REPLAYED", "REASON",
    ]  # fmt: skip
    assert line.index("older than the retention") == heading.index("REASON")


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
    letters = await store.expire(timedelta(hours=1), utc_now())
    assert [(letter.id, letter.reason) for letter in letters] == [
        (int(old), "older than the retention")
    ]
    async with running(store, settings):
        await emptied(store)
    assert [delivery.image_hash for delivery in worker.to(CLASSIFY_PATH)] == [key_of(2).image_hash]
    assert [d.image_hash for d in worker.to(DEAD_LETTER_PATH)] == [key_of(1).image_hash]


async def test_the_queue_itself_looks_for_old_messages(
    store: QueueStore, settings: Settings, worker: ScriptedWorker
) -> None:
    await worker.__aexit__(None, None, None)  # also while the worker is down
    await store.publish(message(1).attributes(), b"", utc_now() - timedelta(hours=2))

    async def given_up() -> bool:
        return bool(await store.dead_letters())

    async with running(store, settings):
        await until(given_up)
    assert [subscription for subscription, _, _ in await waiting(store)] == ["dead-letter"]
    # News that nobody took within the retention is dropped; the dead letter stays.
    assert await store.expire(timedelta(hours=1), utc_now() + timedelta(hours=2)) == []
    assert await waiting(store) == []
    assert len(await store.dead_letters()) == 1


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
