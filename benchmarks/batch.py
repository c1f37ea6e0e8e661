"""The images of one job, and the figures of one contender."""

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

WORKERS = 2  # worker processes of every contender


@dataclass(frozen=True)
class Batch:
    """Images on disk, each named by its SHA-256 in hex, and what to do with them."""

    task: str
    bundle: Path
    folder: Path
    hashes: tuple[str, ...]

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def listing(self) -> Path:
        """A file with one hash a line."""
        return self.folder / "hashes.txt"

    def read(self, image_hash: str) -> bytes:
        return (self.images / image_hash).read_bytes()


def write_batch(task: str, bundle: Path, folder: Path, pictures: Sequence[bytes]) -> Batch:
    """Store the pictures, once for all contenders."""
    named = {hashlib.sha256(picture).hexdigest(): picture for picture in pictures}
    batch = Batch(task, bundle, folder, tuple(named))
    batch.images.mkdir(parents=True)
    for image_hash, picture in named.items():
        (batch.images / image_hash).write_bytes(picture)
    batch.listing.write_text("\n".join(named))
    return batch


@dataclass(frozen=True)
class Seen:
    """One run of one contender.

    `accepted` and `ended` are seconds from the first byte sent: until every task was accepted, and
    until the last result was stored. `latencies` are the seconds that each task took to send. They
    are empty if all tasks were sent together. Memory is in megabytes. `labels` is a digest of the
    most likely labels.
    """

    accepted: float
    ended: float
    latencies: Sequence[float] = field(default_factory=tuple)
    worker_memory: float = 0.0
    memory: float = 0.0
    labels: str = ""

    def percentile(self, share: int) -> float | None:
        """Milliseconds within which `share` percent of the tasks were sent."""
        if not self.latencies:
            return None
        return 1000 * statistics.quantiles(self.latencies, n=100)[share - 1]


@dataclass(frozen=True)
class Survived:
    """One run whose workers were killed halfway and started again.

    `missing` is the number of results that did not arrive. `ended` is the time of the last result,
    in seconds after the kill.
    """

    missing: int
    ended: float


def digest_labels(best: Mapping[str, str]) -> str:
    """One line for the most likely label of each image: equal where all labels are."""
    return hashlib.sha256(json.dumps(best, sort_keys=True).encode()).hexdigest()[:12]
