"""What can go wrong in the worker alone, and what a record keeps of a failure."""

import asyncio

from core.domain.records import RecordError
from core.errors import GlimpseError, Unavailable


class InferenceFailed(GlimpseError):
    """The model did not give scores for an image that decoded well."""

    status, code, title = 500, "inference_failed", "Inference failed"


class ClassifierLost(Unavailable):
    """The process that worked on the image ended, or was ended because it took too long."""

    code, title = "classifier_lost", "Classifier lost"


class EnvelopeTooLarge(GlimpseError):
    """A push body of more bytes than a Pub/Sub message can have."""

    status, code, title = 413, "envelope_too_large", "Push envelope too large"


def last_failure(error: BaseException) -> RecordError:
    """Why a claim was given up, in words that a client may read."""
    if isinstance(error, GlimpseError):
        return RecordError(error.code, error.detail, retryable=True)
    if isinstance(error, asyncio.CancelledError):
        return RecordError("worker_stopped", "The worker stopped before it was done.", True)
    return RecordError("internal_error", "The worker failed.", retryable=True)
