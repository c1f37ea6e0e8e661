"""Notifications: at least once, with the same id, and without delays for other receivers."""

import asyncio
import base64
import json
import secrets
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
import standardwebhooks
from blockbuster import blockbuster_ctx

from core.backends import Backend, open_backend
from core.clock import Clock
from core.domain import jobs, webhooks
from core.domain.jobs import Counts, Job, JobKey, JobStatus, JobWebhook, new_job, new_job_id
from core.domain.messages import Notify
from core.domain.webhooks import (
    JOB_EVENTS,
    Change,
    Delivery,
    Event,
    Webhook,
    new_secret,
    new_webhook_id,
    secret_text,
)
from core.errors import Unavailable
from core.services.dead_letter_replay import Replay
from core.services.dead_letter_replay import replay as replay_letter
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.faults import watched
from tests.support.mail import Mailbox, mail_server
from tests.support.pictures import picture
from tests.support.problems import assert_problem
from tests.support.receivers import (
    Receiver,
    SilentReceiver,
    SlowReceiver,
    closed_port,
    listening,
    status,
)
from tests.support.scripted_worker import until
from tests.support.worker import RunningWorker, running_worker, settings_in
from worker.notifications.receiver_limits import SLOTS_PER_RECEIVER

TENANT = "acme"


def settings_for(folder: Path, **changes: object) -> Settings:
    values = {"webhook_allow_private": True, "worker_concurrency": 1}
    return settings_in(folder, **{**values, **changes})


@pytest.fixture
async def worker(tmp_path: Path) -> AsyncIterator[RunningWorker]:
    async with running_worker(settings_for(tmp_path)) as running:
        yield running


async def finished_job(
    worker: RunningWorker,
    end: JobStatus = JobStatus.COMPLETED,
    notify_email: str = "",
    webhook: JobWebhook | None = None,
) -> Job:
    """A job without items, which ends with its first count."""
    store, now = worker.backend.jobs, worker.context.clock()
    key = JobKey(TENANT, new_job_id())
    new = new_job(key, "", worker.model, 0, now, notify_email=notify_email, webhook=webhook)
    assert await store.create(new)
    assert await store.change(key, jobs.seal())
    completes = end is JobStatus.COMPLETED
    job = await store.change(key, jobs.update_counts(Counts(0)) if completes else jobs.cancel())
    assert job is not None and job.status is end
    return job


async def create_webhook(worker: RunningWorker, url: str | int, **changes: Any) -> Webhook:
    """A webhook to this URL, or to this port of 127.0.0.1."""
    values: dict[str, Any] = {
        "id": new_webhook_id(),
        "tenant": TENANT,
        "owner": "",
        "url": url if isinstance(url, str) else f"http://127.0.0.1:{url}/hook",
        "events": JOB_EVENTS,
        "secret": new_secret(),
        "created_at": worker.context.clock(),
        **changes,
    }
    webhook = Webhook(**values)
    assert await worker.backend.webhooks.create(webhook, 100)
    return webhook


async def push(
    worker: RunningWorker, message: Notify, path: str = "/notifications", **more: str
) -> httpx.Response:
    envelope = {
        "subscription": "projects/local/subscriptions/glimpse-notifications-push",
        "deliveryAttempt": 1,
        "message": {
            "messageId": "7",
            "publishTime": "2026-11-21T09:30:00.125Z",
            "attributes": {**message.attributes(), **more},
            "data": base64.b64encode(b"").decode(),
        },
    }
    return await worker.client.post(path, json=envelope, timeout=30)


async def deliver(worker: RunningWorker, webhook: Webhook, job: Job) -> httpx.Response:
    return await push(worker, Notify(TENANT, job.key.id, f"job.{job.status}", webhook.id))


def published(worker: RunningWorker) -> list[dict[str, str]]:
    path = worker.context.settings.data_dir / "queue.db"
    with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
        rows = connection.execute("SELECT attributes FROM messages ORDER BY id").fetchall()
    return [json.loads(row[0]) for row in rows]


