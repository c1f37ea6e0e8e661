"""Lists of records: what a list selects, and the index terms by which stores find records.

A list is newest first. Stores read it from an index, in the order of `Record.sort_key`, so that a
page costs the same however many records a tenant has. They read one index and check the other
conditions record by record (`RecordFilter.matches`), at most `MAX_SCANNED` times as many records as
the page may have. A page can therefore have fewer records than its limit, and still not be the last
one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime

from core.domain.records import Annotation, Record, Status
from core.domain.sort_keys import bounds

# Labels and categories with a lower confidence have no term, except the best one.
MIN_CONFIDENCE = 0.01
# A label has a term for each tier that its confidence reaches. A list with a minimal confidence
# reads the terms of the highest tier below that minimum.
TIERS = (0.0, 0.5)
MAX_SCANNED = 10


@dataclass(frozen=True, slots=True)
class RecordFilter:
    """Selects records of a tenant. An empty or missing value selects all.

    `label` and `category` select successes that have it with at least `min_confidence`. `since` and
    `before` compare `created_at`; `before` is excluded.
    """

    tenant: str
    label: str = ""
    category: str = ""
    min_confidence: float = 0.0
    status: Status | None = None
    model: str = ""
    since: datetime | None = None
    before: datetime | None = None

    @property
    def term(self) -> str:
        """The index term to read, or empty if the list has neither label nor category."""
        if not (self.label or self.category):
            return ""
        tier = max(n for n, least in enumerate(TIERS) if least <= self.min_confidence)
        if self.label:
            return _term("label", tier, self.label)
        return _term("category", tier, self.category)

    def bounds(self, after: str = "") -> tuple[str, str]:
        """As `core.domain.sort_keys.bounds`."""
        return bounds(self.since, self.before, after)

    def matches(self, record: Record) -> bool:
        """Whether the list has the record. The tenant and the times are not compared."""
        return (
            self.status in (None, record.status)
            and self.model in ("", record.key.model)
            and self._has(record.annotations, self.label)
            and self._has(record.categories, self.category)
        )

    def _has(self, annotations: Sequence[Annotation], label: str) -> bool:
        return not label or any(
            each.label == label and each.confidence >= self.min_confidence
            for each in annotations
            if _indexed(each)
        )


@dataclass(frozen=True, slots=True)
class RecordPage:
    """A page of a list. `after` is the sort key for the next page, empty on the last one."""

    records: Sequence[Record]
    after: str


@dataclass(slots=True)
class PageBuilder:
    """Collects a page of at most `limit` records from an index, within the bound of `MAX_SCANNED`.

    `after` is the sort key of the last record that was added, whether the list has it or not.
    """

    wanted: RecordFilter
    limit: int
    after: str = ""
    records: list[Record] = field(default_factory=list)
    scanned: int = 0

    def add(self, record: Record) -> None:
        """Add the next record of the index."""
        self.scanned += 1
        self.after = record.sort_key
        if self.wanted.matches(record):
            self.records.append(record)

    @property
    def full(self) -> bool:
        return len(self.records) >= self.limit or self.scanned >= MAX_SCANNED * self.limit

    def page(self) -> RecordPage:
        """The page. It is the last one if the index ended before the page was full."""
        return RecordPage(self.records, self.after if self.full else "")


def terms_of(record: Record) -> Iterator[str]:
    """The index terms of a record: of its labels and categories. They never change."""
    for kind, annotations in (("label", record.annotations), ("category", record.categories)):
        for each in filter(_indexed, annotations):
            for tier, least in enumerate(TIERS):
                if each.confidence >= least:
                    yield _term(kind, tier, each.label)


def _indexed(annotation: Annotation) -> bool:
    return annotation.index == 1 or annotation.confidence >= MIN_CONFIDENCE


def _term(kind: str, tier: int, label: str) -> str:
    return f"{kind}/{tier}:{label}"
