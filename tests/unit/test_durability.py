"""Which writes are on disk before their caller continues (P1), and which a power loss may undo."""

import os
import sqlite3
import stat
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from types import ModuleType
from typing import Generic, TypeVar

import pytest

from core.backends.embedded import keys, queue_store
from core.backends.embedded.blobs import FileBlobStore
from core.backends.embedded.database import Database, Operation, Schema
from core.backends.embedded.dead_letters import SqliteDeadLetterStore
from core.backends.embedded.jobs import SqliteJobStore
from core.backends.embedded.models import SCHEMA as MODELS
from core.backends.embedded.models import SqliteModelStore
from core.backends.embedded.publisher import SqlitePublisher
from core.backends.embedded.records import SCHEMA as RECORDS
from core.backends.embedded.records import SqliteRecordStore
from core.backends.embedded.wake_up import WakeUpSender
from core.backends.embedded.webhooks import SCHEMA as WEBHOOKS
from core.backends.embedded.webhooks import SqliteWebhookStore
from core.backends.links import KEY_BYTES, LinkSigner, shared_secret
from core.domain import api_keys, dead_letters, jobs, records, trained_models, webhooks
from core.domain.api_keys import ApiKey
from core.domain.dead_letters import DeadLetter, letter_id
from core.domain.jobs import Counts, JobItem, JobKey, JobWebhook, Training, new_job
from core.domain.messages import ClassifyImage
from core.domain.principals import ALL_SCOPES
from core.domain.priority import Priority
from core.domain.records import Annotation, RecordError, RecordKey, Status, new_record
from core.domain.transitions import Transition
from core.domain.webhooks import JOB_EVENTS, MAX_WEBHOOKS, Change, Delivery, Event, Webhook
from core.ports import Store
from tests.support.clock import MovableClock
from tests.support.records import claimed

K = TypeVar("K")
S = TypeVar("S")
T = TypeVar("T")

KEY = RecordKey("public", "ab" * 32, "colours@0123456789ab")
ERROR = RecordError("model_unavailable", "It failed.", retryable=True)
FULL = 2  # of PRAGMA synchronous: https://sqlite.org/pragma.html#pragma_synchronous
MINUTE = timedelta(minutes=1)


class ObservedDatabase(Database):
    """Records for each write whether SQLite syncs its commit."""

    def __init__(self, path: Path, schema: Schema) -> None:
        super().__init__(path, schema)
        self.modes: list[int] = []

    async def write(self, operation: Operation[T], *, durable: bool) -> T:
        def observed(connection: sqlite3.Connection) -> T:
            (mode,) = connection.execute("PRAGMA synchronous").fetchone()
            self.modes.append(mode)
            return operation(connection)

        return await super().write(observed, durable=durable)

    async def syncs(self, change: Awaitable[object]) -> bool:
        """Whether `change`, which must succeed, is on disk when it returns."""
        self.modes.clear()
        assert await change
        return self.synced

    @property
    def synced(self) -> bool:
        """Whether the only write since `modes` was cleared was synced."""
        (mode,) = self.modes
        return mode == FULL


def transitions_in(module: ModuleType) -> set[str]:
    """The names of the transitions that a module of the domain defines."""
    return {name for name, value in vars(module).items() if hasattr(value, "__wrapped__")}


@dataclass
class Changes(Generic[K, S]):
    """Applies transitions to the object under `key`, and collects their names."""

    store: Store[K, S]
    database: ObservedDatabase
    key: K
    applied: set[str] = field(default_factory=set)

    async def synced(self, transition: Transition[S]) -> bool:
        """Whether the transition, which must be granted, is on disk when `change` returns."""
        self.applied.add(transition.name)
        return await self.database.syncs(self.store.change(self.key, transition))


@asynccontextmanager
async def observed(path: Path, schema: Schema) -> AsyncIterator[ObservedDatabase]:
    database = await ObservedDatabase.open(path, schema)
    assert isinstance(database, ObservedDatabase)
    try:
        yield database
    finally:
        await database.close()


async def test_record_transitions_that_clients_rely_on_are_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    async with observed(tmp_path / "records.db", RECORDS) as database:
        store = SqliteRecordStore(database, clock)
        changes = Changes(store, database, KEY)
        assert await database.syncs(store.create(new_record(KEY, clock(), Priority.LOW)))
        assert await changes.synced(records.want(Priority.HIGH))
        assert not await changes.synced(records.advance(Status.PENDING, Status.QUEUED))
        clock.move(1)
        assert not await changes.synced(records.touch(clock()))
        clock.move(1)
        assert not await changes.synced(records.republish(clock(), MINUTE))
        assert not await changes.synced(records.claim(MINUTE))
        clock.move(61)
        claim = await claimed(store, KEY, MINUTE)
        assert claim is not None
        assert not await changes.synced(records.release(claim, ERROR))
        assert await changes.synced(records.fail_unleased(ERROR))
        assert await changes.synced(records.retry())
        claim = await claimed(store, KEY, MINUTE)
        assert claim is not None
        assert await changes.synced(records.fail(claim, ERROR))
        assert await changes.synced(records.retry())
        claim = await claimed(store, KEY, MINUTE)
        assert claim is not None
        assert await changes.synced(records.complete(claim, [Annotation(1, "red", 0.75)]))
        assert changes.applied == transitions_in(records)
        assert await database.syncs(store.begin_deletion(KEY.image, "owner", has_blob=True))
        deletion = await store.deletion(KEY.image)
        assert deletion is not None
        assert await database.syncs(store.end_deletion(deletion))


