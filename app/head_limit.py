"""A bound on the head of a request, which uvicorn leaves open with httptools."""

from typing import Any

from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from core.problems import problem_response

_STATUS, _CODE, _TITLE = 431, "head_too_large", "Request header fields too large"
_DETAIL = "The request's line and headers are too large."


def bounded_protocol(max_bytes: int) -> type[HttpToolsProtocol]:
    """The protocol for uvicorn's `http`: 431 (RFC 6585) for a head of more than `max_bytes`."""

    class BoundedHead(HttpToolsProtocol):
        # What has come since the last request's head was complete.
        _in_head = False
        _seen = 0

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._in_head:
                self._seen += len(data)
                if self._seen > max_bytes:
                    self._refuse_endless_head()

        def on_message_begin(self) -> None:
            self._in_head, self._seen = True, 0
            super().on_message_begin()

        def on_headers_complete(self) -> None:
            self._in_head = False
            size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
            if size <= max_bytes:
                super().on_headers_complete()
                return
            app, self.app = self.app, _refuse
            try:
                super().on_headers_complete()
            finally:
                self.app = app

        def _refuse_endless_head(self) -> None:
            if self.transport.is_closing():
                return
            body = _refusal().body
            head = (
                f"HTTP/1.1 {_STATUS} {_TITLE}\r\nContent-Type: application/problem+json\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            )
            self.transport.write(head.encode() + bytes(body))
            self.transport.close()

    return BoundedHead


def _refusal() -> Any:
    return problem_response(_STATUS, _CODE, _TITLE, _DETAIL, headers={"Connection": "close"})


async def _refuse(scope: Scope, receive: Receive, send: Send) -> None:
    await _refusal()(scope, receive, send)
