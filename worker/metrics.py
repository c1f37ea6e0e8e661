"""What the worker alone counts."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram

from core.domain.jobs import JobStatus
from core.domain.records import Claim, RecordError
from core.observability.metrics import jobs_ended

# Seconds: a queue that is empty hands over in milliseconds, one that was stopped after hours.
DELAY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
INFERENCE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SUCCESS, DUPLICATE, LEASE_LOST = "success", "duplicate", "lease_lost"


class WorkerMetrics:
    """On one application's registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._delay = Histogram(
            "glimpse_queue_delay_seconds",
            "Time from accepting an image to claiming its record",
            buckets=DELAY_BUCKETS,
            registry=registry,
        )
        self.inference = Histogram(
            "glimpse_inference_duration_seconds",
            "Time to decode an image and infer its labels; its share of what several went through",
            buckets=INFERENCE_BUCKETS,
            registry=registry,
        )
        self._classifications = Counter(
            "glimpse_classifications",
            "Messages taken on, by how that ended",
            ["code"],
            registry=registry,
        )
        self._dead_letters = Counter(
            "glimpse_dead_letters", "Dead letters taken in", ["code"], registry=registry
        )
        self._reconciled = Counter(
            "glimpse_reconciled_records",
            "Records that stood still, by what was done",
            ["outcome"],
            registry=registry,
        )
        self._notifications = Counter(
            "glimpse_notifications",
            "Deliveries of notifications, by how they ended",
            ["kind", "outcome"],
            registry=registry,
        )
        self._jobs = jobs_ended(registry)
        items = Counter(
            "glimpse_job_items",
            "Items of jobs that ended, equal ones of a job counted once",
            ["outcome"],
            registry=registry,
        )
        self._succeeded, self._failed = items.labels("succeeded"), items.labels("failed")
        for kind in ("webhook", "email"):
            for outcome in ("delivered", "failed"):
                self._notifications.labels(kind, outcome)
        for code in (SUCCESS, DUPLICATE, LEASE_LOST):
            self._classifications.labels(code)
        for status in JobStatus:
            if status.terminal:
                self._jobs.labels(status.value)

    def claimed(self, claim: Claim, now: datetime) -> None:
        self._delay.observe(max(0.0, (now - claim.submitted_at).total_seconds()))

    def ended(self, code: str) -> None:
        """Count a message: one of the words above, or the code of an error."""
        self._classifications.labels(code).inc()

    def buried(self, code: str) -> None:
        """Count a dead letter, by the code that its record ended with or why it has none."""
        self._dead_letters.labels(code).inc()

    def job_ended(self, status: JobStatus) -> None:
        self._jobs.labels(status.value).inc()

    def item_ended(self, error: RecordError | None) -> None:
        (self._succeeded if error is None else self._failed).inc()

    def reconciled(self, counts: dict[str, int]) -> None:
        for outcome, count in counts.items():
            self._reconciled.labels(outcome).inc(count)

    def notified(self, kind: str, outcome: str) -> None:
        """Count one delivery of a notification: `webhook` or `email`, and how it ended."""
        self._notifications.labels(kind, outcome).inc()
