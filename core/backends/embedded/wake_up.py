"""Wakes the queue process when another process publishes: datagrams to a socket in the data folder.

A datagram says only that there may be new messages. A lost one costs nothing but time, because the
queue also polls its database. https://man7.org/linux/man-pages/man7/unix.7.html
"""

import asyncio
import os
import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import structlog

log = structlog.get_logger(__name__)

NAME = "queue.sock"
_MAX_ADDRESS = 100  # bytes. Linux allows 107, macOS 103


class WakeUpSender:
    """Sends datagrams to the queue process of one data folder. Never blocks, and never fails."""

    def __init__(self, folder: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._folder = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        self._address = _address(folder, self._folder)
        self._due = False

    def send_soon(self) -> None:
        """Send one datagram for all calls in this iteration of the event loop.

        One fsync stores the messages of several callers, which continue together.
        """
        if not self._due:
            self._due = True
            asyncio.get_running_loop().call_soon(self._send_due)

    def _send_due(self) -> None:
        self._due = False
        self.send()

    def send(self) -> None:
        # Without a queue process, there is no socket. A full buffer already wakes it.
        with suppress(OSError):
            self._socket.sendto(b"", self._address)

    def close(self) -> None:
        self._socket.close()
        os.close(self._folder)


@contextmanager
def receiving(folder: Path, wake: Callable[[], None]) -> Iterator[bool]:
    """Call `wake` for the datagrams of other processes, in this event loop, during the context.

    Yields False if there can be no such socket. The caller is the only queue process of the folder.
    """
    loop = asyncio.get_running_loop()
    path = folder / NAME
    with (
        ExitStack() as opened,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver,
    ):
        receiver.setblocking(False)
        try:
            path.unlink(missing_ok=True)  # the socket of a queue process that was killed
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
            opened.callback(os.close, descriptor)
            receiver.bind(_address(folder, descriptor))
        except OSError as error:  # also a folder that is read-only at this moment
            log.warning("the queue polls often: no socket", reason=str(error.strerror or error))
            yield False
            return

        def read() -> None:
            with suppress(BlockingIOError):
                while True:
                    receiver.recv(1)
            wake()

        loop.add_reader(receiver, read)
        try:
            yield True
        finally:
            loop.remove_reader(receiver)
            with suppress(OSError):
                path.unlink(missing_ok=True)


def _address(folder: Path, opened: int) -> str:
    """The address of the socket, by an open descriptor of the folder if its path is too long."""
    address = str(folder.absolute() / NAME)
    if len(os.fsencode(address)) <= _MAX_ADDRESS:
        return address
    return f"/proc/self/fd/{opened}/{NAME}"
