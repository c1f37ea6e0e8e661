"""An HTTP client that pushes to the worker, for the embedded queue and the local scheduler.

It uses aiohttp because a push through httpx takes ten times the CPU time (0.7 ms against 0.07 ms),
and the queue shares a machine with the worker.
"""

from types import TracebackType
from typing import Self

import aiohttp

CONNECT_SECONDS = 2.0
# How long an idle connection stays open. Shorter than the five seconds of uvicorn, the worker's
# server, so that no push is sent over a connection that the worker is closing.
KEEP_ALIVE_SECONDS = 4.0


class ConnectFailed(Exception):
    """There was no connection, so the worker did not receive the request."""


class NoResponse(Exception):
    """The request was sent, and no response came in time or before the connection broke."""


class PushClient:
    """POSTs JSON to one service over persistent connections. Use with `async with`."""

    def __init__(self, base_url: str, secret: str = "") -> None:
        """The worker at `base_url` accepts pushes with `secret` (`core.backends.push_secret`)."""
        self._base_url = base_url
        self._headers = {"Content-Type": "application/json", "User-Agent": "glimpse-queue"}
        if secret:
            self._headers["Authorization"] = f"Bearer {secret}"

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            self._base_url,
            # The queue limits its pushes. A second limit here would delay them unnoticed.
            connector=aiohttp.TCPConnector(limit=0, keepalive_timeout=KEEP_ALIVE_SECONDS),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=self._headers,
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
        """The status of the response, within `seconds`. Raises ConnectFailed or NoResponse."""
        timeout = aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS))
        try:
            async with self._session.post(
                path, data=body, timeout=timeout, allow_redirects=False
            ) as response:
                # Read the body, so that the connection can be used again.
                await response.read()
                return response.status
        except (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError) as error:
            raise ConnectFailed(str(error)) from error
        except TimeoutError as error:
            raise NoResponse(f"no response within {seconds:g} s") from error
        except aiohttp.ClientError as error:
            raise NoResponse(f"connection broken: {type(error).__name__}") from error
