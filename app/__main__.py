"""`python -m app`: the API in one process."""

import contextlib

from app.main import create_app
from app.server import Server, raise_file_limit
from core.errors import BundleError
from core.model_bundle import read_bundle
from core.settings import load_settings
from core.telemetry import configure_logging


def main() -> None:
    settings = load_settings()
    configure_logging("api", settings.log_format, settings.log_level)
    try:
        read_bundle(settings.model_uri)
    except BundleError as error:
        raise SystemExit(f"Glimpse cannot start: {error.detail}") from None
    raise_file_limit(settings.max_connections)
    with contextlib.suppress(KeyboardInterrupt):
        Server(settings, create_app(settings)).run()


if __name__ == "__main__":
    main()
