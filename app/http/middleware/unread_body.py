"""Closes connections whose request body was not read to the end."""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from core.http.content_length import has_body

# As nginx's `lingering_time` and `lingering_timeout`: in all, and between two pieces of the body.
LINGER_SECONDS, LINGER_PAUSE_SECONDS = 30.0, 5.0
SHORT_LINGER_SECONDS = 1.0  # used while the service is at capacity or shuts down
LINGER_BYTES = 64 * 1024 * 1024
_WITHOUT_BODY = ("GET", "HEAD", "OPTIONS")


class CloseOnUnreadBody:
    """Plain ASGI middleware: a response before the end of the body closes the connection.

    The response is sent at once. For at most `seconds`, at most LINGER_BYTES of the rest of the
    body are read and discarded, and less if the client pauses: closing the connection while the
    client sends would reset it, and a reset can discard the response before the client has read it.
    Many clients read the response only after they have sent the whole body.
    """

    def __init__(self, app: ASGIApp, seconds: float | None = None) -> None:
        """By default, `seconds` is LINGER_SECONDS."""
        self.app = app
        self._seconds = seconds

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
            left = LINGER_BYTES
            seconds = LINGER_SECONDS if self._seconds is None else self._seconds
            try:
                async with asyncio.timeout(seconds):
                    while not read_all and left > 0:
                        async with asyncio.timeout(LINGER_PAUSE_SECONDS):
                            left -= len((await watched_receive()).get("body", b""))
            except TimeoutError:
                pass

        await self.app(scope, watched_receive, watched_send)