def count(worker: RunningWorker, kind: str, outcome: str) -> float:
    return worker.context.metrics._notifications.labels(kind, outcome)._value.get()  # type: ignore[no-any-return]


# --- Receivers ------------------------------------------------------------------------------------


async def test_each_receiver_of_the_event_gets_one_message(worker: RunningWorker) -> None:
    everything = await create_webhook(worker, "https://93.184.215.14/a")
    failures = await create_webhook(
        worker, "https://93.184.215.14/b", events=frozenset({Event.JOB_FAILED})
    )
    disabled = await create_webhook(worker, "https://93.184.215.14/c")
    await worker.backend.webhooks.change(disabled.key, webhooks.update(Change(enabled=False)))
    await create_webhook(worker, "https://93.184.215.14/d", tenant="other")
    job = await finished_job(worker, notify_email="ada@example.com")
    answer = await push(worker, Notify(TENANT, job.key.id, "job.completed"))
    assert answer.status_code == 204
    sent = published(worker)
    assert [message["target"] for message in sent] == [everything.id, "email"]
    assert {(m["tenant"], m["job"], m["event"]) for m in sent} == {
        (TENANT, job.key.id, "job.completed")
    }
    await push(worker, Notify(TENANT, job.key.id, "job.failed"))
    assert {m["target"] for m in published(worker)[2:]} == {everything.id, failures.id, "email"}


async def test_event_of_a_deleted_job_is_dropped(worker: RunningWorker) -> None:
    async with listening(Receiver().serve) as port:
        webhook = await create_webhook(worker, port)
        for target in ("", "email", webhook.id):
            answer = await push(worker, Notify(TENANT, new_job_id(), "job.completed", target))
            assert answer.status_code == 204
    assert published(worker) == []


@pytest.mark.parametrize(
    "attributes",
    [
        {"event": "job.started"},
        {"event": "x"},
        {"target": "somebody"},
        {"kind": "run_job"},
        {"job": "x"},
        {"tenant": "A"},
    ],
)
async def test_unknown_event_or_target_is_malformed(
    worker: RunningWorker, attributes: dict[str, str]
) -> None:
    message = Notify(TENANT, new_job_id(), "job.completed")
    answer = await push(worker, message, **attributes)
    assert (answer.status_code, answer.json()["code"]) == (400, "malformed_envelope")


# --- Webhooks -------------------------------------------------------------------------------------


async def test_receiver_can_verify_the_webhook(worker: RunningWorker) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        job = await finished_job(worker)
        assert (await deliver(worker, webhook, job)).status_code == 204
    (request,) = receiver.requests
    event = standardwebhooks.Webhook(secret_text(webhook.secret)).verify(
        request.body.decode(), request.headers
    )
    assert request.headers["webhook-id"] == f"{job.key.id}.job.completed"
    assert request.headers["content-type"] == "application/json"
    assert request.headers["user-agent"].startswith("Glimpse-Webhooks/")
    assert event["type"] == "job.completed"
    assert event["data"]["job_id"] == job.key.id
    assert (event["data"]["status"], event["data"]["progress"]) == ("completed", 100)
    assert event["timestamp"] == event["data"]["completed_at"]
    assert len(request.body) < 1000
    assert count(worker, "webhook", "delivered") == 1


async def test_job_notifies_its_own_webhook_of_the_events_that_it_chose(
    worker: RunningWorker,
) -> None:
    for events, targets in (
        (frozenset[str](), ["webhook"]),
        (frozenset({"job.completed"}), ["webhook"]),
        (frozenset({"job.failed"}), []),
    ):
        before = len(published(worker))
        own = JobWebhook("https://93.184.215.14/own", events, secret_text(new_secret()))
        job = await finished_job(worker, webhook=own)
        await push(worker, Notify(TENANT, job.key.id, "job.completed"))
        assert [message["target"] for message in published(worker)[before:]] == targets


async def own_webhook(worker: RunningWorker, port: int) -> tuple[Job, Notify]:
    own = JobWebhook(f"http://127.0.0.1:{port}/own", frozenset(), secret_text(new_secret()))
    job = await finished_job(worker, webhook=own)
    return job, Notify(TENANT, job.key.id, "job.completed", "webhook")


