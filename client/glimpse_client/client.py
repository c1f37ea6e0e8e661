"""The clients: `Glimpse` blocks, `AsyncGlimpse` is for asyncio."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable
from copy import copy
from typing import Any, Generic, Self, TypeVar

import httpx2

from glimpse_client import administration
from glimpse_client.administration import usage_flow
from glimpse_client.drivers import AsyncDriver, BlockingDriver
from glimpse_client.flows import Flow, Request, Response
from glimpse_client.images import AsyncImages, Images
from glimpse_client.jobs import AsyncJobs, Jobs
from glimpse_client.methods import async_blocking, blocking
from glimpse_client.retries import RetryPolicy
from glimpse_client.types import Usage

DEFAULT_URL = "http://127.0.0.1:8080"
CONNECT_SECONDS = 5.0
# Longer than the service holds an answer for `Prefer: wait`.
DEFAULT_TIMEOUT = 60.0
CONNECTIONS = 32
VERSION = "0.1.0"

H = TypeVar("H", httpx2.Client, httpx2.AsyncClient)


def _arguments(url: str, api_key: str | None, timeout: float) -> dict[str, Any]:
    """The arguments of httpx2's client."""
    headers = {"user-agent": f"glimpse-client/{VERSION}", "accept": "application/json"}
    if key := api_key or os.environ.get("GLIMPSE_API_KEY"):
        headers["authorization"] = f"Bearer {key}"
    return {
        "base_url": url,
        "headers": headers,
        "timeout": httpx2.Timeout(timeout, connect=min(CONNECT_SECONDS, timeout)),
        # Connections expire before the service closes an idle one.
        "limits": httpx2.Limits(
            max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS, keepalive_expiry=4.0
        ),
        "follow_redirects": True,
    }


def _url(url: str | None) -> str:
    return (url or os.environ.get("GLIMPSE_URL") or DEFAULT_URL).rstrip("/")


class _Client(ABC, Generic[H]):
    """What both clients share. `H` is the client of httpx2 that they use."""

    _http_type: Callable[..., H]

    def __init__(
        self,
        url: str | None = None,
        *,
        api_key: str | None = None,
        timeout: float = DEFAULT_TIMEOUT,
        retries: RetryPolicy | None = None,
        http: H | None = None,
    ) -> None:
        """`url` is the service's address (`GLIMPSE_URL`, else this machine), `api_key` the key
        (`GLIMPSE_API_KEY`, else none).

        `timeout` is in seconds for each wait of a request. `http` is a client of httpx2 to use
        instead of the default one; its base URL and headers are yours to set.
        """
        self.url = _url(url)
        self._http: H = http or self._http_type(**_arguments(self.url, api_key, timeout))
        self._open(retries or RetryPolicy())

    @abstractmethod
    def _open(self, policy: RetryPolicy) -> None:
        """Create the parts of the client, which retry as `policy` says."""

    def with_options(self, *, retries: RetryPolicy) -> Self:
        """This client with other retries, on the same connections. Close only one of them."""
        other = copy(self)
        other._open(retries)
        return other


class Glimpse(_Client[httpx2.Client]):
    """A blocking client. Use it as a context manager, or call `close`. Safe for several threads."""

    _http_type = httpx2.Client

    def _open(self, policy: RetryPolicy) -> None:
        self._driver = BlockingDriver(self._http, policy)
        self.images = Images(self._driver)
        self.jobs = Jobs(self._driver)
        self.models = administration.Models(self._driver)
        self.keys = administration.Keys(self._driver)
        self.webhooks = administration.Webhooks(self._driver)
        self.dead_letters = administration.DeadLetters(self._driver)

    @blocking
    def usage(self, *, days: int | None = None, all_keys: bool = False) -> Flow[list[Usage]]:
        """The requests, images and bytes of this key by day; with `all_keys` of the tenant."""
        return usage_flow(days, all_keys)

    @blocking
    def ready(self) -> Flow[Response]:
        """The answer of `/ready`: 200, or 503 with the parts that fail."""
        response: Response = yield Request("GET", "/ready", expect=frozenset({503}))
        return response

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class AsyncGlimpse(_Client[httpx2.AsyncClient]):
    """The client for asyncio: the methods of `Glimpse`, each awaited."""

    _http_type = httpx2.AsyncClient

    def _open(self, policy: RetryPolicy) -> None:
        self._driver = AsyncDriver(self._http, policy)
        self.images = AsyncImages(self._driver)
        self.jobs = AsyncJobs(self._driver)
        self.models = administration.AsyncModels(self._driver)
        self.keys = administration.AsyncKeys(self._driver)
        self.webhooks = administration.AsyncWebhooks(self._driver)
        self.dead_letters = administration.AsyncDeadLetters(self._driver)

    usage = async_blocking(Glimpse.usage)
    ready = async_blocking(Glimpse.ready)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()
