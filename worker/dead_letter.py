"""A message that used up its deliveries: its record ends as a retryable `error`.

The letter itself stays in the queue's keeping, from where it can be replayed.
"""

import structlog

from core.errors import Unavailable
from core.messages import DEAD_LETTER_DELIVERY_COUNT, ClassifyImage
from core.records import RecordError
from core.tracing import span
from worker.workbench import Workbench

# Why a letter failed no record.
UNREADABLE, UNKNOWN_IMAGE, FINISHED_IMAGE = "unreadable", "unknown_image", "finished_image"

log = structlog.get_logger(__name__)


async def bury(message: ClassifyImage, attributes: dict[str, str], bench: Workbench) -> None:
    """Fail the letter's record, unless it is finished or gone. Returning acknowledges the letter.

    `attributes` are the message's, with those that the queue adds to a dead letter. Raises
    Unavailable while a worker still owns the record: that one may yet succeed.
    """
    error = _reason(message, attributes, bench)
    with span("fail record"):
        failed = await bench.backend.records.fail(message.key, error)
    if failed:
        bench.metrics.buried(error.code)
        log.error("dead letter", code=error.code, detail=error.detail)
        return
    record = await bench.backend.records.get(message.key)
    if record is None:
        bench.metrics.buried(UNKNOWN_IMAGE)
        log.error("dead letter for an unknown image", model=message.key.model)
    elif record.status.terminal:
        bench.metrics.buried(FINISHED_IMAGE)
        log.info("dead letter for a finished image", status=record.status)
    else:
        raise Unavailable("A worker is still classifying this image.")


def _reason(message: ClassifyImage, attributes: dict[str, str], bench: Workbench) -> RecordError:
    model = message.key.model
    if model not in bench.models.identities:
        return RecordError("model_unavailable", f"No worker has the model {model}.", retryable=True)
    count = attributes.get(DEAD_LETTER_DELIVERY_COUNT, "")
    # The count is the queue's word, shown to clients: only a number may stand there.
    after = (
        f"{int(count)} deliveries" if count.isdecimal() and len(count) < 10 else "its deliveries"
    )
    return RecordError(
        "delivery_exhausted", f"The image was not classified after {after}.", retryable=True
    )
