"""What a client hears whose request is cut off because the service stops."""

import asyncio

from starlette.types import ASGIApp, Receive, Scope, Send

from core.errors import Unavailable
from core.http.problems import response_for


class AnswerWhenCancelled:
    """Plain ASGI middleware: 503 in place of the broken connection of a cancelled request.

    Only a server that stops and can wait no longer cancels requests.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.app(scope, receive, send)
        except asyncio.CancelledError as cancelled:
            if scope["type"] != "http":
                raise
            response = response_for(Unavailable("The service is stopping; try again."))
            response.headers["connection"] = "close"
            try:
                await response(scope, receive, send)
            except RuntimeError:
                # An answer has begun. To watch for that would cost every request something.
                raise cancelled from None
