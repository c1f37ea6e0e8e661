"""`@requires(scope)`: the endpoint runs for those who may, and learns who it is.

A decorator and not a FastAPI dependency: resolving one would cost more than a cached answer does.
"""

import inspect
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from fastapi import Request, Response
from starlette.requests import HTTPConnection

from app.services import services_of
from core.domain.principals import ANONYMOUS, Principal, Scope
from core.http.route_access import mark

Endpoint = Callable[..., Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Admission:
    """Who was let in is asked for a key again every `seconds`: `check` raises where it is bad."""

    seconds: float
    check: Callable[[], Awaitable[None]] | None


def requires(scope: Scope) -> Callable[[Endpoint], Endpoint]:
    """Let in only callers whose key has `scope`; the endpoint may have a parameter `principal`.

    Beside it the endpoint takes `request`, and whatever else FastAPI shall give it. Raises
    Unauthenticated, Forbidden, RateLimited before the endpoint or the body of the request is
    touched. Where no keys are asked for, the principal is `ANONYMOUS`.
    """

    def decorate(endpoint: Endpoint) -> Endpoint:
        signature = inspect.signature(endpoint)
        wants_principal = "principal" in signature.parameters

        async def guarded(request: Request, **others: Any) -> Response:
            # As `admitted`, which is one call more for each request.
            gate = services_of(request).gate
            principal = ANONYMOUS if gate is None else await gate.admit(request.scope, scope)
            if wants_principal:
                return await endpoint(request=request, principal=principal, **others)
            return await endpoint(request=request, **others)

        outside = [p for name, p in signature.parameters.items() if name != "principal"]
        # Where FastAPI looks for parameters; mypy's functions have no such attribute.
        guarded.__signature__ = signature.replace(parameters=outside)  # type: ignore[attr-defined]
        guarded.__name__, guarded.__doc__ = endpoint.__name__, endpoint.__doc__
        guarded.__module__ = endpoint.__module__
        return mark(guarded, scope)

    return decorate


async def admitted(connection: HTTPConnection, scope: Scope) -> Principal:
    """Who is on this connection, with a key that has `scope`; raises as `Gate.admit`."""
    gate = services_of(connection).gate
    return ANONYMOUS if gate is None else await gate.admit(connection.scope, scope)


def admission(connection: HTTPConnection, scope: Scope) -> Admission:
    """What asks, of a connection that lasts, whether its key would still be let in."""
    gate = services_of(connection).gate
    if gate is None:
        return Admission(math.inf, None)
    return Admission(gate.trusted_seconds, partial(gate.readmit, connection.scope, scope))


def count_image(request: Request, principal: Principal, size: int) -> None:
    """Note in the usage of the caller's key that an image of `size` bytes was uploaded."""
    gate = services_of(request).gate
    if gate is not None:
        gate.count_image(principal, size)
