"""Routes without FastAPI's handling of a call, for the few that are hot.

FastAPI opens two exit stacks for each call and resolves the endpoint's parameters. For a small
response that is half of its cost. A `RequestRoute` is documented as any other route, and calls an
endpoint that takes only the request at Starlette's cost.
"""

from collections.abc import Callable, Coroutine, Iterable
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.routing import Match, WebSocketRoute, request_response
from starlette.types import Scope

from core.http.openapi import operation_id
from core.http.query import DeclaredParameters, declared_parameters

# Options of APIRoute that FastAPI implements in the handling that these routes leave out.
_DROPPED = (
    "dependencies",
    "form_limits",
    "max_body_size",
    "response_model",
    "response_model_exclude",
    "response_model_exclude_defaults",
    "response_model_exclude_none",
    "response_model_exclude_unset",
    "response_model_include",
)


class RequestRoute(APIRoute):
    """The route of an endpoint that takes the request and returns the response.

    Use it as `APIRouter(route_class=RequestRoute)`. The operation id is the name of the endpoint.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        """Raises TypeError for options and parameters that would have no effect."""
        options["generate_unique_id_function"] = operation_id
        super().__init__(*args, **options)
        dropped = [name for name in _DROPPED if _given(options.get(name))]
        if dropped or self.response_field is not None:
            raise TypeError(f"{self.path}: no effect here: {', '.join(dropped) or 'a return type'}")
        declared = self.dependant
        if (
            declared.dependencies
            or declared.path_params
            or declared.query_params
            or declared.header_params
            or declared.cookie_params
            or declared.body_params
        ):
            raise TypeError(f"{self.path}: the endpoint may take the request and nothing else")
        self.parameters = declared_parameters(self)
        self.app = request_response(self.get_route_handler())

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        endpoint: Callable[[Request], Coroutine[Any, Any, Response]] = self.endpoint
        return endpoint


def _given(value: object) -> bool:
    return bool(value) or (value == 0 and value is not False)


class SocketRoute(WebSocketRoute):
    """A WebSocket route that stores itself in the scope, as FastAPI's routes do.

    `query` are the names of its query parameters.
    """

    def __init__(self, *args: Any, query: Iterable[str] = (), **options: Any) -> None:
        super().__init__(*args, **options)
        self.parameters = DeclaredParameters(frozenset(query))

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        return match, child if match is Match.NONE else {**child, "route": self}
