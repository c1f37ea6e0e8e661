"""Files that are on disk, whole, before anybody is told of them. Everything here blocks."""

import os
from pathlib import Path


def write_whole(data: bytes | bytearray, draft: Path, path: Path) -> None:
    """Write `draft`, which must not exist, and rename it to `path`, in the same folder.

    So the name never leads to half of the data. `sync_folder` then makes the name last, too.
    Raises OSError, and leaves no draft.
    """
    try:
        with draft.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
    except BaseException:
        draft.unlink(missing_ok=True)
        raise


def sync_folder(folder: Path) -> None:
    """Have the names in `folder` survive a power loss. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
