"""HTTP requests to URLs that users choose, which never reach a private network (SSRF).

The resolver looks up a host once, requires that all its addresses are public, and the client
connects to one of those. The last check happens where the socket is created, so that no connection
bypasses it, whatever form the address had in the URL. The client uses no proxy and keeps no
cookies. It follows redirects of GET requests alone, each of which is checked like the first URL.
Compare imgproxy's advisory GHSA-j2hp-6m75-v4j4.
"""

import asyncio
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any

from yarl import URL

from core.errors import GlimpseError, InvalidRequest
from core.outbound.addresses import is_public

if TYPE_CHECKING:
    from aiohttp import ClientSession
    from aiohttp.abc import ResolveResult

MAX_URL_LENGTH = 2048
RESOLVER_THREADS = 8
MAX_REDIRECTS = 5  # for a GET request
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
READ_BUFFER = 4096  # bytes of a response's body that may arrive before the client closes it unread
# What a C library reads as an IPv4 address, and the URL Standard too ("ends in a number").
_SHORT_ADDRESS = re.compile(r"^(?!\d+\.\d+\.\d+\.\d+$)(?:[^:]*\.)?(?:\d+|0[xX][0-9a-fA-F]*)\.?$")


class PrivateAddress(GlimpseError):
    """The address does not belong to the public internet."""

    status, code, title = 422, "private_address", "Address not public"


class NoResponse(Exception):
    """The request got no response; the text says why, without addresses of the network."""


def parse_url(text: str, *, allow_private: bool, plain_http: bool = False) -> URL:
    """The URL as the client reads it. Raises InvalidRequest, and PrivateAddress for an IP address.

    `allow_private` also accepts `http` and private addresses, `plain_http` accepts `http`.
    """
    try:
        url = URL(text)
        host, port = url.host or "", url.port
    except ValueError:
        raise _invalid("is not a URL") from None
    schemes = ("https", "http") if allow_private or plain_http else ("https",)
    if len(text) > MAX_URL_LENGTH:
        raise _invalid(f"has more than {MAX_URL_LENGTH} characters")
    if any(ord(each) <= 0x20 or ord(each) == 0x7F for each in text):
        raise _invalid("contains a space or a control character")
    if url.scheme not in schemes:
        raise _invalid(f"must begin with {' or '.join(f'{each}://' for each in schemes)}")
    if not host or not port:
        raise _invalid("names no host")
    if _SHORT_ADDRESS.search(host):
        raise _invalid("has an abbreviated IP address")
    if url.raw_user is not None or url.raw_password is not None:
        raise _invalid("must not contain a user or a password")
    if url.fragment or text.endswith("#"):
        raise _invalid("must not have a fragment")
    if not allow_private:
        _check_literal(host)
    return url


def _check_literal(host: str) -> None:
    """Raise PrivateAddress if `host` is an IP address and not public."""
    try:
        public = is_public(host)
    except ValueError:
        return  # a name: its addresses are checked when they are known
    if not public:
        raise _private()


def _private() -> PrivateAddress:
    return PrivateAddress("The URL leads to an address that is not public.")


def _invalid(rule: str) -> InvalidRequest:
    return InvalidRequest(f"The URL {rule}.", extra={"field": "url"})


CHECK_SECONDS = 3.0  # longest lookup of the host of a URL that a client sets


