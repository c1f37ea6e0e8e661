"""Delivering a push over HTTP, and telling apart what was refused and what never arrived."""

from types import TracebackType

import httpx

CONNECT_SECONDS = 2.0


class NotReached(Exception):
    """The request did not get as far as the worker."""


class NoAnswer(Exception):
    """The request was sent and no answer came: in time, or before the connection broke."""


class PushClient:
    """POSTs JSON to one service over connections that are kept open. Use with `async with`."""

    def __init__(self, base_url: str, connections: int) -> None:
        self._client = httpx.AsyncClient(
            base_url=base_url,
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=connections),
            follow_redirects=False,
            trust_env=False,  # the worker is local: never through a proxy
        )

    async def __aenter__(self) -> "PushClient":
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._client.aclose()

    async def post(self, path: str, body: bytes, seconds: float) -> int:
        """The answer's status. Raises NotReached or NoAnswer; takes at most about `seconds`."""
        timeout = httpx.Timeout(seconds, connect=min(seconds, CONNECT_SECONDS))
        try:
            response = await self._client.post(
                path,
                content=body,
                headers={"Content-Type": "application/json"},
                timeout=timeout,
            )
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            raise NotReached(str(error) or type(error).__name__) from error
        except httpx.TimeoutException as error:
            raise NoAnswer(f"no answer within {seconds:g} s") from error
        except httpx.HTTPError as error:
            raise NoAnswer(f"connection broken: {type(error).__name__}") from error
        return response.status_code
