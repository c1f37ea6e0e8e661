"""What can go wrong in the worker alone."""

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
