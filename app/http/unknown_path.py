"""Responses for paths that no route has.

They have a code of their own: with the code of an unknown image, a client would take a typing error
in a URL for an image that it has to upload.
"""

import re

from fastapi import FastAPI
from starlette.routing import Match, WebSocketRoute
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket

from core.errors import GlimpseError
from core.http.problems import response_for

_SLASHES = re.compile(r"/{2,}")


class UnknownPath(GlimpseError):
    """The service has no route with the path of the request."""

    status, code, title = 404, "unknown_path", "Unknown path"


class UpgradeRequired(GlimpseError):
    """The path serves WebSocket connections, and the request is not a handshake."""

    status, code, title = 426, "upgrade_required", "Upgrade required"


def install_unknown_path(app: FastAPI) -> None:
    """Answer requests and WebSocket handshakes that no route of `app` matches."""

    async def unknown(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            refusal = response_for(_unknown(app, scope))
            await WebSocket(scope, receive, send).send_denial_response(refusal)
            return
        if _matches(app, {**scope, "type": "websocket"}, scope["path"]):
            error: GlimpseError = UpgradeRequired("This path serves WebSocket connections only.")
            response = response_for(error)
            response.headers["upgrade"] = "websocket"
        else:
            response = response_for(_unknown(app, scope))
        await response(scope, receive, send)

    app.router.default = unknown


def _unknown(app: FastAPI, scope: Scope) -> UnknownPath:
    path = scope["path"]
    candidate = _SLASHES.sub("/", path).rstrip("/")
    if candidate not in ("", path) and _matches(app, scope, candidate):
        return UnknownPath(f"There is no such path. Did you mean {candidate[:200]}?")
    return UnknownPath("There is no such path. /openapi.json lists the paths of this service.")


def _matches(app: FastAPI, scope: Scope, path: str) -> bool:
    return any(
        route.matches({**scope, "path": path})[0] is not Match.NONE
        for route in app.router.routes
        if isinstance(route, WebSocketRoute) == (scope["type"] == "websocket")
    )
