"""A file in memory that a parser may read only so many times."""

import io


class TooManyReads(Exception):
    """The parser made more reads than any honest file needs."""


class BoundedReader(io.BytesIO):
    """Allows `limit` reads of `data`, then raises TooManyReads.

    An image parser reads each segment, chunk or block of a file on its own and spends microseconds
    on it, whatever its size. Ten megabytes of empty ones would occupy a parser for half a minute
    while it holds Python's global lock. No honest file has that many.
    """

    def __init__(self, data: bytes | bytearray, limit: int) -> None:
        super().__init__(data)
        self._left = limit

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise TooManyReads
        return super().read(size)
