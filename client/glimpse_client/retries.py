"""When a request is sent again, and how long the client waits before that."""

import email.utils
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})
# Refused before the service did anything, so even a request that is not idempotent may be repeated.
UNTOUCHED = frozenset({408, 429, 503})


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`retries` after the first attempt. Times are in seconds.

    The delay doubles from `backoff` up to `longest_backoff`, of which a random part up to a half is
    subtracted. The service's `Retry-After` replaces it, up to `longest_retry_after`. For a longer
    one the error is raised.
    """

    retries: int = 5
    backoff: float = 0.25
    longest_backoff: float = 8.0
    longest_retry_after: float = 60.0

    def delay(self, attempt: int, retry_after: float | None) -> float | None:
        """Seconds before the next attempt, or None if there is none. `attempt` counts from 1."""
        if attempt > self.retries:
            return None
        if retry_after is not None:
            if retry_after > self.longest_retry_after:
                return None
            # A fraction on top, so that clients that were refused together do not return together.
            return retry_after + random.uniform(0, min(1.0, 0.25 * retry_after))
        delay: float = min(self.longest_backoff, self.backoff * 2 ** (attempt - 1))
        return random.uniform(delay / 2, delay)


def may_repeat(status: int, *, idempotent: bool) -> bool:
    """Whether an answer with this status is worth another attempt."""
    return status in (RETRIED if idempotent else UNTOUCHED)


def retry_after(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds of the `Retry-After` header (RFC 9110, 10.2.3), a number or a date; else None."""
    value = headers.get("retry-after", "").strip()
    if value.isascii() and value.isdigit():
        return float(value)
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except (TypeError, ValueError):
        return None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return max(0.0, (moment - (now or datetime.now(UTC))).total_seconds())
