"""Routes whose endpoint takes the request and returns the response, at the price of Starlette's."""

from typing import Any

from fastapi.routing import APIRoute
from starlette.routing import Match, WebSocketRoute, request_response
from starlette.types import Scope


class RequestRoute(APIRoute):
    """Documented as FastAPI's routes are, and called without what FastAPI does around a call.

    For an endpoint that declares nothing but the request, that (two exit stacks, solving
    no dependencies) is half of what a small request costs. Use as `APIRouter(route_class=...)`.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """Raises TypeError where the endpoint declares what would then not be done for it."""
        super().__init__(*args, **kwargs)
        declared = self.dependant
        if (
            declared.dependencies
            or declared.path_params
            or declared.query_params
            or declared.header_params
            or declared.cookie_params
            or declared.body_params
        ):
            raise TypeError(f"{self.path}: the endpoint may declare the request and nothing else")
        self.app = request_response(self.endpoint)


class SocketRoute(WebSocketRoute):
    """A WebSocket's route that can be told from its scope, as FastAPI's routes can."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, child if match is Match.NONE else {**child, "route": self}
