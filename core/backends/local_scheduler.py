"""The part that Cloud Scheduler plays in the cloud: the worker is called, regularly."""

import asyncio
from contextlib import AbstractAsyncContextManager

import structlog

from core.backends.push_client import NoAnswer, NotReached, PushClient
from core.concurrency import in_background
from core.domain.policy import RECONCILE_PATH, SCHEDULE_PATH
from core.settings import Settings

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 60.0


def regular_calls(client: PushClient, settings: Settings) -> AbstractAsyncContextManager[None]:
    """While it is open, the worker is asked to look after stale records and due jobs."""
    return in_background(
        call_regularly(client, RECONCILE_PATH, settings.delivery.reconcile_interval),
        call_regularly(client, SCHEDULE_PATH, settings.jobs.schedule_interval),
    )


async def call_regularly(client: PushClient, path: str, interval: float) -> None:
    """POST to the worker every `interval` seconds, for ever. A failure is logged: the next
    call does the work of the one that failed."""
    while True:
        await asyncio.sleep(interval)
        try:
            status = await client.post(path, b"{}", ANSWER_SECONDS)
        except NotReached:
            log.debug("call skipped: worker unreachable", path=path)  # the queue has said so
        except NoAnswer as error:
            log.warning("call failed", path=path, reason=str(error))
        else:
            if status >= 300:
                log.warning("call failed", path=path, reason=f"HTTP {status}")
