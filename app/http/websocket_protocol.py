"""uvicorn's WebSocket protocol, with an extension to drop connections."""

import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from app.http.asgi import ABORT

MESSAGE_BYTES = 4096  # the longest message that a client may send
# Seconds between pings, and for the reply to one.
PING_SECONDS, PONG_SECONDS = 20.0, 20.0

_log = logging.getLogger("uvicorn.websocket")
_log.setLevel(logging.WARNING)  # its log lines contain whole URLs


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection, handed over by `HttpProtocol`."""

    def handle_connect(self, event: Request) -> None:
        self.logger = _log
        super().handle_connect(event)
        if not self.close_sent:
            # uvicorn's task reads the scope after this method has returned.
            extensions: dict[str, Any] = {ABORT: self.transport.abort}
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), **extensions}

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        # The peer does not speak WebSocket: it would not understand a close frame.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self.transport.abort()
