"""Handles a request for a classification: an upload, or the hash of an image that is stored."""

import time
from collections.abc import Callable

from fastapi import Request, Response

from app.audit_log import audited
from app.auth.requires import count_image
from app.http.json_body import is_json
from app.http.responses import RawHeaders
from app.images.representation import Representation, image_path
from app.images.responses import image_response
from app.images.result_waiter import Wait
from app.images.selection import Selection, resolved_model, selection_of
from app.services import services_of
from app.uploads.image_source import read_image_source
from app.uploads.image_upload import read_named_upload, read_upload
from core.domain.job_document import job_path
from core.domain.jobs import Job
from core.domain.principals import Principal
from core.domain.records import RecordKey

Locate = Callable[[Request, Representation, Selection], str]


def location_of(request: Request, result: Representation, selection: Selection) -> str:
    """Where the result will be. It names the model, since another one may be the default then."""
    services = services_of(request)
    query = selection.query(result.model, services.images.default_view)
    return services.settings.public_url + image_path(result.image_hash) + query


def notice_headers(job: Job, public_url: str) -> RawHeaders:
    """The headers of an upload that names a webhook: its job, and the secret of the webhook."""
    secret = job.webhook.secret if job.webhook is not None else ""
    link = f'<{public_url}{job_path(job.key.id)}>; rel="related"'
    return [(b"link", link.encode()), (b"webhook-secret", secret.encode())]


async def accept_upload(
    request: Request,
    principal: Principal,
    *,
    prefer: float | None = None,
    wait: float = 0,
    locate: Locate = location_of,
    form_only: bool = False,
    image_hash: str | None = None,
    from_json: bool = False,
    webhooks: bool = False,
) -> Response:
    """Read the image, submit it, and return its result or a 202.

    Waits for the result for at most `prefer` seconds, which the response reports as the client's
    preference, or else for `wait` seconds. `locate` returns the location of the result. With
    `form_only`, the image must be in a form. With `image_hash`, it must be a raw body that has this
    hash. With `from_json`, the body must be JSON that names the image. With `webhooks`, the query
    may name a webhook: the upload is then a job of one image as well.
    """
    began = time.perf_counter()
    services = services_of(request)
    selection = selection_of(request)
    model = await resolved_model(request, principal, selection.model)
    limit = services.settings.max_image_bytes
    notice = None
    if webhooks and request.scope["query_string"]:
        notice = await services.jobs.upload_options(request)
    with services.uploads.slot() as slot:
        if from_json or (image_hash is None and not form_only and is_json(request)):
            upload = await read_image_source(request, limit, slot, services.image_fetcher)
        elif image_hash is None:
            upload = await read_upload(request, limit, slot, form_only=form_only)
        else:
            upload = await read_named_upload(request, limit, slot, image_hash)
        size = len(upload.data)
        if notice is not None:
            await services.jobs.check_upload(principal, upload.image_hash, model, notice)
        count_image(request, principal, size)
        key = RecordKey(principal.tenant, upload.image_hash, model)
        result, cached = await services.images.submit(
            key, upload, selection.view, Wait(prefer or wait, request.receive, principal.key_id)
        )
    # Only a 202 has a location.
    location = "" if result.status.terminal else locate(request, result, selection)
    response = image_response(result, location=location, wait=prefer)
    if notice is not None:
        job = await services.jobs.create_for_upload(principal, result.image_hash, model, notice)
        response.raw_headers += notice_headers(job, services.settings.public_url)
    return audited(
        response, services.audit, principal, result, cached=cached, size=size, began=began
    )


async def classify_stored(
    request: Request,
    principal: Principal,
    image_hash: str,
    *,
    prefer: float | None,
) -> Response:
    """Same as `accept_upload`, for an image that the service has."""
    began = time.perf_counter()
    services = services_of(request)
    selection = selection_of(request)
    model = await resolved_model(request, principal, selection.model)
    key = services.images.key(principal.tenant, image_hash, model)
    count_image(request, principal, 0)
    result, cached = await services.images.classify_stored(
        key, selection.view, Wait(prefer or 0, request.receive, principal.key_id)
    )
    location = "" if result.status.terminal else location_of(request, result, selection)
    response = image_response(result, location=location, wait=prefer)
    return audited(response, services.audit, principal, result, cached=cached, size=0, began=began)
