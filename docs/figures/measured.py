"""What was measured, read from the pages that have it: nothing is copied by hand."""

import re
from dataclasses import dataclass

from docs.figures.page import DOCS

BENCHMARKS = DOCS / "benchmarks.md"
DECODED = "Processor time, with decoding and resizing"  # a row of the card
MODEL_CARD = DOCS.parent / "models/default/MODEL_CARD.md"


@dataclass(frozen=True)
class Measured:
    """Rates are a second and a core, times are seconds."""

    cached_gets: float
    known_uploads: float
    new_uploads: float
    worker_images: float
    worker_ready: float
    api_ready: float
    annotate: float

    @property
    def worker_seconds(self) -> float:
        """A core's time for one image from the push to the stored result, on this machine."""
        return 1 / self.worker_images

    @property
    def handling(self) -> float:
        """What of it is neither decoding nor inference."""
        return self.worker_seconds - self.annotate


def read_measured() -> Measured:
    """Raises ValueError where a page lacks a row."""
    rows = dict(
        re.findall(
            r"^\| ([^|]+?) \| ([^|]+?) \|", BENCHMARKS.read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    card = dict(
        re.findall(
            r"^\| ([^|]+?) \| ([^|]+?) \|", MODEL_CARD.read_text(encoding="utf-8"), re.MULTILINE
        )
    )
    return Measured(
        cached_gets=_number(rows, "cached GET", r"([\d.]+) requests/s"),
        known_uploads=_number(rows, "known image, multipart upload of 84 KB", r"([\d.]+) requests"),
        new_uploads=_number(rows, "new image of 110 KB to its 202, c=16", r"([\d.]+) images/s"),
        worker_images=_number(rows, "worker, efficientnet-lite1, one core", r"([\d.]+) images/s"),
        worker_ready=_number(rows, "start to ready, worker", r"([\d.]+) s"),
        api_ready=_number(rows, "start to ready, api", r"([\d.]+) s"),
        annotate=_number(card, "Processor time, with decoding and resizing", r"median ([\d.]+) ms")
        / 1000,
    )


def _number(rows: dict[str, str], name: str, pattern: str) -> float:
    found = re.match(pattern, rows.get(name, ""))
    if found is None:
        raise ValueError(f"no figure for {name!r}")
    return float(found[1])
