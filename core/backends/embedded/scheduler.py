"""The part that Cloud Scheduler plays in the cloud: it asks the worker to reconcile, regularly."""

import asyncio

import structlog

from core.backends.embedded.push_client import NoAnswer, NotReached, PushClient
from core.policy import RECONCILE_PATH

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 60.0


async def reconcile_regularly(client: PushClient, interval: float) -> None:
    """POST to the worker every `interval` seconds, for ever. A failure is logged: the next
    call does the work of the one that failed."""
    while True:
        await asyncio.sleep(interval)
        try:
            status = await client.post(RECONCILE_PATH, b"{}", ANSWER_SECONDS)
        except NotReached:
            log.debug("reconciliation skipped: worker unreachable")  # the queue has said so
        except NoAnswer as error:
            log.warning("reconciliation failed", reason=str(error))
        else:
            if status >= 300:
                log.warning("reconciliation failed", reason=f"HTTP {status}")
