"""A clock that another process can set forward or back."""

import mmap
import struct
from datetime import datetime, timedelta
from pathlib import Path

from core.clock import utc_now

_OFFSET = struct.Struct("d")  # seconds


class SteppingClock:
    """`core.clock.Clock`: the time of day plus the offset in a file.

    The file is mapped into memory, so that reading the time makes no call that blocks.
    """

    def __init__(self, file: Path) -> None:
        with file.open("r+b") as opened:
            self._memory = mmap.mmap(opened.fileno(), _OFFSET.size)

    def __call__(self) -> datetime:
        (offset,) = _OFFSET.unpack(self._memory[: _OFFSET.size])
        return utc_now() + timedelta(seconds=offset)


def set_offset(file: Path, seconds: float) -> None:
    """Make every clock on `file` differ from the time of day by `seconds`."""
    if not file.exists():
        file.write_bytes(_OFFSET.pack(0.0))
    with file.open("r+b") as opened:
        opened.write(_OFFSET.pack(seconds))
