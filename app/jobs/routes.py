"""`/api/v1/jobs`: many images, classified as one job."""

import re
import time
from codecs import BOM_UTF8
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from app.audit_log import audited_job
from app.auth.requires import count_image, requires
from app.auth.route import AuthenticatedRoute
from app.batches.reader import BatchKind
from app.http.negotiation import preferred_type
from app.http.openapi import Responses, header, refusals
from app.http.pagination import POSITION, decode_cursor, encode_cursor
from app.http.parameters import EMPTY_ARE_MISSING, EMPTY_IS_MISSING, Cursor, Digits
from app.http.responses import json_response
from app.images.openapi import VIEW
from app.images.view import View, view_of
from app.jobs import schemas
from app.jobs.creation import Created
from app.jobs.openapi import (
    EXAMPLE_PATH,
    FORM_BODY,
    JSON,
    MANIFEST_BODY,
    TRAINING_BODY,
    TRAINING_ZIP_BODY,
    ZIP_BODY,
    JobId,
)
from app.jobs.representation import (
    ItemStatus,
    ResultFormat,
    ResultSelection,
    accepted_document,
    csv_header,
    csv_lines,
    json_lines,
    result_document,
)
from app.jobs.service import ItemResult, JobService
from app.jobs.training import TrainingService
from app.services import Services, services_of
from core import errors
from core.domain.job_document import job_document, job_path
from core.domain.jobs import Job, JobStatus
from core.domain.policy import MAX_JOB_ITEMS
from core.domain.principals import Principal, Scope

NDJSON, CSV = "application/x-ndjson", "text/csv"
_FORMATS = {JSON: ResultFormat.JSON, NDJSON: ResultFormat.NDJSON, CSV: ResultFormat.CSV}
DEFAULT_JOBS, MAX_JOBS = 50, 200
DEFAULT_RESULTS, MAX_RESULTS = 100, MAX_JOB_ITEMS
_ITEM_POSITION = re.compile(r"[0-9]{1,5}")
_VARY = (b"vary", b"Accept")

_ACCEPTED: Responses = {
    202: {
        "model": schemas.AcceptedJob,
        "description": "The job is accepted",
        "headers": {"Location": header("The job", EXAMPLE_PATH)},
    }
}
_CREATION_REFUSALS = refusals(
    errors.MalformedBody,
    errors.UploadTooSlow,
    errors.BatchTooLarge,
    errors.UnsupportedMediaType,
    errors.InvalidRequest,
    errors.UnknownModel,
    errors.IdempotencyKeyReused,
    errors.Unavailable,
    errors.Overloaded,
)
_JOB_REFUSALS = refusals(
    errors.NotFound, errors.Forbidden, errors.InvalidRequest, errors.Unavailable
)

router = APIRouter(prefix="/api/v1/jobs", tags=["jobs"], route_class=AuthenticatedRoute)


@router.post(
    "/batch-predict",
    status_code=202,
    summary="Classify a batch of images",
    description="Send up to 1,000 images as a form with repeated fields `imgs`. An invalid image "
    "fails its item, not the job. 202: the images are stored, and no crash of a process keeps the "
    "job from running.\n\n"
    "A body of type `application/zip` or `application/json` is taken as by the two routes below "
    "this one.",
    responses={**_ACCEPTED, **_CREATION_REFUSALS},
    openapi_extra=FORM_BODY,
)
@requires(Scope.JOBS)
async def create_job(request: Request, principal: Principal) -> Response:
    return await _create(request, principal, services_of(request).jobs)


@router.post(
    "/batch-predict/zip",
    status_code=202,
    summary="Classify the images of a zip",
    description="The body is a zip of up to 1,000 images. Otherwise the same as "
    "`POST /api/v1/jobs/batch-predict`.",
    responses={**_ACCEPTED, **_CREATION_REFUSALS},
    openapi_extra=ZIP_BODY,
)
@requires(Scope.JOBS)
async def create_zip_job(request: Request, principal: Principal) -> Response:
    return await _create(request, principal, services_of(request).jobs, BatchKind.ZIP)


