"""`python -m app`: the API in one process."""

import contextlib
import socket

import uvicorn
from fastapi import FastAPI

from app.main import create_app
from core.backends import BackendOpener, open_backend
from core.clock import Clock, utc_now
from core.errors import BundleError
from core.model_bundle import read_bundle
from core.settings import Settings, load_settings
from core.telemetry import configure_logging


class Server(uvicorn.Server):
    """A server whose stop lets those who wait for a result go with what is known."""

    def __init__(self, config: uvicorn.Config, app: FastAPI) -> None:
        super().__init__(config)
        self._app = app

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        service = getattr(self._app.state, "service", None)
        if service is not None:
            service.waiting.stop()
        await super().shutdown(sockets)


def main() -> None:
    settings = load_settings()
    configure_logging("api", settings.log_format, settings.log_level, settings.google_cloud_project)
    try:
        read_bundle(settings.model_uri)
    except BundleError as error:
        raise SystemExit(f"Glimpse cannot start: {error.detail}") from None
    serve(settings)


def serve(settings: Settings, clock: Clock = utc_now, opener: BackendOpener = open_backend) -> None:
    """Run the API until SIGTERM or SIGINT."""
    app = create_app(settings, clock, opener)
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port or settings.api_port,
        loop="uvloop",
        http="httptools",
        ws="none",
        lifespan="on",
        access_log=False,
        log_config=None,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(settings.shutdown_seconds)),
    )
    with contextlib.suppress(KeyboardInterrupt):
        Server(config, app).run()


if __name__ == "__main__":
    main()
