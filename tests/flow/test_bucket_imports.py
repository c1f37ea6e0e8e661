"""Jobs of images in a bucket: `gs_prefix`, on the storage emulator."""

import dataclasses
import json
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from core.backends import Backend, open_backend
from core.backends.google.provision import provision
from core.clock import Clock, utc_now
from core.domain.jobs import JobItem, JobKey
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.records import PUBLIC_TENANT
from core.errors import Unavailable
from core.ports import JobStore, ObjectSource, StoredObject
from core.settings import FORM_OVERHEAD, Settings
from tests.flow.test_batches import ended, results, stored_results
from tests.support.api import Api, api_settings, open_api
from tests.support.buckets import fill, remove
from tests.support.pictures import picture, png_header, sha256
from tests.support.problems import assert_problem
from tests.support.settings import isolated_settings
from tests.support.stack import Stack

CREATE = "/api/v1/jobs/batch-predict"
RED, BLUE, GREEN = (
    picture(n, colour, (16, 16))
    for n, colour in enumerate([(200, 30, 30), (30, 30, 200), (30, 200, 30)])
)
Opener = Callable[..., Any]


@pytest.fixture
def bucket() -> str:
    return f"imports-{secrets.token_hex(4)}"


@pytest.fixture
async def settings(
    tmp_path: Path, colour_bundle: Path, own_namespace: dict[str, str], bucket: str
) -> Settings:
    namespace = {name.lower(): value for name, value in own_namespace.items()}
    chosen = api_settings(tmp_path, colour_bundle, **namespace, import_buckets=bucket)
    # No service listens there. This test is not about messages.
    await provision(chosen, pushing=False)
    return chosen


@pytest.fixture
async def api(settings: Settings) -> AsyncIterator[Api]:
    async with open_api(settings) as opened:
        yield opened


async def ask(api: Api, prefix: str, key: str = "", **document: object) -> httpx.Response:
    headers = {"Idempotency-Key": key} if key else {}
    body = {"gs_prefix": prefix, **document}
    return await api.client.post(CREATE, json=body, headers=headers)


async def items(api: Api, answer: httpx.Response) -> list[JobItem]:
    assert answer.status_code == 202, answer.text
    key = JobKey(PUBLIC_TENANT, answer.json()["job_id"])
    return list(await api.services.backend.jobs.items(key, MAX_JOB_ITEMS))


# --- From bucket to result ------------------------------------------------------------------------


async def test_a_bucket_is_classified_once(
    tmp_path: Path, colour_bundle: Path, emulator_namespace: dict[str, str], bucket: str
) -> None:
    pictures = {f"2026/{n:02d}.jpg": picture(seed=n, size=(40, 40)) for n in range(20)}
    bad = {"2026/03.txt": b"no picture", "2026/05-cut.jpg": picture(99, size=(40, 40))[:-200]}
    stored = {**pictures, **bad, "2026/copy/1.jpg": pictures["2026/00.jpg"], "2025/x.jpg": RED}
    settings = isolated_settings(**{k.lower(): v for k, v in emulator_namespace.items()})
    await fill(settings, bucket, stored)
    names = sorted(name for name in stored if name.startswith("2026/"))
    with Stack(tmp_path, colour_bundle, **emulator_namespace, IMPORT_BUCKETS=bucket) as stack:
        answer = stack.api.post(CREATE, json={"gs_prefix": f"gs://{bucket}/2026/"})
        assert answer.status_code == 202, answer.text
        job = ended(stack, answer.json()["job_id"])
        assert (job["total"], job["succeeded"], job["failed"]) == (23, 21, 2)
        lines = results(stack, answer.json()["job_id"])
        assert [line["name"] for line in lines] == [name.removeprefix("2026/") for name in names]
        for name, line in zip(names, lines, strict=True):
            assert (line["status"] == "failed") == (name in bad)
            if name not in bad:
                assert line["image_hash"] == sha256(stored[name])
        inferences = stored_results(stack)
        assert max(inferences.values()) == 1
        again = stack.api.post(CREATE, json={"gs_prefix": f"gs://{bucket}/2026/"})
        assert ended(stack, again.json()["job_id"])["succeeded"] == 21
        assert stored_results(stack) == inferences


# --- Creation -------------------------------------------------------------------------------------


