"""Tenant isolation: no route shows or changes anything of another tenant."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest

from app.keys.service import Issued
from core.clock import utc_now
from core.domain.dead_letters import DeadLetter, letter_id, tenant_of
from core.domain.messages import ClassifyImage
from core.domain.principals import Scope
from core.domain.records import RecordKey, Status
from core.domain.trained_models import ModelKey, ModelVersion, add_version, new_model
from core.domain.webhooks import WebhookKey
from tests.support.api import LABELS, Api, api_settings, bearer, open_api, routes_of
from tests.support.batches import archive
from tests.support.jobs import complete_item, running_job
from tests.support.pictures import picture, sha256

IMAGE = picture()
HASH = sha256(IMAGE)
UNKNOWN = "0" * 64
V1, LETTERS, JOBS = "/api/v1/images", "/api/v1/dead-letters", "/api/v1/jobs"
HOOKS = "/api/v1/webhooks"


@dataclass
class World:
    """Ada's tenant has an image with a cached result, a dead letter and a key.

    Bob's has a key.
    """

    api: Api
    ada: Issued
    bob: Issued
    letter: DeadLetter

    async def ask(self, who: Issued, method: str, path: str, **options: Any) -> httpx.Response:
        headers = {**bearer(who), **options.pop("headers", {})}
        return await self.api.client.request(method, path, headers=headers, **options)

    async def same_refusal(
        self, method: str, theirs: str, unknown: str, **options: Any
    ) -> httpx.Response:
        """Check that Bob gets the same response for Ada's object as for one that does not exist."""
        answers = [await self.ask(self.bob, method, path, **options) for path in (theirs, unknown)]
        for answer in answers:
            assert answer.status_code == 404, answer.text
        assert answers[0].content == answers[1].content
        assert comparable(answers[0].headers) == comparable(answers[1].headers)
        assert (await self.ask(self.ada, "GET", f"{V1}/{HASH}")).status_code == 200
        return answers[0]


def comparable(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name != "ratelimit"}


