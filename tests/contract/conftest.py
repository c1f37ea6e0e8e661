"""Every backend in turn, empty and real. A new backend adds its name and its branch."""

import asyncio
import os
import secrets
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr

from core.backends import Access, Backend, open_access, open_backend
from core.settings import Settings
from tests.support.clock import MovableClock
from tests.support.plain_http import NO_TLS

# A real project to test as well; `docs/operations/google-cloud.md` has its requirements.
PROJECT = os.environ.get("GLIMPSE_TEST_GCP_PROJECT", "")
# `firestore`: the emulators, with that of Firestore instead of that of Datastore, and two named
# databases. Those of the Datastore emulator do not separate: a query finds the entities of all.
BACKENDS = ["embedded", "emulator", "firestore", *(["gcp"] if PROJECT else [])]
# For what both emulators do alike: blobs and messages.
WITHOUT_FIRESTORE = [name for name in BACKENDS if name != "firestore"]


@pytest.fixture
def clock() -> MovableClock:
    return MovableClock()


@pytest.fixture(params=BACKENDS)
def backend_name(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def settings(
    request: pytest.FixtureRequest,
    backend_name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Settings:
    if backend_name in ("emulator", "firestore"):
        namespace: Settings = request.getfixturevalue("emulator_settings")
        if backend_name == "emulator":
            return namespace
        wait_for_locks(monkeypatch)
        address = request.getfixturevalue("firestore_address")
        named = {"datastore_database": "records", "datastore_keys_database": "keys"}
        return namespace.model_copy(update={"datastore_emulator_host": address, **named})
    if backend_name == "gcp":
        prefix = f"test-{secrets.token_hex(6)}."
        monkeypatch.setattr("core.backends.google.NAMESPACE_PREFIX", prefix)
        return cloud_settings(tmp_path)
    return Settings(backend="embedded", data_dir=tmp_path / "data")


def wait_for_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Raise the timeout of transactions for Firestore's emulator.

    Two that meet there wait for two seconds, until one of them is aborted, and may meet again
    when that one comes back: by chance four times, and that is longer than a client's timeout.
    """
    from core.backends.google import datastore, jobs

    for module in (datastore, jobs):
        monkeypatch.setattr(module, "TRANSACTION_SECONDS", 60.0)


@pytest.fixture(scope="session")
def own_storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a storage emulator that no other process uses."""
    from tests.support.emulators import running_storage

    with running_storage(tmp_path_factory.mktemp("storage")) as url:
        yield url


@pytest.fixture
def emulator_settings(
    emulator_addresses: dict[str, str], own_storage: str, tmp_path: Path
) -> Iterator[Settings]:
    """Settings for one test. Afterwards, the storage is empty.

    For each upload and deletion, the emulator writes the metadata of all objects.
    """
    from tests.support.emulators import own_namespace

    namespace = own_namespace({**emulator_addresses, "STORAGE_EMULATOR_HOST": own_storage})
    values: dict[str, Any] = {name.lower(): value for name, value in namespace.items()}
    # No server listens there: the flow tests cover the delivery of messages.
    yield Settings(data_dir=tmp_path / "data", push_endpoint="http://127.0.0.1:9", **values)
    httpx.get(f"{own_storage}/wipe", timeout=60, verify=NO_TLS).raise_for_status()


def cloud_settings(tmp_path: Path) -> Settings:
    """A real project. Each test has separate namespaces; bucket and topics are shared."""
    return Settings(
        backend="gcp",
        data_dir=tmp_path / "data",
        google_cloud_project=PROJECT,
        bucket=os.environ.get("GLIMPSE_TEST_GCP_BUCKET", f"{PROJECT}-glimpse-test"),
        topic_prefix=os.environ.get("GLIMPSE_TEST_GCP_TOPIC_PREFIX", "glimpse-test"),
        datastore_database=os.environ.get("GLIMPSE_TEST_GCP_DATABASE", ""),
        datastore_keys_database=os.environ.get("GLIMPSE_TEST_GCP_KEYS_DATABASE", ""),
        key_secret=SecretStr(secrets.token_hex(32)),
        push_audience="unused",
        push_service_account="unused",
    )


@pytest.fixture
async def backend(settings: Settings, clock: MovableClock) -> AsyncIterator[Backend]:
    if settings.backend == "emulator":
        from core.backends.google.provision import provision

        await provision(settings, pushing=False)  # no server listens
    async with open_backend(settings, clock) as opened:
        yield opened
    if settings.backend == "gcp":
        await asyncio.to_thread(empty_bucket, settings)


@pytest.fixture
async def access(settings: Settings, clock: MovableClock) -> AsyncIterator[Access]:
    async with open_access(settings, clock) as opened:
        yield opened


def empty_bucket(settings: Settings) -> None:
    """Delete all blobs, so that tests do not affect each other: the bucket is for tests only."""
    from google.cloud import storage

    client = storage.Client(project=settings.google_cloud_project)
    for blob in client.list_blobs(settings.bucket):
        blob.delete()
    client.close()
