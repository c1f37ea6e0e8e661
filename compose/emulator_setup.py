"""Creates topics, push subscriptions, and the bucket on running emulators.

Run it as `python -m compose.emulator_setup`. It waits until the emulators respond. If you run it
again, it updates what differs from the settings.
"""

import asyncio
import time

from core.backends.google.provision import provision
from core.errors import Unavailable
from core.settings import Settings, load_settings

START_SECONDS = 120.0  # longest time until the emulators respond


async def set_up(settings: Settings, seconds: float = START_SECONDS) -> None:
    """Raises Unavailable if an emulator does not respond within `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return await provision(settings)
        except Unavailable:
            if time.monotonic() > deadline:
                raise
            await asyncio.sleep(0.5)


def main() -> None:
    settings = load_settings()
    if settings.backend != "emulator":
        raise SystemExit("This command needs BACKEND=emulator. Terraform sets up Google Cloud.")
    try:
        asyncio.run(set_up(settings))
    except Unavailable as error:
        raise SystemExit(f"The emulators could not be set up. {error.detail}") from None
    print("The emulators are set up.")


if __name__ == "__main__":
    main()
