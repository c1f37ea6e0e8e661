"""The announced length of a body."""

import pytest
from starlette.requests import Request

from core.http.content_length import announced_bytes


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0", 0),
        ("42", 42),
        ("0" * 5000 + "42", 42),
        ("", None),
        ("-1", None),
        ("+1", None),
        ("1_000", None),
        (" 1", None),
        ("\u0661", None),
        ("1.0", None),
    ],
)
def test_announced_length_is_a_number_or_none(text: str, expected: int | None) -> None:
    headers = [(b"content-length", text.encode("utf-8"))]
    assert announced_bytes(Request({"type": "http", "headers": headers})) == expected


def test_missing_length_is_none() -> None:
    assert announced_bytes(Request({"type": "http", "headers": []})) is None


def test_length_of_thousands_of_digits_is_beyond_every_limit() -> None:
    headers = [(b"content-length", b"9" * 10_000)]
    length = announced_bytes(Request({"type": "http", "headers": headers}))
    assert length is not None and length > 2**60
