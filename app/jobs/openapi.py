"""Parts of OpenAPI for jobs: parameters, and the body of a batch."""

from typing import Annotated, Any

from fastapi import Path

from app.batches.form import FIELD, MANIFEST_FIELD
from app.batches.manifest import BatchManifest
from app.http.openapi import query_parameter
from app.http.parameters import IDEMPOTENCY_KEY
from app.images.openapi import MODEL
from app.jobs.training import TrainingRequest
from app.streams.events import Event, Kind, encoded
from core.domain.job_document import job_path
from core.domain.jobs import MAX_NAME
from core.domain.messages import JOB_ID
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.priority import Priority
from core.domain.trained_models import MODEL_NAME
from core.domain.webhooks import JobEvent

# `JobService.find` checks the value.
JobId = Annotated[str, Path(json_schema_extra={"pattern": f"^{JOB_ID.pattern}$"})]

JSON = "application/json"
_REF = "#/components/schemas/{model}"

BATCH_PARAMETERS = [
    MODEL,
    {
        "name": "priority",
        "in": "query",
        "schema": {"$ref": _REF.format(model=Priority.__name__)},
        "description": "By default `normal`",
    },
    query_parameter("not_before", "The earliest start of the job", format="date-time"),
    query_parameter("name", "A name for lists and e-mail", minLength=1, maxLength=MAX_NAME),
    query_parameter(
        "webhook",
        "An https URL with a public address. The events of this job are sent to it, beside those "
        "to the webhooks of the tenant. The response has the secret that signs them",
        format="uri",
    ),
    {
        "name": "webhook_events",
        "in": "query",
        "schema": {"type": "array", "items": {"$ref": _REF.format(model=JobEvent.__name__)}},
        "description": "The events to send to `webhook`; all by default",
    },
    query_parameter("notify_email", "The address to notify when the job has ended", format="email"),
    {
        "name": "Cancel-After",
        "in": "header",
        "schema": {"type": "string", "examples": ["90s", "15m", "1h30m"]},
        "description": "Cancels the job if it has not ended after this time. From 5 seconds to 7 "
        "days, counted from its creation.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
        "description": "Requests with the same key and the same batch create one job.",
    },
]


def _body(media_type: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {
        "requestBody": {"required": True, "content": {media_type: {"schema": schema}}},
        "parameters": BATCH_PARAMETERS,
    }


# One kind of body for each route: generated clients send the first one of several.
FORM_BODY = _body("multipart/form-data", {"$ref": _REF.format(model="BatchUpload")})
# Not application/zip: generators of Python clients know no other type for bytes.
ZIP_BODY = _body("application/octet-stream", {"type": "string", "format": "binary"})
MANIFEST_BODY = _body(JSON, {"$ref": _REF.format(model="BatchManifest")})
_TRAINING_PARAMETERS = [
    query_parameter("name", "The name of the model", pattern=f"^{MODEL_NAME.pattern}$"),
    query_parameter("base", "The base model; by default the default model", minLength=1),
    query_parameter("activate", "Whether to activate the version", enum=["true", "false"]),
    *(each for each in BATCH_PARAMETERS if each["name"] not in ("model", "name")),
]
TRAINING_BODY = {
    **_body(JSON, {"$ref": _REF.format(model="TrainingRequest")}),
    "parameters": _TRAINING_PARAMETERS,
}
TRAINING_ZIP_BODY = {**ZIP_BODY, "parameters": _TRAINING_PARAMETERS}


def _schemas() -> dict[str, Any]:
    manifest = BatchManifest.model_json_schema(ref_template=_REF)
    definitions: dict[str, Any] = manifest.pop("$defs", {})
    form = {
        "title": "BatchUpload",
        "type": "object",
        "description": "A form with the images of a batch.",
        "properties": {
            FIELD: {
                "type": "array",
                "maxItems": MAX_JOB_ITEMS,
                "items": {"type": "string", "format": "binary"},
            },
            MANIFEST_FIELD: {
                "type": "string",
                "contentMediaType": JSON,
                "description": "A `BatchManifest` as JSON. It lists images of this form, and "
                "images that the service already has.",
            },
        },
    }
    training = TrainingRequest.model_json_schema(ref_template=_REF)
    definitions |= training.pop("$defs", {})
    return {
        **definitions,
        "BatchManifest": manifest,
        "BatchUpload": form,
        "TrainingRequest": training,
    }


SCHEMAS = _schemas()

_JOB_ID = "0f343b0931126a20f133d67c2b018a3b"
_PATH = f"http://127.0.0.1:8080{job_path(_JOB_ID)}"
_RUNNING: dict[str, Any] = {
    "job_id": _JOB_ID,
    "name": "Summer 2026",
    "retry_of": None,
    "type": "batch-predict",
    "status": "running",
    "progress": 50,
    "total": 2,
    "succeeded": 1,
    "failed": 0,
    "cancelled": 0,
    "priority": "normal",
    "model": "default@0123456789ab",
    "trained_model": None,
    "created_at": "2026-11-21T09:30:00.125Z",
    "started_at": "2026-11-21T09:30:00.310Z",
    "completed_at": None,
    "not_before": None,
    "deadline": None,
    "result": None,
    "error": None,
    "poll_url": _PATH,
    "stream_url": f"{_PATH}/stream",
    "results_url": f"{_PATH}/results",
}
_COMPLETED = _RUNNING | {
    "status": "completed",
    "progress": 100,
    "succeeded": 2,
    "completed_at": "2026-11-21T09:30:01.250Z",
    "result": "2 of 2 images classified.",
}
JOB_EVENTS = (
    Event(3, Kind.UPDATE, encoded(_RUNNING)),
    Event(4, Kind.COMPLETE, encoded(_COMPLETED)),
)
EXAMPLE_PATH = job_path(_JOB_ID)
