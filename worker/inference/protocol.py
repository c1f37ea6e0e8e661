"""What the worker and its classifier processes say to each other over a stream socket.

A request is a frame of

    1 byte K, 4 bytes N, 4 bytes M, N bytes of JSON [identity, folder], M bytes

where K says what the M bytes are: nothing (load the model), an encoded image, or the path of a file
that holds one and is named by its SHA-256. Its highest bit asks that the image be worked on alone.
Each is answered, in order, by

    4 bytes N, N bytes of JSON {"annotations": [[label, confidence], ...], "steps", "together"}
                            or {"error": [code, detail, traceback], "steps", "together"}

where the steps are [[name, began, ended, images], ...] as in `core.observability.tracing`, and
`together` is how many images of the model the process takes as one batch. Lengths are big-endian.
Both ends are of one release, so there is no version.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import NamedTuple

from core.errors import (
    BundleError,
    GlimpseError,
    InvalidImage,
    NotFound,
    Unavailable,
    UndecodableImage,
)
from worker.errors import InferenceFailed

LOAD, IMAGE, FILE = range(3)
READ = "read image"  # the step that reads a file
# Most images that a process takes together. More gains little: what is shared is shared by then.
GROUP = 4
# What may come back, by its code; whatever else is raised comes back as InferenceFailed.
ERRORS: dict[str, type[GlimpseError]] = {
    error.code: error
    for error in (
        *(NotFound, Unavailable, InvalidImage, UndecodableImage),
        *(InferenceFailed, BundleError),
    )
}
REPLY = struct.Struct(">I")

_REQUEST = struct.Struct(">BII")
_ALONE = 0x80
_CHUNK = 1 << 18  # bytes; about what a socket holds


class Frame(NamedTuple):
    """One request. `name` is the model's, as JSON [identity, folder]."""

    kind: int
    name: bytes
    data: bytes
    alone: bool = False

    def packed(self) -> tuple[bytes, bytes]:
        """Head and data, apart: the data may be large, and need not be copied."""
        kind = self.kind | _ALONE if self.alone else self.kind
        return _REQUEST.pack(kind, len(self.name), len(self.data)) + self.name, self.data


class FrameReader:
    """The frames that come over a socket, which is closed by the other side at the end."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def take(self, most: int) -> list[Frame]:
        """The next frame, and up to `most` in all of those that are here by now.

        Waits for the first one. Empty at the end.
        """
        frame = self._next()
        while frame is None:
            received = self._connection.recv(_CHUNK)
            if not received:
                return []
            self._buffer += received
            frame = self._next()
        frames = [frame]
        while len(frames) < most and (frame := self._next() or self._arrived()) is not None:
            frames.append(frame)
        return frames

    def _arrived(self) -> Frame | None:
        """The frame that what has arrived completes, without waiting for more."""
        try:
            while received := self._connection.recv(_CHUNK, socket.MSG_DONTWAIT):
                self._buffer += received
                frame = self._next()
                if frame is not None:
                    return frame
        except BlockingIOError:
            pass
        return None

    def _next(self) -> Frame | None:
        buffer, head = self._buffer, _REQUEST.size
        if len(buffer) < head:
            return None
        kind, name_size, size = _REQUEST.unpack_from(buffer)
        middle, end = head + name_size, head + name_size + size
        if len(buffer) < end:
            return None
        with memoryview(buffer) as view:  # a slice of the buffer itself would be one more copy
            name, data = bytes(view[head:middle]), bytes(view[middle:end])
        del buffer[:end]
        return Frame(kind & ~_ALONE, name, data, bool(kind & _ALONE))


def packed_reply(document: Mapping[str, object]) -> bytes:
    body = json.dumps(document).encode()
    return REPLY.pack(len(body)) + body
