"""One image of a batch, from the request to storage."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Self

from app.uploads.image_upload import ImageBuffer
from core.errors import GlimpseError, ImageTooLarge, InvalidImage

MAX_NAME = 200  # characters


@dataclass(slots=True)
class BatchItem:
    """An image of a batch, which a manifest names by its hash, or whose bytes the batch contains.

    `name` is for display only. `image_hash` is SHA-256 in hex, and empty if the image could not be
    read to its end. `error` says why the image is not accepted.
    """

    name: str = ""
    image_hash: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    error: GlimpseError | None = None
    _buffer: ImageBuffer | None = field(default=None, repr=False, compare=False)

    @classmethod
    def empty(cls, name: str, max_bytes: int) -> Self:
        """An item whose bytes `add` collects, and `finish` completes."""
        return cls(name, _buffer=ImageBuffer(max_bytes))

    @property
    def data(self) -> bytes | bytearray:
        """The bytes, until `discard`."""
        return b"" if self._buffer is None else self._buffer.data

    def add(self, part: bytes | memoryview) -> bool:
        """False if the image has an error, so that the rest of it need not be read."""
        if self._buffer is not None:
            try:
                self._buffer.add(part)
            except ImageTooLarge as error:
                self.fail(error)
        return self.error is None

    def finish(self) -> Self:
        """Set the hash of a complete image; an image without bytes is an error."""
        if self._buffer is not None:
            if self._buffer.data:
                self.image_hash = self._buffer.image_hash()
            else:
                self.fail(InvalidImage("The image is empty."))
        return self

    def fail(self, error: GlimpseError) -> Self:
        """Set the error, and discard the bytes."""
        self.error = error
        self.discard()
        return self

    def discard(self) -> None:
        """Free the bytes, which are stored or not needed."""
        self._buffer = None


def display_name(name: str) -> str:
    """The last part of a path, without characters that a terminal interprets."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(each for each in last if each.isprintable())
    return shown.strip()[:MAX_NAME]
