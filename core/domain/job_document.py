"""A job as a JSON document: in API responses, in streams and in webhook messages."""

from typing import Any

from core.clock import rfc3339
from core.domain.jobs import Job, Training
from core.domain.records import RecordError


def job_path(job_id: str) -> str:
    return f"/api/v1/jobs/{job_id}"


def page_path(job_id: str) -> str:
    """The address of the job's page below the service's own."""
    return f"/#/jobs/{job_id}"


def job_document(job: Job, public_url: str) -> dict[str, Any]:
    """The document of a job; `public_url` is the base of its URLs, empty for paths."""
    path = public_url + job_path(job.key.id)
    return {
        "job_id": job.key.id,
        "name": job.name or None,
        "retry_of": job.retry_of or None,
        "type": job.type,
        "status": job.status,
        "progress": job.progress,
        "total": job.counts.total,
        "succeeded": job.counts.succeeded,
        "failed": job.counts.failed,
        "cancelled": job.cancelled_items,
        "priority": job.priority,
        "model": job.model,
        "trained_model": (job.training and job.training.model) or None,
        "created_at": rfc3339(job.created_at),
        "started_at": job.started_at and rfc3339(job.started_at),
        "completed_at": job.completed_at and rfc3339(job.completed_at),
        "not_before": job.not_before and rfc3339(job.not_before),
        "deadline": job.deadline and rfc3339(job.deadline),
        "result": _summary(job) if job.status.terminal else None,
        "error": job.error and error_document(job.error),
        "poll_url": path,
        "stream_url": f"{path}/stream",
        "results_url": f"{path}/results",
    }


def error_document(error: RecordError) -> dict[str, Any]:
    return {"code": error.code, "detail": error.detail, "retryable": error.retryable}


def _summary(job: Job) -> str:
    counts = job.counts
    if job.training is not None:
        return _training_summary(job, job.training)
    parts = [f"{counts.succeeded} of {images(counts.total)} classified"]
    if counts.failed:
        parts.append(f"{counts.failed} failed")
    if job.cancelled_items:
        parts.append(f"{job.cancelled_items} not begun")
    return ", ".join(parts) + "."


def _training_summary(job: Job, training: Training) -> str:
    if not training.model:
        return f"{job.counts.completed} of {images(job.fit_position)} embedded, no model trained."
    text = f"Trained {training.model} on {images(job.counts.succeeded - 1)}."
    text += f" Accuracy: {100 * training.accuracy:.1f} %."
    return f"{text} {job.counts.failed} failed." if job.counts.failed else text


def images(count: int) -> str:
    """For example `2 images`."""
    return "1 image" if count == 1 else f"{count} images"
