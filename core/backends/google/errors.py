"""Translates Google's exceptions to ours, so that none of them leaves this package."""

import concurrent.futures
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import requests.exceptions
import structlog
import urllib3.exceptions
from google.api_core import exceptions as api
from google.auth import exceptions as auth
from google.cloud.storage import exceptions as storage
from google.resumable_media import common as media

from core.errors import Conflict, GlimpseError, NotFound, Unavailable

log = structlog.get_logger(__name__)

# The first entry that matches decides, so a subclass comes before its base.
TRANSLATIONS: tuple[tuple[type[BaseException], type[GlimpseError]], ...] = (
    (api.NotFound, NotFound),
    (api.Conflict, Conflict),  # AlreadyExists and Aborted are among its subclasses
    (api.PreconditionFailed, Conflict),
    # All other errors of Google's services: no answer, a temporary refusal, or a wrong set-up. The
    # operator has to correct the set-up: it is not the caller's fault.
    (api.GoogleAPIError, Unavailable),
    (auth.GoogleAuthError, Unavailable),
    (grpc.RpcError, Unavailable),
    (grpc.aio.UsageError, Unavailable),  # a channel that is closed
    (grpc.aio.InternalError, Unavailable),
    (storage.InvalidResponse, Unavailable),
    (storage.DataCorruption, Unavailable),
    (media.InvalidResponse, Unavailable),
    (media.DataCorruption, Unavailable),
    (requests.exceptions.RequestException, Unavailable),
    (urllib3.exceptions.HTTPError, Unavailable),
    (concurrent.futures.BrokenExecutor, Unavailable),
    (TimeoutError, Unavailable),
    (OSError, Unavailable),
)
VENDOR_ERRORS = tuple(vendor for vendor, _ in TRANSLATIONS)

# For errors that did not pass through api_core, by their gRPC or HTTP status.
_BY_RPC_STATUS = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
}
_BY_HTTP_STATUS = {404: NotFound, 409: Conflict, 412: Conflict}


def translation_of(error: BaseException) -> type[GlimpseError] | None:
    """NotFound, Conflict or Unavailable, or None if `error` is not from Google's libraries."""
    if isinstance(error, grpc.aio.AioRpcError):
        return _BY_RPC_STATUS.get(error.code(), Unavailable)
    response = getattr(error, "response", None)
    if isinstance(error, (storage.InvalidResponse, media.InvalidResponse)) and response is not None:
        return _BY_HTTP_STATUS.get(getattr(response, "status_code", 0), Unavailable)
    return next((ours for vendor, ours in TRANSLATIONS if isinstance(error, vendor)), None)


@contextmanager
def translated(part: str, *, missing: str = "") -> Iterator[None]:
    """Raise our errors in place of Google's. `part` names the service in details and logs.

    With `missing`, NotFound has that text. Otherwise a missing resource is a part of the set-up (a
    topic, a database, a bucket), so it is Unavailable, as every conflict is. The log has the cause,
    the error detail does not.
    """
    try:
        yield
    except VENDOR_ERRORS as error:
        kind = translation_of(error)
        if kind is NotFound and missing:
            raise NotFound(missing) from None
        log.error(f"{part} failed", reason=_reason(error))
        raise Unavailable(f"The {part} does not answer.") from error


def _reason(error: BaseException) -> str:
    """One line for the log. gRPC's texts have several."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
