"""Replaces Cloud Scheduler and Terraform for the emulators: `python -m compose.scheduler`.

It calls the worker regularly to reconcile stale records and to run due jobs. The embedded queue
does this itself. The Pub/Sub emulator loses its topics when it ends, so this process creates
missing topics again.
"""

import asyncio
import signal
from contextlib import suppress

import structlog

from compose.emulator_setup import set_up
from core.backends import Backend, open_backend
from core.backends.local_scheduler import running_scheduler
from core.backends.push_client import PushClient
from core.backends.push_secret import local_push_secret
from core.errors import GlimpseError, Unavailable
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings

log = structlog.get_logger(__name__)

CHECK_SECONDS = 5.0


async def schedule(settings: Settings) -> None:
    """Do both until this task is cancelled."""
    secret = await asyncio.to_thread(local_push_secret, settings)
    async with (
        open_backend(settings) as backend,
        PushClient(settings.push_url, secret) as client,
        running_scheduler(client, settings),
    ):
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await _restore_topics(settings, backend)


async def _restore_topics(settings: Settings, backend: Backend) -> None:
    try:
        await backend.publisher.ping()
    except GlimpseError:
        try:
            await set_up(settings, seconds=0)
        except Unavailable:
            return  # the emulator is down. The next check tries again
        log.warning("emulators set up again")


async def serve(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    task = asyncio.create_task(schedule(settings))
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    with suppress(asyncio.CancelledError):
        await task


def main() -> None:
    settings = load_settings()
    configure_logging("scheduler", settings.log_format, settings.log_level)
    asyncio.run(serve(settings))


if __name__ == "__main__":
    main()
