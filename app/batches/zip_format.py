"""Reads zip archives as people have them (APPNOTE.TXT 6.3.10).

Python's `zipfile` refuses a whole archive because of one name, one extra field, or one header that
differs. Here such an entry is read as far as it can be, and fails alone if it cannot. Every
function blocks. The numbers in an archive are not trusted.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from core.errors import MalformedBody

UNPACK_BYTES = 256 * 1024  # unpacked at once
# A directory of 1,000 images takes 200 kB; its entries take ten times the memory.
MAX_DIRECTORY = 1024 * 1024

_STORED, _DEFLATED = 0, 8
_ENCRYPTED, _UTF8 = 0x1, 0x800  # flags
_LOCAL, _CENTRAL, _END = b"PK\3\4", b"PK\1\2", b"PK\5\6"
_END64_LOCATOR, _END64 = b"PK\6\7", b"PK\6\6"
_CENTRAL_HEADER = struct.Struct("<4s6H3I5H2I")
_LOCAL_HEADER = struct.Struct("<4s5H3I2H")
_END_RECORD = struct.Struct("<4s4H2IH")
_END64_RECORD = struct.Struct("<4sQ2H2I4Q")
_LOCATOR = struct.Struct("<4sIQI")
_MAX_COMMENT = 0xFFFF
_UNICODE_PATH_VERSION = b"\1"
_ZIP64_FIELD, _UNICODE_PATH_FIELD = 0x0001, 0x7075
_IN_FIELD_16, _IN_FIELD_32 = 0xFFFF, 0xFFFFFFFF


class DamagedEntry(Exception):
    """The entry cannot be read. The text says why, for the client."""


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """A file or folder of an archive, as its directory declares it. `offset` is that of its header.

    A name that is no valid UTF-8 has U+FFFD in its place.
    """

    name: str
    flags: int
    method: int
    checksum: int
    packed_size: int
    size: int
    offset: int

    @property
    def is_folder(self) -> bool:
        # Windows PowerShell writes backslashes.
        return self.name.endswith(("/", "\\"))


def read_directory(file: IO[bytes]) -> list[ZipEntry]:
    """The entries in the order of the directory. Raises MalformedBody, OSError."""
    size = file.seek(0, os.SEEK_END)
    tail_at = max(0, size - _END_RECORD.size - _MAX_COMMENT - _LOCATOR.size - _END64_RECORD.size)
    file.seek(tail_at)
    tail = file.read(size - tail_at)
    end = tail.rfind(_END)
    if end < 0 or end + _END_RECORD.size > len(tail):
        raise _malformed()
    _, _, _, _, count, directory_size, directory_at, _ = _END_RECORD.unpack_from(tail, end)
    directory_end = tail_at + end
    if count == _IN_FIELD_16 or _IN_FIELD_32 in (directory_size, directory_at):
        found = _end64(tail, end)
        if found is not None:
            count, directory_size, directory_at, length = found
            directory_end -= length
    if directory_size > MAX_DIRECTORY or directory_size > directory_end:
        raise MalformedBody("The zip's directory is too large, or the zip is incomplete.")
    file.seek(directory_end - directory_size)
    directory = file.read(directory_size)
    # Archives may follow other data, such as a program that unpacks them.
    shift = directory_end - directory_size - directory_at
    entries = list(_entries(directory, shift))
    if count and not entries:
        raise _malformed()
    return entries


def unpacked(file: IO[bytes], entry: ZipEntry) -> Iterator[bytes]:
    """The entry's content in parts, and never more than it declares. Raises DamagedEntry, OSError.

    The archive's directory counts, not the entry's own header, whose name may be another one.
    """
    if entry.flags & _ENCRYPTED:
        raise DamagedEntry("The zip's entry is encrypted.")
    if entry.method not in (_STORED, _DEFLATED):
        raise DamagedEntry("The zip's entry is neither stored nor deflated.")
    left, checksum = entry.size, 0
    packed = _packed(file, entry)
    for part in packed if entry.method == _STORED else _inflated(packed):
        left -= len(part)
        if left < 0:
            break
        checksum = zlib.crc32(part, checksum)
        yield part
    if left or checksum != entry.checksum:
        raise _damaged()


def _end64(tail: bytes, end: int) -> tuple[int, int, int, int] | None:
    """Count, size and offset of a Zip64 directory, and the length of the records behind it."""
    locator_at = end - _LOCATOR.size
    record_at = locator_at - _END64_RECORD.size
    if record_at < 0 or tail[locator_at : locator_at + 4] != _END64_LOCATOR:
        return None
    if tail[record_at : record_at + 4] != _END64:
        return None
    *_, count, size, offset = _END64_RECORD.unpack_from(tail, record_at)
    return count, size, offset, end - record_at


def _entries(directory: bytes, shift: int) -> Iterator[ZipEntry]:
    at = directory.find(_CENTRAL)
    while 0 <= at <= len(directory) - _CENTRAL_HEADER.size:
        header = _CENTRAL_HEADER.unpack_from(directory, at)
        flags, method, checksum = header[3], header[4], header[7]
        packed_size, size, name_size, extra_size, comment_size = header[8:13]
        offset = header[16]
        name_at = at + _CENTRAL_HEADER.size
        extra_at = name_at + name_size
        raw = directory[name_at:extra_at]
        fields = dict(_extra_fields(directory[extra_at : extra_at + extra_size]))
        large = fields.get(_ZIP64_FIELD, b"")
        numbers = []
        for number in (size, packed_size, offset):
            if number == _IN_FIELD_32 and len(large) >= 8:
                number, large = int.from_bytes(large[:8], "little"), large[8:]  # noqa: PLW2901 - consumed
            numbers.append(number)
        size, packed_size, offset = numbers
        yield ZipEntry(
            _name(raw, flags, fields), flags, method, checksum, packed_size, size, offset + shift
        )
        # A wrong length leads into the middle of an entry.
        at = directory.find(_CENTRAL, extra_at + extra_size + comment_size)


def _extra_fields(extra: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + 4 <= len(extra):
        kind, size = struct.unpack_from("<HH", extra, at)
        if at + 4 + size <= len(extra):
            yield kind, extra[at + 4 : at + 4 + size]
        at += 4 + size


def _name(raw: bytes, flags: int, fields: dict[int, bytes]) -> str:
    path = fields.get(_UNICODE_PATH_FIELD, b"")  # Info-ZIP's, with a checksum of the other name
    if path[:5] == _UNICODE_PATH_VERSION + zlib.crc32(raw).to_bytes(4, "little"):
        return path[5:].decode(errors="replace")
    if flags & _UTF8:
        return raw.decode(errors="replace")
    try:
        return raw.decode()  # macOS and Unix do not set the flag
    except UnicodeDecodeError:
        return raw.decode("cp437")


def _packed(file: IO[bytes], entry: ZipEntry) -> Iterator[bytes]:
    """The packed content."""
    if entry.offset < 0:
        raise _damaged()
    file.seek(entry.offset)
    header = file.read(_LOCAL_HEADER.size)
    if len(header) < _LOCAL_HEADER.size or not header.startswith(_LOCAL):
        raise _damaged()
    name_size, extra_size = _LOCAL_HEADER.unpack(header)[-2:]
    at, left = entry.offset + len(header) + name_size + extra_size, entry.packed_size
    while left:
        file.seek(at)  # another entry may be read between two parts
        part = file.read(min(left, UNPACK_BYTES))
        if not part:
            raise _damaged()
        yield part
        at += len(part)
        left -= len(part)


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        for part in packed:
            while part and not inflater.eof:
                yield inflater.decompress(part, UNPACK_BYTES)
                part = inflater.unconsumed_tail  # noqa: PLW2901 - the rest is inflated next
        while not inflater.eof and (rest := inflater.decompress(b"", UNPACK_BYTES)):
            yield rest
    except zlib.error:
        raise _damaged() from None


def _malformed() -> MalformedBody:
    return MalformedBody("The body is not a zip that can be read.")


def _damaged() -> DamagedEntry:
    return DamagedEntry("The zip's entry is damaged.")
