"""`python -m app`: the API in one process."""

from core.gc_pause import begin_gc_pause, end_gc_pause

if __name__ == "__main__":
    begin_gc_pause()

import contextlib

from fastapi import FastAPI

from app.http.server import Server, max_connections, raise_file_limit
from app.main import create_app
from app.models.default_bundle import wait_for_model
from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.errors import BundleError
from core.http.startup_security import InsecureSettings, check_api
from core.observability.logs import configure_logging
from core.settings import Settings, load_settings


def main() -> None:
    settings = load_settings()
    configure_logging("api", settings.log_format, settings.log_level, settings.google_cloud_project)
    try:
        check_api(settings)
        # Not in the lifespan: the server handles no signals before it has started.
        app = create_app(settings, bundle=wait_for_model(settings))
    except (InsecureSettings, BundleError) as error:
        raise SystemExit(f"Glimpse cannot start: {error}") from None
    except KeyboardInterrupt:
        return
    _run(settings, app)


def serve(settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend) -> None:
    """Run the API until SIGTERM or SIGINT. Exits if others could reach it without a key."""
    try:
        app = create_app(settings, clock, opener)
    except InsecureSettings as error:
        raise SystemExit(f"Glimpse cannot start: {error}") from None
    _run(settings, app)


def _run(settings: Settings, app: FastAPI) -> None:
    end_gc_pause()
    raise_file_limit(max_connections(settings))
    with contextlib.suppress(KeyboardInterrupt):
        Server(settings, app).run()


if __name__ == "__main__":
    main()
