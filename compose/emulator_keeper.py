"""The parts of Cloud Scheduler and Terraform, for emulators: `python -m compose.emulator_keeper`.

It asks the worker to reconcile, regularly. And Pub/Sub's emulator forgets everything when it ends,
so whenever the topic is gone it is set up anew; the records then bring the lost messages back.
"""

import asyncio
import signal

import structlog

from compose.emulator_setup import set_up
from core.backends import Backend, open_backend
from core.backends.embedded.push_client import PushClient
from core.backends.embedded.scheduler import reconcile_regularly
from core.errors import GlimpseError, Unavailable
from core.settings import Settings, load_settings
from core.telemetry import configure_logging

log = structlog.get_logger(__name__)

CHECK_SECONDS = 5.0


async def keep(settings: Settings, stop: asyncio.Event) -> None:
    """Run until `stop`. Raises Unavailable where the emulators never answer."""
    await set_up(settings)
    worker = settings.push_endpoint or settings.worker_url
    async with open_backend(settings) as backend, PushClient(worker) as client:
        scheduler = asyncio.create_task(
            reconcile_regularly(client, max(1.0, settings.stale_seconds / 2))
        )
        log.info("keeps the emulators set up", worker=worker)
        try:
            while not await _set_within(stop, CHECK_SECONDS):
                await _set_up_again_if_gone(settings, backend)
        finally:
            scheduler.cancel()
            await asyncio.gather(scheduler, return_exceptions=True)


async def _set_up_again_if_gone(settings: Settings, backend: Backend) -> None:
    try:
        await backend.publisher.ping()
    except GlimpseError:
        try:
            await set_up(settings, patience=0)
        except Unavailable:
            return  # it is down, and may be back by the next check
        log.warning("emulators set up again")


async def _set_within(event: asyncio.Event, seconds: float) -> bool:
    try:
        await asyncio.wait_for(event.wait(), seconds)
    except TimeoutError:
        return False
    return True


async def serve(settings: Settings) -> None:
    """Keep until SIGTERM or SIGINT."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await keep(settings, stop)


def main() -> None:
    settings = load_settings()
    configure_logging("scheduler", settings.log_format, settings.log_level)
    try:
        asyncio.run(serve(settings))
    except Unavailable as error:
        raise SystemExit(f"The emulators do not answer: {error.detail}") from None


if __name__ == "__main__":
    main()
