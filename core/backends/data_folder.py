"""`DATA_DIR`, the folder for everything that Glimpse keeps on one machine."""

import errno
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Unavailable

# Patterns of everything that Glimpse writes into a data folder.
FILES = (
    *("records.db*", "queue.db*", "keys.db*", "webhooks.db*", "models.db*"),
    *("queue.lock", "queue.sock", "blobs", "spool"),
    *("link.key*", "key.secret*", "push.secret*", "model-cache"),
    *("emulators", "glimpse.log*", "glimpse.pid"),
)


@contextmanager
def opened_folder(data_dir: Path) -> Iterator[None]:
    """Create the folder if it does not exist, and make it private. Blocks.

    Raises Unavailable if that fails, and in place of an OSError from inside the context.
    """
    try:
        make_private(data_dir)
        yield
    except OSError as error:
        raise Unavailable(
            f"The data folder {data_dir} cannot be used: {error.strerror}."
        ) from error


def make_private(data_dir: Path) -> None:
    """Create the folder with mode 0700, or take the access of other users away.

    Raises OSError, also if the folder contains files that are not Glimpse's: other programs may
    need the access. On a file system without modes, the folder stays as it is.
    """
    data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not stat.S_IMODE(data_dir.stat().st_mode) & 0o077:
        return
    if foreign := foreign_files(data_dir):
        reason = (
            f"other users can read it, and it contains files of other programs ({foreign[0]}). "
            f"Set DATA_DIR to another folder, or run chmod 700 {data_dir}"
        )
        raise PermissionError(errno.EPERM, reason, str(data_dir))
    data_dir.chmod(0o700)


def foreign_files(data_dir: Path) -> list[str]:
    """The names in the folder that are not Glimpse's, in order."""
    paths = data_dir.iterdir()
    return sorted(path.name for path in paths if not any(path.match(each) for each in FILES))
