"""`@requires(scope)` authenticates the caller of an endpoint and checks the key's scope.

It is a decorator and not a FastAPI dependency: resolving a dependency costs more than a cached
response does.
"""

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request
from starlette.requests import HTTPConnection

from app.services import services_of
from core.domain.principals import ANONYMOUS, Principal, Scope
from core.http.query import check_query
from core.http.route_access import mark

Endpoint = Callable[..., Awaitable[Any]]

_PRINCIPAL = "glimpse.principal"  # in a request's scope
_REQUEST = inspect.Parameter("request", inspect.Parameter.POSITIONAL_OR_KEYWORD, annotation=Request)


@dataclass(frozen=True, slots=True)
class KeyRecheck:
    """How an open connection checks its key again: every `seconds`, by calling `check`.

    `check` raises Unauthenticated or Forbidden if the key is no longer valid. It is None if the
    service requires no keys, and `key_id` is empty.
    """

    seconds: float
    check: Callable[[], Awaitable[None]] | None
    key_id: str = ""


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Require a key with `scope`.

    The endpoint takes `request` and `principal` if it needs them, and any other parameter that
    FastAPI resolves. Raises Unauthenticated, Forbidden and RateLimited before it calls the
    endpoint, and InvalidRequest for an undeclared query parameter; on an `AuthenticatedRoute`,
    before the request's body is read. Without keys, the principal is `ANONYMOUS`.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        signature = inspect.signature(endpoint)
        parameters = signature.parameters
        takes_request, takes_principal = "request" in parameters, "principal" in parameters

        async def authenticated(request: Request, **others: Any) -> Any:
            principal = request.scope.get(_PRINCIPAL)
            if principal is None:
                # The body of `authenticate`, inlined: a call less for each request.
                authenticator = services_of(request).authenticator
                principal = (
                    ANONYMOUS
                    if authenticator is None
                    else await authenticator.authenticate(request.scope, scope)
                )
                if request.scope["query_string"]:
                    check_query(request.scope)
            if takes_request:
                others["request"] = request
            if takes_principal:
                others["principal"] = principal
            return await endpoint(**others)

        outside = [p for name, p in parameters.items() if name not in ("request", "principal")]
        # FastAPI reads the parameters here; functions have no such attribute for mypy.
        authenticated.__signature__ = signature.replace(  # type: ignore[attr-defined]
            parameters=[_REQUEST, *outside]
        )
        authenticated.__name__, authenticated.__doc__ = endpoint.__name__, endpoint.__doc__
        authenticated.__module__ = endpoint.__module__
        return mark(authenticated, scope)

    return decorate


async def authenticate_early(request: Request, scope: Scope) -> None:
    """Authenticate the caller of an endpoint with `@requires(scope)` before FastAPI calls it.

    Checks the names of the query parameters, too.
    """
    request.scope[_PRINCIPAL] = await authenticate(request, scope)
    if request.scope["query_string"]:
        check_query(request.scope)


async def authenticate(connection: HTTPConnection, scope: Scope) -> Principal:
    """Return the caller of a connection whose key needs `scope`.

    Raises as `Authenticator.authenticate` does.
    """
    authenticator = services_of(connection).authenticator
    if authenticator is None:
        return ANONYMOUS
    return await authenticator.authenticate(connection.scope, scope)


def key_recheck(connection: HTTPConnection, scope: Scope, principal: Principal) -> KeyRecheck:
    """Return how a long-lived connection of `principal` checks again that its key is valid."""
    authenticator = services_of(connection).authenticator
    if authenticator is None:
        return KeyRecheck(math.inf, None)
    check = partial(authenticator.recheck, connection.scope, scope)
    return KeyRecheck(authenticator.trusted_seconds, check, principal.key_id)


async def spend_images(request: Request, principal: Principal, images: int) -> None:
    """Count the images of a request in the limits of the caller. Raises RateLimited."""
    authenticator = services_of(request).authenticator
    if authenticator is not None:
        await authenticator.spend_images(request.scope, principal, images)


async def reserve_email(request: Request, address: str) -> None:
    """Count an e-mail to `address` in its limit. Raises RateLimited."""
    authenticator = services_of(request).authenticator
    if authenticator is not None and address:
        await authenticator.reserve_email(address)


def count_image(request: Request, principal: Principal, size: int) -> None:
    """Count an uploaded image of `size` bytes in the usage of the caller's key."""
    authenticator = services_of(request).authenticator
    if authenticator is not None:
        authenticator.count_image(principal, size)