async def test_objects_are_as_good_as_uploads(api: Api, settings: Settings, bucket: str) -> None:
    huge = b"\x89PNG\r\n\x1a\n" + b"x" * settings.max_image_bytes
    bomb = png_header(60_000, 60_000)
    stored = {"1": RED, "2": b"text", "3": b"", "4": huge, "5": bomb, "6": RED, "7/a\nb.jpg": BLUE}
    await fill(settings, bucket, stored)
    found = await items(api, await ask(api, f"gs://{bucket}/"))
    assert [item.error.code if item.error else "" for item in found] == [
        *("", "unsupported_image", "invalid_image", "image_too_large", "invalid_image", "", "")
    ]
    assert [item.name for item in found] == ["1", "2", "3", "4", "5", "6", "7/a\ufffdb.jpg"]
    assert [item.image_hash for item in found][::5] == [sha256(RED), sha256(RED)]
    blobs = api.services.backend.blobs
    assert await blobs.get(f"{PUBLIC_TENANT}/{sha256(BLUE)}") == BLUE
    assert not await blobs.exists(f"{PUBLIC_TENANT}/{sha256(bomb)}")


async def test_names_begin_below_the_prefixs_folder(
    api: Api, settings: Settings, bucket: str
) -> None:
    await fill(settings, bucket, {"a/img-1.jpg": RED, "a/img-2/x.jpg": BLUE})
    found = await items(api, await ask(api, f"gs://{bucket}/a/img-"))
    assert [item.name for item in found] == ["img-1.jpg", "img-2/x.jpg"]
    (only,) = await items(api, await ask(api, f"gs://{bucket}/a/img-1.jpg"))
    assert only.name == "img-1.jpg"


async def test_a_form_may_bring_more(api: Api, settings: Settings, bucket: str) -> None:
    await fill(settings, bucket, {"a": RED, "b": BLUE})
    manifest = json.dumps({"gs_prefix": f"gs://{bucket}/"})
    upload: list[tuple[str, Any]] = [("imgs", ("0.jpg", GREEN)), ("imgs", ("1.jpg", BLUE))]
    answer = await api.client.post(CREATE, files=upload, data={"manifest": manifest})
    found = await items(api, answer)
    assert [item.name for item in found] == ["0.jpg", "1.jpg", "a", "b"]
    assert found[3].image_hash == found[1].image_hash


async def test_bucket_that_is_not_allowed_is_not_read(
    api: Api, settings: Settings, bucket: str
) -> None:
    """Neither another bucket that the account can read, nor the bucket of all images."""
    other = f"{bucket}-other"
    await fill(settings, other, {"a": RED})
    await api.services.backend.blobs.put(f"{PUBLIC_TENANT}/{sha256(RED)}", RED, "image/jpeg")
    for name in (other, settings.bucket):
        problem = assert_problem(await ask(api, f"gs://{name}/"), 422, "invalid_request")
        assert problem["field"] == "gs_prefix"
        assert "IMPORT_BUCKETS" in problem["detail"]


async def test_empty_prefix_is_refused_with_the_reason(
    api: Api, settings: Settings, bucket: str
) -> None:
    for _ in range(2):
        problem = assert_problem(await ask(api, f"gs://{bucket}/a"), 422, "invalid_request")
        assert problem["field"] == "gs_prefix"
        await fill(settings, bucket, {"b": RED, "a/": b""})


async def test_no_more_objects_than_a_batch_may_have(
    api: Api, settings: Settings, bucket: str
) -> None:
    """The emulator is slow for a thousand objects, so most items of this batch are hashes."""
    await fill(settings, bucket, {"1": RED, "2": BLUE, "3": GREEN})
    others = [f"{n:064x}" for n in range(MAX_JOB_ITEMS - 2)]
    answer = await ask(api, f"gs://{bucket}/", image_hashes=others)
    assert assert_problem(answer, 413, "batch_too_large")["max_items"] == MAX_JOB_ITEMS
    # The service did not read the object.
    assert not await api.services.backend.blobs.exists(f"public/{sha256(RED)}")


async def test_no_more_bytes_than_a_batch_may_have(settings: Settings, bucket: str) -> None:
    size = len(RED) + len(BLUE)
    await fill(settings, bucket, {"1": RED, "2": BLUE})
    for most, status in ((size - 1, 413), (size, 202)):
        changed = settings.model_copy(update={"max_batch_bytes": most})
        async with open_api(changed) as api:
            answer = await ask(api, f"gs://{bucket}/")
            assert answer.status_code == status, answer.text
            if status == 413:
                assert assert_problem(answer, 413, "batch_too_large")["max_bytes"] == most
                assert not await api.services.backend.blobs.exists(f"public/{sha256(RED)}")