async def test_receiver_of_one_job_verifies_with_the_secret_of_the_job(
    worker: RunningWorker,
) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        job, message = await own_webhook(worker, port)
        for _ in range(2):
            assert (await push(worker, message)).status_code == 204
    assert job.webhook is not None
    first, second = receiver.requests
    event = standardwebhooks.Webhook(job.webhook.secret).verify(first.body.decode(), first.headers)
    assert event["data"]["job_id"] == job.key.id
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body
    assert job.webhook.secret.encode() not in first.body
    assert count(worker, "webhook", "delivered") == 2


async def test_dead_letter_contains_the_status_of_the_receiver(worker: RunningWorker) -> None:
    """The webhook is one of the tenant, or of a job. The queue knows only that it was refused."""
    receiver = Receiver(status(418))
    async with listening(receiver.serve) as port:
        job, message = await own_webhook(worker, port)
        webhook = await create_webhook(worker, port)
        for each in (message, Notify(TENANT, job.key.id, "job.completed", webhook.id)):
            assert (await push(worker, each)).status_code == 503
            await push(worker, each, "/generate_annotations_dlq")
    letters = await worker.letters(TENANT)
    assert len(letters) == 2
    for letter in letters:
        said = (letter.code, letter.detail)
        assert said == ("receiver_refused", "The receiver answered 418.")


async def test_receiver_of_one_job_that_answers_410_is_not_asked_again(
    worker: RunningWorker,
) -> None:
    receiver = Receiver(status(410))
    async with listening(receiver.serve) as port:
        _, message = await own_webhook(worker, port)
        assert (await push(worker, message)).status_code == 204
    (letter,) = await worker.letters(TENANT)
    assert (letter.code, letter.detail) == ("receiver_gone", "The receiver answered 410 Gone.")


async def test_silent_receiver_of_one_job_causes_a_retry(worker: RunningWorker) -> None:
    with closed_port() as port:
        _, message = await own_webhook(worker, port)
        assert (await push(worker, message)).status_code == 503


async def test_private_receiver_of_one_job_is_refused(tmp_path: Path) -> None:
    """Its name had a public address when the job was created."""
    receiver = Receiver()
    async with (
        running_worker(settings_for(tmp_path, webhook_allow_private=False)) as worker,
        listening(receiver.serve) as port,
    ):
        own = JobWebhook(f"https://127.0.0.1:{port}/", frozenset(), secret_text(new_secret()))
        job = await finished_job(worker, webhook=own)
        message = Notify(TENANT, job.key.id, "job.completed", "webhook")
        assert (await push(worker, message)).status_code == 204
        assert receiver.connections == 0
        (letter,) = await worker.letters(TENANT)
        assert letter.code == "private_address"


async def test_repeated_delivery_has_the_same_id_and_body(worker: RunningWorker) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        job = await finished_job(worker)
        for _ in range(2):
            assert (await deliver(worker, webhook, job)).status_code == 204
    first, second = receiver.requests
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert first.body == second.body


async def test_both_secrets_verify_during_a_rotation(worker: RunningWorker) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        before = await create_webhook(worker, port)
        after = await worker.backend.webhooks.change(
            before.key, webhooks.rotate(new_secret(), timedelta(hours=1))
        )
        assert after is not None
        await deliver(worker, before, await finished_job(worker))
    (request,) = receiver.requests
    assert len(request.headers["webhook-signature"].split()) == 2
    for each in (before, after):
        standardwebhooks.Webhook(secret_text(each.secret)).verify(
            request.body.decode(), request.headers
        )


async def test_test_event_is_delivered_to_every_webhook(worker: RunningWorker) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port, events=frozenset({Event.JOB_FAILED}))
        id_ = new_job_id()
        answer = await push(worker, Notify(TENANT, id_, "webhook.test", webhook.id))
    assert answer.status_code == 204
    (request,) = receiver.requests
    assert request.headers["webhook-id"] == f"{id_}.webhook.test"
    assert json.loads(request.body)["data"] == {"webhook_id": webhook.id}


