"""Requests to URLs of users never reach a private network, in any notation."""

import asyncio
import gzip
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from aiohttp.abc import ResolveResult

from core.errors import InvalidRequest
from core.outbound import http_client
from core.outbound.http_client import (
    MAX_URL_LENGTH,
    NoResponse,
    PrivateAddress,
    PublicClient,
    PublicResolver,
    open_public_client,
    parse_url,
)
from tests.support.clock import LoopClock
from tests.support.receivers import OK, Receiver, SilentReceiver, closed_port, listening, status
from tests.support.scripted_worker import until


@asynccontextmanager
async def a_client(
    seconds: float = 30.0, *, allow_private: bool = True
) -> AsyncIterator[PublicClient]:
    async with open_public_client(
        seconds, allow_private=allow_private, user_agent="Test/1"
    ) as client:
        yield client


LITERALS = [
    "127.0.0.1",
    "10.0.0.1",
    "169.254.169.254",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[64:ff9b::7f00:1]",
    "[2002:7f00:1::]",
    "[fe80::1]",
    "[fd00::1]",
    "0.0.0.0",
]
# What a C library may read as 127.0.0.1, and names that resolve to it.
DISGUISED = ["0177.0.0.1", "localhost", "LOCALHOST.", "ip6-localhost"]


@pytest.mark.parametrize("host", LITERALS)
def test_url_with_a_private_ip_address_is_refused(host: str) -> None:
    with pytest.raises(PrivateAddress):
        parse_url(f"https://{host}/hook", allow_private=False)
    assert parse_url(f"http://{host}:8000/hook", allow_private=True).port == 8000


@pytest.mark.parametrize("host", [*LITERALS, *DISGUISED])
async def test_client_never_connects_to_a_private_address(host: str) -> None:
    receiver = Receiver()
    async with (
        listening(receiver.serve) as port,
        a_client(seconds=5.0, allow_private=False) as client,
    ):
        with pytest.raises((PrivateAddress, NoResponse)):
            await client.post(f"https://{host}:{port}/", b"{}", {})
    assert receiver.connections == 0


@pytest.mark.parametrize("host", ["localhost", *LITERALS])
async def test_check_refuses_private_hosts(host: str) -> None:
    resolver = PublicResolver(allow_private=False)
    with pytest.raises(PrivateAddress):
        await resolver.check(f"https://{host}/hook", 30)
    await resolver.close()


async def test_check_accepts_a_name_that_does_not_resolve() -> None:
    resolver = PublicResolver(allow_private=False)
    await resolver.check("https://no-such-host.invalid/hook", 5)
    await resolver.close()
    async with a_client(seconds=5.0, allow_private=False) as client:
        with pytest.raises(NoResponse):
            await client.post("https://no-such-host.invalid/hook", b"{}", {})


class PermissiveResolver(PublicResolver):
    """Accepts every address, as a resolver with an error would."""

    def __init__(self, *, allow_private: bool) -> None:
        super().__init__(allow_private=True)


async def test_socket_is_refused_for_a_private_address_that_the_resolver_accepts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(http_client, "PublicResolver", PermissiveResolver)
    receiver = Receiver()
    async with listening(receiver.serve) as port, a_client(allow_private=False) as client:
        with pytest.raises(PrivateAddress):
            await client.post(f"https://localhost:{port}/", b"{}", {})
    assert receiver.connections == 0


async def test_resolver_returns_ip_addresses_only() -> None:
    resolver = PublicResolver(allow_private=True)
    found = await resolver.resolve("localhost", 443)
    assert {each["host"] for each in found} <= {"127.0.0.1", "::1"}
    assert all(each["flags"] & socket.AI_NUMERICHOST for each in found)
    await resolver.close()
    private = PublicResolver(allow_private=False)
    with pytest.raises(PrivateAddress):
        await private.resolve("localhost", 443)
    await private.close()


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("", "must begin"),
        ("example.com", "must begin"),
        ("http://example.com/", "must begin with https://"),
        ("ftp://example.com/", "must begin"),
        ("file:///etc/passwd", "must begin"),
        ("https://", "URL"),
        ("https:///path", "URL|host"),
        ("https://user@example.com/", "user"),
        ("https://user:pw@example.com/", "user"),
        ("https://example.com/#part", "fragment"),
        ("https://example.com/#", "fragment"),
        ("https://example.com:0/", "host|URL"),
        ("https://example.com:99999/", "URL"),
        ("https://exa mple.com/", "URL|space"),
        ("https://example.com/a b", "space"),
        ("https://example.com/\r\nX: y", "space|control"),
        ("https://[::1/", "URL"),
        *((f"https://{host}/", "abbreviated") for host in ("127.1", "2130706433", "0x7f000001")),
        *((f"https://{host}/", "abbreviated") for host in ("0177.1", "1.2.3.4.5", "0x7f.1")),
        ("https://example.com/" + "a" * MAX_URL_LENGTH, "characters"),
    ],
)
def test_invalid_url_is_refused(url: str, why: str) -> None:
    with pytest.raises(InvalidRequest, match=why):
        parse_url(url, allow_private=False)


