"""`/api/v1/dead-letters`: pages, filters, replays and deletions (P4, P7)."""

import base64
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from core.domain.dead_letters import DeadLetter, letter_id, resolve
from core.domain.messages import ClassifyImage
from core.domain.records import RecordError, Status, fail_unleased, retry
from tests.support.api import Api
from tests.support.pictures import picture, sha256
from tests.support.records import claimed, delete_image

URL = "/api/v1/dead-letters"
UNKNOWN = "ab" * 16
DIED = datetime(2026, 11, 21, 9, 30, 0, 125_000, tzinfo=UTC)


async def letter_in(api: Api, number: int = 1, **changes: object) -> DeadLetter:
    """Add a dead letter about an unknown image, `number` seconds after DIED."""
    key = api.key(f"{number:064x}")
    attributes = ClassifyImage(key).attributes()
    letter = DeadLetter(
        id=UNKNOWN,
        tenant="public",
        attributes=attributes,
        payload=b"\x00\xff",
        payload_size=2,
        attempts=10,
        code="inference_failed",
        detail="The model failed.",
        published_at=DIED - timedelta(hours=1),
        died_at=DIED + timedelta(seconds=number),
    )
    letter = replace(letter, **changes)  # type: ignore[arg-type]
    letter = replace(letter, id=letter_id(letter.attributes, b"", str(number)))
    assert await api.services.backend.dead_letters.add(letter)
    return letter


async def failed_upload(api: Api, *, retryable: bool = True) -> DeadLetter:
    """Upload an image, and add a dead letter of its message."""
    image = picture()
    assert (await api.client.post("/what/fast", files={"img": image})).status_code == 202
    await api.finish_submissions()
    key = api.key(sha256(image))
    died = api.services.clock() + timedelta(milliseconds=1)
    letter = await letter_in(api, attributes=ClassifyImage(key).attributes(), died_at=died)
    assert await api.records.change(
        key, fail_unleased(RecordError("delivery_exhausted", "No.", retryable))
    )
    return letter


async def test_dead_letter_is_shown_with_all_fields(api: Api) -> None:
    letter = await letter_in(api)
    shown = {
        "id": letter.id,
        "image_hash": f"{1:064x}",
        "model": api.services.model,
        "attributes": letter.attributes,
        "payload_bytes": 2,
        "attempts": 10,
        "error": {"code": "inference_failed", "detail": "The model failed."},
        "published_at": "2026-11-21T08:30:00.125Z",
        "dead_lettered_at": "2026-11-21T09:30:01.125Z",
        "resolved_at": None,
    }
    answer = await api.client.get(URL)
    assert answer.json() == {"dead_letters": [shown], "next_cursor": None}
    assert answer.headers["cache-control"] == "no-store"
    one = await api.client.get(f"{URL}/{letter.id}")
    assert one.json() == shown | {"payload": base64.b64encode(b"\x00\xff").decode()}


async def test_list_is_paged_by_cursor(api: Api) -> None:
    made = [await letter_in(api, number) for number in range(7)]
    seen: list[str] = []
    cursor, pages = "", 0
    while True:
        query = {"limit": "3", **({"cursor": cursor} if cursor else {})}
        page = (await api.client.get(URL, params=query)).json()
        seen += [each["id"] for each in page["dead_letters"]]
        pages += 1
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert seen == [letter.id for letter in reversed(made)]
    assert pages == 3


