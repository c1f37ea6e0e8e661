"""Google's failures as ours. One table; nothing of the vendor's leaves this package."""

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

# The first line whose class the error is of. A subclass stands before its base.
TRANSLATIONS: tuple[tuple[type[BaseException], type[GlimpseError]], ...] = (
    (api.NotFound, NotFound),
    (api.Conflict, Conflict),  # AlreadyExists and Aborted are among its subclasses
    (api.PreconditionFailed, Conflict),
    # Everything else of Google's: not answered, refused for now, or refused because of how we are
    # set up, which is ours to mend and no fault of the caller's.
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

# gRPC's status by its number, for errors that did not pass through api_core; and HTTP's likewise.
_BY_RPC_STATUS = {
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.ALREADY_EXISTS: Conflict,
    grpc.StatusCode.ABORTED: Conflict,
}
_BY_HTTP_STATUS = {404: NotFound, 409: Conflict, 412: Conflict}


def ours(error: BaseException) -> type[GlimpseError] | None:
    """Which of our three errors `error` is, or None where it is none of Google's."""
    if isinstance(error, grpc.aio.AioRpcError):
        return _BY_RPC_STATUS.get(error.code(), Unavailable)
    response = getattr(error, "response", None)
    if isinstance(error, (storage.InvalidResponse, media.InvalidResponse)) and response is not None:
        return _BY_HTTP_STATUS.get(getattr(response, "status_code", 0), Unavailable)
    return next((mine for theirs, mine in TRANSLATIONS if isinstance(error, theirs)), None)


@contextmanager
def translated(part: str, *, missing: str = "") -> Iterator[None]:
    """Raise ours in place of Google's. `part` is what the caller knows the service by.

    NotFound with the text `missing` only where that is given: elsewhere a missing thing is a part
    of the set-up (a topic, a database, a bucket) and so is every conflict: Unavailable. The log
    has the cause, the caller does not.
    """
    try:
        yield
    except VENDOR_ERRORS as error:
        kind = ours(error)
        if kind is NotFound and missing:
            raise NotFound(missing) from None
        log.error(f"{part} failed", reason=_reason(error))
        raise Unavailable(f"The {part} does not answer.") from error


def _reason(error: BaseException) -> str:
    """One line for the log; gRPC's texts run over several."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
