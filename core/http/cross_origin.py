"""Refuses requests that change something and come from a page of another origin.

A browser lets every page send certain requests to any address without asking that address first:
https://developer.mozilla.org/docs/Web/HTTP/Guides/CORS#simple_requests. A service without keys
would obey them. Browsers name the page's relation to the service in `Sec-Fetch-Site`
(https://www.w3.org/TR/fetch-metadata/), and older ones name only its `Origin`. Other programs send
neither header.
"""

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import CrossOriginRequest
from core.http.problems import response_for

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS", "TRACE")  # RFC 9110, 9.2.1
_OWN_SITES = ("same-origin", "none")  # none: the user typed the address


class SameOriginOnly:
    """Plain ASGI middleware: 403 for an unsafe method from another origin than `allowed`.

    An origin is `scheme://host:port`; `*` allows every origin.
    """

    def __init__(self, app: ASGIApp, allowed: tuple[str, ...] = ()) -> None:
        self.app = app
        self._allowed = frozenset(allowed)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] != "http"
            or scope["method"] in _SAFE_METHODS
            or self._accepts(Headers(scope=scope))
        ):
            await self.app(scope, receive, send)
            return
        refusal = response_for(CrossOriginRequest("Pages of another origin may not do this."))
        await refusal(scope, receive, send)

    def _accepts(self, headers: Headers) -> bool:
        origin, site = headers.get("origin"), headers.get("sec-fetch-site")
        if origin is None and site is None:
            return True
        if "*" in self._allowed or origin in self._allowed:
            return True
        if site is not None:
            return site in _OWN_SITES
        return is_own_origin(origin or "", headers.get("host", ""))


def is_own_origin(origin: str, host: str) -> bool:
    """Whether `origin` is the address of the request itself, by its `Host` header."""
    return bool(host) and origin.partition("://")[2] == host
