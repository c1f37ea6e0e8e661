"""`python -m app`: the API in one process."""

import contextlib

from app.main import create_app
from app.server import Server, raise_file_limit
from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.errors import BundleError
from core.exposure import Exposed
from core.model_bundle import read_bundle
from core.settings import Settings, load_settings
from core.telemetry import configure_logging


def main() -> None:
    settings = load_settings()
    configure_logging("api", settings.log_format, settings.log_level, settings.google_cloud_project)
    try:
        read_bundle(settings.model_uri)
    except BundleError as error:
        raise SystemExit(f"Glimpse cannot start: {error.detail}") from None
    serve(settings)


def serve(settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend) -> None:
    """Run the API until SIGTERM or SIGINT; exit where it would be open to everyone."""
    try:
        app = create_app(settings, clock, opener)
    except Exposed as error:
        raise SystemExit(f"Glimpse cannot start: {error}") from None
    raise_file_limit(settings.max_connections)
    with contextlib.suppress(KeyboardInterrupt):
        Server(settings, app).run()


if __name__ == "__main__":
    main()
