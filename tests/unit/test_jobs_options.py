"""The options of a job in the query, in headers and in the document."""

import json
from datetime import UTC, datetime, timedelta
from urllib.parse import unquote_plus

import pytest
from starlette.requests import Request

from app.batches.manifest import parse_manifest
from app.jobs.options import JobOptions, options_of, with_manifest
from core.domain.priority import Priority
from core.errors import InvalidRequest

NOW = datetime(2026, 11, 21, 9, 30, tzinfo=UTC)


def options(query: str = "", *headers: tuple[str, str]) -> JobOptions:
    raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers]
    scope = {"type": "http", "query_string": query.encode(), "headers": raw}
    return options_of(Request(scope), NOW)


def manifest(**document: object) -> bytes:
    return json.dumps(document).encode()


def test_all_options_are_optional() -> None:
    assert options() == JobOptions()
    assert with_manifest(options(), parse_manifest(b""), NOW) == JobOptions()


def test_options_in_query_and_headers() -> None:
    assert options(
        "priority=low&not_before=2026-11-22T09:30:00Z&notify_email=ada%40example.org&name=+a+b+",
        ("Cancel-After", "36h"),
        ("Idempotency-Key", "batch 7 (of 9)"),
    ) == JobOptions(
        priority=Priority.LOW,
        not_before=NOW + timedelta(days=1),
        notify_email="ada@example.org",
        cancel_after=timedelta(hours=36),
        idempotency_key="batch 7 (of 9)",
        name="a b",
    )


def test_options_in_the_document() -> None:
    document = parse_manifest(
        manifest(
            priority="high",
            not_before="2026-11-22T10:30:00+01:00",
            notify_email="a@b.org",
            name="Été",
        )
    )
    assert with_manifest(JobOptions(), document, NOW) == JobOptions(
        Priority.HIGH, NOW + timedelta(days=1), "a@b.org", name="Été"
    )


@pytest.mark.parametrize(
    ("name", "query", "value"),
    [
        ("priority", "priority=high", "high"),
        ("not_before", "not_before=2026-11-22T09:30:00Z", "2026-11-22T09:30:00Z"),
        ("notify_email", "notify_email=a@b.org", "a@b.org"),
        ("name", "name=Summer", "Summer"),
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
        ("90S", 90),
        ("PT90S", 90),
        ("PT1H30M", 5400),
        ("P1DT1H", 90000),
        ("pt1m30.5s", 90.5),
        ("1h 30m", 5400),
        ("1.5h", 5400),
        ("7d", 7 * 24 * 3600),
        ("15m", 900),
        ("2h", 7200),
        ("1h30m", 5400),
        ("1h0m30s", 3630),
        ("168h", 7 * 24 * 3600),
        (" 90s ", 90),
    ],
)
def test_valid_durations(text: str, seconds: float) -> None:
    assert options("", ("Cancel-After", text)).cancel_after == timedelta(seconds=seconds)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "4s",
        "0",
        "169h",
        "8d",
        "90",
        "-90s",
        "P",
        "PT",
        "P1W",
        "00:01:30",
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
        "2026-11-22T09:30:00Z UTC Z",
        "2026-11-22T09:30:00+01:00 +01:00",
        "[UTC]",
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


def test_number_without_a_unit_is_refused_and_the_message_asks_for_one() -> None:
    with pytest.raises(InvalidRequest, match="1h30m, with its unit"):
        options("", ("Cancel-After", "90"))


def test_time_without_an_offset_is_refused_and_the_message_asks_for_one() -> None:
    """The service cannot know the time zone of the client."""
    for text in ("2026-11-22T09:30:00", "2026-11-22"):
        with pytest.raises(InvalidRequest, match="offset from UTC"):
            options(f"not_before={text}")


@pytest.mark.parametrize(
    "text",
    [
        "2026-11-22T09:30:00Z",
        "2026-11-22t09:30:00z",
        "2026-11-22T09:30Z",
        "2026-11-22T09:30:00.000000000Z",
        "2026-11-22T09:30:00%2B0000",  # Python's strftime
        "2026-11-22T09:30:00%2B00",
        "2026-11-22T10:30:00%2B01:00",
        "2026-11-22T10:30:00+01:00",  # the plus sign of a query is a space
        "2026-11-22T09:30:00.0+0000",
        "2026-11-22%2009:30:00%20%2B00:00",  # Rust's chrono
        "2026-11-22%2009:30:00%20UTC",  # chrono, Ruby
        "2026-11-22%2004:00:00%20-0530",  # Ruby
        "2026-11-22%2009:30:00%20%2B0000%20UTC",  # Go's String
        "2026-11-22T09:30:00Z%5BUTC%5D",  # Java's ZonedDateTime
        "2026-11-22T10:30:00%2B01:00%5BEurope/Berlin%5D",
        "20261122T093000Z",
        "2026-11-22T09:29:60Z",  # a leap second (RFC 3339, 5.7)
    ],
)
def test_times_as_client_libraries_write_them(text: str) -> None:
    expected = NOW + timedelta(days=1)
    assert options(f"not_before={text}").not_before == expected
    document = parse_manifest(manifest(not_before=unquote_plus(text)))
    assert with_manifest(JobOptions(), document, NOW).not_before == expected


def test_past_time_is_accepted() -> None:
    """It may have been in the future when the client first sent the request."""
    assert options("not_before=2026-11-21T09:29:00Z").not_before == NOW - timedelta(minutes=1)


def test_deadline_before_the_start_is_refused() -> None:
    given = options("not_before=2026-11-21T10:30:00Z", ("Cancel-After", "1h"))
    with pytest.raises(InvalidRequest, match="before the job may begin"):
        with_manifest(given, parse_manifest(b"{}"), NOW)
    given = options("not_before=2026-11-21T10:30:00Z", ("Cancel-After", "1h1s"))
    assert with_manifest(given, parse_manifest(b"{}"), NOW) == given


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


@pytest.mark.parametrize(
    "name", ["", " ", "%20", "x" * 201, "a%0Ab", "a%00", "x%C2%85x", "a%E2%80%A8b"]
)
def test_name_is_one_line_of_limited_length(name: str) -> None:
    with pytest.raises(InvalidRequest, match="name must have") as error:
        options(f"name={name}")
    assert error.value.extra == {"field": "name"}