async def test_filters_select_dead_letters(api: Api) -> None:
    old, young = await letter_in(api, 1), await letter_in(api, 2, code="unavailable")

    async def listed(**query: str) -> list[str]:
        answer = await api.client.get(URL, params=query)
        assert answer.status_code == 200, answer.text
        return [each["id"] for each in answer.json()["dead_letters"]]

    assert await listed() == [young.id, old.id]
    assert await listed(code="unavailable") == [young.id]
    assert await listed(since="2026-11-21T09:30:02Z") == [young.id]
    assert await listed(before="2026-11-21T09:30:02Z") == [old.id]
    assert await listed(before="2026-11-21T10:30:02+01:00") == [old.id]
    await api.services.backend.dead_letters.change(old.key, resolve())
    assert await listed() == [young.id]
    assert await listed(resolved="true") == [young.id, old.id]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("limit", "0"),
        ("limit", "201"),
        ("limit", "-1"),
        ("limit", "1000000000000000000000"),
        ("limit", "0000000011000"),
        ("limit", "²"),
        ("limit", "many"),
        ("code", "No!"),
        ("code", "a" * 65),
        ("cursor", "nonsense"),
        ("cursor", "é"),
        ("cursor", base64.urlsafe_b64encode(b"~").decode()),
        ("since", "yesterday"),
        ("since", "0001-01-01T00:00:00+14:00"),
        ("before", "9999-12-31T23:59:59-14:00"),
        ("before", "1969-01-01T00:00:00Z"),
        ("resolved", "maybe"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_invalid_selection_is_refused(api: Api, method: str, field: str, value: str) -> None:
    url = URL if method == "GET" else f"{URL}/replay"
    answer = await api.client.request(method, url, params={field: value})
    assert answer.status_code == 422
    assert answer.json()["code"] == "invalid_request"
    assert answer.json()["field"] == field


@pytest.mark.parametrize(("method", "path"), [("GET", ""), ("DELETE", ""), ("POST", "/replay")])
async def test_unknown_id_is_404_and_malformed_id_is_422(api: Api, method: str, path: str) -> None:
    answer = await api.client.request(method, f"{URL}/{UNKNOWN}{path}")
    assert (answer.status_code, answer.json()["code"]) == (404, "not_found")
    answer = await api.client.request(method, f"{URL}/{UNKNOWN.upper()}{path}")
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_request")


async def test_delete_removes_the_dead_letter(api: Api) -> None:
    letter = await letter_in(api)
    assert (await api.client.delete(f"{URL}/{letter.id}")).status_code == 204
    assert (await api.client.get(f"{URL}/{letter.id}")).status_code == 404
    assert (await api.client.delete(f"{URL}/{letter.id}")).status_code == 404


async def test_replay_starts_one_new_attempt(api: Api) -> None:
    letter = await failed_upload(api)
    before = api.traces().messages
    outcomes = [
        (await api.client.post(f"{URL}/{letter.id}/replay")).json()["outcome"] for _ in range(2)
    ]
    assert outcomes == ["replayed", "resolved"]
    assert api.traces().messages == before + 1
    image_hash = letter.attributes["image_hash"]
    assert (await api.record(image_hash)).status is Status.QUEUED
    assert (await api.client.get(f"/what/status/{image_hash}")).json()["error"] is None
    await api.succeed(image_hash)
    shown = (await api.client.get(f"{URL}/{letter.id}")).json()
    assert shown["resolved_at"] is not None


async def test_dead_letter_of_a_classified_image_is_resolved(api: Api) -> None:
    letter = await failed_upload(api)
    assert await api.records.change(api.key(letter.attributes["image_hash"]), retry())
    await api.succeed(letter.attributes["image_hash"])
    before = api.traces().messages
    answer = await api.client.post(f"{URL}/{letter.id}/replay")
    assert answer.json() == {"outcome": "resolved"}
    assert api.traces().messages == before
    assert (await api.record(letter.attributes["image_hash"])).status is Status.SUCCESS


async def test_replay_that_is_not_possible_is_refused_with_the_reason(api: Api) -> None:
    unreadable = await letter_in(api, attributes={"tenant": "public"})
    answer = await api.client.post(f"{URL}/{unreadable.id}/replay")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    letter = await failed_upload(api)
    key = api.key(letter.attributes["image_hash"])
    # A slow worker: the record was not finished when the letter was written.
    await delete_image(api.records, key.image)
    again = await api.client.post("/what/fast", files={"img": picture()})
    assert again.status_code == 202
    await api.finish_submissions()
    assert await claimed(api.records, key, timedelta(minutes=1)) is not None
    await api.services.backend.dead_letters.delete(letter.key)
    died = api.services.clock() + timedelta(seconds=1)
    busy = await letter_in(api, attributes=letter.attributes, died_at=died)
    answer = await api.client.post(f"{URL}/{busy.id}/replay")
    assert (answer.status_code, answer.json()["code"]) == (409, "conflict")
    assert "retry-after" in answer.headers
    done = (await api.client.post(f"{URL}/replay")).json()
    assert done == {
        "replayed": 0, "resolved": 0, "busy": 1, "unreadable": 1, "next_cursor": None,
    }  # fmt: skip


async def test_selection_is_replayed_within_its_limit(api: Api) -> None:
    letter = await failed_upload(api)
    for number in range(3):
        await letter_in(api, number, code="unavailable")
    url = f"{URL}/replay"
    first = (await api.client.post(url, params={"code": "unavailable", "limit": "2"})).json()
    assert (first["resolved"], first["replayed"]) == (2, 0)  # their images do not exist
    assert first["next_cursor"]
    query = {"code": "unavailable", "limit": "2", "cursor": first["next_cursor"]}
    second = (await api.client.post(url, params=query)).json()
    assert (second["resolved"], second["next_cursor"]) == (1, None)
    rest = (await api.client.post(url)).json()
    assert (rest["replayed"], rest["resolved"]) == (1, 0)
    assert (await api.record(letter.attributes["image_hash"])).status is Status.QUEUED


async def test_routes_are_documented(api: Api) -> None:
    paths = (await api.client.get("/openapi.json")).json()["paths"]
    assert set(paths[URL]) == {"get"}
    assert set(paths[f"{URL}/{{id}}"]) == {"get", "delete"}
    assert "409" in paths[f"{URL}/{{id}}/replay"]["post"]["responses"]
