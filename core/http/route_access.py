"""The access that each route requires. It is written on the endpoint, so that none can lack it."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from starlette.routing import BaseRoute

from core.domain.principals import Scope

PUBLIC = "public"
_MARK = "__access__"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def public(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that serves every caller, or that authenticates callers itself."""
    return mark(endpoint, PUBLIC)


def mark(endpoint: Endpoint, access: Scope | str) -> Endpoint:
    setattr(endpoint, _MARK, access)
    return endpoint


def access_of(route: BaseRoute) -> Scope | str | None:
    """Return the scope that the route requires, `PUBLIC`, or None if its endpoint has no mark."""
    return getattr(getattr(route, "endpoint", None), _MARK, None)


def every_route(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    """Yield all routes, including those of included routers and mounts."""
    for route in routes:
        inner = getattr(route, "original_router", route)
        if nested := getattr(inner, "routes", None):
            yield from every_route(nested)
        else:
            yield route


def check_every_route(routes: list[BaseRoute]) -> None:
    """Raise RuntimeError for a route whose endpoint has no mark."""
    for route in every_route(routes):
        if access_of(route) is None:
            methods = ",".join(sorted(getattr(route, "methods", None) or ()))
            path = getattr(route, "path", route)
            raise RuntimeError(f"{methods} {path} declares neither a scope nor public access")
