"""One image of a batch, from the request to storage."""

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Self

from app.uploads.image_upload import ImageBuffer
from core.errors import GlimpseError, ImageTooLarge, InvalidImage

# Stores an item, and releases its bytes from the slot.
Store = Callable[["BatchItem"], Awaitable[None]]

MAX_NAME = 500  # characters of a name with its path

# Control characters, surrogates without a partner, and what reverses the order of the text around
# it (Unicode Standard Annex 9).
_REPLACED = re.compile("[\x00-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_DRIVE = re.compile("[A-Za-z]:")
_CLUTTER_FOLDERS = frozenset(
    {
        *("__macosx", "@eadir", "#recycle", "#snapshot", "$recycle.bin", "recycler"),
        *("system volume information", "lost+found"),
    }
)
_CLUTTER = frozenset({"thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "icon\r"})
# Texts that accompany images: labels of data sets, metadata of photo programs, links.
_CAPTIONS = frozenset(
    {
        *("txt", "caption", "json", "jsonl", "ndjson", "csv", "tsv", "xml", "xmp", "aae", "srt"),
        *("vtt", "md", "html", "htm", "yaml", "yml", "ini", "db", "url", "lnk", "nfo", "log"),
        *("md5", "sha1", "sha256", "sha512", "parquet", "npy", "npz"),
    }
)


@dataclass(slots=True)
class BatchItem:
    """An image of a batch, which a manifest names by its hash, or whose bytes the batch contains.

    `name` is for display only. `path` is where the image is in an archive, with slashes.
    `image_hash` is SHA-256 in hex, and empty if the image could not be read to its end. `error`
    says why the image is not accepted.
    """

    name: str = ""
    image_hash: str = ""
    metadata: Mapping[str, object] = field(default_factory=dict)
    error: GlimpseError | None = None
    path: str = ""
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
    """A file's name and its relative path, with `/`, as they were sent.

    Control characters, and those that reverse text, are replaced. Of an absolute path, only the
    last part is shown: the folders of a client's machine are private.
    """
    path = _REPLACED.sub("\ufffd", name).replace("\\", "/")
    parts = [part for part in path.split("/") if part not in ("", ".", "..")]
    if path.startswith("/") or _DRIVE.match(path):
        parts = [part for part in parts if not _DRIVE.fullmatch(part)][-1:]
    return "/".join(parts)[-MAX_NAME:]


def is_clutter(path: str) -> bool:
    """Whether programs make files of this name beside images: indexes, thumbnails, captions.

    A folder's name ends with a slash.
    """
    *folders, name = path.replace("\\", "/").split("/")
    if any(folder.lower() in _CLUTTER_FOLDERS or _hidden(folder) for folder in folders):
        return True
    lower = name.lower()
    return (
        _hidden(name)
        or lower in _CLUTTER
        or lower.endswith((":zone.identifier", "~"))
        or lower.startswith("~$")
        or lower.rpartition(".")[2] in _CAPTIONS
    )


def _hidden(part: str) -> bool:
    return part.startswith(".") and part not in (".", "..")