@pytest.fixture
async def world(
    tmp_path: Path, colour_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("app.images.what_routes.SLOW_WAIT_SECONDS", 0.05)
    settings = api_settings(tmp_path, colour_bundle, api_keys="required")
    async with open_api(settings) as api:
        letter = letter_about(api.key(UNKNOWN, "ada"))
        assert await api.services.backend.dead_letters.add(letter)
        there = World(api, await api.issue("ada"), await api.issue("bob"), letter)
        assert (await there.ask(there.ada, "POST", V1, content=IMAGE)).status_code == 202
        await api.finish_submissions()
        await api.succeed(HASH, "ada")
        assert (await there.ask(there.ada, "GET", f"{V1}/{HASH}")).status_code == 200
        yield there


def letter_about(key: RecordKey) -> DeadLetter:
    attributes = ClassifyImage(key).attributes()
    return DeadLetter(
        id=letter_id(attributes, b"", "1"),
        tenant=tenant_of(attributes),
        attributes=attributes,
        payload=b"",
        payload_size=0,
        attempts=10,
        code="inference_failed",
        detail="The model failed.",
        published_at=utc_now(),
        died_at=utc_now(),
    )


async def uploads_are_separate(
    world: World, path: str, *, method: str = "POST", **options: Any
) -> None:
    """Bob's upload of an image that Ada has is stored and classified again."""
    answer = await world.ask(world.bob, method, path, **options)
    assert answer.status_code == 202
    assert answer.json()["annotations"] == []
    assert world.api.traces().messages == 2
    await world.api.finish_submissions()
    mine = await world.api.records.get(world.api.key(HASH, "bob"))
    adas = await world.api.records.get(world.api.key(HASH, "ada"))
    assert mine is not None and mine.status is Status.QUEUED
    assert adas is not None and adas.annotations == LABELS
    blobs = world.api.services.backend.blobs
    assert await blobs.get(f"bob/{HASH}") == await blobs.get(f"ada/{HASH}") == IMAGE


def form() -> dict[str, Any]:
    return {"files": {"img": ("cat.jpg", IMAGE)}}


async def images_by_url(world: World) -> None:
    """The bytes are stored as those of an upload. A URL that is refused stores nothing."""
    before = world.api.traces()
    body = {"url": f"https://127.0.0.1{V1}/{HASH}/content"}
    answer = await world.ask(world.bob, "POST", f"{V1}/from-url", json=body)
    assert (answer.status_code, answer.json()["code"]) == (422, "private_address")
    assert world.api.traces() == before


async def results(world: World, method: str, path: str) -> None:
    await world.same_refusal(method, path.format(HASH), path.format(UNKNOWN))


async def reading(world: World, method: str) -> None:
    """The cache and entity tags reveal nothing."""
    etag = (await world.ask(world.ada, "GET", f"{V1}/{HASH}")).headers["etag"]
    for headers in ({}, {"If-None-Match": etag}, {"If-None-Match": "*"}, {"Prefer": "wait=1"}):
        await world.same_refusal(method, f"{V1}/{HASH}", f"{V1}/{UNKNOWN}", headers=headers)
    model = f"?model={world.api.services.model}"
    await world.same_refusal(method, f"{V1}/{HASH}{model}", f"{V1}/{UNKNOWN}{model}")


async def classifying(world: World) -> None:
    """Bob cannot use Ada's image by its hash."""
    await world.same_refusal("POST", f"{V1}/{HASH}/classify", f"{V1}/{UNKNOWN}/classify")
    assert world.api.traces().messages == 1


async def deleting(world: World) -> None:
    await world.same_refusal("DELETE", f"{V1}/{HASH}", f"{V1}/{UNKNOWN}")
    assert await world.api.services.backend.blobs.exists(f"ada/{HASH}")


async def listing_keys(world: World) -> None:
    answer = await world.ask(world.bob, "GET", "/api/v1/keys")
    assert [key["id"] for key in answer.json()["keys"]] == [world.bob.key.id]


async def making_keys(world: World) -> None:
    """An administrator creates keys of its own tenant only, whatever the body contains."""
    path, body = "/api/v1/keys", {"name": "mine", "scopes": ["read"]}
    answer = await world.ask(world.bob, "POST", path, json={**body, "tenant": "ada"})
    assert answer.status_code == 422
    answer = await world.ask(world.bob, "POST", path, json=body)
    assert answer.status_code == 201
    assert answer.json()["tenant"] == "bob"
    headers = {"X-API-Key": answer.json()["key"]}
    assert (await world.api.client.get(f"{V1}/{HASH}", headers=headers)).status_code == 404


async def others_keys(world: World, method: str, path: str) -> None:
    await world.same_refusal(method, path.format(world.ada.key.id), path.format("0" * 12))
    assert await world.api.authenticator.access.keys.get(world.ada.key.id) == world.ada.key


async def models(world: World, path: str) -> None:
    """Bundles belong to no tenant: both see the same."""
    answers = [await world.ask(key, "GET", path) for key in (world.ada, world.bob)]
    assert [each.status_code for each in answers] == [200, 200]
    assert answers[0].json() == answers[1].json()


async def ada_trains(world: World) -> ModelKey:
    """Ada's tenant has a trained model. Only its entry is needed here."""
    key, store = ModelKey("ada", "moods"), world.api.services.backend.models
    now = utc_now()
    await store.create(new_model(key, now))
    identity, base = "moods@0123456789ab", world.api.services.model
    version = ModelVersion(identity, "a" * 32, base, now, 10, 2, 0.9, (0.8, 1.0), 0.9)
    assert await store.change(key, add_version(version, activate=True))
    return key


async def trained_models(world: World, method: str, path: str, **options: Any) -> None:
    key = await ada_trains(world)
    before = await world.api.services.backend.models.get(key)
    theirs, unknown = f"/api/v1/models/moods{path}", f"/api/v1/models/other{path}"
    await world.same_refusal(method, theirs, unknown, **options)
    assert await world.api.services.backend.models.get(key) == before


async def making_trainings(world: World, path: str) -> None:
    """The job, its model and its base are the caller's own; Ada's model is no base for Bob."""
    await ada_trains(world)
    examples = [{"image_hash": f"{n:064x}", "label": f"{n % 2}"} for n in range(10)]
    body = {"name": "moods", "examples": examples}
    answer = await world.ask(world.bob, "POST", JOBS + path, json={**body, "base": "moods"})
    assert answer.json()["code"] == "unknown_model"
    answer = await world.ask(world.bob, "POST", JOBS + path, json=body)
    assert answer.status_code == 202
    job = f"{JOBS}/{answer.json()['job_id']}"
    assert (await world.ask(world.ada, "GET", job)).status_code == 404
    assert await world.api.services.backend.models.bases("ada") == []


async def refusing_trainings(world: World) -> None:
    """The images of a refused zip are stored for the caller only."""
    data = picture(4711)
    headers = {"Content-Type": "application/zip"}
    content = archive({"red/1.jpg": data})
    answer = await world.ask(
        world.bob, "POST", f"{JOBS}/train-model/zip?name=x", content=content, headers=headers
    )
    assert answer.status_code == 422
    blobs = world.api.services.backend.blobs
    assert await blobs.exists(f"bob/{sha256(data)}")
    assert not await blobs.exists(f"ada/{sha256(data)}")


async def usage(world: World) -> None:
    for whose in ("own", "all"):
        answer = await world.ask(world.bob, "GET", f"/api/v1/usage?keys={whose}")
        assert answer.json()["tenant"] == "bob"
        assert {row["key_id"] for row in answer.json()["usage"]} == {world.bob.key.id}


async def listing_letters(world: World) -> None:
    """Bob also sends a cursor of Ada's list."""
    listed = (await world.ask(world.ada, "GET", LETTERS + "?limit=1")).json()
    assert [letter["id"] for letter in listed["dead_letters"]] == [world.letter.id]
    for query in ("", "?resolved=true", f"?cursor={listed['next_cursor']}"):
        answer = await world.ask(world.bob, "GET", LETTERS + query)
        assert answer.json() == {"dead_letters": [], "next_cursor": None}


async def replaying_letters(world: World) -> None:
    answer = await world.ask(world.bob, "POST", f"{LETTERS}/replay")
    assert answer.json()["replayed"] == answer.json()["resolved"] == 0
    await letter_is_untouched(world)


async def others_letters(world: World, method: str, path: str) -> None:
    await world.same_refusal(method, path.format(world.letter.id), path.format("ab" * 16))
    await letter_is_untouched(world)


async def letter_is_untouched(world: World) -> None:
    kept = await world.api.services.backend.dead_letters.get(world.letter.key)
    assert kept is not None and kept.resolved_at is None


async def adas_job(world: World) -> str:
    batch = {"image_hashes": [HASH]}
    answer = await world.ask(world.ada, "POST", f"{JOBS}/batch-predict", json=batch)
    assert answer.status_code == 202
    job_id: str = answer.json()["job_id"]
    return job_id


async def making_jobs(world: World, path: str) -> None:
    """Bob cannot use Ada's image by its hash, nor her Idempotency-Key."""
    made = []
    for who in (world.ada, world.bob):
        answer = await world.ask(
            who,
            "POST",
            JOBS + path,
            json={"image_hashes": [HASH]},
            headers={"Idempotency-Key": "same"},
        )
        assert answer.status_code == 202
        made.append(answer.json()["job_id"])
    assert made[0] != made[1]
    answer = await world.ask(world.bob, "GET", f"{JOBS}/{made[1]}/results")
    assert answer.json()["results"][0]["error"]["code"] == "not_uploaded"


async def making_zip_jobs(world: World) -> None:
    """The images of a zip are stored for its sender only."""
    body = archive({"cat.jpg": IMAGE})
    headers = {"Content-Type": "application/zip"}
    path = f"{JOBS}/batch-predict/zip"
    answer = await world.ask(world.bob, "POST", path, content=body, headers=headers)
    assert answer.status_code == 202
    answer = await world.ask(world.bob, "GET", f"{JOBS}/{answer.json()['job_id']}/results")
    assert answer.json()["results"][0]["status"] == "pending"
    assert await world.api.services.backend.blobs.exists(f"bob/{HASH}")
    await world.same_refusal(
        "GET", f"{JOBS}/{await adas_job(world)}/results", f"{JOBS}/{'ab' * 16}/results"
    )


async def listing_jobs(world: World) -> None:
    """Bob also sends a cursor of Ada's list."""
    job_id = await adas_job(world)
    listed = (await world.ask(world.ada, "GET", f"{JOBS}?limit=1")).json()
    assert [job["job_id"] for job in listed["jobs"]] == [job_id]
    for query in ("", "?status=pending", f"?cursor={listed['next_cursor']}"):
        answer = await world.ask(world.bob, "GET", JOBS + query)
        assert answer.json() == {"jobs": [], "next_cursor": None}


async def others_jobs(world: World, method: str, path: str) -> None:
    job_id = await adas_job(world)
    await world.same_refusal(method, path.format(job_id), path.format("ab" * 16))
    answer = await world.ask(world.ada, "GET", f"{JOBS}/{job_id}")
    assert answer.json()["status"] == "pending"


async def looking_up(world: World) -> None:
    """An image that only Ada has is missing for Bob."""
    for who, missing in ((world.ada, []), (world.bob, [HASH])):
        answer = await world.ask(who, "POST", f"{V1}/lookup", json={"image_hashes": [HASH]})
        assert answer.json()["missing"] == missing


async def listing_images(world: World) -> None:
    listed = (await world.ask(world.ada, "GET", f"{V1}?limit=1")).json()
    assert [image["image_hash"] for image in listed["images"]] == [HASH]
    label = listed["images"][0]["annotations"][0]["label"]
    for query in ("", "?status=success", f"?label={label}", f"?cursor={listed['next_cursor']}"):
        answer = await world.ask(world.bob, "GET", V1 + query)
        assert answer.json() == {"images": [], "next_cursor": None}


async def others_job_streams(world: World, path: str) -> None:
    backend, owner = world.api.services.backend, world.ada.key.id
    key = await running_job(backend, 1, tenant="ada", owner=owner)
    await complete_item(backend, key, 0)
    await world.same_refusal("GET", path.format(key.id), path.format("ab" * 16))
    assert b"complete" in (await world.ask(world.ada, "GET", path.format(key.id))).content


async def adas_webhook(world: World) -> str:
    """Create a webhook, and return its id. Its URL has an address: no name server is needed."""
    body = {"url": "https://93.184.215.14/"}
    answer = await world.ask(world.ada, "POST", HOOKS, json=body)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["id"])


