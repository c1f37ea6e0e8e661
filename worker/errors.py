"""What can go wrong in the worker alone."""

from core.errors import GlimpseError


class InferenceFailed(GlimpseError):
    """The model did not give scores for an image that decoded well."""

    status, code, title = 500, "inference_failed", "Inference failed"


class EnvelopeTooLarge(GlimpseError):
    """A push body of more bytes than a Pub/Sub message can have."""

    status, code, title = 413, "envelope_too_large", "Push envelope too large"
