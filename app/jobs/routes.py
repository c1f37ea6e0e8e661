"""`/api/v1/jobs`: many images as one piece of work."""

import re
import time
from collections.abc import AsyncIterator, Sequence

from fastapi import APIRouter, Request, Response
from starlette.responses import StreamingResponse

from app.audit_log import audited_job
from app.auth.requires import count_image, requires
from app.batches.archive import MEDIA_TYPES
from app.batches.form import FIELD, MANIFEST_FIELD
from app.batches.manifest import BatchManifest
from app.http.negotiation import preferred
from app.http.openapi import header, query_parameter, refusals
from app.http.pagination import POSITION, decode_cursor, encode_cursor, page_limit
from app.http.responses import NO_STORE, json_answer
from app.jobs.openapi import JOB_ID_PARAMETER
from app.jobs.options import IDEMPOTENCY_KEY
from app.jobs.representation import (
    AcceptedJobBody,
    JobBody,
    JobListBody,
    JobResultsBody,
    accepted_document,
    csv_header,
    csv_lines,
    json_lines,
    result_document,
)
from app.jobs.service import ItemResult, JobService
from app.services import services_of
from core import errors
from core.domain.job_document import job_document, job_path
from core.domain.jobs import JOB_TYPES, Job, JobStatus
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.principals import Principal, Scope
from core.domain.priority import Priority
from core.http.request_route import RequestRoute

JSON, NDJSON, CSV = "application/json", "application/x-ndjson", "text/csv"
DEFAULT_JOBS, MOST_JOBS = 50, 200
DEFAULT_RESULTS, MOST_RESULTS = 100, MAX_JOB_ITEMS
_PLACE = re.compile(r"[0-9]{1,4}")
_VARY = (b"vary", b"Accept")

_OPTIONS = [
    query_parameter("priority", "`normal`, if nobody says", enum=list(Priority)),
    query_parameter("not_before", "When it may begin", format="date-time"),
    query_parameter("notify_email", "Who is told of its end", format="email"),
    {
        "name": "Cancel-After",
        "in": "header",
        "schema": {"type": "string", "examples": ["90s", "15m", "1h30m"]},
        "description": "Cancel the job unless it has ended by then; 5 seconds to 7 days, counted "
        "from its creation.",
    },
    {
        "name": "Idempotency-Key",
        "in": "header",
        "schema": {"type": "string", "pattern": f"^{IDEMPOTENCY_KEY.pattern}$"},
        "description": "The same key with the same batch is one job, however often it is sent.",
    },
]
_MANIFEST = BatchManifest.model_json_schema(ref_template="#/components/schemas/{model}")
_MANIFEST.pop("$defs", None)  # what it refers to is among the answers' parts
_BATCH_BODY = {
    "required": True,
    "content": {
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {
                    FIELD: {
                        "type": "array",
                        "maxItems": MAX_JOB_ITEMS,
                        "items": {"type": "string", "format": "binary"},
                    },
                    MANIFEST_FIELD: {
                        "type": "string",
                        "contentMediaType": JSON,
                        "description": "As the JSON document; lists images that come along or that "
                        "the service has",
                    },
                },
            }
        },
        MEDIA_TYPES[0]: {"schema": {"type": "string", "format": "binary"}},
        JSON: {"schema": _MANIFEST},
    },
}
_CREATION_REFUSALS = refusals(
    errors.MalformedBody,
    errors.UploadTooSlow,
    errors.BatchTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.IdempotencyKeyReused,
    errors.Unavailable,
    errors.Overloaded,
)
_JOB_REFUSALS = refusals(errors.NotFound, errors.Forbidden, errors.Unavailable)

# As the images' routes: the request alone, documented by hand.
router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], route_class=RequestRoute)


@router.post(
    "/batch-predict",
    status_code=202,
    summary="Classify a batch of images",
    description="Up to 1,000 images: a form with the field `imgs` repeated, a zip, or a JSON "
    "document with the hashes of images that the service has (`POST /api/v1/images/lookup` says "
    "which). Its `gs_prefix` adds every image of a bucket whose name begins so, if the operator "
    "allows that bucket. A bad image fails its item and not the job. 202 means that the images are "
    "stored and that the job will run, whatever happens to a process.",
    responses={
        202: {
            "model": AcceptedJobBody,
            "description": "The job will run",
            "headers": {"Location": header("Where the job is", "/api/v1/jobs/0f34…")},
        },
        **_CREATION_REFUSALS,
    },
    openapi_extra={"requestBody": _BATCH_BODY, "parameters": _OPTIONS},
)
@requires(Scope.JOBS)
async def batch_predict(request: Request, principal: Principal) -> Response:
    began, services = time.perf_counter(), services_of(request)
    with services.uploads.slot() as slot:
        try:
            created = await services.jobs.create(request, principal, slot)
        finally:  # also if the batch is refused
            for size in slot.image_sizes:
                count_image(request, principal, size)
    job = created.job
    location = (b"location", job_path(job.key.id).encode())
    response = json_answer(accepted_document(job, services.settings.public_url), 202, [location])
    return audited_job(response, services.audit, principal, job, created.images, began=began)


