"""`POST /api/v1/images/lookup`."""

from pathlib import Path
from typing import Any

import pytest

from core.bundles.bundle import read_bundle
from core.clock import utc_now
from core.domain.principals import Scope
from core.domain.records import PUBLIC_TENANT, RecordKey, complete, new_record
from tests.support.api import NOTHING, Api, api_settings, bearer, open_api
from tests.support.bundles import write_colour_bundle
from tests.support.pictures import picture, sha256
from tests.support.records import claimed

LOOKUP = "/api/v1/images/lookup"
IMAGES = [picture(n, size=(8, 8)) for n in range(6)]
HASHES = [sha256(image) for image in IMAGES]


async def lookup(api: Api, *hashes: str, **more: Any) -> dict[str, Any]:
    response = await api.client.post(LOOKUP, json={"image_hashes": hashes, **more})
    assert response.status_code == 200, response.text
    assert response.headers["cache-control"] == "no-store"
    found: dict[str, Any] = response.json()
    return found


async def test_known_and_missing_images(api: Api) -> None:
    queued, done, failed, retryable, stored, unknown = HASHES
    for image in IMAGES[:4]:
        await api.client.post("/api/v1/images", content=image)
    await api.finish_submissions()
    await api.succeed(done)
    await api.fail(failed, retryable=False)
    await api.fail(retryable, retryable=True)
    await api.services.backend.blobs.put(f"public/{stored}", IMAGES[4], "image/jpeg")
    assert await lookup(api, *HASHES) == {
        "known": {
            queued: {"status": "queued", "stored": True},
            done: {"status": "success", "stored": False},
            failed: {"status": "error", "stored": False},
            retryable: {"status": "error", "stored": True},
            stored: {"status": None, "stored": True},
        },
        "missing": [unknown],
    }


async def test_record_without_stored_bytes_is_missing(api: Api) -> None:
    """The upload that created the record may have been interrupted."""
    assert await api.records.create(new_record(api.key(HASHES[0]), utc_now()))
    assert (await lookup(api, HASHES[0]))["missing"] == [HASHES[0]]
    await api.client.post("/api/v1/images", content=IMAGES[1])
    await api.fail(HASHES[1], retryable=True)
    await api.services.backend.blobs.delete(f"public/{HASHES[1]}")
    assert (await lookup(api, HASHES[1]))["missing"] == [HASHES[1]]


async def test_result_counts_for_its_model_only(tmp_path: Path, colour_bundle: Path) -> None:
    other = write_colour_bundle(tmp_path / "other", name="other")
    settings = api_settings(tmp_path, colour_bundle, extra_model_uris=(str(other),))
    async with open_api(settings) as api:
        for model in ("other", read_bundle(other).identity):
            await check_models(api, model, read_bundle(other).identity)
            await api.client.delete(f"/api/v1/images/{HASHES[0]}")
            await api.client.delete(f"/api/v1/images/{HASHES[1]}")


async def check_models(api: Api, named: str, model: str) -> None:
    await api.client.post("/api/v1/images", content=IMAGES[0])
    await api.succeed(HASHES[0])
    found = await lookup(api, HASHES[0], model=named)
    assert found["known"] == {HASHES[0]: {"status": None, "stored": True}}
    key = RecordKey(PUBLIC_TENANT, HASHES[1], model)
    assert await api.records.create(new_record(key, utc_now()))
    claim = await claimed(api.records, key, api.settings.lease)
    assert claim is not None and await api.records.change(claim.key, complete(claim, []))
    assert (await lookup(api, HASHES[1]))["missing"] == [HASHES[1]]
    found = await lookup(api, HASHES[1], model=named)
    assert found["known"] == {HASHES[1]: {"status": "success", "stored": False}}


async def test_duplicates_are_answered_once_and_nothing_is_stored(api: Api) -> None:
    hashes = [f"{n:064x}" for n in range(500)]
    found = await lookup(api, *hashes, *hashes)
    assert found == {"known": {}, "missing": hashes}
    assert await lookup(api) == {"known": {}, "missing": []}
    assert api.traces() == NOTHING


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        (b"", 422, "invalid_request"),
        (b"{", 422, "invalid_request"),
        (b"[]", 422, "invalid_request"),
        (b'{"image_hashes": "x"}', 422, "invalid_request"),
        (b'{"image_hashes": ["x"]}', 422, "invalid_request"),
        (b'{"image_hashes": [1]}', 422, "invalid_request"),
        (b'{"image_hashes": [], "more": 1}', 422, "invalid_request"),
        (b'{"image_hashes": [], "model": "x"}', 422, "unknown_model"),
        (b'{"image_hashes": ["%b"], "model": "x"}' % HASHES[0].encode(), 422, "unknown_model"),
        (b'{"image_hashes": [], "model": 1}', 422, "invalid_request"),
        (b'{"image_hashes": [%b]}' % b",".join([b'"x"'] * 1001), 413, "batch_too_large"),
        (b" " * (128 * 1024 + 1), 413, "body_too_large"),
    ],
)
async def test_invalid_lookup_is_refused(api: Api, body: bytes, status: int, code: str) -> None:
    headers = {"Content-Type": "application/json"}
    response = await api.client.post(LOOKUP, content=body, headers=headers)
    assert response.status_code == status, response.text
    assert response.json().get("code", "") == code


async def test_lookup_requires_the_scope_read(tmp_path: Path, colour_bundle: Path) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle, api_keys="required")) as api:
        ada, bob = await api.issue("ada"), await api.issue("bob", Scope.READ)
        await api.client.post("/api/v1/images", content=IMAGES[0], headers=bearer(ada))
        body = {"image_hashes": [HASHES[0]]}
        for key, missing in ((ada, []), (bob, [HASHES[0]])):
            response = await api.client.post(LOOKUP, json=body, headers=bearer(key))
            assert response.json()["missing"] == missing
        other = await api.issue("ada", Scope.CLASSIFY, Scope.JOBS, Scope.ADMIN)
        response = await api.client.post(LOOKUP, json=body, headers=bearer(other))
        assert response.status_code == 403