async def test_other_response_causes_a_retry(worker: RunningWorker) -> None:
    other, receiver = Receiver(), Receiver()
    job = await finished_job(worker)
    codes = (301, 302, 307, 308, 400, 401, 404, 429, 500, 503, 600)
    async with listening(other.serve) as other_port, listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        for code in codes:
            receiver.answer = status(code, location=f"http://127.0.0.1:{other_port}/")
            answer = await deliver(worker, webhook, job)
            assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
            assert answer.headers["retry-after"]
        receiver.answer = status(201)
        assert (await deliver(worker, webhook, job)).status_code == 204
    assert len(receiver.requests) == len(codes) + 1
    assert other.connections == 0, "no redirect is followed"
    assert count(worker, "webhook", "failed") == len(codes)
    assert await worker.letters(TENANT) == []


async def test_410_disables_the_webhook(worker: RunningWorker) -> None:
    receiver = Receiver(status(410))
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        for _ in range(2):
            assert (await deliver(worker, webhook, await finished_job(worker))).status_code == 204
    assert len(receiver.requests) == 1
    stored = await worker.backend.webhooks.get(webhook.key)
    assert stored is not None and not stored.enabled
    assert "410" in stored.disabled_reason


async def last_delivery(worker: RunningWorker, webhook: Webhook) -> Delivery | None:
    stored = await worker.backend.webhooks.get(webhook.key)
    assert stored is not None
    return stored.last_delivery


async def test_last_delivery_is_stored_for_the_owner(tmp_path: Path) -> None:
    clock, receiver = MovableClock(), Receiver()
    async with (
        running_worker(settings_for(tmp_path), clock) as worker,
        listening(receiver.serve) as port,
    ):
        webhook, job = await create_webhook(worker, port), await finished_job(worker)
        assert await last_delivery(worker, webhook) is None

        async def delivered(code: int) -> Delivery | None:
            receiver.answer = status(code)
            await deliver(worker, webhook, job)
            return await last_delivery(worker, webhook)

        first = clock()
        good = Delivery(first, Event.JOB_COMPLETED, 200)
        assert await delivered(200) == good
        # Repeated successes are stored once a minute, everything else at once.
        clock.move(59)
        assert await delivered(204) == good
        assert await delivered(500) == Delivery(clock(), Event.JOB_COMPLETED, 500)
        assert await delivered(200) == Delivery(clock(), Event.JOB_COMPLETED, 200)
        clock.move(60)
        assert await delivered(204) == Delivery(clock(), Event.JOB_COMPLETED, 204)
        clock.move(1)
        await push(worker, Notify(TENANT, new_job_id(), Event.TEST, webhook.id))
        assert await last_delivery(worker, webhook) == Delivery(clock(), Event.TEST, 204)
        assert await delivered(410) == Delivery(clock(), Event.JOB_COMPLETED, 410)
        with closed_port() as deaf:
            unheard = await create_webhook(worker, deaf)
            await deliver(worker, unheard, job)
        no_answer = Delivery(clock(), Event.JOB_COMPLETED, error="no_answer")
        assert await last_delivery(worker, unheard) == no_answer


@pytest.mark.parametrize("code", [204, 410, 500])
async def test_response_of_an_earlier_url_does_not_change_the_webhook(
    worker: RunningWorker, code: int
) -> None:
    """The webhook gets another URL before the receiver at the first one answers."""
    async with asyncio.timeout(30):
        receiver = SlowReceiver(status(code))
        async with listening(receiver.serve) as port:
            webhook = await create_webhook(worker, port)
            delivering = asyncio.create_task(deliver(worker, webhook, await finished_job(worker)))
            await receiver.asked.wait()
            move = webhooks.update(Change(url="https://example.com/next"))
            assert await worker.backend.webhooks.change(webhook.key, move) is not None
            receiver.may_answer.set()
            assert (await delivering).status_code == (503 if code == 500 else 204)
    stored = await worker.backend.webhooks.get(webhook.key)
    assert stored is not None and stored.enabled
    assert stored.last_delivery is None