@router.get(
    "",
    summary="Jobs",
    description="Newest first: those of the key that asks, or with the scope `admin` those of all "
    "of the tenant's keys.",
    responses={
        200: {"model": JobListBody},
        **refusals(errors.InvalidRequest, errors.Unavailable),
    },
    openapi_extra={
        "parameters": [
            query_parameter("status", "Only these", enum=list(JobStatus)),
            query_parameter("type", "Only these", enum=list(JOB_TYPES)),
            query_parameter("cursor", "`next_cursor` of the page before"),
            query_parameter("limit", "How many", type="integer", minimum=1, maximum=MOST_JOBS),
        ]
    },
)
@requires(Scope.JOBS)
async def list_jobs(request: Request, principal: Principal) -> Response:
    services, query = services_of(request), request.query_params
    status = _one_of(query.get("status", ""), "status", list(JobStatus))
    type_ = _one_of(query.get("type", ""), "type", JOB_TYPES)
    limit = page_limit(request, DEFAULT_JOBS, MOST_JOBS)
    after = decode_cursor(query.get("cursor", ""), POSITION)
    page = await services.jobs.list(principal, status, type_, limit, after)
    more = len(page) == limit
    return json_answer(
        {
            "jobs": [job_document(job, services.settings.public_url) for job in page],
            "next_cursor": encode_cursor(page[-1].sort_key) if more else None,
        }
    )


@router.get(
    "/{job_id}",
    summary="A job",
    description="How far it is. The counts of a running job may be short of what ended last; those "
    "of a job that is over, and its results at any time, are not.",
    responses={200: {"model": JobBody}, **_JOB_REFUSALS},
    openapi_extra={"parameters": [JOB_ID_PARAMETER]},
)
@requires(Scope.JOBS)
async def read_job(request: Request, principal: Principal) -> Response:
    services = services_of(request)
    job = await services.jobs.find(principal, request.path_params["job_id"])
    return json_answer(job_document(job, services.settings.public_url))


@router.get(
    "/{job_id}/results",
    summary="A job's results",
    description="In the order of the batch, also while it runs. `Accept` decides: pages of JSON, "
    "or all of them as lines of JSON (`application/x-ndjson`) or as CSV (`text/csv`).",
    responses={
        200: {
            "model": JobResultsBody,
            "content": {
                NDJSON: {"schema": {"type": "string"}},
                CSV: {"schema": {"type": "string"}},
            },
        },
        **refusals(errors.InvalidRequest),
        **_JOB_REFUSALS,
    },
    openapi_extra={
        "parameters": [
            JOB_ID_PARAMETER,
            query_parameter("cursor", "`next_cursor` of the page before; of JSON alone"),
            query_parameter(
                "limit", "How many; of JSON alone", type="integer", minimum=1, maximum=MOST_RESULTS
            ),
        ]
    },
)
@requires(Scope.JOBS)
async def read_results(request: Request, principal: Principal) -> Response:
    jobs = services_of(request).jobs
    job = await jobs.find(principal, request.path_params["job_id"])
    kind = preferred(", ".join(request.headers.getlist("accept")), (JSON, NDJSON, CSV))
    if kind != JSON:
        return await _streamed(jobs, job, kind)
    limit = page_limit(request, DEFAULT_RESULTS, MOST_RESULTS)
    cursor = decode_cursor(request.query_params.get("cursor", ""), _PLACE)
    page = await jobs.results(job, limit, int(cursor or -1))
    more = len(page) == limit and page[-1].item.position + 1 < job.counts.total
    return json_answer(
        {
            "job_id": job.key.id,
            "status": job.status,
            "results": [result_document(job, each) for each in page],
            "next_cursor": encode_cursor(str(page[-1].item.position)) if more else None,
        },
        headers=[_VARY],
    )


@router.delete(
    "/{job_id}",
    summary="Cancel a job",
    description="What of it has not begun never does. Repeating it changes nothing.",
    responses={200: {"model": JobBody}, **_JOB_REFUSALS, **refusals(errors.Conflict)},
    openapi_extra={"parameters": [JOB_ID_PARAMETER]},
)
@requires(Scope.JOBS)
async def cancel_job(request: Request, principal: Principal) -> Response:
    services = services_of(request)
    job = await services.jobs.cancel(principal, request.path_params["job_id"])
    return json_answer(job_document(job, services.settings.public_url))


async def _streamed(jobs: JobService, job: Job, kind: str) -> Response:
    """All results, one page in memory at a time. Where a page fails, the answer breaks off."""
    pages = aiter(jobs.all_results(job))
    # Before the answer begins: a store that is away is still a 503.
    first: Sequence[ItemResult] = await anext(pages, ())

    async def body() -> AsyncIterator[bytes]:
        lines = json_lines
        if kind == CSV:
            lines = csv_lines
            yield csv_header()
        yield lines(job, first)
        async for page in pages:
            yield lines(job, page)

    headers = {"Cache-Control": NO_STORE, "Vary": "Accept"}
    if kind == CSV:
        headers["Content-Disposition"] = f'attachment; filename="job-{job.key.id}.csv"'
    return StreamingResponse(body(), media_type=kind, headers=headers)


def _one_of(text: str, name: str, known: Sequence[str]) -> str:
    if text and text not in known:
        raise _invalid(name, f"is one of {', '.join(known)}")
    return text


def _invalid(field: str, rule: str) -> errors.InvalidRequest:
    return errors.InvalidRequest(f"The parameter {field} {rule}.", extra={"field": field})
