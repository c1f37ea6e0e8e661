"""A worker service in this process, with an embedded backend, and the pushes it gets."""

import base64
import contextlib
import json
import sqlite3
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    closing,
    contextmanager,
)
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import psutil
from fastapi import FastAPI

from core.backends import Backend, BackendOpener, open_backend
from core.backends.push_secret import local_push_secret
from core.clock import Clock, rfc3339, utc_now
from core.domain.channels import Channel
from core.domain.dead_letters import DeadLetter, LetterFilter
from core.domain.jobs import JobKey
from core.domain.messages import ClassifyImage, Message, RunJob, message_of
from core.domain.priority import Priority
from core.domain.records import Record, RecordKey, new_record
from core.settings import Settings
from tests.support.bundles import write_colour_bundle
from tests.support.classifiers import spawn_thread
from tests.support.data_folders import begin_data_folder
from tests.support.faults import Happening, watched
from tests.support.pictures import picture, sha256
from tests.support.settings import isolated_settings
from tests.support.training import fit_in_thread
from worker.context import WorkerContext
from worker.inference.pool import Spawn
from worker.main import create_app

UNKNOWN_MODEL = "unknown@0123456789ab"


def settings_in(folder: Path, **changes: object) -> Settings:
    """Settings with data and a colour bundle in `folder`, independent of the environment."""
    values: dict[str, Any] = {
        "host": "127.0.0.1",
        "data_dir": folder / "data",
        "model_uri": str(folder / "model"),
        "worker_concurrency": 2,
        "log_level": "warning",
        **changes,
    }
    if not Path(values["model_uri"]).exists():
        write_colour_bundle(Path(values["model_uri"]))
    return isolated_settings(**values)


@dataclass
class RunningWorker:
    """A worker service, a client of it, and its backend.

    `backend` is the plain one, also inside `watching`.
    """

    app: FastAPI
    client: httpx.AsyncClient
    backend: Backend
    model: str

    @property
    def context(self) -> WorkerContext:
        context: WorkerContext = self.app.state.context
        return context

    @contextmanager
    def using(self, backend: Backend) -> Iterator[None]:
        """Give the worker another backend for the block."""
        before = self.context
        self.app.state.context = replace(before, backend=backend)
        try:
            yield
        finally:
            self.app.state.context = before

    def watching(self, happens: Happening) -> AbstractContextManager[None]:
        """Report the worker's calls of its ports to `happens` for the block."""
        return self.using(watched(self.backend, happens))

    @asynccontextmanager
    async def no_free_slot(self) -> AsyncIterator[None]:
        """Occupy every slot for images, so that deliveries queue."""
        slots = self.context.slots
        async with AsyncExitStack() as held:
            for _ in range(slots._capacity()):
                await held.enter_async_context(slots.slot(Priority.HIGH))
            yield

    def queued(self) -> bool:
        """Whether a delivery waits for a slot."""
        return any(self.context.slots._queues.values())

    async def submit(self, data: bytes | None = None, *, model: str | None = None) -> RecordKey:
        """Store a record and a blob as the API does for a new image, without a message."""
        data = picture() if data is None else data
        key = RecordKey("public", sha256(data), model or self.model)
        await self.backend.records.create(new_record(key, self.context.clock()))
        await self.backend.blobs.put(key.blob_name, data, "image/jpeg")
        return key

    async def send(self, message: Message, **changes: object) -> httpx.Response:
        """Deliver a message to the path of its channel."""
        attributes = {"attributes": message.attributes()}
        return await self.client.post(message.channel.path, content=body(**attributes, **changes))

    async def run_job(self, key: JobKey) -> httpx.Response:
        return await self.send(RunJob(key.tenant, key.id))

    async def schedule(self) -> dict[str, int]:
        """Call the scheduler's route. Returns the number of jobs by action."""
        answer = await self.client.post("/schedule")
        assert answer.status_code == 200, answer.text
        done: dict[str, int] = answer.json()
        return done

    async def reconcile(self) -> dict[str, int]:
        """Call the reconciler's route. Returns its counts that are not zero."""
        answer = await self.client.post("/reconcile")
        assert answer.status_code == 200, answer.text
        return {outcome: count for outcome, count in answer.json().items() if count}

    def published(self, channel: Channel | None = None) -> list[Message]:
        """The messages in the queue's database, oldest first."""
        with closing(sqlite3.connect(self.context.settings.data_dir / "queue.db")) as connection:
            rows = connection.execute(
                "SELECT attributes FROM messages WHERE ?1 = '' OR channel = ?1 ORDER BY id",
                (channel.name if channel else "",),
            ).fetchall()
        return [replace(message_of(json.loads(text)), traceparent="") for (text,) in rows]

    async def push(self, key: RecordKey, **changes: object) -> httpx.Response:
        return await self.client.post("/generate_annotations", content=envelope(key, **changes))

    async def dead_letter(
        self,
        subject: RecordKey | Message,
        deliveries: str = "10",
        reason: str = "",
        **changes: object,
    ) -> httpx.Response:
        """Deliver the dead letter of a message, or of an image's message, that died now."""
        message = ClassifyImage(subject) if isinstance(subject, RecordKey) else subject
        attributes = {
            **message.attributes(),
            "CloudPubSubDeadLetterSourceDeliveryCount": deliveries,
            "CloudPubSubDeadLetterSourceTopicPublishTime": "2026-11-21T09:30:00.125Z",
        }
        if reason:
            attributes["GlimpseDeadLetterSourceReason"] = reason
        # One millisecond later, because the text has milliseconds and the record microseconds.
        died = rfc3339(self.context.clock() + timedelta(milliseconds=1))
        letter = body(**{"attributes": attributes, "publishTime": died, **changes})
        return await self.client.post("/generate_annotations_dlq", content=letter)

    async def letters(self, tenant: str = "public") -> Sequence[DeadLetter]:
        return await self.backend.dead_letters.list(LetterFilter(tenant), 100)

    async def record(self, key: RecordKey) -> Record:
        record = await self.backend.records.get(key)
        assert record is not None
        return record

    async def labelled(self, data: bytes) -> str:
        """Submit and push an image. Returns its first label."""
        key = await self.submit(data)
        answer = await self.push(key)
        assert answer.status_code == 204, answer.text
        record = await self.record(key)
        assert record.annotations, record.error
        return record.annotations[0].label


