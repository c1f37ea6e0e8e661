"""."""

ABORT = "glimpse.abort"  # the extension of ASGI that drops a connection at once, unsent bytes too


PATHS = b"/api/v1/ws/"  # where there are WebSockets
