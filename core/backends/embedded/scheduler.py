"""The part that Cloud Scheduler plays in the cloud: it calls the worker, regularly."""

import asyncio

import structlog

from core.backends.embedded.push_client import NoAnswer, NotReached, PushClient

log = structlog.get_logger(__name__)

ANSWER_SECONDS = 60.0


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
