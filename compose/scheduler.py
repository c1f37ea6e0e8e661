"""The part of Cloud Scheduler beside the emulators: `python -m compose.scheduler`.

It asks the worker to look after stale records, regularly. The embedded queue does so by itself.
"""

import asyncio
import signal

from core.backends.embedded.push_client import PushClient
from core.backends.embedded.scheduler import reconcile_regularly
from core.settings import Settings, load_settings
from core.telemetry import configure_logging


async def schedule(settings: Settings) -> None:
    """Run until SIGTERM or SIGINT."""
    async with PushClient(settings.push_endpoint or settings.worker_url) as client:
        interval = max(1.0, settings.stale_seconds / 2)
        task = asyncio.create_task(reconcile_regularly(client, interval))
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, task.cancel)
        await asyncio.wait({task})


def main() -> None:
    settings = load_settings()
    configure_logging("scheduler", settings.log_format, settings.log_level)
    asyncio.run(schedule(settings))


if __name__ == "__main__":
    main()
