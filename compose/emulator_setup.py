"""Topics, push subscriptions and bucket on running emulators: `python -m compose.emulator_setup`.

Waits until they answer. Running it again changes what differs from the settings.
"""

import asyncio
import time

from core.backends.google.provision import provision
from core.errors import Unavailable
from core.settings import Settings, load_settings

PATIENCE = 120.0  # seconds


async def set_up(settings: Settings, patience: float = PATIENCE) -> None:
    """Raises Unavailable where an emulator has not answered in time."""
    deadline = time.monotonic() + patience
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
        raise SystemExit("This is for BACKEND=emulator; Google Cloud is set up by Terraform.")
    try:
        asyncio.run(set_up(settings))
    except Unavailable as error:
        raise SystemExit(f"The emulators could not be set up. {error.detail}") from None
    print("The emulators are set up.")


if __name__ == "__main__":
    main()
