"""."""

from dataclasses import dataclass, field

from core.domain.policy import MAX_JOB_ITEMS
from core.errors import BatchTooLarge, GlimpseError, InvalidImage

MAX_NAME = 200  # characters


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """At most `items` images of `image_bytes` each; `bytes_` for the request, packed or not."""

    bytes_: int
    image_bytes: int
    items: int = MAX_JOB_ITEMS


@dataclass(slots=True)
class BatchImage:
    """One image of a batch: its bytes, or in `error` why they were not taken.

    `name` is for display alone. `image_hash` is SHA-256 in hex, empty where it was not all read.
    """

    name: str
    data: bytearray = field(default_factory=bytearray)
    image_hash: str = ""
    error: GlimpseError | None = None


def too_many_bytes(limits: BatchLimits) -> BatchTooLarge:
    return BatchTooLarge(
        f"The batch is larger than {limits.bytes_} bytes; send it as several.",
        extra={"max_bytes": limits.bytes_},
    )


def empty() -> InvalidImage:
    return InvalidImage("The image is empty.")


def display_name(name: str) -> str:
    """The last part of a file name, to be shown: no path, nothing that a terminal obeys."""
    last = name.replace("\\", "/").rpartition("/")[2]
    shown = "".join(each for each in last if each.isprintable())
    return shown.strip()[:MAX_NAME]
