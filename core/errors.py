"""All errors of Glimpse, each with its HTTP status, problem code and retry hint.

`core.http.problems` turns them into RFC 9457 problem details. Nothing else builds an error body.
"""

import random
from collections.abc import Mapping
from typing import ClassVar


class GlimpseError(Exception):
    """An error that the caller may read.

    `detail` must contain nothing private. `retry_after` is in seconds.
    """

    status: ClassVar[int] = 500
    code: ClassVar[str] = "internal_error"
    title: ClassVar[str] = "Internal error"

    def __init__(
        self,
        detail: str,
        *,
        retry_after: int | None = None,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail)
        self.detail = detail
        self.retry_after = retry_after
        self.extra = dict(extra or {})


# --- Errors of the ports. The backends translate vendor errors to these three. --------------------


class NotFound(GlimpseError):
    """The resource does not exist."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(GlimpseError):
    """The state of the resource does not allow the change."""

    status, code, title = 409, "conflict", "Conflict"


class Unavailable(GlimpseError):
    """A service that Glimpse depends on does not answer. The same request may succeed later."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(self, detail: str, *, retry_after: int | None = 1) -> None:
        super().__init__(detail, retry_after=retry_after)


class DiskFull(Unavailable):
    """The disk of the data folder has no space for more images."""

    code, title = "disk_full", "Disk full"


class Overloaded(Unavailable):
    """The process is at capacity."""

    code, title = "overloaded", "Overloaded"


# --- Errors of the caller. ------------------------------------------------------------------------


class InvalidRequest(GlimpseError):
    """The request has an invalid value."""

    status, code, title = 422, "invalid_request", "Invalid request"


class IdempotencyKeyReused(InvalidRequest):
    """An earlier request used the same idempotency key with another body."""

    code, title = "idempotency_key_reused", "Idempotency key reused"


class UnknownModel(InvalidRequest):
    """The request names a model that the service does not have."""

    code, title = "unknown_model", "Unknown model"


class NotUploaded(InvalidRequest):
    """The request names an image by its hash, and the image is not stored."""

    code, title = "not_uploaded", "Image not uploaded"


class MalformedBody(GlimpseError):
    """The request body does not have the format that its headers declare."""

    status, code, title = 400, "malformed_body", "Malformed request body"


class MalformedEnvelope(GlimpseError):
    """The push body is not a Pub/Sub envelope that this worker accepts."""

    status, code, title = 400, "malformed_envelope", "Malformed push envelope"


class Unauthenticated(GlimpseError):
    """The request has no valid credentials."""

    status, code, title = 401, "unauthenticated", "Unauthenticated"


class Forbidden(GlimpseError):
    """The credentials, or the signed link, do not allow the request."""

    status, code, title = 403, "forbidden", "Forbidden"


class CrossOriginRequest(Forbidden):
    """The request changes something, and a web page of another origin sent it."""

    code, title = "cross_origin_request", "Cross-origin request"


class RateLimited(GlimpseError):
    """The key has used up one of its limits."""

    status, code, title = 429, "rate_limited", "Too many requests"


class InvalidHost(GlimpseError):
    """The request names a host that this service does not serve."""

    status, code, title = 400, "invalid_host", "Invalid host"


class BodyTooLarge(GlimpseError):
    """The request body, which is not an image, exceeds its limit."""

    status, code, title = 413, "body_too_large", "Request body too large"


class ImageTooLarge(GlimpseError):
    """The image has more bytes than the limit."""

    status, code, title = 413, "image_too_large", "Image too large"


class BatchTooLarge(GlimpseError):
    """The batch has more images or more bytes than a job may have."""

    status, code, title = 413, "batch_too_large", "Batch too large"


class UnsupportedMediaType(GlimpseError):
    """The route does not accept bodies of this type."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UploadTooSlow(GlimpseError):
    """The client sends its upload more slowly than the minimum rate."""

    status, code, title = 408, "upload_too_slow", "Upload too slow"


class UnsupportedImage(GlimpseError):
    """The bytes are not of an accepted image format."""

    status, code, title = 415, "unsupported_image", "Unsupported image type"


class HashMismatch(GlimpseError):
    """The bytes do not have the hash under which the client sends them."""

    status, code, title = 422, "hash_mismatch", "Hash mismatch"


class InvalidImage(GlimpseError):
    """The file has an accepted format, but is damaged or its dimensions exceed the limit."""

    status, code, title = 422, "invalid_image", "Invalid image"


# --- Errors of images and models. Some end a record: their code is its `error.code`. --------------


class UndecodableImage(InvalidImage):
    """The image passed the check of its header, and decoding failed."""

    code, title = "undecodable_image", "Image cannot be decoded"


class ModelUnavailable(Unavailable):
    """The worker has no bundle for the message's model. Another revision may have it."""

    code, title = "model_unavailable", "Model unavailable"


class BundleError(GlimpseError):
    """A model bundle is incomplete or altered, or does not match its manifest."""

    code, title = "invalid_bundle", "Invalid model bundle"


class BundleUnavailable(BundleError):
    """A model bundle is missing or forbidden, or its storage does not answer.

    It may become available without a restart.
    """

    code, title = "bundle_unavailable", "Model bundle unavailable"


FULL_RETRY_AFTER = 30  # seconds


def disk_full() -> DiskFull:
    """An error for clients and for `/ready`."""
    detail = "disk full: DATA_DIR has no space for more images."
    return DiskFull(detail, retry_after=FULL_RETRY_AFTER)


RETRY_AFTER = (1, 5)  # seconds, at random between these, so that clients do not retry together


def overloaded() -> Overloaded:
    """An error with a random `retry_after`."""
    return Overloaded(
        "The service is at capacity. Retry later.",
        retry_after=random.randint(*RETRY_AFTER),
    )
