"""The bounds and the backoff of the delivery policy."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core.domain.policy import ACKNOWLEDGING_STATUS, DeliveryPolicy


def test_acknowledging_statuses_are_those_of_pub_sub() -> None:
    assert {102, 200, 201, 202, 204} == ACKNOWLEDGING_STATUS


def test_default_policy_is_valid() -> None:
    policy = DeliveryPolicy()
    assert policy.lease <= policy.ack_deadline
    waits = sum(policy.backoff(attempt) for attempt in range(1, policy.attempts))
    assert waits + policy.attempts * policy.ack_deadline < policy.retention


def test_default_policy_outlasts_hours_of_refusals() -> None:
    policy = DeliveryPolicy()
    waits = sum(policy.backoff(attempt) for attempt in range(1, policy.attempts))
    assert 15 * 3600 < waits < 16 * 3600
    assert policy.backoff(1) == 2  # a single fault costs little time


def test_backoff_doubles_up_to_its_maximum() -> None:
    policy = DeliveryPolicy(min_backoff=2, max_backoff=15)
    assert [policy.backoff(attempt) for attempt in range(1, 6)] == [2, 4, 8, 15, 15]


@given(
    attempt=st.integers(1, 10**9),
    low=st.floats(0, 600, allow_nan=False),
    high=st.floats(0, 600, allow_nan=False),
)
def test_backoff_stays_in_its_bounds_and_never_decreases(
    attempt: int, low: float, high: float
) -> None:
    low, high = sorted((low, high))
    policy = DeliveryPolicy(min_backoff=low, max_backoff=high)
    assert low <= policy.backoff(attempt) <= policy.backoff(attempt + 1) <= high


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attempts": 0}, "attempts"),
        ({"attempts": 101}, "attempts"),
        ({"min_backoff": -1}, "min_backoff"),
        ({"min_backoff": 601}, "min_backoff"),
        ({"max_backoff": 601}, "max_backoff"),
        ({"lease": 0}, "lease"),
        ({"lease": 61}, "lease"),
        ({"ack_deadline": 601}, "ack_deadline"),
        ({"retention": 60_000}, "retention"),
    ],
)
def test_contradictory_policy_is_refused(changes: dict[str, float], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        DeliveryPolicy(**changes)  # type: ignore[arg-type]  # attempts is whole in each case
