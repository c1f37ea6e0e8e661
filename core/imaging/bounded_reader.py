"""Bytes for a parser that may not take for ever over them."""

import io


class TooManyReads(Exception):
    """The parser took more steps than any honest file asks for."""


class BoundedReads(io.BytesIO):
    """A file in memory that may be read `limit` times.

    Image parsers read each segment, chunk or block of a file by itself, and spend microseconds on
    it whatever its size. Ten megabytes of empty ones would keep a parser busy for half a minute,
    inside Python's lock; no honest file has so many. Raises TooManyReads.
    """

    def __init__(self, data: bytes | bytearray, limit: int) -> None:
        super().__init__(data)
        self._left = limit

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyReads
        return super().read(size)
