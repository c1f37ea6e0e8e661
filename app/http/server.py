"""The API's server: uvicorn with limits on connections and a shutdown that answers requests."""

import asyncio
import resource
import socket

import uvicorn
from fastapi import FastAPI

from app.http.middleware.unread_body import SHORT_LINGER_SECONDS
from app.http.protocol import ConnectionLimits, HttpProtocol, http_protocol
from app.http.websocket_protocol import MESSAGE_BYTES, PING_SECONDS, PONG_SECONDS, SocketProtocol
from core.domain.policy import SHUTDOWN_SECONDS
from core.http.server import BaseServer
from core.settings import Settings

EXIT_SECONDS = 0.5  # time that uvicorn needs after the last response to notice that it is done
HEAD_SECONDS = 10.0  # the time for the headers of a request
KEEP_ALIVE_MARGIN = 1  # seconds
OTHER_CONNECTIONS = 1000  # connections that are not streams
OTHER_FILES = 200  # file descriptors of databases, blobs and others


def max_connections(settings: Settings) -> int:
    """The number of connections that one process serves at once."""
    return settings.max_streams + OTHER_CONNECTIONS


class Server(BaseServer):
    """Ends waits and streams at shutdown, before uvicorn waits for their responses."""

    def __init__(
        self, settings: Settings, app: FastAPI, shutdown_seconds: float = SHUTDOWN_SECONDS
    ) -> None:
        self._app = app
        self._seconds = shutdown_seconds
        idle = settings.keep_alive_seconds
        limits = ConnectionLimits(max_connections(settings), HEAD_SECONDS, idle)
        super().__init__(
            uvicorn.Config(
                app,
                host=settings.host,
                port=settings.port or settings.api_port,
                loop="uvloop",
                http=http_protocol(limits),
                ws=SocketProtocol,
                ws_max_size=MESSAGE_BYTES,
                ws_ping_interval=PING_SECONDS,
                ws_ping_timeout=PONG_SECONDS,
                ws_per_message_deflate=False,  # it costs memory, and messages are short
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                # Later than announced: a request may be on its way.
                timeout_keep_alive=idle + KEEP_ALIVE_MARGIN,
                timeout_graceful_shutdown=round(shutdown_seconds),
            )
        )

    async def on_tick(self, counter: int) -> bool:
        now = asyncio.get_running_loop().time()
        for connection in list(self.server_state.connections):
            if isinstance(connection, HttpProtocol):
                connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None:
            # Uploads end early enough for their clients to receive the response.
            services.stop(max(0.0, self._seconds - SHORT_LINGER_SECONDS - EXIT_SECONDS))
        await super().shutdown(sockets)


def raise_file_limit(connections: int) -> None:
    """Raise the limit of open files for this many connections, up to the system's maximum."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + OTHER_FILES  # refused connections need one, too
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