async def listing_webhooks(world: World) -> None:
    await adas_webhook(world)
    assert (await world.ask(world.bob, "GET", HOOKS)).json() == {"webhooks": []}


async def making_webhooks(world: World) -> None:
    """Bob creates webhooks of his own tenant only, and Ada's do not count toward his limit."""
    theirs = await adas_webhook(world)
    body = {"url": "https://93.184.215.14/"}
    answer = await world.ask(world.bob, "POST", HOOKS, json={**body, "tenant": "ada"})
    assert answer.status_code == 422
    assert (await world.ask(world.bob, "POST", HOOKS, json=body)).status_code == 201
    listed = (await world.ask(world.ada, "GET", HOOKS)).json()["webhooks"]
    assert [each["id"] for each in listed] == [theirs]


async def others_webhooks(world: World, method: str, path: str, **options: Any) -> None:
    theirs = await adas_webhook(world)
    before = await world.api.services.backend.webhooks.get(WebhookKey("ada", theirs))
    nobodys = path.format("wh_" + "0" * 24)
    await world.same_refusal(method, path.format(theirs), nobodys, **options)
    assert await world.api.services.backend.webhooks.get(WebhookKey("ada", theirs)) == before


async def thumbnails(world: World, method: str) -> None:
    await world.api.services.backend.blobs.put(f"ada/thumbnails/{HASH}", b"RIFF", "image/webp")
    assert (await world.ask(world.ada, method, f"{V1}/{HASH}/thumbnail")).status_code == 200
    path = V1 + "/{}/thumbnail"
    await world.same_refusal(method, path.format(HASH), path.format(UNKNOWN))


