"""What each route asks of its caller, written on its endpoint, so that none can be without."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from starlette.routing import BaseRoute

from core.domain.principals import Scope

PUBLIC = "public"
_MARK = "__access__"

Endpoint = TypeVar("Endpoint", bound=Callable[..., Any])


def public(endpoint: Endpoint) -> Endpoint:
    """Mark an endpoint that answers everyone, or that checks its callers by itself."""
    return mark(endpoint, PUBLIC)


def mark(endpoint: Endpoint, access: Scope | str) -> Endpoint:
    setattr(endpoint, _MARK, access)
    return endpoint


def access_of(route: BaseRoute) -> Scope | str | None:
    """The scope that the route asks for, `PUBLIC`, or None where nothing is said."""
    return getattr(getattr(route, "endpoint", None), _MARK, None)


def every_route(routes: list[BaseRoute]) -> Iterator[BaseRoute]:
    """All routes, those inside of included routers and mounts as well."""
    for route in routes:
        inner = getattr(route, "original_router", route)
        if nested := getattr(inner, "routes", None):
            yield from every_route(nested)
        else:
            yield route


def check_every_route(routes: list[BaseRoute]) -> None:
    """Raises RuntimeError for a route of which nobody said who may use it."""
    for route in every_route(routes):
        if access_of(route) is None:
            methods = ",".join(sorted(getattr(route, "methods", None) or ()))
            path = getattr(route, "path", route)
            raise RuntimeError(
                f"{methods} {path} says neither which scope it requires nor that it is public"
            )