async def test_post_sends_the_body_and_headers() -> None:
    receiver = Receiver(status(204))
    async with listening(receiver.serve) as port, a_client() as client:
        code = await client.post(
            f"http://localhost:{port}/hook?a=1", b'{"a":1}', {"webhook-id": "7"}
        )
    assert code == 204
    (request,) = receiver.requests
    assert request.raw.startswith(b"POST /hook?a=1 HTTP/1.1\r\n")
    assert request.body == b'{"a":1}'
    assert request.headers["webhook-id"] == "7"
    assert request.headers["user-agent"] == "Test/1"


async def test_proxy_of_the_environment_is_not_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    proxy = Receiver()
    receiver = Receiver(status(204))
    async with listening(proxy.serve) as proxy_port, listening(receiver.serve) as port:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy_port}")
        async with a_client() as client:
            assert await client.post(f"http://127.0.0.1:{port}/", b"{}", {}) == 204
    assert proxy.connections == 0


@pytest.mark.parametrize("code", [301, 302, 303, 307, 308])
async def test_redirect_is_returned_and_not_followed(code: int) -> None:
    target = Receiver()
    async with listening(target.serve) as target_port:
        receiver = Receiver(status(code, location=f"http://127.0.0.1:{target_port}/"))
        async with listening(receiver.serve) as port, a_client() as client:
            assert await client.post(f"http://127.0.0.1:{port}/", b"{}", {}) == code
    assert target.connections == 0


async def test_cookies_and_connections_are_not_kept() -> None:
    receiver = Receiver(OK.replace(b"OK\r\n", b"OK\r\nset-cookie: a=b\r\n"))
    async with listening(receiver.serve) as port, a_client() as client:
        for _ in range(2):
            assert await client.post(f"http://127.0.0.1:{port}/", b"{}", {}) == 200
    assert receiver.connections == 2
    assert "cookie" not in receiver.requests[1].headers


async def test_name_is_resolved_for_every_request(monkeypatch: pytest.MonkeyPatch) -> None:
    resolved: list[str] = []

    class CountingResolver(PublicResolver):
        async def resolve(
            self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
        ) -> list[ResolveResult]:
            resolved.append(host)
            return await super().resolve(host, port, family)

    monkeypatch.setattr(http_client, "PublicResolver", CountingResolver)
    async with listening(Receiver().serve) as port, a_client() as client:
        for _ in range(2):
            await client.post(f"http://localhost:{port}/", b"{}", {})
    assert resolved == ["localhost"] * 2


async def test_threads_of_the_resolver_end_with_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resolvers: list[PublicResolver] = []  # deleting a resolver would end its threads too

    def resolver(*, allow_private: bool) -> PublicResolver:
        resolvers.append(PublicResolver(allow_private=allow_private))
        return resolvers[-1]

    monkeypatch.setattr(http_client, "PublicResolver", resolver)

    def resolving() -> bool:
        return any(each.name.startswith("resolver") for each in threading.enumerate())

    async with listening(Receiver().serve) as port, a_client() as client:
        await client.post(f"http://localhost:{port}/", b"{}", {})
        assert resolving()
    await until(lambda: not resolving())


async def test_silent_receiver_times_out() -> None:
    async with listening(SilentReceiver().serve) as port, a_client(seconds=0.2) as client:
        with pytest.raises(NoResponse, match=r"no answer within 0\.2 s"):
            await client.post(f"http://127.0.0.1:{port}/", b"{}", {})


async def test_receiver_that_sends_endless_headers_times_out(loop_clock: LoopClock) -> None:
    async def dripping(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\n")
        for number in range(1000):
            writer.write(b"x-%d: y\r\n" % number)
            await writer.drain()
            await loop_clock.move(0.02)

    async with listening(dripping) as port, a_client(seconds=0.3) as client:
        with pytest.raises(NoResponse):
            await client.post(f"http://127.0.0.1:{port}/", b"{}", {})


@pytest.mark.parametrize("encoding", [b"identity", b"gzip"])
async def test_endless_body_is_not_read(encoding: bytes) -> None:
    """The client reads neither a large body nor a decompression bomb."""
    sent = 0
    chunk = gzip.compress(bytes(10_000_000))

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-encoding: %b\r\ncontent-length: 99999999999\r\n\r\n"
            % encoding
        )
        while sent < 1_000_000_000:
            writer.write(chunk)
            await writer.drain()
            sent += len(chunk)

    async with listening(endless) as port, a_client() as client:
        assert await client.post(f"http://127.0.0.1:{port}/", b"{}", {}) == 200
    assert sent < 50_000_000  # the size of the kernel's buffers


async def test_unreachable_and_invalid_receivers_give_no_response() -> None:
    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example.com ESMTP\r\n")
        await writer.drain()

    async with listening(rude) as port, a_client() as client:
        with closed_port() as unused:
            for where in (port, unused):
                with pytest.raises(NoResponse):
                    await client.post(f"http://127.0.0.1:{where}/", b"{}", {})
        with pytest.raises(NoResponse, match="TLS"):
            await client.post(f"https://127.0.0.1:{port}/", b"{}", {})