@router.post(
    "/batch-predict/hashes",
    status_code=202,
    summary="Classify images that the service has",
    description="The body is a JSON document with the hashes of images that the service has "
    "(`POST /api/v1/images/lookup` tells which). Its `gs_prefix` adds every image with that prefix "
    "in a bucket that the operator allows. Otherwise the same as "
    "`POST /api/v1/jobs/batch-predict`.",
    responses={**_ACCEPTED, **_CREATION_REFUSALS},
    openapi_extra=MANIFEST_BODY,
)
@requires(Scope.JOBS)
async def create_hashes_job(request: Request, principal: Principal) -> Response:
    return await _create(request, principal, services_of(request).jobs, BatchKind.MANIFEST)


async def _create(
    request: Request,
    principal: Principal,
    service: JobService | TrainingService,
    kind: BatchKind | None = None,
) -> Response:
    began, services = time.perf_counter(), services_of(request)
    with services.uploads.slot() as slot:
        try:
            created = await service.create(request, principal, slot, kind)
        finally:  # also if the batch is refused
            for size in slot.image_sizes:
                count_image(request, principal, size)
    return _accepted(services, principal, created, began)


@router.post(
    "/train-model",
    status_code=202,
    summary="Train a model on your own labels",
    description="Send the hashes of images that the service has, with a label for each: 2 to 100 "
    "labels with at least 5 images each, at most 10,000 images. Images with the label `none` teach "
    "the model what is none of the others. The job embeds each image under the base model, then "
    "fits the new version. See `GET /api/v1/models/{model_id}` for its figures.\n\n"
    "A body of type `application/zip` is taken as by the route below this one.",
    responses={**_ACCEPTED, **_CREATION_REFUSALS, **refusals(errors.Conflict)},
    openapi_extra=TRAINING_BODY,
)
@requires(Scope.JOBS)
async def train_model(request: Request, principal: Principal) -> Response:
    return await _create(request, principal, services_of(request).trainings)


@router.post(
    "/train-model/zip",
    status_code=202,
    summary="Train a model on the folders of a zip",
    description="The body is a zip with a folder for each label. A file `examples.json` at its top "
    "may be a `TrainingRequest` with more images, by their hashes. Otherwise the same as "
    "`POST /api/v1/jobs/train-model`.",
    responses={**_ACCEPTED, **_CREATION_REFUSALS, **refusals(errors.Conflict)},
    openapi_extra=TRAINING_ZIP_BODY,
)
@requires(Scope.JOBS)
async def train_model_zip(request: Request, principal: Principal) -> Response:
    return await _create(request, principal, services_of(request).trainings, BatchKind.ZIP)


@router.get(
    "",
    summary="List jobs",
    description="Newest first: the jobs of the caller's key, or with the scope `admin` the jobs of "
    "all keys of its tenant.",
    responses={
        200: {"model": schemas.JobList},
        **refusals(errors.InvalidRequest, errors.Unavailable),
    },
)
@requires(Scope.JOBS)
async def list_jobs(
    request: Request,
    principal: Principal,
    *,
    status: Annotated[
        JobStatus | None, EMPTY_IS_MISSING, Query(description="Only with this status")
    ] = None,
    type_: Annotated[
        Literal["batch-predict", "train-model"] | None,
        EMPTY_IS_MISSING,
        Query(alias="type", description="Only of this type"),
    ] = None,
    cursor: Cursor = "",
    limit: Annotated[
        Digits, Query(ge=1, le=MAX_JOBS, description="Largest number of jobs")
    ] = DEFAULT_JOBS,
) -> Response:
    services = services_of(request)
    after = decode_cursor(cursor, POSITION)
    page = await services.jobs.list(principal, status or "", type_ or "", limit, after)
    more = len(page) == limit
    return json_response(
        {
            "jobs": [job_document(job, services.settings.public_url) for job in page],
            "next_cursor": encode_cursor(page[-1].sort_key) if more else None,
        }
    )