async def test_delivery_counts_if_it_cannot_be_stored(tmp_path: Path) -> None:
    async def fault(name: str, after: bool) -> None:
        if name in ("webhooks.note_delivery", "webhooks.disable"):
            raise Unavailable("A fault was injected.")

    @asynccontextmanager
    async def faulty(settings: Settings, clock: Clock) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            yield watched(backend, fault)

    receiver = Receiver()
    async with (
        running_worker(settings_for(tmp_path), opener=faulty) as worker,
        listening(receiver.serve) as port,
    ):
        webhook, job = await create_webhook(worker, port), await finished_job(worker)
        assert (await deliver(worker, webhook, job)).status_code == 204
        assert await last_delivery(worker, webhook) is None
        assert count(worker, "webhook", "delivered") == 1
        # Without the store, the webhook cannot be disabled.
        receiver.answer = status(410)
        assert (await deliver(worker, webhook, job)).status_code == 503


async def test_message_of_a_deleted_webhook_is_dropped(
    worker: RunningWorker,
) -> None:
    receiver = Receiver()
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        await worker.backend.webhooks.delete(webhook.key)
        assert (await deliver(worker, webhook, await finished_job(worker))).status_code == 204
    assert receiver.connections == 0


async def test_unreachable_and_silent_receivers_cause_a_retry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("worker.notifications.notifier.WEBHOOK_SECONDS", 0.5)
    async with (
        running_worker(settings_for(tmp_path)) as worker,
        listening(SilentReceiver().serve) as silent,
    ):
        job = await finished_job(worker)
        with closed_port() as dead:
            for port in (dead, silent):
                webhook = await create_webhook(worker, port)
                assert (await deliver(worker, webhook, job)).status_code == 503
                noted = await last_delivery(worker, webhook)
                assert noted is not None and noted.error == "no_answer"


async def test_webhook_to_a_private_address_becomes_a_dead_letter(
    tmp_path: Path,
) -> None:
    """It was created while that was allowed, or its name resolves differently now."""
    receiver = Receiver()
    hosts = ["127.0.0.1", "localhost", "[::1]", "127.1", "[::ffff:127.0.0.1]", "[64:ff9b::7f00:1]"]
    settings = settings_for(tmp_path, webhook_allow_private=False)
    async with running_worker(settings) as worker, listening(receiver.serve) as port:
        urls = [*(f"https://{host}:{port}/" for host in hosts), f"http://localhost:{port}/"]
        job = await finished_job(worker)
        for number, url in enumerate(urls, start=1):
            webhook = await create_webhook(worker, url)
            for _ in range(2):
                assert (await deliver(worker, webhook, job)).status_code == 204, url
            letters = await worker.letters(TENANT)
            assert len(letters) == number, "one letter for repeated deliveries"
            noted = await last_delivery(worker, webhook)
            assert noted is not None and noted.error in ("private_address", "invalid_request"), url
            (letter,) = (each for each in letters if each.attributes["target"] == webhook.id)
            malformed = url == urls[-1] or "127.1:" in url
            assert letter.code == ("invalid_request" if malformed else "private_address")
            assert str(port) not in letter.detail
    assert receiver.connections == 0


async def test_cancelled_delivery_is_503(worker: RunningWorker) -> None:
    receiver = SlowReceiver()
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        delivering = asyncio.create_task(deliver(worker, webhook, await finished_job(worker)))
        await receiver.asked.wait()
        delivering.cancel()
        assert_problem(await delivering, 503, "unavailable")


# --- Slow receivers -------------------------------------------------------------------------------


async def test_silent_receivers_delay_neither_others_nor_images(worker: RunningWorker) -> None:
    """Many more messages than slots wait for a receiver that does not answer."""
    good, silent = Receiver(), SlowReceiver(status(500))
    job = await finished_job(worker)
    async with listening(silent.serve) as mute, listening(good.serve) as port:
        slow, fast = await create_webhook(worker, mute), await create_webhook(worker, port)
        stuck = [asyncio.create_task(deliver(worker, slow, job)) for _ in range(40)]
        await until(lambda: len(silent.requests) >= SLOTS_PER_RECEIVER)
        assert (await deliver(worker, fast, job)).status_code == 204
        key = await worker.submit(picture(5))
        assert (await worker.push(key)).status_code == 204
        assert not all(task.done() for task in stuck), "the silent receiver holds its slots"
        silent.may_answer.set()
        assert {answer.status_code for answer in await asyncio.gather(*stuck)} == {503}


