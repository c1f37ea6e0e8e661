"""The blob store against a Cloud Storage that refuses, hangs and damages bytes (P1, P8)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from google.auth.credentials import AnonymousCredentials
from google.cloud import storage

from core.backends.google import blobs
from core.backends.google.blobs import THREADS, CloudBlobStore
from core.backends.google.endpoints import authorized_session
from core.backends.google.signed_links import LocalLinks
from core.backends.links import LinkSigner
from core.clock import utc_now
from core.errors import NotFound, Unavailable
from tests.support.scripted_storage import ScriptedBucket, crc32c, scripted_bucket

NAME = f"public/{'a' * 64}"
DATA = b"an image" * 1000

Call = Callable[[CloudBlobStore], Awaitable[object]]
CALLS: dict[str, Call] = {
    "put": lambda store: store.put(f"public/{'b' * 64}", DATA, "image/jpeg"),
    "get": lambda store: store.get(NAME),
    "exists": lambda store: store.exists(NAME),
    "delete": lambda store: store.delete(NAME),
    "ping": lambda store: store.ping(),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


@pytest.fixture
async def bucket() -> AsyncIterator[ScriptedBucket]:
    async with scripted_bucket() as bucket:
        bucket.objects[NAME] = DATA
        yield bucket


@pytest.fixture
def deadline() -> float:
    """Seconds for each call, which a test may override by `parametrize`."""
    return blobs.DEADLINE


@pytest.fixture
async def store(
    bucket: ScriptedBucket, deadline: float, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[CloudBlobStore]:
    monkeypatch.setattr(blobs, "DEADLINE", deadline)
    client = storage.Client(
        project="demo",
        credentials=AnonymousCredentials(),
        client_options={"api_endpoint": bucket.url},
        _http=authorized_session(None, THREADS),
    )
    store = CloudBlobStore(client, "images", LocalLinks(LinkSigner(b"secret" * 6, ""), utc_now))
    yield store
    bucket.trickles = False
    bucket.answering.set()
    await store.close()


async def test_a_second_put_leaves_the_object_as_it_is(
    bucket: ScriptedBucket, store: CloudBlobStore
) -> None:
    """A rewrite needs permission to delete, and Cloud Storage limits it to one a second."""
    name = f"public/{'b' * 64}"
    await store.put(name, DATA, "image/jpeg")
    await store.put(name, DATA, "image/jpeg")
    assert len(bucket.uploads) == 2
    assert (bucket.objects[name], bucket.generations[name]) == (DATA, 1)


async def test_an_upload_carries_its_checksum(
    bucket: ScriptedBucket, store: CloudBlobStore
) -> None:
    await store.put(f"public/{'b' * 64}", DATA, "image/jpeg")
    (upload,) = bucket.uploads
    assert upload["crc32c"] == crc32c(DATA)
    assert upload["contentType"] == "image/jpeg"


async def test_bytes_damaged_on_the_way_are_refused(
    bucket: ScriptedBucket, store: CloudBlobStore
) -> None:
    bucket.damages = True
    with pytest.raises(Unavailable):
        await store.get(NAME)
    bucket.damages = False
    assert await store.get(NAME) == DATA


@each_call
@pytest.mark.parametrize("status", [429, 503])
async def test_a_passing_failure_is_retried(
    bucket: ScriptedBucket, store: CloudBlobStore, call: Call, status: int
) -> None:
    bucket.refusals.append(status)
    await call(store)
    assert len(bucket.requests) == 2


@each_call
async def test_a_lasting_failure_is_not_retried(
    bucket: ScriptedBucket, store: CloudBlobStore, call: Call
) -> None:
    bucket.refusals.append(403)
    with pytest.raises(Unavailable, match="image storage"):
        await call(store)
    assert len(bucket.requests) == 1


@each_call
@pytest.mark.parametrize("deadline", [60.0])
async def test_a_request_that_hangs_frees_its_thread(
    bucket: ScriptedBucket, store: CloudBlobStore, call: Call, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each request has a time limit. Otherwise a thread would wait for a minute."""
    monkeypatch.setattr(blobs, "TIMEOUT", (0.1, 0.1))
    monkeypatch.setattr(blobs, "RETRY", blobs.RETRY.with_timeout(0.1))
    bucket.answering.clear()
    async with asyncio.timeout(30):
        with pytest.raises(Unavailable):
            await call(store)


@pytest.mark.parametrize("deadline", [0.5])
async def test_a_caller_does_not_wait_for_a_free_thread_beyond_the_deadline(
    bucket: ScriptedBucket, store: CloudBlobStore
) -> None:
    """Storage that sends a byte at a time never reaches the limit for each request."""
    bucket.trickles = True
    async with asyncio.timeout(30):
        ended = await asyncio.gather(
            *(store.get(NAME) for _ in range(THREADS + 1)), return_exceptions=True
        )
    assert {type(each) for each in ended} == {Unavailable}


@pytest.mark.parametrize("deadline", [60.0])
async def test_refused_requests_free_their_threads_and_connections(
    bucket: ScriptedBucket, store: CloudBlobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Google's client keeps a refusal unread while it retries, and with it the connection."""
    monkeypatch.setattr(blobs, "RETRY", blobs.RETRY.with_delay(0.02, 0.1, 2.0).with_timeout(1.0))
    bucket.refusals.extend([503] * 10_000)
    async with asyncio.timeout(60):
        refused = await asyncio.gather(
            *(store.get(NAME) for _ in range(THREADS)), return_exceptions=True
        )
        assert {type(each) for each in refused} == {Unavailable}
        bucket.refusals.clear()
        assert await store.get(NAME) == DATA


async def test_a_missing_object_is_not_found(bucket: ScriptedBucket, store: CloudBlobStore) -> None:
    bucket.objects.clear()
    with pytest.raises(NotFound):
        await store.get(NAME)
    assert not await store.exists(NAME)
    assert not await store.delete(NAME)
