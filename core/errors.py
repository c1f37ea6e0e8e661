"""Every failure Glimpse names. Each carries its own HTTP status, code and retry hint.

`core.http.problems` turns them into RFC 9457 problem details; nothing else builds an error body.
"""

import random
from collections.abc import Mapping
from typing import ClassVar


class GlimpseError(Exception):
    """A failure with a public explanation.

    `detail` is written for the caller and must hold nothing private. `retry_after` is in seconds.
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


# --- What a port may raise: vendor errors are translated to these three at the edge. ------------


class NotFound(GlimpseError):
    """The named thing does not exist."""

    status, code, title = 404, "not_found", "Not found"


class Conflict(GlimpseError):
    """The state of the thing forbids the change."""

    status, code, title = 409, "conflict", "Conflict"


class Unavailable(GlimpseError):
    """A part that Glimpse depends on does not answer; the same request may succeed later."""

    status, code, title = 503, "unavailable", "Temporarily unavailable"

    def __init__(
        self,
        detail: str,
        *,
        retry_after: int | None = 1,
        extra: Mapping[str, object] | None = None,
    ) -> None:
        super().__init__(detail, retry_after=retry_after, extra=extra)


class Overloaded(Unavailable):
    """More is under way than this process has room for."""

    code, title = "overloaded", "Overloaded"


# --- What a caller may get wrong. -----------------------------------------------------------------


class InvalidRequest(GlimpseError):
    """The request cannot be understood as it stands."""

    status, code, title = 422, "invalid_request", "Invalid request"


class IdempotencyKeyReused(InvalidRequest):
    """The key of an earlier request, with another body."""

    code, title = "idempotency_key_reused", "Idempotency key reused"


class NotUploaded(InvalidRequest):
    """An image that was named by its hash, and that nobody has stored."""

    code, title = "not_uploaded", "Image not uploaded"


class MalformedBody(GlimpseError):
    """A request body that does not have the form its headers announce."""

    status, code, title = 400, "malformed_body", "Malformed request body"


class MalformedEnvelope(GlimpseError):
    """A push body that is not a Pub/Sub envelope for this worker."""

    status, code, title = 400, "malformed_envelope", "Malformed push envelope"


class Unauthenticated(GlimpseError):
    """The caller did not prove who it is."""

    status, code, title = 401, "unauthenticated", "Unauthenticated"


class Forbidden(GlimpseError):
    """The caller is known, or its link has expired, and may not do this."""

    status, code, title = 403, "forbidden", "Forbidden"


class RateLimited(GlimpseError):
    """The key has used up one of its limits."""

    status, code, title = 429, "rate_limited", "Too many requests"


class InvalidHost(GlimpseError):
    """The request names a host that this service does not answer for."""

    status, code, title = 400, "invalid_host", "Invalid host"


class BodyTooLarge(GlimpseError):
    """A request body, other than an image, beyond its bound."""

    status, code, title = 413, "body_too_large", "Request body too large"


class ImageTooLarge(GlimpseError):
    """More bytes than the limit."""

    status, code, title = 413, "image_too_large", "Image too large"


class BatchTooLarge(GlimpseError):
    """More images, or more bytes, than one job may have."""

    status, code, title = 413, "batch_too_large", "Batch too large"


class UnsupportedMediaType(GlimpseError):
    """A body of a type that this route does not read."""

    status, code, title = 415, "unsupported_media_type", "Unsupported media type"


class UploadTooSlow(GlimpseError):
    """The bytes of an upload come slower than they must."""

    status, code, title = 408, "upload_too_slow", "Upload too slow"


class UnsupportedImage(GlimpseError):
    """The bytes are not of an accepted image format."""

    status, code, title = 415, "unsupported_image", "Unsupported image type"


class InvalidImage(GlimpseError):
    """The bytes begin like an accepted format but cannot be a picture that Glimpse classifies."""

    status, code, title = 422, "invalid_image", "Invalid image"


# --- What ends a record as `error` (the record's `error.code`). -----------------------------------


class UndecodableImage(InvalidImage):
    """The image passed its header check and then failed to decode."""

    code, title = "undecodable_image", "Image cannot be decoded"


class ModelUnavailable(Unavailable):
    """This worker has no bundle for the message's model; another revision may have it."""

    code, title = "model_unavailable", "Model unavailable"


class BundleError(GlimpseError):
    """A model bundle that is incomplete, altered or does not do what its manifest says."""

    code, title = "invalid_bundle", "Invalid model bundle"


class BundleUnavailable(BundleError):
    """A model bundle that cannot be read for now: it is not there, or not ours to read, or its
    storage does not answer. It may come by itself.
    """

    code, title = "bundle_unavailable", "Model bundle unavailable"


RETRY_AFTER = (1, 5)  # seconds, drawn between, so that those sent away do not return together


def overloaded() -> Overloaded:
    return Overloaded(
        "The service is at capacity. Retry later.",
        retry_after=random.randint(*RETRY_AFTER),
    )
