"""Free space on the disk of a folder."""

import errno
import os
from pathlib import Path

# Bytes that uploads leave free, so that results, messages and logs of accepted images fit.
RESERVE = 64 * 1024 * 1024
_FULL = (errno.ENOSPC, errno.EDQUOT)


def free_bytes(folder: Path) -> int:
    """The bytes that this user can still write to the folder's disk. Blocks. Raises OSError."""
    found = os.statvfs(folder)
    return found.f_bavail * found.f_frsize


def is_full(error: BaseException) -> bool:
    """Whether an operation failed because there is no space left on a disk."""
    return isinstance(error, OSError) and error.errno in _FULL
