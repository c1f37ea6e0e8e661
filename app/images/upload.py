"""Handles an upload, which several routes accept."""

import time
from collections.abc import Callable

from fastapi import Request, Response

from app.audit_log import audited
from app.auth.requires import count_image
from app.images.responses import image_response
from app.services import services_of
from app.uploads.image_upload import read_upload
from core.domain.principals import Principal


async def accept_upload(
    request: Request,
    principal: Principal,
    *,
    wait: float = 0,
    applied_wait: float | None = None,
    path: Callable[[str], str],
    form_only: bool = False,
) -> Response:
    """Read the image, submit it, and return its result or a 202.

    Waits for the result for at most `wait` seconds. `applied_wait` is reported to the client as its
    preference. `path` makes the location of the result from the image's hash. With `form_only`, the
    image must be in a form.
    """
    began = time.perf_counter()
    services = services_of(request)
    limit = services.settings.max_image_bytes
    with services.uploads.slot() as slot:
        upload = await read_upload(request, limit, slot, form_only=form_only)
        size = len(upload.data)
        count_image(request, principal, size)
        result, cached = await services.images.submit(
            principal.tenant, upload, wait, request.receive
        )
    response = image_response(result, location=path(result.image_hash), wait=applied_wait)
    return audited(
        response,
        services.audit,
        principal,
        result.image_hash,
        result.status,
        cached=cached,
        size=size,
        began=began,
    )
