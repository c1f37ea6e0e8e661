"""When the client repeats a request, and how long it waits before."""

from datetime import UTC, datetime

import pytest
from glimpse_client.retries import RetryPolicy, may_repeat, retry_after


def test_delays_double_up_to_the_longest_with_jitter() -> None:
    policy = RetryPolicy(retries=6, backoff=1.0, longest_backoff=8.0)
    for attempt, most in enumerate((1, 2, 4, 8, 8, 8), 1):
        delays = [policy.delay(attempt, None) for _ in range(50)]
        assert all(each is not None and most / 2 <= each <= most for each in delays)
        assert len(set(delays)) > 1, "without jitter all clients return together"


def test_no_attempt_after_the_last() -> None:
    assert RetryPolicy(retries=2).delay(2, None) is not None
    assert RetryPolicy(retries=2).delay(3, None) is None
    assert RetryPolicy(retries=0).delay(1, 0.0) is None


def test_retry_after_replaces_the_backoff_up_to_a_cap() -> None:
    policy = RetryPolicy(longest_retry_after=10.0)
    delay = policy.delay(1, 4.0)
    assert delay is not None
    assert 4.0 <= delay <= 5.0
    assert policy.delay(1, 11.0) is None


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("3", 3.0),
        (" 0 ", 0.0),
        ("Mon, 30 Nov 2026 12:00:30 GMT", 30.0),
        ("Mon, 30 Nov 2026 11:59:00 GMT", 0.0),
        ("", None),
        ("soon", None),
        ("-1", None),
        ("²", None),
    ],
)
def test_retry_after_is_a_number_or_a_date(value: str, seconds: float | None) -> None:
    now = datetime(2026, 11, 30, 12, tzinfo=UTC)
    assert retry_after({"retry-after": value}, now) == seconds


@pytest.mark.parametrize(
    ("status", "idempotent", "other"),
    [
        (500, True, False),
        (502, True, False),
        (503, True, True),
        (408, True, True),
        (429, True, True),
        (404, False, False),
        (409, False, False),
        (501, False, False),
    ],
)
def test_request_that_is_not_idempotent_is_repeated_only_after_a_refusal(
    status: int, idempotent: bool, other: bool
) -> None:
    assert may_repeat(status, idempotent=True) is idempotent
    assert may_repeat(status, idempotent=False) is other
