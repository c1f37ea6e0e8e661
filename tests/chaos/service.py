"""`python -m tests.chaos.service api|worker`: the service on faulty ports and a stepping clock.

`CHAOS_RATE` is the share of port calls that fail, `CHAOS_SEED` the seed of the random numbers, and
`CHAOS_CLOCK` the file that sets the clock.
"""

import os
import sys
from pathlib import Path

from core.observability.logs import configure_logging
from core.settings import load_settings
from tests.chaos.faulty_ports import faulty_backend
from tests.chaos.stepping_clock import SteppingClock


def main() -> None:
    settings = load_settings()
    configure_logging(sys.argv[1], settings.log_format, settings.log_level)
    seed = int(os.environ["CHAOS_SEED"]) + os.getpid()
    opener = faulty_backend(float(os.environ["CHAOS_RATE"]), seed)
    clock = SteppingClock(Path(os.environ["CHAOS_CLOCK"]))
    if sys.argv[1] == "api":
        from app.__main__ import serve
    else:
        from worker.__main__ import serve
    serve(settings, clock, opener)


if __name__ == "__main__":
    main()