@router.get(
    "/{job_id}",
    summary="Get a job",
    description="The counts of a running job may lag behind its results. Those of a finished job "
    "are exact.",
    responses={200: {"model": schemas.Job}, **_JOB_REFUSALS},
)
@requires(Scope.JOBS)
async def get_job(request: Request, principal: Principal, job_id: JobId) -> Response:
    services = services_of(request)
    job = await services.jobs.find(principal, job_id)
    return json_response(job_document(job, services.settings.public_url))


ResultStatuses = Annotated[
    list[ItemStatus] | None,
    EMPTY_ARE_MISSING,
    Query(description="Only results with one of these statuses"),
]
ResultLabel = Annotated[str, Query(max_length=200, description="Only results with this label")]


@router.get(
    "/{job_id}/results",
    summary="Get the results of a job",
    description="In the order of the batch, also while the job runs. `format`, or else `Accept`, "
    "selects pages of JSON, or all results as lines of JSON (`application/x-ndjson`) or CSV "
    "(`text/csv`). `csv-excel` begins with the byte-order mark from which Excel knows UTF-8. "
    "`…/results/csv` and `…/results/ndjson` document these for generated clients.",
    responses={200: {"model": schemas.JobResultList}, **_JOB_REFUSALS},
    openapi_extra={"parameters": VIEW},
)
@requires(Scope.JOBS)
async def get_job_results(
    request: Request,
    principal: Principal,
    job_id: JobId,
    *,
    format_: Annotated[
        ResultFormat | None,
        EMPTY_IS_MISSING,
        # Not documented: a generated client would take the text for a document of JSON.
        Query(alias="format", include_in_schema=False),
    ] = None,
    status: ResultStatuses = None,
    label: ResultLabel = "",
    cursor: Annotated[
        str, Query(description="`next_cursor` of the previous page; only for JSON")
    ] = "",
    limit: Annotated[
        Digits, Query(ge=1, le=MAX_RESULTS, description="Largest number of results; only for JSON")
    ] = DEFAULT_RESULTS,
) -> Response:
    services = services_of(request)
    jobs = services.jobs
    view = view_of(request.query_params, services.images.default_view)
    job = await jobs.find(principal, job_id)
    if format_ is None:
        accept = ", ".join(request.headers.getlist("accept"))
        format_ = _FORMATS[preferred_type(accept, tuple(_FORMATS))]
    selection = ResultSelection(frozenset(status or ()), label)
    includes = selection.includes if status or label else None
    if format_ is not ResultFormat.JSON:
        return await _streamed(jobs, job, view, format_, selection)
    position = decode_cursor(cursor, _ITEM_POSITION)
    page = await jobs.selected_results(job, includes, limit, int(position or -1))
    more = len(page) == limit and page[-1].item.position + 1 < job.counts.total
    return json_response(
        {
            "job_id": job.key.id,
            "status": job.status,
            "results": [result_document(job, each, view) for each in page],
            "next_cursor": encode_cursor(str(page[-1].item.position)) if more else None,
        },
        headers=[_VARY],
    )


def _download(format_: ResultFormat, kind: str, summary: str, description: str) -> None:
    """Add the route that documents one format of results."""

    @router.get(
        f"/{{job_id}}/results/{format_}",
        name=f"get_results_{format_}",
        summary=summary,
        description=description,
        response_class=StreamingResponse,
        responses={
            200: {
                "description": "All results, in the order of the batch",
                "content": {kind: {"schema": {"type": "string"}}},
                "headers": {
                    "Content-Disposition": header(
                        "A name for the file", f'attachment; filename="job.{format_}"'
                    )
                },
            },
            **_JOB_REFUSALS,
        },
        openapi_extra={"parameters": VIEW},
    )
    @requires(Scope.JOBS)
    async def download(
        request: Request,
        principal: Principal,
        job_id: JobId,
        status: ResultStatuses = None,
        label: ResultLabel = "",
    ) -> Response:
        services = services_of(request)
        view = view_of(request.query_params, services.images.default_view)
        job = await services.jobs.find(principal, job_id)
        selection = ResultSelection(frozenset(status or ()), label)
        return await _streamed(services.jobs, job, view, format_, selection)


