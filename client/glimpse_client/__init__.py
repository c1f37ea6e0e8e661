"""Python client for Glimpse, an image-classification API.

    from glimpse_client import Glimpse

    with Glimpse() as glimpse:
        print(glimpse.images.classify("photo.jpg").label)

`GLIMPSE_URL`, `GLIMPSE_API_KEY` and `GLIMPSE_LOG` (a logging level) are read from the environment.
"""

import logging
import os

from glimpse_client.client import VERSION, AsyncGlimpse, Glimpse
from glimpse_client.errors import (
    ApiError,
    ConnectionFailed,
    GlimpseError,
    InvalidSignature,
    WaitTimeout,
)
from glimpse_client.jobs import Batch
from glimpse_client.jobs import Options as JobOptions
from glimpse_client.retries import RetryPolicy
from glimpse_client.types import (
    Annotation,
    DeadLetter,
    Image,
    ImageError,
    Job,
    JobResult,
    Key,
    Model,
    Page,
    Usage,
    Webhook,
    WebhookEvent,
)
from glimpse_client.webhook_signatures import verify as verify_webhook

__version__ = VERSION
__all__ = [
    "Annotation",
    "ApiError",
    "AsyncGlimpse",
    "Batch",
    "ConnectionFailed",
    "DeadLetter",
    "Glimpse",
    "GlimpseError",
    "Image",
    "ImageError",
    "InvalidSignature",
    "Job",
    "JobOptions",
    "JobResult",
    "Key",
    "Model",
    "Page",
    "RetryPolicy",
    "Usage",
    "WaitTimeout",
    "Webhook",
    "WebhookEvent",
    "verify_webhook",
]

_logger = logging.getLogger("glimpse_client")
_logger.addHandler(logging.NullHandler())
_level = os.environ.get("GLIMPSE_LOG", "").upper()
if _level in logging.getLevelNamesMapping():
    _logger.addHandler(logging.StreamHandler())
    _logger.setLevel(_level)
