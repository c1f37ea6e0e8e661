"""Shares of a rate limit, and how rates are written."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.rate_limits import DAY, Allowance, Limit, Rate, reserve

NOW = datetime(2026, 11, 21, 9, 30, 12, tzinfo=UTC)


@given(quota=st.integers(1, 10_000), others=st.integers(0, 12_000))
def test_share_is_an_eighth_of_the_remainder_and_at_least_one(quota: int, others: int) -> None:
    limit = Limit("rate", quota, 60)
    before = Allowance(limit.window(NOW.timestamp()), others)
    after, grant = reserve(before, limit, NOW)
    left = max(0, quota - others)
    assert grant.count == min(left, max(1, left // 8))
    assert after.taken == others + grant.count
    assert grant.left == left - grant.count


@given(quota=st.integers(1, 5_000))
def test_shares_of_a_window_add_up_to_the_quota_and_are_few(quota: int) -> None:
    limit, state, shares = Limit("rate", quota, 60), None, []
    while True:
        state, grant = reserve(state, limit, NOW)
        if not grant.count:
            break
        shares.append(grant.count)
    assert sum(shares) == quota
    assert len(shares) <= 64


def test_clocks_with_a_small_difference_share_a_window() -> None:
    """At the end of a minute, the slower machine uses the window of the faster one."""
    limit = Limit("rate", 100, 60)
    turn = datetime(2026, 11, 21, 9, 31, tzinfo=UTC)
    ahead, _ = reserve(None, limit, turn + timedelta(milliseconds=20))
    behind, grant = reserve(ahead, limit, turn - timedelta(milliseconds=20))
    assert behind.window == ahead.window == grant.window
    assert behind.taken > ahead.taken


def test_window_far_in_the_future_is_ignored() -> None:
    limit = Limit("rate", 100, 60)
    wrong, _ = reserve(None, limit, NOW + timedelta(days=365))
    right, grant = reserve(wrong, limit, NOW)
    assert right.window == limit.window(NOW.timestamp())
    assert grant.count == 12


def test_days_begin_at_midnight_in_utc() -> None:
    window = Limit("day", 1, DAY).window(NOW.timestamp())
    assert datetime.fromtimestamp(window, UTC) == datetime(2026, 11, 21, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "rate"),
    [("600/minute", Rate(600, 60)), ("1/second", Rate(1, 1)), ("5/hour", Rate(5, 3600))],
)
def test_rate_is_parsed_and_formatted(text: str, rate: Rate) -> None:
    assert Rate.parse(text) == rate
    assert str(rate) == text


@pytest.mark.parametrize("text", ["", "600", "0/minute", "-1/minute", "1/day", "1 / minute", "x/s"])
def test_invalid_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="600/minute"):
        Rate.parse(text)
