"""What the server, its protocols and the routes share: names, and access to headers."""

from starlette.types import Scope

ABORT = "glimpse.abort"  # an ASGI extension: closes a connection at once, and drops unsent bytes
WEBSOCKET_PREFIX = "/api/v1/ws/"  # the path of every WebSocket begins with it


def header_values(scope: Scope, name: bytes) -> list[str]:
    """Return the values of each header `name`, which is in lower case.

    Starlette's `Headers` costs twice as much: it copies the headers, and encodes the name.
    """
    return [value.decode("latin-1") for each, value in scope["headers"] if each == name]
