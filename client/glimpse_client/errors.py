"""Errors of the client: one class for each problem code of the service (RFC 9457)."""

from collections.abc import Mapping
from typing import Any


class GlimpseError(Exception):
    """The base of every error that this package raises."""


class ConnectionFailed(GlimpseError):
    """The service does not answer: no connection, a time-out, or a broken answer."""


class WaitTimeout(GlimpseError):
    """The image or the job has no final state yet. `pending` is its last known state."""

    def __init__(self, message: str, pending: Any) -> None:
        super().__init__(message)
        self.pending = pending


class InvalidSignature(GlimpseError):
    """A webhook delivery is not signed with any of the secrets, or its timestamp is too old."""


class ApiError(GlimpseError):
    """The service refused the request.

    `status` is the HTTP status, `code` the problem's code (empty if the answer is not a problem),
    `detail` its text, and `problem` the whole document. `retry_after` is in seconds.
    """

    def __init__(
        self, status: int, problem: Mapping[str, Any], retry_after: float | None = None
    ) -> None:
        self.status = status
        self.problem = dict(problem)
        self.code = str(problem.get("code") or "")
        self.detail = str(problem.get("detail") or problem.get("title") or "")
        self.retry_after = retry_after
        super().__init__(f"{status} {self.code}: {self.detail}" if self.code else f"HTTP {status}")


class BadRequest(ApiError):
    """400 or another 4xx without a class of its own."""


class MalformedBody(BadRequest):
    """The body is not JSON, or not a form."""


class InvalidHost(BadRequest):
    """The service does not answer under this host name."""


class Unauthenticated(ApiError):
    """401: the API key is missing, wrong, expired or revoked."""


class Forbidden(ApiError):
    """403: the key does not have the scope that the request needs."""


class CrossOriginRequest(Forbidden):
    """A web page of another origin sent the request."""


class NotFound(ApiError):
    """404: the image, job, model or route does not exist."""


class UnknownPath(NotFound):
    """The service has no such route: its version differs, or the address is not Glimpse."""


class Conflict(ApiError):
    """409: the current state does not permit the change."""


class UploadTooSlow(ApiError):
    """408: the bytes arrived too slowly."""


class TooLarge(ApiError):
    """413: the body exceeds a limit of the service."""


class Unsupported(ApiError):
    """415: the body is not in an accepted format."""


class Invalid(ApiError):
    """422: a parameter, the body or the image is invalid."""


class ImageTooLarge(TooLarge):
    """The image has more bytes than the service accepts."""


class BatchTooLarge(TooLarge):
    """The batch has more images or bytes than one job can have."""


class UnsupportedImage(Unsupported):
    """The bytes are not in an accepted image format."""


class InvalidImage(Invalid):
    """The image is damaged, or exceeds the pixel limit."""


class NotUploaded(Invalid):
    """The request names the hash of an image that is not stored."""


class UnknownModel(Invalid):
    """The service has no model with this name or id."""


class HashMismatch(Invalid):
    """The bytes do not have the hash that the request names."""


class PrivateAddress(Invalid):
    """The URL leads to an address that is not public."""


class IdempotencyKeyReused(Invalid):
    """The idempotency key belongs to an earlier request with another body."""


class RateLimited(ApiError):
    """429: the key has used its rate limit or its daily quota."""


class ServiceUnavailable(ApiError):
    """5xx: the service, or a part that it depends on, does not work at the moment."""


class Overloaded(ServiceUnavailable):
    """The service is at capacity."""


class InternalError(ServiceUnavailable):
    """The service has a fault."""


class DiskFull(ServiceUnavailable):
    """The service has no space for more images."""


class ModelUnavailable(ServiceUnavailable):
    """The service cannot load the model at the moment."""


_BY_CODE: dict[str, type[ApiError]] = {
    "unauthenticated": Unauthenticated,
    "forbidden": Forbidden,
    "cross_origin_request": CrossOriginRequest,
    "not_found": NotFound,
    "unknown_path": UnknownPath,
    "conflict": Conflict,
    "image_too_large": ImageTooLarge,
    "batch_too_large": BatchTooLarge,
    "body_too_large": TooLarge,
    "unsupported_image": UnsupportedImage,
    "unsupported_media_type": Unsupported,
    "invalid_image": InvalidImage,
    "undecodable_image": InvalidImage,
    "invalid_request": Invalid,
    "invalid_host": InvalidHost,
    "malformed_body": MalformedBody,
    "unknown_model": UnknownModel,
    "hash_mismatch": HashMismatch,
    "private_address": PrivateAddress,
    "upload_too_slow": UploadTooSlow,
    "not_uploaded": NotUploaded,
    "idempotency_key_reused": IdempotencyKeyReused,
    "rate_limited": RateLimited,
    "internal_error": InternalError,
    "disk_full": DiskFull,
    "model_unavailable": ModelUnavailable,
    "overloaded": Overloaded,
    "unavailable": ServiceUnavailable,
}
_BY_STATUS: dict[int, type[ApiError]] = {
    401: Unauthenticated,
    403: Forbidden,
    404: NotFound,
    409: Conflict,
    413: TooLarge,
    415: Unsupported,
    422: Invalid,
    429: RateLimited,
}


def error_for(
    status: int, problem: Mapping[str, Any], retry_after: float | None = None
) -> ApiError:
    """The error of an answer, by its code, else by its status."""
    kind = _BY_CODE.get(str(problem.get("code") or ""))
    if kind is None:
        kind = _BY_STATUS.get(status, ServiceUnavailable if status >= 500 else BadRequest)
    return kind(status, problem, retry_after)