async def test_failing_receiver_gets_one_delivery_at_a_time(worker: RunningWorker) -> None:
    receiver = SlowReceiver(status(500))
    job = await finished_job(worker)
    async with listening(receiver.serve) as port:
        webhook = await create_webhook(worker, port)
        receiver.may_answer.set()
        assert (await deliver(worker, webhook, job)).status_code == 503
        receiver.may_answer.clear()
        delivering = [asyncio.create_task(deliver(worker, webhook, job)) for _ in range(8)]
        await until(lambda: sum(task.done() for task in delivering) >= 7)
        receiver.may_answer.set()
        answers = await asyncio.gather(*delivering)
    assert {answer.status_code for answer in answers} == {503}
    assert sorted(answer.json()["code"] for answer in answers) == ["overloaded"] * 7 + [
        "unavailable"
    ]
    assert len(receiver.requests) == 2


# --- Dead letters ---------------------------------------------------------------------------------


async def test_dead_letter_of_a_notification_can_be_replayed(
    worker: RunningWorker,
) -> None:
    job = await finished_job(worker)
    message = Notify(TENANT, job.key.id, "job.completed", new_webhook_id())
    for _ in range(2):
        answer = await push(
            worker,
            message,
            "/generate_annotations_dlq",
            CloudPubSubDeadLetterSourceDeliveryCount="40",
            GlimpseDeadLetterSourceReason="HTTP 503",
        )
        assert answer.status_code == 204
    (letter,) = await worker.letters(TENANT)
    assert (letter.code, letter.detail, letter.attempts) == ("delivery_exhausted", "HTTP 503", 40)
    assert letter.attributes == message.attributes()
    assert await replay_letter(worker.backend, TENANT, letter.id) is Replay.REPLAYED
    assert await replay_letter(worker.backend, TENANT, letter.id) is Replay.RESOLVED
    (again,) = published(worker)
    assert {name: again[name] for name in message.attributes()} == message.attributes()


# --- E-mail ---------------------------------------------------------------------------------------


def mail_settings(folder: Path, port: int, **changes: object) -> Settings:
    url = f"smtp://127.0.0.1:{port}"
    return settings_for(folder, smtp_url=url, email_from="glimpse@example.com", **changes)


class SilentServer:
    """Accepts connections and sends nothing."""

    def __init__(self) -> None:
        self.connections = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        await reader.read()


@asynccontextmanager
async def mailing_worker(folder: Path, mailbox: Mailbox) -> AsyncIterator[RunningWorker]:
    async with mail_server(mailbox) as port, running_worker(mail_settings(folder, port)) as worker:
        yield worker


async def deliver_email(worker: RunningWorker, address: str = "ada@example.com") -> httpx.Response:
    job = await finished_job(worker, notify_email=address)
    return await push(worker, Notify(TENANT, job.key.id, "job.completed", "email"))


