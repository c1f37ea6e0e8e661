"""Metrics that only the worker has."""

from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Histogram

from core.domain.jobs import JobStatus
from core.domain.records import Claim, RecordError
from core.observability.metrics import jobs_ended

# Seconds: an empty queue delivers within milliseconds, a stopped queue after hours.
DELAY_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800, 7200)
INFERENCE_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
SUCCESS, DUPLICATE, LEASE_LOST = "success", "duplicate", "lease_lost"
DELETED_IMAGE = "deleted_image"


class WorkerMetrics:
    """Metrics on the registry of one application."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._delay = Histogram(
            "glimpse_queue_delay_seconds",
            "Time from the acceptance of an image to the claim of its record",
            buckets=DELAY_BUCKETS,
            registry=registry,
        )
        self.inference = Histogram(
            "glimpse_inference_duration_seconds",
            "Time to decode an image and infer its labels; for a batch, each image's share",
            buckets=INFERENCE_BUCKETS,
            registry=registry,
        )
        self._classifications = Counter(
            "glimpse_classifications",
            "Classification messages handled, by outcome",
            ["code"],
            registry=registry,
        )
        self._dead_letters = Counter(
            "glimpse_dead_letters", "Dead letters received", ["code"], registry=registry
        )
        self._reconciled = Counter(
            "glimpse_reconciled_records",
            "Stale records, by outcome",
            ["outcome"],
            registry=registry,
        )
        self._notifications = Counter(
            "glimpse_notifications",
            "Notification deliveries, by outcome",
            ["kind", "outcome"],
            registry=registry,
        )
        self._jobs = jobs_ended(registry)
        items = Counter(
            "glimpse_job_items",
            "Completed items of jobs; duplicates in a job count once",
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

    def classification_ended(self, code: str) -> None:
        """Count a message by its outcome: `success` or the like, or the code of an error."""
        self._classifications.labels(code).inc()

    def dead_letter(self, code: str) -> None:
        """Count a dead letter by the error code of its record, or by the reason there is none."""
        self._dead_letters.labels(code).inc()

    def job_ended(self, status: JobStatus) -> None:
        self._jobs.labels(status.value).inc()

    def item_ended(self, error: RecordError | None) -> None:
        (self._succeeded if error is None else self._failed).inc()

    def reconciled(self, counts: dict[str, int]) -> None:
        for outcome, count in counts.items():
            self._reconciled.labels(outcome).inc(count)

    def notified(self, kind: str, outcome: str) -> None:
        """Count one delivery of a notification: `kind` is `webhook` or `email`."""
        self._notifications.labels(kind, outcome).inc()
