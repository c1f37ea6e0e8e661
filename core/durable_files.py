"""Files that survive a power loss, and whose names never lead to half of the data. Blocks."""

import os
from pathlib import Path


def write_temporary(data: bytes | bytearray, temporary: Path, mode: int = 0o666) -> None:
    """Write and fsync `temporary`, which must not exist. Raises OSError and then leaves no file."""
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        # No file object: it would make three more system calls.
        try:
            written = os.write(descriptor, data)
            while written < len(data):
                written += os.write(descriptor, data[written:])
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_whole(data: bytes | bytearray, temporary: Path, path: Path) -> None:
    """Write `temporary`, which must not exist, and rename it to `path` in the same folder.

    `sync_folder` then makes the name last. Raises OSError and then leaves no temporary file.
    """
    write_temporary(data, temporary)
    try:
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Make the names in `folder` survive a power loss. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
