"""A job as clients see it."""

from typing import Any

from pydantic import BaseModel, Field

from app.representation import ErrorBody
from core.clock import rfc3339
from core.jobs import Job, JobStatus
from core.priority import Priority


def job_document(job: Job, public_url: str) -> dict[str, Any]:
    """`job` as JSON wants it; links in it begin with `public_url`."""
    error = job.error
    address = public_url + job_path(job.key.id)
    return {
        "job_id": job.key.id,
        "type": job.type,
        "status": job.status,
        "progress": job.progress,
        "total": job.counts.total,
        "succeeded": job.counts.succeeded,
        "failed": job.counts.failed,
        "cancelled": job.cancelled_items,
        "priority": job.priority,
        "created_at": rfc3339(job.created_at),
        "started_at": job.started_at and rfc3339(job.started_at),
        "completed_at": job.completed_at and rfc3339(job.completed_at),
        "not_before": job.not_before and rfc3339(job.not_before),
        "deadline": job.deadline and rfc3339(job.deadline),
        "error": error
        and {"code": error.code, "detail": error.detail, "retryable": error.retryable},
        "poll_url": address,
        "stream_url": address + "/stream",
        "results_url": address + "/results",
    }


def job_path(job_id: str) -> str:
    return f"/api/v1/jobs/{job_id}"


# --- What /docs says about the body. --------------------------------------------------------------


class JobBody(BaseModel):
    """A job and how far it is."""

    job_id: str
    type: str = Field(examples=["batch-predict"])
    status: JobStatus = Field(description="`pending` → `running` → the end, which is final")
    progress: int = Field(ge=0, le=100, description="Percent of the images that have ended")
    total: int = Field(ge=0, description="Images")
    succeeded: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0, description="Images that will not be classified for this job")
    priority: Priority
    created_at: str = Field(description="RFC 3339, UTC", examples=["2026-11-21T09:30:00.125Z"])
    started_at: str | None
    completed_at: str | None
    not_before: str | None = Field(description="When it may begin")
    deadline: str | None = Field(description="When it is cancelled, unless it has ended")
    error: ErrorBody | None = Field(description="Why it failed, or was cancelled by us")
    poll_url: str
    stream_url: str = Field(description="Its changes as they come")
    results_url: str
