"""Compressed request bodies: JSON and forms are decoded within the limits, others are refused."""

import gzip
import json
from collections.abc import AsyncIterator

import pytest

from app.http.json_body import MAX_BYTES
from tests.support.api import NOTHING, Api
from tests.support.batches import FORM, form, part
from tests.support.pictures import picture, sha256
from tests.support.problems import assert_problem

IMAGE = picture()
JSON = "application/json"
IMAGES, LOOKUP, JOBS = "/api/v1/images", "/api/v1/images/lookup", "/api/v1/jobs/batch-predict"
DOCUMENT = json.dumps({"image_hashes": [sha256(IMAGE)]}).encode()


def coded(kind: str, coding: str = "gzip") -> dict[str, str]:
    return {"Content-Type": kind, "Content-Encoding": coding}


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "identity, gzip"])
@pytest.mark.parametrize(
    ("url", "kind", "body"),
    [
        (LOOKUP, JSON, DOCUMENT),
        (LOOKUP, "application/json; charset=utf-8", DOCUMENT),
        (JOBS, JSON, DOCUMENT),
        (f"{JOBS}/hashes", JSON, DOCUMENT),
        (JOBS, FORM, form(part(IMAGE, "imgs"))),
        (IMAGES, FORM, form(part(IMAGE, "img"))),
        ("/what/fast", FORM, form(part(IMAGE, "img"))),
    ],
)
async def test_gzip_of_json_and_forms_is_decoded(
    api: Api, url: str, kind: str, body: bytes, coding: str
) -> None:
    answer = await api.client.post(url, content=gzip.compress(body), headers=coded(kind, coding))
    assert answer.status_code in (200, 202), answer.text


async def test_two_members_are_one_body(api: Api) -> None:
    body = gzip.compress(DOCUMENT[:20]) + gzip.compress(DOCUMENT[20:])
    answer = await api.client.post(LOOKUP, content=body, headers=coded(JSON))
    assert answer.json()["missing"] == [sha256(IMAGE)]


@pytest.mark.parametrize(
    ("url", "kind", "coding", "accepted"),
    [
        (IMAGES, "image/jpeg", "gzip", "identity"),
        (IMAGES, "application/octet-stream", "gzip", "identity"),
        (f"{JOBS}/zip", "application/zip", "gzip", "identity"),
        (JOBS, "application/zip", "br", "identity"),
        (LOOKUP, JSON, "br", "gzip"),
        (LOOKUP, JSON, "deflate", "gzip"),
        (LOOKUP, JSON, "zstd", "gzip"),
        (LOOKUP, JSON, "gzip, gzip", "gzip"),
        (IMAGES, FORM, "compress", "gzip"),
    ],
)
async def test_other_codings_and_bodies_are_refused(
    api: Api, url: str, kind: str, coding: str, accepted: str
) -> None:
    headers = coded(kind, coding)
    answer = await api.client.post(url, content=gzip.compress(IMAGE), headers=headers)
    problem = assert_problem(answer, 415, "unsupported_media_type")
    assert (answer.headers["accept-encoding"], problem["accepted"]) == (accepted, [accepted])
    assert api.traces() == NOTHING


@pytest.mark.parametrize(
    "body",
    [
        gzip.compress(DOCUMENT)[:-4],
        gzip.compress(DOCUMENT)[:10],
        b"",
        DOCUMENT,
        gzip.compress(DOCUMENT) + b"more",
    ],
    ids=["no checksum", "no data", "empty", "not gzip", "more after it"],
)
@pytest.mark.parametrize("url", [LOOKUP, JOBS])
async def test_damaged_gzip_is_malformed(api: Api, url: str, body: bytes) -> None:
    answer = await api.client.post(url, content=body, headers=coded(JSON))
    assert_problem(answer, 400, "malformed_body")
    assert api.traces() == NOTHING


async def test_limits_apply_to_the_decoded_bytes(api: Api) -> None:
    bomb = gzip.compress(bytes(50_000_000), 9)
    assert len(bomb) < 100_000
    for url, kind, code in (
        ("/api/v1/webhooks", JSON, "body_too_large"),
        (JOBS, JSON, "batch_too_large"),
    ):
        answer = await api.client.post(url, content=bomb, headers=coded(kind))
        assert_problem(answer, 413, code)
    body = form(part(picture(size=(64, 64)) + bytes(30_000_000), "img"))
    answer = await api.client.post(IMAGES, content=gzip.compress(body), headers=coded(FORM))
    assert_problem(answer, 413, "image_too_large")
    assert api.traces() == NOTHING
    # The compressed length does not count.
    padded = DOCUMENT + b" " * (MAX_BYTES - len(DOCUMENT))
    answer = await api.client.post(LOOKUP, content=gzip.compress(padded), headers=coded(JSON))
    assert answer.status_code == 200


async def test_pieces_of_any_size_are_decoded(api: Api) -> None:
    body = gzip.compress(form(part(IMAGE, "img")))

    async def bytes_one_by_one() -> AsyncIterator[bytes]:
        for each in body:
            yield bytes([each])

    answer = await api.client.post(IMAGES, content=bytes_one_by_one(), headers=coded(FORM))
    assert answer.json()["image_hash"] == sha256(IMAGE)
