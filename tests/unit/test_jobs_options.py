"""What may be said of a job and of a batch, and how what is wrong is refused."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from starlette.requests import Request

from app.batches.manifest import parse_manifest
from app.http.negotiation import preferred_type
from app.jobs.options import JobOptions, options_of, with_manifest
from core.domain.priority import Priority
from core.errors import BatchTooLarge, GlimpseError, InvalidRequest

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)
HASH = "ab" * 32


def options(query: str = "", *headers: tuple[str, str]) -> JobOptions:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "query_string": query.encode(), "headers": raw}
    return options_of(Request(scope), NOW)


def manifest(**document: object) -> bytes:
    return json.dumps(document).encode()


def refused(body: bytes) -> GlimpseError:
    with pytest.raises(GlimpseError) as error:
        parse_manifest(body)
    return error.value


def test_all_options_are_optional() -> None:
    assert options() == JobOptions()
    assert with_manifest(options(), parse_manifest(b""), NOW) == JobOptions()


def test_options_in_query_and_headers() -> None:
    assert options(
        "priority=low&not_before=2026-11-22T09:30:00Z&notify_email=ada%40example.org",
        ("Cancel-After", "36h"),
        ("Idempotency-Key", "batch 7 (of 9)"),
    ) == JobOptions(
        priority=Priority.LOW,
        not_before=NOW + timedelta(days=1),
        notify_email="ada@example.org",
        cancel_after=timedelta(hours=36),
        idempotency_key="batch 7 (of 9)",
    )


def test_options_in_the_document() -> None:
    said = parse_manifest(
        manifest(priority="high", not_before="2026-11-22T10:30:00+01:00", notify_email="a@b.org")
    )
    assert with_manifest(JobOptions(), said, NOW) == JobOptions(
        Priority.HIGH, NOW + timedelta(days=1), "a@b.org"
    )


@pytest.mark.parametrize(
    ("name", "query", "value"),
    [
        ("priority", "priority=high", "high"),
        ("not_before", "not_before=2026-11-22T09:30:00Z", "2026-11-22T09:30:00Z"),
        ("notify_email", "notify_email=a@b.org", "a@b.org"),
    ],
)
def test_option_in_both_is_refused(name: str, query: str, value: str) -> None:
    with pytest.raises(InvalidRequest, match="twice") as error:
        with_manifest(options(query), parse_manifest(manifest(**{name: value})), NOW)
    assert error.value.extra == {"field": name}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("5s", 5),
        ("90s", 90),
        ("90", 90),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h0m30s", 3630),
        ("168h", 7 * 24 * 3600),
        (" 90s ", 90),
    ],
)
def test_valid_durations(text: str, seconds: int) -> None:
    assert options("", ("Cancel-After", text)).cancel_after == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4s",
        "0",
        "169h",
        "7d",
        "-90s",
        "1.5h",
        "30m1h",
        "90 s",
        "9" * 50,
        "soon",
        "s",
        "\u0663\u0660s",
    ],
)
def test_invalid_durations_are_refused(text: str) -> None:
    raw = [(b"cancel-after", text.encode())]
    with pytest.raises(InvalidRequest) as error:
        options_of(Request({"type": "http", "query_string": b"", "headers": raw}), NOW)
    assert error.value.extra == {"field": "Cancel-After"}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "2026-11-22",
        "2026-11-22T09:30:00",
        "2026-11-22T25:30:00Z",
        "2026-13-22T09:30:00Z",
        "20261122T093000Z",
        "2026-12-22T09:30:00Z",
        "9999-12-31T23:59:59-23:59",
        "0001-01-01T00:00:00+23:59",
        "1795339800",
    ],
)
def test_invalid_times_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        options(f"not_before={text}")
    assert error.value.extra == {"field": "not_before"}


def test_past_time_is_accepted() -> None:
    """It may have been ahead when the request was first sent."""
    assert options("not_before=2026-11-21T09:29:00Z").not_before == NOW - timedelta(minutes=1)


def test_deadline_before_the_start_is_refused() -> None:
    asked = options("not_before=2026-11-21T10:30:00Z", ("Cancel-After", "1h"))
    with pytest.raises(InvalidRequest, match="before the job may begin"):
        with_manifest(asked, parse_manifest(b"{}"), NOW)
    asked = options("not_before=2026-11-21T10:30:00Z", ("Cancel-After", "1h1s"))
    assert with_manifest(asked, parse_manifest(b"{}"), NOW) == asked


@pytest.mark.parametrize(
    "text",
    [
        "",
        "ada",
        "@example.org",
        "ada@",
        "ada@example.org,bob@example.org",
        "Ada <ada@example.org>",
        "ada@example.org%0d%0aBcc:eve@example.org",
        "ada%00@example.org",
        "ada@example..org",
        f"{'a' * 65}@example.org",
        f"ada@{'a.' * 130}org",
        "%C3%A4da@example.org",
    ],
)
def test_invalid_addresses_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        options(f"notify_email={text}")
    assert error.value.extra == {"field": "notify_email"}


@pytest.mark.parametrize("text", ["ada@example.org", "a.b+c@localhost", "x'y@mail.example.co.uk"])
def test_valid_addresses(text: str) -> None:
    assert options("notify_email=" + text.replace("+", "%2B")).notify_email == text


@pytest.mark.parametrize("text", ["", "x" * 256, "tab\there", "\xe9t\xe9", "\x7f"])
def test_invalid_idempotency_keys_are_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as error:
        options("", ("Idempotency-Key", text))
    assert error.value.extra == {"field": "Idempotency-Key"}


def test_repeated_option_is_refused() -> None:
    for query, headers in (
        ("priority=low&priority=high", []),
        ("", [("Cancel-After", "90s"), ("Cancel-After", "91s")]),
        ("", [("Idempotency-Key", "a"), ("Idempotency-Key", "b")]),
    ):
        with pytest.raises(InvalidRequest, match="twice"):
            options(query, *headers)


def test_unknown_priority_is_refused() -> None:
    with pytest.raises(InvalidRequest, match="high, normal, low"):
        options("priority=urgent")
    assert isinstance(refused(manifest(priority="urgent")), InvalidRequest)


# --- The document. --------------------------------------------------------------------------------


def test_images_are_hashes_or_objects() -> None:
    said = parse_manifest(
        manifest(image_hashes=[HASH, {"image_hash": HASH, "metadata": {"shelf": [1, {"a": None}]}}])
    )
    assert [entry.image_hash for entry in said.image_hashes] == [HASH, HASH]
    assert [entry.metadata for entry in said.image_hashes] == [{}, {"shelf": [1, {"a": None}]}]


@pytest.mark.parametrize(
    ("body", "where"),
    [
        (b"[]", "body"),
        (b"{", "body"),
        (b"\xff", "body"),
        (b"null", "body"),
        (manifest(image_hashes="x"), "image_hashes"),
        (manifest(image_hashes=[HASH, "abc"]), "image_hashes.1.image_hash"),
        (manifest(image_hashes=[HASH.upper()]), "image_hashes.0.image_hash"),
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


# --- Accept. --------------------------------------------------------------------------------------

OFFERED = ("application/json", "application/x-ndjson", "text/csv")


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", 0),
        ("*/*", 0),
        ("text/csv", 2),
        ("TEXT/CSV; charset=utf-8", 2),
        ("text/*", 2),
        ("application/x-ndjson", 1),
        ("application/*", 0),
        ("application/*, application/json;q=0.1", 1),
        ("text/csv;q=0.5, application/x-ndjson;q=0.9", 1),
        ("text/csv, */*;q=0.1", 2),
        ("application/json;q=0, */*", 1),
        ("text/html,application/xhtml+xml,*/*;q=0.8", 0),
        ("image/png", 0),
        ("text/csv;q=none", 0),
        (";;,;q=,", 0),
    ],
)
def test_preferred_media_type(accept: str, chosen: int) -> None:
    assert preferred_type(accept, OFFERED) == OFFERED[chosen]
