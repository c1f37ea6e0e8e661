"""Data folders with empty databases, as an earlier start of Glimpse leaves them."""

import asyncio
import functools
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from core.backends import open_access, open_backend
from core.backends.embedded import KEYS
from core.settings import Settings
from tests.support.settings import isolated_settings


def begin_data_folder(settings: Settings) -> None:
    """Create the data folder, unless it exists.

    A database that SQLite creates waits for the disk several times, which takes longer than most
    tests. `tests/unit/test_embedded_storage.py` and every flow test start without a data folder.
    """
    folder = settings.data_dir
    if settings.backend != "embedded" or folder.exists() or not folder.parent.is_dir():
        return
    folder.mkdir(mode=0o700)
    for name, data in _empty_databases().items():
        if name != KEYS or settings.keys_required:
            (folder / name).write_bytes(data)


@functools.cache
def _empty_databases() -> Mapping[str, bytes]:
    """The files of a new data folder that are databases, by name."""

    async def create(folder: Path) -> None:
        settings = isolated_settings(data_dir=folder)
        async with open_backend(settings), open_access(settings):
            pass

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, create(Path(folder))).result()
        return {path.name: path.read_bytes() for path in Path(folder).glob("*.db")}
