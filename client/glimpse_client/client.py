"""The clients: `Glimpse` blocks, `AsyncGlimpse` is for asyncio."""

import os
from types import TracebackType
from typing import Self

import httpx2

from glimpse_client import administration
from glimpse_client.administration import usage_flow
from glimpse_client.drivers import AsyncDriver, BlockingDriver
from glimpse_client.flows import Flow, Request, Response
from glimpse_client.images import AsyncImages, Images
from glimpse_client.jobs import AsyncJobs, Jobs
from glimpse_client.retries import RetryPolicy
from glimpse_client.types import Usage

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
# Longer than the service holds an answer for `Prefer: wait`.
DEFAULT_TIMEOUT = 60.0
CONNECTIONS = 32
VERSION = "0.1.0"


def _headers(api_key: str | None) -> dict[str, str]:
    headers = {"user-agent": f"glimpse-client/{VERSION}", "accept": "application/json"}
    if api_key:
        headers["authorization"] = f"Bearer {api_key}"
    return headers


def _url(url: str | None) -> str:
    return (url or os.environ.get("GLIMPSE_URL") or DEFAULT_URL).rstrip("/")


def _key(api_key: str | None) -> str | None:
    return api_key or os.environ.get("GLIMPSE_API_KEY") or None


def _timeout(seconds: float) -> httpx2.Timeout:
    return httpx2.Timeout(seconds, connect=min(CONNECT_SECONDS, seconds))


def _limits() -> httpx2.Limits:
    # Below the time after which the service closes an idle connection.
    return httpx2.Limits(
        max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=4.0
    )


def _ready_flow() -> Flow[Response]:
    response: Response = yield Request("GET", "/ready", expect=frozenset({503}))
    return response


class Glimpse:
    """A blocking client. Use it as a context manager, or call `close`. Safe for several threads.

    `url` is the service's address (`GLIMPSE_URL`, else this machine), `api_key` the key
    (`GLIMPSE_API_KEY`, else none). `timeout` is in seconds for each wait of a request. `http` is a
    client of httpx2 to use instead of the default one; its base URL and headers are yours to set.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: RetryPolicy | None = None,
        http: httpx2.Client | None = None,
    ) -> None:
        self.url = _url(url)
        self._http = http or httpx2.Client(
            base_url=self.url,
            headers=_headers(_key(api_key)),
            timeout=_timeout(timeout),
            limits=_limits(),
            follow_redirects=True,
        )
        self._open(retries or RetryPolicy())

    def _open(self, policy: RetryPolicy) -> None:
        self._driver = BlockingDriver(self._http, policy)
        self.images = Images(self._driver)
        self.jobs = Jobs(self._driver)
        self.models = administration.Models(self._driver)
        self.keys = administration.Keys(self._driver)
        self.webhooks = administration.Webhooks(self._driver)
        self.dead_letters = administration.DeadLetters(self._driver)

    def with_options(self, *, retries: RetryPolicy) -> "Glimpse":
        """This client with other retries, on the same connections. Close only one of them."""
        other = Glimpse.__new__(Glimpse)
        other.url, other._http = self.url, self._http
        other._open(retries)
        return other

    def usage(self, *, days: int | None = None, all_keys: bool = False) -> list[Usage]:
        """The requests, images and bytes of this key by day; with `all_keys` of the tenant."""
        return self._driver.run(usage_flow(days, all_keys))

    def ready(self) -> Response:
        """The answer of `/ready`: 200, or 503 with the parts that fail."""
        return self._driver.run(_ready_flow())

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class AsyncGlimpse:
    """The client for asyncio: the same methods, each awaited. Arguments as for `Glimpse`."""

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: RetryPolicy | None = None,
        http: httpx2.AsyncClient | None = None,
    ) -> None:
        self.url = _url(url)
        self._http = http or httpx2.AsyncClient(
            base_url=self.url,
            headers=_headers(_key(api_key)),
            timeout=_timeout(timeout),
            limits=_limits(),
            follow_redirects=True,
        )
        self._open(retries or RetryPolicy())

    def _open(self, policy: RetryPolicy) -> None:
        self._driver = AsyncDriver(self._http, policy)
        self.images = AsyncImages(self._driver)
        self.jobs = AsyncJobs(self._driver)
        self.models = administration.AsyncModels(self._driver)
        self.keys = administration.AsyncKeys(self._driver)
        self.webhooks = administration.AsyncWebhooks(self._driver)
        self.dead_letters = administration.AsyncDeadLetters(self._driver)

    def with_options(self, *, retries: RetryPolicy) -> "AsyncGlimpse":
        """As `Glimpse.with_options`."""
        other = AsyncGlimpse.__new__(AsyncGlimpse)
        other.url, other._http = self.url, self._http
        other._open(retries)
        return other

    async def usage(self, *, days: int | None = None, all_keys: bool = False) -> list[Usage]:
        """As `Glimpse.usage`."""
        return await self._driver.run(usage_flow(days, all_keys))

    async def ready(self) -> Response:
        """As `Glimpse.ready`."""
        return await self._driver.run(_ready_flow())

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()
