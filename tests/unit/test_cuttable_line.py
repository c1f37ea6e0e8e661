"""The line that the chaos suite cuts: what it lets through, and what not."""

import contextlib
import socket
import threading
from collections.abc import Iterator

import pytest

from tests.chaos.cuttable_line import CuttableLine
from tests.support.stack import free_port


@contextlib.contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        yield connection


def ended(connection: socket.socket) -> bool:
    """Closed or broken from the other side, with nothing to read."""
    try:
        return connection.recv(1) == b""
    except ConnectionError:
        return True


@pytest.fixture
def far_end() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(10)
        yield server


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def line(far_end: socket.socket, port: int) -> Iterator[CuttableLine]:
    with CuttableLine(port, far_end.getsockname()[1]) as line:
        yield line


def test_it_passes_both_ways_and_each_end_of_a_way(
    line: CuttableLine, far_end: socket.socket, port: int
) -> None:
    sent = bytes(range(256)) * 4096  # more than a buffer holds

    def answer() -> None:
        connection, _ = far_end.accept()
        with connection, connection.makefile("rb") as stream:
            connection.sendall(stream.read()[::-1])

    thread = threading.Thread(target=answer)
    thread.start()
    with connected(port) as near:
        near.sendall(sent)
        near.shutdown(socket.SHUT_WR)
        with near.makefile("rb") as stream:
            assert stream.read() == sent[::-1]
    thread.join(10)


def test_cut_closes_connections_and_refuses_new_ones_until_restored(
    line: CuttableLine, far_end: socket.socket, port: int
) -> None:
    with connected(port) as near:
        far, _ = far_end.accept()
        with far, line.cut():
            with contextlib.suppress(ConnectionError):
                far.sendall(b"too late")
            assert ended(near)
            assert ended(far)
            with pytest.raises(ConnectionError), connected(port):
                pass
    with connected(port) as near:
        far, _ = far_end.accept()
        with far:
            far.sendall(b"again")
            assert near.recv(5) == b"again"


def test_end_of_the_far_connection_ends_the_near_one(
    line: CuttableLine, far_end: socket.socket, port: int
) -> None:
    with connected(port) as near:
        far, _ = far_end.accept()
        far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
        far.close()  # a reset, as of a process that was killed
        assert ended(near)


def test_connection_ends_if_no_server_listens(port: int) -> None:
    with CuttableLine(port, free_port()), connected(port) as near:
        assert ended(near)
