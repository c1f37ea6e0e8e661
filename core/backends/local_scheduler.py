"""Calls the worker regularly, as Cloud Scheduler does on Google Cloud."""

import asyncio
from contextlib import AbstractAsyncContextManager

import structlog

from core.backends.push_client import ConnectFailed, NoResponse, PushClient
from core.concurrency import in_background
from core.domain.policy import RECONCILE_PATH, SCHEDULE_PATH
from core.settings import Settings

log = structlog.get_logger(__name__)

RESPONSE_SECONDS = 60.0


def running_scheduler(client: PushClient, settings: Settings) -> AbstractAsyncContextManager[None]:
    """Calls the worker for stale records and due jobs for the duration of the context."""
    return in_background(
        call_repeatedly(client, RECONCILE_PATH, settings.delivery.reconcile_interval),
        call_repeatedly(client, SCHEDULE_PATH, settings.jobs.schedule_interval),
    )


async def call_repeatedly(client: PushClient, path: str, interval: float) -> None:
    """POST to the worker every `interval` seconds until this task is cancelled.

    A failure is only logged, because the next call does the same work.
    """
    while True:
        await asyncio.sleep(interval)
        try:
            status = await client.post(path, b"{}", RESPONSE_SECONDS)
        except ConnectFailed:
            log.debug("call skipped: worker unreachable", path=path)  # the queue logs it
        except NoResponse as error:
            log.warning("call failed", path=path, reason=str(error))
        else:
            if status >= 300:
                log.warning("call failed", path=path, reason=f"HTTP {status}")
