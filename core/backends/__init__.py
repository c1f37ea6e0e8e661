"""Backends: where records, blobs, messages and keys are kept.

`open_backend` and, where keys are asked for, `open_access` are the ones that choose. For whoever
clears away what keys were counted for there is `open_usage`.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from core.clock import Clock, utc_now
from core.ports import (
    AllowanceStore,
    BlobStore,
    DeadLetterStore,
    JobStore,
    KeyStore,
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
    """The ports of one process. `links` verifies local signed links, where they are local.

    `objects` is there where clients may import from buckets.
    """

    records: RecordStore
    blobs: BlobStore
    publisher: Publisher
    dead_letters: DeadLetterStore
    jobs: JobStore
    webhooks: WebhookStore
    links: "LinkSigner | None" = None
    objects: ObjectSource | None = None


@dataclass(frozen=True)
class Access:
    """What knows who may come in. `secret` is that of the keyed hash."""

    keys: KeyStore
    allowances: AllowanceStore
    usage: UsageStore
    secret: bytes = field(repr=False)


class BackendOpener(Protocol):
    """What `open_backend` is; tests open theirs with faults."""

    def __call__(
        self, settings: Settings, clock: Clock
    ) -> AbstractAsyncContextManager[Backend]: ...


@asynccontextmanager
async def open_backend(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Backend]:
    """Open what `BACKEND` names, once a process and after any fork; close it on the way out."""
    # Imported here so that a backend's packages are loaded only where it is used.
    if settings.backend == "embedded":
        from core.backends.embedded import open_embedded as open_chosen
    else:
        from core.backends.google import open_google as open_chosen

    async with open_chosen(settings, clock) as backend:
        yield backend


@asynccontextmanager
async def open_access(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[Access]:
    """Open the keys of what `BACKEND` names. Only the API and its key command need them."""
    if settings.backend == "embedded":
        from core.backends.embedded import open_embedded_access as open_chosen
    else:
        from core.backends.google import open_google_access as open_chosen

    async with open_chosen(settings, clock) as access:
        yield access


@asynccontextmanager
async def open_usage(settings: Settings, clock: Clock = utc_now) -> AsyncIterator[UsageStore]:
    """Open the counts of what `BACKEND` names, and nothing that tells who may come in."""
    if settings.backend == "embedded":
        from core.backends.embedded import open_embedded_usage as open_chosen
    else:
        from core.backends.google import open_google_usage as open_chosen

    async with open_chosen(settings, clock) as usage:
        yield usage
