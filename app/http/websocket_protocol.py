"""uvicorn's WebSocket protocol, with what it leaves out."""

import logging
from typing import Any

from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Request

from app.http.asgi import ABORT

MESSAGE_BYTES = 4096  # the longest message of a client
# A peer that answers no ping for so long is gone; seconds.
PING_SECONDS, PONG_SECONDS = 20.0, 20.0

_log = logging.getLogger("uvicorn.websocket")
_log.setLevel(logging.WARNING)  # its lines about connections quote whole addresses; ours do not


class SocketProtocol(WebSocketsSansIOProtocol):
    """One connection, taken over from `HttpProtocol`."""

    def handle_connect(self, event: Request) -> None:
        self.logger = _log
        super().handle_connect(event)
        if not self.close_sent:
            # uvicorn's task with the scope does not run before we return.
            extensions: dict[str, Any] = {ABORT: self.transport.abort}
            self.scope["extensions"] = {**(self.scope["extensions"] or {}), **extensions}

    def handle_parser_exception(self) -> None:
        if self.conn.close_sent is not None:
            super().handle_parser_exception()
            return
        # Something else than the beginning of a WebSocket: nobody there would understand a frame.
        self.queue.put_nowait({"type": "websocket.disconnect", "code": 1006})
        self.transport.abort()
