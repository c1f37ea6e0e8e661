"""Signed links, and the files of the embedded backend: private and complete (P5)."""

import asyncio
import os
import sqlite3
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, closing
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from core.backends import Backend, open_access, open_backend
from core.backends.embedded import records
from core.backends.links import LinkSigner, shared_secret
from core.domain.webhooks import (
    JOB_EVENTS,
    MAX_WEBHOOKS,
    Webhook,
    new_secret,
)
from core.errors import Forbidden, Unavailable
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.pictures import sha256

DATA = b"an image, as far as storage knows"
NAME = f"public/{sha256(DATA)}"
HOOK = "https://example.com/hooks"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "data", public_url="")


def parts(url: str) -> tuple[str, str, str]:
    split = urlsplit(url)
    query = parse_qs(split.query)
    return split.path, query["expires"][0], query["signature"][0]


async def link(backend: Backend, seconds: float = 60) -> tuple[str, str]:
    url = await backend.blobs.signed_url(NAME, timedelta(seconds=seconds))
    path, expires, signature = parts(url)
    assert path == f"/local/blobs/{NAME}"
    return expires, signature


async def test_a_link_holds_until_it_expires(settings: Settings) -> None:
    clock = MovableClock()
    async with open_backend(settings, clock) as backend:
        expires, signature = await link(backend)
        assert backend.links is not None
        backend.links.verify(NAME, expires, signature, clock())
        end = datetime.fromtimestamp(int(expires), UTC)
        backend.links.verify(NAME, int(expires), signature, end - timedelta(microseconds=1))
        with pytest.raises(Forbidden, match="expired"):
            backend.links.verify(NAME, expires, signature, end)


async def test_an_altered_link_is_refused(settings: Settings) -> None:
    clock = MovableClock()
    async with open_backend(settings, clock) as backend:
        expires, signature = await link(backend)
        other = NAME.replace("public", "acme")
        last = "0" if signature[-1] != "0" else "1"
        for name, until, proof in (
            (other, expires, signature),
            (NAME, str(int(expires) + 1), signature),
            (NAME, expires, signature[:-1] + last),
            (NAME, expires, signature.upper()),
            (NAME, expires, ""),
            (NAME, expires, "é\udcff"),
            (NAME, "", signature),
            (NAME, "-1", signature),
            (NAME, "1e9", signature),
            (NAME, "٣", signature),
            (NAME, "9" * 5000, signature),
        ):
            assert backend.links is not None
            with pytest.raises(Forbidden):
                backend.links.verify(name, until, proof, clock())


async def test_processes_with_the_same_folder_accept_each_others_links(settings: Settings) -> None:
    clock = MovableClock()
    async with open_backend(settings, clock) as one, open_backend(settings, clock) as other:
        expires, signature = await link(one)
        assert other.links is not None
        other.links.verify(NAME, expires, signature, clock())


async def test_another_folder_has_another_secret(settings: Settings, tmp_path: Path) -> None:
    clock = MovableClock()
    elsewhere = settings.model_copy(update={"data_dir": tmp_path / "elsewhere"})
    async with open_backend(settings, clock) as one, open_backend(elsewhere, clock) as other:
        expires, signature = await link(one)
        assert other.links is not None
        with pytest.raises(Forbidden):
            other.links.verify(NAME, expires, signature, clock())


def test_a_link_starts_with_the_public_url() -> None:
    url = LinkSigner(b"secret", "https://images.example").url(NAME, MovableClock()())
    assert url.startswith(f"https://images.example/local/blobs/{NAME}?expires=")


def test_the_secret_is_created_once_and_private(tmp_path: Path) -> None:
    path = tmp_path / "link.key"
    with ThreadPoolExecutor(20) as threads:
        secrets = list(threads.map(shared_secret, [path] * 20))
    assert len(set(secrets)) == 1
    assert len(secrets[0]) == 32
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert [each.name for each in tmp_path.iterdir()] == ["link.key"]


@pytest.mark.parametrize("name", ["link.key", "key.secret"])
async def test_a_truncated_secret_is_not_used(settings: Settings, name: str) -> None:
    """Anyone can guess a secret of few bytes."""
    open_folder: Callable[[Settings], AbstractAsyncContextManager[object]]
    open_folder = open_backend if name == "link.key" else open_access
    async with open_folder(settings):
        pass
    os.truncate(settings.data_dir / name, 0)
    with pytest.raises(Unavailable, match=f"{name} has 0 bytes of 32"):
        async with open_folder(settings):
            pass


