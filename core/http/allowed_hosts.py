"""Serves only requests for known hosts: against DNS rebinding, and poisoned links and caches."""

from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import InvalidHost
from core.hosts import host_of
from core.http.problems import response_for

# Load balancers and supervisors use an IP address.
_ANY_HOST = ("/health", "/started", "/ready")
_HOSTS_KEPT = 16


class AllowedHosts:
    """Plain ASGI middleware that answers 400 to requests for hosts other than `hosts`.

    `*.example.org` allows every subdomain. Ports are ignored. The response names `setting`, by
    which an operator can add a host.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...], setting: str) -> None:
        self.app = app
        self._names = {host.lower() for host in hosts if not host.startswith("*.")}
        self._suffixes = tuple(host[1:].lower() for host in hosts if host.startswith("*."))
        self._all = "*" in hosts
        # Clients name few hosts, and each request has one.
        self._serves = lru_cache(_HOSTS_KEPT)(self._is_served)
        self._detail = f"This service does not serve that host. An operator can add it: {setting}."

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._allows(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            refusal = response_for(InvalidHost(self._detail))
            await refusal(scope, receive, send)

    def _allows(self, scope: Scope) -> bool:
        if self._all or scope["path"] in _ANY_HOST:
            return True
        named = [value for name, value in scope["headers"] if name == b"host"]
        return len(named) == 1 and self._serves(named[0])

    def _is_served(self, authority: bytes) -> bool:
        host = host_of(authority.decode("latin-1"))
        return host in self._names or (bool(self._suffixes) and host.endswith(self._suffixes))
