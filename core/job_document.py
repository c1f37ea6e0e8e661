"""A job as others see it: what the API answers, and what a webhook is told."""

from datetime import datetime

from core.clock import rfc3339
from core.jobs import Job


def job_document(job: Job) -> dict[str, object]:
    """As JSON; small, whatever the number of items."""

    def when(at: datetime | None) -> str | None:
        return None if at is None else rfc3339(at)

    return {
        "job_id": job.key.id,
        "type": job.type,
        "status": job.status.value,
        "progress": job.progress,
        "priority": job.priority.value,
        "model": job.model,
        "totals": {
            "items": job.counts.total,
            "succeeded": job.counts.succeeded,
            "failed": job.counts.failed,
            "cancelled": job.cancelled_items,
        },
        "created_at": rfc3339(job.created_at),
        "started_at": when(job.started_at),
        "completed_at": when(job.completed_at),
        "error": job.error and {"code": job.error.code, "detail": job.error.detail},
    }
