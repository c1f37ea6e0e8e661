"""The protocol between the worker and its classifier processes, over a stream socket.

A request is a frame of

    1 byte K, 4 bytes N, 4 bytes M, N bytes of JSON [identity, path], M bytes

where K says what the M bytes are: nothing (load the model), an encoded image, the path of a file
that holds one and is named by its SHA-256, or an embedding, which a head classifies. The path leads
to the folder of a bundle, or to the file of a head. The highest bit of K keeps the image out of any
batch. The second highest asks for the image's embedding instead of its labels.
The replies come in the order of the requests:

    4 bytes N, 4 bytes M, N bytes of JSON, M bytes of the image's thumbnail

where the JSON is
        {"annotations": [[label, confidence], ...], "categories", "confident", "output",
         "steps", "batch_size"}
        or {"embedding": base64 of float32 in little-endian, "steps", "batch_size"}
        or {"error": [code, detail, traceback], "steps", "batch_size"}

where categories are like annotations, the steps are [[name, began, ended, images], ...] as in
`worker.inference.steps`, and `batch_size` is how many images of the model the process runs as one
batch. Lengths are big-endian.
Both ends belong to one release, so the protocol has no version.
"""

import json
import socket
import struct
from collections.abc import Mapping
from typing import Any, NamedTuple

from core.errors import (
    BundleError,
    GlimpseError,
    InvalidImage,
    NotFound,
    Unavailable,
    UndecodableImage,
)
from worker.errors import InferenceFailed, PredictionFailed

LOAD, IMAGE, FILE, EMBEDDING = range(4)
READ = "read image"  # the step that reads a file
MAX_BATCH = 4  # larger batches gain little
# The errors that a reply may name, by code. Any other exception is sent as InferenceFailed.
ERRORS: dict[str, type[GlimpseError]] = {
    error.code: error
    for error in (
        *(NotFound, Unavailable, InvalidImage, UndecodableImage),
        *(InferenceFailed, PredictionFailed, BundleError),
    )
}
REPLY = struct.Struct(">II")

_REQUEST = struct.Struct(">BII")
_ALONE, _EMBED = 0x80, 0x40
_CHUNK = 1 << 18  # bytes; about what a socket holds


class Frame(NamedTuple):
    """One request. `name` is the model's, as JSON [identity, path].

    `alone` keeps the image out of any batch. `embed` asks for its embedding.
    """

    kind: int
    name: bytes
    data: bytes
    alone: bool = False
    embed: bool = False

    def packed(self) -> tuple[bytes, bytes]:
        """Head and data as two parts, so that the data is not copied."""
        kind = self.kind | (_ALONE if self.alone else 0) | (_EMBED if self.embed else 0)
        return _REQUEST.pack(kind, len(self.name), len(self.data)) + self.name, self.data


class FrameReader:
    """Reads frames from a socket until the other side closes it."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._buffer = bytearray()

    def take(self, most: int) -> list[Frame]:
        """Wait for a frame; return it with those that have arrived too, at most `most` in all.

        Empty once the connection is closed.
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
        """The next frame if all of it has arrived, without waiting."""
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
        with memoryview(buffer) as view:  # slicing the buffer itself would copy once more
            name, data = bytes(view[head:middle]), bytes(view[middle:end])
        del buffer[:end]
        plain = kind & ~(_ALONE | _EMBED)
        return Frame(plain, name, data, bool(kind & _ALONE), bool(kind & _EMBED))


def packed_reply(document: Mapping[str, Any]) -> bytes:
    """The reply `document`, whose `thumbnail` is bytes and may be missing."""
    thumbnail: bytes = document.get("thumbnail", b"")
    body = json.dumps({k: v for k, v in document.items() if k != "thumbnail"}).encode()
    return REPLY.pack(len(body), len(thumbnail)) + body + thumbnail
