"""Bounds how long sending to a slow client may block."""

import asyncio
from collections.abc import Awaitable

SEND_SECONDS = 30.0
SHUTDOWN_SEND_SECONDS = 1.0


class SendTimedOut(Exception):
    """The client does not read the bytes that the service sends."""


class SendTimeout:
    """Applies the timeout to each send of one client."""

    def __init__(self) -> None:
        self._current: asyncio.Timeout | None = None
        self._seconds = SEND_SECONDS

    async def send(self, sending: Awaitable[None]) -> None:
        """Wait for `sending`. Raises SendTimedOut."""
        try:
            async with asyncio.timeout(self._seconds) as self._current:
                await sending
        except TimeoutError:
            raise SendTimedOut from None
        finally:
            self._current = None

    def shorten(self) -> None:
        """Use the shutdown timeout, also for a send that is in progress."""
        self._seconds = SHUTDOWN_SEND_SECONDS
        if self._current is not None and not self._current.expired():
            self._current.reschedule(asyncio.get_running_loop().time() + SHUTDOWN_SEND_SECONDS)
