"""Notifications of a job's end, by webhook and e-mail, with processes that are killed.

The receivers are servers of this test on 127.0.0.1. One of them never responds.
"""

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
import standardwebhooks

from tests.support.mail import Mailbox, mail_server
from tests.support.pictures import picture
from tests.support.receivers import Receiver, SilentReceiver, listening, status
from tests.support.stack import Stack, until

HOOKS, JOBS = "/api/v1/webhooks", "/api/v1/jobs"
QUICK = {
    "WEBHOOK_ALLOW_PRIVATE": "true",
    "MAX_BACKOFF_SECONDS": "0.1",  # seconds for images; half a second for notifications
}


class World:
    """Servers in a thread with its own event loop, so that the test may block."""

    def __init__(self, loop: asyncio.AbstractEventLoop, ends: ExitStack) -> None:
        self._loop, self._ends = loop, ends

    def listen(self, server: Any) -> int:
        """Enter an async context manager that serves, until the end. Returns its port."""

        def run(coroutine: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

        port: int = run(server.__aenter__())
        self._ends.callback(lambda: run(server.__aexit__(None, None, None)))
        return port


@contextmanager
def serving() -> Iterator[World]:
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        with ExitStack() as ends:
            yield World(loop, ends)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@pytest.fixture
def world() -> Iterator[World]:
    with serving() as there:
        yield there


def hook(stack: Stack, port: int, **body: object) -> dict[str, Any]:
    answer = stack.api.post(HOOKS, json={"url": f"http://127.0.0.1:{port}/hook", **body})
    assert answer.status_code == 201, answer.text
    made: dict[str, Any] = answer.json()
    return made


def shown(stack: Stack, webhook: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = stack.api.get(f"{HOOKS}/{webhook['id']}").json()
    return found


def batch(stack: Stack, images: int, **params: str) -> str:
    """The id of a new job."""
    files = [("imgs", (f"{n}.jpg", picture(n, size=(48, 48)))) for n in range(images)]
    answer = stack.api.post(f"{JOBS}/batch-predict", files=files, params=params)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["job_id"])


def told(receiver: Receiver, webhook: dict[str, Any]) -> list[dict[str, Any]]:
    """The notifications of the receiver, each verified with the secret of the webhook."""
    verify = standardwebhooks.Webhook(webhook["secret"]).verify
    return [verify(each.body.decode(), each.headers) for each in receiver.requests]


def ids(receiver: Receiver) -> set[str]:
    return {each.headers["webhook-id"] for each in receiver.requests}


@pytest.mark.timeout(240)
def test_job_events_are_delivered_although_processes_are_killed(
    tmp_path: Path, colour_bundle: Path, world: World
) -> None:
    good, failures, gone, mailbox = Receiver(), Receiver(), Receiver(status(410)), Mailbox()
    moody = Receiver(status(500))
    ports = {
        name: world.listen(listening(each.serve))
        for name, each in {
            "good": good,
            "failures": failures,
            "gone": gone,
            "moody": moody,
            "silent": SilentReceiver(),
        }.items()
    }
    mail = world.listen(mail_server(mailbox))
    settings = {
        **QUICK,
        "SMTP_URL": f"smtp://127.0.0.1:{mail}",
        "EMAIL_FROM": "Glimpse <glimpse@example.com>",
        "LEASE_SECONDS": "1",
    }
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        hooks = {name: hook(stack, port) for name, port in ports.items() if name != "failures"}
        hook(stack, ports["failures"], events=["job.failed"])
        job_id = batch(stack, 20, notify_email="ada@example.com")
        for name in ("worker", "queue"):
            time.sleep(0.3)
            stack.kill(name)
            stack.start(name)
        until(lambda: good.requests, "the good receiver has its notification")
        until(lambda: len(moody.requests) >= 2, "the moody one is tried again")
        moody.answer = status(204)
        until(lambda: mailbox.messages, "the e-mail arrives")
        until(lambda: status(204) in moody.answers, "the failing receiver has its notification")
        # Notified at least once: a worker that is killed during a response has not recorded it.
        until(lambda: not shown(stack, hooks["gone"])["enabled"], "the one that is gone is noted")

        # Retries of the silent one delay neither an image, nor another job and its notification.
        began = time.monotonic()
        assert stack.upload(picture(99)).status_code == 202
        other = batch(stack, 3)
        until(lambda: f"{other}.job.completed" in ids(good), "news of another job")
        print(f"another job and its news: {time.monotonic() - began:.1f} s")
        last = shown(stack, hooks["gone"])

    for event in told(good, hooks["good"]):
        assert event["type"] == "job.completed"
        assert event["data"]["progress"] == 100
    (first, *_) = [e for e in told(good, hooks["good"]) if e["data"]["job_id"] == job_id]
    assert (first["data"]["total"], first["data"]["succeeded"]) == (20, 20)
    # At least once, with the same id.
    assert ids(good) == {f"{job_id}.job.completed", f"{other}.job.completed"}
    assert f"{job_id}.job.completed" in ids(moody)
    assert failures.requests == []
    assert (last["enabled"], last["disabled_reason"]) == (False, "It answered 410 Gone.")
    assert ids(gone) == {f"{job_id}.job.completed"}
    assert {m["Message-ID"] for m in mailbox.messages} == {f"<{job_id}.job.completed@example.com>"}
    assert "20 of 20 images classified" in mailbox.messages[0]["Subject"]


@pytest.mark.timeout(180)
def test_unreachable_receiver_leads_to_a_dead_letter_that_can_be_replayed(
    tmp_path: Path, colour_bundle: Path, world: World
) -> None:
    receiver = Receiver(status(503))
    port = world.listen(listening(receiver.serve))
    settings = {**QUICK, "DELIVERY_ATTEMPTS": "1"}  # attempts of a notification
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        webhook = hook(stack, port)
        answer = stack.api.post(f"{HOOKS}/{webhook['id']}/test")
        assert answer.status_code == 202
        letters: list[dict[str, Any]] = []

        def kept() -> bool:
            letters[:] = stack.api.get("/api/v1/dead-letters").json()["dead_letters"]
            return bool(letters)

        until(kept, "a dead letter")
        assert len(receiver.requests) == 4
        (letter,) = letters
        assert letter["attributes"]["target"] == webhook["id"]
        assert letter["attempts"] == 4 and letter["image_hash"] is None
        receiver.answer = status(200)
        replayed = stack.api.post(f"/api/v1/dead-letters/{letter['id']}/replay")
        assert replayed.json() == {"outcome": "replayed"}
        until(lambda: len(receiver.requests) >= 5, "the replayed message")
        assert stack.api.get("/api/v1/dead-letters").json()["dead_letters"] == []
    assert ids(receiver) == {answer.json()["message_id"]}
    assert told(receiver, webhook)[-1]["type"] == "webhook.test"


@pytest.mark.timeout(180)
def test_job_events_are_delivered_on_emulators(
    tmp_path: Path, colour_bundle: Path, world: World, own_namespace: dict[str, str]
) -> None:
    receiver = Receiver()
    port = world.listen(listening(receiver.serve))
    settings = {**QUICK, **own_namespace}
    with Stack(tmp_path, colour_bundle, **settings) as stack:
        webhook = hook(stack, port)
        job_id = batch(stack, 3)
        until(lambda: receiver.requests, "the receiver has its notification")
    assert ids(receiver) == {f"{job_id}.job.completed"}
    assert told(receiver, webhook)[0]["data"]["succeeded"] == 3