async def test_key_transitions_that_grant_or_end_access_are_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    key = ApiKey("key000000001", "acme", "laptop", ALL_SCOPES, bytes(32), clock())
    async with observed(tmp_path / "keys.db", keys.SCHEMA) as database:
        store = keys.SqliteKeyStore(database, clock)
        changes = Changes(store, database, key.id)
        assert await database.syncs(store.create(key))
        assert not await changes.synced(api_keys.note_use(clock()))
        assert await changes.synced(api_keys.rotate(bytes([1]) * 32, MINUTE))
        assert await changes.synced(api_keys.revoke())
        assert changes.applied == transitions_in(api_keys)


async def test_webhook_transitions_except_notes_of_deliveries_are_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    secret, url = bytes(32), "https://example.com/hooks"
    webhook = Webhook(f"wh_{1:024x}", "acme", "", url, JOB_EVENTS, secret, clock())
    async with observed(tmp_path / "webhooks.db", WEBHOOKS) as database:
        store = SqliteWebhookStore(database, clock)
        changes = Changes(store, database, webhook.key)
        assert await database.syncs(store.create(webhook, MAX_WEBHOOKS))
        assert await changes.synced(webhooks.rotate(bytes([1]) * 32, MINUTE))
        done, gone = Delivery(clock(), Event.JOB_FAILED, 200), Delivery(clock(), Event.TEST, 410)
        assert not await changes.synced(webhooks.note_delivery(url, done))
        assert await changes.synced(webhooks.disable(url, gone, "It answered 410."))
        assert await changes.synced(webhooks.update(Change(enabled=True)))
        assert changes.applied == transitions_in(webhooks)
        assert await database.syncs(store.delete(webhook.key))


async def test_transitions_of_trained_models_are_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    model = trained_models.new_model(trained_models.ModelKey("acme", "birds"), clock())
    version = trained_models.ModelVersion(
        "birds@0123456789ab", "a" * 32, "base@0123456789ab", clock(), 10, 2, 0.9, (0.8, 1.0), 0.9
    )
    async with observed(tmp_path / "models.db", MODELS) as database:
        store = SqliteModelStore(database, clock)
        changes = Changes(store, database, model.key)

        async def base_added() -> bool:
            await store.add_base("acme", version.base)
            return True

        assert await database.syncs(store.create(model))
        assert await database.syncs(base_added())
        assert await changes.synced(trained_models.add_version(version, activate=True))
        assert await changes.synced(trained_models.activate(version.id))
        assert await changes.synced(trained_models.correct({"a" * 64: "owl"}))
        assert await changes.synced(trained_models.begin_deletion(version.id))
        assert await changes.synced(trained_models.end_deletion(version.id))
        assert changes.applied == transitions_in(trained_models)
        assert await database.syncs(store.delete(model.key))


async def test_publication_is_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    async with observed(tmp_path / "queue.db", queue_store.SCHEMA) as database:
        wake_up = WakeUpSender(tmp_path)
        publisher = SqlitePublisher(queue_store.QueueStore(database), wake_up, clock)
        assert await database.syncs(publisher.publish(ClassifyImage(KEY)))
        wake_up.close()


async def test_dead_letters_are_durable_and_their_resolution_is_not(tmp_path: Path) -> None:
    clock = MovableClock()
    attributes = {"image_hash": KEY.image_hash, "model": KEY.model, "tenant": KEY.tenant}
    letter = DeadLetter(
        id=letter_id(attributes, b"", "1"),
        tenant=KEY.tenant,
        attributes=attributes,
        payload=b"",
        payload_size=0,
        attempts=10,
        code="inference_failed",
        detail="The model failed on this image.",
        published_at=clock(),
        died_at=clock(),
    )
    async with observed(tmp_path / "records.db", RECORDS) as database:
        store, syncs = SqliteDeadLetterStore(database, clock), database.syncs
        changes = Changes(store, database, letter.key)
        assert await syncs(store.add(letter))
        assert not await changes.synced(dead_letters.resolve())
        assert changes.applied == transitions_in(dead_letters)
        assert await syncs(store.delete(letter.key))
        assert await store.add(letter)
        assert await syncs(store.purge(clock.move(1), 10))


