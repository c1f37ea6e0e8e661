"""`python -m worker`: serve until SIGTERM or SIGINT."""

from core.gc_pause import begin_gc_pause, end_gc_pause

if __name__ == "__main__":
    begin_gc_pause()

import contextlib
import sys

import uvicorn

from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.domain.policy import SHUTDOWN_SECONDS
from core.http.server import BaseServer
from core.http.startup_security import InsecureSettings, check_worker
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings
from worker.main import create_app

STARTUP_FAILED = 3  # the exit status of uvicorn's own command


def main() -> None:
    """Run the worker with the settings from the environment."""
    settings = load_settings()
    try:
        check_worker(settings)
    except InsecureSettings as error:
        raise SystemExit(f"Glimpse cannot start: {error}") from None
    configure_logging(
        "worker", settings.log_format, settings.log_level, settings.google_cloud_project
    )
    serve(settings)


def serve(settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend) -> None:
    """Run the worker until SIGTERM or SIGINT."""
    config = uvicorn.Config(
        create_app(settings, clock, opener),
        host=settings.host,
        port=settings.port or settings.worker_port,
        loop="uvloop",
        http="httptools",
        lifespan="on",
        access_log=False,
        proxy_headers=False,  # nothing depends on the address of the caller
        log_config=None,
        timeout_graceful_shutdown=round(SHUTDOWN_SECONDS),
    )
    server = BaseServer(config)
    end_gc_pause()
    with contextlib.suppress(KeyboardInterrupt):
        server.run()
    if not server.started:
        sys.exit(STARTUP_FAILED)


if __name__ == "__main__":
    main()