async def test_repeated_delivery_is_the_same_e_mail(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with mailing_worker(tmp_path, mailbox) as worker:
        job = await finished_job(worker, JobStatus.CANCELLED, "ada@example.com")
        message = Notify(TENANT, job.key.id, "job.cancelled", "email")
        for _ in range(2):
            assert (await push(worker, message)).status_code == 204
        assert count(worker, "email", "delivered") == 2
    first, second = mailbox.messages
    assert first["To"] == "ada@example.com"
    assert (
        first["Message-ID"] == second["Message-ID"] == f"<{job.key.id}.job.cancelled@example.com>"
    )


async def test_e_mail_refused_with_5xx_is_a_dead_letter(
    tmp_path: Path,
) -> None:
    mailbox = Mailbox(on_recipient="450 try later")
    async with mailing_worker(tmp_path, mailbox) as worker:
        assert (await deliver_email(worker)).status_code == 503
        assert await worker.letters(TENANT) == []
        mailbox.on_recipient = "550 no such user"
        assert (await deliver_email(worker)).status_code == 204
        (letter,) = await worker.letters(TENANT)
        assert letter.code == "email_refused" and "550" in letter.detail
        assert (count(worker, "email", "failed"), count(worker, "email", "refused")) == (1, 1)


async def test_e_mail_to_a_domain_that_is_not_allowed_is_not_sent(tmp_path: Path) -> None:
    mailbox = Mailbox()
    async with mailing_worker(tmp_path, mailbox) as worker:
        assert (await deliver_email(worker, "eve@example.org")).status_code == 204
        (letter,) = await worker.letters(TENANT)
        assert letter.code == "email_refused"
    assert mailbox.messages == []


async def test_unreachable_mail_server_causes_a_retry(tmp_path: Path) -> None:
    with closed_port() as unused:
        async with running_worker(mail_settings(tmp_path, unused)) as worker:
            assert (await deliver_email(worker)).status_code == 503


async def test_e_mail_without_a_mail_server_is_a_dead_letter(worker: RunningWorker) -> None:
    assert (await deliver_email(worker)).status_code == 204
    (letter,) = await worker.letters(TENANT)
    assert letter.code == "email_refused"


async def test_slow_domain_delays_no_e_mail_to_another_domain(tmp_path: Path) -> None:
    """The mail server answers for no domain, so that every delivery keeps its slot."""
    server = SilentServer()
    async with listening(server.serve) as port:
        settings = mail_settings(tmp_path, port, email_allowed_domains="*")
        async with running_worker(settings) as worker:
            addresses = ["ada@slow.example"] * (SLOTS_PER_RECEIVER + 1) + ["eve@fast.example"]
            tasks = [asyncio.create_task(deliver_email(worker, each)) for each in addresses]
            await until(lambda: server.connections == SLOTS_PER_RECEIVER + 1)
            for task in tasks:
                task.cancel()
            answers = await asyncio.gather(*tasks)
    assert {answer.status_code for answer in answers} == {503}


async def test_waits_and_deliveries_end_before_the_ack_deadline(tmp_path: Path) -> None:
    settings = mail_settings(tmp_path, 9, lease_seconds=2.0)
    async with running_worker(settings) as worker:
        notifier = worker.context.notifier
        assert notifier.mailer is not None
        longest = max(notifier.mailer._seconds, notifier.client._seconds)
        assert notifier.limits._wait + longest < settings.delivery.ack_deadline == 10


async def test_notifier_makes_no_blocking_call(tmp_path: Path) -> None:
    """P6: neither for a name, nor for a webhook, nor for an e-mail."""
    receiver, mailbox = Receiver(), Mailbox()
    async with (
        mailing_worker(tmp_path, mailbox) as worker,
        listening(receiver.serve) as port,
    ):
        webhook = await create_webhook(worker, f"http://localhost:{port}/")
        job = await finished_job(worker, notify_email="ada@example.com")
        with blockbuster_ctx(["worker", "core"]):
            for target in ("", webhook.id, "email"):
                message = Notify(TENANT, job.key.id, "job.completed", target)
                assert (await push(worker, message)).status_code == 204
    assert len(receiver.requests) == len(mailbox.messages) == 1


# --- Logs -----------------------------------------------------------------------------------------


async def test_logs_contain_neither_secrets_nor_urls(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marker = secrets.token_hex(8)
    async with running_worker(settings_for(tmp_path)) as worker:
        job = await finished_job(worker)
        async with listening(Receiver(status(500)).serve) as port:
            with closed_port() as dead:
                for where in (port, dead):
                    webhook = await create_webhook(worker, f"http://127.0.0.1:{where}/{marker}")
                    assert (await deliver(worker, webhook, job)).status_code == 503
    written = capsys.readouterr().out
    assert "webhook not delivered" in written
    assert marker not in written
    assert secret_text(webhook.secret).removeprefix("whsec_") not in written