async def tickets(world: World) -> None:
    """A ticket of Bob's for the stream of Ada's image opens nothing."""
    path = f"{V1}/{HASH}/stream"
    for who, status in ((world.ada, 200), (world.bob, 404)):
        made = await world.ask(who, "POST", "/api/v1/tickets", json={"path": path})
        assert (await world.api.client.get(made.json()["url"])).status_code == status


async def metrics(world: World) -> None:
    """Metrics are of the whole service and contain nothing of a tenant."""
    answer = await world.ask(world.bob, "GET", "/metrics")
    assert answer.status_code == 200
    assert "glimpse_" in answer.text
    for mark in ("ada", world.ada.key.id, HASH):
        assert mark not in answer.text


# Each route that requires a key, with its test. A new route fails the test below until it is here.
CASES: dict[tuple[str, str], Callable[[World], Awaitable[None]]] = {
    ("POST", V1): lambda w: uploads_are_separate(w, V1, content=IMAGE),
    ("POST", V1 + "/from-url"): images_by_url,
    ("POST", "/what/fast"): lambda w: uploads_are_separate(w, "/what/fast", **form()),
    ("POST", "/what/slow"): lambda w: uploads_are_separate(w, "/what/slow", **form()),
    ("GET", "/what/status/{image_hash}"): lambda w: results(w, "GET", "/what/status/{}"),
    ("HEAD", "/what/status/{image_hash}"): lambda w: results(w, "HEAD", "/what/status/{}"),
    ("PUT", V1 + "/{image_hash}"): lambda w: uploads_are_separate(
        w, f"{V1}/{HASH}", method="PUT", content=IMAGE
    ),
    ("GET", V1 + "/{image_hash}"): lambda w: reading(w, "GET"),
    ("HEAD", V1 + "/{image_hash}"): lambda w: reading(w, "HEAD"),
    ("DELETE", V1 + "/{image_hash}"): deleting,
    ("GET", V1 + "/{image_hash}/stream"): lambda w: results(w, "GET", V1 + "/{}/stream"),
    ("POST", V1 + "/{image_hash}/classify"): classifying,
    ("GET", V1 + "/{image_hash}/content"): lambda w: results(w, "GET", V1 + "/{}/content"),
    ("HEAD", V1 + "/{image_hash}/content"): lambda w: results(w, "HEAD", V1 + "/{}/content"),
    ("GET", V1): listing_images,
    ("GET", V1 + "/{image_hash}/thumbnail"): lambda w: thumbnails(w, "GET"),
    ("HEAD", V1 + "/{image_hash}/thumbnail"): lambda w: thumbnails(w, "HEAD"),
    ("POST", V1 + "/lookup"): looking_up,
    ("POST", JOBS + "/train-model"): lambda w: making_trainings(w, "/train-model"),
    ("POST", JOBS + "/train-model/zip"): refusing_trainings,
    ("DELETE", "/api/v1/models/{model_id}"): lambda w: trained_models(w, "DELETE", ""),
    ("POST", "/api/v1/models/{model_id}/activate"): lambda w: trained_models(
        w, "POST", "/activate", json={"version": "moods@0123456789ab"}
    ),
    ("POST", "/api/v1/models/{model_id}/corrections"): lambda w: trained_models(
        w, "POST", "/corrections", json={"corrections": [{"image_hash": HASH, "label": "owl"}]}
    ),
    ("POST", JOBS + "/batch-predict"): lambda w: making_jobs(w, "/batch-predict"),
    ("POST", JOBS + "/batch-predict/hashes"): lambda w: making_jobs(w, "/batch-predict/hashes"),
    ("POST", JOBS + "/batch-predict/zip"): making_zip_jobs,
    ("GET", JOBS): listing_jobs,
    ("GET", JOBS + "/{job_id}"): lambda w: others_jobs(w, "GET", JOBS + "/{}"),
    ("DELETE", JOBS + "/{job_id}"): lambda w: others_jobs(w, "DELETE", JOBS + "/{}"),
    ("POST", JOBS + "/{job_id}/retry"): lambda w: others_jobs(w, "POST", JOBS + "/{}/retry"),
    ("GET", JOBS + "/{job_id}/results/csv"): lambda w: others_jobs(
        w, "GET", JOBS + "/{}/results/csv"
    ),
    ("GET", JOBS + "/{job_id}/results/ndjson"): lambda w: others_jobs(
        w, "GET", JOBS + "/{}/results/ndjson"
    ),
    ("GET", JOBS + "/{job_id}/results"): lambda w: others_jobs(w, "GET", JOBS + "/{}/results"),
    ("GET", "/api/v1/keys"): listing_keys,
    ("POST", "/api/v1/keys"): making_keys,
    ("DELETE", "/api/v1/keys/{key_id}"): lambda w: others_keys(w, "DELETE", "/api/v1/keys/{}"),
    ("POST", "/api/v1/keys/{key_id}/rotate"): lambda w: others_keys(
        w, "POST", "/api/v1/keys/{}/rotate"
    ),
    ("GET", "/api/v1/models"): lambda w: models(w, "/api/v1/models"),
    ("GET", "/api/v1/models/{model_id}"): lambda w: models(
        w, f"/api/v1/models/{w.api.services.model}"
    ),
    ("GET", "/api/v1/usage"): usage,
    ("GET", "/metrics"): metrics,
    ("POST", "/api/v1/tickets"): tickets,
    ("GET", JOBS + "/{job_id}/stream"): lambda w: others_job_streams(w, JOBS + "/{}/stream"),
    ("GET", HOOKS): listing_webhooks,
    ("POST", HOOKS): making_webhooks,
    ("PATCH", HOOKS + "/{webhook_id}"): lambda w: others_webhooks(
        w, "PATCH", HOOKS + "/{}", json={"enabled": False}
    ),
    **{
        (method, HOOKS + path.replace("{}", "{webhook_id}")): partial(
            others_webhooks, method=method, path=HOOKS + path
        )
        for method, path in (
            ("GET", "/{}"),
            ("DELETE", "/{}"),
            *(("POST", f"/{{}}/{what}") for what in ("rotate", "test", "enable")),
        )
    },
    ("GET", LETTERS): listing_letters,
    ("POST", LETTERS + "/replay"): replaying_letters,
    ("GET", LETTERS + "/{id}"): lambda w: others_letters(w, "GET", LETTERS + "/{}"),
    ("DELETE", LETTERS + "/{id}"): lambda w: others_letters(w, "DELETE", LETTERS + "/{}"),
    ("POST", LETTERS + "/{id}/replay"): lambda w: others_letters(w, "POST", LETTERS + "/{}/replay"),
}


