"""Requests to addresses that strangers chose: over HTTP, and never into the network we are in.

A host is resolved once, every address it has must be public, and the connection goes to one of
those. The last check is where the socket is made, so whatever form an address had before, none is
connected to unchecked. No redirect is followed, no proxy asked, no cookie kept. Compare imgproxy's
advisory GHSA-j2hp-6m75-v4j4.
"""

import asyncio
import re
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any, Self

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from core.errors import GlimpseError, InvalidRequest
from core.outbound.addresses import is_public

LONGEST_URL = 2048
RESOLVERS = 8  # names looked up at once
CONNECT_SECONDS = 5.0
BUFFER = 4096  # bytes of an answer's body that may arrive before it is closed, unread
# What a C library reads as an IPv4 address, and the URL Standard too ("ends in a number").
_SHORT_ADDRESS = re.compile(r"^(?!\d+\.\d+\.\d+\.\d+$)(?:[^:]*\.)?(?:\d+|0[xX][0-9a-fA-F]*)\.?$")


class PrivateAddress(GlimpseError):
    """The address is not one of the public internet."""

    status, code, title = 422, "private_address", "Address not public"


class NoAnswer(Exception):
    """No answer came; the text says why, in words that hold no address of the network."""


def parse_url(text: str, *, allow_private: bool) -> URL:
    """The URL as the client reads it. Raises InvalidRequest, and PrivateAddress for a literal.

    With `allow_private` also `http` and any address.
    """
    try:
        url = URL(text)
        host, port = url.host or "", url.port
    except ValueError:
        raise _invalid("is not a URL") from None
    schemes = ("https", "http") if allow_private else ("https",)
    if len(text) > LONGEST_URL:
        raise _invalid(f"has more than {LONGEST_URL} characters")
    if any(ord(each) <= 0x20 or ord(each) == 0x7F for each in text):
        raise _invalid("holds a space or a control character")
    if url.scheme not in schemes:
        raise _invalid(f"begins with {' or '.join(f'{each}://' for each in schemes)}")
    if not host or not port:
        raise _invalid("names no host")
    if _SHORT_ADDRESS.search(host):
        raise _invalid("has an address that is not written in full")
    if url.raw_user is not None or url.raw_password is not None:
        raise _invalid("holds no user and no password")
    if url.fragment or text.endswith("#"):
        raise _invalid("has no fragment")
    if not allow_private:
        check_literal(host)
    return url


def check_literal(host: str) -> None:
    """Raise PrivateAddress where `host` is an IP address and not a public one."""
    try:
        public = is_public(host)
    except ValueError:
        return  # a name: what it leads to is checked when that is known
    if not public:
        raise private()


def private() -> PrivateAddress:
    return PrivateAddress("The URL leads to an address that is not public.")


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest(f"The URL {rule}.", extra={"field": "url"})


class PublicResolver(AbstractResolver):
    """Looks names up in threads of its own: a name that hangs holds up none but others like it.

    With `allow_private` every address is as good as a public one.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(RESOLVERS, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        """Every address of `host`. Raises OSError, and PrivateAddress if any is not public."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, _look_up, host, port, family
        )
        results: list[ResolveResult] = []
        for address_family, _, protocol, _, address in found:
            if not (self._allow_private or is_public(str(address[0]))):
                raise private()
            results.append(
                {
                    "hostname": host,
                    "host": str(address[0]),
                    "port": port,
                    "family": address_family,
                    "proto": protocol,
                    "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
                }
            )
        return results

    async def check(self, text: str, seconds: float) -> None:
        """Raise InvalidRequest for what is no URL of ours, PrivateAddress for what leads inside.

        A name that cannot be resolved within `seconds` passes: each use checks it again.
        """
        url = parse_url(text, allow_private=self._allow_private)
        if self._allow_private:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.resolve(url.raw_host or "", url.port or 443)
        except (OSError, UnicodeError):  # the first of which TimeoutError is
            return

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: int) -> list[Any]:
    return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


class PublicClient:
    """POSTs to anybody, within `seconds` each. Use with `async with`."""

    def __init__(self, seconds: float, *, allow_private: bool, user_agent: str) -> None:
        self.allow_private = allow_private
        self._timeout = aiohttp.ClientTimeout(
            total=seconds, sock_connect=min(seconds, CONNECT_SECONDS)
        )
        self._seconds = seconds
        self._user_agent = user_agent

    async def __aenter__(self) -> Self:
        self._resolver = PublicResolver(allow_private=self.allow_private)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                limit=0,  # who calls bounds it
                resolver=self._resolver,
                use_dns_cache=False,
                force_close=True,  # what was public a minute ago is asked for again
                socket_factory=self._socket,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"User-Agent": self._user_agent},
            auto_decompress=False,
            read_bufsize=BUFFER,
            trust_env=False,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()
        await self._resolver.close()

    async def post(self, text: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The answer's status. Raises PrivateAddress, InvalidRequest and NoAnswer."""
        url = parse_url(text, allow_private=self.allow_private)
        try:
            async with self._session.post(
                url, data=body, headers=headers, timeout=self._timeout, allow_redirects=False
            ) as response:
                response.close()  # whatever else it says, and however slowly
                return response.status
        except TimeoutError as error:
            raise NoAnswer(f"no answer within {self._seconds:g} s") from error
        except aiohttp.ClientConnectorDNSError as error:
            raise NoAnswer("the name cannot be resolved") from error
        except aiohttp.ClientSSLError as error:
            raise NoAnswer("TLS failed") from error
        except aiohttp.ClientConnectorError as error:
            raise NoAnswer("no connection") from error
        except (aiohttp.ClientError, UnicodeError, ValueError) as error:
            raise NoAnswer(f"no answer: {type(error).__name__}") from error

    def _socket(self, address: Any) -> socket.socket:
        """The socket that connects to this address. Raises PrivateAddress."""
        family, kind, protocol, _, target = address
        if not (self.allow_private or is_public(str(target[0]))):
            raise private()
        return socket.socket(family, kind, protocol)
