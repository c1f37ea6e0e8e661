"""The parts of Cloud Scheduler and Terraform beside the emulators: `python -m compose.scheduler`.

It asks the worker to look after stale records and due jobs, regularly; the embedded queue does so
by itself. And Pub/Sub's emulator forgets everything when it ends, so it is set up anew whenever a
topic is gone.
"""

import asyncio
import signal
from contextlib import suppress

import structlog

from compose.emulator_setup import set_up
from core.backends import Backend, open_backend
from core.backends.local_scheduler import regular_calls
from core.backends.push_client import PushClient
from core.errors import GlimpseError, Unavailable
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings

log = structlog.get_logger(__name__)

CHECK_SECONDS = 5.0


async def schedule(settings: Settings) -> None:
    """Do both, until cancelled."""
    async with (
        open_backend(settings) as backend,
        PushClient(settings.push_url) as client,
        regular_calls(client, settings),
    ):
        while True:
            await asyncio.sleep(CHECK_SECONDS)
            await _set_up_again_if_gone(settings, backend)


async def _set_up_again_if_gone(settings: Settings, backend: Backend) -> None:
    try:
        await backend.publisher.ping()
    except GlimpseError:
        try:
            await set_up(settings, patience=0)
        except Unavailable:
            return  # it is down, and may be back by the next check
        log.warning("emulators set up again")


async def serve(settings: Settings) -> None:
    """Schedule until SIGTERM or SIGINT."""
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
