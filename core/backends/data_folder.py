"""`DATA_DIR`, the folder for everything that Glimpse keeps on one machine."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Unavailable


@contextmanager
def opened_folder(data_dir: Path) -> Iterator[None]:
    """Create the folder with mode 0700 if it does not exist. Blocks.

    Raises Unavailable if that fails, and in place of an OSError from inside the context.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise Unavailable(
            f"The data folder {data_dir} cannot be used: {error.strerror}."
        ) from error
