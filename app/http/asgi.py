"""Names that the server, its protocols and the routes share."""

ABORT = "glimpse.abort"  # an ASGI extension: closes a connection at once, and drops unsent bytes
WEBSOCKET_PREFIX = "/api/v1/ws/"  # the path of every WebSocket begins with it