async def test_the_data_folder_is_private_and_has_no_temporary_files(settings: Settings) -> None:
    async with open_backend(settings) as backend:
        await asyncio.gather(*(backend.blobs.put(NAME, DATA, "image/png") for _ in range(20)))
    assert stat.S_IMODE(settings.data_dir.stat().st_mode) == 0o700
    tenant, image_hash = NAME.split("/")
    files = [path for path in (settings.data_dir / "blobs").rglob("*") if path.is_file()]
    assert files == [settings.data_dir / "blobs" / tenant / image_hash[:2] / image_hash]
    assert stat.S_IMODE(files[0].parent.stat().st_mode) == 0o700


async def test_only_old_temporary_files_are_removed(
    settings: Settings,
) -> None:
    async with open_backend(settings) as backend:
        await backend.blobs.put(NAME, DATA, "image/png")
    folder = settings.data_dir / "blobs" / "public" / sha256(DATA)[:2]
    old, young = folder / ".draft-old", folder / ".draft-young"
    for draft in (old, young):
        draft.write_bytes(b"half")
    os.utime(old, (time.time() - 7200,) * 2)
    async with open_backend(settings) as backend:
        assert await backend.blobs.get(NAME) == DATA
    assert not old.exists()
    assert young.exists()


async def test_only_the_owner_can_read_webhook_secrets(settings: Settings) -> None:
    clock = MovableClock()
    webhook = Webhook("wh_" + "0" * 24, "acme", "", HOOK, JOB_EVENTS, new_secret(), clock())
    async with open_backend(settings, clock) as backend:
        assert await backend.webhooks.create(webhook, MAX_WEBHOOKS)
        files = sorted(settings.data_dir.glob("webhooks.db*"))
        assert len(files) >= 2, "the database and its log"
        for file in files:
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file.name


@pytest.mark.parametrize(
    "damaged",
    [bytes(len(DATA)), DATA[:-1] + b"!", DATA[:-1], DATA + b"!", b""],
    ids=["zeros", "last byte", "shorter", "longer", "empty"],
)
async def test_an_upload_repairs_a_damaged_blob(settings: Settings, damaged: bytes) -> None:
    """A crash or a faulty disk may leave other bytes in a file, of the right length too."""
    async with open_backend(settings) as backend:
        await backend.blobs.put(NAME, DATA, "image/png")
        file = backend.blobs.file(NAME)
        assert file is not None
        file.write_bytes(damaged)
        await backend.blobs.put(NAME, DATA, "image/png")
        assert await backend.blobs.get(NAME) == DATA


async def test_an_unusable_blob_folder_is_unavailable(settings: Settings) -> None:
    async with open_backend(settings) as backend:
        blobs = settings.data_dir / "blobs"
        blobs.rename(settings.data_dir / "moved")
        blobs.write_bytes(b"a file in the place of the folder")
        with pytest.raises(Unavailable) as unavailable:
            await backend.blobs.put(NAME, DATA, "image/png")
        assert str(settings.data_dir) not in unavailable.value.detail
        with pytest.raises(Unavailable):
            await backend.blobs.ping()


@pytest.mark.parametrize("call", ["get", "exists", "delete"])
async def test_a_missing_folder_is_not_a_missing_blob(settings: Settings, call: str) -> None:
    """A disk that is not mounted must not end records or complete deletions (P4, P5)."""
    async with open_backend(settings) as backend:
        await backend.blobs.put(NAME, DATA, "image/png")
        moved = (settings.data_dir / "blobs").rename(settings.data_dir / "moved")
        with pytest.raises(Unavailable):
            await getattr(backend.blobs, call)(NAME)
        moved.rename(settings.data_dir / "blobs")
        assert await backend.blobs.get(NAME) == DATA


async def test_a_data_folder_that_cannot_be_created_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(Unavailable):
        async with open_backend(Settings(data_dir=tmp_path / "file" / "data")):
            pass


async def test_a_closed_backend_is_unavailable(settings: Settings) -> None:
    async with open_backend(settings) as backend:
        pass
    with pytest.raises(Unavailable):
        await backend.blobs.get(NAME)
    with pytest.raises(Unavailable):
        await backend.records.ping()
    with pytest.raises(Unavailable):
        await backend.publisher.ping()


def test_each_list_of_records_searches_one_index_by_its_order() -> None:
    """Otherwise a page by a label would read all records for each one that it shows."""
    with closing(sqlite3.connect(":memory:")) as connection:
        for statement in records.SCHEMA.statements:
            connection.execute(statement)
        for text in (
            records._LIST_BY_AGE,
            records._LIST_BY_MODEL,
            records._LIST_BY_STATUS,
            records._LIST_BY_TERM,
        ):
            values = ["a"] * text.count("?")
            plan = connection.execute(f"EXPLAIN QUERY PLAN {text}", values).fetchall()
            steps = [step[3] for step in plan]
            assert "sort_key>? AND sort_key<?" in steps[0]
            assert all(step.endswith("(tenant=? AND sort_key=?)") for step in steps[1:]), steps