class PublicResolver:
    """Resolves names in its own threads, so that a slow name server delays nothing else.

    `allow_private` accepts every address.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._threads = ThreadPoolExecutor(RESOLVER_THREADS, thread_name_prefix="resolver")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> "list[ResolveResult]":
        """Every address of `host`. Raises OSError, and PrivateAddress if any is not public."""
        found = await asyncio.get_running_loop().run_in_executor(
            self._threads, _look_up, host, port, family
        )
        results: list[ResolveResult] = []
        for address_family, _, protocol, _, address in found:
            if not (self._allow_private or is_public(str(address[0]))):
                raise _private()
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
        """Raise InvalidRequest for an invalid URL, PrivateAddress for one that is not public.

        Accepts a name that does not resolve within `seconds`: each use checks it again.
        """
        url = parse_url(text, allow_private=self._allow_private)
        if self._allow_private:
            return
        try:
            async with asyncio.timeout(seconds):
                await self.resolve(url.raw_host or "", url.port or 443)
        except (OSError, UnicodeError):  # OSError includes TimeoutError
            return

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _look_up(host: str, port: int, family: int) -> list[Any]:
    return socket.getaddrinfo(host, port, family=family, type=socket.SOCK_STREAM)


class PublicClient:
    """Sends requests to URLs that users choose. Made by `open_public_client`."""

    def __init__(self, seconds: float, *, allow_private: bool, user_agent: str, read_buffer: int):
        self._seconds = seconds
        self._allow_private = allow_private
        self._user_agent = user_agent
        self._read_buffer = read_buffer
        self._opening = asyncio.Lock()
        self._session: ClientSession | None = None
        self._opened = AsyncExitStack()

    async def post(self, text: str, body: bytes, headers: Mapping[str, str]) -> int:
        """The response's status. Raises PrivateAddress, InvalidRequest and NoResponse."""
        url = parse_url(text, allow_private=self._allow_private)
        session = await self._open_session()
        with self._explained():
            async with session.post(
                url, data=body, headers=headers, allow_redirects=False
            ) as response:
                response.close()  # without waiting for the body
                return response.status

    async def get(self, text: str, headers: Mapping[str, str]) -> AsyncIterator[bytes]:
        """The body of the response in chunks, all of it within the client's time.

        Follows at most `MAX_REDIRECTS`, and checks each address as the first one. Raises
        PrivateAddress, InvalidRequest, and NoResponse, also for a status other than 200.
        """
        session = await self._open_session()
        with self._explained():
            async with asyncio.timeout(self._seconds):
                for _ in range(1 + MAX_REDIRECTS):
                    url = parse_url(text, allow_private=self._allow_private, plain_http=True)
                    async with session.get(url, headers=headers, allow_redirects=False) as response:
                        location = response.headers.get("Location")
                        if response.status in _REDIRECTS and location:
                            text = str(url.join(URL(location)).with_fragment(None))
                            response.close()
                            continue
                        if response.status != 200:
                            raise NoResponse(f"status {response.status}")
                        async for chunk in response.content.iter_any():
                            yield chunk
                        return
                raise NoResponse(f"more than {MAX_REDIRECTS} redirects")

    async def close(self) -> None:
        await self._opened.aclose()

    async def _open_session(self) -> "ClientSession":
        """The session, which the first request opens."""
        async with self._opening:
            if self._session is None:
                open_session = await asyncio.to_thread(_import_aiohttp)
                resolver = PublicResolver(allow_private=self._allow_private)
                self._opened.push_async_callback(resolver.close)
                self._session = await self._opened.enter_async_context(
                    open_session(
                        resolver.resolve,
                        self._create_socket,
                        seconds=self._seconds,
                        user_agent=self._user_agent,
                        read_buffer=self._read_buffer,
                    )
                )
        return self._session

    def _create_socket(self, address: Any) -> socket.socket:
        family, kind, protocol, _, target = address
        if not (self._allow_private or is_public(str(target[0]))):
            raise _private()
        return socket.socket(family, kind, protocol)

    @contextmanager
    def _explained(self) -> Iterator[None]:
        """Raise NoResponse for the errors of a request."""
        from core.outbound.http_session import network_failure

        try:
            yield
        except TimeoutError as error:
            raise NoResponse(f"no answer within {self._seconds:g} s") from error
        except Exception as error:
            if reason := network_failure(error):
                raise NoResponse(reason) from error
            raise


def _import_aiohttp() -> "Callable[..., ClientSession]":
    """Import what opens a session. Call it in a thread, for the first request.

    aiohttp takes a seventh of the time in which a service starts, and most processes send no
    request to a URL of a user.
    """
    from core.outbound.http_session import open_session

    return open_session


@asynccontextmanager
async def open_public_client(
    seconds: float, *, allow_private: bool, user_agent: str, read_buffer: int = READ_BUFFER
) -> AsyncIterator[PublicClient]:
    """A client whose requests take at most `seconds` each.

    `read_buffer` is how many bytes of a response may wait until they are read.
    """
    client = PublicClient(
        seconds, allow_private=allow_private, user_agent=user_agent, read_buffer=read_buffer
    )
    try:
        yield client
    finally:
        await client.close()
