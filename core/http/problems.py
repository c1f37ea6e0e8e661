"""One error shape with one handler: `application/problem+json` (RFC 9457)."""

import http
import json
from collections.abc import Mapping

import structlog
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect
from starlette.routing import Match, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import GlimpseError, Unauthenticated

log = structlog.get_logger(__name__)

MEDIA_TYPE = "application/problem+json"
BEGUN = "answer_begun"  # in a request's state, by `RequestContext`


def problem_response(
    status: int,
    code: str,
    title: str,
    detail: str,
    *,
    extra: Mapping[str, object] | None = None,
    headers: Mapping[str, str] | None = None,
) -> Response:
    """A problem document.

    `type` is a URN made of the code, so that programs can branch on it; `code` repeats it bare.
    """
    document = {
        "type": f"urn:glimpse:problem:{code}",
        "title": title,
        "status": status,
        "detail": detail,
        "code": code,
        **(extra or {}),
    }
    return Response(
        json.dumps(document).encode(),
        status_code=status,
        media_type=MEDIA_TYPE,
        headers={"Cache-Control": "no-store", **(headers or {})},
    )


def response_for(error: GlimpseError) -> Response:
    """The answer for one of our own errors."""
    headers = {} if error.retry_after is None else {"Retry-After": str(error.retry_after)}
    if isinstance(error, Unauthenticated):
        headers["WWW-Authenticate"] = "Bearer"  # RFC 9110, 15.5.2: a 401 has to say how
    return problem_response(
        error.status, error.code, error.title, error.detail, extra=error.extra, headers=headers
    )


async def _on_disconnect(request: Request, error: Exception) -> Response:
    # Nobody reads this; the status (nginx's) says in our log what happened.
    return Response(status_code=499)


async def _on_glimpse_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, GlimpseError)
    level = log.error if error.status >= 500 else log.info
    # Who tries keys should be found; nobody else's address is written down.
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
    """Every method that the path has: Starlette names those of one route (RFC 9110, 15.5.6)."""
    matching = [
        route
        for route in request.app.routes
        if isinstance(route, Route) and route.matches(request.scope)[0] is not Match.NONE
    ]
    return sorted({method for route in matching for method in route.methods or ()})


async def _on_validation_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    errors = [
        {"field": ".".join(str(part) for part in item["loc"]), "message": str(item["msg"])}
        for item in error.errors()
    ]
    detail = "; ".join(f"{item['field']}: {item['message']}" for item in errors)
    return problem_response(
        422, "invalid_request", "Invalid request", detail, extra={"errors": errors}
    )


class AnswerUnexpected:
    """Plain ASGI middleware: `answer_unexpected` for what no handler knows.

    The innermost, where Starlette's own is the outermost: so what the others add to an answer, to
    a page elsewhere or to a client that still sends, this one has as well.
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

    Where an answer has begun it is raised instead: the server logs it, and breaks the connection,
    without which a reader would take half an answer for the whole.
    """
    return scope["type"] == "http" and BEGUN not in scope.get("state", ())


async def answer_unexpected(error: Exception, scope: Scope, receive: Receive, send: Send) -> None:
    """Log an error with its traceback and answer 500."""
    log.error("unexpected error", exc_info=error)
    response = problem_response(
        500,
        "internal_error",
        "Internal error",
        "The service failed. Nothing about it is your fault.",
    )
    await response(scope, receive, send)


def install_problem_handlers(app: FastAPI) -> None:
    """Answer every error of `app` with problem details."""
    app.add_exception_handler(GlimpseError, _on_glimpse_error)
    app.add_exception_handler(HTTPException, _on_http_exception)
    app.add_exception_handler(ClientDisconnect, _on_disconnect)
    app.add_exception_handler(RequestValidationError, _on_validation_error)
    app.user_middleware.append(Middleware(AnswerUnexpected))
