"""Backends for records, blobs, messages and keys.

The functions here choose the backend: `open_backend` for all services, `open_access` for the API,
which checks keys, and `open_usage` for the worker, which deletes old counts of their usage.
"""

from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from core.clock import Clock, utc_now
from core.ports import (
    AllowanceStore,
    BlobStore,
    DeadLetterStore,
    JobStore,
    KeyStore,
    ModelStore,
    ObjectSource,
    Publisher,
    RecordStore,
    UsageStore,
    WebhookStore,
)
from core.settings import Settings

if TYPE_CHECKING:
    from core.backends.links import LinkSigner


@dataclass(frozen=True)
class Backend:
    """The ports of one process.

    `links` verifies signed links if the API serves them itself. `objects` reads the buckets from
    which clients may import, if there are any.
    """

    records: RecordStore
    blobs: BlobStore
    publisher: Publisher
    dead_letters: DeadLetterStore
    jobs: JobStore
    webhooks: WebhookStore
    models: ModelStore
    links: "LinkSigner | None" = None
    objects: ObjectSource | None = None


@dataclass(frozen=True)
class Access:
    """The ports for API keys. `secrets` are those with which keys are hashed, newest first."""

    keys: KeyStore
    allowances: AllowanceStore
    usage: UsageStore
    secrets: tuple[bytes, ...] = field(repr=False)


class BackendOpener(Protocol):
    """The type of `open_backend`. Tests pass their own, which injects faults."""

    def __call__(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[Backend]: ...


class _Package(Protocol):
    """What the package of a backend provides. Each function may raise Unavailable."""

    def open_backend(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[Backend]: ...

    def open_access(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[Access]: ...

    def open_usage(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[UsageStore]: ...


def open_backend(
    settings: Settings, clock: Clock = utc_now
) -> AbstractAsyncContextManager[Backend]:
    """Open the backend that `BACKEND` names. Call it once in a process, after any fork."""
    return _package(settings).open_backend(settings, clock)


def open_access(settings: Settings, clock: Clock = utc_now) -> AbstractAsyncContextManager[Access]:
    """Open the API keys, their limits and their usage. Only the API and its key command do."""
    return _package(settings).open_access(settings, clock)


def open_usage(
    settings: Settings, clock: Clock = utc_now
) -> AbstractAsyncContextManager[UsageStore]:
    """Open the usage of API keys without the keys."""
    return _package(settings).open_usage(settings, clock)


def _package(settings: Settings) -> _Package:
    # Imported here so that a backend's libraries are loaded only where it is used.
    if settings.backend == "embedded":
        from core.backends import embedded

        return embedded
    from core.backends import google

    return google
