"""Serves the API below the path of `PUBLIC_URL`, whether or not a proxy removes that path."""

from starlette.types import ASGIApp, Receive, Scope, Send

from app.http.responses import EncodedResponse


class PathPrefix:
    """Plain ASGI middleware that removes `prefix` from the paths of requests that have it.

    `prefix` begins with a slash and does not end with one. `prefix` alone is redirected to the page
    below it, whose links are relative.
    """

    def __init__(self, app: ASGIApp, prefix: str) -> None:
        self.app = app
        self._prefix = prefix

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = scope.get("path", "")
        if path.startswith(f"{self._prefix}/"):
            scope = {**scope, "path": path[len(self._prefix) :]}
        elif path == self._prefix and scope["type"] == "http":
            headers = [(b"location", f"{self._prefix}/".encode()), (b"content-length", b"0")]
            await EncodedResponse(308, b"", headers)(scope, receive, send)
            return
        await self.app(scope, receive, send)
