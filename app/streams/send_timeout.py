"""How long a client may leave us waiting for room to send it more."""

import asyncio
from collections.abc import Awaitable

STALL_SECONDS = 30.0
HURRY_SECONDS = 1.0  # once the service stops


class Stalled(Exception):
    """The client takes nothing any more."""


class Patience:
    """Bounds one sending after the other."""

    def __init__(self) -> None:
        self._limit: asyncio.Timeout | None = None
        self._seconds = STALL_SECONDS

    async def send(self, sending: Awaitable[None]) -> None:
        """Wait for `sending`. Raises Stalled."""
        try:
            async with asyncio.timeout(self._seconds) as self._limit:
                await sending
        except TimeoutError:
            raise Stalled from None
        finally:
            self._limit = None

    def hurry(self) -> None:
        """Wait a moment longer, and no longer than that for anything to come."""
        self._seconds = HURRY_SECONDS
        if self._limit is not None and not self._limit.expired():
            self._limit.reschedule(asyncio.get_running_loop().time() + HURRY_SECONDS)
