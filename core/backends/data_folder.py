"""The folder of what this machine keeps: made with the first use, and named where it cannot be."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from core.errors import Unavailable


@contextmanager
def usable(data_dir: Path) -> Iterator[None]:
    """Make the folder, for its owner alone, where there is none. Blocks.

    Raises Unavailable where it cannot be made, and for an OSError of what is done inside.
    """
    try:
        data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise Unavailable(
            f"The data folder {data_dir} cannot be used: {error.strerror}."
        ) from error
