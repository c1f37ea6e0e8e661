"""`Prefer: wait=n` as RFC 7240 writes it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.http.negotiation import applied_wait, preferred_wait


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
