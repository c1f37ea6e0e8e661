"""The schemas of jobs in OpenAPI. `app.jobs.representation` encodes jobs accordingly."""

from typing import Any

from pydantic import BaseModel, Field

from app.http.pagination import NextCursor
from app.http.timestamps import Timestamp
from app.images.schemas import Annotation, ImageError
from app.jobs.representation import ItemStatus
from core.domain.jobs import JobStatus
from core.domain.messages import JOB_ID
from core.domain.priority import Priority


class AcceptedJob(BaseModel):
    """A job that was created."""

    job_id: str = Field(pattern=f"^{JOB_ID.pattern}$")
    status: JobStatus = Field(
        description="`pending`, unless the Idempotency-Key belongs to an earlier job"
    )
    skipped: int = Field(
        ge=0,
        description="Files that programs make beside images, such as `Thumbs.db`, hidden files and "
        "captions. They are not read",
    )
    message: str = Field(examples=["2 images accepted. Poll poll_url or stream stream_url."])
    poll_url: str
    stream_url: str
    webhook_secret: str = Field(
        default="", description="Signs the events for `webhook`; missing without one"
    )


class JobError(BaseModel):
    """Why a job failed or was cancelled."""

    code: str = Field(examples=["deadline_exceeded"])
    detail: str
    retryable: bool


class Job(BaseModel):
    """The state of a job."""

    job_id: str = Field(pattern=f"^{JOB_ID.pattern}$")
    name: str | None = Field(description="As given at the creation", examples=["Summer 2026"])
    retry_of: str | None = Field(description="The job whose items this job tries again")
    type: str = Field(examples=["batch-predict"])
    status: JobStatus = Field(
        description="`pending` → `running` → `completed`, `failed` or `cancelled`. A job completes "
        "even if some of its images fail; it fails if the job itself cannot run."
    )
    progress: int = Field(ge=0, le=100, description="Percentage of finished images")
    total: int = Field(ge=1)
    succeeded: int = Field(ge=0)
    failed: int = Field(ge=0)
    cancelled: int = Field(ge=0, description="Images that were not finished when the job ended")
    priority: Priority
    model: str = Field(description="The identity of the model; in a training, of its base model")
    trained_model: str | None = Field(
        description="The identity of the version that a training has made"
    )
    created_at: Timestamp
    started_at: Timestamp | None
    completed_at: Timestamp | None
    not_before: Timestamp | None = Field(description="The earliest start")
    deadline: Timestamp | None = Field(description="When the job is cancelled if it still runs")
    result: str | None = Field(description="A summary of the finished job")
    error: JobError | None = Field(description="Why it failed, or was cancelled by the service")
    poll_url: str
    stream_url: str
    results_url: str


class JobList(BaseModel):
    """A page of jobs, newest first."""

    jobs: list[Job]
    next_cursor: NextCursor


class JobResult(BaseModel):
    """The result of one image of a job."""

    index: int = Field(ge=0, description="The position in the batch, from 0")
    image_hash: str | None = Field(description="SHA-256; null if the image could not be read")
    name: str | None = Field(description="The last part of the file name, if there was one")
    status: ItemStatus = Field(description="`cancelled`: the job ended before the image")
    annotations: list[Annotation]
    categories: list[Annotation]
    confident: bool | None = Field(
        description="As in the result of an image; null if the model has no threshold"
    )
    output: Any = Field(
        description="What the predictor of a bundle in Python returned beside labels, else null"
    )
    error: ImageError | None
    metadata: dict[str, Any] = Field(description="As given in the batch")


class JobResultList(BaseModel):
    """A page of results, in the order of the batch."""

    job_id: str
    status: JobStatus
    results: list[JobResult]
    next_cursor: NextCursor
