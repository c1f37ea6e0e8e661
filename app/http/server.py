"""The API's server: uvicorn, with limits on connections and a stop that leaves nobody hanging."""

import asyncio
import resource
import socket

import uvicorn
from fastapi import FastAPI

from app.http.middleware.unread_body import LINGER_SECONDS
from app.http.protocol import ConnectionLimits, HttpProtocol, http_protocol
from app.http.websocket_protocol import MESSAGE_BYTES, PING_SECONDS, PONG_SECONDS, SocketProtocol
from core.settings import Settings

# Between the last answer and the end of the process, in which uvicorn notices that it is done.
LEAVING_SECONDS = 0.5
HEAD_SECONDS = 10.0  # in which a client must send the headers of a request
OTHER_CONNECTIONS = 1000  # those that serve no stream of live updates
OTHER_FILES = 200  # databases, blobs, and what else needs a file descriptor


def most_connections(settings: Settings) -> int:
    """How many connections one process serves at once."""
    return settings.max_streams + OTHER_CONNECTIONS


class Server(uvicorn.Server):
    """One that lets those who wait for a result go with what is known when it stops."""

    def __init__(self, settings: Settings, app: FastAPI) -> None:
        self._app = app
        self._seconds = settings.shutdown_seconds
        limits = ConnectionLimits(most_connections(settings), HEAD_SECONDS)
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
                ws_per_message_deflate=False,  # memory for each connection, and messages are short
                lifespan="on",
                access_log=False,
                log_config=None,
                server_header=False,
                proxy_headers=bool(settings.trusted_proxies),
                forwarded_allow_ips=list(settings.trusted_proxies),
                timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
            )
        )

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:  # once a second
            now = asyncio.get_running_loop().time()
            for connection in list(self.server_state.connections):
                if isinstance(connection, HttpProtocol):
                    connection.check(now)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        services = getattr(self._app.state, "services", None)
        if services is not None:
            # Senders are sent away early enough to hear it.
            services.stop(max(0.0, self._seconds - LINGER_SECONDS - LEAVING_SECONDS))
        await super().shutdown(sockets)


def raise_file_limit(connections: int) -> None:
    """Let this process have so many connections, as far as the system allows it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2 * connections + OTHER_FILES  # those that are refused need one as well
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))
