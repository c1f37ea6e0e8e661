"""Where the bytes of an image come from: a path, bytes, an open file, or a Pillow image."""

import hashlib
import io
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol, runtime_checkable

CHUNK = 256 * 1024
# Files that systems and programs put beside photos.
SKIPPED_NAMES = frozenset({"thumbs.db", "desktop.ini", ".ds_store", "icon\r"})
SKIPPED_FOLDERS = frozenset({"@eadir", "$recycle.bin", "__macosx"})
SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".avif", ".bmp", ".tif", ".tiff"}
)
HEIC_SUFFIXES = frozenset({".heic", ".heif"})


@runtime_checkable
class PillowImage(Protocol):
    """The part of `PIL.Image.Image` that the client uses; Pillow is not a dependency."""

    @property
    def mode(self) -> str: ...

    def save(self, fp: Any, format: str | None = None, **params: Any) -> None: ...  # noqa: A002


@dataclass(frozen=True, slots=True)
class Source:
    """Bytes that can be read any number of times: `data`, or the file at `path`."""

    name: str
    path: Path | None = None
    data: bytes | None = None

    def sha256(self) -> str:
        """The SHA-256 of the bytes, in lower-case hex. Blocks. Raises OSError."""
        if self.data is not None:
            return hashlib.sha256(self.data).hexdigest()
        assert self.path is not None
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def size(self) -> int:
        """The number of bytes. Raises OSError."""
        if self.data is not None:
            return len(self.data)
        assert self.path is not None
        return self.path.stat().st_size

    def open(self) -> IO[bytes]:
        """A new reader at the first byte. Raises OSError."""
        if self.data is not None:
            return io.BytesIO(self.data)
        assert self.path is not None
        return self.path.open("rb")

    def lazy(self) -> "LazyFile":
        """A reader that opens the file with the first read. Raises OSError."""
        return LazyFile(self, self.size())

    def read(self) -> bytes:
        """All bytes. Blocks. Raises OSError."""
        if self.data is not None:
            return self.data
        assert self.path is not None
        return self.path.read_bytes()


class LazyFile(io.RawIOBase):
    """A binary file that is open only while it is read.

    A form of a thousand files would otherwise need a thousand file descriptors. Raises OSError if
    the file has become shorter than it was: the announced length would be wrong.
    """

    def __init__(self, source: Source, size: int) -> None:
        self._source = source
        self._size = size
        self._file: IO[bytes] | None = None
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self._size}[whence]
        self._close_file()
        self._at = base + offset
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = self._size - self._at
        wanted = left if size < 0 else min(size, left)
        if wanted <= 0:
            self._close_file()
            return b""
        if self._file is None:
            self._file = self._source.open()
            self._file.seek(self._at)
        data = self._file.read(wanted)
        if not data:
            self._close_file()
            raise OSError(f"{self._source.name} has become shorter while it was sent")
        self._at += len(data)
        if self._at == self._size:
            self._close_file()
        return data

    def close(self) -> None:
        self._close_file()
        super().close()

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None


URL_SCHEMES = ("https://", "http://", "data:")


def is_url(image: object) -> bool:
    """Whether `image` is the address of an image: `https:`, `http:` or `data:`."""
    return isinstance(image, str) and image[:8].lower().startswith(URL_SCHEMES)


Content = str | Path | bytes | bytearray | memoryview | IO[bytes] | PillowImage


def source_of(image: Content) -> Source:
    """The source for what `classify` accepts.

    A Pillow image becomes a PNG (lossless). Raises TypeError for anything else, OSError.
    """
    if isinstance(image, str | Path):
        path = Path(image)
        return Source(path.name, path=path)
    if isinstance(image, bytes | bytearray | memoryview):
        return Source("image", data=bytes(image))
    if isinstance(image, PillowImage):
        file = io.BytesIO()
        image.save(file, format="PNG")
        return Source("image.png", data=file.getvalue())
    if hasattr(image, "read"):
        content = image.read()
        if not isinstance(content, bytes):
            raise TypeError("open the file in binary mode")
        return Source(Path(str(getattr(image, "name", "image"))).name, data=content)
    raise TypeError(f"an image is a path, bytes, a file or a Pillow image, not {type(image)!r}")


@dataclass(frozen=True, slots=True)
class Found:
    """A file below one of the given paths. `name` is the path relative to that folder."""

    path: Path
    name: str


def is_system_file(path: Path) -> bool:
    """Whether a photo program or an operating system made this file or folder."""
    name = path.name.lower()
    return name.startswith(".") or name in SKIPPED_NAMES or name in SKIPPED_FOLDERS


def find_images(
    paths: Iterable[str | Path],
    *,
    recursive: bool = False,
    also: frozenset[str] = frozenset(),
) -> Iterator[Found]:
    """The image files of `paths`, in the order of their names within each folder.

    A file is taken whatever its name is. Of a folder, files with the name of an image are taken,
    with `recursive` also those of its folders. Skips hidden files and those of systems. `also` has
    further suffixes. Holds one folder's names in memory at a time. Raises FileNotFoundError.
    """
    for each in paths:
        top = Path(each)
        if top.is_dir():
            yield from _below(top, top, recursive, SUFFIXES | also)
        elif top.exists():
            yield Found(top, top.as_posix() if not top.is_absolute() else top.name)
        else:
            raise FileNotFoundError(f"{top}: no such file or folder")


def _below(top: Path, folder: Path, recursive: bool, suffixes: frozenset[str]) -> Iterator[Found]:
    folders = []
    for entry in sorted(folder.iterdir(), key=lambda path: path.name):
        if is_system_file(entry):
            continue
        if entry.is_dir():
            folders.append(entry)
        elif entry.suffix.lower() in suffixes:
            yield Found(entry, entry.relative_to(top).as_posix())
    if recursive:
        for each in folders:
            yield from _below(top, each, recursive, suffixes)
