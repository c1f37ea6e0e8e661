"""The parts of one API process. Its routes get them from `app.state`.

Every package may import this module, because it imports types only, for the type checker.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.requests import HTTPConnection

    from app.audit_log import AuditLog
    from app.auth.authenticator import Authenticator
    from app.http.responses import RawHeaders
    from app.images.events import ImagePoller
    from app.images.service import ImageService
    from app.images.thumbnails import Thumbnails
    from app.jobs.events import JobPoller
    from app.jobs.service import JobService
    from app.jobs.training import TrainingService
    from app.models.catalogue import ModelCatalogue
    from app.models.trained import TrainedModels
    from app.streams.registry import StreamRegistry
    from app.uploads.image_source import ImageFetcher
    from app.uploads.limiter import UploadLimiter
    from app.webhooks.service import Webhooks
    from core.backends import Backend
    from core.bundles.python_bundle import AnyBundle
    from core.clock import Clock
    from core.settings import Settings


@dataclass(frozen=True, slots=True)
class Services:
    """The parts that `app.main` opens at the start and closes at the end.

    `bundle` is the default model's. `success_headers` are the caching headers of
    results. `authenticator` is None if `API_KEYS` is `off`.
    """

    settings: Settings
    clock: Clock
    bundle: AnyBundle
    backend: Backend
    models: ModelCatalogue
    trained_models: TrainedModels
    images: ImageService
    thumbnails: Thumbnails
    jobs: JobService
    trainings: TrainingService
    webhooks: Webhooks
    uploads: UploadLimiter
    image_fetcher: ImageFetcher
    streams: StreamRegistry
    success_headers: RawHeaders
    image_poller: ImagePoller
    job_poller: JobPoller
    authenticator: Authenticator | None
    audit: AuditLog

    @property
    def model(self) -> str:
        """The identity of the default model."""
        return self.bundle.identity

    def stop(self, seconds: float) -> None:
        """End streams and waits now, and refuse uploads that are still arriving after `seconds`."""
        self.images.stop()
        self.streams.stop()
        self.uploads.stop(seconds)

    async def close(self) -> None:
        """End streams and waits, and finish the submissions that have begun."""
        self.streams.stop()
        await self.images.close()


def services_of(connection: HTTPConnection) -> Services:
    """The parts of the application that serves this request or WebSocket."""
    services: Services = connection.scope["app"].state.services
    return services