async def test_job_transitions_except_counts_are_durable(tmp_path: Path) -> None:
    clock = MovableClock()
    key, at_once = JobKey(KEY.tenant, f"{1:032x}"), timedelta(0)
    other = JobKey(KEY.tenant, f"{2:032x}")
    async with observed(tmp_path / "records.db", RECORDS) as database:
        store, syncs = SqliteJobStore(database, clock), database.syncs
        changes = Changes(store, database, key)
        for each in (key, other):
            assert await syncs(store.create(new_job(each, "", KEY.model, 2, clock())))
        database.modes.clear()
        await store.add_items(key, [JobItem(n, f"{n:064x}") for n in range(2)])
        assert database.synced
        assert await changes.synced(jobs.seal())
        assert await changes.synced(jobs.start())
        assert not await syncs(store.complete_item(key, 0, None, at_once))
        database.modes.clear()
        await store.complete_items(key, {1: ERROR})
        assert not database.synced
        assert not await syncs(store.refresh_counts(key))
        changes.key = other
        assert await changes.synced(jobs.seal())
        assert not await changes.synced(jobs.update_counts(Counts(2, 1)))
        job = await store.get(other)
        assert job is not None
        clock.now = job.wake_at
        assert await changes.synced(jobs.reschedule(job.wake_at))
        assert await changes.synced(jobs.cancel())
        assert await changes.synced(jobs.mark_announced())
        failing = new_job(JobKey(KEY.tenant, f"{3:032x}"), "", KEY.model, 2, clock())
        assert await store.create(failing)
        changes.key = failing.key
        assert await store.change(failing.key, jobs.seal())
        assert await changes.synced(jobs.fail(ERROR))
        assert await changes.synced(jobs.retry())
        training = new_job(
            JobKey(KEY.tenant, f"{4:032x}"),
            "",
            KEY.model,
            2,
            clock(),
            training=Training("pets"),
            webhook=JobWebhook("https://example.org/"),
        )
        assert await store.create(training)
        changes.key = training.key
        assert await store.change(training.key, jobs.seal())
        assert await store.change(training.key, jobs.start())
        assert await changes.synced(jobs.decide_model("pets@0123456789ab", 0.9))
        assert not await changes.synced(jobs.note_webhook(500))
        assert changes.applied == transitions_in(jobs)
        assert await syncs(store.delete(key))


class ObservedDisk:
    """Records the calls of fsync and replace, in order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._steps: list[tuple[str, int]] = []
        self._sizes: dict[int, int] = {}
        fsync, replace = os.fsync, os.replace

        def observed_fsync(descriptor: int) -> None:
            status = os.fstat(descriptor)
            self._steps.append(("sync", status.st_ino))
            if stat.S_ISREG(status.st_mode):
                self._sizes[status.st_ino] = status.st_size
            fsync(descriptor)

        def observed_replace(source: Path, target: Path) -> None:
            self._steps.append(("rename", source.stat().st_ino))
            replace(source, target)

        monkeypatch.setattr(os, "fsync", observed_fsync)
        monkeypatch.setattr(os, "replace", observed_replace)

    def steps(self, *paths: Path) -> list[tuple[str, Path | None]]:
        """The calls since the last time, for these files and folders."""
        names = {path.stat().st_ino: path for path in paths}
        steps = [(step, names.get(number)) for step, number in self._steps]
        self._steps.clear()
        return steps

    def synced_size(self, path: Path) -> int:
        """The size of the file when it was synced."""
        return self._sizes[path.stat().st_ino]


async def test_blob_is_synced_before_its_name_and_its_name_before_the_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, name = b"an image, as far as storage knows", f"{KEY.tenant}/{KEY.image_hash}"
    root = tmp_path / "blobs"
    store = FileBlobStore(root, LinkSigner(b"secret", ""), free=lambda _: 1 << 40)
    path = store.file(name)
    assert path is not None
    folders = [path.parent, path.parent.parent, root, tmp_path]
    disk = ObservedDisk(monkeypatch)
    try:
        await store.put(name, data, "image/jpeg")
        assert disk.steps(path, *folders) == [
            # The name of each new folder, without which the blob could not be found.
            *(("sync", folder) for folder in folders[:0:-1]),
            ("sync", path),
            ("rename", path),
            ("sync", path.parent),
        ]
        assert disk.synced_size(path) == len(data)

        # The process that put the blob may have died before the last step.
        await store.put(name, data, "image/jpeg")
        assert disk.steps(path, *folders) == [("sync", path.parent)]

        assert await store.delete(name)
        assert disk.steps(*folders) == [("sync", path.parent)]
    finally:
        await store.close()


def test_secret_is_synced_before_its_name_and_its_name_before_its_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """API keys made with a lost secret would be invalid."""
    path = tmp_path / "key.secret"
    disk = ObservedDisk(monkeypatch)
    shared_secret(path)
    assert disk.synced_size(path) == KEY_BYTES
    assert disk.steps(path, tmp_path) == [("sync", path), ("sync", tmp_path)]
