"""Closes connections whose request body was not read to the end."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.http.content_length import has_body

LINGER_SECONDS = 1.0
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class CloseOnUnreadBody:
    """Plain ASGI middleware: a response before the end of the body closes the connection.

    The response is sent at once. For `LINGER_SECONDS`, the rest of the body is read and discarded:
    closing the connection while the client sends would reset it, and a reset can discard the
    response before the client has read it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] in _WITHOUT_BODY or not has_body(scope):
            await self.app(scope, receive, send)
            return
        read_all = closing = False

        async def watched_receive() -> Message:
            nonlocal read_all
            message = await receive()
            read_all = not message.get("more_body", False)  # also false for a disconnect
            return message

        async def watched_send(message: Message) -> None:
            nonlocal closing
            if message["type"] == "http.response.start":
                closing = not read_all
                if closing:
                    headers = [*message["headers"], (b"connection", b"close")]
                    message = {**message, "headers": headers}
            elif closing and not message.get("more_body", False):
                await send({**message, "more_body": True})
                await discard()
                message = {"type": "http.response.body", "body": b"", "more_body": False}
            await send(message)

        async def discard() -> None:
            try:
                async with asyncio.timeout(LINGER_SECONDS):
                    while not read_all:
                        await watched_receive()
            except TimeoutError:
                pass

        await self.app(scope, watched_receive, watched_send)