@asynccontextmanager
async def running_worker(
    settings: Settings,
    clock: Clock = utc_now,
    opener: BackendOpener = open_backend,
    spawn: Spawn = spawn_thread,
) -> AsyncIterator[RunningWorker]:
    begin_data_folder(settings)
    app = create_app(settings, clock, opener, spawn, fit_in_thread)
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        context: WorkerContext = app.state.context
        async with httpx.AsyncClient(
            transport=transport, base_url=settings.worker_url, headers=push_headers(settings)
        ) as client:
            models = context.models.identities
            model = models[0] if models else UNKNOWN_MODEL
            yield RunningWorker(app, client, context.backend, model)


def push_headers(settings: Settings) -> dict[str, str]:
    """The headers of a local queue, which a worker with these settings demands."""
    if not settings.pushes_with_secret:
        return {}
    return {"Authorization": f"Bearer {local_push_secret(settings)}"}


def envelope(key: RecordKey, **message: object) -> bytes:
    """A push body as Pub/Sub sends it; `message` replaces fields of the message."""
    return body(**{"attributes": ClassifyImage(key).attributes(), **message})


def body(**message: object) -> bytes:
    """Like `envelope`, for any message."""
    return json.dumps(
        {
            "subscription": "projects/local/subscriptions/classify",
            "deliveryAttempt": 1,
            "message": {
                "messageId": "1",
                "publishTime": "2026-11-21T09:30:00.125Z",
                "data": base64.b64encode(b"").decode(),
                **message,
            },
        }
    ).encode()


def classifier_processes(of: int | None = None) -> list[psutil.Process]:
    """The classifier processes of this process, or of another."""
    found = []
    for child in psutil.Process(of).children():
        with contextlib.suppress(psutil.NoSuchProcess):  # it ended in between
            if "worker.inference.process" in child.cmdline():
                found.append(child)
    return found
