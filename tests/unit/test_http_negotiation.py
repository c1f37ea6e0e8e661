"""`Prefer: wait=n` (RFC 7240), and the preferred media type (RFC 9110, 12.5.1)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.negotiation import applied_wait, preferred_type, preferred_wait


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["wait=5"], 5),
        (["wait = 5"], 5),
        (["WAIT=5"], 5),
        (['wait="5"'], 5),
        (["wait=5; late=yes"], 5),
        (["respond-async, wait=5"], 5),
        (['note="a, wait=9", wait=5'], 5),
        (["respond-async", "wait=5"], 5),
        (["wait=5, wait=7"], 5),
        (["wait=0"], 0),
        (["wait=31"], 30),
        (["wait=999999999"], 30),
        (["wait=9999999999999999999999"], None),
        (["wait=-1"], None),
        (["wait=2.5"], None),
        (["wait=soon"], None),
        (["wait=soon, wait=5"], None),
        (["wait"], None),
        (["wait="], None),
        (["waiter=5"], None),
        (["return=minimal"], None),
        ([""], None),
        ([], None),
        (["wait=\u0665"], None),
    ],
)
def test_first_wait_applies_up_to_the_limit(values: list[str], expected: float | None) -> None:
    assert preferred_wait(values, 30) == expected


@given(st.lists(st.text(max_size=80), max_size=3))
def test_invalid_preferences_are_ignored(values: list[str]) -> None:
    wait = preferred_wait(values, 30)
    assert wait is None or 0 <= wait <= 30


def test_preference_applied_has_plain_seconds() -> None:
    assert applied_wait(30.0) == "wait=30"
    assert applied_wait(0.25) == "wait=0.25"


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