async def test_room_for_one_image_is_enough(settings: Settings, bucket: str) -> None:
    """A batch alone never needs more memory than the limit, also with objects read ahead."""
    pictures = {f"{n:02d}": picture(n, size=(256, 256), format_="PNG") for n in range(12)}
    largest = max(len(data) for data in pictures.values())
    assert largest > FORM_OVERHEAD
    await fill(settings, bucket, pictures)
    tight = {"max_image_bytes": largest, "max_upload_bytes_in_flight": largest + FORM_OVERHEAD}
    async with open_api(settings.model_copy(update=tight)) as api:
        found = await items(api, await ask(api, f"gs://{bucket}/"))
        assert [item.image_hash for item in found] == [sha256(data) for data in pictures.values()]
        assert api.services.uploads.bytes_reserved == 0


# --- Objects that change --------------------------------------------------------------------------


class Meddled:
    """Objects of which some change after the listing."""

    def __init__(self, real: ObjectSource, before_reading: Callable[[], Awaitable[None]]) -> None:
        self._real = real
        self._before_reading = before_reading

    async def list(self, bucket: str, prefix: str, limit: int) -> list[StoredObject]:
        found = list(await self._real.list(bucket, prefix, limit))
        await self._before_reading()
        return found

    async def read(self, bucket: str, name: str, max_bytes: int) -> bytes:
        return await self._real.read(bucket, name, max_bytes)


def meddling(before_reading: Callable[[], Awaitable[None]]) -> Opener:
    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            assert backend.objects is not None
            objects = Meddled(backend.objects, before_reading)
            yield dataclasses.replace(backend, objects=objects)

    return opener


async def test_object_that_changes_during_the_import_fails_alone(
    settings: Settings, bucket: str
) -> None:
    small = png_header(16, 16)
    await fill(settings, bucket, {"gone": RED, "grown": small, "shrunk": BLUE, "stays": GREEN})

    async def change() -> None:
        await remove(settings, bucket, "gone")
        await fill(settings, bucket, {"grown": small + b"x", "shrunk": small})

    async with open_api(settings, opener=meddling(change)) as api:
        found = await items(api, await ask(api, f"gs://{bucket}/"))
        codes = [item.error.code if item.error else "" for item in found]
        assert codes == ["not_found", "conflict", "", ""]
        assert found[2].image_hash == sha256(small)
        assert api.services.uploads.bytes_reserved == 0


# --- Repeated creation ----------------------------------------------------------------------------


async def test_idempotency_key_returns_the_job_after_the_bucket_changed(
    api: Api, settings: Settings, bucket: str
) -> None:
    await fill(settings, bucket, {"a/1": RED})
    first = await ask(api, f"gs://{bucket}/a", "key")
    await remove(settings, bucket, "a/1")
    again = await ask(api, f"gs://{bucket}/a", "key")
    assert (again.status_code, again.json()) == (202, first.json())
    await fill(settings, bucket, {"a/1": GREEN, "a/2": BLUE})
    again = await ask(api, f"gs://{bucket}/a", "key")
    assert (again.status_code, again.json()) == (202, first.json())
    (item,) = await items(api, again)
    assert item.image_hash == sha256(RED)
    for other in (f"gs://{bucket}/a/", f"gs://{bucket}/"):
        assert_problem(await ask(api, other, "key"), 422, "idempotency_key_reused")
    assert_problem(
        await ask(api, f"gs://{bucket}/a", "key", priority="low"), 422, "idempotency_key_reused"
    )


@pytest.mark.parametrize("changed", [False, True], ids=["unchanged", "changed"])
async def test_interrupted_creation_continues_with_its_first_listing(
    settings: Settings, bucket: str, changed: bool
) -> None:
    """A job must not contain items of two states of a bucket."""
    await fill(settings, bucket, {"1": RED, "3": GREEN})
    plan = {"fails": True}

    class Breaking:
        def __init__(self, real: JobStore) -> None:
            self._real = real

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

        async def add_items(self, *arguments: Any) -> None:
            await self._real.add_items(*arguments)
            if plan.pop("fails", False):
                raise Unavailable("It broke off.")

    @asynccontextmanager
    async def opener(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
        async with open_backend(settings, clock) as backend:
            yield dataclasses.replace(backend, jobs=Breaking(backend.jobs))

    async with open_api(settings, opener=opener) as api:
        assert (await ask(api, f"gs://{bucket}/", "key")).status_code == 503
        if changed:
            await fill(settings, bucket, {"2": BLUE})
            assert_problem(await ask(api, f"gs://{bucket}/", "key"), 422, "idempotency_key_reused")
            return
        found = await items(api, await ask(api, f"gs://{bucket}/", "key"))
        assert [item.image_hash for item in found] == [sha256(RED), sha256(GREEN)]
