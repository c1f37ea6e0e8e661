"""The part of `core.outbound.http_client` that uses aiohttp. The first request imports it."""

import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult

CONNECT_SECONDS = 5.0

# Gives the addresses of a host, a port and an address family.
Resolve: TypeAlias = Callable[[str, int, socket.AddressFamily], Awaitable[list[ResolveResult]]]


class _Resolver(AbstractResolver):
    def __init__(self, resolve: Resolve) -> None:
        self._resolve = resolve

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return await self._resolve(host, port, family)

    async def close(self) -> None:
        """Nothing to do: `resolve` belongs to the caller."""


def open_session(
    resolve: Resolve,
    create_socket: Callable[[Any], socket.socket],
    *,
    seconds: float,
    user_agent: str,
    read_buffer: int,
) -> aiohttp.ClientSession:
    """A session whose connections go to addresses of `resolve`, through sockets of `create_socket`.

    A request takes at most `seconds`. Close the session.
    """
    connector = aiohttp.TCPConnector(
        limit=0,  # callers limit their requests
        resolver=_Resolver(resolve),
        use_dns_cache=False,
        force_close=True,  # an address that was public a minute ago is resolved again
        socket_factory=create_socket,
    )
    return aiohttp.ClientSession(
        connector=connector,
        cookie_jar=aiohttp.DummyCookieJar(),
        headers={"User-Agent": user_agent},
        timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=min(seconds, CONNECT_SECONDS)),
        auto_decompress=False,
        read_bufsize=read_buffer,
        trust_env=False,
    )


def network_failure(error: Exception) -> str | None:
    """Why a request got no response, without addresses of the network. None for other errors."""
    match error:
        case aiohttp.ClientConnectorDNSError():
            return "the name cannot be resolved"
        case aiohttp.ClientSSLError():
            return "TLS failed"
        case aiohttp.ClientConnectorError():
            return "no connection"
        case aiohttp.ClientError() | UnicodeError() | ValueError():
            return f"no answer: {type(error).__name__}"
    return None
