"""Delivering a push over HTTP, and telling apart what was refused and what never arrived.

For what stands in for Google's services on this machine: the embedded queue, and the scheduler.
aiohttp, because a push through httpx costs ten times the CPU (0.7 ms against 0.07 ms), and the
queue shares its machine with the worker that it feeds.
"""

from types import TracebackType
from typing import Self

import aiohttp

CONNECT_SECONDS = 2.0
# Shorter than the five seconds of uvicorn, the worker's server: no push is sent over a connection
# that the worker is closing.
KEEP_SECONDS = 4.0


class NotReached(Exception):
    """The request did not get as far as the worker."""


class NoAnswer(Exception):
    """The request was sent and no answer came: in time, or before the connection broke."""


class PushClient:
    """POSTs JSON to one service over connections that are kept open. Use with `async with`."""

    def __init__(self, base_url: str) -> None:
        self._base_url = base_url

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._base_url,
            # The queue bounds its pushes; a second bound here would let them wait unseen.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"Content-Type": "application/json", "User-Agent": "glimpse-queue"},
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def post(self, path: str, body: bytes, seconds: float) -> int:
        """The answer's status, within `seconds`. Raises NotReached or NoAnswer."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        try:
            async with self._session.post(
                path, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                # The rest of the answer means nothing to a queue; it is read, so that the
                # connection can be used again.
                await response.read()
                return response.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise NotReached(str(error)) from error
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise NoAnswer(f"connection broken: {type(error).__name__}") from error
