"""The JSON document of a batch."""

import json

import pytest

from app.batches.manifest import parse_manifest
from core.errors import BatchTooLarge, GlimpseError, InvalidRequest

HASH = "ab" * 32


def manifest(**document: object) -> bytes:
    return json.dumps(document).encode()


def refused(body: bytes) -> GlimpseError:
    with pytest.raises(GlimpseError) as error:
        parse_manifest(body)
    return error.value


def test_images_are_hashes_or_objects() -> None:
    batch = parse_manifest(
        manifest(image_hashes=[HASH, {"image_hash": HASH, "metadata": {"shelf": [1, {"a": None}]}}])
    )
    assert [entry.image_hash for entry in batch.image_hashes] == [HASH, HASH]
    assert [entry.metadata for entry in batch.image_hashes] == [{}, {"shelf": [1, {"a": None}]}]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"null", "body"),
        (manifest(image_hashes="x"), "image_hashes"),
        (manifest(image_hashes=[HASH, "abc"]), "image_hashes.1.image_hash"),
        (manifest(image_hashes=[HASH[1:]]), "image_hashes.0.image_hash"),
        (manifest(image_hashes=[7]), "image_hashes.0"),
        (manifest(image_hashes=[{"metadata": {}}]), "image_hashes.0.image_hash"),
        (manifest(image_hashes=[{"image_hash": HASH, "metadata": []}]), "metadata"),
        (manifest(image_hashes=[{"image_hash": HASH, "more": 1}]), "unknown field"),
        (manifest(secret_field=1), "unknown field"),
        (manifest(priority="urgent"), "priority"),
        (manifest(gs_prefix="photos/"), "gs_prefix"),
        (manifest(gs_prefix=["gs://bucket/photos"]), "gs_prefix"),
        (b'{"image_hashes": [{"image_hash": "%b", "metadata": {"a": NaN}}]}' % HASH.encode(), ""),
        (
            b'{"image_hashes": [{"image_hash": "%b", "metadata": {"a": "\\ud800"}}]}'
            % HASH.encode(),
            "",
        ),
        (b'{"image_hashes": ' + b"[" * 100_000, "body"),
        (b'{"image_hashes": [{"metadata": ' + b'{"a": ' * 100_000, "body"),
    ],
)
def test_error_names_the_field_and_not_its_value(body: bytes, where: str) -> None:
    error = refused(body)
    assert isinstance(error, InvalidRequest)
    assert where in error.detail
    assert "secret_field" not in error.detail
    assert len(error.detail) < 2000


def test_number_of_reported_errors_is_limited() -> None:
    error = refused(manifest(image_hashes=["x"] * 1000))
    errors = error.extra["errors"]
    assert isinstance(errors, list) and len(errors) == 10


def test_many_errors_are_counted_without_blocking_the_event_loop() -> None:
    error = refused(json.dumps(dict.fromkeys(map(str, range(100_000)), 0)).encode())
    assert isinstance(error, InvalidRequest)
    assert error.detail == "body: The document has 100000 errors"
    message = "The document has 100000 errors"
    assert error.extra == {"field": "body", "errors": [{"field": "body", "message": message}]}


def test_number_of_images_is_limited() -> None:
    assert len(parse_manifest(manifest(image_hashes=[HASH] * 1000)).image_hashes) == 1000
    error = refused(manifest(image_hashes=[HASH] * 1001))
    assert isinstance(error, BatchTooLarge)
    assert error.extra == {"max_items": 1000}


def test_metadata_is_limited_by_image_and_by_batch() -> None:
    def entries(count: int, size: int) -> bytes:
        metadata = {"m": "x" * (size - len('{"m":""}'))}
        return manifest(image_hashes=[{"image_hash": HASH, "metadata": metadata}] * count)

    parse_manifest(entries(1, 2048))
    assert "2048 bytes" in refused(entries(1, 2049)).detail
    parse_manifest(entries(512, 1024))
    assert "524288 bytes" in refused(entries(513, 1024)).detail
