"""Errors that only the worker raises, and the reason that a released record keeps."""

import asyncio

from core.domain.records import RecordError
from core.errors import GlimpseError, Unavailable


class InferenceFailed(GlimpseError):
    """The model did not return scores for an image that decoded successfully."""

    status, code, title = 500, "inference_failed", "Inference failed"


class PredictionFailed(GlimpseError):
    """The predictor of a bundle in Python raised an exception, or returned no valid prediction."""

    status, code, title = 500, "prediction_failed", "Prediction failed"


class ClassifierLost(Unavailable):
    """The process that classified the image ended, or was stopped because it took too long."""

    code, title = "classifier_lost", "Classifier lost"


class EnvelopeTooLarge(GlimpseError):
    """A push body that is larger than any Pub/Sub message."""

    status, code, title = 413, "envelope_too_large", "Push envelope too large"


def may_be_the_image(error: BaseException) -> bool:
    """Whether the image itself may be the reason for `error`, rather than a store or a shutdown."""
    if isinstance(error, GlimpseError):
        return isinstance(error, ClassifierLost | InferenceFailed)
    return not isinstance(error, asyncio.CancelledError)


def release_reason(error: BaseException) -> RecordError:
    """Why a claim was released, in words that a client may read."""
    if isinstance(error, GlimpseError):
        return RecordError(error.code, error.detail, retryable=True)
    if isinstance(error, asyncio.CancelledError):
        return RecordError("worker_stopped", "The worker stopped before it finished.", True)
    return RecordError("internal_error", "The worker failed.", retryable=True)
