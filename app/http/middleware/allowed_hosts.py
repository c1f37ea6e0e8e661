"""Answering only to one's own names: against DNS rebinding, and poisoned links and caches."""

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import InvalidHost
from core.http.problems import response_for

# Load balancers and supervisors ask by address.
_ANY_HOST = ("/health", "/ready")


class AllowedHosts:
    """Plain ASGI middleware: 400 to a request for a host that is not among `hosts`.

    `*.example.org` means every host under that name. Ports do not matter.
    """

    def __init__(self, app: ASGIApp, hosts: tuple[str, ...]) -> None:
        self.app = app
        self._names = {host.lower() for host in hosts if not host.startswith("*.")}
        self._endings = tuple(host[1:].lower() for host in hosts if host.startswith("*."))
        self._any = "*" in hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket") or self._admits(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close"})
        else:
            refusal = response_for(InvalidHost("This service does not answer for that host."))
            await refusal(scope, receive, send)

    def _admits(self, scope: Scope) -> bool:
        if self._any or scope["path"] in _ANY_HOST:
            return True
        named = [value for name, value in scope["headers"] if name == b"host"]
        if len(named) != 1:
            return False
        host = _without_port(named[0].decode("latin-1").lower())
        return host in self._names or (bool(self._endings) and host.endswith(self._endings))


def _without_port(host: str) -> str:
    if host.startswith("["):  # an IPv6 address
        return host.partition("]")[0] + "]"
    return host.partition(":")[0]