_download(
    ResultFormat.CSV,
    CSV,
    "Get the results of a job as CSV",
    "One line for each image (RFC 4180), also while the job runs.",
)
_download(
    ResultFormat.NDJSON,
    NDJSON,
    "Get the results of a job as lines of JSON",
    "One line for each image, a `JobResult`, also while the job runs.",
)


@router.post(
    "/{job_id}/retry",
    status_code=202,
    summary="Retry the failed images of a job",
    description="Creates a job of the images that failed with a retryable error, or that were not "
    "started before the job ended. It has the model, the priority, and the name of that job. "
    "Repeating the request returns the same job. 409 if the job has not ended, or has no such "
    "image.",
    responses={
        202: {
            "model": schemas.AcceptedJob,
            "description": "The job is accepted",
            "headers": {"Location": header("The new job", EXAMPLE_PATH)},
        },
        **_JOB_REFUSALS,
        **refusals(errors.Conflict),
    },
)
@requires(Scope.JOBS)
async def retry_job(request: Request, principal: Principal, job_id: JobId) -> Response:
    began, services = time.perf_counter(), services_of(request)
    created = await services.jobs.retry(request, principal, job_id)
    return _accepted(services, principal, created, began)


@router.delete(
    "/{job_id}",
    summary="Cancel a job",
    description="Images that are not started yet are not classified. Repeating it changes nothing.",
    responses={200: {"model": schemas.Job}, **_JOB_REFUSALS, **refusals(errors.Conflict)},
)
@requires(Scope.JOBS)
async def cancel_job(request: Request, principal: Principal, job_id: JobId) -> Response:
    services = services_of(request)
    job = await services.jobs.cancel(principal, job_id)
    return json_response(job_document(job, services.settings.public_url))


def _accepted(services: Services, principal: Principal, created: Created, began: float) -> Response:
    """The 202 of a created job. `began` is the time of the request, in `perf_counter` seconds."""
    job = created.job
    public_url = services.settings.public_url
    location = (b"location", (public_url + job_path(job.key.id)).encode())
    response = json_response(accepted_document(job, public_url, created.skipped), 202, [location])
    return audited_job(response, services.audit, principal, job, created.images, began=began)


async def _streamed(
    jobs: JobService, job: Job, view: View, format_: ResultFormat, selection: ResultSelection
) -> Response:
    """Stream all results, with one page in memory. If a page fails, the response breaks off."""
    pages = aiter(jobs.all_results(job))
    # Before the response starts, so that a failing store is still a 503.
    first: Sequence[ItemResult] = await anext(pages, ())
    is_csv = format_ is not ResultFormat.NDJSON
    lines = csv_lines if is_csv else json_lines

    def selected(page: Sequence[ItemResult]) -> bytes:
        return lines(job, [each for each in page if selection.includes(job, each)], view)

    async def body() -> AsyncIterator[bytes]:
        if format_ is ResultFormat.CSV_EXCEL:
            yield BOM_UTF8
        if is_csv:
            yield csv_header()
        yield selected(first)
        async for page in pages:
            yield selected(page)

    extension = "csv" if is_csv else "ndjson"
    disposition = f'attachment; filename="job-{job.key.id}.{extension}"'
    headers = {"Vary": "Accept", "Content-Disposition": disposition}
    return StreamingResponse(body(), media_type=CSV if is_csv else NDJSON, headers=headers)
