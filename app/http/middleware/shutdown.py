"""Responses to requests that the server cancels because it shuts down."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import Unavailable
from core.http.problems import response_for


class RespondWhenCancelled:
    """Plain ASGI middleware that answers a cancelled request with 503.

    The server cancels requests that are still running at the end of its shutdown timeout.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError as cancelled:
            if scope["type"] != "http":
                raise
            response = response_for(Unavailable("The service is shutting down. Retry the request."))
            response.headers["connection"] = "close"
            try:
                await response(scope, receive, send)
            except RuntimeError:
                # A response has started. Tracking that would cost every request something.
                raise cancelled from None
