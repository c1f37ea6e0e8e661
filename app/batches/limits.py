"""Limits of one batch."""

from dataclasses import dataclass

from core.domain.policy import MAX_JOB_ITEMS
from core.errors import BatchTooLarge


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """At most `max_items` images of `max_image_bytes` each.

    `max_bytes` limits the request's body, and what a zip unpacks to.
    """

    max_bytes: int
    max_image_bytes: int
    max_items: int = MAX_JOB_ITEMS

    def too_large(self) -> BatchTooLarge:
        return BatchTooLarge(
            f"The batch is larger than {self.max_bytes} bytes. Send it as several batches.",
            extra={"max_bytes": self.max_bytes},
        )
