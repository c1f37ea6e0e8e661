"""One error shape with one handler: `application/problem+json` (RFC 9457)."""

import http
import json
from collections.abc import Collection, Mapping
from typing import Any

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import GlimpseError, InvalidRequest, Unauthenticated
from core.http.validation_messages import message_of

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
RESPONSE_STARTED = "response_started"  # in a request's state, set by `RequestContext`
MAX_NAMED_ERRORS = 10
# The first part of an error's location in FastAPI, which says where the field was expected.
_PLACES = ("body", "cookie", "header", "path", "query")


def problem_document(
    status: int, code: str, title: str, detail: str, extra: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the members of a problem document. `extra` has further ones."""
    return {
        "type": f"urn:glimpse:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """Return a problem document.

    `type` is a URN that ends with the code; `code` is the same without the prefix.
    """
    document = problem_document(status, code, title, detail, extra)
    return Response(
        json.dumps(document).encode(),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def response_for(error: GlimpseError) -> Response:
    """Return the response for a GlimpseError."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # required with 401 (RFC 9110, 15.5.2)
    return problem_response(
        error.status, error.code, error.title, error.detail, extra=error.extra, headers=headers
    )


def invalid_fields(errors: list[Any], known: Collection[str] = ()) -> InvalidRequest:
    """Turn validation errors of pydantic into one InvalidRequest, which names the first fields.

    It does not repeat input: neither values, nor the names of unknown fields. `known` are the names
    of the fields that the document may have.
    """
    named = [
        {"field": _field(error), "message": message_of(error, known)}
        for error in errors[:MAX_NAMED_ERRORS]
    ]
    detail = "; ".join(f"{error['field']}: {error['message']}" for error in named)
    return InvalidRequest(detail, extra={"field": named[0]["field"], "errors": named})


def _field(error: Mapping[str, Any]) -> str:
    place, *path = error["loc"] or ("body",)
    if place not in _PLACES:
        path = [place, *path]
    if error["type"] == "extra_forbidden":
        return ".".join(map(str, [*path[:-1], "unknown field"]))
    if error["type"] == "json_invalid" or not path:
        return str(place) if place in _PLACES else "body"
    return ".".join(map(str, path))


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # No client reads this response. Its status (nginx's) is for the log and the metrics.
    return Response(status_code=499)


async def _on_glimpse_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GlimpseError)
    level = log.error if error.status >= 500 else log.info
    # Addresses are logged only of clients that fail to authenticate.
    who = {"client": request.client.host} if error.status == 401 and request.client else {}
    level("request refused", status=error.status, code=error.code, detail=error.detail, **who)
    return response_for(error)


async def _on_http_exception(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    phrase = http.HTTPStatus(error.status_code).phrase
    code = phrase.lower().replace(" ", "_").replace("-", "_").replace("'", "")
    headers = error.headers
    if error.status_code == 405:
        headers = {"Allow": ", ".join(_methods_at(request))}
    return problem_response(error.status_code, code, phrase, str(error.detail), headers=headers)


def _methods_at(request: Request) -> list[str]:
    """Return every method of the path (RFC 9110, 15.5.6): Starlette names those of one route."""
    matching = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    methods = {method for route in matching for method in route.methods or ()}
    return sorted(methods | {"HEAD"} if "GET" in methods else methods)


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    body = getattr(request.scope.get("route"), "body_field", None)
    known = fields_of(body.field_info.annotation) if body is not None else ()
    return await _on_glimpse_error(request, invalid_fields(list(error.errors()), known))


def fields_of(model: object) -> Collection[str]:
    """Return the names of the fields of a model of pydantic; none for other types."""
    return getattr(model, "model_fields", {}).keys()


class UnexpectedErrors:
    """Plain ASGI middleware that answers errors which no handler knows.

    It is the innermost middleware, where Starlette's is the outermost: its response passes the
    others, which add headers and treat an unread body.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except Exception as error:
            if not unanswered(scope):
                raise
            await answer_unexpected(error, scope, receive, send)


def unanswered(scope: Scope) -> bool:
    """Whether an error can still be answered.

    After the response has started, the error is raised instead: the server logs it and closes the
    connection, without which a client would take a part of the response for all of it.
    """
    return scope["type"] == "http" and RESPONSE_STARTED not in scope.get("state", ())


async def answer_unexpected(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Log an error with its traceback and respond with 500."""
    log.error("unexpected error", exc_info=error)
    response = problem_response(
        500,
        "internal_error",
        "Internal error",
        "The service failed. The request is not at fault.",
    )
    await response(scope, receive, send)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with problem details."""
    app.add_exception_handler(GlimpseError, _on_glimpse_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.user_middleware.append(Middleware(UnexpectedErrors))