async def test_every_route_that_requires_a_key_has_a_case(world: World) -> None:
    guarded = {(m, path) for m, path, access in routes_of(world.api.app) if access in list(Scope)}
    assert guarded == set(CASES), "say in CASES how a new route keeps tenants apart"


@pytest.mark.parametrize("route", CASES, ids=" ".join)
async def test_tenants_are_isolated(world: World, route: tuple[str, str]) -> None:
    await CASES[route](world)


async def test_signed_link_is_valid_for_one_tenant(world: World) -> None:
    answer = await world.ask(world.ada, "GET", f"{V1}/{HASH}/content")
    link = answer.headers["location"]
    assert f"/ada/{HASH}?" in link
    assert (await world.api.client.get(link)).content == IMAGE  # the link needs no key
    await world.api.services.backend.blobs.put(f"bob/{HASH}", IMAGE, "image/jpeg")
    moved = await world.api.client.get(link.replace("/ada/", "/bob/"))
    assert moved.status_code == 403


async def test_shared_caches_may_not_store_results_of_a_tenant(world: World) -> None:
    """A CDN would serve them to other tenants."""
    path = f"{V1}/{HASH}"
    fresh = await world.ask(world.ada, "GET", path)
    same = await world.ask(world.ada, "GET", path, headers={"If-None-Match": fresh.headers["etag"]})
    assert (fresh.status_code, same.status_code) == (200, 304)
    for answer in (fresh, same):
        assert answer.headers["cache-control"] == "private, max-age=3600, immutable"
        assert answer.headers["vary"] == "Authorization, X-API-Key"
    refused = await world.api.client.get(path)
    assert refused.status_code == 401
    assert refused.headers["cache-control"] == "no-store"


async def test_shared_caches_may_store_results_without_keys(
    tmp_path: Path, colour_bundle: Path
) -> None:
    async with open_api(api_settings(tmp_path, colour_bundle)) as api:
        await api.client.post(V1, content=IMAGE)
        await api.finish_submissions()
        await api.succeed(HASH)
        answer = await api.client.get(f"{V1}/{HASH}")
        assert answer.headers["cache-control"] == "public, max-age=3600, immutable"
        assert "vary" not in answer.headers
