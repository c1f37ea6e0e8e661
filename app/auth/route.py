"""Routes that authenticate the caller before FastAPI reads the body.

FastAPI resolves dependencies after it has read and parsed a body. These routes use its hook for
code around that, `APIRoute.get_route_handler`
(https://fastapi.tiangolo.com/how-to/custom-request-and-route/).
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.requests import ClientDisconnect
from starlette.types import Message, Receive, Scope, Send

from app.auth.requires import authenticate_early
from app.http.compression import compressed
from app.http.json_body import MAX_BYTES, NOT_JSON, check_content_type
from app.http.responses import NO_STORE
from core.domain import principals
from core.errors import BodyTooLarge, GlimpseError, UnsupportedMediaType
from core.http.openapi import operation_id, refusals
from core.http.problems import invalid_fields
from core.http.query import declared_parameters
from core.http.route_access import access_of

Handler = Callable[[Request], Awaitable[Response]]


class AuthenticatedRoute(APIRoute):
    """A route of FastAPI whose caller is authenticated first. No cache may keep its responses.

    The endpoint is decorated with `@requires(scope)`, and declares parameters and body as usual.
    A declared body is JSON. `max_body_size` is 16 KiB by default. The operation id is the name of
    the endpoint.
    """

    def __init__(
        self,
        path: str,
        endpoint: Callable[..., Any],
        *,
        max_body_size: int | None = None,
        **options: Any,
    ) -> None:
        # Not given to FastAPI: its limit applies before the caller is authenticated, and its
        # response is plain text.
        self._max_body_size = MAX_BYTES if max_body_size is None else max_body_size
        options["generate_unique_id_function"] = operation_id
        super().__init__(path, endpoint, **options)
        if self.body_field is not None:
            example: dict[type[GlimpseError], str] = {
                UnsupportedMediaType: NOT_JSON,
                BodyTooLarge: _too_large(self._max_body_size),
            }
            self.responses = {**refusals(*example, examples=example), **self.responses}
        self.parameters = declared_parameters(self)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle: Handler = super().get_route_handler()
        scope = access_of(self)

        async def authenticated(request: Request) -> Response:
            if isinstance(scope, principals.Scope):
                await authenticate_early(request, scope)
            if self.body_field is None:
                response = await handle(request)
            else:
                check_content_type(request)
                response = await _with_limited_body(handle, request, self._max_body_size)
            response.headers.setdefault("Cache-Control", NO_STORE)
            return await compressed(request, response)

        return authenticated


async def _with_limited_body(handle: Handler, request: Request, max_bytes: int) -> Response:
    """Call `handle` with a request whose body is limited.

    Raises BodyTooLarge, InvalidRequest if the body cannot be parsed, and ClientDisconnect.
    """
    response: Response | None = None

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        nonlocal response
        try:
            response = await handle(Request(scope, receive))
        except HTTPException as error:
            # FastAPI raises these for a body, the limiter's among them.
            if isinstance(error.__cause__, (ClientDisconnect, GlimpseError)):
                raise error.__cause__ from None
            if error.status_code == 413:
                raise BodyTooLarge(_too_large(max_bytes)) from None
            raise invalid_fields([{"type": "json_invalid", "loc": ("body",), "msg": ""}]) from None

    limiter = RequestBodyLimitMiddleware(app, max_body_size=max_bytes)
    await limiter(request.scope, request.receive, _send_nothing)
    assert response is not None
    return response


def _too_large(max_bytes: int) -> str:
    return f"The body has more than {max_bytes} bytes."


async def _send_nothing(message: Message) -> None:
    raise AssertionError("the response is sent by the route")
