"""A clock that only the test moves."""

from datetime import UTC, datetime, timedelta


class MovableClock:
    """`core.clock.Clock`."""

    def __init__(self) -> None:
        self.now = datetime(2026, 11, 21, 9, 30, 0, 123456, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def move(self, seconds: float) -> datetime:
        self.now += timedelta(seconds=seconds)
        return self.now
